"""Where a prompt acts: what a model's right answer loses when one block of the prompt is blanked."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from tqdm.auto import tqdm

from .data import Example, Task, undecoded
from .evaluation import Evaluation, evaluate
from .images import to_pil
from .modeling import TransferableVisualPrompt
from .surrogate import Surrogate


if TYPE_CHECKING:
    from .endpoints import Endpoint

Measure = Literal["log_prob", "accuracy"]
# Top, left, bottom and right in pixels of the prompt; the last two are exclusive, as in a slice.
Block = tuple[int, int, int, int]


@dataclass
class Saliency:
    r"""
    What each block of a prompt does for one model.

    Attributes:
        blocks (`list[tuple[int, int, int, int]]`):
            `(top, left, bottom, right)` of every block, in pixels of the prompt, bottom and right exclusive.
        effects (`np.ndarray`): float64 `(number of blocks,)`: what the prompt has over the prompt without that block.
            Positive where the block helps.
        whole (`float`): The same for all blocks at once: what the prompt has over the zero border. Effects need not add
            up to it, as blocks can stand in for one another.
        measure (`str`): `"log_prob"` (effects in nats) or `"accuracy"` (in percentage points).
        size (`int`): Height and width of the prompt.
        n (`int`): Number of images that effects are means over.
        model (`str`): Name of the model.
    """

    blocks: list[Block]
    effects: np.ndarray
    whole: float
    measure: Measure
    size: int
    n: int
    model: str

    @property
    def map(self) -> np.ndarray:
        """`np.ndarray`: float64 `(size, size)`, the effect at every pixel; NaN where nothing was learned."""
        values = np.full((self.size, self.size), np.nan)
        for (top, left, bottom, right), effect in zip(self.blocks, self.effects, strict=True):
            values[top:bottom, left:right] = effect
        return values


def border_saliency(
    model: Surrogate | Endpoint,
    dataset: Any,
    task: Task,
    prompt: TransferableVisualPrompt,
    *,
    block_size: int | None = None,
    measure: Measure = "log_prob",
    batch_size: int = 32,
    progress: bool = True,
) -> Saliency:
    r"""
    Where a prompt acts on a model, by occlusion: one block of it after the other is made black, and what the right
    answers lose is what the block did.

    Nothing is asked of the model but answers to 8-bit images: no gradient, no approximation. It costs one evaluation of
    the dataset per block and two more, so a few dozen rows are a good number; images of all blocks share the batches.

    Args:
        model ([`Surrogate`] or [`Endpoint`]): The model, which may be one that the prompt was not learned on.
        dataset (`datasets.Dataset` or a sequence of `dict`): The rows, all of which are held in memory.
        task ([`Task`]): How to read them.
        prompt ([`TransferableVisualPrompt`]): The prompt, of displayable values. It is not changed.
        block_size (`int`, *optional*):
            About how high and wide blocks are, in pixels of the prompt. Blocks never reach over the edge of border or
            content. Defaults to the width of the border, but no less than an eighth of the prompt.
        measure (`str`, *optional*, defaults to `"log_prob"`):
            `"log_prob"`: the log-probability of the right answer, a sum over its tokens, in nats; for a task without
            candidates its mean over tokens. `"accuracy"`: the share of right answers, in points; coarser.
        batch_size (`int`, *optional*, defaults to 32): Images per forward pass.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        [`Saliency`]: Made into a picture by [`~transferable_vp.pictures.save_saliency`].

    Raises:
        ValueError: If the prompt is unbounded, `block_size` is less than 1, `measure` is neither, there are no rows, or
            the model gives no log-probability for a right answer.
    """
    if prompt.config.value_range == "unbounded":
        raise ValueError(
            "The prompt is unbounded: blocks are blanked in 8-bit images, which cannot carry its values. Load it with "
            "`value_range='displayable'`."
        )
    if measure not in get_args(Measure):
        raise ValueError(f"`measure` is {measure!r}; it must be one of {', '.join(map(repr, get_args(Measure)))}.")
    if measure == "accuracy" and task.candidates is None:
        raise ValueError("Without candidates there is no accuracy: use `measure='log_prob'`, or give the task some.")
    if block_size is None:
        block_size = max(prompt.config.border_size, prompt.config.canvas_size // 8)
    if block_size < 1:
        raise ValueError(f"`block_size` is {block_size}; a block has at least one pixel: give 1 or more.")
    examples = [task.example(row, index) for index, row in enumerate(undecoded(dataset))]
    if not examples:
        raise ValueError("There are no rows to show the prompt on: give at least one.")
    blocks, size = _blocks(prompt, block_size), prompt.config.canvas_size
    masks: list[Block | None] = [None, (0, 0, size, size), *blocks]
    plain = Task(question_column="question", answer_column="answer", candidates=task.candidates)
    rows = tqdm(
        _blanked(prompt, examples, masks),
        total=len(masks) * len(examples),
        desc=f"blanking blocks for {model.name}",
        unit="img",
        disable=not progress,
    )
    result = evaluate(model, rows, plain, batch_size=batch_size, progress=False, length="sum")
    means = _measured(result, plain, measure).reshape(len(masks), len(examples)).mean(axis=1)
    lost = means[0] - means[1:]
    return Saliency(blocks, lost[1:], float(lost[0]), measure, size, len(examples), model.name)


def _blocks(prompt: TransferableVisualPrompt, block_size: int) -> list[Block]:
    """Blocks that lie wholly in what is learned: cut where border and content end, and evenly in between."""
    size, border, content = prompt.config.canvas_size, prompt.config.border_size, prompt.config.content_size
    start = (size - content) // 2
    edges = [0]
    for low, high in pairwise(sorted({0, border, start, start + content, size - border, size})):
        parts = max(1, round((high - low) / block_size))
        edges += [low + round((high - low) * (i + 1) / parts) for i in range(parts)]
    learned = prompt.trainable_mask[0]
    return [
        (top, left, bottom, right)
        for top, bottom in pairwise(edges)
        for left, right in pairwise(edges)
        if learned[top, left]
    ]


def _blanked(
    prompt: TransferableVisualPrompt, examples: list[Example], masks: list[Block | None]
) -> Iterator[dict[str, Any]]:
    """Every example with each of the masks made black, one mask after the other, as rows that are made when asked for."""
    scratch = copy.deepcopy(prompt)
    fitted = [prompt.fitted(example.image)[0] for example in examples]
    for mask in masks:
        delta = prompt.delta.detach().clone()
        if mask is not None:
            top, left, bottom, right = mask
            delta[:, top:bottom, left:right] = 0
        for picture, example in zip(fitted, examples, strict=True):
            with torch.no_grad():
                scratch.delta.copy_(delta)
                canvas = scratch([picture])[0]
            yield {"image": to_pil(canvas), "question": example.question, "answer": example.answer}


def _measured(result: Evaluation, task: Task, measure: Measure) -> np.ndarray:
    if measure == "accuracy":
        return 100 * result.values
    if task.candidates is None:
        return -result.values
    names = list(task.candidates)
    values = np.array([row[names.index(answer)] for row, answer in zip(result.scores, result.references, strict=True)])
    if missing := sum(not math.isfinite(value) for value in values):
        raise ValueError(
            f"The model gave no log-probability for {missing} of {len(values)} right answers, as APIs name only the "
            "likeliest: use `measure='accuracy'`."
        )
    return values
