"""A prompt learned while somebody watches: the real trainer in a thread, its steps as they are made."""

from __future__ import annotations

import functools
import logging
import math
import queue
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from transformers import PrinterCallback, TrainerCallback

from ..bundled import bundled
from ..configuration import TransferableVisualPromptConfig
from ..data import Task
from ..demo import RECIPE, load_world
from ..model_card import facts_of_trainer, write_card
from ..modeling import TransferableVisualPrompt
from ..objectives import TaskSemantics
from ..report import write_json
from ..trainer import TransferableVisualPromptTrainer
from ..training_args import TransferableVisualPromptTrainingArguments
from ..transfer import transfer_report
from .models import JUDGE, LOADING, Models


MAX_STEPS = 200
TITLE = "colours under a green light"


@dataclass(frozen=True)
class Recipe:
    r"""
    What a visitor chose for a training.

    Args:
        sources (`tuple[str, ...]`): Members of the zoo to learn on.
        steps (`int`): Steps of 32 pictures, 1 to 200.
        fca_weight, tse_weight (`float`): Weights of the two losses; 0 turns one off.
        seed (`int`, *optional*, defaults to 0): Seed of the training.

    Raises:
        ValueError: If one of them is out of range, or there is no source.
    """

    sources: tuple[str, ...]
    steps: int
    fca_weight: float
    tse_weight: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("No source is chosen: choose one model or more to learn on.")
        if not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"The number of steps is {self.steps}; it must be between 1 and {MAX_STEPS}.")
        for name, weight in (("FCA", self.fca_weight), ("TSE", self.tse_weight)):
            if not (math.isfinite(weight) and 0 <= weight <= 1):
                raise ValueError(f"The weight of {name} is {weight}; it must be between 0 (off) and 1.")


@dataclass
class Progress:
    r"""
    How far a training is.

    Attributes:
        steps (`int`): How many there are to be.
        stage (`str`): What is being done, in words.
        history (`list[dict]`): `step`, `loss` and its terms, one entry per step.
        picture (`PIL.Image.Image`, *optional*): An example in the border as it is now.
        frames (`list[tuple[int, PIL.Image.Image]]`): The same at some earlier steps.
        report (`dict`, *optional*): At the end, the transfer report.
        folder (`Path`, *optional*): At the end, the prompt's folder.
        archive (`Path`, *optional*): At the end, the same as a zip file.
    """

    steps: int
    stage: str = "Loading the models …"
    history: list[dict[str, float]] = field(default_factory=list)
    picture: Image.Image | None = None
    frames: list[tuple[int, Image.Image]] = field(default_factory=list)
    report: dict[str, Any] | None = None
    folder: Path | None = None
    archive: Path | None = None


@functools.cache
def color_data(n_train: int, n_test: int) -> tuple[Task, list[dict[str, Any]], list[dict[str, Any]]]:
    """The task with its pictures to learn from and to measure on, those of the demo. Nobody changes them."""
    world = load_world()
    task = Task(question_column="question", candidates=world.CANDIDATES["color"], caption="something {answer}")
    return task, world.color_examples(n_train, seed=1), world.color_examples(n_test, seed=3)


class _Watcher(TrainerCallback):
    """Tells what the trainer does, and stops it when asked."""

    def __init__(self, told: queue.SimpleQueue[Any], stop: threading.Event, example: Image.Image) -> None:
        self.told, self.stop, self.example = told, stop, example

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stop.is_set():
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **kwargs: Any) -> None:
        # The last entry is a summary of the whole training.
        if logs and "loss" in logs:
            terms = {name: float(value) for name, value in logs.items() if name == "loss" or name.endswith("_loss")}
            # In the trainer's own thread, between two steps: nobody changes the pixels meanwhile.
            self.told.put(({"step": state.global_step, **terms}, model.apply(self.example)))


def _train(
    recipe: Recipe, models: Models, stop: threading.Event, told: queue.SimpleQueue[Any], n_train: int, n_test: int
) -> None:
    """Learns; puts every step into `told`, at last the trainer, or the error that ended it."""
    try:
        task, train, test = color_data(n_train, n_test)
        with LOADING:
            clip = TaskSemantics.from_pretrained(str(bundled(f"zoo/{JUDGE}"))) if recipe.tse_weight else None
        prompt = TransferableVisualPrompt(TransferableVisualPromptConfig(canvas_size=64, border_size=8))
        settings = RECIPE | {"fca_weight": recipe.fca_weight, "tse_weight": recipe.tse_weight}
        logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
        with TemporaryDirectory() as folder:
            args = TransferableVisualPromptTrainingArguments(
                folder, max_steps=recipe.steps, seed=recipe.seed, save_strategy="no", logging_steps=1,
                disable_tqdm=True, use_cpu=True, **settings,
            )  # fmt: skip
            trainer = TransferableVisualPromptTrainer(
                # Copies of their own: those of the other tabs go on answering meanwhile.
                prompt, args, [models.load(name) for name in recipe.sources], train_dataset=train, task=task,
                semantics=clip, callbacks=[_Watcher(told, stop, test[0]["image"])],
            )  # fmt: skip
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        told.put(trainer)
    except Exception as error:  # raised again in the thread that somebody listens to
        told.put(error)


def learn_live(
    recipe: Recipe, models: Models, folder: Path, stop: threading.Event, n_train: int = 640, n_test: int = 100
) -> Iterator[Progress]:
    r"""
    Learns a prompt on members of the zoo with [`TransferableVisualPromptTrainer`] and measures it on all of them.

    Args:
        recipe ([`Recipe`]): What to learn on, and how.
        models ([`Models`]): The zoo.
        folder (`Path`): Where the prompt's folder and the zip file go.
        stop (`threading.Event`): Set by anybody, it ends the training after the step that is being made. What was
            learned by then is measured.
        n_train (`int`, *optional*, defaults to 640): Pictures to learn from.
        n_test (`int`, *optional*, defaults to 100): Other pictures to measure on.

    Yields:
        [`Progress`]: The same object, after every step and every model measured.

    Raises:
        ValueError: If a source is no model of `models`.
        FloatingPointError: If a loss is not finite.
    """
    if unknown := [name for name in recipe.sources if name not in models.names]:
        raise ValueError(f"There is no model {unknown[0]} in the zoo; there are {', '.join(models.names)}.")
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    progress = Progress(recipe.steps)
    # A frame now and then shows how the border formed.
    kept = {1, *(round(recipe.steps * part / 4) for part in (1, 2, 3))}
    thread = threading.Thread(target=_train, args=(recipe, models, stop, told, n_train, n_test), daemon=True)
    thread.start()
    try:
        yield progress
        while isinstance(item := told.get(), tuple):
            entry, progress.picture = item
            progress.history.append(entry)
            progress.stage = f"Step {entry['step']} of {recipe.steps}"
            if entry["step"] in kept:
                progress.frames.append((int(entry["step"]), progress.picture))
            yield progress
    finally:
        # Also when nobody listens any more.
        stop.set()
    thread.join()
    if isinstance(item, Exception):
        raise item
    yield from _measure(recipe, models, item, progress, folder, n_train, n_test)


def _measure(
    recipe: Recipe, models: Models, trainer: TransferableVisualPromptTrainer, progress: Progress, folder: Path,
    n_train: int, n_test: int,
) -> Iterator[Progress]:  # fmt: skip
    """Measures the prompt on all models, one after another, and writes folder and zip file."""
    task, _, test = color_data(n_train, n_test)
    steps = trainer.state.global_step
    settings = {**RECIPE, "fca_weight": recipe.fca_weight, "tse_weight": recipe.tse_weight,
                "block_size": trainer.args.block_size, "steps": steps, "n_train": n_train, "canvas_size": 64, "border_size": 8}  # fmt: skip
    report: dict[str, Any] = {}
    for number, name in enumerate(models.names, 1):
        progress.stage = f"Learned in {steps} steps. Measuring {name}, {number} of {len(models.names)} …"
        yield progress
        with models.use(name) as model:
            part = transfer_report(
                [model], test, task, [trainer.model], source=list(recipe.sources), title=TITLE, seeds=[recipe.seed],
                settings=settings, progress=False,
            )  # fmt: skip
        report = {**part, "targets": [*report.get("targets", []), *part["targets"]]}
    target = folder / "prompt"
    trainer.model.save_pretrained(target)
    write_card(facts_of_trainer(trainer), target, reports=[report])
    write_json(report, target / "transfer.json")
    progress.archive = Path(shutil.make_archive(str(folder / "prompt"), "zip", folder, "prompt"))
    progress.report, progress.folder, progress.stage = report, target, f"Done: learned in {steps} steps."
    yield progress
