"""Writes docs/supported_models.md from what the conformance suite found.

make support    # runs the suite, then this
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path


DOCS = Path(__file__).parent
FOUND = DOCS.parent / "transferable_vp" / "supported_models.json"
MARKS = {"passed": "yes", "failed": "**no**", "not applicable": "–"}


def page(found: dict) -> str:
    """The page as Markdown, of the document in `transferable_vp/supported_models.json`."""
    models, checks = found["models"], list(next(m["checks"] for m in found["models"] if m["status"] == "supported"))
    counts = Counter(model["status"] for model in models)
    lines = [
        "# Supported models",
        "",
        f"{counts['supported']} of the {len(models)} types that `AutoModelForImageTextToText` of transformers "
        f"{found['transformers']} knows can be learned on (torch {found['torch']}, CPU, tiny random models of the real "
        "classes behind their real processors). This page is written by `make support`, which runs "
        "`tests/conformance`; `transferable-vp support` prints the same for the transformers you have installed, and "
        "`transferable-vp support MODEL` takes one step on a model of yours. With the oldest transformers that this package takes, "
        "`make compat` tests the eight families of `tests/tiny.py`.",
        "",
        "What the columns ask:",
        "",
        "- **attach**: an attached processor gives what the processor gives for the prompted image, through "
        "`processor(...)` and, where there is one, the chat template",
        "- **pixels**, **native**: training sees the pixel values of deployment to the bit, on fixed and on native canvases",
        "- **gradient**: it reaches all four sides of the border and agrees with central finite differences within 2 %",
        "- **features**: image features are those of the pass that makes the loss, and carry a gradient",
        "- **labels**: the loss covers answer and end token only, alone and in a batch alike",
        "- **placeholders**: one placeholder too few is an error (– where no image feature takes the place of a token)",
        "- **learning**: ten steps lower the loss",
        "- **ranking**: candidates score as in a full pass each",
        "- **generation**: a batch writes what full passes find most likely, row by row",
        "",
        "| type | " + " | ".join(checks) + " | |",
        "|---" * (len(checks) + 2) + "|",
    ]
    lines += rows(models, checks)
    if found.get("paper_models"):
        lines += ["", "## The paper's models", "", "They come with this package (`transferable_vp.models`), beside `blip-2` "
                  "and `instructblip` above; `transferable-vp convert` makes them of what their authors published.", "",
                  "| model | " + " | ".join(checks) + " | |", "|---" * (len(checks) + 2) + "|",
                  *rows(found["paper_models"], checks)]  # fmt: skip
    lines += ["", "## Not supported", "", "| type | why |", "|---|---|"]
    lines += [f"| `{m['model_type']}` | {m['reason']} |" for m in [*models, *found.get("paper_models", [])]
              if m["status"] != "supported"]  # fmt: skip
    return "\n".join(lines) + "\n"


def rows(models: list[dict], checks: list[str]) -> list[str]:
    """Lines of the table, of the supported among `models`."""
    lines = []
    for model in models:
        if model["status"] == "supported":
            marks = " | ".join(MARKS[model["checks"].get(check, "not applicable")] for check in checks)
            lines.append(f"| `{model['model_type']}` | {marks} | {model['reason']} |")
    return lines


if __name__ == "__main__":
    (DOCS / "supported_models.md").write_text(page(json.loads(FOUND.read_text(encoding="utf-8"))), encoding="utf-8")
