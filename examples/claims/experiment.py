"""Runs cells: trains what a cell says once, measures every member, and keeps the outcome in one file."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from baselines import lora
from baselines.rows import training_order
from PIL import Image
from tqdm.auto import tqdm
from transformers import PrinterCallback
from transformers.utils.logging import disable_progress_bar

from transferable_vp import (
    Surrogate,
    Task,
    TaskSemantics,
    TransferableVisualPrompt,
    TransferableVisualPromptConfig,
    TransferableVisualPromptTrainingArguments,
    evaluate,
    random_prompt,
)
from transferable_vp.bundled import bundled
from transferable_vp.objectives import FeatureConsistency, Step, task_loss
from transferable_vp.training_args import RECIPES

from .data import TASKS, light_of, load_rows, make_task, shuffled
from .ideas import Ideas, Snapshots, disturbed
from .plan import FAMILIES, WRONG_LIGHT, Cell


# Of a border painted by hand, as the world's mats are: not quite white.
BRIGHTNESS = 0.85
LORA_RATES = (1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Settings:
    r"""
    What all cells share.

    Attributes:
        steps, batch_size (`int`): Of every training.
        n_train, n_validation, n_test (`int`): Rows of a task.
        canvas_size, border_size (`int`): Of every prompt, in pixels.
    """

    steps: int = 60
    batch_size: int = 32
    n_train: int = 800
    n_validation: int = 300
    n_test: int = 400
    canvas_size: int = 64
    border_size: int = 8

    def blank(self) -> TransferableVisualPrompt:
        """A prompt that has learned nothing."""
        return TransferableVisualPrompt(
            TransferableVisualPromptConfig(canvas_size=self.canvas_size, border_size=self.border_size)
        )


class Zoo:
    r"""
    The models of one folder, each loaded when it is first asked for.

    Args:
        folder (`Path`): With a checkpoint per member. A zoo without a CLIP of its own is given the shipped one.

    Raises:
        FileNotFoundError: If fewer than two members are there: nothing could be held out.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members = tuple(name for name in FAMILIES if (folder / name / "model.safetensors").is_file())
        if len(self.members) < 2:
            raise FileNotFoundError(
                f"{folder} has {len(self.members)} of the members {', '.join(FAMILIES)}, each a folder with "
                "model.safetensors; at least two are needed. `python zoo/train.py --help` says how to make them."
            )
        own = folder / "clip"
        self.clip_folder = own if (own / "model.safetensors").is_file() else bundled("zoo/clip")
        self._loaded: dict[str, Surrogate] = {}
        self._clip: TaskSemantics | None = None

    def digest(self, member: str) -> str:
        """Of a member's weights (`"clip"` for the CLIP): what was measured on other weights is measured again."""
        folder = self.clip_folder if member == "clip" else self.folder / member
        return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]

    def surrogate(self, member: str) -> Surrogate:
        """One member."""
        if member not in self._loaded:
            self._loaded[member] = Surrogate.from_pretrained(str(self.folder / member), name=member)
        return self._loaded[member]

    def clip(self) -> TaskSemantics:
        """The CLIP for TSE."""
        if self._clip is None:
            self._clip = TaskSemantics.from_pretrained(str(self.clip_folder))
        return self._clip


def scaled_weights(
    sources: Sequence[Surrogate], semantics: TaskSemantics | None, rows: Sequence[dict[str, Any]], task: Task,
    blank: TransferableVisualPrompt, fca_share: float = 0.0, tse_share: float = 0.0,
) -> dict[str, float]:  # fmt: skip
    r"""
    Weights at which FCA and TSE are as large as a share of the task loss, each on its own scale.

    FCA is a distance of features and TSE a similarity times CLIP's temperature, so that a weight means another thing
    for every model. Measured once, on training rows in a random border, where no distance is zero.

    Args:
        sources, semantics: What is learned on.
        rows (`Sequence[dict]`): A batch of training rows.
        task ([`Task`]): How to read them.
        blank ([`TransferableVisualPrompt`]): The geometry.
        fca_share, tse_share (`float`, *optional*, defaults to 0.0): Weight times size of the term, over the task loss.

    Returns:
        `dict`: `fca_weight` and `tse_weight` of the terms whose share is not 0.
    """
    border = random_prompt(blank, seed=0)
    examples = [task.example(row) for row in rows]
    images = [example.image for example in examples]
    questions, answers = [example.question for example in examples], [example.answer for example in examples]
    with torch.no_grad():
        canvas, clean = border(images), border(images, prompted=False)
        outputs = [source.forward(canvas, questions, answers, False, True) for source in sources]
        features = [source.features(clean, questions, False) for source in sources]
        step = Step(canvas, questions, answers, [example.caption for example in examples], outputs, features)
        size, found = task_loss(step).item(), {}
        if fca_share:
            found["fca_weight"] = fca_share * size / FeatureConsistency()(step).item()
        if tse_share and semantics is not None:
            found["tse_weight"] = tse_share * size / abs(semantics(step).item())
    return found


def training_rows(cell: Cell, settings: Settings) -> Any:
    """The rows of a training in the order in which they are seen, the same for all conditions of one seed."""
    rows: Sequence[dict[str, Any]] = load_rows(cell.task, "train", settings.n_train)
    if cell.condition.fraction < 1:
        some = np.random.default_rng([cell.seed, 1]).permutation(len(rows))
        rows = [rows[i] for i in some[: max(1, round(cell.condition.fraction * len(rows)))]]
    if cell.condition.shuffled:
        rows = shuffled(rows, cell.seed)
    return training_order(list(rows), settings.steps, settings.batch_size, cell.seed)


def learn_prompt(cell: Cell, zoo: Zoo, settings: Settings) -> tuple[TransferableVisualPrompt, dict[str, Any]]:
    """Trains a cell's prompt with the package's own trainer; the training arguments that made it come with it."""
    overrides, rows = dict(cell.condition.overrides), training_rows(cell, settings)
    task = replace(make_task(cell.task), flip=cell.condition.mirrors and TASKS[cell.task].mirrors)
    sources, blank = [zoo.surrogate(name) for name in cell.sources], settings.blank()
    shares = {name: overrides.pop(name) for name in ("fca_share", "tse_share") if name in overrides}
    if any(shares.values()):
        overrides |= scaled_weights(sources, zoo.clip(), rows[: settings.batch_size], task, blank, **shares)
    ideas = Ideas(overrides, sources)
    with TemporaryDirectory() as folder:
        args = TransferableVisualPromptTrainingArguments(
            folder, max_steps=settings.steps, per_device_train_batch_size=settings.batch_size, seed=cell.seed,
            train_sampling_strategy="sequential", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            use_cpu=True, **overrides,
        )  # fmt: skip
        trainer = ideas.trainer_class(
            blank, args, sources, train_dataset=rows, task=task, objectives=ideas.objectives,
            semantics=zoo.clip() if args.tse_weight else None,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        with ideas.at_work(trainer) as snapshots:
            trainer.train()
    found = {name: getattr(trainer.args, name) for name in ("recipe", *RECIPES["paper"])}
    if snapshots is not None:
        found["stopped_at_step"] = choose_snapshot(snapshots, cell, sources, settings)
    return blank, found


def choose_snapshot(snapshots: Snapshots, cell: Cell, sources: Sequence[Surrogate], settings: Settings) -> int:
    """Leaves the prompt as it was at the step at which the sources read disturbed validation pictures best, of equals the
    last, and returns the step."""
    task, rows = make_task(cell.task), load_rows(cell.task, "validation", settings.n_validation)
    prompt, scores = snapshots.prompt, {}
    for step, delta in snapshots.kept.items():
        with torch.no_grad():
            prompt.delta.copy_(delta)
        shown = [row | {"image": disturbed(prompt.apply(row["image"]), i)} for i, row in enumerate(rows)]
        scores[step] = np.mean([evaluate(source, shown, task, progress=False).mean for source in sources])
    best = max(scores, key=lambda step: (scores[step], step))
    with torch.no_grad():
        prompt.delta.copy_(snapshots.kept[best])
    return best


def make_border(cell: Cell, settings: Settings) -> TransferableVisualPrompt:
    """A border that nobody learned."""
    border, name = settings.blank(), cell.condition.name
    if name == "random":
        return random_prompt(border, cell.seed)
    light = TASKS[cell.measured.partition("+")[0]].light
    paint = {
        "zero": lambda: (0.0, 0.0, 0.0),
        "white": lambda: (1.0, 1.0, 1.0),
        "light_right": lambda: [BRIGHTNESS * part for part in light_of(light)],
        "light_wrong": lambda: [BRIGHTNESS * part for part in light_of(WRONG_LIGHT)],
    }[name]()
    with torch.no_grad():
        border.delta.copy_(torch.tensor(paint)[:, None, None] * border.trainable_mask)
    return border


def to_text(prompt: TransferableVisualPrompt) -> str:
    """A prompt as the PNG that models see, in letters."""
    file = io.BytesIO()
    prompt.apply(Image.new("RGB", (8, 8))).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def from_text(text: str, settings: Settings) -> TransferableVisualPrompt:
    """The prompt of `to_text`: the same picture to the bit."""
    prompt = settings.blank()
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))), np.float32) / 255
    with torch.no_grad():
        prompt.delta.copy_(torch.from_numpy(pixels).permute(2, 0, 1) * prompt.trainable_mask)
    return prompt


def bits(model: Surrogate, name: str, split: str, n: int, *prompt: Any) -> str:
    """A 1 for every row that a model answers rightly, a 0 for the others."""
    result = evaluate(model, load_rows(name, split, n), make_task(name), *prompt, progress=False)
    return "".join(str(int(value)) for value in result.values)


class Runner:
    r"""
    Runs cells on zoos, keeping the models of the last zoo in memory.

    Args:
        folders (`dict[str, Path]`): The zoos by name.
        output (`Path`): Where cells are kept, one JSON file each.
        settings ([`Settings`]): What all cells share.
    """

    def __init__(self, folders: dict[str, Path], output: Path, settings: Settings) -> None:
        self.folders, self.output, self.settings = folders, output, settings
        self._zoo: tuple[str, Zoo] | None = None
        self._digests: dict[tuple[str, str], str] = {}

    def zoo(self, name: str) -> Zoo:
        """One zoo; the one before it is let go."""
        if self._zoo is None or self._zoo[0] != name:
            self._zoo = (name, Zoo(self.folders[name]))
        return self._zoo[1]

    def digest(self, cell: Cell, member: str) -> str:
        """Of a member's weights, read once."""
        key = (cell.zoo, member)
        if key not in self._digests:
            self._digests[key] = self.zoo(cell.zoo).digest(member)
        return self._digests[key]

    def made_of(self, cell: Cell) -> dict[str, Any]:
        """All that changes the training or the rows that are measured."""
        condition = asdict(cell.condition)
        arguments = cell.condition.overrides
        if cell.condition.kind == "prompt":
            # What a recipe means is written out: when its constants change, so does the name.
            arguments = RECIPES[arguments.get("recipe", "transfer")] | arguments
        read = [*cell.sources, *(["clip"] if arguments.get("tse_weight") or arguments.get("tse_share") else [])]
        return {
            "condition": {key: value for key, value in condition.items() if key not in ("name", "label")},
            "arguments": arguments if cell.condition.kind != "lora" else LORA_RATES,
            "cell": [cell.task if cell.learned else "", *cell.sources, cell.seed, cell.measured, cell.split],
            "border": [] if cell.learned else cell.condition.name,
            "weights": [self.digest(cell, member) for member in read],
            "settings": asdict(self.settings),
        }

    def path(self, cell: Cell) -> Path:
        """The file of a cell, named by all that made it."""
        key = _digest(self.made_of(cell))
        sources = "+".join(cell.sources) or "none"
        on = f"-on-{cell.measured}" if cell.measured != cell.task else ""
        name = f"{cell.condition.name}-{sources}-s{cell.seed}{on}-{cell.split}-{key}.json"
        return self.output / "cells" / cell.zoo / cell.task / name

    def way(self, cell: Cell) -> str:
        """A digest of what a cell's condition means, whatever it is learned and measured on."""
        return _digest({key: value for key, value in self.made_of(cell).items() if key not in ("cell", "weights")})

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """What is kept of a cell: nothing, some members, or all of them."""
        path = self.path(cell)
        return json.loads(path.read_text()) if path.is_file() else None

    def missing(self, cell: Cell, kept: dict[str, Any] | None) -> list[str]:
        """Members that are still to be measured: new ones, and those with other weights than were measured."""
        members = cell.targets or self.zoo(cell.zoo).members
        if cell.condition.kind == "lora":
            members = cell.sources  # other models have other weights
        weights = kept["weights"] if kept else {}
        return [member for member in members if weights.get(member) != self.digest(cell, member)]

    def run(self, cell: Cell) -> bool:
        """Runs one cell, or what is missing of it. Returns whether there was anything to do."""
        kept = self.read(cell)
        missing = self.missing(cell, kept)
        if not missing:
            return False
        started = time.perf_counter()
        if cell.condition.kind == "lora":
            found = self._run_lora(cell)
        else:
            found = self._run_prompt(cell, kept, missing)
        found["weights"] = (kept or {"weights": {}})["weights"] | {m: self.digest(cell, m) for m in missing}
        found["seconds"] = (kept or {"seconds": 0.0})["seconds"] + time.perf_counter() - started
        found["cell"] = {
            "zoo": cell.zoo, "task": cell.task, "condition": cell.condition.name, "sources": list(cell.sources),
            "seed": cell.seed, "on": cell.measured, "split": cell.split,
        }  # fmt: skip
        write_whole(self.path(cell), json.dumps(found) + "\n")
        return True

    def _run_prompt(self, cell: Cell, kept: dict[str, Any] | None, missing: Sequence[str]) -> dict[str, Any]:
        zoo, settings = self.zoo(cell.zoo), self.settings
        found = dict(kept or {"correct": {}, "validation": {}, "arguments": {}, "prompt": None})
        shown: tuple[Any, ...] = ()
        if cell.condition.kind == "border":
            shown = (make_border(cell, settings),)
        elif cell.learned:
            # The same training measured on its own task has the prompt already, in the order of the plan.
            own = kept or (self.read(replace(cell, on="")) if cell.measured != cell.task else None)
            if own is None:
                prompt, found["arguments"] = learn_prompt(cell, zoo, settings)
                found["prompt"] = to_text(prompt)
            else:
                found["arguments"], found["prompt"] = own["arguments"], own["prompt"]
            shown = (from_text(found["prompt"], settings),)
        n = {"test": settings.n_test, "validation": settings.n_validation}[cell.split]
        found["correct"] = found["correct"] | {
            member: bits(zoo.surrogate(member), cell.measured, cell.split, n, *shown) for member in missing
        }
        if cell.split == "test" and cell.learned and cell.measured == cell.task:
            found["validation"] = found["validation"] | {
                source: bits(zoo.surrogate(source), cell.task, "validation", settings.n_validation, *shown)
                for source in cell.sources
                if source not in found["validation"]
            }
        return found

    def _run_lora(self, cell: Cell) -> dict[str, Any]:
        (name,), settings, task = cell.sources, self.settings, make_task(cell.task)
        source, rows = self.zoo(cell.zoo).surrogate(name), training_rows(cell, self.settings)
        validation = load_rows(cell.task, "validation", settings.n_validation)
        shared: dict[str, Any] = {"seed": cell.seed, "batch_size": settings.batch_size, "progress": False}
        rate, tried = lora.choose_learning_rate(source, rows, validation, task, learning_rates=LORA_RATES, **shared)
        with lora.adapter(source, cell.seed) as adapted:
            lora.learn_lora(adapted, rows, task, learning_rate=rate, **shared)
            correct = bits(adapted, cell.measured, cell.split, settings.n_test)
        arguments = {"learning_rate": rate, "validation": {f"{key:g}": value for key, value in tried.items()}}
        return {"correct": {name: correct}, "validation": {}, "arguments": arguments, "prompt": None}


def _digest(made_of: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all, whoever else writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


_runner: Runner | None = None


def _start_worker(folders: dict[str, Path], output: Path, settings: Settings) -> None:
    global _runner
    quiet()
    _runner = Runner(folders, output, settings)


def _run_in_worker(cell: Cell) -> bool:
    assert _runner is not None
    return _runner.run(cell)


def quiet() -> None:
    """One thread, and no bars or tables but our own."""
    torch.set_num_threads(1)
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    disable_progress_bar()


def run_cells(
    cells: Sequence[Cell], runner: Runner, processes: int = 1, minutes: float | None = None, progress: bool = True
) -> int:
    r"""
    Runs every cell that is not kept yet.

    Args:
        cells (`Sequence[Cell]`): In the order in which they are wanted.
        runner ([`Runner`]): Zoos, settings and the folder of cells.
        processes (`int`, *optional*, defaults to 1): How many at a time, each with models and one thread of its own.
        minutes (`float`, *optional*): After this time no further cell is begun.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        `int`: How many cells had something to do.

    Raises:
        RuntimeError: After all others have run, if cells failed, naming them.
    """
    quiet()
    # Sorted by zoo, looking costs next to nothing; the order of the plan would load zoos over and over.
    looked = {cell: bool(runner.missing(cell, runner.read(cell))) for cell in sorted(cells, key=lambda c: c.zoo)}
    todo = [cell for cell in cells if looked[cell]]
    stop = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    failed: list[str] = []
    with tqdm(total=len(cells), initial=len(cells) - len(todo), unit="cell", disable=not progress) as bar:

        def done(cell: Cell, outcome: Callable[[], Any]) -> None:
            try:
                outcome()
            except (FloatingPointError, ValueError, OSError, RuntimeError) as error:
                failed.append(f"{describe(cell)}: {type(error).__name__}: {error}")
            bar.set_postfix_str(describe(cell))
            bar.update()

        if processes <= 1:
            for cell in todo:
                if time.monotonic() > stop:
                    break
                done(cell, lambda cell=cell: runner.run(cell))
        elif todo:
            _run_parallel(todo, runner, processes, stop, done)
    if failed:
        raise RuntimeError(f"{len(failed)} cells failed; the others are kept, and a second run tries these again:\n"
                           + "\n".join(failed))  # fmt: skip
    return len(todo)


def _run_parallel(
    todo: Sequence[Cell], runner: Runner, processes: int, stop: float, done: Callable[[Cell, Callable[[], Any]], None]
) -> None:
    arguments = (runner.folders, runner.output, runner.settings)
    left, running = iter(todo), dict[Future[bool], Cell]()
    # Spawned: a forked process would share the threads and the random state of this one.
    with ProcessPoolExecutor(processes, get_context("spawn"), _start_worker, arguments) as pool:
        while True:
            while len(running) < processes and time.monotonic() <= stop and (cell := next(left, None)) is not None:
                running[pool.submit(_run_in_worker, cell)] = cell
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                done(running.pop(future), future.result)


def describe(cell: Cell) -> str:
    """A cell in a line."""
    on = f" on {cell.measured}" if cell.measured != cell.task else ""
    return f"{cell.zoo} {cell.task} {cell.condition.name} {'+'.join(cell.sources)} seed {cell.seed}{on}"
