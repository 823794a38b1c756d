"""Columns of datasets as they come, made into those that a task names. Images are neither decoded nor copied."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from ..data import ANSWER_COLUMNS, IMAGE_COLUMNS, LABEL_COLUMNS


def column_names(dataset: Any) -> list[str]:
    """The columns of a dataset, those of its first row where a streamed one does not say."""
    return list(dataset.column_names or dataset.features or next(iter(dataset), {}))


def require(dataset: Any, columns: Sequence[str], what: str) -> None:
    """Raises a `ValueError` that names the missing columns, if there are any."""
    there = column_names(dataset)
    missing = [column for column in columns if column not in there]
    if missing:
        raise ValueError(
            f"{what} lacks {'the columns' if len(missing) > 1 else 'the column'} {_quoted(missing)}: it has "
            f"{_quoted(there) or 'no columns'}. Rename what stands for them, or give data of the schema in docs/tasks.md."
        )


def with_column(dataset: Any, name: str, make: Callable[[Any], str | None], source: str) -> Any:
    """The dataset with a column of texts made of another, replacing one of that name."""
    if isinstance(dataset, datasets.IterableDataset):
        features = dataset.features and datasets.Features({**dataset.features, name: datasets.Value("string")})
        return dataset.map(lambda row: {name: make(row[source])}, features=features)
    # Not `map`, which would write the images once more.
    old = dataset.select_columns([source])[:][source]
    values = [make(value) for value in old]
    if name == source and values == old:
        return dataset
    if name in dataset.column_names:
        dataset = dataset.remove_columns(name)
    return dataset.add_column(name, values, feature=datasets.Value("string"))


def find_images(dataset: Any, wanted: str) -> Any:
    """The dataset with its images in the column `wanted`, if it has a single column of images or one named like it."""
    there = column_names(dataset)
    if wanted in there:
        return dataset
    images = [name for name, feature in (dataset.features or {}).items() if isinstance(feature, datasets.Image)]
    found = images if len(images) == 1 else [name for name in IMAGE_COLUMNS if name in there]
    return dataset.rename_column(found[0], wanted) if found else dataset


def add_folder(dataset: Any, column: str, path: str) -> Any:
    """The dataset with the file names in a column of images made paths, taken from where the table lies."""
    feature = (dataset.features or {}).get(column)
    if dataset.features is None:
        first: dict[str, Any] = next(iter(dataset), {})
        named = isinstance(first.get(column), str)
    else:
        named = _is_text(feature)
    if not named:
        return dataset
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    return with_column(dataset, column, lambda name: None if name is None else str(folder / name), column)


def find_answers(dataset: Any, wanted: str, candidates: Sequence[str], aliases: Mapping[str, str]) -> Any:
    """The dataset with its answers in the column `wanted`, if another column is clearly that of the answers.

    Bare integers are not: whether a 5 is the sixth class or the number five cannot be seen.
    """
    if wanted in column_names(dataset):
        return dataset
    names, features = _names_of(candidates, aliases), dataset.features or {}
    for column, feature in features.items():
        if isinstance(feature, datasets.ClassLabel) and all(_key(name) in names for name in feature.names):
            return dataset.rename_column(column, wanted)
    for column in (*ANSWER_COLUMNS, *LABEL_COLUMNS):
        if _is_text(features.get(column)):
            return dataset.rename_column(column, wanted)
    return dataset


def match_candidates(dataset: Any, column: str, candidates: Sequence[str], aliases: Mapping[str, str]) -> Any:
    """The dataset with class names as the candidates have them, whatever their order, case and separators were.

    Raises:
        ValueError: If a class of the dataset is none of the candidates.
    """
    names, feature = _names_of(candidates, aliases), (dataset.features or {}).get(column)
    if isinstance(feature, datasets.ClassLabel):
        unknown = [name for name in feature.names if _key(name) not in names]
        if unknown:
            raise ValueError(
                f"The column {column!r} has classes that are not among the {len(candidates)} of this task: "
                f"{_quoted(unknown[:5])}{', ...' if len(unknown) > 5 else ''}; expected {_quoted(candidates[:5])}, ..."
            )
        own = [names[_key(name)] for name in feature.names]
        if own == list(candidates):
            return dataset
        # An unlabelled row is left as it is, to be named when it is read.
        return with_column(dataset, column, lambda i: str(i) if i is None or not 0 <= i < len(own) else own[i], column)
    if _is_text(feature):
        return with_column(dataset, column, lambda answer: names.get(_key(answer or ""), answer), column)
    return dataset


def _is_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _names_of(candidates: Sequence[str], aliases: Mapping[str, str]) -> dict[str, str]:
    return {_key(name): name for name in candidates} | {_key(name): meant for name, meant in aliases.items()}


def _key(name: str) -> str:
    """What of a class name tells it from others: folders, files and cards differ in case and separators."""
    return re.sub(r"[\s_/-]+", " ", name).strip().lower()


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
