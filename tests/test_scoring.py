"""Ranking of candidates, against a full forward pass for each of them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from by_hand import T5, answer_losses, t5_pair
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from transferable_vp.scoring import score_candidates
from transferable_vp.surrogate import Surrogate


Pair = tuple[PreTrainedModel, ProcessorMixin]
QUESTIONS = ["What is it?", "Which colour is the square in the picture, and why is it so?", "Is there a cat?"]
# With a first candidate of several tokens, and of one; with some of each; and with another number in every row.
CANDIDATES = [["red", "a", "a blue square"], ["a", "it", "maybe not", "x"], ["yes", "no"]]
all_families = pytest.mark.parametrize("family", [*tiny.FAMILIES, T5])
some_families = pytest.mark.parametrize("family", ["llava", "qwen2_vl", "instructblip", "paligemma", T5])


@pytest.fixture(scope="module")
def own_pair(shared_pair: Callable[[str], Pair]) -> Callable[[str], Pair]:
    """Gives a copy of model and processor of a family, T5 included."""
    return lambda family: copy.deepcopy(t5_pair() if family == T5 else shared_pair(family))


@pytest.fixture(scope="module")
def surrogates(own_pair: Callable[[str], Pair]) -> Callable[[str], Surrogate]:
    """Gives the surrogate of a family, made once. For tests that do not change it."""
    return functools.cache(lambda family: Surrogate(*own_pair(family), name=family))


@pytest.fixture
def surrogate(family: str, surrogates: Callable[[str], Surrogate]) -> Surrogate:
    return surrogates(family)


def pictures(count: int = 3) -> list[Image.Image]:
    return [tiny.picture(40, 40, seed=seed) for seed in range(count)]


def naive(family: str, pair: Pair, image: Any, question: str, candidate: str) -> float:
    # The last is the end token, which the paper's ranking does not count.
    return -answer_losses(family, pair, image, question, candidate)[:-1].mean().item()


@all_families
def test_scores_are_those_of_a_pass_for_every_candidate(
    family: str, surrogate: Surrogate, own_pair: Callable[[str], Pair]
) -> None:
    pair = own_pair(family)
    scores = score_candidates(surrogate, pictures(), QUESTIONS, CANDIDATES)
    assert [score.shape for score in scores] == [(3,), (4,), (2,)]
    lengths = {len(surrogate.answer_ids(q, c)) for q, row in zip(QUESTIONS, CANDIDATES, strict=True) for c in row}
    assert 1 in lengths
    assert len(lengths) > 2
    for image, question, names, score in zip(pictures(), QUESTIONS, CANDIDATES, scores, strict=True):
        assert score.dtype == torch.float32
        assert not score.requires_grad
        expected = torch.tensor([naive(family, pair, image, question, name) for name in names])
        torch.testing.assert_close(score, expected, rtol=1e-4, atol=5e-5)
        # They are far enough apart for that to mean something.
        assert len(score.unique()) == len(score)
        assert expected.max() - expected.min() > 0.01


@all_families
def test_a_batch_is_its_rows(surrogate: Surrogate) -> None:
    batch = score_candidates(surrogate, pictures(), QUESTIONS, CANDIDATES)
    for row, image in enumerate(pictures()):
        (alone,) = score_candidates(surrogate, [image], QUESTIONS[row : row + 1], CANDIDATES[row : row + 1])
        torch.testing.assert_close(batch[row], alone, rtol=1e-4, atol=5e-5)


@some_families
def test_the_image_and_the_question_matter(surrogate: Surrogate) -> None:
    names = [CANDIDATES[0]] * 3
    images = [pictures()[0], pictures()[1], pictures()[0]]
    one, other_image, other_question = score_candidates(
        surrogate, images, [QUESTIONS[0], QUESTIONS[0], QUESTIONS[1]], names
    )
    assert (one - other_image).abs().max() > 1e-4
    assert (one - other_question).abs().max() > 1e-4


@some_families
def test_a_canvas_that_no_image_can_carry(family: str, surrogate: Surrogate, own_pair: Callable[[str], Pair]) -> None:
    canvas = 3 * torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) - 1
    names = [["red", "a", "a blue square"], ["a", "maybe not"]]
    scores = score_candidates(surrogate, pictures(2), QUESTIONS[:2], names, canvas)
    pair = own_pair(family)
    for row in range(2):
        # The family's own processor is given floats, in the range of its 8-bit images.
        expected = [naive(family, pair, canvas[row] * 255, QUESTIONS[row], name) for name in names[row]]
        torch.testing.assert_close(scores[row], torch.tensor(expected), rtol=1e-4, atol=5e-5)
    deployed = score_candidates(surrogate, pictures(2), QUESTIONS[:2], names)
    assert (deployed[0] - scores[0]).abs().max() > 1e-4


def count_passes(surrogate: Surrogate, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    plain = surrogate.answer_logits

    def counting(inputs: dict[str, Any], start: int, length: int) -> torch.Tensor:
        sizes.append(len(inputs["input_ids"]))
        return plain(inputs, start, length)

    monkeypatch.setattr(surrogate, "answer_logits", counting)
    return sizes


def test_candidates_of_one_token_share_a_pass(
    surrogates: Callable[[str], Surrogate], monkeypatch: pytest.MonkeyPatch
) -> None:
    surrogate = surrogates("qwen2_vl")
    letters = list("abcdefgh")
    assert all(len(surrogate.answer_ids(QUESTIONS[0], letter)) == 1 for letter in letters)
    sizes = count_passes(surrogate, monkeypatch)
    score_candidates(surrogate, pictures(2), QUESTIONS[:2], [letters] * 2)
    assert sizes == [2]


def test_no_pass_is_larger_than_the_batch(
    surrogates: Callable[[str], Surrogate], monkeypatch: pytest.MonkeyPatch
) -> None:
    surrogate = surrogates("llava")
    sizes = count_passes(surrogate, monkeypatch)
    # Seven of several tokens: a last pass that is not full. The two of one token take one more.
    score_candidates(
        surrogate, pictures(2), QUESTIONS[:2], [["a", "red", "no", "yes"], ["a", "one", "two", "six", "x"]]
    )
    assert sizes == [2, 2, 2, 2, 1]


def test_the_model_is_not_asked_for_a_gradient(
    surrogates: Callable[[str], Surrogate], monkeypatch: pytest.MonkeyPatch
) -> None:
    surrogate, enabled = surrogates("llava"), []
    plain = surrogate.answer_logits
    monkeypatch.setattr(surrogate, "answer_logits", lambda *a: enabled.append(torch.is_grad_enabled()) or plain(*a))
    canvas = torch.rand(1, 3, 40, 40, requires_grad=True)
    score_candidates(surrogate, pictures(1), QUESTIONS[:1], [["a", "red"]], canvas)
    assert enabled == [False, False]


@some_families
def test_half_precision(family: str, surrogate: Surrogate, own_pair: Callable[[str], Pair]) -> None:
    model, processor = own_pair(family)
    half = Surrogate(model.bfloat16(), processor)
    scores = score_candidates(half, pictures(), QUESTIONS, CANDIDATES)
    for score, full in zip(scores, score_candidates(surrogate, pictures(), QUESTIONS, CANDIDATES), strict=True):
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, full, rtol=0.05, atol=0.3)


def test_log_probabilities_are_taken_in_float32(
    own_pair: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = own_pair("qwen2_vl")
    surrogate, seen = Surrogate(model.bfloat16(), processor), []
    plain = surrogate.answer_logits
    monkeypatch.setattr(surrogate, "answer_logits", lambda *a: seen.append(plain(*a)) or seen[-1])
    (scores,) = score_candidates(surrogate, pictures(1), QUESTIONS[:1], [["x", "red"]])
    assert [logits.dtype for logits in seen] == [torch.bfloat16] * 2
    for score, logits, name in zip(scores, seen, ["x", "red"], strict=True):
        ids = surrogate.answer_ids(QUESTIONS[0], name)
        expected = logits[0].float().log_softmax(-1)[range(len(ids)), ids].mean()
        torch.testing.assert_close(score, expected)


def test_a_list_of_candidates_for_every_image(surrogates: Callable[[str], Surrogate]) -> None:
    with pytest.raises(ValueError):
        score_candidates(surrogates("llava"), pictures(2), QUESTIONS[:2], [["a", "red"]])
