"""Rigged answers, of which every number is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from transferable_vp import TransferableVisualPrompt, TransferableVisualPromptConfig
from transferable_vp.data import Task
from transferable_vp.surrogate import Surrogate


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
TASK = Task(candidates=list(COLOURS), question="Which colour?")
# The colour that is shown, and the one that is said to be right: five of six agree.
SHOWN = ["red", "green", "blue", "blue", "red", "green"]
RIGHT = ["red", "green", "blue", "red", "red", "green"]


def grey_prompt() -> TransferableVisualPrompt:
    """Grey all around."""
    prompt = TransferableVisualPrompt(TransferableVisualPromptConfig(canvas_size=40, border_size=8))
    with torch.no_grad():
        prompt.delta.fill_(0.5)
    return prompt.project_()


def coloured_rows() -> list[dict[str, Any]]:
    """A picture of one colour for each of `SHOWN`, with the answers of `RIGHT`."""
    return [
        {"image": Image.new("RGB", (50, 40), COLOURS[shown]), "answer": right}
        for shown, right in zip(SHOWN, RIGHT, strict=True)
    ]


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
