"""CIFAR-100: a hundred kinds of things in 32 x 32 pixels."""

from __future__ import annotations

from ..data import Task
from . import PaperTask


# In the order of the labels, as the Hub's card has them but for the separators and its "cra".
CLASSES = (
    "apple", "aquarium fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur",
    "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard",
    "lamp", "lawn mower", "leopard", "lion", "lizard", "lobster", "man", "maple tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak tree", "orange", "orchid", "otter", "palm tree", "pear", "pickup truck", "pine tree",
    "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket",
    "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
    "squirrel", "streetcar", "sunflower", "sweet pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow tree", "wolf", "woman", "worm",
)  # fmt: skip

TASK = PaperTask(
    name="cifar100",
    title="CIFAR-100",
    dataset="uoft-cs/cifar100",
    task=Task(image_column="img", answer_column="fine_label", candidates=CLASSES, flip=True),
    metric="candidate_accuracy",
    train_split="train",
    test_split="test",
    note="Not wired in the released code; question and caption are its defaults, underscores become spaces as in its "
    "`refine_classname`. The Hub's card calls the class of crabs 'cra', which is read as 'crab'. Columns and names "
    "from the dataset's card.",
    aliases={"cra": "crab"},
)
