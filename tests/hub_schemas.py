"""Small data of exactly the schemas of the paper's datasets on the Hub."""

from __future__ import annotations

from typing import Any

import datasets
import tiny
from datasets import ClassLabel, Image, Value

from transferable_vp.tasks import get_task


TEXT, INTEGER = Value("string"), Value("int64")
WEBDATASET = {"__key__": TEXT, "__url__": TEXT, "cls": INTEGER, "webp": Image()}
POPE = {"id": TEXT, "question_id": TEXT, "question": TEXT, "answer": TEXT, "image_source": TEXT, "image": Image(),
        "category": TEXT}  # fmt: skip


def hub_names(name: str) -> list[str]:
    """The class names of a task as its Hub dataset writes them."""
    if name == "cifar100":
        return [n.replace("crab", "cra").replace(" ", "_") for n in get_task(name).task.candidates]
    return [n if name == "imagenette" else n.replace(" ", "_") for n in get_task(name).task.candidates]


def schema(name: str) -> dict[str, Any]:
    """The features of a task's Hub dataset."""
    if name.startswith("pope"):
        return POPE
    if name in ("clevr", "aircraft"):
        return WEBDATASET
    if name == "hateful_memes":
        return {"id": TEXT, "image": Image(), "label": INTEGER, "text": TEXT, "split": TEXT}
    labels = ClassLabel(names=hub_names(name))
    if name == "cifar10":
        return {"img": Image(), "label": labels}
    if name == "cifar100":
        return {"img": Image(), "fine_label": labels, "coarse_label": ClassLabel(names=["a", "b"])}
    more = {"image_id": TEXT, "label_cat_dog": ClassLabel(names=["cat", "dog"])} if name == "pets" else {}
    return {"image": Image(), "label": labels, **more}


def rows(name: str) -> dict[str, list[Any]]:
    """Four rows of a task's Hub dataset."""
    values: dict[str, list[Any]] = {}
    for column, feature in schema(name).items():
        if isinstance(feature, Image):
            values[column] = [tiny.picture(seed=i) for i in range(4)]
        elif isinstance(feature, ClassLabel):
            values[column] = [0, 1, feature.num_classes - 1, 0]
        else:
            values[column] = [0, 1, 1, 0] if feature == INTEGER else [f"{column} {i}" for i in range(4)]
    if name.startswith("pope"):
        values["question"] = [f"Is there a {thing} in the image?" for thing in ("dog", "cup", "car", "cat")]
        values["answer"] = ["yes", "no", "yes", "no"]
        values["category"] = [{"pope": "adversarial"}.get(name, name.removeprefix("pope_"))] * 4
    return values


def made(name: str) -> datasets.Dataset:
    """Those four rows as a dataset."""
    return datasets.Dataset.from_dict(rows(name), features=datasets.Features(schema(name)))
