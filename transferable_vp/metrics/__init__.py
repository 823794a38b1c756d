"""Metrics as `evaluate` modules that need no network: candidate accuracy, POPE, AUROC, counting."""

from __future__ import annotations

import tempfile
from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import evaluate

# A metric's folder and file have its name, which is what `evaluate.load` asks for. Its class has the name here.
METRICS = {
    "auroc": "Auroc",
    "candidate_accuracy": "CandidateAccuracy",
    "counting": "Counting",
    "pope": "Pope",
}

__all__ = ["METRICS", "load_metric"]


def load_metric(name: str) -> evaluate.Metric:
    r"""
    Makes a metric that lives in this package. Every call gives one of its own, and nothing of it is written to disk.

    The class is imported from where it is installed. `evaluate.load` takes the metric's folder too, with the same
    numbers, but copies the script into `HF_MODULES_CACHE` under a file lock and keeps the examples in files of
    `HF_METRICS_CACHE`: it needs a home it can write to and a file system whose locks work.

    Args:
        name (`str`): One of `METRICS`: `"auroc"`, `"candidate_accuracy"`, `"counting"`, `"pope"`.

    Returns:
        `evaluate.Metric`: Its `compute(predictions=..., references=...)` gives a `dict` of plain numbers. It holds the
        examples of one process: gather those of several first.

    Raises:
        ValueError: If there is no such metric, naming those there are.
    """
    if name not in METRICS:
        raise ValueError(f"There is no metric {name!r} in transferable_vp; there are {', '.join(METRICS)}.")
    metric: Any = getattr(import_module(f"{__name__}.{name}.{name}"), METRICS[name])
    # A metric makes a folder for its files even when it keeps the examples in memory, and never looks at it again.
    with tempfile.TemporaryDirectory(prefix="transferable_vp_") as folder:
        return metric(keep_in_memory=True, cache_dir=folder)
