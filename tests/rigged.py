"""Rigged answers, of which every number is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from transferable_vp.data import Task
from transferable_vp.surrogate import Surrogate


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
TASK = Task(candidates=list(COLOURS), question="Which colour?")
# The colour that is shown, and the one that is said to be right: five of six agree.
SHOWN = ["red", "green", "blue", "blue", "red", "green"]
RIGHT = ["red", "green", "blue", "red", "red", "green"]


class Rig:
    """Stands in for `score_candidates`: it says the colour in the middle, or red where the corner is black."""

    def __init__(self) -> None:
        self.images: list[list[Image.Image]] = []
        self.questions: list[Sequence[str]] = []
        self.canvases: list[torch.Tensor | None] = []

    def __call__(
        self,
        surrogate: Surrogate,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        candidates: Sequence[Sequence[str]],
        canvas: torch.Tensor | None = None,
        length: str = "mean",
    ) -> list[torch.Tensor]:
        self.images.append(list(images))
        self.questions.append(questions)
        self.canvases.append(canvas)
        scores = []
        for image, names in zip(images, candidates, strict=True):
            middle = image.getpixel((image.width // 2, image.height // 2))
            seen = COLOURS["red"] if image.getpixel((0, 0)) == (0, 0, 0) else middle
            scores.append(torch.tensor([0.0 if COLOURS[name] == seen else -1.0 for name in names]))
        return scores
