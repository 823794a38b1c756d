"""Measurements that outlive the cells: one file that says of every cell which pictures each model answered rightly.

A cell is a file of a run, with its prompt; a record is a line of 0.5 kB that can be kept beside the page it is shown on. All
tables are made from records, so that whoever has them can do the sums again, and later runs come beside earlier ones.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .experiment import Runner, write_whole
from .plan import Cell


@dataclass(frozen=True)
class Record:
    r"""
    One measurement, see [`~plan.Cell`] for what its fields mean.

    Attributes:
        correct (`dict[str, np.ndarray]`): For every measured model `(n,)` of `bool`, a picture each.
    """

    zoo: str
    task: str
    condition: str
    sources: tuple[str, ...]
    on: str
    seed: int
    correct: dict[str, np.ndarray]

    @property
    def key(self) -> tuple[Any, ...]:
        """What there is one record of."""
        return self.zoo, self.task, self.condition, self.sources, self.on, self.seed


class Records:
    r"""
    The records of one file, and what must be the same for all of them.

    Args:
        path (`Path`): Of a JSON-lines file, which need not be there yet. Its first line has the settings, a digest of the
            weights of every model, one of what every condition meant, and the runs that the records come from.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head: dict[str, Any] = {"settings": None, "models": {}, "ways": {}, "runs": []}
        self._records: dict[tuple[Any, ...], Record] = {}
        if path.is_file():
            head, *lines = path.read_text(encoding="utf-8").splitlines()
            self.head = json.loads(head)
            for record in map(_from_line, lines):
                self._records[record.key] = record

    def __iter__(self) -> Iterator[Record]:
        return (self._records[key] for key in sorted(self._records))

    def __len__(self) -> int:
        return len(self._records)

    def add(self, cells: Sequence[Cell], runner: Runner) -> int:
        r"""
        Takes what is kept of some cells; of what is there already, the new measurement is taken.

        Args:
            cells (`Sequence[Cell]`): Those measured on test pictures.
            runner ([`Runner`]): That ran them.

        Returns:
            `int`: How many of them are kept, in whole or in part.

        Raises:
            ValueError: If settings, a condition, or the weights of a model are others than those of the records.
        """
        self._agree("settings", None, asdict(runner.settings))
        taken = 0
        for cell in sorted(cells, key=lambda one: one.zoo):
            kept = runner.read(cell)
            # Models trained anew since are still to be measured.
            current = {
                member: bits for member, bits in (kept or {"correct": {}})["correct"].items()
                if kept and kept["weights"][member] == runner.digest(cell, member)
            }  # fmt: skip
            if not current:
                continue
            self._agree("ways", cell.condition.name, runner.way(cell))
            for member in {*current, *cell.sources}:
                self._agree("models", f"{cell.zoo}/{member}", runner.digest(cell, member))
            correct = {name: np.frombuffer(bits.encode(), np.uint8) == ord("1") for name, bits in current.items()}
            self.take(
                [Record(cell.zoo, cell.task, cell.condition.name, cell.sources, cell.measured, cell.seed, correct)]
            )
            taken += 1
        return taken

    def take(self, records: Iterable[Record]) -> None:
        """Takes records; of a model that was measured before, the new measurement."""
        for new in records:
            old = self._records.get(new.key)
            self._records[new.key] = replace(new, correct=old.correct | new.correct) if old is not None else new

    def _agree(self, what: str, name: str | None, value: Any) -> None:
        there = self.head[what] if name is None else self.head[what].get(name)
        if there is not None and there != value:
            kind = {"settings": "settings", "ways": f"a condition {name!r}", "models": f"a model {name!r}"}[what]
            raise ValueError(
                f"{self.path} was made with {kind} of {there}, and this is {value}: the two cannot be in one table. Give "
                "what is new another --name."
            )
        if name is None:
            self.head[what] = value
        else:
            self.head[what][name] = value

    def add_run(self, run: dict[str, Any]) -> None:
        """Notes a run by its `"command"`; a run of the same command takes its place."""
        runs = {one["command"]: one for one in self.head["runs"]} | {run["command"]: run}
        self.head["runs"] = list(runs.values())

    def write(self) -> None:
        """Writes the file, a line a record, so that a change of one is a change of one line."""
        head = json.dumps(self.head | {key: dict(sorted(self.head[key].items())) for key in ("models", "ways")})
        write_whole(self.path, "\n".join([head, *map(_to_line, self)]) + "\n")


def _to_line(record: Record) -> str:
    correct = {
        name: base64.b64encode(np.packbits(bits).tobytes()).decode() for name, bits in sorted(record.correct.items())
    }
    n = len(next(iter(record.correct.values())))
    return json.dumps(asdict(record) | {"sources": list(record.sources), "n": n, "correct": correct})


def _from_line(line: str) -> Record:
    fields = json.loads(line)
    n = fields.pop("n")
    correct = {
        name: np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=n).astype(bool)
        for name, text in fields["correct"].items()
    }
    return Record(**fields | {"sources": tuple(fields["sources"]), "correct": correct})
