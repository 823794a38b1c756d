"""Transfer reports: who gained from a prompt, with intervals, as JSON and as a terminal table.

A transfer report is a plain `dict`, the one `write_json` writes and `read_json` reads back:

```python
{
    "source": "llava",
    "task": "colour under green light",
    "seeds": [0, 1],
    "settings": {},
    "targets": [
        {
            "model": "zoo/llava", "family": "llava", "is_source": True, "n": 600,
            "full_image": 0.41, "zero_border": 0.37, "random_border": 0.30, "vp": 0.60, "tvp": 0.62,
            "delta": 0.25, "delta_ci95": [0.21, 0.29], "by": "rank", "weights": "37c6ad01",
        }
    ],
}
```

Accuracies are between 0 and 1, `delta` is `tvp - zero_border`. `full_image`, `random_border` and `vp` may be `None` or
missing when nobody measured them. `by` is how answers were found, `weights` the first eight digits of the SHA-256 of the
prompt's `model.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


REPORT_KEYS = ("source", "task", "seeds", "settings", "targets")
TARGET_KEYS = ("model", "family", "is_source", "n", "zero_border", "tvp", "delta", "delta_ci95")
# Every condition of a target, and what it is called.
CONDITIONS = {
    "full_image": "full image",
    "zero_border": "zero border",
    "random_border": "random border",
    "vp": "VP",
    "tvp": "prompt",
}
HEADERS = ("model", "role", "n", *CONDITIONS.values(), "Δ", "95% CI")


def paired_bootstrap(a: np.ndarray, b: np.ndarray, n_resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    r"""
    95% percentile bootstrap interval of `mean(b) - mean(a)`, the examples being resampled and not the seeds.

    Args:
        a (`np.ndarray`): Correctness of the baseline, `(n,)` or `(n_seeds, n)`. Seeds are averaged per example first.
        b (`np.ndarray`): Correctness with the prompt, on the same examples. May have another number of seeds.
        n_resamples (`int`, *optional*, defaults to 2000): How many times the examples are drawn again.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.

    Returns:
        `tuple[float, float]`: The lower and the upper end, each between -1 and 1.

    Raises:
        ValueError: If the examples differ in number, or a value is not between 0 and 1.
    """
    before, after = (np.atleast_2d(x).mean(axis=0) for x in (a, b))
    pairs = np.stack([before, after])
    if not np.all((pairs >= 0) & (pairs <= 1)):
        raise ValueError("Intervals are of accuracies: values must be between 0 (wrong) and 1 (right), not losses.")
    # Examples with an equal difference are interchangeable, so drawing how often each difference comes up is the same
    # bootstrap without an index array of n_resamples x n.
    values, counts = np.unique(after - before, return_counts=True)
    n = pairs.shape[1]
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=n_resamples)
    low, high = np.quantile(draws @ values / n, [0.025, 0.975])
    return float(low), float(high)


def check_report(report: Mapping[str, Any]) -> None:
    r"""
    Checks that a transfer report has every key, and every number in its range.

    Args:
        report (`Mapping[str, Any]`): The transfer report.

    Raises:
        ValueError: If a key is missing, there is no target, or a number is not in its range.
    """
    _require_keys(report, REPORT_KEYS, "The transfer report")
    if not report["targets"]:
        raise ValueError("The transfer report has no targets.")
    for index, target in enumerate(report["targets"]):
        where = f"targets[{index}]"
        _require_keys(target, TARGET_KEYS, where)
        for key in CONDITIONS:
            if key in TARGET_KEYS or target.get(key) is not None:
                _require_number(target[key], 0, f'{where}["{key}"]')
        low, high = target["delta_ci95"]
        for value in (target["delta"], low, high):
            _require_number(value, -1, f'{where}["delta"] and its interval')


def _require_keys(value: Any, keys: Sequence[str], what: str) -> None:
    for key in keys:
        if key not in value:
            raise ValueError(f'{what} lacks the key "{key}".')


def _require_number(value: Any, low: int, what: str) -> None:
    # NaN fails this comparison too, which is what is wanted.
    if not isinstance(value, (int, float)) or not low <= value <= 1:
        raise ValueError(f"{what} must be a number between {low} and 1, got {value!r}.")


def write_json(report: Mapping[str, Any], path: str | Path) -> None:
    r"""
    Writes a transfer report as indented UTF-8 JSON.

    Args:
        report (`Mapping[str, Any]`): The transfer report.
        path (`str` or `Path`): The file to write. Missing folders are made.

    Raises:
        ValueError: If a key is missing, a number is not in its range, or anything is NaN or infinite.
        TypeError: If the settings hold something that JSON has no word for.
    """
    check_report(report)
    # All of the text comes before the file is opened: a report that cannot be written leaves the old one whole.
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    make_folder(path).write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> dict[str, Any]:
    r"""
    Reads a transfer report that `write_json` wrote.

    Args:
        path (`str` or `Path`): The file to read.

    Returns:
        `dict[str, Any]`: The transfer report.

    Raises:
        ValueError: If the file is not JSON in UTF-8, or is not a transfer report.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        check_report(report)
    except ValueError as error:
        raise ValueError(f"{path} is not a transfer report: {error}") from error
    return report


def format_table(report: Mapping[str, Any]) -> str:
    r"""
    Lays a transfer report out as a table for the terminal.

    Args:
        report (`Mapping[str, Any]`): The transfer report.

    Returns:
        `str`: What was measured, one row per target with the source first, and how many held-out models improved and
        worsened.
    """
    # The headers are split over two lines to keep the table within a narrow terminal.
    split = [text.rpartition(" ") for text in HEADERS]
    header = [[first for first, _, _ in split], [last for _, _, last in split]]
    rows = [cells(target) for target in ordered_targets(report)]
    widths = [max(map(len, column)) for column in zip(*header, *rows, strict=True)]
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [
        heading(report),
        f"{quantity(report).capitalize() if quantity(report) == 'accuracy' else quantity(report)} in %; Δ = prompt − zero border, in points.",
        "",
    ]
    lines += [*(_line(row, widths) for row in header), rule, *(_line(row, widths) for row in rows), rule]
    return "\n".join([*lines, verdict(report)])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = zip(row, widths, strict=True)
    return "  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(padded)).rstrip()


def gains_of(
    reports: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, tuple[float, float]]]]:
    r"""
    Reads from transfer reports, one per source, who gained how much from whose prompt: what
    [`~transferable_vp.pictures.save_heatmap`] draws.

    Args:
        reports (`Sequence[Mapping[str, Any]]`): Transfer reports of one task, each with a source of its own.

    Returns:
        `tuple[dict, dict]`: Gains over the zero border in percentage points, by source and then by target; and their 95%
        intervals, `(low, high)`, in the same way.

    Raises:
        ValueError: If there is no report, two have the same source, or their tasks differ.
    """
    sources = [report["source"] for report in reports]
    if len({report["task"] for report in reports}) != 1:
        raise ValueError(f"A heat map is of one task; got {sorted({str(report['task']) for report in reports})}.")
    if repeated := [source for source in set(sources) if sources.count(source) > 1]:
        raise ValueError(
            f"Several reports have the source {repeated[0]!r}: a heat map has one row per source, so measure its seeds in "
            "one report."
        )
    gains = {r["source"]: {str(t["model"]): 100 * t["delta"] for t in r["targets"]} for r in reports}
    intervals = {
        r["source"]: {str(t["model"]): (100 * t["delta_ci95"][0], 100 * t["delta_ci95"][1]) for t in r["targets"]}
        for r in reports
    }
    return gains, intervals


def make_folder(path: str | Path) -> Path:
    """Makes the folder that a file is to lie in, and gives back the file's path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def ordered_targets(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The targets with the source first, the others as they come."""
    return sorted(report["targets"], key=lambda target: not target["is_source"])


def role(target: Mapping[str, Any]) -> str:
    """`"source"` or `"held-out"`."""
    return "source" if target["is_source"] else "held-out"


def points(difference: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    # Adding 0.0 keeps the rounding from turning a tiny negative number into "-0.0".
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def cells(target: Mapping[str, Any]) -> list[str]:
    """The row of a target, one text for each of `HEADERS`; a dash stands for what nobody measured."""
    accuracies = ["–" if target.get(key) is None else f"{100 * target[key]:.1f}" for key in CONDITIONS]
    low, high = target["delta_ci95"]
    interval = f"[{points(low)}, {points(high)}]"
    return [str(target["model"]), role(target), str(target["n"]), *accuracies, points(target["delta"]), interval]


def quantity(report: Mapping[str, Any]) -> str:
    """What the columns show."""
    return "AUROC" if report.get("metric") == "auroc" else "accuracy"


def heading(report: Mapping[str, Any]) -> str:
    """One line that says what was measured."""
    seeds = ", ".join(map(str, report["seeds"]))
    return f"Task: {report['task']} · source: {report['source']} · seeds: {seeds}"


def verdict(report: Mapping[str, Any]) -> str:
    """One line that says how many held-out models improved and worsened."""
    held_out = [target for target in report["targets"] if not target["is_source"]]
    if not held_out:
        return "no held-out models in this report"
    n = len(held_out)
    better = sum(target["delta"] > 0 for target in held_out)
    worse = sum(target["delta"] < 0 for target in held_out)
    surely_better = sum(target["delta_ci95"][0] > 0 for target in held_out)
    surely_worse = sum(target["delta_ci95"][1] < 0 for target in held_out)
    text = f"held-out models improved: {better} of {n} (interval above zero: {surely_better} of {n})"
    if worse:
        text += f"; worsened: {worse} of {n} (interval below zero: {surely_worse} of {n})"
    return text
