"""The charts of the claims: held-out gains by condition, and pair by pair."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from transferable_vp.pictures import draw_heatmap
from transferable_vp.report import make_folder

from .plan import CONDITIONS, TASKS_OF_THE_MEAN
from .tables import find, mean_gains


# Colours that stay apart for colour-blind readers; markers say the same to a grey printer.
STYLES = {"colors": ("#0072B2", "o"), "ink": ("#D55E00", "s")}


def save_conditions(result: Mapping[str, Any], path: Path) -> None:
    """A row per condition: the mean held-out gain of both tasks with its interval over zoos."""
    names = [name for name in CONDITIONS if any(_line(result, name, task) for task in TASKS_OF_THE_MEAN)]
    figure = Figure(figsize=(8, 1.4 + 0.34 * max(1, len(names))), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="black", linewidth=1)
    axes.grid(axis="x", color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    for shift, task in zip((-0.13, 0.13), TASKS_OF_THE_MEAN, strict=True):
        color, marker = STYLES[task]
        for row, name in enumerate(names):
            line = _line(result, name, task)
            if line and line["ci95"]:
                axes.hlines(row + shift, *line["ci95"], color=color, linewidth=1.5)
            if line:
                axes.plot(
                    line["gain"], row + shift, marker, color=color, markersize=5, label=task if row == 0 else None
                )
    axes.set_yticks(range(len(names)), [CONDITIONS[name].label for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel("held-out gain over the zero border, points, with 95 % interval over zoos", fontsize=10)
    if names:
        axes.legend(frameon=False)
    figure.savefig(make_folder(path), format="png")


def _line(result: Mapping[str, Any], name: str, task: str) -> Mapping[str, Any]:
    # A border that is not learned is given to all models: every one of them is held out.
    learned = CONDITIONS[name].kind == "prompt"
    return {} if name == "zero" else find(result["lines"], condition=name, task=task,
                                          **({} if learned else {"role": "", "sources": 0}))  # fmt: skip


def save_pairs(result: Mapping[str, Any], path: Path) -> None:
    """Gains of all pairs, a panel per task and recipe; a mean over zoos and seeds."""
    recipes = ("paper", "transfer")
    figure = Figure(figsize=(5.2 * len(recipes), 4.6 * len(TASKS_OF_THE_MEAN)), dpi=120, layout="constrained")
    panels = figure.subplots(len(TASKS_OF_THE_MEAN), len(recipes), squeeze=False)
    for axes_of_task, task in zip(panels, TASKS_OF_THE_MEAN, strict=True):
        for axes, recipe in zip(axes_of_task, recipes, strict=True):
            shown = draw_heatmap(axes, mean_gains(result["pairs"], recipe, task), limit=40)
            axes.tick_params("x", labelrotation=30)
            axes.set_title(f"{task}: {CONDITIONS[recipe].label}", fontsize=10)
    figure.colorbar(shown, ax=panels, label="gain over the zero border, points", shrink=0.6)
    figure.savefig(make_folder(path), format="png")
