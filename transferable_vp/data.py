"""Datasets as they come, made into images, questions and answers."""

from __future__ import annotations

import io
import numbers
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from PIL import Image


IMAGE_COLUMNS = ("image", "img", "picture", "photo")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
QUESTION_COLUMNS = ("question", "query", "problem")
ANSWER_COLUMNS = ("answer", "answers", "response")

# What Pillow raises for a damaged file depends on its format and on where the damage is.
DAMAGE = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, struct.error, Image.DecompressionBombError)


class BadImageError(ValueError):
    """An image that cannot be read."""


@dataclass(frozen=True)
class Example:
    """One image, what is asked about it, and the right answer.

    Args:
        image (`PIL.Image.Image`): Any size and mode.
        question (`str`): Without any model's template.
        answer (`str`): The right answer.
        caption (`str`): What a caption of the image says, for Task Semantics Enrichment.
    """

    image: Image.Image
    question: str
    answer: str
    caption: str


@dataclass(frozen=True)
class Task:
    r"""
    How to read a dataset's rows: which columns hold what, what is asked, and which answers there are to choose from.

    Args:
        image_column (`str`): Column of images.
        answer_column (`str`): Column of answers, or of class labels (places among `candidates`, or names).
        question (`str`, *optional*, defaults to `"This is a photo of a"`):
            The question asked of every image, when there is no `question_column`. The default is the paper's.
        question_column (`str`, *optional*): Column of questions.
        candidates (`Sequence[str]`, *optional*):
            The answers to choose from. Needed to measure accuracy; without it only the loss is measured.
        caption (`str`, *optional*, defaults to `"this is a photo of a {answer}"`):
            Text that TSE pulls the image towards, with `{answer}` and, if need be, `{question}` in it.
        flip (`bool`, *optional*, defaults to `False`):
            Whether training may mirror images. The paper's code mirrors those of every task; wrong for digits and text.
        integers_are_names (`bool`, *optional*):
            Whether an integer in the answer column is the answer itself ("How many?" 4) or a place among `candidates`.
            [`~Task.infer`] knows by the column's type. Not given, an integer that could be either is an error.
    """

    image_column: str = "image"
    answer_column: str = "answer"
    question: str = "This is a photo of a"
    question_column: str | None = None
    candidates: Sequence[str] | None = None
    caption: str = "this is a photo of a {answer}"
    flip: bool = False
    integers_are_names: bool | None = None

    @classmethod
    def infer(cls, dataset: Any, **given: Any) -> Task:
        r"""
        Finds the columns of a dataset: image and label, or image, question and answer.

        Args:
            dataset (`datasets.Dataset`, `datasets.IterableDataset` or a sequence of `dict`): The dataset.
            given: Any argument of [`Task`], which then is not looked for.

        Raises:
            ValueError: If a column is missing, naming those found and the argument that says which to use.
        """
        if isinstance(dataset, (datasets.DatasetDict, datasets.IterableDatasetDict)):
            raise ValueError(
                f"Got a dataset with the splits {', '.join(map(repr, dataset))}: choose one, as in `ds['train']`."
            )
        features = getattr(dataset, "features", None) or {}
        columns = list(getattr(dataset, "column_names", None) or features or next(iter(dataset or ()), {}))
        given = {key: value for key, value in given.items() if value is not None}
        for key in ("image_column", "answer_column", "question_column"):
            if key in given and given[key] not in columns:
                raise ValueError(f"There is no column {given[key]!r} (`{key}`); the dataset has {_names(columns)}.")
        if "image_column" not in given:
            images = [c for c in columns if isinstance(features.get(c), datasets.Image)]
            given["image_column"] = _find(columns, [*images, *IMAGE_COLUMNS], "image", "image_column")
        if "question_column" not in given and "question" not in given:
            found = [c for c in QUESTION_COLUMNS if c in columns]
            given["question_column"] = found[0] if found else None
        if "answer_column" not in given:
            labels = [c for c in columns if isinstance(features.get(c), datasets.ClassLabel)]
            order = [*ANSWER_COLUMNS, *labels, *LABEL_COLUMNS]
            given["answer_column"] = _find(columns, order, "answer or label", "answer_column")
        label = features.get(given["answer_column"])
        if "candidates" not in given and isinstance(label, datasets.ClassLabel):
            given["candidates"] = [name.replace("_", " ") for name in label.names]
        if isinstance(label, datasets.ClassLabel):
            given.setdefault("integers_are_names", False)
        elif isinstance(label, datasets.Value) and label.dtype.startswith(("int", "uint")):
            numbered = all(re.fullmatch(r"0|-?[1-9]\d*", name) for name in given.get("candidates", [""]))
            given.setdefault("integers_are_names", numbered)
        return cls(**given)

    def example(self, row: dict[str, Any], index: int | None = None) -> Example:
        """Reads one row.

        Raises:
            BadImageError: If the image cannot be decoded, naming it.
            ValueError: If the label is not one of the candidates, or the row has no question.
        """
        answer = self.answer(row, index)
        question = self.question if self.question_column is None else row[self.question_column]
        if not isinstance(question, str):
            raise ValueError(
                f"The question of {_row(index)} is {question!r}; expected text in the column {self.question_column!r}. "
                "Leave such rows out, or choose another `question_column`."
            )
        image = decode(row[self.image_column], index)
        return Example(
            image, question, answer, self.caption.replace("{question}", question).replace("{answer}", answer)
        )

    def answer(self, row: dict[str, Any], index: int | None = None) -> str:
        """The right answer of a row, as text."""
        label, names = row[self.answer_column], self.candidates
        label = label.tolist() if hasattr(label, "tolist") else label  # of numpy or torch
        if isinstance(label, (list, tuple)) and label:
            label = label[0].tolist() if hasattr(label[0], "tolist") else label[0]
        if label is None or label != label or isinstance(label, (list, tuple, dict, bytes)):  # NaN differs from itself
            raise ValueError(
                f"The answer of {_row(index)} is {label!r}; expected text, a class label or a list of texts in the "
                f"column {self.answer_column!r}. Leave such rows out, or choose another `answer_column`."
            )
        place = isinstance(label, numbers.Integral) and not isinstance(label, bool) and not self.integers_are_names
        if names is not None and place:
            unknown = self.integers_are_names is None and str(label) in names
            if unknown and list(names).index(str(label)) != label:
                raise ValueError(
                    f"The answer of {_row(index)} is {label}: the candidate {str(label)!r}, or the one in place {label} of "
                    f"{_names(names)}? Give the task `integers_are_names`, or write answers as text."
                )
            if not 0 <= int(label) < len(names):
                raise ValueError(
                    f"The label of {_row(index)} is {label}, outside the {len(names)} classes ({_names(names[:3])}, ...); "
                    "is this split unlabelled, or the list of classes too short?"
                )
            return names[int(label)]
        if names is not None and str(label) not in names:
            raise ValueError(
                f"The answer of {_row(index)} is {str(label)!r}, which is not among the candidates {_names(names)}."
            )
        return str(label)


def decode(image: Any, index: int | None = None) -> Image.Image:
    """A row's image (PIL, path, or the `{"bytes", "path"}` of an undecoded column) as a PIL image."""
    path = None
    try:
        if isinstance(image, dict):
            path = image.get("path")
            image = image["bytes"] if image.get("bytes") is not None else path
        if isinstance(image, (bytes, bytearray)):
            image = io.BytesIO(image)
        if isinstance(image, (str, Path)):
            # A column of images as base64 text is taken for one of paths.
            path = str(image) if len(str(image)) < 300 else f"{str(image)[:50]}..."
        if image is None:
            raise BadImageError(f"{_row(index)} has no image.")
        if not isinstance(image, Image.Image):
            if not isinstance(image, (str, Path, io.BytesIO)):
                raise TypeError(
                    f"The image of {_row(index)} is of type {type(image).__name__}; expected a PIL image, a path or the "
                    "bytes of an image file."
                )
            image = Image.open(image)
        image.load()
    except BadImageError:
        raise
    except DAMAGE as error:
        raise BadImageError(
            f"The image of {_row(index)}{f' ({path})' if path else ''} cannot be read: {error}. Mend or remove it, or "
            "leave such images out (`skip_bad_images=True`, `--skip_bad_images`)."
        ) from error
    return image


@dataclass
class ExampleCollator:
    r"""
    Makes a batch of rows into the trainer's inputs: `images`, `questions`, `answers`, `captions` (lists) and `skipped`.

    Args:
        task ([`Task`]): How to read a row.
        skip_bad_images (`bool`, *optional*, defaults to `False`):
            Whether to leave out images that cannot be read. A batch of nothing else is the last image that could be:
            every process has something to run, as they wait for each other.

    Raises:
        BadImageError: If an image cannot be read; with `skip_bad_images`, if none before it and none of its batch can be.
    """

    task: Task
    skip_bad_images: bool = False
    _last: list[Example] = field(default_factory=list, init=False, repr=False, compare=False)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        examples, skipped = [], 0
        for row in rows:
            try:
                examples.append(self.task.example(row))
            except BadImageError:
                if not self.skip_bad_images:
                    raise
                skipped += 1
        examples = examples or self._last
        if not examples:
            raise BadImageError(f"None of the {len(rows)} images of the first batch can be read.")
        self._last = examples[-1:]
        return {
            "images": [e.image for e in examples],
            "questions": [e.question for e in examples],
            "answers": [e.answer for e in examples],
            "captions": [e.caption for e in examples],
            "skipped": skipped,
        }


def load_data(
    path: str, split: str = "train", name: str | None = None, streaming: bool = False, revision: str | None = None
) -> Any:
    r"""
    Loads a split from the Hub, a folder (parquet, images in one folder per class, `save_to_disk`) or a file.

    Args:
        path (`str`): Hub id, folder, or `.parquet`, `.csv`, `.json` or `.jsonl` file.
        split (`str`, *optional*, defaults to `"train"`): Also slices, as `"train[:1%]"`.
        name (`str`, *optional*): Configuration of a Hub dataset.
        streaming (`bool`, *optional*, defaults to `False`): Whether to read rows as they are needed.
        revision (`str`, *optional*): Branch, tag or commit of a Hub dataset.

    Raises:
        FileNotFoundError: If `path` looks like a local path and is not there.
        ValueError: If there are no rows, or `revision` is given for what is not on the Hub.
    """
    local = Path(path)
    if revision is not None and local.exists():
        raise ValueError(
            f"`revision` is {revision!r}, but {path} is a file or folder here, which has none: leave it out."
        )
    if not local.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise FileNotFoundError(f"There is no dataset at {path}: no such file or folder.")
    # A file, and a folder of `save_to_disk`, hold one split, whatever it is called.
    asked = "train" + split[split.index("[") :] if "[" in split else "train"
    if local.is_dir() and (local / "state.json").exists():
        dataset = datasets.load_from_disk(path)
        if "[" in split:
            parts = datasets.ReadInstruction.from_spec(asked).to_absolute({"train": len(dataset)})
            dataset = dataset.select([row for part in parts for row in range(part.from_, part.to)])
    elif local.is_file():
        kind = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}.get(local.suffix)
        if kind is None:
            raise ValueError(f"{path} is not a dataset file: expected .parquet, .csv, .json or .jsonl, or a folder.")
        try:
            dataset = datasets.load_dataset(kind, data_files=path, split=asked, streaming=streaming)
        except StopIteration as error:
            # What `datasets` raises for an empty file of JSON lines.
            raise ValueError(f"{path} has no rows.") from error
    else:
        try:
            dataset = datasets.load_dataset(path, name, split=split, streaming=streaming, revision=revision)
        except ValueError as error:
            if "Unknown split" not in str(error):
                raise
            raise ValueError(f"{path}: {error} Choose another `split` (`--split`, `--train_split`).") from error
    if not streaming and len(dataset) == 0:
        raise ValueError(f"The split {split!r} of {path} has no rows.")
    return undecoded(dataset)


def undecoded(dataset: Any) -> Any:
    """The dataset with its images left as bytes, so that one that cannot be read is ours to name or to skip."""
    for column, feature in (getattr(dataset, "features", None) or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


def _find(columns: Sequence[str], wanted: Iterable[str], what: str, argument: str) -> str:
    for name in wanted:
        if name in columns:
            return name
    raise ValueError(f"No {what} column found: the dataset has {_names(columns)}. Say which to use with `{argument}`.")


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "no columns"


def _row(index: int | None) -> str:
    return "a row" if index is None else f"row {index}"
