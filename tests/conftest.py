"""Fixtures that all tests share."""

from __future__ import annotations

import os


# Before transformers is imported: no test may need the Hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import copy
import functools
from collections.abc import Callable

import pytest
import tiny
from by_hand import T5, t5_pair
from transformers import PreTrainedModel, ProcessorMixin

from transferable_vp import Surrogate


Pair = tuple[PreTrainedModel, ProcessorMixin]


@pytest.fixture(scope="session")
def shared_pair() -> Callable[[str], Pair]:
    """Gives model and processor of a family, built once a session. For tests that change neither."""
    return functools.cache(tiny.build)


@pytest.fixture
def pair(shared_pair: Callable[[str], Pair]) -> Callable[[str], Pair]:
    """Gives a test its own copy of model and processor of a family."""
    return lambda name: copy.deepcopy(shared_pair(name))


@pytest.fixture
def own_pair(pair: Callable[[str], Pair]) -> Callable[[str], Pair]:
    """Gives a test its own copy of model and processor of a family, T5 included."""
    return lambda family: copy.deepcopy(t5_pair()) if family == T5 else pair(family)


@pytest.fixture(scope="module")
def surrogates(shared_pair: Callable[[str], Pair]) -> Callable[[str], Surrogate]:
    """Gives the surrogate of a family, made once, of a copy of its own. For tests that do not change it."""
    return functools.cache(
        lambda family: Surrogate(*copy.deepcopy(t5_pair() if family == T5 else shared_pair(family)), name=family)
    )


@pytest.fixture
def surrogate(family: str, surrogates: Callable[[str], Surrogate]) -> Surrogate:
    """The surrogate of the family that a test is parametrised by."""
    return surrogates(family)
