"""The command `transferable-vp`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from . import __version__
from .models.convert_cli import add_convert_parser


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


def train(arguments: Sequence[str]) -> None:
    """Runs `examples/train.py`, whose flags these are."""
    from .bundled import import_bundled

    sys.argv = ["transferable-vp train", *arguments]
    import_bundled("examples/train.py").main()


def evaluate(args: argparse.Namespace) -> None:
    """Measures a prompt on models, here or behind an API, and writes the transfer report."""
    import torch
    from accelerate import PartialState

    from .measure import measure
    from .pictures import save_transfer_chart
    from .report import format_table, write_json

    # Without being told so, accelerate starts no group of processes where there is no accelerator.
    state = PartialState(cpu=args.device == "cpu" or not torch.accelerator.is_available())
    if state.num_processes > 1 and args.no_cache:
        raise ValueError("Several processes exchange their answers through the cache: leave out --no_cache.")
    if state.num_processes > 1:
        measure(args, state.device, (state.process_index, state.num_processes))
        # What follows reads what all of them found.
        state.wait_for_everyone()
        if not state.is_main_process:
            return
    report = measure(args, state.device, progress=state.num_processes == 1)
    output = Path(args.output_dir)
    write_json(report, output / "transfer.json")
    save_transfer_chart(report, output / "transfer_chart.png")
    print(format_table(report))
    if len({target["by"] for target in report["targets"]}) > 1:
        print("Models behind an API wrote their answers, the others ranked the candidates (--by): compare their gains, "
              "not their levels.")  # fmt: skip
    if not args.source:
        print("No --source was given, so every model counts as held-out.")
    print(f"Written to {output}: transfer.json, transfer_chart.png")


def apply(args: argparse.Namespace) -> None:
    """Writes prompted PNGs of images and of folders of images."""
    from tqdm.auto import tqdm

    from .data import decode
    from .modeling import TransferableVisualPrompt

    output = Path(args.output_dir)
    jobs = []
    for name in args.images:
        path = Path(name)
        if not path.exists():
            raise FileNotFoundError(f"There is no image or folder {path}.")
        # Without those of an output folder within: they would be prompted twice.
        inside = path.resolve() in output.resolve().parents
        files = [path]
        if path.is_dir():
            found = sorted(f for f in path.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
            files = [f for f in found if not (inside and output.resolve() in f.resolve().parents)]
        jobs += [
            (f, output / (f.relative_to(path) if path.is_dir() else Path(f.name)).with_suffix(".png")) for f in files
        ]
    if not jobs:
        raise FileNotFoundError(
            f"No images in {', '.join(args.images)}: looked for {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    taken: dict[Path, Path] = {}
    for source, target in jobs:
        if target in taken:
            raise FileExistsError(
                f"{taken[target]} and {source} would both become {target}: apply to them one by one."
            )
        taken[target] = source
        if target.exists() and (target.resolve() == source.resolve() or not args.overwrite):
            hint = "give another --output_dir" if target.resolve() == source.resolve() else "pass --overwrite"
            raise FileExistsError(f"{target} exists already and is left as it is: {hint}.")
    prompt = TransferableVisualPrompt.from_pretrained(args.prompt)
    failed = []
    for source, target in tqdm(jobs, unit="img", disable=len(jobs) < 2):
        try:
            prompted = prompt.apply(decode(str(source)))
        except ValueError as error:
            if not args.skip_bad_images:
                raise
            failed.append(f"{source}: {error}")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        assert isinstance(prompted, Image.Image)
        prompted.save(target)
    size = f" of {prompt.config.canvas_size} x {prompt.config.canvas_size} pixels"
    print(f"{len(jobs) - len(failed)} prompted images{size if prompt.config.canvas == 'fixed' else ''} "
          f"in {output}" + "".join(f"\nskipped {line}" for line in failed))  # fmt: skip


def demo(args: argparse.Namespace) -> None:
    """Learns a prompt on one model of the zoo and measures it on all."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from .demo import run_demo

    # Bars of files that load in milliseconds hide those worth watching.
    disable_progress_bar()
    # Models this small gain nothing from a second thread, and wait for it many times longer where cores are busy.
    torch.set_num_threads(1)
    # Everything the demo reads is here; a library that looks for the Hub would only wait for it.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    run_demo(args.output_dir, args.source, args.seeds, args.quick)


def support(args: argparse.Namespace) -> int:
    """Says which models a prompt can be learned on, or what works with one model."""
    from .support import probe, supported_models
    from .surrogate import Surrogate

    if args.model is None:
        found = supported_models()
        counts = Counter(row["status"] for row in found["models"])
        width = max(len(row["model_type"]) for row in [*found["models"], *found["paper_models"]])
        for key in ("models", "paper_models"):
            if key == "paper_models":
                print("\nMade by `transferable-vp convert`:")
            for row in found[key]:
                print(f"{row['model_type']:<{width}}  {row['status']:<11}  {row['reason']}".rstrip())
        print(f"\n{counts['supported']} of {len(found['models'])} types are supported, {counts['unsupported']} are not, "
              f"{counts['untested']} are untested (conformance suite, transformers {found['transformers']})")  # fmt: skip
        failed = False
    else:
        surrogate = Surrogate.from_pretrained(args.model, dtype=args.dtype)
        findings = probe(surrogate)
        for finding in findings:
            print(f"{'works' if finding.works else 'FAILS'}  {finding.what:<14}  {finding.detail}")
        failed = not all(finding.works for finding in findings)
        status, reason = "supported", "one step with a noisy prompt"
        if failed:
            status, reason = "unsupported", "; ".join(f"{f.what}: {f.detail}" for f in findings if not f.works)
        checks = {f.what: "passed" if f.works else "failed" for f in findings}
        row = {"model": args.model, "model_type": surrogate.config.model_type, "status": status, "reason": reason,
               "checks": checks}  # fmt: skip
        found = {"transformers": version("transformers"), "models": [row]}
    if args.json:
        path = Path(args.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(failed)


def push(args: argparse.Namespace) -> None:
    """Puts a prompt on the Hub: configuration, weights, pictures and card, and nothing else that its folder holds."""
    from .hub import share_prompt
    from .modeling import TransferableVisualPrompt

    folder = _prompt_folder(args.folder)
    commit = share_prompt(
        TransferableVisualPrompt.from_pretrained(folder),
        args.repo_id,
        folder,
        license=args.license,
        # Not given, it is as the owner's settings have it.
        private=args.private or None,
        revision=args.revision,
        create_pr=args.create_pr,
        commit_message=args.commit_message,
    )
    print(f"Proposed: {commit.pr_url}" if commit.pr_url else f"Pushed: {commit.commit_url}")


def card(args: argparse.Namespace) -> None:
    """Writes or updates the README.md of a prompt in a folder; of one on the Hub, proposes results for its card."""
    from .hub import README_NAME, share_report
    from .model_card import write_card
    from .modeling import TransferableVisualPrompt
    from .report import read_json

    reports = [read_json(path) for path in args.report]
    if Path(args.prompt).is_dir():
        if args.create_pr is not None:
            raise ValueError(f"{args.prompt} is a folder, and pull requests are the Hub's: leave out --create_pr.")
        folder = _prompt_folder(args.prompt)
        path = folder / README_NAME
        before = path.read_bytes() if path.exists() else None
        prompt = TransferableVisualPrompt.from_pretrained(folder)
        write_card(prompt, folder, license=args.license, tags=args.tag, reports=reports)
        same = before == path.read_bytes()
        print(f"{path}: {'written' if before is None else 'as it was' if same else 'updated'}")
        return
    if not reports:
        raise ValueError(
            f"There is no folder {args.prompt}; if that is a repository on the Hub, say with --report which results "
            "to add to its card."
        )
    if args.license or args.tag:
        raise ValueError(f"--license and --tag are for a folder, and there is no folder {args.prompt}.")
    for path, report in zip(args.report, reports, strict=True):
        commit = share_report(report, args.prompt, create_pr=args.create_pr is not False)
        print(f"{path}: {commit.pr_url or commit.commit_url}")


def _prompt_folder(name: str) -> Path:
    folder = Path(name)
    if not (folder / "config.json").is_file():
        what = "a folder without config.json" if folder.is_dir() else "no folder"
        raise FileNotFoundError(f"{name} is {what}: give the folder that `save_pretrained` or training wrote.")
    return folder


def search(args: argparse.Namespace) -> None:
    """Lists prompts on the Hub."""
    from .hub import search_prompts

    found = search_prompts(task=args.task, base_model=args.base_model, author=args.author, limit=args.limit)
    if args.json:
        path = Path(args.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")
    if not found:
        print("No prompts found: try fewer filters. Every prompt on the Hub has the tag transferable-vp.")
        return
    rows = [("id", "task", "base models", "downloads", "updated")]
    for row in found:
        updated = str(row["last_modified"] or "")[:10]
        rows.append(
            (row["id"], row["task"] or "–", ", ".join(row["base_models"]) or "–", str(row["downloads"]), updated)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def app(args: argparse.Namespace) -> None:
    """Serves a page to try prompts on models, look at them, and learn one while watching; offline, on the zoo."""
    from transformers.utils.logging import disable_progress_bar

    from .app import launch, make_app

    # Bars of files that load in milliseconds hide the address.
    disable_progress_bar()
    launch(make_app(args.prompt, args.model), server_port=args.port, server_name=args.host, share=args.share)


def env(args: argparse.Namespace) -> None:
    """Prints what a bug report needs."""
    import torch

    from .demo import versions

    found = versions() | {"cuda": torch.version.cuda or "none", "devices": str(torch.cuda.device_count())}
    print(
        json.dumps(found, indent=2) if args.json else "\n".join(f"- {name}: {value}" for name, value in found.items())
    )


def _add_evaluate_parser(commands: Any) -> None:
    sub = commands.add_parser("evaluate", help="measure a prompt on models", description=evaluate.__doc__,
                              epilog="example: transferable-vp evaluate --prompt runs/demo/prompt --model zoo/llava "
                              "zoo/idefics3 --dataset photos/ --output_dir runs/photos")  # fmt: skip
    sub.add_argument("--prompt", required=True, help="folder or Hub id of the prompt")
    sub.add_argument("--model", nargs="+", default=[], help="folders or Hub ids of the models to measure")
    sub.add_argument("--source", nargs="*", default=[], help="names of those models the prompt was learned on")
    sub.add_argument("--task", help="a task of the paper: dataset, question, answers and metric (see docs/tasks.md)")
    sub.add_argument("--dataset", help="Hub id, folder or file (parquet, csv, json, one folder per class); with --task "
                     "a local copy of its dataset")  # fmt: skip
    sub.add_argument("--dataset_name", help="configuration of a Hub dataset")
    sub.add_argument("--split", default="test", help="split to measure on, as test[:500] (default: %(default)s)")
    sub.add_argument("--image_column", help="column of images (default: found)")
    sub.add_argument("--answer_column", help="column of answers or labels (default: found)")
    sub.add_argument("--question_column", help="column of questions (default: found, if there is one)")
    sub.add_argument("--question", help="question asked of every image, where there is no column of them")
    sub.add_argument("--candidates", nargs="+", help="answers to choose from (default: the class names)")
    sub.add_argument("--metric", choices=["candidate_accuracy", "pope", "auroc", "counting"],
                     help="what is reported (default: the task's, else candidate_accuracy)")  # fmt: skip
    sub.add_argument("--by", choices=["rank", "generate"], help="rank the candidates by likelihood, or let the model "
                     "write and read its answer (default: rank; of an API, generate)")  # fmt: skip
    sub.add_argument("--length", default="mean", choices=["mean", "sum"],
                     help="a candidate's likelihood is the mean (the paper) or the sum over its tokens")  # fmt: skip
    sub.add_argument("--max_new_tokens", type=int, default=16, help="longest written answer (default: %(default)s)")
    sub.add_argument("--title", help="name of the task in the report")
    sub.add_argument("--dtype", default="auto", help="precision of the models (default: %(default)s)")
    sub.add_argument("--device", help="where the models run (default: an accelerator if there is one, else cpu)")
    sub.add_argument("--batch_size", type=int, default=32, help="images per forward pass (default: %(default)s)")
    sub.add_argument("--skip_bad_images", action="store_true", help="leave out images that cannot be read")
    sub.add_argument("--output_dir", default="runs/evaluate", help="where the report goes (default: %(default)s)")
    sub.add_argument("--no_cache", action="store_true", help="keep no answers; by default they are in OUTPUT_DIR/answers, "
                     "and a run that was stopped goes on from there")  # fmt: skip
    sub.add_argument("--api_base", help="address of an OpenAI-compatible server, as http://localhost:8000/v1")
    sub.add_argument("--api_model", nargs="+", default=[], help="names of models there, to measure as well")
    sub.add_argument("--api_key_env", help="environment variable with the key (default: OPENAI_API_KEY)")
    sub.add_argument("--api_concurrency", type=int, default=8, help="requests at a time (default: %(default)s)")
    sub.add_argument(
        "--api_timeout", type=float, default=60, help="seconds that a request may take (default: %(default)s)"
    )
    sub.add_argument("--api_extra_body", metavar="JSON", help="fields added to every request, as a JSON object")
    sub.set_defaults(function=evaluate)


def _add_sharing_parsers(commands: Any) -> None:
    sub = commands.add_parser("push", help="share a prompt on the Hub", description=push.__doc__,
                              epilog="example: transferable-vp push runs/mine me/tvp-mytask --license cc-by-4.0")  # fmt: skip
    sub.add_argument("folder", help="folder of the prompt")
    sub.add_argument("repo_id", help="where it goes, as me/tvp-mytask; made if it is not there")
    sub.add_argument("--private", action="store_true", help="make a new repository private")
    sub.add_argument("--revision", help="branch to push to; made if it is not there (default: main)")
    sub.add_argument("--create_pr", action="store_true", help="open a pull request, as in somebody else's repository")
    sub.add_argument("--commit_message", help="message of the commit")
    sub.add_argument("--license", help="licence to name in the card, by the Hub's name for it, as cc-by-4.0")
    sub.set_defaults(function=push)

    sub = commands.add_parser("card", help="write the card of a prompt, or add results to one", description=card.__doc__,
                              epilog="example: transferable-vp card org/tvp-cifar10 --report runs/mine/transfer.json")  # fmt: skip
    sub.add_argument("prompt", help="folder or Hub id of the prompt")
    sub.add_argument("--report", nargs="+", default=[], metavar="PATH",
                     help="transfer reports (transfer.json of `evaluate`) whose results the card is to show")  # fmt: skip
    sub.add_argument("--license", help="of a folder: licence to name, by the Hub's name for it, as cc-by-4.0")
    sub.add_argument("--tag", nargs="+", default=[], help="of a folder: more tags")
    sub.add_argument("--create_pr", action=argparse.BooleanOptionalAction, help="of a Hub id: propose the results as a "
                     "pull request, or commit them yourself (default: a pull request)")  # fmt: skip
    sub.set_defaults(function=card)

    sub = commands.add_parser("search", help="find prompts on the Hub", description=search.__doc__,
                              epilog="example: transferable-vp search --base-model llava-hf/llava-1.5-7b-hf")  # fmt: skip
    sub.add_argument("--task", help="words of the task that they help with")
    sub.add_argument("--base-model", "--base_model", help="Hub id of a model that they were learned on")
    sub.add_argument("--author", help="user or organisation")
    sub.add_argument("--limit", type=int, default=20, help="most rows (default: %(default)s)")
    sub.add_argument("--json", metavar="PATH", help="also write the result there")
    sub.set_defaults(function=search)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands but `train`, whose flags are those of `examples/train.py`."""
    parser = argparse.ArgumentParser(
        prog="transferable-vp", description="Learn, measure and apply transferable visual prompts."
    )
    parser.add_argument("--version", action="version", version=f"transferable-vp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("train", add_help=False, help="learn a prompt (see `transferable-vp train --help`)")

    _add_evaluate_parser(commands)

    sub = commands.add_parser("apply", help="write prompted PNGs of images", description=apply.__doc__,
                              epilog="example: transferable-vp apply --prompt runs/demo/prompt photos/ --output_dir out")  # fmt: skip
    sub.add_argument("images", nargs="+", help="images, or folders of them (searched in depth)")
    sub.add_argument("--prompt", required=True, help="folder or Hub id of the prompt")
    sub.add_argument("--output_dir", required=True, help="folder of the PNGs; inputs are never overwritten")
    sub.add_argument("--overwrite", action="store_true", help="replace PNGs of an earlier run in --output_dir")
    sub.add_argument("--skip_bad_images", action="store_true", help="go on after an image that cannot be read")
    sub.set_defaults(function=apply)

    sub = commands.add_parser("demo", help="see it work, offline, in minutes", description=demo.__doc__)
    sub.add_argument("--output_dir", default="runs/demo", help="where results go (default: %(default)s)")
    sub.add_argument("--source", default="llava", help="model to learn on: llava, idefics3, paligemma or instructblip")
    sub.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="training seeds (default: 0 1)")
    sub.add_argument("--quick", action="store_true", help="few steps and images: only to see that it runs")
    sub.set_defaults(function=demo)

    _add_sharing_parsers(commands)

    sub = commands.add_parser("support", help="which models a prompt can be learned on", description=support.__doc__,
                              epilog="example: transferable-vp support llava-hf/llava-1.5-7b-hf")  # fmt: skip
    sub.add_argument("model", nargs="?", help="folder or Hub id of a model to probe (default: the table of all types)")
    sub.add_argument("--dtype", default="auto", help="precision of the model (default: %(default)s)")
    sub.add_argument("--json", metavar="PATH", help="also write the result there")
    sub.set_defaults(function=support)

    add_convert_parser(commands)

    sub = commands.add_parser("app", help="try, see and learn prompts in a browser", description=app.__doc__,
                              epilog="example: transferable-vp app --prompt runs/demo/prompt")  # fmt: skip
    sub.add_argument(
        "--prompt", nargs="+", default=[], help="folders or Hub ids of prompts to offer, beside those in runs/"
    )
    sub.add_argument("--model", nargs="+", default=[], help="folders or Hub ids of models to ask, beside the zoo's")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 is all (default: %(default)s)")
    sub.add_argument("--port", type=int, help="port to listen at (default: the first free one from 7860)")
    sub.add_argument("--share", action="store_true", help="also make a public address, through Gradio's servers")
    sub.set_defaults(function=app)

    sub = commands.add_parser("env", help="print versions, for bug reports", description=env.__doc__)
    sub.add_argument("--json", action="store_true", help="as JSON")
    sub.set_defaults(function=env)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Errors a user can mend are printed as one sentence; `TRANSFERABLE_VP_TRACEBACK=1` shows where."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["train"]:
            train(argv[1:])
        else:
            args = make_parser().parse_args(argv)
            return args.function(args) or 0
    except BrokenPipeError:
        # Whoever read the output has seen enough. Python would complain once more when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        kept = (
            "; what was answered is kept, and the same command goes on from there" if argv[:1] == ["evaluate"] else ""
        )
        print(f"stopped{kept}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("TRANSFERABLE_VP_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
