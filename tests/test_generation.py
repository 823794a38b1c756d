"""Answers that models write: what full passes find most likely, in batches, for every kind of model."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from by_hand import T5, t5_pair
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from transferable_vp import generation
from transferable_vp.generation import generate
from transferable_vp.surrogate import Surrogate


Pair = tuple[PreTrainedModel, ProcessorMixin]
QUESTIONS = ["Is it?", "Which colour is the square in the picture, and why is it so?", "What is it?"]
families = pytest.mark.parametrize("family", ["llava", "qwen2_vl", "idefics3", "smolvlm", "blip-2", T5])


@pytest.fixture
def own_pair(shared_pair: Callable[[str], Pair]) -> Callable[[str], Pair]:
    """Gives a copy of model and processor of a family, T5 included."""
    return lambda family: copy.deepcopy(t5_pair() if family == T5 else shared_pair(family))


@pytest.fixture
def surrogate(own_pair: Callable[[str], Pair]) -> Callable[[str], Surrogate]:
    return functools.cache(lambda family: Surrogate(*own_pair(family), name="some-model"))


def pictures() -> list[Image.Image]:
    return [tiny.picture(40, 40, seed=seed) for seed in range(3)]


@torch.no_grad()
def by_hand(surrogate: Surrogate, image: Image.Image, question: str, count: int, canvas: Any = None) -> list[int]:
    """Greedy tokens, each from a full pass over all that is before it."""
    written: list[int] = []
    while len(written) < count and surrogate.end_token_id not in written:
        given = None if canvas is None else canvas[None]
        inputs = surrogate.encode([image], [question], given, unbounded=canvas is not None)
        inputs, start, labels = surrogate.append_ids(inputs, [[*written, 0]])
        written.append(int(surrogate.answer_logits(inputs, start, labels.shape[1])[0, -1].argmax()))
    return written


def text(surrogate: Surrogate, ids: list[int]) -> str:
    return surrogate.tokenizer.decode(ids, skip_special_tokens=True).strip()


@families
def test_a_batch_writes_what_full_passes_find(
    family: str, surrogate: Callable[[str], Surrogate], caplog: pytest.LogCaptureFixture
) -> None:
    model = surrogate(family)
    answers = generate(model, pictures(), QUESTIONS, max_new_tokens=5)
    expected = [text(model, by_hand(model, i, q, 5)) for i, q in zip(pictures(), QUESTIONS, strict=True)]
    assert answers == expected
    assert len(set(answers)) > 1
    # By the model's own `generate`, not by the way round it.
    assert caplog.text == ""


def test_what_no_image_can_carry(surrogate: Callable[[str], Surrogate]) -> None:
    model = surrogate("llava")
    canvas = 3 * torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) - 1
    answers = generate(model, pictures()[:2], QUESTIONS[:2], canvas, max_new_tokens=6)
    expected = [text(model, by_hand(model, pictures()[i], QUESTIONS[i], 6, canvas[i])) for i in range(2)]
    assert answers == expected
    assert answers != generate(model, pictures()[:2], QUESTIONS[:2], max_new_tokens=6)


def test_where_an_answer_is_cut(surrogate: Callable[[str], Surrogate]) -> None:
    model = surrogate("llava")
    image, question = pictures()[0], QUESTIONS[0]
    ids = by_hand(model, image, question, 8)
    assert len(ids) == 8
    assert generate(model, [image], [question], max_new_tokens=8) == [text(model, ids)]
    assert generate(model, [image], [question], max_new_tokens=3) == [text(model, ids[:3])]


def test_a_text_that_ends_an_answer(surrogate: Callable[[str], Surrogate]) -> None:
    model = surrogate("llava")
    image, question = pictures()[0], QUESTIONS[0]
    (whole,) = generate(model, [image], [question], max_new_tokens=8)
    stop = whole[2:4]
    (cut,) = generate(model, [image], [question], max_new_tokens=8, stop=[stop])
    assert cut == whole[: whole.index(stop)].strip()


def test_rows_that_a_text_ends_beside_longer_ones(
    surrogate: Callable[[str], Surrogate], caplog: pytest.LogCaptureFixture
) -> None:
    model = surrogate("llava")
    whole = generate(model, pictures(), QUESTIONS, max_new_tokens=8)
    stop = whole[0][2:4]
    assert not all(stop in answer for answer in whole)
    generation._RIGHT_TO.pop(model)
    cut = generate(model, pictures(), QUESTIONS, max_new_tokens=8, stop=[stop])
    assert cut == [answer.split(stop)[0].strip() for answer in whole]
    # The padding behind the shorter answer is no token that it wrote.
    assert caplog.text == ""


def test_the_end_token_of_the_tokenizer_ends_it(own_pair: Callable[[str], Pair]) -> None:
    model = Surrogate(*own_pair("llava"))
    image, question = pictures()[0], QUESTIONS[0]
    third = by_hand(model, image, question, 3)[2]
    model.model.generation_config.eos_token_id = None
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(third)
    answer = generate(model, [image], [question], max_new_tokens=8)
    assert answer == [text(model, by_hand(model, image, question, 8))]
    assert len(by_hand(model, image, question, 8)) == 3


def test_a_checkpoint_that_samples_is_not_let(own_pair: Callable[[str], Pair]) -> None:
    model = Surrogate(*own_pair("llava"))
    expected = generate(model, pictures(), QUESTIONS, max_new_tokens=5)
    settings = {"do_sample": True, "temperature": 50.0, "top_k": 0, "num_beams": 3, "max_length": 7,
                "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "suppress_tokens": list(range(4, 300, 2))}  # fmt: skip
    model.model.generation_config.update(**settings)
    assert generate(model, pictures(), QUESTIONS, max_new_tokens=5) == expected
    # And its settings are left as they are.
    assert all(getattr(model.model.generation_config, name) == value for name, value in settings.items())


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("family", ["llava", T5])
def test_a_generate_that_is_wrong_is_found_out(
    family: str,
    raises: bool,
    surrogate: Callable[[str], Surrogate],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = surrogate(family)
    plain = model.model.generate

    def wrong(**inputs: Any) -> torch.Tensor:
        if raises:
            raise KeyError("of a stranger's model")
        output = plain(**inputs)
        output[:, -3] += 1
        return output

    monkeypatch.setattr(model.model, "generate", wrong)
    for _ in range(2):
        answers = generate(model, pictures(), QUESTIONS, max_new_tokens=5)
        expected = [text(model, by_hand(model, i, q, 5)) for i, q in zip(pictures(), QUESTIONS, strict=True)]
        assert answers == expected
    assert caplog.text.count("some-model") == 1
    assert "every token of an answer costs a full forward pass" in caplog.text
    assert ("stranger" in caplog.text) == raises


def test_no_memory_is_no_reason_to_go_the_long_way(
    surrogate: Callable[[str], Surrogate], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = surrogate("llava")

    def full(**_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("all gone")

    monkeypatch.setattr(model.model, "generate", full)
    with pytest.raises(torch.OutOfMemoryError):
        generate(model, pictures(), QUESTIONS)


def test_it_is_looked_at_again_for_longer_prefixes_only(
    surrogate: Callable[[str], Surrogate], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, looks = surrogate("llava"), []
    plain = generation._doubt
    monkeypatch.setattr(generation, "_doubt", lambda *args: looks.append(1) or plain(*args))
    for question in (QUESTIONS[2], QUESTIONS[0], QUESTIONS[2]):
        generate(model, pictures()[:1], [question], max_new_tokens=2)
    assert len(looks) == 1
    generate(model, pictures()[:1], [QUESTIONS[1]], max_new_tokens=2)
    assert len(looks) == 2


def test_half_precision(own_pair: Callable[[str], Pair], caplog: pytest.LogCaptureFixture) -> None:
    model, processor = own_pair("llava")
    answers = generate(Surrogate(model.bfloat16(), processor), pictures(), QUESTIONS, max_new_tokens=4)
    assert len(answers) == 3
    assert caplog.text == ""
