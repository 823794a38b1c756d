"""Oxford-IIIT Pet: 37 breeds of cats and dogs."""

from __future__ import annotations

from ..data import Task
from . import PaperTask


# In the order of the labels.
BREEDS = (
    "abyssinian", "american bulldog", "american pit bull terrier", "basset hound", "beagle", "bengal", "birman",
    "bombay", "boxer", "british shorthair", "chihuahua", "egyptian mau", "english cocker spaniel", "english setter",
    "german shorthaired", "great pyrenees", "havanese", "japanese chin", "keeshond", "leonberger", "maine coon",
    "miniature pinscher", "newfoundland", "persian", "pomeranian", "pug", "ragdoll", "russian blue", "saint bernard",
    "samoyed", "scottish terrier", "shiba inu", "siamese", "sphynx", "staffordshire bull terrier", "wheaten terrier",
    "yorkshire terrier",
)  # fmt: skip

TASK = PaperTask(
    name="pets",
    title="Oxford Pets",
    dataset="timm/oxford-iiit-pet",
    task=Task(image_column="image", answer_column="label", candidates=BREEDS, flip=True),
    metric="candidate_accuracy",
    train_split="train",
    test_split="test",
    note="No code in the release; question and caption are its defaults, names are the Hub's with spaces. Columns, "
    "names and splits (3,680 and 3,669) from the dataset's card.",
)
