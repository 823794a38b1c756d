"""ImageNette: ten easily told classes of ImageNet."""

from __future__ import annotations

from ..data import Task
from . import PARQUET_BRANCH, PaperTask


# ImageNet's ids, which the original archive and its local copies have for folder names, in the order of the labels.
WORDNET_IDS = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}

TASK = PaperTask(
    name="imagenette",
    title="ImageNette",
    dataset="frgfm/imagenette",
    configuration="320px",
    revision=PARQUET_BRANCH,
    task=Task(image_column="image", answer_column="label", candidates=tuple(WORDNET_IDS.values()), flip=True),
    metric="candidate_accuracy",
    train_split="train",
    test_split="validation",
    note="Not wired in the released code, whose class names are those of ImageNet's index with spaces. The main branch "
    "of the Hub dataset is a loading script, so its parquet branch is read (folders of configurations seen on the "
    "Hub; columns from memory). Configurations 160px and full_size exist too.",
    aliases=WORDNET_IDS,
)
