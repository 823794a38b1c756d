"""Words instead of pixels: an instruction before the question, the same for every model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from transferable_vp import Example, Surrogate, Task, evaluate


LABEL = "text prompt"
# Suit any task; `Rows.hints` adds what suits one.
PREFIXES = (
    "Answer with one word.",
    "Look closely at the picture.",
    "Answer the question about the picture.",
)


@dataclass(frozen=True)
class PrefixedTask(Task):
    """A task whose every question begins with `prefix`."""

    prefix: str = ""

    @classmethod
    def of(cls, task: Task, prefix: str) -> PrefixedTask:
        """`task` with an instruction before its questions."""
        return cls(**{f.name: getattr(task, f.name) for f in fields(Task)}, prefix=prefix)

    def example(self, row: dict[str, Any], index: int | None = None) -> Example:
        """Reads one row."""
        example = super().example(row, index)
        return replace(example, question=f"{self.prefix} {example.question}")


def choose_prefix(
    source: Surrogate, validation: Any, task: Task, prefixes: Sequence[str] = PREFIXES, progress: bool = True
) -> tuple[str, dict[str, float]]:
    r"""
    Compares prefixes on validation rows of the source, unprompted images.

    Returns:
        The best prefix (of equals the first), and the accuracy of each.

    Raises:
        ValueError: If there is no prefix to choose from, or one is empty: that is the full image without a prompt.
    """
    prefixes = [prefix.strip() for prefix in prefixes]
    if not prefixes or not all(prefixes):
        raise ValueError(f"The text prefixes are {prefixes}; give at least one, and none that is empty.")
    found = {}
    for prefix in prefixes:
        prefixed = PrefixedTask.of(task, prefix)
        found[prefix] = evaluate(source, validation, prefixed, progress=progress, description=prefix).mean
    return max(found, key=lambda prefix: found[prefix]), found
