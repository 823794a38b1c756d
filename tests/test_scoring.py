"""Ranking of candidates, against a full forward pass for each of them."""

from __future__ import annotations

import copy
import functools
import gc
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from by_hand import T5, answer_losses, t5_pair
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from transferable_vp import scoring
from transferable_vp.prefix import make_tree
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


def test_the_model_is_not_asked_for_a_gradient(surrogates: Callable[[str], Surrogate]) -> None:
    surrogate, enabled = surrogates("llava"), []
    handle = surrogate.model.register_forward_pre_hook(lambda *_: enabled.append(torch.is_grad_enabled()))
    canvas = torch.rand(1, 3, 40, 40, requires_grad=True)
    score_candidates(surrogate, pictures(1), QUESTIONS[:1], [["a", "red"]], canvas)
    handle.remove()
    assert enabled
    assert not any(enabled)


@some_families
def test_half_precision(family: str, surrogate: Surrogate, own_pair: Callable[[str], Pair]) -> None:
    model, processor = own_pair(family)
    half = Surrogate(model.bfloat16(), processor)
    scores = score_candidates(half, pictures(), QUESTIONS, CANDIDATES)
    for score, full in zip(scores, score_candidates(surrogate, pictures(), QUESTIONS, CANDIDATES), strict=True):
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, full, rtol=0.05, atol=0.3)


def test_a_list_of_candidates_for_every_image(surrogates: Callable[[str], Surrogate]) -> None:
    with pytest.raises(ValueError):
        score_candidates(surrogates("llava"), pictures(2), QUESTIONS[:2], [["a", "red"]])
    with pytest.raises(ValueError, match="no candidates for an image"):
        score_candidates(surrogates("llava"), pictures(2), QUESTIONS[:2], [["a", "red"], []])


@some_families
@pytest.mark.parametrize("end", [False, True])
def test_lengths(family: str, surrogate: Surrogate, own_pair: Callable[[str], Pair], end: bool) -> None:
    pair = own_pair(family)
    for length in ("mean", "sum"):
        scores = score_candidates(surrogate, pictures(), QUESTIONS, CANDIDATES, length=length, end=end)
        for image, question, names, score in zip(pictures(), QUESTIONS, CANDIDATES, scores, strict=True):
            losses = [answer_losses(family, pair, image, question, name) for name in names]
            expected = [-getattr(loss if end else loss[:-1], length)().item() for loss in losses]
            torch.testing.assert_close(score, torch.tensor(expected), rtol=1e-4, atol=2e-4)


def test_a_length_that_is_none(surrogates: Callable[[str], Surrogate]) -> None:
    with pytest.raises(ValueError, match="`length` is 'max'; it must be one of 'mean', 'sum'"):
        score_candidates(surrogates("llava"), pictures(1), QUESTIONS[:1], [["a"]], length="max")  # type: ignore[arg-type]


class TestMethods:
    @pytest.fixture
    def fresh(self, own_pair: Callable[[str], Pair]) -> Surrogate:
        """A surrogate of which nothing is known yet."""
        return Surrogate(*own_pair("llava"), name="some-model")

    @staticmethod
    def full(surrogate: Surrogate, names: list[str]) -> torch.Tensor:
        return torch.tensor([naive("llava", (surrogate.model, surrogate.processor), pictures(1)[0], QUESTIONS[0], name)
                             for name in names])  # fmt: skip

    @staticmethod
    def scores(surrogate: Surrogate, names: list[str], question: str = QUESTIONS[0]) -> torch.Tensor:
        return score_candidates(surrogate, pictures(1), [question], [names])[0]

    def test_the_first_is_used_without_a_word(self, fresh: Surrogate, caplog: pytest.LogCaptureFixture) -> None:
        self.scores(fresh, CANDIDATES[0])
        assert list(scoring._CHECKED[fresh].right_to) == ["tree"]
        assert caplog.text == ""

    @pytest.mark.parametrize("raises", [False, True])
    def test_one_that_is_wrong_is_found_out(
        self, fresh: Surrogate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, raises: bool
    ) -> None:
        plain = scoring.score_tree

        def wrong(*args: Any) -> torch.Tensor:
            if raises:
                raise KeyError("of a stranger's model")
            return plain(*args) + 0.01

        monkeypatch.setattr(scoring, "score_tree", wrong)
        torch.testing.assert_close(self.scores(fresh, CANDIDATES[0]), self.full(fresh, CANDIDATES[0]))
        assert ("stranger" if raises else "off by 0.0") in scoring._CHECKED[fresh].wrong["tree"]
        assert list(scoring._CHECKED[fresh].right_to) == ["copies"]
        assert caplog.text == ""

    def test_if_all_are_wrong_it_says_so_once(
        self, fresh: Surrogate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name in ("score_tree", "score_copies"):
            plain = getattr(scoring, name)
            monkeypatch.setattr(scoring, name, lambda *args, _p=plain: _p(*args) * 1.01)
        for _ in range(2):
            torch.testing.assert_close(self.scores(fresh, CANDIDATES[0]), self.full(fresh, CANDIDATES[0]))
        assert caplog.text.count("some-model (llava): every candidate costs a full forward pass") == 1
        assert "tree: off by" in caplog.text
        assert "copies: off by" in caplog.text

    def test_no_memory_is_no_reason_to_take_another(self, fresh: Surrogate, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any) -> torch.Tensor:
            raise torch.OutOfMemoryError("all gone")

        monkeypatch.setattr(scoring, "score_tree", full)
        with pytest.raises(torch.OutOfMemoryError):
            self.scores(fresh, CANDIDATES[0])

    def test_it_is_checked_again_for_longer_prefixes_only(
        self, fresh: Surrogate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checks: list[int] = []
        plain = scoring._difference
        monkeypatch.setattr(scoring, "_difference", lambda *args: checks.append(1) or plain(*args))
        self.scores(fresh, CANDIDATES[0])
        self.scores(fresh, CANDIDATES[1])
        self.scores(fresh, CANDIDATES[0], "Is it?")
        assert len(checks) == 1
        self.scores(fresh, CANDIDATES[0], " ".join([QUESTIONS[1]] * 3))
        assert len(checks) == 2

    def test_rows_whose_logits_would_not_fit_are_split(
        self, fresh: Surrogate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = (fresh, pictures(), QUESTIONS[:1] * 3, [CANDIDATES[0]] * 3)
        expected = score_candidates(*arguments)
        sizes: list[int] = []
        plain = scoring.score_tree
        monkeypatch.setattr(scoring, "score_tree", lambda s, i, c: sizes.append(len(i["input_ids"])) or plain(s, i, c))
        nodes = len(make_tree([fresh.answer_ids(QUESTIONS[0], name) for name in CANDIDATES[0]]).tokens)
        monkeypatch.setattr(scoring, "BUDGET", 2 * 4 * fresh.vocabulary * (1 + nodes))
        for score, value in zip(score_candidates(*arguments), expected, strict=True):
            torch.testing.assert_close(score, value)
        assert sizes == [2, 1]

    def test_a_surrogate_that_is_gone_is_forgotten(self, own_pair: Callable[[str], Pair]) -> None:
        surrogate = Surrogate(*own_pair("llava"))
        self.scores(surrogate, CANDIDATES[0])
        before = len(scoring._CHECKED)
        del surrogate
        gc.collect()
        assert len(scoring._CHECKED) == before - 1
