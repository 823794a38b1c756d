"""Every promise of `checks.py`, asked of every family of `roster.py`."""

from __future__ import annotations

import functools

import checks
import pytest
import roster
import tiny
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


@functools.cache
def case(family: str) -> checks.Case:
    """The family's model and processor, built once a process."""
    if roster.IS_OLD and family not in tiny.FAMILIES:
        pytest.skip(f"the table is of a later transformers than {transformers.__version__}")
    return checks.Case(*tiny.build(family, roster.BUILDERS))


def rows(names: list[str]) -> list[object]:
    """One parameter a family; those beyond the representative ones are slow."""
    return [pytest.param(n, marks=() if n in roster.REPRESENTATIVE else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("check", checks.CHECKS)
@pytest.mark.parametrize("family", rows(roster.FAMILIES))
def test_family(family: str, check: str) -> None:
    checks.CHECKS[check](case(family))


@pytest.mark.parametrize("family", rows(list(roster.REFUSED)))
def test_refused(family: str) -> None:
    refusal = roster.REFUSED[family]
    with pytest.raises(refusal.error, match=refusal.match):
        (refused := case(family)).run(refused.prompt())


@pytest.mark.parametrize("family", ["apertus1p5", "chameleon", "emu3"])
@pytest.mark.slow
def test_a_model_of_discrete_tokens_can_be_a_target(family: str) -> None:
    checks.check_attach(case(family))
    checks.check_ranking(case(family))


@pytest.mark.skipif(roster.IS_OLD, reason="the roster is of a later transformers")
def test_every_row_is_a_type_of_transformers_and_is_there_once() -> None:
    named = [*roster.FAMILIES, *roster.REFUSED, *roster.NOT_BUILT]
    assert len(named) == len(set(named))
    types = {name.split(" (")[0] for name in named} - roster.PAPER
    assert types <= set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    assert {v.split(" (")[0] for v in roster.VARIANTS} <= set(roster.FAMILIES)
    for name in set(roster.FAMILIES) - roster.VARIANTS - roster.PAPER:
        # What was built is what the type's name promises.
        assert type(tiny.build(name, roster.BUILDERS)[0]).__name__ == MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[name]
