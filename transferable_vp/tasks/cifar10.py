"""CIFAR-10: ten kinds of things in 32 x 32 pixels."""

from __future__ import annotations

from ..data import Task
from . import PaperTask


TASK = PaperTask(
    name="cifar10",
    title="CIFAR-10",
    dataset="uoft-cs/cifar10",
    task=Task(
        image_column="img",
        answer_column="label",
        candidates=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        flip=True,
    ),
    metric="candidate_accuracy",
    train_split="train",
    test_split="test",
    note="Question, answers, caption and mirroring are those of the released code, which validates on a sample of the "
    "test split drawn with replacement; here the split is used as it is. Columns seen in a copy of the data.",
)
