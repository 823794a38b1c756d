"""BLIVA: the numbers of the published architecture with its patch tokens and without, and its processor."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import published as restated
import pytest
import tiny
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, InstructBlipForConditionalGeneration

from transferable_vp import Surrogate, score_candidates
from transferable_vp.answers import answer_loss
from transferable_vp.models import BlivaConfig, BlivaForConditionalGeneration, BlivaProcessor


QUESTIONS = ["This is a photo of a", "What is in the picture?"]
ANSWERS = ["red", "blue square"]
TOKENS = {True: checkpoints.QUERIES + checkpoints.PATCHES, False: checkpoints.QUERIES}


@pytest.fixture(scope="module", params=[True, False], ids=["patches", "queries-only"])
def surrogate(request: pytest.FixtureRequest, converted: Path) -> Surrogate:
    """The converted model, loaded as any other, with patch tokens and without."""
    folder, wanted = str(converted / "bliva"), request.param
    model = AutoModelForImageTextToText.from_pretrained(folder, use_patch_tokens=wanted)
    return Surrogate(model, AutoProcessor.from_pretrained(folder, use_patch_tokens=wanted))


def published_logits(
    surrogate: Surrogate, folder: Path, inputs: dict[str, torch.Tensor], text: list[int]
) -> torch.Tensor:
    """One row: queries, patches if wanted, and the ids of the text, beginning token included."""
    weights = torch.load(folder / "bliva.pth", weights_only=True)["model"]
    vicuna: dict[str, torch.Tensor] = {}
    for part in sorted((folder / "vicuna").glob("*.bin")):
        vicuna |= torch.load(part, weights_only=True)
    image = restated.bliva_tokens(
        weights, inputs["pixel_values"], inputs["qformer_input_ids"], inputs["qformer_attention_mask"]
    )[:, : TOKENS[surrogate.config.use_patch_tokens]]
    words = vicuna["model.embed_tokens.weight"][text]
    return restated.llama(vicuna, torch.cat([image, words[None]], dim=1), 4)[0]


def ids_of(surrogate: Surrogate, text: str) -> list[int]:
    return surrogate.tokenizer(text, add_special_tokens=False).input_ids


class TestNumerics:
    """Against `published.py`, from the same checkpoint."""

    def test_logits(self, surrogate: Surrogate, published: Path) -> None:
        inputs = surrogate.encode([tiny.picture()], QUESTIONS[:1])
        # The beginning token is `</s>`.
        expected = published_logits(surrogate, published, inputs, [2, *ids_of(surrogate, QUESTIONS[0])])
        torch.testing.assert_close(surrogate.model(**inputs).logits[0], expected, rtol=1e-4, atol=1e-4)

    def test_loss_of_a_padded_batch(self, surrogate: Surrogate, published: Path) -> None:
        inputs = surrogate.encode([tiny.picture(seed=seed) for seed in (1, 2)], QUESTIONS)
        longer, start, labels = surrogate.append_answers(inputs, QUESTIONS, ANSWERS)
        own = F.cross_entropy(
            surrogate.answer_logits(longer, start, labels.shape[1]).flatten(0, 1), labels.flatten(), ignore_index=-100
        )
        parts = []
        for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
            ids = [*ids_of(surrogate, answer), 2]
            one = {key: value[row : row + 1] for key, value in inputs.items()}
            logits = published_logits(surrogate, published, one, [2, *ids_of(surrogate, question), *ids])
            parts.append(restated.answer_log_probabilities(logits, ids))
        assert own.item() == pytest.approx(-torch.cat(parts).mean().item(), abs=1e-4)

    def test_candidate_scores(self, surrogate: Surrogate, published: Path) -> None:
        image, candidates = tiny.picture(), ["red", "blue square", "the picture of a square"]
        scores = score_candidates(surrogate, [image], QUESTIONS[:1], [candidates])[0]
        inputs = surrogate.encode([image], QUESTIONS[:1])
        for score, candidate in zip(scores, candidates, strict=True):
            ids = ids_of(surrogate, candidate)
            logits = published_logits(surrogate, published, inputs, [2, *ids_of(surrogate, QUESTIONS[0]), *ids])
            expected = restated.answer_log_probabilities(logits, ids).mean()
            assert score.item() == pytest.approx(expected.item(), abs=1e-4)

    def test_the_norm_behind_the_encoder_has_an_epsilon_of_its_own(self, converted: Path, published: Path) -> None:
        model = BlivaForConditionalGeneration.from_pretrained(converted / "bliva", use_patch_tokens=False)
        # What it norms is made small, so that the epsilon decides.
        with torch.no_grad():
            for name, parameter in model.vision_model.named_parameters():
                if "post_layernorm" not in name:
                    parameter.mul_(1e-3)
        pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        weights = torch.load(published / "bliva.pth", weights_only=True)["model"]
        weights = {key: value * 1e-3 if key.startswith("visual_encoder.") else value for key, value in weights.items()}
        ids = torch.tensor([[2, 5, 3]])
        expected = restated.bliva_tokens(weights, pixels, ids, torch.ones_like(ids))[:, : checkpoints.QUERIES]
        features = model.get_image_features(pixels, ids).pooler_output
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
        model.vision_model.post_layernorm.eps = model.config.vision_config.layer_norm_eps
        assert (model.get_image_features(pixels, ids).pooler_output - expected).abs().max() > 1e-3


class TestModel:
    def test_a_prompt_is_learned_on_it(self, surrogate: Surrogate) -> None:
        prompt = tiny.noise_prompt(canvas_size=48, border_size=8)
        output = surrogate.forward(prompt([tiny.picture()]), QUESTIONS[:1], ANSWERS[:1], with_features=True)
        assert output.features.shape == (TOKENS[surrogate.config.use_patch_tokens], checkpoints.LLAMA)
        answer_loss(output).backward()
        assert prompt.delta.grad.abs().sum() > 0

    def test_layers_can_be_recomputed(self, converted: Path) -> None:
        gradients = []
        for recomputed in (False, True):
            surrogate = Surrogate.from_pretrained(str(converted / "bliva"), gradient_checkpointing=recomputed)
            prompt = tiny.noise_prompt(canvas_size=48, border_size=8)
            answer_loss(surrogate.forward(prompt([tiny.picture()]), QUESTIONS[:1], ANSWERS[:1])).backward()
            gradients.append(prompt.delta.grad)
        torch.testing.assert_close(*gradients)

    def test_it_runs_in_half_precision(self, converted: Path) -> None:
        exact = Surrogate.from_pretrained(str(converted / "bliva"), dtype="float32")
        half = Surrogate.from_pretrained(str(converted / "bliva"), dtype="bfloat16")
        assert half.model.vision_project.weight.dtype == torch.bfloat16
        canvas = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        wanted, found = (s.features(canvas, QUESTIONS[:1]) for s in (exact, half))
        assert F.cosine_similarity(wanted, found).min() > 0.99

    def test_without_patches_it_is_instructblip(self, converted: Path) -> None:
        own = BlivaForConditionalGeneration.from_pretrained(converted / "bliva", use_patch_tokens=False)
        own.vision_model.post_layernorm.eps = own.config.vision_config.layer_norm_eps
        other = InstructBlipForConditionalGeneration(own.config).eval()
        found = other.load_state_dict(own.state_dict(), strict=False)
        assert found.missing_keys == []
        assert found.unexpected_keys == ["vision_project.weight", "vision_project.bias"]
        processor = AutoProcessor.from_pretrained(converted / "bliva", use_patch_tokens=False)
        inputs = processor(images=tiny.picture(), text="What is", return_tensors="pt")
        assert torch.equal(own(**inputs).logits, other(**inputs).logits)

    def test_patches_can_be_switched_on_a_loaded_model(self, converted: Path) -> None:
        surrogate = Surrogate.from_pretrained(str(converted / "bliva"))
        shapes = []
        for wanted in (True, False):
            surrogate.model.config.use_patch_tokens = surrogate.processor.use_patch_tokens = wanted
            shapes.append(surrogate.encode([tiny.picture()], ["What"])["input_ids"].shape[1])
            assert len(surrogate.features([torch.rand(3, 32, 32)], ["What"])) == TOKENS[wanted]
        assert shapes[0] - shapes[1] == checkpoints.PATCHES

    @pytest.mark.parametrize("wanted", [True, False])
    def test_a_processor_that_does_not_agree_is_an_error(self, converted: Path, wanted: bool) -> None:
        model = BlivaForConditionalGeneration.from_pretrained(converted / "bliva", use_patch_tokens=wanted)
        processor = AutoProcessor.from_pretrained(converted / "bliva", use_patch_tokens=not wanted)
        inputs = processor(images=tiny.picture(), text="What is", return_tensors="pt")
        with pytest.raises(ValueError, match="must agree on `use_patch_tokens`"):
            model(**inputs)

    def test_it_writes_with_and_without_a_text(self, converted: Path) -> None:
        model = BlivaForConditionalGeneration.from_pretrained(converted / "bliva")
        processor = AutoProcessor.from_pretrained(converted / "bliva")
        inputs = processor(images=tiny.picture(), text="", return_tensors="pt")
        settings = {"max_new_tokens": 3, "do_sample": False}
        told = model.generate(**inputs, **settings)
        untold = model.generate(**{key: value for key, value in inputs.items() if not key.startswith(("input", "att"))},
                                **settings)  # fmt: skip
        assert torch.equal(told, untold)

    def test_it_is_known_to_the_auto_classes_and_comes_back(self, converted: Path, tmp_path: Path) -> None:
        model = AutoModelForImageTextToText.from_pretrained(converted / "bliva", use_patch_tokens=False)
        model.save_pretrained(tmp_path)
        config = AutoConfig.from_pretrained(tmp_path)
        assert type(config) is BlivaConfig
        assert not config.use_patch_tokens
        assert config.num_image_tokens == checkpoints.QUERIES
        again = AutoModelForImageTextToText.from_pretrained(tmp_path)
        assert type(again) is BlivaForConditionalGeneration
        state = again.state_dict()
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.fixture
def processor(converted: Path) -> BlivaProcessor:
    return AutoProcessor.from_pretrained(converted / "bliva")


class TestProcessor:
    def test_placeholders_then_the_beginning_then_the_question(self, processor: BlivaProcessor) -> None:
        ids = processor(images=tiny.picture(), text="What is")["input_ids"][0]
        tokens = processor.tokenizer.convert_ids_to_tokens(ids)
        assert tokens == ["<0x00>"] * TOKENS[True] + ["</s>", "▁What", "▁is"]

    def test_the_q_former_reads_the_question_in_berts_words(self, processor: BlivaProcessor) -> None:
        batch = processor(images=[[tiny.picture()]] * 2, text=["in", "what is in"], padding=True, return_tensors="pt")
        words = processor.qformer_tokenizer.batch_decode(batch["qformer_input_ids"])
        assert words[0].startswith("[CLS] in [SEP]")
        assert batch["qformer_attention_mask"][0].sum() < batch["qformer_attention_mask"][1].sum()
        assert batch["attention_mask"].shape == batch["input_ids"].shape

    def test_text_alone_has_no_placeholders(self, processor: BlivaProcessor) -> None:
        assert processor.tokenizer.convert_ids_to_tokens(processor(text="red")["input_ids"][0]) == ["</s>", "▁red"]

    def test_the_tokenizer_is_that_of_the_published_code(self, processor: BlivaProcessor) -> None:
        tokenizer = processor.tokenizer
        assert {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token} == {"</s>"}
        assert tokenizer.pad_token == "[PAD]"
        assert processor.qformer_tokenizer.truncation_side == "left"
