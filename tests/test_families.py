"""families.py: what it names exists."""

from __future__ import annotations

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from transferable_vp import models  # noqa: F401  its classes join the mapping
from transferable_vp.families import FAMILIES, Family


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_is_of_a_model_that_there_is(name: str) -> None:
    from transformers import AutoConfig

    assert name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or AutoConfig.for_model(name).model_type == name


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_says_why_and_differs(name: str) -> None:
    family = FAMILIES[name]
    assert family.reason and family != Family(family.reason)
