"""The table of all baselines, for the terminal and for a page; its figures come from `baselines.json` and nowhere else.

    python examples/baselines/table.py docs/results/baselines.json docs/baselines.md

fills what stands between `<!-- table:baselines -->` (or `baselines_gains`, `baselines_notes`) and `<!-- end -->` of the
page, and draws the chart into `images/` beside it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from chart import save_chart

from transferable_vp.report import points


NOTHING = "-"


def accuracy(result: Mapping[str, Any] | None) -> str:
    """Percent, with the deviation over seeds where there are several: `"97.5 ± 0.4"`."""
    if result is None:
        return NOTHING
    spread = "" if result["std"] is None else f" ± {100 * result['std']:.1f}"
    return f"{100 * result['mean']:.1f}{spread}"


def gain(result: Mapping[str, Any] | None) -> str:
    """Points over the full image, with the interval: `"+21.0 [+16.7, +25.3]"`."""
    if result is None:
        return NOTHING
    low, high = result["delta_ci95"]
    return f"{points(result['delta'])} [{points(low)}, {points(high)}]"


def heading(report: Mapping[str, Any]) -> str:
    """One line that says what was measured and how."""
    settings, seeds = report["settings"], ", ".join(map(str, report["seeds"]))
    return (
        f"{report['task']}; source {report['source']}; seeds {seeds}; {settings['max_steps']} steps of "
        f"{settings['batch_size']} rows; n = {report['n']} test rows"
    )


def notes(report: Mapping[str, Any]) -> list[str]:
    """What the rows of the table are, and why a dash is a dash; a sentence for each that needs one."""
    source, choices = report["source"], report["choices"]
    mirrored = " and mirrored images" if report["settings"]["flip"] else ""
    found = [
        "VP learns a border with the task loss alone, FCA only and TSE only with that one term added, TVP with both; EVP "
        f"is the task loss with steps along the normalised gradient{mirrored}."
    ]
    if "text_prompt" in choices:
        choice = choices["text_prompt"]
        found.append(
            f"The text prompt is {choice['prefix']!r}, the best of {len(choice['validation'])} on "
            f"{report['settings']['n_validation']} validation rows of {source}; it goes before the question, for all "
            "models alike."
        )
    if "lora" in choices:
        choice = choices["lora"]
        found.append(
            f"LoRA changes weights of {source} ({choice['parameters']:,} numbers, learning rate "
            f"{choice['learning_rate']:g}, the best of {len(choice['validation'])} on the same rows; a border has "
            f"{report['border_parameters']:,}). Other models have other weights, so it cannot be given to "
            f"them: {NOTHING!r}."
        )
    return found


def format_table(report: Mapping[str, Any]) -> str:
    """The table for the terminal: a row per method, a column per model, the source first."""
    header = ["method", *(model["name"] for model in report["models"])]
    roles = ["", *("source" if model["is_source"] else "target" for model in report["models"])]
    rows = [[method["label"], *map(accuracy, method["results"])] for method in report["methods"]]
    widths = [max(map(len, column)) for column in zip(header, roles, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        first, *others = (
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([
        heading(report), "Accuracy in %, mean ± standard deviation over seeds (no ± where no seed plays a part).", "",
        line(header), line(roles), rule, *map(line, rows), rule, *notes(report),
    ])  # fmt: skip


def markdown_table(report: Mapping[str, Any], cell: Callable[[Any], str] = accuracy) -> str:
    """The table for a page; `cell` makes the text of a result."""
    names = (f"`{m['name']}`{' (source)' if m['is_source'] else ''}" for m in report["models"])
    lines = [f"| method | {' | '.join(names)} |", "|---" * (len(report["models"]) + 1) + "|"]
    for method in report["methods"]:
        if cell is not gain or method["method"] != "full_image":
            lines.append(f"| {method['label']} | {' | '.join(map(cell, method['results']))} |")
    return "\n".join(lines)


def page_tables(report: Mapping[str, Any]) -> dict[str, str]:
    """What a page may show, by the name between its markers."""
    return {
        "baselines": f"{heading(report)}; accuracy in %, mean ± standard deviation over seeds:\n\n{markdown_table(report)}",
        "baselines_gains": markdown_table(report, gain),
        "baselines_notes": "\n".join(f"- {note}" for note in notes(report)),
        "baselines_machine": f"{report['machine']}, {report['seconds'] / 60:.1f} minutes in all",
    }


def fill_page(text: str, report: Mapping[str, Any]) -> str:
    """The page with every table made anew from the report."""
    for name, table in page_tables(report).items():
        pattern = rf"(<!-- table:{name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL)
    return text


def main(argv: list[str] | None = None) -> None:
    """Fills a page; see the module's docstring."""
    results, page = map(Path, sys.argv[1:] if argv is None else argv)
    report = json.loads(results.read_text(encoding="utf-8"))
    page.write_text(fill_page(page.read_text(encoding="utf-8"), report), encoding="utf-8")
    save_chart(report, page.parent / "images" / "baselines.png")


if __name__ == "__main__":
    main()
