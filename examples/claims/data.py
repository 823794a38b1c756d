"""The tasks of the claims: what is learned from, what chooses, and what is measured on, each read by name.

Nothing here is downloaded. Three tasks ask for a colour under a light that no training picture was taken under; the zoo's
world has a cue for it, the mat around a picture. `ink` has real handwriting: scikit-learn's copy of the UCI scans. Its
ink, ground and light are drawn. `digits` has the scans as they are, and asks what they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from transferable_vp import Task
from transferable_vp.corruptions import corrupted
from transferable_vp.demo import load_world


SPLITS = ("train", "validation", "test")
# Seeds of drawn pictures. The demo's test pictures are seed 3.
SEEDS = {"train": 1, "validation": 2, "test": 4}
# Shares of the permuted scans. The scans carry no writer, so one writer may be in several parts.
SCANS = 1797
SCAN_SPANS = {"train": (0, 800), "validation": (800, 1100), "test": (1100, 1797)}


class Information(NamedTuple):
    r"""
    What a page says about a task.

    Attributes:
        title (`str`): Its name in headings.
        light (`str`): The light that pictures are taken under; empty where there is none.
        real (`str`): What of its pictures is not drawn by the zoo's world.
        caption (`str`): For TSE, with `{answer}` in it.
        mirrors (`bool`): Whether a mirrored picture has the answer that it had.
    """

    title: str
    light: str
    real: str
    caption: str
    mirrors: bool


TASKS = {
    "colors": Information("colours of drawn objects, green light", "green", "", "something {answer}", True),
    "ink": Information("colours of ink, green light", "green", "the handwriting", "something {answer}", True),
    "water": Information("colours of drawn objects, blue light", "water", "", "something {answer}", True),
    "digits": Information(
        "handwritten digits among 36 characters", "", "the pictures", "a picture of {answer}", False
    ),
}
REAL_TASK = "ink"
# One of noise, one of light, one of coding; at the middle strength.
CORRUPTIONS = ("gaussian_noise", "contrast", "jpeg_compression")
SEVERITY = 3


def corrupted_name(task: str, corruption: str) -> str:
    """Under which the corrupted pictures of a task are read: `"ink+contrast"`."""
    return f"{task}+{corruption}"


def make_task(name: str) -> Task:
    """How to read the rows of a task, as `"ink"` or `"ink+contrast"`."""
    name, _, corruption = name.partition("+")
    kind = "character" if name == "digits" else "color"
    task = Task(question_column="question", candidates=_world().CANDIDATES[kind], caption=TASKS[name].caption)
    return corrupted(task, corruption, SEVERITY) if corruption else task


def load_rows(name: str, split: str, n: int) -> tuple[dict[str, Any], ...]:
    r"""
    The first rows of one part of a task. Parts share no picture and no scan.

    Args:
        name (`str`): Of the task, as `"ink"`; of `"ink+contrast"` the rows are those of `"ink"`, see `make_task`.
        split (`str`): `"train"` (to learn from), `"validation"` (to choose on) or `"test"` (to be measured on).
        n (`int`): Number of rows.

    Returns:
        `tuple` of `dict`: `image`, `question`, `answer`.

    Raises:
        ValueError: If there is no such split, or it has fewer rows.
    """
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; expected one of {', '.join(SPLITS)}.")
    return _rows(name.partition("+")[0], split, n)


@cache
def _rows(name: str, split: str, n: int) -> tuple[dict[str, Any], ...]:
    if name in ("colors", "water"):
        # Pictures of a light of its own: other seeds, so that no object of one task is in the other's training part.
        seed = SEEDS[split] + (10 if name == "water" else 0)
        return tuple(_world().color_examples(n, seed=seed, light=TASKS[name].light))
    start, stop = SCAN_SPANS[split]
    if n > stop - start:
        raise ValueError(f"{n} rows of {name!r} were asked for, but its {split} part has {stop - start} scans.")
    scans = np.random.default_rng(0xC1A1).permutation(SCANS)[start : start + n]
    return tuple(_world().digit_examples(scans) if name == "digits" else ink_examples(scans, SEEDS[split]))


def ink_examples(scans: Sequence[int] | np.ndarray, seed: int, light: str = "green") -> list[dict[str, Any]]:
    r"""
    Real handwriting in an ink of one of ten colours, under a light: "What color is it?".

    The strokes are scikit-learn's scans of handwritten digits (8 x 8 pixels), enlarged; they say how much of each pixel
    is ink. Ink, ground and light are drawn, in the world's paints and lights: the ground is neutral, dark or grey.

    Args:
        scans (sequence of `int`): Which scans, in the order wanted.
        seed (`int`): Of ink, ground and noise.
        light (`str`, *optional*, defaults to `"green"`): One of the world's lights.

    Returns:
        `list` of `dict`: `image` (RGB, 48 x 48), `question`, `answer`.
    """
    from sklearn.datasets import load_digits

    world = _world()
    strokes, colors = load_digits(return_X_y=True)[0], list(world.COLORS)
    rng = np.random.default_rng([seed, 0x1242])
    examples = []
    for index, scan in enumerate(scans):
        color = colors[index % len(colors)]
        cover = Image.fromarray((np.pad(strokes[scan].reshape(8, 8), 1) / 16 * 255).round().astype(np.uint8))
        cover = cover.resize((world.CONTENT, world.CONTENT), Image.Resampling.BICUBIC)
        share = np.asarray(cover, np.float32)[..., None] / 255
        paint = np.clip(np.asarray(world.COLORS[color], np.float32) + rng.uniform(-0.05, 0.05, 3), 0, 1)
        dark, grey = rng.uniform(0, 0.1), rng.uniform(0.3, 0.9)
        # Ink of its ground's own shade cannot be seen, and grey ink hardly on grey ground.
        seen = rng.random() < 0.5 and abs(paint - grey).max() > 0.35
        picture = (paint * share + (grey if seen else dark) * (1 - share)) * np.asarray(
            world.LIGHTS[light], np.float32
        )
        picture = np.clip(picture + rng.normal(0, rng.uniform(0, 0.04), picture.shape), 0, 1)
        image = Image.fromarray((picture * 255).round().astype(np.uint8))
        examples.append({"image": image, "question": world.QUESTIONS["color"], "answer": color})
    return examples


def shuffled(rows: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The same pictures with the answers of others: a control that has nothing to learn but how often answers come."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return [row | {"answer": rows[other]["answer"]} for row, other in zip(rows, order, strict=True)]


@cache
def _world() -> Any:
    return load_world()


def light_of(name: str) -> tuple[float, float, float]:
    """RGB multipliers of a light of the world."""
    return _world().LIGHTS[name]
