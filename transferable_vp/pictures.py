"""Pictures: the prompt itself, examples before and after, and the chart of a transfer report."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .report import CONDITIONS, make_folder, ordered_targets, points, quantity, role


# Marker shapes differ as well as the Okabe-Ito colours, so that the chart survives a grey printer.
MARKERS = {
    "full_image": ("|", "#000000"),
    "zero_border": ("o", "#000000"),
    "random_border": ("x", "#E69F00"),
    "vp": ("s", "#56B4E9"),
    "tvp": ("D", "#0072B2"),
}
RIGHT, WRONG = "#0072B2", "#D55E00"


def save_prompt_picture(prompt_image: Image.Image, path: str | Path) -> None:
    r"""
    Saves an enlarged picture of a prompt, at least 448 pixels wide, with a checkerboard where it is transparent.

    Args:
        prompt_image (`PIL.Image.Image`): The prompt, RGBA with a transparent centre.
        path (`str` or `Path`): The PNG file to write.
    """
    scale = math.ceil(448 / prompt_image.width)
    size = (prompt_image.width * scale, prompt_image.height * scale)
    row, column = np.indices((size[1], size[0])) // 16
    squares = np.where((row + column) % 2, 255, 232).astype(np.uint8)
    picture = Image.fromarray(squares).convert("RGBA")
    picture.alpha_composite(prompt_image.convert("RGBA").resize(size, Image.Resampling.NEAREST))
    picture.convert("RGB").save(make_folder(path), format="PNG")


def _new_figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Pictures need matplotlib: pip install "transferable-vp[demo]".') from error
    # A bare figure, not pyplot: no global state, no window, no backend to choose.
    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def _wrap(text: str, width: int, max_lines: int) -> str:
    return "\n".join(textwrap.wrap(text, width, max_lines=max_lines, placeholder="…"))


def save_examples_picture(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    r"""
    Saves a grid of examples: the original, the zero-border canvas and the prompted canvas, with the answers to both.

    Args:
        rows (`Sequence[Mapping[str, Any]]`): One mapping per example with `image`, `canvas_before` and `canvas_after`
            (`PIL.Image.Image`), and `caption`, `before`, `after` and `answer` (`str`).
        path (`str` or `Path`): The PNG file to write.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = _new_figure(7, 2.9 * len(rows))
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.12)
    strips = np.atleast_1d(figure.subfigures(len(rows), 1))
    for row, strip in zip(rows, strips, strict=True):
        strip.suptitle(_wrap(row["caption"], 75, 2), fontsize=11, parse_math=False)
        original, before, after = strip.subplots(1, 3)
        _draw_panel(original, row["image"], f"original\n{_wrap('expected: ' + row['answer'], 28, 3)}")
        _draw_answer(before, row["canvas_before"], "before: zero border", row["before"], row["answer"])
        _draw_answer(after, row["canvas_after"], "after: with the prompt", row["after"], row["answer"])
    figure.savefig(make_folder(path), format="png")


def _draw_panel(axes: Any, image: Image.Image, label: str) -> None:
    axes.imshow(np.asarray(image.convert("RGB")))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(label, fontsize=10, parse_math=False)


def _draw_answer(axes: Any, canvas: Image.Image, title: str, given: str, answer: str) -> None:
    right = given == answer
    _draw_panel(axes, canvas, f"{title}\n{_wrap(('✓ ' if right else '✗ ') + given, 28, 3)}")
    for spine in axes.spines.values():
        spine.set(color=RIGHT if right else WRONG, linewidth=2.5, linestyle="-" if right else (0, (3, 2)))


def save_transfer_chart(report: Mapping[str, Any], path: str | Path) -> None:
    r"""
    Saves a chart of a transfer report: the accuracies of every target, and next to them the gain with its interval.

    Args:
        report (`Mapping[str, Any]`): The transfer report. Conditions that no target has are left out.
        path (`str` or `Path`): The PNG file to write.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    targets = ordered_targets(report)
    figure = _new_figure(7.5, 1.9 + 0.75 * len(targets))
    accuracy, gain = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    figure.suptitle(_wrap(f"{report['task']}, prompt trained on {report['source']}", 70, 3), parse_math=False)
    _draw_accuracies(accuracy, targets, quantity(report))
    _draw_gains(gain, targets)
    for axes in (accuracy, gain):
        for row, target in enumerate(targets):
            if target["is_source"]:
                label = "source model" if axes is accuracy and row == 0 else None
                axes.axhspan(row - 0.5, row + 0.5, color="0.90", zorder=0, label=label)
            axes.axhline(row + 0.5, color="0.75", linewidth=0.8)
        axes.grid(axis="x", color="0.85", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
    labels = [f"{_wrap(str(t['model']), 24, 3)}\n({role(t)}, n={t['n']})" for t in targets]
    accuracy.set_yticks(range(len(targets)), labels, parse_math=False)
    accuracy.set_ylim(len(targets) - 0.5, -0.5)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=10)
    figure.savefig(make_folder(path), format="png")


def _draw_accuracies(axes: Any, targets: Sequence[Mapping[str, Any]], label: str) -> None:
    measured = [key for key in CONDITIONS if any(target.get(key) is not None for target in targets)]
    # Each condition has its own height within the row, so that equal accuracies do not hide one another.
    for key, height in zip(measured, np.linspace(-0.3, 0.3, len(measured)), strict=True):
        rows = [row for row, target in enumerate(targets) if target.get(key) is not None]
        x, y = [100 * targets[row][key] for row in rows], [row + height for row in rows]
        marker, color = MARKERS[key]
        face = "white" if marker == "o" else color
        axes.plot(x, y, marker, color=color, markerfacecolor=face, markersize=7, mew=1.6, label=CONDITIONS[key])
    axes.margins(x=0.08)
    axes.set_xlabel(f"{label} (%)")


def _draw_gains(axes: Any, targets: Sequence[Mapping[str, Any]]) -> None:
    _, color = MARKERS["tvp"]
    low, high = 100 * np.array([target["delta_ci95"] for target in targets], dtype=float).T
    rows = range(len(targets))
    axes.axvline(0, color="black", linewidth=1)
    # Drawn from end to end and not as an error around delta: a percentile interval need not hold its estimate.
    axes.hlines(rows, low, high, color=color, linewidth=2, label="95% CI of Δ")
    axes.plot([*low, *high], [*rows, *rows], "|", color=color, markersize=9, mew=2)
    axes.plot([100 * target["delta"] for target in targets], rows, "D", color=color, markersize=7)
    for row, target in enumerate(targets):
        # Beside the panel, where no line or whisker can run through the number.
        axes.text(1.03, row, points(target["delta"]), va="center", transform=axes.get_yaxis_transform())
    axes.margins(x=0.15)
    axes.set_xlabel("Δ: TVP − zero border (points)")
