"""Accuracy of counts in generated answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from transferable_vp.metrics.answers import ARTICLES, number
from transferable_vp.metrics.intervals import wilson_interval


_DESCRIPTION = """\
Whether a generated answer gives the right number, for questions such as "How many objects are there in this image?".
By default the one number in the answer, in digits or words, has to equal the right one. The rule in the released code
of Transferable Visual Prompting asks only whether the answer, with number words made digits, contains the digits of
the right one, so that "13" counts as 3: `mode="paper"` is that rule, to compare with it.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str`): Generated answers.
    references (`list` of `str`): The right numbers, in digits.
    mode (`str`, *optional*, defaults to `"exact"`):
        `"exact"`: the number that `transferable_vp.metrics.answers.number` reads equals the right one. "3 objects",
        "There are 3." and "three" are 3; "13" is 13; "two or three" is wrong, since it is two numbers; so is "three
        hundred".
        `"paper"`: the right number's digits occur anywhere in the answer.

Returns:
    accuracy (`float`): Share of right answers, between 0 and 1.
    n (`int`): Number of examples.
    accuracy_ci95 (`list` of two `float`): Wilson's 95 % interval of `accuracy`.

Example:

    >>> from transferable_vp.metrics import load_metric
    >>> counting = load_metric("counting")
    >>> counting.compute(predictions=["There are three.", "13"], references=["3", "3"])["accuracy"]
    0.5
"""

_CITATION = """\
@inproceedings{johnson2017clevr,
  title     = {CLEVR: A Diagnostic Dataset for Compositional Language and Elementary Visual Reasoning},
  author    = {Johnson, Justin and Hariharan, Bharath and van der Maaten, Laurens and Fei-Fei, Li and
               Zitnick, C. Lawrence and Girshick, Ross},
  booktitle = {CVPR},
  year      = {2017}
}
"""

MODES = ("exact", "paper")
# The released code knows no other number words.
PAPER_WORDS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}


def correct(predictions: Sequence[str], references: Sequence[str], mode: str = "exact") -> np.ndarray:
    r"""
    Which answers give the right number.

    Args:
        predictions (`Sequence[str]`): Generated answers.
        references (`Sequence[str]`): The right numbers.
        mode (`str`, *optional*, defaults to `"exact"`): `"exact"` or `"paper"`.

    Returns:
        `np.ndarray`: float64 `(n,)`, 1 for a right answer and 0 for a wrong one, which is what
        `transferable_vp.report.paired_bootstrap` takes.

    Raises:
        ValueError: If there is no such mode, or a reference is not one number.
    """
    if mode not in MODES:
        raise ValueError(f"There is no mode {mode!r}; expected one of {', '.join(MODES)}.")
    right = []
    for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        expected = number(reference)
        if expected is None:
            raise ValueError(f'The reference of example {i} is {reference!r}; expected one number, as "3".')
        right.append(number(prediction) == expected if mode == "exact" else str(expected) in _paper_answer(prediction))
    return np.array(right, dtype=np.float64)


def _paper_answer(text: str) -> str:
    words = re.sub(r"[^a-zA-Z0-9\s]", "", text).lower().split()
    # The released code mends contractions too ("dont"), which cannot change the digits.
    return " ".join(PAPER_WORDS.get(word, word) for word in words if word not in ARTICLES)


class Counting(evaluate.Metric):
    """Accuracy of counts in generated answers."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
            reference_urls=["https://arxiv.org/abs/1612.06890", "https://arxiv.org/abs/2404.11207"],
        )

    def _compute(self, predictions: list[str], references: list[str], mode: str = "exact") -> dict[str, Any]:
        if not references:
            raise ValueError("There are no examples to measure: predictions and references are empty.")
        right = correct(predictions, references, mode)
        hits, n = int(right.sum()), len(right)
        return {"accuracy": hits / n, "n": n, "accuracy_ci95": list(wilson_interval(hits, n))}
