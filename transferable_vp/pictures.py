"""Pictures: the prompt, how it formed and where it acts, examples, the chart of a report, the heat map of several."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .report import CONDITIONS, make_folder, ordered_targets, points, quantity, role


if TYPE_CHECKING:
    from .history import PromptHistory
    from .saliency import Saliency

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
    _enlarged(prompt_image).save(make_folder(path), format="PNG")


def _enlarged(prompt_image: Image.Image) -> Image.Image:
    scale = math.ceil(448 / prompt_image.width)
    size = (prompt_image.width * scale, prompt_image.height * scale)
    row, column = np.indices((size[1], size[0])) // 16
    squares = np.where((row + column) % 2, 255, 232).astype(np.uint8)
    picture = Image.fromarray(squares).convert("RGBA")
    picture.alpha_composite(prompt_image.convert("RGBA").resize(size, Image.Resampling.NEAREST))
    return picture.convert("RGB")


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
    axes.set_xlabel("Δ: prompt − zero border (points)")


def save_training_strip(history: PromptHistory, path: str | Path, title: str = "", max_frames: int = 8) -> None:
    r"""
    Saves a film strip of a prompt while it was learned: frames with their steps, and beneath them the training loss,
    dotted where the frames are.

    Args:
        history ([`PromptHistory`]): The frames and losses, kept by the callback or read from checkpoints.
        path (`str` or `Path`): The PNG file to write.
        title (`str`, *optional*, defaults to `""`): Text above the strip.
        max_frames (`int`, *optional*, defaults to 8):
            The most frames to show: the first, the last and others evenly between them. Two or more.

    Raises:
        ValueError: If the history has no frame, or `max_frames` is less than 2.
        ImportError: If matplotlib is not installed.
    """
    if not history.frames:
        raise ValueError("The history has no frame: give it to a trainer as a callback, and train.")
    if max_frames < 2:
        raise ValueError(f"`max_frames` is {max_frames}; a strip shows the first and the last: give 2 or more.")
    steps = sorted(history.frames)
    chosen = np.linspace(0, len(steps) - 1, min(max_frames, len(steps))).round().astype(int)
    steps = [steps[index] for index in chosen]
    figure = _new_figure(max(4.5, 1.3 * len(steps)), 3.9 if history.losses else 1.9)
    figure.suptitle(_wrap(title, 12 * max(4, len(steps)), 2), parse_math=False)
    grid = figure.add_gridspec(
        2 if history.losses else 1, len(steps), height_ratios=(3, 4) if history.losses else None
    )
    for column, step in enumerate(steps):
        _draw_panel(figure.add_subplot(grid[0, column]), _enlarged(history.frames[step]), f"step {step}")
    if history.losses:
        axes = figure.add_subplot(grid[1, :])
        for step in steps:
            axes.axvline(step, color="0.6", linewidth=1, linestyle=":")
        axes.plot(*zip(*sorted(history.losses.items()), strict=True), "o-", color=MARKERS["tvp"][1], markersize=4)
        axes.set_ylim(bottom=min(0, *history.losses.values()))
        axes.set_xlabel("training step (dotted: the frames above)")
        axes.set_ylabel("loss")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(make_folder(path), format="png")


def save_heatmap(
    gains: Mapping[str, Mapping[str, float]],
    path: str | Path,
    title: str = "",
    ci: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> None:
    r"""
    Saves a heat map of who gains from whose prompt: a row per source, a column per target, the number in every cell.

    A cell whose target the prompt was learned on is outlined; all others are held out. A cell that nobody measured is
    hatched. Purple is a gain and orange a loss, which colour-blind readers can tell apart; in grey the signs say it.

    Args:
        gains (`Mapping[str, Mapping[str, float]]`):
            Gains in percentage points, by source and then by target, as [`~transferable_vp.report.gains_of`] reads them
            from transfer reports. The name of several sources has ` + ` between them.
        path (`str` or `Path`): The PNG file to write.
        title (`str`, *optional*, defaults to `""`): Text above the map.
        ci (`Mapping[str, Mapping[str, Sequence[float]]]`, *optional*):
            Intervals in points, `(low, high)` by source and target, printed beneath the gains they are of.

    Raises:
        ValueError: If there is no gain, or one is not a finite number.
        ImportError: If matplotlib is not installed.
    """
    sources = list(gains)
    targets = list(dict.fromkeys(target for row in gains.values() for target in row))
    if not targets:
        raise ValueError("There are no gains to show: give at least one source with one target.")
    values = np.array([[gains[source].get(target, np.nan) for target in targets] for source in sources], dtype=float)
    given = np.array([[target in gains[source] for target in targets] for source in sources])
    if not np.isfinite(values[given]).all():
        raise ValueError("A gain is not a finite number: leave out what was not measured.")
    figure = _new_figure(2.6 + 0.95 * len(targets), max(2.6, 1.3 + 0.76 * len(sources)))
    axes = figure.subplots()
    # Never so narrow that noise of a point fills the scale.
    shown = draw_heatmap(axes, gains, max(5.0, float(np.abs(values[given]).max())), ci)
    figure.suptitle(_wrap(title, 12 + 12 * len(targets), 3), parse_math=False)
    figure.colorbar(shown, ax=axes, label="gain over the\nzero border (points)", format="{x:+.0f}")
    note = "outlined: the prompt was learned on this model" + ("; small: 95% interval" if ci else "")
    figure.supxlabel(note, fontsize=9)
    figure.savefig(make_folder(path), format="png")


def draw_heatmap(
    axes: Any,
    gains: Mapping[str, Mapping[str, float]],
    limit: float,
    ci: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> Any:
    r"""
    Draws the map of [`save_heatmap`] into axes of one's own, as for several maps in one figure.

    Args:
        axes (`matplotlib.axes.Axes`): Where to draw.
        gains (`Mapping[str, Mapping[str, float]]`): As in [`save_heatmap`].
        limit (`float`): The gain, in points, of the darkest colour.
        ci (`Mapping[str, Mapping[str, Sequence[float]]]`, *optional*): As in [`save_heatmap`].

    Returns:
        `matplotlib.image.AxesImage`: For a colour bar.
    """
    sources = list(gains)
    targets = list(dict.fromkeys(target for row in gains.values() for target in row))
    values = np.array([[gains[source].get(target, np.nan) for target in targets] for source in sources], dtype=float)
    shown = axes.imshow(np.ma.masked_invalid(values), cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_facecolor("0.95")
    for i, source in enumerate(sources):
        for j, target in enumerate(targets):
            interval = (ci or {}).get(source, {}).get(target)
            _draw_cell(
                axes, (i, j), values[i, j], interval, shown.to_rgba(values[i, j]), target in source.split(" + ")
            )
    axes.set_xticks(range(len(targets)), [_wrap(name, 14, 3) for name in targets], parse_math=False)
    axes.set_yticks(range(len(sources)), [_wrap(name, 18, 3) for name in sources], parse_math=False)
    axes.tick_params(length=0)
    axes.set_xlabel("measured on")
    axes.set_ylabel("learned on")
    axes.spines[:].set_visible(False)
    return shown


def _ink(color: Sequence[float]) -> str:
    # Perceived brightness (ITU-R BT.601), so that letters stand out in print too.
    return "black" if np.dot(color[:3], (0.299, 0.587, 0.114)) > 0.5 else "white"


def _draw_cell(
    axes: Any,
    place: tuple[int, int],
    gain: float,
    interval: Sequence[float] | None,
    color: Sequence[float],
    own: bool,
) -> None:
    from matplotlib.patches import Rectangle

    (row, column), corner = place, (place[1] - 0.5, place[0] - 0.5)
    if np.isnan(gain):
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="///", edgecolor="0.75", linewidth=0))
        return
    ink = _ink(color)
    small = None if interval is None else f"[{points(interval[0] / 100)}, {points(interval[1] / 100)}]"
    axes.text(
        column, row - (0.14 if small else 0), points(gain / 100), ha="center", va="center", color=ink, fontsize=11
    )
    if small:
        axes.text(column, row + 0.22, small, ha="center", va="center", color=ink, fontsize=7)
    if own:
        # Inside of the cell, where no neighbour can cover it; white within black shows on any colour.
        for shrink, edge, width in ((0.03, "black", 2.5), (0.065, "white", 1.0)):
            side, (left, top) = 1 - 2 * shrink, (corner[0] + shrink, corner[1] + shrink)
            axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=edge, linewidth=width))


def save_saliency(
    saliency: Saliency | Sequence[Saliency], canvas: Image.Image, path: str | Path, title: str = ""
) -> None:
    r"""
    Saves where a prompt acts: the prompted picture, and over it what every block does for the right answers, on one scale
    for all models. Numbers stand in the blocks where there is room for them.

    Args:
        saliency ([`Saliency`] or a sequence of them): Of one or of several models, with the same measure and prompt size.
        canvas (`PIL.Image.Image`): A picture with the prompt around it, as `prompt.apply(image)` gives it.
        path (`str` or `Path`): The PNG file to write.
        title (`str`, *optional*, defaults to `""`): Text above the pictures.

    Raises:
        ValueError: If there is no saliency, or several have different measures or sizes.
        ImportError: If matplotlib is not installed.
    """
    given = list(saliency) if isinstance(saliency, Sequence) else [saliency]
    if len({(one.measure, one.size) for one in given}) != 1:
        raise ValueError("One picture shows one or more saliencies, all of one measure and of prompts of one size.")
    figure = _new_figure(3.0 + 3.4 * len(given), 3.9)
    figure.suptitle(_wrap(title, 20 + 34 * len(given), 2), parse_math=False)
    first, *others = figure.subplots(1, 1 + len(given), width_ratios=(2.4, *[3.2] * len(given)))
    _draw_panel(first, _enlarged(canvas), "the prompted picture")
    limit = max(1e-6, *(float(np.abs(one.effects).max()) for one in given))
    for axes, one in zip(others, given, strict=True):
        size = one.size
        axes.imshow(np.asarray(canvas.convert("L")), cmap="gray", vmin=-255, vmax=255, extent=(0, size, size, 0))
        shown = axes.imshow(one.map, cmap="PuOr", vmin=-limit, vmax=limit, extent=(0, size, size, 0))
        _draw_blocks(axes, one, shown, fine=limit < 0.1)
        axes.set_xticks([])
        axes.set_yticks([])
        whole = f"{one.whole:+.2f} nats" if one.measure == "log_prob" else f"{one.whole:+.1f} points"
        axes.set_title(_wrap(one.model, 30, 2), fontsize=11, parse_math=False)
        axes.set_xlabel(f"whole prompt: {whole} (n={one.n})", fontsize=10)
    what = "log-probability of the right\nanswer (nats)" if given[0].measure == "log_prob" else "accuracy (points)"
    figure.colorbar(shown, ax=others, label=f"what the block adds to the\n{what}", format="{x:+.3g}", shrink=0.85)
    figure.savefig(make_folder(path), format="png")


def _draw_blocks(axes: Any, saliency: Saliency, shown: Any, fine: bool) -> None:
    from matplotlib.patches import Rectangle

    for (top, left, bottom, right), effect in zip(saliency.blocks, saliency.effects, strict=True):
        width, height = right - left, bottom - top
        axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="white", linewidth=0.8))
        # Five letters fit into a ninth of the picture's width.
        if min(width, height) >= saliency.size / 9:
            # Adding 0.0 as in `points`. A third digit of a nat takes the place of the zero before the point.
            digits = 0 if saliency.measure == "accuracy" else 3 if fine else 2
            text = f"{round(effect, digits) + 0.0:+.{digits}f}".replace("0.", "." if fine else "0.", 1)
            middle = (left + width / 2, top + height / 2)
            axes.text(*middle, text, ha="center", va="center", fontsize=7, color=_ink(shown.to_rgba(effect)))
