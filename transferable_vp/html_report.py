"""The HTML report: tables, pictures, how to read them and how they were made, in one page without other files."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .report import HEADERS, cells, heading, make_folder, ordered_targets, role, verdict


LEAD = (
    "A visual prompt is a frame of learned pixels around a shrunk picture. It was learned on the source alone. The "
    "tables show how often the source, and models that had no part in the learning, answer right with it and without "
    "it. No model was changed."
)
TERMS = {
    "full image": "the picture as it is, without any frame",
    "zero border": "the picture shrunk into a black frame; shrinking alone can cost accuracy, so this is the baseline",
    "random border": "the same with noise as the frame",
    "VP": "a plain visual prompt: a frame learned with the task loss, pixel by pixel",
    "prompt": "the transferable visual prompt, as it was trained",
    "Δ": "prompt minus zero border, in percentage points; negative means that the prompt hurts",
    "95% CI": "where Δ may lie, had other examples been drawn (paired bootstrap); if 0 is inside, the change may be "
    "chance. Δ is bold where it is not. The spread between trainings is not covered",
    "source": "the model that the prompt was learned on (shaded)",
    "held-out": "a model that the learning never saw",
    "n": "number of examples, the same in the whole row",
    "seeds": "one learned prompt for each; accuracies are means over them",
}
PANELS = {
    "chart": (
        "Transfer",
        "Left: accuracy of each model under every condition. Right: Δ, the gain of the prompt over the zero border, with its "
        "95% interval; right of the 0 line the prompt helps, left of it it hurts, and an interval that crosses the "
        "line may be chance.",
    ),
    "prompt": (
        "The prompt",
        "The learned frame, enlarged. The picture to be asked about goes where the checkerboard is.",
    ),
    "examples": (
        "Examples",
        "From left to right: the picture as it is, in a black frame (before), and in the learned one (after). Beneath "
        "is the model's answer: ✓ with a solid blue outline is right, ✗ with a dashed orange outline is wrong.",
    ),
}

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #595959; --line: #c9c9c9; --paper: #fff; --band: #f1f1f1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --soft: #adadad; --line: #4d4d4d; --paper: #161616; --band: #252525; }
}
body { margin: 0 auto; padding: 1rem; max-width: 52rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 2.5rem; }
.note, dl { color: var(--soft); }
figcaption { margin-bottom: .3rem; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
td, th:last-child { white-space: nowrap; }
th { vertical-align: bottom; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); }
tr.source td { background: var(--band); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { font-weight: 600; }
dd { margin: 0; }
pre { padding: .7rem; background: var(--band); overflow-x: auto; }
.panel { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0; max-width: 100%; }
img { display: block; max-width: 100%; height: auto; }
"""


def write_html(
    reports: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, Sequence[tuple[str, Path]]],
    path: str | Path,
    *,
    title: str,
    command: str,
    versions: Mapping[str, str],
) -> None:
    r"""
    Writes one self-contained HTML page: the tables, the pictures, how to read them, and how they were made.

    Args:
        reports (`Sequence[Mapping[str, Any]]`): The transfer reports, each shown as a table with its settings.
        pictures (`Mapping[str, Sequence[tuple[str, Path]]]`): For each of the panels `"chart"`, `"prompt"` and
            `"examples"` its PNG files as `(caption, path)`.
        path (`str` or `Path`): The file to write.
        title (`str`): The title of the page.
        command (`str`): The command that made the report. It is shown as it is, so it must not hold a secret.
        versions (`Mapping[str, str]`): Version per package.
    """
    name = html.escape(title)
    terms = "\n".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in TERMS.items())
    listed = "\n".join(f"{package} {version}" for package, version in versions.items())
    parts = [
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>",
        f"<p>{html.escape(LEAD)}</p>\n<h2>Right answers, in %</h2>",
        *(_table(report) for report in reports),
        f"<h3>What the words mean</h3>\n<dl>\n{terms}\n</dl>",
        *(_panel(panel, entries) for panel, entries in pictures.items()),
        f"<h2>How this was made</h2>\n<h3>Command</h3>\n<pre>{html.escape(command)}</pre>",
        *(_settings(report) for report in reports),
        f"<h3>Versions</h3>\n<pre>{html.escape(listed)}</pre>\n</body>\n</html>\n",
    ]
    make_folder(path).write_text("\n".join(parts), encoding="utf-8")


def _table(report: Mapping[str, Any]) -> str:
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in HEADERS)
    rows = []
    for target in ordered_targets(report):
        row = [html.escape(text) for text in cells(target)]
        low, high = target["delta_ci95"]
        if low > 0 or high < 0:
            row[-2] = f"<strong>{row[-2]}</strong>"
        rows.append(f'<tr class="{role(target)}">{"".join(f"<td>{cell}</td>" for cell in row)}</tr>')
    return (
        f'<h3>{html.escape(heading(report))}</h3>\n<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table></div>\n<p>→ {html.escape(verdict(report))}</p>"
    )


def _panel(panel: str, entries: Sequence[tuple[str, Path]]) -> str:
    title, how_to_read = PANELS[panel]
    figures = "\n".join(_figure(caption, path) for caption, path in entries)
    return f'<h2>{title}</h2>\n<p class="note">{html.escape(how_to_read)}</p>\n<div class="panel">\n{figures}\n</div>'


def _figure(caption: str, path: Path) -> str:
    data, text = base64.b64encode(path.read_bytes()).decode("ascii"), html.escape(caption)
    with Image.open(path) as picture:
        # Pictures have 150 dots per inch, a page has 96: so letters in both are about as large.
        width = round(picture.width * 96 / 150)
    return (
        f"<figure><figcaption>{text}</figcaption>"
        f'<img alt="{text}" width="{width}" src="data:image/png;base64,{data}"></figure>'
    )


def _settings(report: Mapping[str, Any]) -> str:
    settings = json.dumps(report["settings"], indent=2, ensure_ascii=False, default=str)
    return f"<h3>Settings: {html.escape(report['task'])}</h3>\n<pre>{html.escape(settings)}</pre>"
