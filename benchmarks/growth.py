"""How the cost of training and of ranking grows: with canvas, batch, sources, candidates and the number of rows.

    python benchmarks/growth.py --json docs/results/growth.json --chart docs/images/growth.png     # about four minutes

One thing grows at a time, the rest stands at 224 pixels, 4 images a step and one source of the InstructBLIP shape in the
small size of `benchmarks/shapes.py`. Seconds are CPU seconds of one thread, the median of `--repeats` runs. For the rows
a streamed dataset of small PNG files goes through the Trainer's own loader, and the most memory that the process holds
meanwhile is recorded (resident, in MiB); no model runs.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import matplotlib
import numpy as np
import psutil
import torch
from PIL import Image

from transferable_vp import (
    Surrogate,
    Task,
    TransferableVisualPrompt,
    TransferableVisualPromptConfig,
    TransferableVisualPromptTrainer,
    TransferableVisualPromptTrainingArguments,
    score_candidates,
)
from transferable_vp.demo import versions


sys.path.insert(0, str(Path(__file__).parent))

from step import Batch, make_batch, ours, seconds


matplotlib.use("Agg")

LABELS = {
    "canvas": ("canvas, pixels a side", "s a step"),
    "batch": ("images a step", "s a step"),
    "sources": ("sources", "s a step"),
    "candidates": ("candidates", "s an image"),
    "rows": ("streamed rows", "MiB resident at most"),
}


def median_seconds(function: Callable[[], Any], repeats: int) -> float:
    """CPU seconds, after one call that is not counted."""
    function()
    return statistics.median(seconds(function, "cpu")[0] for _ in range(repeats))


def step_seconds(batch: Batch, repeats: int, sources: int = 1) -> float:
    """One step of training."""
    with tempfile.TemporaryDirectory() as folder:
        contender = ours(batch, folder, sources=sources)
        return median_seconds(contender.step, repeats)


def ranking_seconds(surrogate: Surrogate, count: int, repeats: int) -> float:
    """Ranking `count` candidates of one to four tokens for one image."""
    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(0, 256, (224, 224, 3), dtype=np.uint8))
    names = [
        " ".join(f"w{w}" for w in [4 + i % 900, *draw.integers(4, 900, i % 4), 4 + i // 900]) for i in range(count)
    ]
    run = lambda: score_candidates(surrogate, [image], ["w4 w5 w6"], [names])  # noqa: E731
    return median_seconds(run, repeats)


def rows_memory(count: int) -> float:
    """The most MiB that are resident while `count` streamed rows go through the Trainer's loader."""
    encoded = []
    for seed in range(16):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "PNG")
        encoded.append(file.getvalue())

    def rows() -> Iterator[dict[str, Any]]:
        for index in range(count):
            yield {"image": {"bytes": encoded[index % 16], "path": None}, "answer": f"w{4 + index % 100}"}

    features = datasets.Features({"image": datasets.Image(), "answer": datasets.Value("string")})
    stream = datasets.IterableDataset.from_generator(rows, features=features)
    batch = make_batch("instructblip", "toy", 1)
    process, most, seen = psutil.Process(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        trainer = TransferableVisualPromptTrainer(
            model=TransferableVisualPrompt(batch.geometry),
            args=TransferableVisualPromptTrainingArguments(
                folder, max_steps=1, per_device_train_batch_size=64, use_cpu=True, disable_tqdm=True
            ),
            surrogates=batch.surrogate,
            train_dataset=stream,
            task=Task(),
        )
        for inputs in trainer.get_train_dataloader():
            seen += len(inputs["images"])
            most = max(most, process.memory_info().rss)
    if seen != count:
        raise RuntimeError(f"The loader gave {seen} rows; expected {count}.")
    return most / 2**20


def measure(repeats: int, rows: list[int]) -> dict[str, dict[int, float]]:
    """Every line: what grew, and what it cost."""
    # First, while the process is as small as it will be.
    found: dict[str, dict[int, float]] = {"rows": {}}
    rows_memory(rows[0])
    for count in rows:
        found["rows"][count] = rows_memory(count)
        print(f"{count} rows: {found['rows'][count]:.0f} MiB", flush=True)
    batch = make_batch("instructblip", "small", 4)
    found |= {"canvas": {}, "batch": {}, "sources": {}, "candidates": {}}
    for side in (112, 224, 448, 896):
        batch.geometry = TransferableVisualPromptConfig(canvas_size=side, border_size=30 * side // 224)
        found["canvas"][side] = step_seconds(batch, repeats)
    for count in (1, 2, 4, 8, 16):
        found["batch"][count] = step_seconds(make_batch("instructblip", "small", count), repeats)
    batch = make_batch("instructblip", "small", 4)
    for count in (1, 2, 3, 4):
        found["sources"][count] = step_seconds(batch, repeats, sources=count)
    for count in (1, 10, 100, 1000):
        found["candidates"][count] = ranking_seconds(batch.surrogate, count, repeats)
    return found


def draw_chart(found: dict[str, dict[int, float]], path: str) -> None:
    """One panel a line; costs from zero, so that twice as much looks like twice as much."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(3.1 * len(found), 2.8))
    for axis, (name, line) in zip(
        axes, sorted(found.items(), key=lambda item: list(LABELS).index(item[0])), strict=True
    ):
        axis.plot(list(line), list(line.values()), marker="o", color="#2a6f97")
        axis.set_xlabel(LABELS[name][0])
        axis.set_ylabel(LABELS[name][1])
        if name in ("candidates", "rows"):
            axis.set_xscale("log")
        else:
            axis.set_xlim(left=0)
        axis.set_ylim(0, 1.15 * max(line.values()))
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--rows", nargs="+", type=int, default=[1000, 10_000, 100_000, 1_000_000], help="streamed rows"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", help="write the figures here too")
    parser.add_argument("--chart", help="draw them here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = measure(args.repeats, args.rows)
    for name, line in found.items():
        print(f"{LABELS[name][0]}: " + ", ".join(f"{x} -> {y:.3g} {LABELS[name][1]}" for x, y in line.items()))
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key not in ("json", "chart")}
        figures = {"lines": found, "settings": settings, "versions": versions()}
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if args.chart:
        draw_chart(found, args.chart)


if __name__ == "__main__":
    main()
