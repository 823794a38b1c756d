"""MiniGPT-4 and VPGTrans: what their processor writes, and the numbers of the published architecture."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import published as restated
import pytest
import tiny
import torch
import torch.nn.functional as F
from transformers import AutoProcessor, Blip2ForConditionalGeneration, BlipImageProcessor

from transferable_vp import Surrogate, score_candidates
from transferable_vp.answers import answer_loss
from transferable_vp.models import MiniGPT4Processor


QUESTIONS = ["This is a photo of a", "What is in the picture?"]
ANSWERS = ["red", "blue square"]
NAMES = ["minigpt4", "vpgtrans"]


@pytest.fixture(scope="module", params=NAMES)
def surrogate(request: pytest.FixtureRequest, converted: Path) -> Surrogate:
    """The converted model, loaded as any other."""
    return Surrogate.from_pretrained(str(converted / request.param), dtype="float32")


def own_weights(
    name: str, folder: Path
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Checkpoint, image encoder and language model, under the published keys."""
    weights = checkpoints.vpgtrans() if name == "vpgtrans" else checkpoints.qformer(None) | checkpoints.minigpt4()
    vicuna = {}
    for part in sorted((folder / "vicuna").glob("*.bin")):
        vicuna |= torch.load(part, weights_only=True)
    return weights, checkpoints.eva(), vicuna


def published_logits(name: str, folder: Path, pixels: torch.Tensor, fragments: list[list[int]]) -> torch.Tensor:
    """One row: beginning token, `"<Img>"`, the image, `"</Img>"`, and what follows, as ids that a tokenizer gave."""
    weights, vit, vicuna = own_weights(name, folder)
    image = restated.image_tokens(weights, vit, pixels, "llama_proj")
    before, *after = [vicuna["model.embed_tokens.weight"][ids] for ids in fragments]
    return restated.llama(vicuna, torch.cat([before[None], image, *(part[None] for part in after)], dim=1), 4)[0]


def fragments_of(surrogate: Surrogate, question: str, answer: list[int]) -> list[list[int]]:
    tokens = lambda text: surrogate.tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    return [[1, *tokens("<Img>")], tokens("</Img>"), tokens(question), answer]


class TestNumerics:
    """Against `published.py`, from the same checkpoint."""

    def test_it_is_a_plain_blip_2_under_its_own_name(self, surrogate: Surrogate) -> None:
        assert type(surrogate.model) is Blip2ForConditionalGeneration
        assert type(surrogate.processor) is MiniGPT4Processor
        assert surrogate.config.paper_model == surrogate.name

    def test_logits(self, surrogate: Surrogate, published: Path) -> None:
        inputs = surrogate.encode([tiny.picture()], QUESTIONS[:1])
        logits = published_logits(
            surrogate.name, published, inputs["pixel_values"], fragments_of(surrogate, QUESTIONS[0], [])
        )
        torch.testing.assert_close(surrogate.model(**inputs).logits[0], logits, rtol=1e-4, atol=1e-4)

    def test_image_features_are_those_that_the_paper_compares(self, surrogate: Surrogate, published: Path) -> None:
        inputs = surrogate.encode([tiny.picture()], QUESTIONS[:1])
        weights, vit, _ = own_weights(surrogate.name, published)
        expected = restated.image_tokens(weights, vit, inputs["pixel_values"], "llama_proj")
        features = surrogate.model.get_image_features(inputs["pixel_values"]).pooler_output
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)

    def test_loss_of_a_padded_batch(self, surrogate: Surrogate, published: Path) -> None:
        images = [tiny.picture(seed=seed) for seed in (1, 2)]
        inputs = surrogate.encode(images, QUESTIONS)
        inputs, start, labels = surrogate.append_answers(inputs, QUESTIONS, ANSWERS)
        own = F.cross_entropy(
            surrogate.answer_logits(inputs, start, labels.shape[1]).flatten(0, 1), labels.flatten(), ignore_index=-100
        )
        parts = []
        for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
            ids = [*surrogate.tokenizer(answer, add_special_tokens=False).input_ids, 2]
            pixels = inputs["pixel_values"][row : row + 1]
            logits = published_logits(surrogate.name, published, pixels, fragments_of(surrogate, question, ids))
            parts.append(restated.answer_log_probabilities(logits, ids))
        assert own.item() == pytest.approx(-torch.cat(parts).mean().item(), abs=1e-4)

    def test_candidate_scores(self, surrogate: Surrogate, published: Path) -> None:
        image, candidates = tiny.picture(), ["red", "blue square", "the picture of a square"]
        scores = score_candidates(surrogate, [image], QUESTIONS[:1], [candidates])[0]
        pixels = surrogate.encode([image], QUESTIONS[:1])["pixel_values"]
        for score, candidate in zip(scores, candidates, strict=True):
            ids = surrogate.tokenizer(candidate, add_special_tokens=False).input_ids
            logits = published_logits(surrogate.name, published, pixels, fragments_of(surrogate, QUESTIONS[0], ids))
            expected = restated.answer_log_probabilities(logits, ids).mean()
            assert score.item() == pytest.approx(expected.item(), abs=1e-4)

    def test_a_prompt_is_learned_on_it(self, surrogate: Surrogate) -> None:
        prompt = tiny.noise_prompt(canvas_size=48, border_size=8)
        output = surrogate.forward(prompt([tiny.picture()]), QUESTIONS[:1], ANSWERS[:1], with_features=True)
        assert output.features.shape == (checkpoints.QUERIES, checkpoints.LLAMA)
        answer_loss(output).backward()
        assert prompt.delta.grad.abs().sum() > 0


class TestProcessor:
    @pytest.fixture
    def processor(self) -> MiniGPT4Processor:
        size = {"height": 32, "width": 32}
        return MiniGPT4Processor(BlipImageProcessor(size=size), checkpoints.llama_tokenizer(), num_query_tokens=3)

    def tokens(self, processor: MiniGPT4Processor, text: str, **more: object) -> list[str]:
        batch = processor(images=tiny.picture(), text=text, **more)
        return processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])

    def test_every_fragment_begins_as_a_word_does(self, processor: MiniGPT4Processor) -> None:
        assert self.tokens(processor, "What is") == [
            "<s>", "▁", "<", "Img", ">", "<0x00>", "<0x00>", "<0x00>", "▁", "<", "/", "Img", ">", "▁What", "▁is",
        ]  # fmt: skip

    def test_a_text_may_say_where_the_image_stands(self, processor: MiniGPT4Processor) -> None:
        assert self.tokens(processor, "Human: <Img><ImageHere></Img>red?") == [
            "<s>", "▁Human", ":", "▁", "<", "Img", ">", "<0x00>", "<0x00>", "<0x00>", "▁", "<", "/", "Img", ">", "▁red", "?",
        ]  # fmt: skip

    def test_there_may_be_no_wrapper_no_question_and_no_beginning(self, processor: MiniGPT4Processor) -> None:
        assert self.tokens(processor, "<ImageHere>red", add_special_tokens=False) == ["<0x00>"] * 3 + ["▁red"]
        assert self.tokens(processor, "<ImageHere>") == ["<s>"] + ["<0x00>"] * 3

    def test_text_without_an_image_has_no_wrapper(self, processor: MiniGPT4Processor) -> None:
        ids = processor(text="What is")["input_ids"][0]
        assert processor.tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁What", "▁is"]

    def test_rows_are_padded_with_their_mask(self, processor: MiniGPT4Processor) -> None:
        images = [[tiny.picture()], [tiny.picture()]]
        batch = processor(images=images, text=["red", "What is in"], padding=True, return_tensors="pt")
        assert batch["attention_mask"].sum(1).tolist() == [14, 16]
        pad = processor.tokenizer.pad_token_id
        assert ((batch["input_ids"] == pad) == (batch["attention_mask"] == 0)).all()
        assert batch["pixel_values"].shape == (2, 3, 32, 32)

    def test_it_comes_back_as_it_was_saved(self, processor: MiniGPT4Processor, tmp_path: Path) -> None:
        processor.save_pretrained(tmp_path)
        again = AutoProcessor.from_pretrained(tmp_path)
        assert type(again) is MiniGPT4Processor
        assert self.tokens(again, "What is") == self.tokens(processor, "What is")

    @pytest.mark.parametrize(("text", "error"), [
        ("<ImageHere> <ImageHere>", "more than once"), ("red \0", "has the image placeholder in it"),
    ])  # fmt: skip
    def test_a_text_that_cannot_be_says_why(self, processor: MiniGPT4Processor, text: str, error: str) -> None:
        with pytest.raises(ValueError, match=error):
            processor(images=tiny.picture(), text=text)

    def test_what_it_cannot_do_is_said(self, processor: MiniGPT4Processor) -> None:
        with pytest.raises(ValueError, match="there is none: give `images`"):
            processor(text="<ImageHere>")
        with pytest.raises(ValueError, match="give `images`, `text` or both"):
            processor()
        with pytest.raises(ValueError, match="leave out `truncation`"):
            processor(images=tiny.picture(), text="red", truncation=True)

    def test_a_tokenizer_it_cannot_use_is_refused(self) -> None:
        images = BlipImageProcessor()
        padless = checkpoints.llama_tokenizer()
        padless.pad_token = "<0x00>"
        with pytest.raises(ValueError, match="padding must not be the placeholder"):
            MiniGPT4Processor(images, padless)
        with pytest.raises(ValueError, match="has no token '<image>'"):
            MiniGPT4Processor(images, checkpoints.llama_tokenizer(), image_token="<image>")
