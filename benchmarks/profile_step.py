"""Where the time of a training step goes beyond its floor: every second of our step, charged to a named part.

    python benchmarks/profile_step.py --json docs/results/profile.json --page docs/performance.md   # a minute, one core

The step is that of `benchmarks/step.py`. Its parts are wrapped in a clock that knows which of them runs, so that their
seconds add up to those of the step. Autograd runs what was recorded last first; marks at the logits and at both models'
pixel values cut the backward pass into the parts of the forward pass. Seconds are CPU seconds of one thread, the median
of `--rounds` steps. What a loader costs is measured by reading batches of encoded pictures through the Trainer's own.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import json
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image

from transferable_vp import TransferableVisualPromptTrainer
from transferable_vp.demo import versions


sys.path.insert(0, str(Path(__file__).parent))

from step import Batch, make_batch, new_trainer, take_step


# In the order of a step. The first two are the floor.
PARTS = {
    "surrogate_forward": "surrogate, forward",
    "surrogate_backward": "surrogate, backward to the pixels",
    "clean_encode": "clean images: encoder, without a graph",
    "clean_processor": "clean images: composed, through the processor",
    "images": "images resized, canvas composed",
    "processor": "prompted images: through the processor, values and floats",
    "processor_backward": "gradient through processor and canvas",
    "text": "questions and answers made tokens",
    "clip": "CLIP, forward",
    "clip_processor": "CLIP: through its processor, values and floats",
    "clip_backward": "CLIP and its processor, backward",
    "losses": "losses of task and features",
    "optimizer": "optimizer, projection, schedule",
    "trainer": "Trainer and the rest",
}


class Clock:
    """CPU seconds, charged to the part that runs: a part within another stops the other's."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self._running = ["trainer"]
        self._last = time.process_time()

    def charge(self, part: str | None = None) -> None:
        """Charges what went by since the last charge to `part`, by default the one that runs."""
        now = time.process_time()
        self.spent[part or self._running[-1]] += now - self._last
        self._last = now

    def timed(
        self, part: str, function: Callable[..., Any], within: dict[str, str] | None = None
    ) -> Callable[..., Any]:
        """`function`, charged to `part`; within a part that `within` names, to what it gives there."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.charge()
            self._running.append((within or {}).get(self._running[-1], part))
            try:
                return function(*args, **kwargs)
            finally:
                self.charge()
                self._running.pop()

        return run

    def at_gradient(self, tensor: torch.Tensor, part: str) -> torch.Tensor:
        """When the backward pass has come to `tensor`, what it did since the last mark is charged to `part`."""
        if tensor.requires_grad:
            tensor.register_hook(lambda gradient: self.charge(part))
        return tensor


def watched(trainer: TransferableVisualPromptTrainer, clock: Clock) -> None:
    """Puts the clock around the parts of a step, in place."""
    surrogate, prompt = trainer.surrogates[0], trainer.model
    clean = {"clean_processor": "clean_processor"}

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = model_forward(*args, **kwargs)
        clock.at_gradient(output.logits, "losses")
        return output

    def encode(*args: Any, **kwargs: Any) -> Any:
        inputs = plain_encode(*args, **kwargs)
        clock.at_gradient(inputs["pixel_values"], "surrogate_backward")
        return inputs

    model_forward, plain_encode = surrogate.model.forward, surrogate.encode
    surrogate.model.forward = clock.timed("surrogate_forward", forward, {"clean_processor": "clean_encode"})
    surrogate.encode = clock.timed("processor", encode, clean)
    surrogate.append_answers = clock.timed("text", surrogate.append_answers)
    surrogate.forward = clock.timed("processor", surrogate.forward)
    surrogate.features = clock.timed("clean_processor", surrogate.features)
    prompt.fitted = clock.timed("images", prompt.fitted)
    prompt.forward = clock.timed("images", prompt.forward, clean)
    trainer._clean_features = clock.timed("clean_processor", trainer._clean_features)

    def semantics(step: Any) -> torch.Tensor:
        # A view, so that its gradient is complete when CLIP's is, and not when all of the step is.
        canvas = clock.at_gradient(step.canvas.view_as(step.canvas), "clip_backward")
        return tse(dataclasses.replace(step, canvas=canvas))

    task, fca, tse_objective = trainer.objectives
    tse: Any = tse_objective.function
    tse._image_processor.preprocess = clock.timed("clip_processor", tse._image_processor.preprocess)
    consistency = clock.timed("losses", fca.function)
    consistency.needs_features = True  # type: ignore[attr-defined]
    trainer.objectives = [
        task._replace(function=clock.timed("losses", task.function)),
        fca._replace(function=consistency),
        tse_objective._replace(function=clock.timed("clip", semantics)),
    ]
    trainer.accelerator.backward = clock.timed("processor_backward", trainer.accelerator.backward)
    for owner, name in ((trainer.optimizer, "step"), (trainer.lr_scheduler, "step"), (prompt, "zero_grad")):
        setattr(owner, name, clock.timed("optimizer", getattr(owner, name)))


def profile_step(batch: Batch, rounds: int, **arguments: Any) -> dict[str, float]:
    """CPU seconds of every part, a median over rounds."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, clock = new_trainer(batch, folder, **arguments), Clock()
        watched(trainer, clock)
        found = []
        for _ in range(rounds + 1):
            clock.charge()
            clock.spent.clear()
            take_step(trainer, batch)
            clock.charge()
            found.append(dict(clock.spent))
    # The first makes caches and states.
    return {part: statistics.median(spent.get(part, 0.0) for spent in found[1:]) for part in PARTS}


def loader_seconds(batch: Batch, rows: int, batches: int = 8) -> float:
    """CPU seconds of the Trainer's loader for a batch of encoded pictures of 500 x 375 pixels."""
    encoded = []
    for seed in range(8):
        file = io.BytesIO()
        pixels = torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(seed))
        picture = Image.fromarray((255 * pixels).byte().permute(1, 2, 0).numpy()).resize((500, 375))
        picture.save(file, "JPEG")
        encoded.append({"image": {"bytes": file.getvalue(), "path": None}, "answer": f"w{4 + seed}"})
    features = datasets.Features({"image": datasets.Image(), "answer": datasets.Value("string")})
    data = datasets.Dataset.from_list([encoded[i % 8] for i in range(rows * batches)], features=features)
    with tempfile.TemporaryDirectory() as folder:
        args = {"per_device_train_batch_size": rows, "tse_weight": 0.0}
        trainer = new_trainer(batch, folder, train_dataset=data, **args)
        list(trainer.get_train_dataloader())
        begin = time.process_time()
        read = sum(len(inputs["images"]) for inputs in trainer.get_train_dataloader())
        return (time.process_time() - begin) * rows / read


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown: milliseconds of every part, and the share of the floor."""
    settings, versions_, lines = figures["settings"], figures["versions"], []
    for shape, found in figures["shapes"].items():
        epochs = found["seconds"]
        floors = {e: spent["surrogate_forward"] + spent["surrogate_backward"] for e, spent in epochs.items()}
        lines += [
            f"`{shape}` shape, {settings['size']} size, {found['batch']} images a step, float32, cpu, {settings['threads']} "
            f"thread, median of {settings['rounds']} steps, torch {versions_['torch']}, transformers "
            f"{versions_['transformers']}:",
            "",
            "| | first epoch, ms | of floor | later, features kept, ms | of floor |",
            "|---|---|---|---|---|",
        ]
        for part, what in PARTS.items():
            cells = [f"{1000 * spent[part]:.1f} | {spent[part] / floors[e]:.3f}" for e, spent in epochs.items()]
            lines.append(f"| {what} | {' | '.join(cells)} |")
        cells = [
            f"{1000 * sum(spent.values()):.1f} | {sum(spent.values()) / floors[e]:.3f}" for e, spent in epochs.items()
        ]
        each = 1000 * found["loader_seconds"] / found["batch"]
        share = found["loader_seconds"] / sum(epochs["later_epochs"].values())
        lines += [
            f"| **all of it** | {' | '.join(cells)} |",
            "",
            f"Reading and decoding an image of 500 x 375 pixels in the loader takes {each:.1f} ms of a core beside that: "
            f"{100 * share:.1f} % of a step if nothing else reads.",
            "",
        ]
    return "\n".join(lines).rstrip()


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["llava", "instructblip"], choices=["llava", "instructblip"])
    parser.add_argument("--size", default="small", choices=["toy", "small"], help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="steps (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", help="write the figures here too")
    parser.add_argument(
        "--page", help="put the table between `<!-- table:profile -->` and `<!-- end -->` of this page"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = {}
    for shape in args.shapes:
        rows = {"llava": 4, "instructblip": 6}[shape]
        loader = loader_seconds(make_batch(shape, args.size, rows), rows)
        seconds = {
            epoch: profile_step(make_batch(shape, args.size, rows), args.rounds, clean_features_cache=cache)
            for epoch, cache in (("first_epoch", 0.0), ("later_epochs", 1.0))
        }
        found[shape] = {"batch": rows, "seconds": seconds, "loader_seconds": loader}
        print(f"{shape}, {rows} images a step; the loader {1000 * loader:.1f} ms a batch")
        for part, what in PARTS.items():
            print(f"  {what:58}" + "".join(f"{1000 * spent[part]:9.1f} ms" for spent in seconds.values()))
    settings = {key: value for key, value in vars(args).items() if key not in ("json", "page")}
    figures = {"shapes": found, "settings": settings, "versions": versions()}
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if args.page:
        page = Path(args.page)
        pattern = r"(<!-- table:profile -->\n).*?(<!-- end -->)"
        text = page.read_text(encoding="utf-8")
        filled = re.sub(pattern, lambda marks: f"{marks[1]}{table(figures)}\n{marks[2]}", text, flags=re.DOTALL)
        page.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
