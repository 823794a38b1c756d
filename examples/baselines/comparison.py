"""All methods on the same rows: trained where they train, measured on every model that they can be given to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import lora
import numpy as np
import text_prompt
from rows import Rows, training_order
from tqdm.auto import tqdm
from visual_prompt import VISUAL_PROMPTS, learn_visual_prompt

from transferable_vp import (
    Evaluation,
    Surrogate,
    Task,
    TaskSemantics,
    TransferableVisualPrompt,
    TransferableVisualPromptConfig,
    evaluate,
    random_prompt,
)
from transferable_vp.report import paired_bootstrap


# In the order of the table. The full image is what all others are compared with.
METHODS = {
    "full_image": "full image",
    "zero_border": "zero border",
    "random_border": "random border",
    "text_prompt": text_prompt.LABEL,
    **{method: recipe.label for method, recipe in VISUAL_PROMPTS.items()},
    "lora": lora.LABEL,
}
# The others come out the same for every seed.
SEEDED = ("random_border", *VISUAL_PROMPTS, "lora")

# One per model, the source first; `None` where a method cannot be given to a model.
Results = list[Evaluation | None]


class Settings(NamedTuple):
    r"""
    What every training shares, and the lists that a baseline chooses from.

    Attributes:
        geometry ([`TransferableVisualPromptConfig`]): Canvas and border of all that have a border.
        max_steps, batch_size (`int`): Steps of every training, and rows per step.
        seeds (`Sequence[int]`): Everything that a seed plays a part in is run once with each.
        learning_rate, fca_weight, tse_weight (`float`): TVP's, see `VISUAL_PROMPTS` for the others.
        lora_rank (`int`): Rank of LoRA's matrices.
        lora_learning_rates (`Sequence[float]`): What LoRA chooses its learning rate from.
        text_prefixes (`Sequence[str]`): What the text prompt is chosen from.
    """

    geometry: TransferableVisualPromptConfig
    max_steps: int
    batch_size: int
    seeds: Sequence[int]
    learning_rate: float
    fca_weight: float
    tse_weight: float
    lora_rank: int
    lora_learning_rates: Sequence[float]
    text_prefixes: Sequence[str]


class Comparison:
    r"""
    Runs methods one after the other and keeps what they chose.

    Args:
        settings ([`Settings`]): What every training shares.
        rows ([`Rows`]): To learn from, to choose with, to be measured on.
        source ([`Surrogate`]): The model that is learned on.
        targets (`Sequence[Surrogate]`): The models that are only measured.
        semantics ([`TaskSemantics`], *optional*): The CLIP behind TSE; only TSE and TVP need it.
        progress (`bool`, *optional*, defaults to `True`): Whether to show progress bars.
    """

    def __init__(
        self,
        settings: Settings,
        rows: Rows,
        source: Surrogate,
        targets: Sequence[Surrogate] = (),
        semantics: TaskSemantics | None = None,
        progress: bool = True,
    ) -> None:
        self.settings, self.rows, self.semantics, self.progress = settings, rows, semantics, progress
        self.source, self.models = source, [source, *targets]
        self.choices: dict[str, dict[str, Any]] = {}
        self.train_seconds: dict[str, list[float]] = {}

    def run(self, methods: Sequence[str]) -> dict[str, Any]:
        r"""
        Measures the full image and `methods`, with every seed where a seed plays a part.

        Returns:
            `dict`: `source`, `seeds`, `n`, `models` (in the order of the columns), `choices` and `methods`, each with a
            list of results in the order of `models`: `runs` (accuracy of each seed), `mean`, `std`, and `delta` to the
            full image with `delta_ci95`, paired by example.
        """
        seeds = self.settings.seeds
        jobs = [
            (method, seed)
            for method in METHODS
            if method in methods or method == "full_image"
            for seed in (seeds if method in SEEDED else seeds[:1])
        ]
        found: dict[str, list[Results]] = {}
        with tqdm(jobs, desc="baselines", unit="run", disable=not self.progress) as bar:
            for method, seed in bar:
                bar.set_postfix_str(f"{METHODS[method]}, seed {seed}")
                found.setdefault(method, []).append(self.measure(method, seed))
        reference = found["full_image"][0]
        return {
            "task": self.rows.title,
            "source": self.source.name,
            "seeds": list(seeds),
            "n": len(self.rows.test),
            "models": [
                {"name": model.name, "family": model.config.model_type, "is_source": model is self.source}
                for model in self.models
            ],
            "methods": [
                {
                    "method": method,
                    "label": METHODS[method],
                    "results": [summary(part, reference[i]) for i, part in enumerate(zip(*runs, strict=True))],
                    "train_seconds": self.train_seconds.get(method, []),
                }
                for method, runs in found.items()
            ],
            "choices": self.choices,
            "border_parameters": 3 * int(TransferableVisualPrompt(self.settings.geometry).trainable_mask.sum()),
        }

    def measure(self, method: str, seed: int) -> Results:
        """Trains a method where there is something to train, and reads the test rows once for every model."""
        blank = TransferableVisualPrompt(self.settings.geometry)
        if method == "full_image":
            return self._evaluate(method)
        if method == "zero_border":
            return self._evaluate(method, prompt=blank, prompted=False)
        if method == "random_border":
            return self._evaluate(method, prompt=random_prompt(blank, seed))
        if method == "text_prompt":
            return self._evaluate(method, task=text_prompt.PrefixedTask.of(self.rows.task, self._prefix()))
        if method == "lora":
            return self._measure_lora(seed)
        return self._evaluate(method, prompt=self._learn(method, seed))

    def _evaluate(self, method: str, task: Task | None = None, **prompt: Any) -> Results:
        return [
            evaluate(model, self.rows.test, task or self.rows.task, progress=self.progress,
                     description=f"{METHODS[method]}, {model.name}", **prompt)
            for model in self.models
        ]  # fmt: skip

    def _order(self, seed: int) -> Any:
        return training_order(self.rows.train, self.settings.max_steps, self.settings.batch_size, seed)

    def _learn(self, method: str, seed: int) -> TransferableVisualPrompt:
        started, settings = time.perf_counter(), self.settings
        prompt = learn_visual_prompt(
            method, self.source, self._order(seed), self.rows.task, settings.geometry, self.semantics, seed,
            settings.batch_size, self.progress, learning_rate=settings.learning_rate, fca_weight=settings.fca_weight,
            tse_weight=settings.tse_weight,
        )  # fmt: skip
        self.train_seconds.setdefault(method, []).append(time.perf_counter() - started)
        return prompt

    def _prefix(self) -> str:
        prefix, found = text_prompt.choose_prefix(
            self.source, self.rows.validation, self.rows.task, self.settings.text_prefixes, self.progress
        )
        self.choices["text_prompt"] = {"prefix": prefix, "validation": found}
        return prefix

    def _measure_lora(self, seed: int) -> Results:
        settings, task, order = self.settings, self.rows.task, self._order(seed)
        shared: dict[str, Any] = {"seed": seed, "batch_size": settings.batch_size, "progress": self.progress}
        if "lora" not in self.choices:
            rate, found = lora.choose_learning_rate(
                self.source, order, self.rows.validation, task, learning_rates=settings.lora_learning_rates,
                rank=settings.lora_rank, **shared,
            )  # fmt: skip
            self.choices["lora"] = {"learning_rate": rate, "validation": {f"{r:g}": found[r] for r in found}}
        with lora.adapter(self.source, seed, settings.lora_rank) as adapted:
            self.choices["lora"]["parameters"] = lora.trainable_parameters(adapted)
            started = time.perf_counter()
            lora.learn_lora(adapted, order, task, learning_rate=self.choices["lora"]["learning_rate"], **shared)
            self.train_seconds.setdefault("lora", []).append(time.perf_counter() - started)
            result = evaluate(adapted, self.rows.test, task, progress=self.progress, description=lora.LABEL)
        return [result, *(None for _ in self.models[1:])]


def summary(runs: Sequence[Evaluation | None], reference: Evaluation | None) -> dict[str, Any] | None:
    """One method on one model: accuracy over seeds, and its difference to the full image on the same examples."""
    values = [run.values for run in runs if run is not None]
    if not values or reference is None:
        return None
    accuracies = [float(v.mean()) for v in values]
    return {
        "runs": accuracies,
        "mean": float(np.mean(accuracies)),
        # Of a sample: two or three seeds stand for all that might have been drawn.
        "std": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        "delta": float(np.mean(accuracies) - reference.mean),
        "delta_ci95": list(paired_bootstrap(reference.values, np.stack(values))),
    }
