"""BLIP-2 and InstructBLIP, straight from transformers, against the published architecture restated in plain torch."""

from __future__ import annotations

import functools
from pathlib import Path

import checkpoints
import published as restated
import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny_t5 import build_t5
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipImageProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
)

from transferable_vp import Surrogate, score_candidates
from transferable_vp.models import lavis
from transferable_vp.models.convert import Weights, rename


QUESTION, ANSWER = "What is in the picture?", "a blue square"
CANDIDATES = ["red", "a blue square", "zero one two"]
T5_HEAD = 8


def towers(weights: Weights, eva: Weights, rules: lavis.Rules, projection: str) -> Weights:
    """What transformers calls the image encoder, the Q-Former and the projection, of published files."""
    own = {key: value for key, value in weights.items() if not key.startswith(projection)}
    result = rename(own, rules._replace(need=()), "test") | rename(eva, lavis.EVA_RULES, "test")
    names = {f"{projection}.{part}": f"language_projection.{part}" for part in ("weight", "bias")}
    return lavis._join_biases(result) | {new: weights[old] for old, new in names.items()}


@functools.cache
def blip2() -> tuple[Surrogate, Weights, Weights]:
    """BLIP-2 with FlanT5's kind of T5, and its weights under LAVIS' keys: towers, and T5."""
    _, processor = build_t5()
    weights = checkpoints.qformer(None) | checkpoints.projection("t5_proj")
    converted = towers(weights, checkpoints.eva(), lavis.BLIP2_RULES, "t5_proj")
    text = {
        "model_type": "t5", "d_model": checkpoints.LLAMA, "d_kv": T5_HEAD, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "vocab_size": len(processor.tokenizer), "dense_act_fn": "gelu", "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False, "decoder_start_token_id": 0, "pad_token_id": 0, "dropout_rate": 0.0,
        "eos_token_id": processor.tokenizer.eos_token_id,
    }  # fmt: skip
    config = Blip2Config(
        vision_config=lavis._vision_config(converted), qformer_config=lavis._qformer_config(converted), text_config=text,
        num_query_tokens=checkpoints.QUERIES, image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    # `gated-gelu` alone is the approximate one, and LAVIS asks for the exact one, as the Hub's configuration does.
    config.text_config.dense_act_fn = "gelu"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Blip2ForConditionalGeneration(config)
        tiny.initialise(model.language_model)
    found = model.load_state_dict(converted, strict=False)
    assert not found.unexpected_keys
    assert all(key.startswith("language_model.") for key in found.missing_keys)
    t5 = {key: value.clone() for key, value in model.language_model.state_dict().items()}
    processor.image_processor.size = {"height": 32, "width": 32}
    return Surrogate(model.eval(), processor), weights, t5


@functools.cache
def instructblip() -> tuple[Surrogate, Weights, Weights]:
    """InstructBLIP with Vicuna's kind of LLaMA, and its weights under LAVIS' keys: towers, and LLaMA."""
    tokenizer = checkpoints.llama_tokenizer(bos_token="</s>", unk_token="</s>", add_bos_token=True)
    bert = tiny.word_piece_tokenizer("[DEC]")
    processor = InstructBlipProcessor(
        BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer, bert, num_query_tokens=checkpoints.QUERIES
    )
    weights = checkpoints.qformer(len(bert)) | checkpoints.projection("llm_proj")
    converted = towers(weights, checkpoints.eva(), lavis.BLIVA_RULES, "llm_proj")
    text = {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": checkpoints.LLAMA, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256,
    }  # fmt: skip
    config = InstructBlipConfig(
        vision_config=lavis._vision_config(converted), qformer_config=lavis._qformer_config(converted), text_config=text,
        num_query_tokens=checkpoints.QUERIES, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = InstructBlipForConditionalGeneration(config)
        tiny.initialise(model.language_model)
    found = model.load_state_dict(converted, strict=False)
    assert not found.unexpected_keys
    assert all(key.startswith("language_model.") for key in found.missing_keys)
    llama = {key: value.clone() for key, value in model.language_model.state_dict().items()}
    return Surrogate(model.eval(), processor), weights, llama


def blip2_logits(inputs: Weights, answer: list[int]) -> torch.Tensor:
    """One row: the image and the question with its end token are read, the answer is written."""
    _, weights, t5 = blip2()
    image = restated.image_tokens(weights, checkpoints.eva(), inputs["pixel_values"], "t5_proj")
    words = t5["shared.weight"][inputs["input_ids"][:, checkpoints.QUERIES :]]
    both = torch.cat([image, words], dim=1)
    return restated.t5(t5, both, torch.ones(both.shape[:2]), torch.tensor([[0, *answer]]), T5_HEAD)[0]


def instructblip_logits(inputs: Weights, answer: list[int]) -> torch.Tensor:
    """One row: the image, `</s>` and the question, the answer; the Q-Former reads the question as well."""
    _, weights, llama = instructblip()
    image = restated.image_tokens(
        weights, checkpoints.eva(), inputs["pixel_values"], "llm_proj", inputs["qformer_input_ids"],
        inputs["qformer_attention_mask"],
    )  # fmt: skip
    ids = [*inputs["input_ids"][0, checkpoints.QUERIES :].tolist(), *answer]
    return restated.llama(llama, torch.cat([image, llama["model.embed_tokens.weight"][ids][None]], dim=1), 4)[0]


MODELS = {"blip-2": (blip2, blip2_logits), "instructblip": (instructblip, instructblip_logits)}


@pytest.mark.parametrize("name", MODELS)
class TestNumerics:
    def test_logits(self, name: str) -> None:
        build, published = MODELS[name]
        surrogate = build()[0]
        inputs = surrogate.encode([tiny.picture()], [QUESTION])
        torch.testing.assert_close(surrogate.model(**inputs).logits[0], published(inputs, []), rtol=1e-4, atol=1e-4)

    def test_loss_on_the_answer(self, name: str) -> None:
        build, published = MODELS[name]
        surrogate = build()[0]
        inputs = surrogate.encode([tiny.picture()], [QUESTION])
        longer, start, labels = surrogate.append_answers(inputs, [QUESTION], [ANSWER])
        loss = F.cross_entropy(surrogate.answer_logits(longer, start, labels.shape[1])[0], labels[0])
        ids = [*surrogate.answer_ids(QUESTION, ANSWER), surrogate.end_token_id]
        expected = -restated.answer_log_probabilities(published(inputs, ids), ids).mean()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-4)

    def test_candidate_scores(self, name: str) -> None:
        build, published = MODELS[name]
        surrogate = build()[0]
        inputs = surrogate.encode([tiny.picture()], [QUESTION])
        scores = score_candidates(surrogate, [tiny.picture()], [QUESTION], [CANDIDATES])[0]
        for score, candidate in zip(scores, CANDIDATES, strict=True):
            ids = surrogate.answer_ids(QUESTION, candidate)
            expected = restated.answer_log_probabilities(published(inputs, ids), ids).mean()
            assert score.item() == pytest.approx(expected.item(), abs=1e-4)


def test_a_folder_of_transformers_gives_minigpt4_the_same_as_the_file_of_lavis(
    published: Path, converted: Path, tmp_path: Path
) -> None:
    # The same towers as in `blip2.pth`, as transformers saves them.
    blip2()[0].model.save_pretrained(tmp_path / "blip2", max_shard_size="300KB")
    lavis.convert_minigpt4(published / "minigpt4.pth", published / "vicuna", tmp_path / "blip2", tmp_path / "minigpt4")
    own = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "minigpt4").state_dict()
    other = Blip2ForConditionalGeneration.from_pretrained(converted / "minigpt4").state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in own.items())
    # Or the image encoder alone.
    lavis.convert_vpgtrans(published / "vpgtrans.pth", published / "vicuna", tmp_path / "vpgtrans", tmp_path / "blip2")
    own = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "vpgtrans").state_dict()
    other = Blip2ForConditionalGeneration.from_pretrained(converted / "vpgtrans").state_dict()
    assert all(torch.equal(value, other[key]) for key, value in own.items())
