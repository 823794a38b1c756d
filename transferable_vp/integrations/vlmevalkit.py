"""Prompted data for VLMEvalKit: one TSV file with the images in it."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import random
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from ..data import BadImageError, Task, decode, undecoded
from ..images import to_images, to_pil
from ..modeling import TransferableVisualPrompt


Kind = Literal["multiple_choice", "yes_no", "open"]

# VLMEvalKit reads files with pandas, for which these words are missing values.
MISSING = {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A",
           "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}  # fmt: skip
# VQA's rule, which VLMEvalKit applies to open answers, counts how many of ten people gave the answer. A single answer
# written once is right for nobody.
PEOPLE = 10


def export(
    prompt: TransferableVisualPrompt | None,
    dataset: Any,
    task: Task,
    path: str | os.PathLike,
    prompted: bool = True,
    kind: Kind | None = None,
    options: int | None = None,
    category_column: str | None = None,
    skip_bad_images: bool = False,
    seed: int = 0,
) -> int:
    r"""
    Writes prompted images, questions and answers as a file that VLMEvalKit reads
    ([its columns](https://github.com/open-compass/VLMEvalKit/blob/main/docs/en/Development.md)).

    Rows are read and written one by one, and the file takes its place only when it is whole. Images are PNGs, the same
    to the bit as those of [`TransferableVisualPrompt.apply`]. Each row names its image by its content, because
    VLMEvalKit keeps decoded images by name and would go on showing those of an earlier prompt.

    Args:
        prompt ([`TransferableVisualPrompt`], *optional*): With `None`, the images as they are.
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or a sequence of `dict`): The rows.
        task ([`Task`]): How to read them.
        path (`str` or `os.PathLike`): The file to write; its name, without `.tsv`, is that of the dataset.
        prompted (`bool`, *optional*, defaults to `True`): With `False`, the prompt's geometry with a black border.
        kind (`str`, *optional*):
            `"multiple_choice"` (options A, B, ...; at most 26), `"yes_no"` or `"open"`. Defaults to what the task's
            candidates are: yes and no, others, or none.
        options (`int`, *optional*):
            Number of options per question, the right one and others drawn from the candidates, in random order.
            Defaults to all candidates in their own order.
        category_column (`str`, *optional*): Column by which VLMEvalKit is to report accuracies.
        skip_bad_images (`bool`, *optional*, defaults to `False`): Whether to leave out images that cannot be read.
        seed (`int`, *optional*, defaults to 0): Seed of the drawn options.

    Returns:
        `int`: The number of rows written.

    Raises:
        ValueError: If `path` does not end in `.tsv`, the candidates do not fit the kind, there are no rows, or a text
            is one that VLMEvalKit would read as missing.
        BadImageError: If an image cannot be read.

    Example:

    ```python
    >>> from transferable_vp import TransferableVisualPrompt
    >>> from transferable_vp.integrations.vlmevalkit import export
    >>> from transferable_vp.tasks import get_task

    >>> prompt = TransferableVisualPrompt.from_pretrained("runs/cifar10/prompt")  # doctest: +SKIP
    >>> cifar10 = get_task("cifar10")  # doctest: +SKIP
    >>> export(prompt, cifar10.load("test"), cifar10.task, "LMUData/cifar10_tvp.tsv")  # doctest: +SKIP
    10000
    ```
    """
    target, kind = Path(path), _kind(task, kind)
    if target.suffix != ".tsv":
        raise ValueError(f"VLMEvalKit reads .tsv files, got the path {target}: give one that ends in .tsv.")
    letters = _letters(task, kind, options)
    category = ["category"] if category_column else []
    columns = ["index", "image_path", "question", *letters, "answer", *category, "image"]
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
            writer.writeheader()
            count = 0
            for index, row, image in _shown(prompt, dataset, task, prompted, skip_bad_images):
                line = {"index": index, **image, **_texts(row, index, task, kind, letters, seed)}
                if category_column:
                    line["category"] = str(row[category_column])
                _check(line, index)
                writer.writerow(line)
                count += 1
        if not count:
            raise ValueError("There is nothing to export: the dataset has no rows, or none whose image can be read.")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    # VLMEvalKit's own copy of a file beyond 1 GB, which it does not make again.
    target.with_name(f"{target.stem}_local.tsv").unlink(missing_ok=True)
    return count


def _kind(task: Task, kind: Kind | None) -> Kind:
    names = {str(name).strip().lower() for name in task.candidates or ()}
    if kind is None:
        return "open" if not names else "yes_no" if names == {"yes", "no"} else "multiple_choice"
    if kind not in get_args(Kind):
        raise ValueError(f"`kind` is {kind!r}; it must be one of {', '.join(map(repr, get_args(Kind)))}.")
    if kind == "yes_no" and names != {"yes", "no"}:
        raise ValueError(f"Yes-or-no questions have the candidates 'yes' and 'no'; this task has {sorted(names)}.")
    return kind


def _letters(task: Task, kind: Kind, options: int | None) -> str:
    if kind != "multiple_choice":
        if options is not None:
            raise ValueError(f"`options` is for multiple choice; these questions are {kind}.")
        return ""
    names = len(task.candidates or ())
    number = names if options is None else options
    if not 2 <= number <= min(names, len(string.ascii_uppercase)):
        raise ValueError(
            f"Multiple choice needs 2 to 26 options; the task has {names} candidates and `options` is {options}. Give "
            "`options`, at most the number of candidates, or `kind='open'`."
        )
    return string.ascii_uppercase[:number]


def _shown(
    prompt: TransferableVisualPrompt | None, dataset: Any, task: Task, prompted: bool, skip_bad_images: bool
) -> Iterator[tuple[int, dict[str, Any], dict[str, str]]]:
    """Every row's number, the row, and its image as two columns."""
    for index, row in enumerate(undecoded(dataset)):
        try:
            image = decode(row[task.image_column], index)
        except BadImageError:
            if not skip_bad_images:
                raise
            continue
        # Without a prompt too, the picture is upright and 8-bit RGB, as the prompt would have it.
        shown = to_pil(to_images(image)[0]) if prompt is None else prompt.apply(image, prompted=prompted)
        png = _png(shown)
        name = f"{hashlib.sha256(png).hexdigest()[:32]}.png"
        yield index, row, {"image_path": name, "image": base64.b64encode(png).decode("ascii")}


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _texts(row: dict[str, Any], index: int, task: Task, kind: Kind, letters: str, seed: int) -> dict[str, Any]:
    question = task.question if task.question_column is None else str(row[task.question_column])
    if kind == "open":
        given = row[task.answer_column]
        several = isinstance(given, (list, tuple)) and len(given) > 1
        answers = [str(answer) for answer in given] if several else [task.answer(row, index)] * PEOPLE
        return {"question": question, "answer": repr(answers)}
    answer = task.answer(row, index)
    if kind == "yes_no":
        # As VLMEvalKit itself asks where a question does not say so; it reads answers as Yes, No or neither.
        return {"question": f"{question}\nPlease answer yes or no.", "answer": answer.strip().capitalize()}
    names: Sequence[str] = task.candidates or ()
    if len(letters) < len(names):
        drawn = random.Random(f"{seed}-{index}")
        names = [answer, *drawn.sample([name for name in names if name != answer], len(letters) - 1)]
        drawn.shuffle(names)
    return {"question": question, **dict(zip(letters, names, strict=True)), "answer": letters[names.index(answer)]}


def _check(line: dict[str, Any], index: int) -> None:
    for column, text in line.items():
        if str(text) in MISSING:
            raise ValueError(
                f"The {column} of row {index} is {text!r}, which VLMEvalKit would read as a missing value: give it "
                "another wording."
            )
