"""VisualGLM's tokenizer against SentencePiece itself, and what it adds."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
import tiny_visualglm
from transformers import AutoTokenizer

from transferable_vp.models.visualglm import VisualGLMTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> VisualGLMTokenizer:
    return tiny_visualglm.tokenizer()


@pytest.fixture(scope="module")
def pieces() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=tiny_visualglm.ice_text())


# Left what is asked for, right what the published code gives to SentencePiece: breaks, tabs and blanks spelled out.
SPELLED = {
    "a blue square": "a blue square",
    "Q: what?\nA:": "Q: what?<n>A:",
    "one\ttwo": "one<|tab|>two",
    "one  two   three": "one<|blank_2|>two<|blank_3|>three",
    "x" + " " * 80 + "y": "x<|blank_80|>y",
    "x" + " " * 81 + "y": "x<|blank_80|> y",
    "x" + " " * 163 + "y": "x<|blank_80|><|blank_80|><|blank_3|>y",
    "  begins": "<|blank_2|>begins",
    "é 中": "é 中",
}


@pytest.mark.parametrize("text", SPELLED, ids=range(len(SPELLED)))
def test_ids_are_those_of_sentencepiece(
    tokenizer: VisualGLMTokenizer, pieces: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    assert tokenizer(text, add_special_tokens=False).input_ids == pieces.encode(SPELLED[text])


@pytest.mark.parametrize("text", ["a blue square", "Q: what?\nA:\tone  two", "é 中", "x" + " " * 83 + "y"])
def test_a_text_comes_back(tokenizer: VisualGLMTokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode(ids) == text + "[gMASK]<sop>"


def test_a_context_ends_with_the_mask_and_the_beginning(
    tokenizer: VisualGLMTokenizer, pieces: sentencepiece.SentencePieceProcessor
) -> None:
    mask, begin, end = (pieces.piece_to_id(token) for token in ("[gMASK]", "<sop>", "<eop>"))
    plain = pieces.encode("a cat")
    encoded = tokenizer("a cat", return_special_tokens_mask=True)
    assert encoded.input_ids == [*plain, mask, begin]
    assert encoded.special_tokens_mask == [*[0] * len(plain), 1, 1]
    assert tokenizer("a cat", "dog").input_ids == [*plain, mask, begin, *pieces.encode("dog"), end]
    assert tokenizer("a cat", truncation=True, max_length=4).input_ids == [*plain[:2], mask, begin]
    assert tokenizer.num_special_tokens_to_add() == 2
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id) == (3, 0, end)
    assert (tokenizer.bos_token_id, tokenizer.gmask_token_id) == (begin, mask)


def test_a_special_token_parts_the_text_and_its_blanks_stay(
    tokenizer: VisualGLMTokenizer, pieces: sentencepiece.SentencePieceProcessor
) -> None:
    """Each part is encoded on its own, as the published code does around an image."""
    ids = tokenizer("<img><unk><unk></img> a  cat", add_special_tokens=False).input_ids
    assert ids == [*pieces.encode("<img>"), 0, 0, *pieces.encode("</img> a<|blank_2|>cat")]


def test_rows_are_padded_on_the_left(tokenizer: VisualGLMTokenizer) -> None:
    batch = tokenizer(["a", "a blue square"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    short = tokenizer("a").input_ids
    missing = len(batch.input_ids[1]) - len(short)
    assert missing > 0 and batch.input_ids[0] == [3] * missing + short
    assert batch.attention_mask[0] == [0] * missing + [1] * len(short)


def test_saving_and_loading_change_nothing(tokenizer: VisualGLMTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is VisualGLMTokenizer
    text = "Q: one  two\nA:"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert (loaded.gmask_token_id, loaded.padding_side) == (tokenizer.gmask_token_id, "left")
    assert (tmp_path / "ice_text.model").read_bytes() == tiny_visualglm.ice_text()


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat and a dog"] * 3), model_prefix=str(tmp_path / "other"), vocab_size=20,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"has no token .*\[gMASK\].*ice_text.model"):
        VisualGLMTokenizer(str(tmp_path / "other.model"))


def test_an_id_beyond_the_vocabulary_is_unknown(tokenizer: VisualGLMTokenizer) -> None:
    # The published model has 130,528 logits and fewer pieces.
    beyond = tokenizer.vocab_size
    assert tokenizer.convert_ids_to_tokens([beyond, beyond + 100]) == ["<unk>", "<unk>"]
    assert "\u2047" in tokenizer.decode([beyond])  # SentencePiece's sign for what it does not know
