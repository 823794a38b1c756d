"""Area under the ROC curve of two classes."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from transferable_vp.metrics.intervals import bootstrap_interval


_DESCRIPTION = """\
The chance that an example of the positive class has a higher score than one of the negative class, ties counting half:
the area under the ROC curve. The official metric of Hateful Memes. It needs a score and no threshold: a model that
always prefers "no" by itself can still order the examples well.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `float`): Scores of the positive class, the higher the more positive. Only their order
        counts, so that the log-likelihood of "yes" minus that of "no" will do.
    references (`list` of `int`): 1 for the positive class, 0 for the negative one.
    n_resamples (`int`, *optional*, defaults to 2000): Resamples for the interval.
    seed (`int`, *optional*, defaults to 0): Their seed.

Returns:
    auroc (`float`): Between 0 and 1; one half is chance.
    n (`int`): Number of examples.
    auroc_ci95 (`list` of two `float`): Percentile bootstrap interval; both classes are resampled by themselves.

Example:

    >>> from transferable_vp.metrics import load_metric
    >>> auroc = load_metric("auroc")
    >>> auroc.compute(predictions=[0.1, 0.4, 0.35, 0.8], references=[0, 0, 1, 1])["auroc"]
    0.75
"""

_CITATION = """\
@inproceedings{kiela2020hateful,
  title     = {The Hateful Memes Challenge: Detecting Hate Speech in Multimodal Memes},
  author    = {Kiela, Douwe and Firooz, Hamed and Mohan, Aravind and Goswami, Vedanuj and Singh, Amanpreet and
               Ringshia, Pratik and Testuggine, Davide},
  booktitle = {NeurIPS},
  year      = {2020}
}
"""


def area_under_roc(scores: np.ndarray, positive: np.ndarray) -> float:
    r"""
    Area under the ROC curve by ranks, a statistic for `transferable_vp.metrics.intervals` (pass the classes as
    `strata`).

    It is the Mann-Whitney statistic over the number of pairs, with the average of their ranks for equal scores
    ([Hanley and McNeil 1982](https://doi.org/10.1148/radiology.143.1.7063747)).

    Args:
        scores (`np.ndarray`): float `(n,)`, no NaN.
        positive (`np.ndarray`): bool, or 0 and 1, `(n,)`.

    Returns:
        `float`: Between 0 and 1.

    Raises:
        ValueError: If there is only one class.
    """
    positive = np.asarray(positive, dtype=bool)  # as integers they would be indices below
    n_positive = int(np.count_nonzero(positive))
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        raise ValueError(
            f"An AUROC compares two classes, but all {len(positive)} references are {int(bool(n_positive))}. Measure "
            "on examples of both classes."
        )
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    average_rank = np.cumsum(counts) - (counts - 1) / 2
    wins = average_rank[place][positive].sum() - n_positive * (n_positive + 1) / 2
    return float(wins / (n_positive * n_negative))


class Auroc(evaluate.Metric):
    """Area under the ROC curve."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://arxiv.org/abs/2005.04790"],
        )

    def _compute(
        self, predictions: list[float], references: list[int], n_resamples: int = 2000, seed: int = 0
    ) -> dict[str, Any]:
        if not references:
            raise ValueError("There are no examples to measure: predictions and references are empty.")
        for i, reference in enumerate(references):
            if reference not in (0, 1):
                raise ValueError(f"The reference of example {i} is {reference}; expected 0 or 1.")
        scores, positive = np.asarray(predictions, dtype=np.float64), np.asarray(references) == 1
        if np.isnan(scores).any():
            raise ValueError(
                f"The score of example {int(np.isnan(scores).argmax())} is NaN or missing; expected a number. If the "
                "model runs in half precision, try float32."
            )
        return {
            "auroc": area_under_roc(scores, positive),
            "n": len(scores),
            "auroc_ci95": list(
                bootstrap_interval(
                    area_under_roc, scores, positive, n_resamples=n_resamples, seed=seed, strata=positive
                )
            ),
        }
