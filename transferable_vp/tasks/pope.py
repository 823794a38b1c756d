"""POPE: whether an object is in an image, asked about objects that often stand with those that are (adversarial)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..data import Task
from . import PaperTask
from ._columns import column_names


def questions_of(kind: str) -> Callable[[Any], Any]:
    """Gives what keeps the questions of one kind, and reads the columns of the original question files."""

    def prepare(dataset: Any) -> Any:
        there = column_names(dataset)
        if "question" not in there and {"text", "label"} <= set(there):
            dataset = dataset.rename_columns({"text": "question", "label": "answer"})
        if "category" in there:
            # The Hub's default configuration has all three kinds in one split.
            dataset = dataset.filter(lambda category: category == kind, input_columns=["category"])
        return dataset

    return prepare


def pope(kind: str, name: str) -> PaperTask:
    """The task of one kind of question: `"random"`, `"popular"` or `"adversarial"`."""
    return PaperTask(
        name=name,
        title=f"POPE ({kind})",
        dataset="lmms-lab/POPE",
        configuration="Full",
        task=Task(
            image_column="image",
            answer_column="answer",
            question_column="question",
            candidates=("no", "yes"),
            caption="the answer is {answer}",
            # Whether there is a dog in an image does not depend on its side.
            flip=True,
        ),
        metric="pope",
        train_split=None,
        test_split=kind,
        prepare=questions_of(kind),
        note="Answers are those of the released code, whose default is adversarial and which measures on the first half "
        "of the 3,000 questions only. It learns from 12,000 questions on COCO train2014 that no Hub dataset has: the "
        "history of its repository has the file (data/POPE in commit 7390b85), to be given with `path` next to the "
        "images. Configuration and splits as lmms-eval reads them, columns from a card of the same schema. A caption "
        "that knows only yes or no gives TSE nothing to pull towards: learn with `--tse_weight 0`.",
    )


TASK = pope("adversarial", "pope")
