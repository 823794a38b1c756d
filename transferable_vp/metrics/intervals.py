"""95 % confidence intervals: Wilson's for shares, percentile bootstrap for everything else, paired or not.

All of them take examples to be independent of each other. Where several questions are asked of one image (POPE asks
six) they are not quite, and intervals are somewhat too narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np


# A number out of arrays that have one entry per example.
Statistic = Callable[..., Any]

TAILS = (0.025, 0.975)


def wilson_interval(k: int, n: int) -> tuple[float, float]:
    r"""
    Wilson's score interval for a share: `k` of `n`.

    It stays within 0 and 1 and keeps a width where all or none are right, which neither the normal approximation nor
    the bootstrap does ([Wilson 1927](https://doi.org/10.1080/01621459.1927.10502953); recommended by [Brown, Cai and
    DasGupta 2001](https://doi.org/10.1214/ss/1009213286)).

    Args:
        k (`int`): How many are right, between 0 and `n`.
        n (`int`): How many there are, at least 1.

    Returns:
        `tuple[float, float]`: The lower and the upper end, each between 0 and 1.

    Raises:
        ValueError: If there is no example, or `k` is not between 0 and `n`.
    """
    if n < 1:
        raise ValueError(f"An interval needs at least one example, got n={n}.")
    if not 0 <= k <= n:
        raise ValueError(f"Got k={k} of n={n}; k must be between 0 and n.")
    z = NormalDist().inv_cdf(TAILS[1])
    share = k / n
    centre = share + z**2 / (2 * n)
    half = z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    low, high = ((centre + side * half) / (1 + z**2 / n) for side in (-1, 1))
    # The ends are 0 and 1 there, and rounding would put them beside.
    return (0.0 if k == 0 else float(low)), (1.0 if k == n else float(high))


def bootstrap_interval(
    statistic: Statistic, *arrays: Any, n_resamples: int = 2000, seed: int = 0, strata: Any = None
) -> tuple[float, float]:
    r"""
    Percentile bootstrap interval of `statistic(*arrays)`: the examples are drawn again, with replacement, many times.

    Args:
        statistic (`Callable`): Takes the arrays and gives one number, as `lambda right: right.mean()`.
        arrays (array-like of shape `(n, ...)`): One entry per example; the same examples are drawn from all of them.
        n_resamples (`int`, *optional*, defaults to 2000): How many times the examples are drawn.
        seed (`int`, *optional*, defaults to 0): Seed of the draws; the same seed gives the same interval.
        strata (array-like of shape `(n,)`, *optional*):
            A group for every example. Each group is drawn from by itself, so that every resample has as many of it as
            the examples have. For statistics that need all groups present, as the AUROC needs both classes.

    Returns:
        `tuple[float, float]`: The lower and the upper end.

    Raises:
        ValueError: If the arrays differ in length or are empty, or the statistic is NaN on a resample.
    """
    examples = [np.asarray(array) for array in arrays]
    groups = np.zeros(len(examples[0]), dtype=int) if strata is None else np.asarray(strata)
    lengths = [len(array) for array in (*examples, groups)]
    if len(set(lengths)) > 1:
        raise ValueError(f"Arrays must have one entry per example, but their lengths are {lengths} (strata last).")
    if not lengths[0] or n_resamples < 1:
        raise ValueError(
            f"A bootstrap needs at least one example and one resample, got {lengths[0]} examples and "
            f"n_resamples={n_resamples}."
        )
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    generator = np.random.default_rng(seed)
    values = np.empty(n_resamples)
    for i in range(n_resamples):
        draw = np.concatenate([group[generator.integers(len(group), size=len(group))] for group in members])
        values[i] = statistic(*(array[draw] for array in examples))
    if np.isnan(values).any():
        raise ValueError(
            f"The statistic is NaN on {int(np.isnan(values).sum())} of {n_resamples} resamples. If it needs examples "
            "of every class, pass the classes as `strata`."
        )
    low, high = np.quantile(values, TAILS)
    return float(low), float(high)


def paired_interval(
    statistic: Statistic,
    before: Any,
    after: Any,
    references: Any,
    n_resamples: int = 2000,
    seed: int = 0,
    strata: Any = None,
) -> tuple[float, float]:
    r"""
    Percentile bootstrap interval of `statistic(after, references) - statistic(before, references)`.

    The same examples are drawn on both sides, so what makes an example hard for both cancels out. This is for
    statistics that are no mean over examples (F1, AUROC). Of a mean, `transferable_vp.report.paired_bootstrap` gives
    the same interval, up to the randomness of the draws, from the values of the examples alone and faster.

    Args:
        statistic (`Callable`): Takes predictions and references and gives one number.
        before (array-like of shape `(n, ...)`): Predictions without the prompt.
        after (array-like of shape `(n, ...)`): Predictions with it, for the same examples in the same order.
        references (array-like of shape `(n, ...)`): What is right.
        n_resamples, seed, strata: As in [`bootstrap_interval`].

    Returns:
        `tuple[float, float]`: The lower and the upper end.

    Raises:
        ValueError: As [`bootstrap_interval`].
    """

    def difference(before: np.ndarray, after: np.ndarray, references: np.ndarray) -> Any:
        return statistic(after, references) - statistic(before, references)

    return bootstrap_interval(difference, before, after, references, n_resamples=n_resamples, seed=seed, strata=strata)
