"""The rows that every baseline is given: to learn from, to choose with, and to be measured on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from transferable_vp import Task, load_data
from transferable_vp.demo import load_world, make_panels


# What a person who knows the zoo's task might write before the question, besides what suits any task.
COLOR_HINTS = ("The light is green.", "In white light:")


@dataclass(frozen=True)
class Rows:
    r"""
    One task's rows, in three parts that share no row.

    Args:
        title (`str`): What is asked, for headings.
        task ([`Task`]): How to read a row. `flip` says whether mirroring leaves every answer right.
        train (sequence of `dict`): What is learned from.
        validation (sequence of `dict`): Held out of the training split, for the choices a baseline makes.
        test (sequence of `dict`): What is measured, once, when everything has been chosen.
        hints (`tuple[str, ...]`, *optional*): Instructions that suit this task only, for the text prompt.
    """

    title: str
    task: Task
    train: Sequence[Any]
    validation: Sequence[Any]
    test: Sequence[Any]
    hints: tuple[str, ...] = ()


def take(rows: Any, indices: np.ndarray) -> Any:
    """The rows at `indices`, in that order, of a `datasets.Dataset` or of a list."""
    return rows.select(indices) if hasattr(rows, "select") else [rows[i] for i in indices.tolist()]


def split_rows(
    title: str,
    task: Task,
    pool: Any,
    test: Any,
    n_train: int,
    n_validation: int,
    n_test: int,
    hints: tuple[str, ...] = (),
) -> Rows:
    r"""
    Draws the three parts, the same ones every time: training and validation from `pool`, test from `test`.

    Raises:
        ValueError: If fewer rows are there than were asked for, or the task has no answers to choose from.
    """
    if task.candidates is None:
        raise ValueError(
            "There are no answers to choose from: the dataset has no class labels, so give `--candidates`."
        )
    for what, asked, there in (("--n_train plus --n_validation", n_train + n_validation, len(pool)),
                               ("--n_test", n_test, len(test))):  # fmt: skip
        if asked > there:
            raise ValueError(f"{what} is {asked} but there are {there} rows: ask for fewer, or name a longer split.")
    if min(n_train, n_validation, n_test) < 1:
        raise ValueError(
            f"--n_train, --n_validation and --n_test are {n_train}, {n_validation} and {n_test}; each must be 1 or more."
        )
    drawn = np.random.default_rng(0).permutation(len(pool))
    measured = np.random.default_rng(0).permutation(len(test))[:n_test]
    train, validation = drawn[:n_train], drawn[n_train : n_train + n_validation]
    return Rows(title, task, take(pool, train), take(pool, validation), take(test, measured), hints)


def zoo_rows(n_train: int, n_validation: int, n_test: int) -> Rows:
    """Colours under a green light, the first task of the demo: its training and test pictures, drawn offline."""
    # `quick` leaves out the second task.
    panel = make_panels(load_world(), n_train + n_validation, n_test, quick=True)[0]
    # A mirrored picture has the colours it had.
    task = replace(panel.task, flip=True)
    return split_rows(panel.title, task, panel.train, panel.test, n_train, n_validation, n_test, COLOR_HINTS)


def dataset_rows(
    path: str,
    train_split: str,
    test_split: str,
    n_train: int,
    n_validation: int,
    n_test: int,
    name: str | None = None,
    **columns: Any,
) -> Rows:
    """Rows of any dataset that `load_data` reads; `columns` are arguments of [`Task.infer`]."""
    pool, test = load_data(path, train_split, name), load_data(path, test_split, name)
    return split_rows(f"{path} ({test_split})", Task.infer(pool, **columns), pool, test, n_train, n_validation, n_test)


def training_order(rows: Any, max_steps: int, batch_size: int, seed: int) -> Any:
    r"""
    Every row of a training in the order in which it is seen, reshuffled after each pass over the data.

    Drawn here and then read in sequence, so that all baselines see the same rows in the same order whatever else they
    do with random numbers.

    Returns:
        `max_steps * batch_size` rows.
    """
    needed, rng = max_steps * batch_size, np.random.default_rng(seed)
    passes = [rng.permutation(len(rows)) for _ in range(math.ceil(needed / len(rows)))]
    return take(rows, np.concatenate(passes)[:needed])
