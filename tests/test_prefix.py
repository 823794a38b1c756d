"""Candidates that share a cache, by every way of doing it, on every kind of cache."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
import tiny
import torch

from transferable_vp import Surrogate
from transferable_vp.prefix import make_tree, read_prefix, score_copies, score_decoder, score_tree
from transferable_vp.scoring import _loop


sys.path.insert(0, str(Path(__file__).with_name("conformance")))
import roster


QUESTION = "What is in the picture?"
CANDIDATES = ["red", "a blue square", "a blue circle", "zero one two", "zero"]
TREE = {
    "llava": "dynamic", "gemma3": "sliding window", "aya_vision": "sliding window, left padding", "qwen2_vl": "M-RoPE",
    "paligemma": "positions from 1, bidirectional prefix", "blip-2": "learned positions", "mllama": "cross attention",
    "idefics3": "tiles", "hunyuan_vl": "four axes of positions",
}  # fmt: skip
COPIES = TREE | {
    "qwen3_5": "linear attention", "lfm2_vl": "convolution", "llama4": "chunked attention", "lfm3_vl": "hybrid, sliding",
    "kosmos-2": "positions of its own",
}  # fmt: skip
DECODER = ["blip-2 (t5)", "florence2", "pix2struct", "vision-encoder-decoder", "t5gemma2"]


@functools.cache
def surrogate(family: str) -> Surrogate:
    if roster.IS_OLD and family not in tiny.FAMILIES:
        pytest.skip("of this transformers, only the families of tests/tiny.py are sure to be as they are here")
    if family in roster.REFUSED:
        pytest.skip(roster.REFUSED[family].reason)
    return Surrogate(*tiny.build(family, roster.BUILDERS), name=family)


def check(family: str, method: object) -> None:
    """Scores of two rows by `method` against full passes, for candidates with and without shared beginnings."""
    model = surrogate(family)
    images = tiny.noise_prompt(canvas_size=64, border_size=12).apply([tiny.picture(60, 44, seed=i) for i in (1, 2)])
    ids = [model.answer_ids(QUESTION, name) for name in CANDIDATES]
    assert len(set(map(len, ids))) > 1
    with torch.no_grad():
        found = method(model, model.encode(images, [QUESTION] * 2), ids)  # type: ignore[operator]
        expected = _loop(model, model.encode(images, [QUESTION] * 2), ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", TREE)
def test_as_a_tree(family: str) -> None:
    check(family, score_tree)


@pytest.mark.parametrize("family", COPIES)
def test_with_a_copy_of_the_cache_each(family: str) -> None:
    check(family, score_copies)


@pytest.mark.parametrize("family", DECODER)
def test_with_one_run_of_the_encoder(family: str) -> None:
    check(family, score_decoder)


def test_layers_that_no_tree_fits() -> None:
    with pytest.raises(RuntimeError, match="it has layers of full_attention, linear_attention"):
        check("qwen3_5", score_tree)


@pytest.mark.parametrize(("family", "window"), [("gemma3", 16), ("aya_vision", None)])
def test_prefixes_are_longer_than_the_window(family: str, window: int | None) -> None:
    # Or the test above would say nothing about windows.
    model = surrogate(family)
    config = model.config.get_text_config()
    inputs = model.encode([tiny.picture()], [QUESTION])
    assert window is None or config.sliding_window == window
    assert inputs["input_ids"].shape[1] > config.sliding_window
    assert "sliding_attention" in config.layer_types


def test_more_candidates_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transferable_vp.prefix.CHUNK", 2)
    check("llava", score_copies)
    check("blip-2 (t5)", score_decoder)


class TestTree:
    def test_candidates_that_begin_alike_share_nodes(self) -> None:
        tree = make_tree([[5, 6, 7], [5, 6, 8], [5, 9], [4], [6, 7, 8, 9]])
        # 5, 5-6, 6, 6-7, 6-7-8: nothing is read after a last token.
        assert tree.tokens == [5, 6, 6, 7, 8]
        assert tree.parents == [-1, 0, -1, 2, 3]
        assert tree.depths == [0, 1, 0, 1, 2]
        assert tree.paths == [[-1, 0, 1], [-1, 0, 1], [-1, 0], [-1], [-1, 2, 3, 4]]

    def test_one_token_needs_no_node(self) -> None:
        assert make_tree([[1], [2]]).tokens == []

    def test_the_same_token_at_another_place_is_another_node(self) -> None:
        assert make_tree([[1, 1, 1]]).tokens == [1, 1]


def test_the_prefix_is_run_once() -> None:
    model, runs = surrogate("llava"), []
    ids = [model.answer_ids(QUESTION, name) for name in CANDIDATES]
    inputs = model.encode([tiny.picture()], [QUESTION])
    handle = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: runs.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with torch.no_grad():
        score_tree(model, inputs, ids)
    handle.remove()
    assert runs == [inputs["input_ids"].shape[1], len(make_tree(ids).tokens)]


def test_padding_does_not_stand_before_the_answer() -> None:
    model = surrogate("llava")
    image, longer = tiny.picture(), QUESTION * 2
    alone = model.encode([image], [QUESTION])
    padded = {key: value[:1] for key, value in model.encode([image, image], [QUESTION, longer]).items()}
    assert padded["input_ids"].shape[1] > alone["input_ids"].shape[1]
    with torch.no_grad():
        one, other = read_prefix(model, alone), read_prefix(model, padded)
    assert one.length == other.length
    torch.testing.assert_close(one.logits, other.logits)
