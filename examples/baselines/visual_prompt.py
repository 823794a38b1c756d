"""The baselines that learn pixels, all with the same trainer: what is minimised, and by which rule."""

from __future__ import annotations

from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from transformers import PrinterCallback

from transferable_vp import (
    Surrogate,
    Task,
    TaskSemantics,
    TransferableVisualPrompt,
    TransferableVisualPromptConfig,
    TransferableVisualPromptTrainer,
    TransferableVisualPromptTrainingArguments,
)
from transferable_vp.demo import TrainingBar
from transferable_vp.training_args import RECIPES


class Recipe(NamedTuple):
    r"""
    How a learned prompt differs from the others.

    Attributes:
        label (`str`): Its name in tables.
        overrides (`dict`): Training arguments that are not TVP's.
        mirrors (`bool`): Whether images are mirrored at random, where the task allows it.
    """

    label: str
    overrides: dict[str, Any]
    mirrors: bool = False


VISUAL_PROMPTS = {
    "vp": Recipe("VP", {"fca_weight": 0.0, "tse_weight": 0.0}),
    # arXiv 2212.10556 as its code and, after it, TVP's run it: the gradient over its norm, and mirrored images. The
    # learning rate is that rule's own, since a step of it is measured in another unit.
    "evp": Recipe(
        "EVP", {"fca_weight": 0.0, "tse_weight": 0.0, "update_rule": "paper", "learning_rate": None}, mirrors=True
    ),
    "fca_only": Recipe("FCA only", {"tse_weight": 0.0}),
    "tse_only": Recipe("TSE only", {"fca_weight": 0.0}),
    "tvp": Recipe("TVP", {}),
    "transfer": Recipe("transfer recipe", RECIPES["transfer"]),
}


def learn_visual_prompt(
    method: str,
    source: Surrogate,
    rows: Any,
    task: Task,
    geometry: TransferableVisualPromptConfig,
    semantics: TaskSemantics | None,
    seed: int,
    batch_size: int,
    progress: bool = True,
    **weights: Any,
) -> TransferableVisualPrompt:
    r"""
    Learns one prompt on the source.

    Args:
        method (`str`): One of `VISUAL_PROMPTS`.
        source ([`Surrogate`]): The model to learn on.
        rows (sequence of `dict`): From `training_order`; each is seen once, in this order.
        task ([`Task`]): How to read them.
        geometry ([`TransferableVisualPromptConfig`]): Canvas and border.
        semantics ([`TaskSemantics`], *optional*): The CLIP behind TSE; `None` does for methods without TSE.
        seed (`int`): Of whatever else is random.
        batch_size (`int`): Rows per step.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.
        weights: TVP's training arguments: `learning_rate`, `fca_weight`, `tse_weight`.
    """
    recipe = VISUAL_PROMPTS[method]
    with TemporaryDirectory() as folder:
        args = TransferableVisualPromptTrainingArguments(
            folder, max_steps=len(rows) // batch_size, per_device_train_batch_size=batch_size, seed=seed,
            train_sampling_strategy="sequential", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            use_cpu=source.device.type == "cpu", **({"block_size": 1} | weights | recipe.overrides),
        )  # fmt: skip
        trainer = TransferableVisualPromptTrainer(
            TransferableVisualPrompt(geometry), args, source, train_dataset=rows,
            task=replace(task, flip=task.flip and recipe.mirrors), semantics=semantics if args.tse_weight else None,
            callbacks=[TrainingBar(f"learning {recipe.label} on {source.name}, seed {seed}", disable=not progress)],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.model
