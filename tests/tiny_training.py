"""Rows, frozen models and a trainer, small enough that a training step takes some hundredths of a second."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tiny
import tiny_clip
import torch

from transferable_vp import (
    Evaluation,
    Surrogate,
    Task,
    TaskSemantics,
    TransferableVisualPrompt,
    TransferableVisualPromptConfig,
    TransferableVisualPromptTrainer,
    TransferableVisualPromptTrainingArguments,
)
from transferable_vp import trainer as trainer_module


CANVAS, BORDER = 32, 6
# Two tokens each, for both surrogates: a mean over the tokens of a batch is then a mean over its rows.
NAMES = ["one", "cat", "six"]
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pictures of noise, each with one of three labels."""
    return [{"image": tiny.picture(24, 20, seed=seed + i), "label": i % len(NAMES)} for i in range(count)]


@functools.cache
def dataset(count: int, seed: int = 0) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows(count, seed), features=FEATURES)


@functools.cache
def surrogate(family: str) -> Surrogate:
    """The same for all tests, as nothing may change it."""
    return Surrogate(*tiny.build(family), name=family)


@functools.cache
def semantics() -> TaskSemantics:
    return TaskSemantics(*tiny_clip.build_clip())


def new_prompt(**config: Any) -> TransferableVisualPrompt:
    config = {"canvas_size": CANVAS, "border_size": BORDER} | config
    return TransferableVisualPrompt(TransferableVisualPromptConfig(**config))


def make_args(folder: Path | str, **more: Any) -> TransferableVisualPromptTrainingArguments:
    """Three steps of four rows, every one logged, nothing saved."""
    defaults: dict[str, Any] = {
        "max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no",
        "disable_tqdm": True, "use_cpu": True, "fca_weight": 0.005, "tse_weight": 0.0, "block_size": 1,
    }  # fmt: skip
    return TransferableVisualPromptTrainingArguments(str(folder), **(defaults | more))


def make_trainer(folder: Path | str, **more: Any) -> TransferableVisualPromptTrainer:
    """A trainer on the tiny LLaVA. What is an argument of the trainer goes there, all else to the training arguments."""
    own = ("model", "surrogates", "train_dataset", "eval_dataset", "task", "semantics", "objectives", "targets",
           "callbacks", "optimizers", "processing_class")  # fmt: skip
    given = {key: more.pop(key) for key in own if key in more}
    defaults = {"surrogates": surrogate("llava"), "train_dataset": dataset(12)}
    prompt = given.pop("model", None)
    return TransferableVisualPromptTrainer(
        model=new_prompt() if prompt is None else prompt, args=make_args(folder, **more), **(defaults | given)
    )


def losses(trainer: TransferableVisualPromptTrainer) -> list[dict[str, Any]]:
    """The log's entries about training steps."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def delta(trainer: TransferableVisualPromptTrainer) -> torch.Tensor:
    return trainer.model.delta.detach().clone()


def rig(monkeypatch: pytest.MonkeyPatch, **rounds: list[float]) -> None:
    """Makes the measured accuracies of each model, one evaluation after the other, those that are given."""
    left = {name: iter(values) for name, values in rounds.items()}

    def rigged(model: Surrogate, *args: Any, **kwargs: Any) -> Evaluation:
        return Evaluation(np.full(4, next(left[model.name])))

    monkeypatch.setattr(trainer_module, "evaluate", rigged)


TASK = Task.infer(dataset(12))
