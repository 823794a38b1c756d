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
from transformers import PreTrainedModel, ProcessorMixin


Pair = tuple[PreTrainedModel, ProcessorMixin]


@pytest.fixture(scope="session")
def shared_pair() -> Callable[[str], Pair]:
    """Gives model and processor of a family, built once a session. For tests that change neither."""
    return functools.cache(tiny.build)


@pytest.fixture
def pair(shared_pair: Callable[[str], Pair]) -> Callable[[str], Pair]:
    """Gives a test its own copy of model and processor of a family."""
    return lambda name: copy.deepcopy(shared_pair(name))
