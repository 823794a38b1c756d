"""The demo: learn a prompt on one tiny model of the zoo, watch three others that never saw it."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback

from .bundled import bundled, import_bundled
from .configuration import TransferableVisualPromptConfig
from .data import Task
from .evaluation import evaluate
from .html_report import write_html
from .model_card import CardFacts, facts_of_trainer, write_card
from .modeling import TransferableVisualPrompt
from .pictures import save_examples_picture, save_prompt_picture, save_transfer_chart
from .report import format_table, write_json
from .surrogate import Surrogate
from .trainer import TransferableVisualPromptTrainer
from .training_args import RECIPES, TransferableVisualPromptTrainingArguments
from .transfer import transfer_report


MEMBERS = ("llava", "idefics3", "paligemma", "instructblip")
# What training does by default, see docs/results_claims.md.
RECIPE: dict[str, Any] = {**RECIPES["transfer"], "per_device_train_batch_size": 32}
# A plain visual prompt: the task loss alone, every pixel by itself.
PLAIN: dict[str, Any] = RECIPE | {"block_size": 1, "fca_weight": 0.0, "tse_weight": 0.0}


@dataclass
class Panel:
    """One task of the demo: its data and how it is shown."""

    title: str
    file: str
    task: Task
    train: list[dict[str, Any]]
    test: list[dict[str, Any]]


def load_world() -> ModuleType:
    """The zoo's procedural world (`zoo/world.py`), which is no part of the package's own code."""
    try:
        import matplotlib  # noqa: F401 - its fonts draw the world, its axes the charts
        import sklearn  # noqa: F401 - its scans are the real digits
    except ImportError as error:
        raise ImportError(f'The demo needs {error.name}: pip install "transferable-vp[demo]".') from error
    return import_bundled("zoo/world.py")


def make_panels(world: ModuleType, n_train: int, n_test: int, quick: bool) -> list[Panel]:
    """Colours under an unseen light, and real handwritten digits."""
    colors = Task(question_column="question", candidates=world.CANDIDATES["color"], caption="something {answer}")
    digits = Task(
        question_column="question", candidates=world.CANDIDATES["character"], caption="a picture of {answer}"
    )
    scans = np.random.default_rng(0).permutation(1797)
    panels = [
        Panel("colours under a green light", "transfer", colors,
              world.color_examples(n_train, seed=1), world.color_examples(n_test, seed=3)),
        Panel("handwritten digits among 36 characters", "transfer_digits", digits,
              world.digit_examples(scans[:n_train]), world.digit_examples(scans[-n_test:])),
    ]  # fmt: skip
    return panels[:1] if quick else panels


class TrainingBar(TrainerCallback):
    """One line per training, where the Trainer's own bar prints a dictionary at the end."""

    def __init__(self, description: str, disable: bool) -> None:
        self.bar = tqdm(desc=description, unit="step", disable=disable)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins at 0, of all steps."""
        self.bar.reset(total=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step further."""
        self.bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves the line as it is."""
        self.bar.close()


def learn(
    panel: Panel, source: Surrogate, method: str, seed: int, steps: int, progress: bool
) -> tuple[TransferableVisualPrompt, CardFacts]:
    """Learns one prompt, `"VP"` by `PLAIN` or `"prompt"` by `RECIPE`. Also gives what its card is to say."""
    prompt = TransferableVisualPrompt(TransferableVisualPromptConfig(canvas_size=64, border_size=8))
    with TemporaryDirectory() as folder:
        args = TransferableVisualPromptTrainingArguments(
            folder, max_steps=steps, seed=seed, save_strategy="no", logging_steps=10, disable_tqdm=True,
            use_cpu=True, **(PLAIN if method == "VP" else RECIPE),
        )  # fmt: skip
        trainer = TransferableVisualPromptTrainer(
            prompt, args, source, train_dataset=panel.train, task=panel.task,
            callbacks=[TrainingBar(f"learning {method} on {source.name}, seed {seed}", disable=not progress)],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return prompt, facts_of_trainer(trainer)


def run_demo(
    output_dir: str | Path,
    source: str = "llava",
    seeds: Sequence[int] = (0, 1),
    quick: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    r"""
    Runs the demo and writes `prompt/` and `report/` under `output_dir`.

    Args:
        output_dir (`str` or `Path`): Where results go.
        source (`str`, *optional*, defaults to `"llava"`): Member of the zoo to learn on.
        seeds (`Sequence[int]`, *optional*, defaults to `(0, 1)`): Seeds of the training; columns are means over them.
        quick (`bool`, *optional*, defaults to `False`): One panel, few steps and images: to see that it runs.
        progress (`bool`, *optional*, defaults to `True`): Whether to show progress bars.

    Returns:
        `list[dict]`: The transfer reports, one per panel.

    Raises:
        ValueError: If `source` is no member of the zoo.
        ImportError: If matplotlib or scikit-learn is missing.
    """
    if source not in MEMBERS:
        raise ValueError(f"`source` is {source!r}; the zoo's members are {', '.join(map(repr, MEMBERS))}.")
    started, output = time.time(), Path(output_dir)
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    world = load_world()
    steps, n_train, n_test = (10, 160, 60) if quick else (60, 800, 300)
    print(f"Learning on {source}, offline, from {n_train} images; measuring on {n_test} others.", flush=True)
    models = {name: Surrogate.from_pretrained(str(bundled(f"zoo/{name}"))) for name in MEMBERS}
    reports: list[dict[str, Any]] = []
    pictures: dict[str, list[tuple[str, Path]]] = {"chart": [], "prompt": [], "examples": []}
    for panel in make_panels(world, n_train, n_test, quick):
        print(f"\n{panel.title}", flush=True)
        found: dict[str, list[TransferableVisualPrompt]] = {"VP": [], "prompt": []}
        facts: list[CardFacts] = []
        for seed in seeds:
            for method, prompts in found.items():
                prompt, known = learn(panel, models[source], method, seed, steps, progress)
                prompts.append(prompt)
                facts += [known] if method == "prompt" else []
        settings = {**RECIPE, "block_size": 8, "steps": steps, "n_train": n_train, "canvas_size": 64, "border_size": 8}
        report = transfer_report(
            list(models.values()), panel.test, panel.task, found["prompt"], source=[source], title=panel.title,
            baselines=found["VP"], seeds=seeds, settings=settings, progress=progress,
        )  # fmt: skip
        folder = output / ("prompt" if panel.file == "transfer" else "prompt_digits")
        found["prompt"][0].save_pretrained(folder)
        write_card(facts[0], folder, reports=[report])
        write_json(report, output / "report" / f"{panel.file}.json")
        held_out = models[MEMBERS[1] if source == MEMBERS[0] else MEMBERS[0]]
        draw(panel, report, found["prompt"][0], held_out, output / "report", pictures)
        reports.append(report)
        print("\n" + format_table(report) + "\n", flush=True)
    command = shlex.join(["transferable-vp", "demo", "--source", source, "--seeds", *map(str, seeds),
                          *(["--quick"] if quick else [])])  # fmt: skip
    write_html(reports, pictures, output / "report" / "report.html", title="One prompt, four models", command=command,
               versions=versions())  # fmt: skip
    print(
        f"Prompt: {output / 'prompt'}   Report: {output / 'report' / 'report.html'}   ({time.time() - started:.0f} s)"
    )
    return reports


def draw(
    panel: Panel,
    report: dict[str, Any],
    prompt: TransferableVisualPrompt,
    model: Surrogate,
    folder: Path,
    pictures: dict[str, list[tuple[str, Path]]],
) -> None:
    """The pictures of one panel: the transfer chart, the prompt, and the first test images before and after."""
    rows = panel.test[:5]
    before = evaluate(model, rows, panel.task, prompt, prompted=False, progress=False)
    after = evaluate(model, rows, panel.task, prompt, progress=False)
    examples = [
        {
            "image": row["image"],
            "canvas_before": prompt.apply(row["image"], prompted=False),
            "canvas_after": prompt.apply(row["image"]),
            "caption": row["question"],
            "before": before.answers[i],
            "after": after.answers[i],
            "answer": row["answer"],
        }
        for i, row in enumerate(rows)
    ]
    paths = {kind: folder / f"{panel.file}_{kind}.png" for kind in pictures}
    save_transfer_chart(report, paths["chart"])
    save_prompt_picture(prompt.to_image(), paths["prompt"])
    save_examples_picture(examples, paths["examples"])
    pictures["chart"].append((panel.title, paths["chart"]))
    pictures["prompt"].append((panel.title, paths["prompt"]))
    pictures["examples"].append(
        (f"{panel.title}: the first five test images, answered by {model.name}", paths["examples"])
    )


def versions() -> dict[str, str]:
    """Versions of Python, this package and those that decide its numbers."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("transferable-vp", "torch", "torchvision", "transformers", "huggingface_hub", "accelerate", "peft",
                 "datasets", "evaluate", "numpy", "pillow"):  # fmt: skip
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
