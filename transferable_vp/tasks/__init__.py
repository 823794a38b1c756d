"""The tasks of the paper: what is asked of which dataset, and how its rows become images, questions and answers.

One small file per task, found by its name; nothing is registered anywhere:

```python
task = get_task("cifar10")
rows = task.load("test[:500]")  # from the Hub, or task.load("test", path="my/cifar10")
evaluate(surrogate, rows, task.task, prompt)
```
"""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets

from ..data import Task, load_data, undecoded
from ._columns import add_folder, find_answers, find_images, match_candidates, require


# Where the Hub keeps datasets converted to parquet, which it does by itself for many whose main branch is a script.
PARQUET_BRANCH = "refs/convert/parquet"


@dataclass(frozen=True)
class PaperTask:
    r"""
    One task of the paper.

    Args:
        name (`str`): Short name, which is that of its file too.
        title (`str`): What a report calls it.
        dataset (`str`): Hub id of the dataset.
        task ([`Task`]): Columns, question, answers to choose from, caption and whether mirroring is harmless.
        metric (`str`): `"candidate_accuracy"`, `"pope"`, `"auroc"` or `"counting"`.
        train_split (`str`, *optional*): What the dataset calls the split to learn from; `None` if it has none.
        test_split (`str`): What the dataset calls the split to measure on.
        configuration (`str`, *optional*): Configuration of the Hub dataset.
        revision (`str`, *optional*): Branch or commit of the Hub dataset.
        prepare (`Callable`, *optional*): Makes columns that the dataset lacks; takes and returns a dataset.
        note (`str`, *optional*): Where the facts come from, and what differs from the paper's released code.
        aliases (`Mapping[str, str]`, *optional*):
            Class names that the data have and models are not asked about, with the candidates that they stand for.
    """

    name: str
    title: str
    dataset: str
    task: Task
    metric: str
    train_split: str | None
    test_split: str
    configuration: str | None = None
    revision: str | None = None
    prepare: Callable[[Any], Any] | None = None
    note: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)

    def load(self, split: str = "test", path: str | None = None, streaming: bool = False) -> Any:
        r"""
        Loads a split, with the columns that `task` names. Images stay encoded until they are read.

        Args:
            split (`str`, *optional*, defaults to `"test"`):
                `"train"`, `"test"` or a split of the dataset's own, also slices, as `"test[:500]"`.
            path (`str`, *optional*):
                A local copy: a folder (parquet, `save_to_disk`, one folder of images per class) or a `.parquet`,
                `.csv`, `.json` or `.jsonl` file, which is taken for the split asked for. Image files that a table
                names lie next to it. Without it the dataset comes from the Hub.
            streaming (`bool`, *optional*, defaults to `False`): Whether to read rows as they are needed.

        Returns:
            `datasets.Dataset` or `datasets.IterableDataset`

        Raises:
            FileNotFoundError: If there is nothing at `path`.
            ValueError: If there is no such split, a column is missing or a class is not one of the task's.
        """
        begin, end = 0, None
        if streaming:
            split, begin, end = _slice(split)
        dataset = self._from_hub(split, streaming) if path is None else self._from_path(split, path, streaming)
        if begin or end is not None:
            dataset = dataset.skip(begin) if end is None else dataset.skip(begin).take(max(0, end - begin))
        return self._fit(dataset, self.dataset if path is None else path, path)

    def _from_hub(self, split: str, streaming: bool) -> Any:
        if self.train_split is None and re.search(r"\btrain\b", split):
            raise ValueError(
                f"{self.title} has no training split on the Hub ({self.dataset}): give your own with `path`."
            )
        own = _renamed(split, {"train": self.train_split, "test": self.test_split})
        # The parquet branch has one folder per configuration and no card that would say so.
        where = {"data_dir" if self.revision == PARQUET_BRANCH else "name": self.configuration}
        return undecoded(
            datasets.load_dataset(self.dataset, split=own, revision=self.revision, streaming=streaming, **where)
        )

    def _from_path(self, split: str, path: str, streaming: bool) -> Any:
        folder, configuration = Path(path), None
        if not folder.exists():
            raise FileNotFoundError(f"There is no dataset at {path}: no such file or folder.")
        if folder.is_file() or (folder / "state.json").exists():
            return load_data(path, split, streaming=streaming)
        saved = folder / "dataset_dict.json"
        if saved.exists():
            there = json.loads(saved.read_text(encoding="utf-8"))["splits"]
        else:
            # A folder downloaded from the Hub has the card that tells configurations apart.
            if self.configuration in datasets.get_dataset_config_names(path):
                configuration = self.configuration
            there = datasets.get_dataset_split_names(path, configuration)
        # A copy may use the dataset's own names of splits or the plain ones.
        names = {"train": self.train_split, "test": self.test_split}
        own = _renamed(split, {name: theirs if theirs in there else name for name, theirs in names.items()})
        for part in (part.split("[")[0].strip() for part in own.split("+")):
            if part not in there:
                raise ValueError(
                    f"{path} has the splits {', '.join(map(repr, there))} and none for {part!r}: ask for one of these, "
                    "or give the file of the split itself."
                )
        if saved.exists():
            # `load_dataset` would only find splits that are called train, validation or test.
            return load_data(str(folder / own.split("[")[0]), own)
        return load_data(path, own, configuration, streaming)

    def _fit(self, dataset: Any, origin: str, path: str | None) -> Any:
        """Gives the dataset the columns that `task` names, and answers that are among its candidates."""
        columns = [self.task.image_column, self.task.answer_column]
        dataset = find_images(dataset, self.task.image_column)
        if path is not None:
            dataset = add_folder(dataset, self.task.image_column, path)
        if self.prepare is not None:
            dataset = self.prepare(dataset)
        if self.task.candidates is not None:
            dataset = find_answers(dataset, self.task.answer_column, self.task.candidates, self.aliases)
        if self.task.question_column is not None:
            columns.append(self.task.question_column)
        require(dataset, columns, f"{self.title} ({origin})")
        if self.task.candidates is not None:
            dataset = match_candidates(dataset, self.task.answer_column, self.task.candidates, self.aliases)
        if isinstance(dataset, datasets.Dataset) and len(dataset) == 0:
            raise ValueError(f"{self.title} ({origin}) has no rows in that split.")
        return dataset


def _renamed(split: str, names: Mapping[str, str | None]) -> str:
    """The split with the names of its parts replaced: "test[:5]" becomes "validation[:5]"."""
    return re.sub(r"\b(train|test)\b", lambda found: names[found[0]] or found[0], split)


def _slice(split: str) -> tuple[str, int, int | None]:
    """The name, first and last row of a slice of whole rows: `datasets` itself streams only whole splits."""
    found = re.fullmatch(r"(\w+)(?:\[(\d*):(\d*)\])?", split)
    if found is None:
        raise ValueError(
            f"The split {split!r} cannot be streamed: give a name and whole rows, as in 'test[:500]', or load it "
            "without streaming."
        )
    return found[1], int(found[2] or 0), int(found[3]) if found[3] else None


def task_names() -> list[str]:
    """`list[str]`: The names that [`get_task`] knows, one per file of this package."""
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]


def get_task(name: str) -> PaperTask:
    """The task of a name, as in `get_task("cifar10")`.

    Raises:
        ValueError: If there is no such task, naming those that there are.
    """
    if name not in task_names():
        raise ValueError(f"There is no task {name!r}: expected one of {', '.join(task_names())}.")
    return import_module(f"{__name__}.{name}").TASK
