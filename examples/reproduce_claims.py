"""The paper's claims on the zoo: trains, measures, and writes the page of results. Offline, on a CPU.

    python examples/reproduce_claims.py --zoo zoo runs/zoos/1 runs/zoos/2 --plan core --processes 2
    python examples/reproduce_claims.py --zoo zoo --search --processes 2      # what the transfer recipe is to be
    python examples/reproduce_claims.py --zoo zoo --ideas --processes 2       # what else might have been in it
    python examples/reproduce_claims.py --zoo zoo ... --plan full --conditions evp lora

Zoos are folders with a checkpoint per member, made by `python zoo/train.py --zoo_seed N`; the name of a folder is that of
its zoo, that of the shipped one is 0, and names that begin with "nocue" are the control. Every training is a cell, kept in
a file under --output_dir; a second run reads what is there. What was measured goes to docs/results/claims_cells.jsonl,
beside what is in it, and of that are made claims.json, docs/results_claims.md and two charts (--search writes
docs/results/claims_search.json, --ideas claims_ideas.json), all of them under another name with --name. Only validation
pictures choose; test pictures are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from claims.charts import save_conditions, save_pairs
from claims.data import TASKS
from claims.earlier import earlier_rows, with_earlier
from claims.experiment import Runner, Settings, Zoo, describe, run_cells, write_whole
from claims.plan import CONDITIONS, CORE, TASKS_OF_THE_MEAN, Cell, make_plan
from claims.records import Records
from claims.search import ZOO as SEARCHED_ZOO
from claims.search import Search, format_search, save_search
from claims.summary import all_lines, claims, read_rows, summarize
from claims.tables import page

from transferable_vp.bundled import bundled
from transferable_vp.demo import versions


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", nargs="+", type=Path, help="folders of zoos (default: the shipped one)")
    parser.add_argument("--plan", choices=("core", "full"), default="core", help="what to run")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS_OF_THE_MEAN))
    parser.add_argument(
        "--conditions", nargs="+", choices=tuple(CONDITIONS), help="of the plan, beside the zero border (default: all)"
    )
    parser.add_argument("--name", default="claims", help="of the files that are written (default: %(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, help="of the trainings (default: 0 1 2; of a search 0 1)")
    parser.add_argument("--processes", type=int, default=1, help="cells at a time, one thread each")
    parser.add_argument("--minutes", type=float, help="begin no further cell after this time")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--search", action="store_true", help="search the transfer recipe instead")
    instead.add_argument("--ideas", action="store_true", help="judge instead what the package does not have")
    parser.add_argument("--dry_run", action="store_true", help="print what would be run, and run nothing")
    instead.add_argument("--report_only", action="store_true", help="run nothing, write the page from what is kept")
    parser.add_argument(
        "--page_only", action="store_true", help="do the sums and the page again, of the records alone"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/claims"), help="where cells are kept")
    parser.add_argument("--docs_dir", type=Path, default=Path("docs"), help="where results go")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"of every cell (default: {value})")
    parser.add_argument("--disable_tqdm", action="store_true", help="show no progress bar")
    args = parser.parse_args(argv)
    args.seeds = args.seeds or ([0, 1] if args.search or args.ideas else [0, 1, 2])
    return args


def zoo_folders(given: list[Path] | None) -> dict[str, Path]:
    """Zoos by name.

    Raises:
        ValueError: If two have one name.
    """
    shipped = bundled("zoo").resolve()
    folders = [folder.resolve() for folder in given or [shipped]]
    named = {SEARCHED_ZOO if folder == shipped else folder.name: folder for folder in folders}
    if len(named) < len(folders):
        raise ValueError(f"Two of the zoos {', '.join(map(str, folders))} have one name; rename a folder (zoo/ is 0).")
    return named


def is_shown(row: dict[str, Any]) -> bool:
    """Whether a page shows this pair by itself: the core's. All others are in the means, and in the cells."""
    return row["condition"] in CORE and row["on"] == row["task"] and len(row["sources"]) <= 1


def short(row: dict[str, Any]) -> dict[str, Any]:
    """A pair with its numbers at the precision that test pictures have, and without those of every picture."""
    rounded = {"zero": round(row["zero"], 2), "gain": round(row["gain"], 2)}
    rounded |= {key: [round(value, 2) for value in row[key]] for key in ("gains", "ci95")}
    return {key: rounded.get(key, value) for key, value in row.items() if key != "differences"}


def write_report(cells: list[Cell], runner: Runner, docs: Path, command: str, name: str) -> Path:
    """Puts what is kept of the plan beside the records that are there, and writes all that is made of them."""
    records = Records(docs / "results" / f"{name}_cells.jsonl")
    kept = records.add(cells, runner)
    if not kept:
        raise ValueError(f"No cell of this plan is kept under {runner.output}: run it first.")
    records.add_run({
        "command": command, "cells": len(cells), "kept": kept, "versions": versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, one thread a process, torch {torch.__version__}",
    })  # fmt: skip
    records.write()
    return write_page(docs, name)


def write_page(docs: Path, name: str) -> Path:
    """Makes `results/NAME.json`, the page `results_NAME.md` and the charts of `results/NAME_cells.jsonl`, and of the
    searches and the earlier result beside it."""
    found = {kind: docs / "results" / f"{name}_{kind}.json" for kind in ("search", "ideas", "earlier")}
    others = {kind: json.loads(path.read_text()) for kind, path in found.items() if path.is_file()}
    records = Records(docs / "results" / f"{name}_cells.jsonl")
    if not len(records):
        raise FileNotFoundError(f"{records.path} is not there: run the plan first, without --page_only.")
    earlier, rows = others.pop("earlier", None), read_rows(records)
    if earlier:
        rows += earlier_rows(rows, earlier)
    result = {
        "summary": summarize(rows), "claims": claims(rows), "lines": all_lines(rows), "name": name, "records": len(records),
        "settings": records.head["settings"], "runs": records.head["runs"],
    }  # fmt: skip
    if earlier:
        result = with_earlier(result, earlier)
    result["pairs"] = list(map(short, filter(is_shown, rows)))
    parts = {key: value for key, value in result.items() if key != "pairs"}
    # A line per pair: thousands of them, and a change of one is a change of one line.
    pairs = ",\n".join(json.dumps(row) for row in result["pairs"])
    text = json.dumps(parts, indent=1, allow_nan=False).removesuffix("\n}") + f',\n "pairs": [\n{pairs}\n]}}\n'
    write_whole(docs / "results" / f"{name}.json", text)
    save_conditions(result, docs / "images" / f"{name}_conditions.png")
    save_pairs(result, docs / "images" / f"{name}_pairs.png")
    write_whole(docs / f"results_{name}.md", page(result, others))
    return docs / f"results_{name}.md"


def run_search(args: argparse.Namespace, runner: Runner, command: str) -> None:
    """Searches, prints the table, writes `results/claims_search.json` or `claims_ideas.json`."""
    if SEARCHED_ZOO not in runner.folders:
        raise ValueError(f"The search needs zoo 0, but the zoos are {', '.join(runner.folders)}: add --zoo zoo.")
    search = Search(runner, args.tasks, args.seeds, args.processes, not args.disable_tqdm)
    result = (search.run_ideas() if args.ideas else search.run()) | {
        "command": command, "settings": asdict(runner.settings), "versions": versions(),
    }  # fmt: skip
    save_search(result, args.docs_dir / "results" / f"{args.name}_{'ideas' if args.ideas else 'search'}.json")
    print(format_search(result))


def main(argv: list[str] | None = None) -> int:
    """Command line; errors a user can mend are printed as one sentence."""
    args = parse(argv)
    # Of kept cells the whole command writes the same page.
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--report_only"]
    command = shlex.join(["python", "examples/reproduce_claims.py", *words])
    try:
        if args.page_only:
            print(f"Written: {write_page(args.docs_dir, args.name)}")
            return 0
        settings = Settings(**{name: getattr(args, name) for name in asdict(Settings())})
        runner = Runner(zoo_folders(args.zoo), args.output_dir, settings)
        if args.search or args.ideas:
            run_search(args, runner, command)
            return 0
        members = {name: Zoo(folder).members for name, folder in runner.folders.items()}
        cells = make_plan(args.plan, members, args.tasks, args.seeds, args.conditions)
        unplanned = sorted(set(args.conditions or ()) - {cell.condition.name for cell in cells})
        if unplanned:
            raise ValueError(f"The plan {args.plan!r} has no {', '.join(unplanned)}: try --plan full.")
        if args.dry_run:
            kept = sum(not runner.missing(cell, runner.read(cell)) for cell in sorted(cells, key=lambda c: c.zoo))
            print("\n".join(map(describe, cells)))
            print(f"{len(cells)} cells, {sum(cell.learned for cell in cells)} of them trainings; {kept} are kept.")
            return 0
        failed = None
        if not args.report_only:
            try:
                run_cells(cells, runner, args.processes, args.minutes, not args.disable_tqdm)
            except RuntimeError as error:
                failed = error  # what could be measured is worth a report
        print(f"Written: {write_report(cells, runner, args.docs_dir, command, args.name)}")
        if failed is not None:
            raise failed
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("TRANSFERABLE_VP_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
