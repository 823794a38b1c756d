"""Accuracy of ranked candidates, top-1 and top-5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from transferable_vp.metrics.intervals import wilson_interval


_DESCRIPTION = """\
Every candidate answer has a score, and the example is right if the right candidate has the highest one (top-5: one of
the five highest). This is how the paper of Transferable Visual Prompting measures classification, with the mean
log-likelihood of a class name's tokens as its score.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): Scores of the candidates of every example, the higher the better. The
        number of candidates may differ between examples.
    references (`list` of `int`): Index of the right candidate.

Returns:
    accuracy (`float`): Share of examples whose right candidate comes first, between 0 and 1. Among equal scores the
        first candidate wins, as with `argmax`.
    top5 (`float` or `None`): Share whose right candidate is among the first five; `None` if an example has no more
        than five candidates.
    n (`int`): Number of examples.
    accuracy_ci95 (`list` of two `float`): Wilson's 95 % interval of `accuracy`.

Example:

    >>> from transferable_vp.metrics import load_metric
    >>> accuracy = load_metric("candidate_accuracy")
    >>> accuracy.compute(predictions=[[-1.2, -0.3], [-0.1, -2.0]], references=[1, 1])["accuracy"]
    0.5
"""

_CITATION = """\
@inproceedings{zhang2024exploring,
  title     = {Exploring the Transferability of Visual Prompting for Multimodal Large Language Models},
  author    = {Zhang, Yichi and Dong, Yinpeng and Zhang, Siyuan and Min, Tianzan and Su, Hang and Zhu, Jun},
  booktitle = {CVPR},
  year      = {2024}
}
"""


def ranks(predictions: Sequence[Any], references: Sequence[int]) -> np.ndarray:
    r"""
    How many candidates come before the right one.

    Args:
        predictions (`Sequence` of `(n_candidates,)` array-likes): Scores, the higher the better.
        references (`Sequence[int]`): Index of the right candidate.

    Returns:
        `np.ndarray`: int64 `(n,)`; 0 is a right answer. `ranks(...) == 0`, as numbers, is what
        `transferable_vp.report.paired_bootstrap` takes.

    Raises:
        ValueError: If a score is NaN or an index is not one of a candidate.
    """
    result = np.empty(len(references), dtype=np.int64)
    for i, (given, right) in enumerate(zip(predictions, references, strict=True)):
        scores = np.asarray(given, dtype=np.float64)
        if not 0 <= right < len(scores):
            raise ValueError(
                f"The reference of example {i} is {right}; expected the index of one of its {len(scores)} candidates."
            )
        if np.isnan(scores).any():
            raise ValueError(
                f"Example {i} has a score that is NaN or missing; expected numbers. If the model runs in half precision, "
                "try float32."
            )
        result[i] = (scores > scores[right]).sum() + (scores[:right] == scores[right]).sum()
    return result


class CandidateAccuracy(evaluate.Metric):
    """Accuracy of ranked candidates."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://arxiv.org/abs/2404.11207"],
        )

    def _compute(self, predictions: list[list[float]], references: list[int]) -> dict[str, Any]:
        if not references:
            raise ValueError("There are no examples to measure: predictions and references are empty.")
        places = ranks(predictions, references)
        n, right, near = len(places), int((places == 0).sum()), int((places < 5).sum())
        has_top5 = min(map(len, predictions)) > 5
        return {
            "accuracy": right / n,
            "top5": near / n if has_top5 else None,
            "n": n,
            "accuracy_ci95": list(wilson_interval(right, n)),
            "top5_ci95": list(wilson_interval(near, n)) if has_top5 else None,
        }
