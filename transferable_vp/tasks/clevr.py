"""CLEVR: how many objects there are in a rendered scene, three to ten."""

from __future__ import annotations

from ..data import Task
from . import PaperTask


WORDS = {"three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}

TASK = PaperTask(
    name="clevr",
    title="CLEVR counting",
    dataset="clip-benchmark/wds_vtab-clevr_count_all",
    task=Task(
        image_column="webp",
        answer_column="cls",
        question="How many objects are there in this image? Answer with a single number.",
        candidates=tuple(WORDS.values()),
        # VTAB's label 0 is three objects.
        integers_are_names=False,
        caption="this is a photo of {answer} objects",
        # A mirrored scene has as many objects, and the question names no side.
        flip=True,
    ),
    metric="counting",
    train_split="train",
    test_split="test",
    note="Question and answers are those of the released code, which reads CLEVR's own scene files (70,000 and 15,000); "
    "this is the split of VTAB (51.6k and 15k). Columns, sizes and class names seen on the Hub: label 0 is three "
    "objects. The caption is ours.",
    aliases=WORDS,
)
