"""POPE: yes-or-no questions about objects, positive class yes."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from transferable_vp.metrics.answers import yes_no
from transferable_vp.metrics.intervals import bootstrap_interval, wilson_interval


_DESCRIPTION = """\
POPE asks "Is there a ... in the image?" about objects that are there and objects that are not, and measures how often
a model sees what is not there: accuracy, precision, recall and F1 of the answer yes, and the share of yes among the
answers, which is far from one half for a model that always agrees.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str`): Generated answers, read by `transferable_vp.metrics.answers.yes_no`.
    references (`list` of `str`): "yes" or "no".
    n_resamples (`int`, *optional*, defaults to 2000): Resamples for the interval of F1.
    seed (`int`, *optional*, defaults to 0): Their seed.

Returns:
    accuracy, precision, recall, f1 (`float`): Between 0 and 1. An answer that is neither yes nor no is wrong, and is
        not a yes. Precision is 0 if no answer is yes, recall is 0 if no reference is, F1 is 0 if neither is.
    yes_ratio (`float`): Share of answers that are yes.
    unparsed (`float`): Share of answers that are neither.
    n (`int`): Number of examples.
    accuracy_ci95 (`list` of two `float`): Wilson's 95 % interval of `accuracy`.
    f1_ci95 (`list` of two `float`): Percentile bootstrap interval of `f1`, over examples.

Example:

    >>> from transferable_vp.metrics import load_metric
    >>> pope = load_metric("pope")
    >>> pope.compute(predictions=["Yes, a dog.", "No.", "No"], references=["yes", "yes", "no"])["recall"]
    0.5
"""

_CITATION = """\
@inproceedings{li2023evaluating,
  title     = {Evaluating Object Hallucination in Large Vision-Language Models},
  author    = {Li, Yifan and Du, Yifan and Zhou, Kun and Wang, Jinpeng and Zhao, Wayne Xin and Wen, Ji-Rong},
  booktitle = {EMNLP},
  year      = {2023}
}
"""


def f1(said_yes: np.ndarray, is_yes: np.ndarray) -> float:
    r"""
    F1 of the answer yes, a statistic for `transferable_vp.metrics.intervals`.

    Args:
        said_yes (`np.ndarray`): bool `(n,)`, whether the answer is yes.
        is_yes (`np.ndarray`): bool `(n,)`, whether the reference is.

    Returns:
        `float`: Between 0 and 1; 0 if nobody says yes.
    """
    total = int(np.count_nonzero(said_yes) + np.count_nonzero(is_yes))
    return 2 * int(np.count_nonzero(said_yes & is_yes)) / max(total, 1)


class Pope(evaluate.Metric):
    """Accuracy, precision, recall and F1 of yes-or-no answers."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
            reference_urls=["https://arxiv.org/abs/2305.10355", "https://github.com/AoiDragon/POPE"],
        )

    def _compute(
        self, predictions: list[str], references: list[str], n_resamples: int = 2000, seed: int = 0
    ) -> dict[str, Any]:
        if not references:
            raise ValueError("There are no examples to measure: predictions and references are empty.")
        truth = [reference.strip().lower() for reference in references]
        for i, reference in enumerate(truth):
            if reference not in ("yes", "no"):
                raise ValueError(f'The reference of example {i} is {references[i]!r}; expected "yes" or "no".')
        answers = [yes_no(prediction) for prediction in predictions]
        n = len(truth)
        right = sum(answer == reference for answer, reference in zip(answers, truth, strict=True))
        said_yes = np.array([answer == "yes" for answer in answers])
        is_yes = np.array([reference == "yes" for reference in truth])
        hits, yes, true = int((said_yes & is_yes).sum()), int(said_yes.sum()), int(is_yes.sum())
        shares = {"accuracy": (right, n), "precision": (hits, yes), "recall": (hits, true), "yes_ratio": (yes, n),
                  "unparsed": (answers.count(None), n)}  # fmt: skip
        return {
            "accuracy": right / n,
            "precision": hits / max(yes, 1),
            "recall": hits / max(true, 1),
            "f1": f1(said_yes, is_yes),
            "yes_ratio": float(said_yes.mean()),
            "unparsed": answers.count(None) / n,
            "n": n,
            # Of no yes at all there is no share.
            **{f"{name}_ci95": list(wilson_interval(k, of)) if of else None for name, (k, of) in shares.items()},
            "f1_ci95": list(bootstrap_interval(f1, said_yes, is_yes, n_resamples=n_resamples, seed=seed)),
        }
