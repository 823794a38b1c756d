"""SVHN: house numbers, one digit in the middle of 32 x 32 pixels."""

from __future__ import annotations

from ..data import Task
from . import PaperTask


TASK = PaperTask(
    name="svhn",
    title="SVHN",
    dataset="ufldl-stanford/svhn",
    configuration="cropped_digits",
    # A mirrored 2 is no digit.
    task=Task(image_column="image", answer_column="label", candidates=tuple("0123456789"), flip=False),
    metric="candidate_accuracy",
    train_split="train",
    test_split="test",
    note="No code in the release; question and caption are its defaults, the answers are the Hub's class names, and "
    "nothing is mirrored, which the release does to every task. Splits seen on the Hub; columns from memory.",
)
