"""Hateful Memes: whether an image and the text written on it are hateful together."""

from __future__ import annotations

from typing import Any

from ..data import Task
from . import PaperTask
from ._columns import column_names, require, with_column


def ask(dataset: Any) -> Any:
    """Makes the question of every row of the text that is written on its image."""
    if "question" in column_names(dataset):
        return dataset
    require(dataset, ["text"], "Hateful Memes")
    return with_column(
        dataset, "question", lambda text: f'This is an image with: "{text}" written on it. Is it hateful?', "text"
    )


TASK = PaperTask(
    name="hateful_memes",
    title="Hateful Memes",
    dataset="Ahren09/MMSoc_HatefulMemes",
    task=Task(
        image_column="image",
        answer_column="label",
        question_column="question",
        candidates=("no", "yes"),
        caption="is this meme hateful? {answer}",
        # A mirrored text cannot be read.
        flip=False,
    ),
    metric="auroc",
    train_split="train",
    test_split="validation",
    prepare=ask,
    note="Question and answers are those of the released code, which measures on the first phase's dev split; the score "
    "of AUROC is that of 'yes'. The dataset named by most (neuralcatcher/hateful_memes) has file names in place of "
    "images, so this copy is used (splits of 8,500, 500 and 1,000 seen on the Hub, columns in code that reads it). A "
    "`.jsonl` of the original release next to its `img` folder is read too. The licence of "
    "the original applies. The caption is ours.",
    aliases={"0": "no", "1": "yes", "not hateful": "no", "hateful": "yes"},
)
