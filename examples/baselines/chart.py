"""The chart of all baselines: what each adds to the full image, model by model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transferable_vp.report import make_folder


GAIN, LOSS, UNSURE = "#0072B2", "#D55E00", "0.45"


def save_chart(report: Mapping[str, Any], path: str | Path) -> None:
    r"""
    Saves a panel per model with a row per method: points over the full image, with the 95% interval.

    Args:
        report (`Mapping[str, Any]`): What `run.py` writes as `baselines.json`.
        path (`str` or `Path`): The PNG file to write.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('The chart needs matplotlib: pip install "transferable-vp[demo]".') from error
    methods = [method for method in report["methods"] if method["method"] != "full_image"]
    models = report["models"]
    figure = Figure(figsize=(2 + 2.1 * len(models), 1.6 + 0.32 * len(methods)), dpi=150, layout="constrained")
    figure.suptitle(f"{report['task']}, learned on {report['source']} (n={report['n']})", parse_math=False)
    panels = figure.subplots(1, len(models), sharey=True, sharex=True, squeeze=False)[0]
    for column, (axes, model) in enumerate(zip(panels, models, strict=True)):
        axes.set_title(
            f"{model['name']}\n{'source' if model['is_source'] else 'target'}", fontsize=10, parse_math=False
        )
        axes.axvline(0, color="black", linewidth=1)
        axes.grid(axis="x", color="0.88", linewidth=0.8)
        axes.set_axisbelow(True)
        for row, method in enumerate(methods):
            _draw_result(axes, row, method["results"][column])
    panels[0].set_yticks(range(len(methods)), [method["label"] for method in methods])
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    figure.supxlabel("accuracy over the full image, points, with 95% interval", fontsize=10)
    figure.savefig(make_folder(path), format="png")


def _draw_result(axes: Any, row: int, result: Mapping[str, Any] | None) -> None:
    if result is None:
        axes.text(0, row, " cannot transfer", va="center", fontsize=8, color=UNSURE)
        return
    low, high = (100 * end for end in result["delta_ci95"])
    # Shapes as well as colours, so that the chart survives a grey printer.
    color, marker = (GAIN, ">") if low > 0 else (LOSS, "<") if high < 0 else (UNSURE, "o")
    axes.hlines(row, low, high, color=color, linewidth=2)
    axes.plot(100 * result["delta"], row, marker, color=color, markersize=6)
