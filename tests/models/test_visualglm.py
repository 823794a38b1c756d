"""VisualGLM against its restatement: logits, cache, padding, loss, candidate scores and generation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import published_glm
import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny_visualglm import build_visualglm
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache, PreTrainedModel, ProcessorMixin
from transformers.cache_utils import StaticCache

from transferable_vp import Surrogate, TransferableVisualPrompt, score_candidates
from transferable_vp.answers import answer_loss
from transferable_vp.models.visualglm import VisualGLMConfig
from transferable_vp.models.visualglm.convert import convert_visualglm
from transferable_vp.models.visualglm.decoder import relative_positions
from transferable_vp.scoring import _CHECKED


TEXTS = ["<img></img> This is a photo of a", "<img></img>Q: Which  colour\nis the square?\nA:"]
ANSWERS = ["dog", "a blue square"]


class Pair(NamedTuple):
    """A converted model and the published computation on the same weights."""

    model: PreTrainedModel
    processor: ProcessorMixin
    published: published_glm.Published

    def rows(self, answers: list[str] | None = None, end: bool = False) -> list[list[int]]:
        """The two texts as ids, each by itself, an answer behind them if there are any."""
        tokens = self.processor.tokenizer
        tail = [tokens.eos_token_id] if end else []
        contexts = [self.processor(self.image(row), text).input_ids[0] for row, text in enumerate(TEXTS)]
        if answers is None:
            return contexts
        pairs = zip(contexts, answers, strict=True)
        return [ids + tokens(answer, add_special_tokens=False).input_ids + tail for ids, answer in pairs]

    @staticmethod
    def image(row: int) -> Any:
        return tiny.picture(seed=row)

    def pixels(self, row: int) -> torch.Tensor:
        return self.processor.image_processor(self.image(row), return_tensors="pt").pixel_values

    def expected(self, row: int, ids: list[int]) -> torch.Tensor:
        return self.published.logits(ids, self.pixels(row)[0], ids.index(0))

    def left_padded(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        longest = max(map(len, rows))
        return {
            "input_ids": torch.tensor([[3] * (longest - len(ids)) + ids for ids in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows]),
            "pixel_values": torch.cat([self.pixels(row) for row in range(len(rows))]),
        }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("visualglm")
    made = published_glm.weights()
    convert_visualglm(published_glm.save(folder / "published", made), folder / "converted")
    model = AutoModelForImageTextToText.from_pretrained(folder / "converted").eval()
    return Pair(model, AutoProcessor.from_pretrained(folder / "converted"), published_glm.Published(made))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    # 1e-6 is what rounding makes; the exact GELU for its approximation, 2e-5 and more.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_logits_are_the_published_ones(pair: Pair, attention: str) -> None:
    model = copy.deepcopy(pair.model)
    model.set_attn_implementation(attention)
    for row, ids in enumerate(pair.rows(ANSWERS)):
        found = model(torch.tensor([ids]), pair.pixels(row)).logits[0]
        close(found, pair.expected(row, ids))


@torch.no_grad()
def test_image_features_are_the_published_ones(pair: Pair) -> None:
    """In double precision, which shows every epsilon: the norm behind the image encoder has another than its own."""
    model = copy.deepcopy(pair.model).double()
    published = published_glm.Published({name: value.double() for name, value in pair.published.weights.items()})
    pixels = pair.pixels(0).double()
    found = model.get_image_features(pixels).pooler_output[0]
    torch.testing.assert_close(found, published.image_features(pixels[0]), atol=1e-10, rtol=0)


@torch.no_grad()
def test_rows_padded_on_the_left_are_rows_alone(pair: Pair) -> None:
    rows = pair.rows(ANSWERS)
    batch = pair.left_padded(rows)
    assert not batch["attention_mask"].all()
    for row, found in enumerate(pair.model(**batch).logits):
        close(found[-len(rows[row]) :], pair.expected(row, rows[row]))


@torch.no_grad()
def test_rows_padded_on_the_right_are_rows_alone(pair: Pair) -> None:
    rows = pair.rows(ANSWERS)
    longest = max(map(len, rows))
    ids = torch.tensor([row + [3] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    logits = pair.model(ids, torch.cat([pair.pixels(0), pair.pixels(1)]), attention_mask=mask).logits
    for row, found in enumerate(logits):
        close(found[: len(rows[row])], pair.expected(row, rows[row]))


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("steps", [[1, 1, 1], [2, 1], [3]], ids=str)
@torch.no_grad()
def test_a_cache_continues_where_the_text_ended(pair: Pair, steps: list[int], static: bool) -> None:
    """Left padding included, several tokens at once, and without positions: they come with the cache."""
    answer = [90, 101, 112]
    contexts = pair.rows()
    batch = pair.left_padded(contexts)
    config = pair.model.config.text_config
    cache = StaticCache(config, max_cache_len=64) if static else DynamicCache(config=config)
    logits = [pair.model(**batch, cache=cache, use_cache=True).logits[:, -1:]]
    mask, done = batch["attention_mask"], 0
    for step in steps:
        mask = torch.cat([mask, mask.new_ones(2, step)], 1)
        ids = torch.tensor([answer[done : done + step]] * 2)
        output = pair.model(ids, attention_mask=mask, cache=cache, use_cache=True)
        logits.append(output.logits)
        done += step
    for row, found in enumerate(torch.cat(logits, 1)):
        close(found, pair.expected(row, contexts[row] + answer)[-4:])


@torch.no_grad()
def test_two_caches_do_not_mix_and_rows_may_be_repeated(pair: Pair) -> None:
    rows = pair.rows()
    caches = []
    for row in range(2):
        cache = DynamicCache(config=pair.model.config.text_config)
        pair.model(torch.tensor([rows[row]]), pair.pixels(row), cache=cache, use_cache=True)
        caches.append(copy.deepcopy(cache))
    for row, cache in enumerate(caches):
        cache.reorder_cache(torch.zeros(3, dtype=torch.long))
        found = pair.model(torch.tensor([[90, 101]] * 3), cache=cache, use_cache=True).logits
        for copied in found:
            close(copied, pair.expected(row, [*rows[row], 90, 101])[-2:])


def test_a_strange_cache_is_refused(pair: Pair) -> None:
    cache = DynamicCache(config=pair.model.config.text_config)
    cache.update(torch.zeros(1, 4, 5, 8), torch.zeros(1, 4, 5, 8), 0)
    with pytest.raises(ValueError, match="a cache that this model has not filled"):
        pair.model(torch.tensor([[90]]), cache=cache)


def test_the_loss_is_that_of_the_answers(pair: Pair) -> None:
    rows = pair.rows(ANSWERS, end=True)
    lengths = [len(row) - len(context) for row, context in zip(rows, pair.rows(), strict=True)]
    batch = pair.left_padded(rows)
    found = pair.model(**batch, labels=batch["input_ids"]).loss
    terms = [
        F.cross_entropy(pair.expected(row, ids)[-length - 1 : -1], torch.tensor(ids[-length:]), reduction="none")
        for row, (ids, length) in enumerate(zip(rows, lengths, strict=True))
    ]
    assert lengths[0] != lengths[1]
    close(found, torch.cat(terms).mean())


def test_labels_of_the_first_row_only_are_its_loss(pair: Pair) -> None:
    batch = pair.left_padded(pair.rows(ANSWERS, end=True))
    labels = batch["input_ids"].clone()
    labels[1] = -100
    both = pair.model(**batch, labels=labels).loss
    one = pair.model(**{key: value[:1] for key, value in batch.items()}, labels=labels[:1]).loss
    close(both, one)


def test_a_gradient_reaches_the_pixels(pair: Pair) -> None:
    batch = pair.left_padded(pair.rows(ANSWERS, end=True))
    pixels = batch.pop("pixel_values").requires_grad_()
    pair.model(**batch, pixel_values=pixels, labels=batch["input_ids"]).loss.backward()
    assert (pixels.grad.flatten(1).abs().sum(1) > 0).all()


@torch.no_grad()
def test_kept_logits_are_the_last(pair: Pair) -> None:
    batch = pair.left_padded(pair.rows())
    every = pair.model(**batch).logits
    close(pair.model(**batch, logits_to_keep=2).logits, every[:, -2:])
    close(pair.model(**batch, logits_to_keep=torch.tensor([3, 5])).logits, every[:, [3, 5]])
    with pytest.raises(ValueError, match="loss needs all logits"):
        pair.model(**batch, labels=batch["input_ids"], logits_to_keep=2)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
def test_generation_is_greedy_by_full_passes(pair: Pair, options: dict[str, Any]) -> None:
    contexts = pair.rows()
    batch = pair.left_padded(contexts)
    written = pair.model.generate(**batch, max_new_tokens=6, do_sample=False, eos_token_id=None, **options)
    for row, ids in enumerate(contexts):
        for _ in range(6):
            ids = [*ids, int(pair.expected(row, ids)[-1].argmax())]
        assert written[row, -6:].tolist() == ids[-6:]


def test_beams_keep_their_rows(pair: Pair) -> None:
    """More beams than one give text of their own row, with the score that full passes give."""
    contexts = pair.rows()
    options: dict[str, Any] = {
        "num_beams": 3, "max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "length_penalty": 0.0,
        "output_scores": True, "return_dict_in_generate": True,
    }  # fmt: skip
    output = pair.model.generate(**pair.left_padded(contexts), **options)
    for row, context in enumerate(contexts):
        new = output.sequences[row, -4:].tolist()
        logits = pair.expected(row, context + new)[-5:-1].log_softmax(-1)
        close(output.sequences_scores[row], logits[range(4), new].sum())


def test_a_surrogate_scores_candidates_as_published(pair: Pair) -> None:
    surrogate = Surrogate(pair.model, pair.processor, prompt_template="<img></img> {question}")
    candidates = ["dog", "a blue square", "a blue cat", "zero"]
    images = [pair.image(0), pair.image(1)]
    questions = ["This is a photo of a", "What?"]
    found = score_candidates(surrogate, images, questions, [candidates] * 2)
    tokens = pair.processor.tokenizer
    for row, question in enumerate(questions):
        context = pair.processor(images[row], f"<img></img> {question}").input_ids[0]
        for name, score in zip(candidates, found[row], strict=True):
            ids = tokens(name, add_special_tokens=False).input_ids
            logits = pair.expected(row, context + ids)[-len(ids) - 1 : -1].log_softmax(-1)
            close(score, logits[range(len(ids)), ids].mean())
    # Not by full passes: the cache of image and question is shared.
    assert "tree" in _CHECKED[surrogate].right_to and not _CHECKED[surrogate].wrong


def test_a_surrogate_learns_on_answers_as_published(pair: Pair) -> None:
    surrogate = Surrogate(copy.deepcopy(pair.model), pair.processor)
    questions = ["What is in the picture?", "A cat?"]
    prompt: TransferableVisualPrompt = tiny.noise_prompt(canvas_size=64, border_size=12)
    canvas = prompt([pair.image(0), pair.image(1)])
    output = surrogate.forward(canvas, questions, ANSWERS, with_features=True)
    deployed = prompt.apply([pair.image(0), pair.image(1)])
    terms, features = [], []
    tokens = pair.processor.tokenizer
    for image, question, answer in zip(deployed, questions, ANSWERS, strict=True):
        batch = pair.processor(image, f"<img></img>Q: {question}\nA:", return_tensors="pt")
        ids = [*tokens(answer, add_special_tokens=False).input_ids, tokens.eos_token_id]
        whole = batch.input_ids[0].tolist() + ids
        logits = pair.published.logits(whole, batch.pixel_values[0], whole.index(0))
        terms.append(F.cross_entropy(logits[-len(ids) - 1 : -1], torch.tensor(ids), reduction="none"))
        features.append(pair.published.image_features(batch.pixel_values[0]))
    close(answer_loss(output), torch.cat(terms).mean())
    close(output.features, torch.cat(features))
    answer_loss(output).backward()
    assert prompt.delta.grad.abs().sum() > 0


def test_positions_count_from_the_mask() -> None:
    ids = torch.tensor([[3, 7, 8, 1, 9, 5, 5], [7, 8, 8, 8, 8, 1, 9]])
    assert relative_positions(ids, 9).tolist() == [[-3, -2, -1, 0, 1, 2, 3], [-5, -4, -3, -2, -1, 0, 1]]
    with pytest.raises(ValueError, match="1 of 2 rows have no token 9"):
        relative_positions(torch.tensor([[7, 1, 9], [7, 8, 1]]), 9)


def test_placeholders_and_images_must_agree(pair: Pair) -> None:
    ids = pair.rows()[0]
    with pytest.raises(ValueError, match=r"has 3 image placeholders .* make 4 features"):
        pair.model(torch.tensor([ids[: ids.index(0)] + ids[ids.index(0) + 1 :]]), pair.pixels(0))


@torch.no_grad()
def test_an_answer_may_have_the_unknown_token(pair: Pair) -> None:
    ids = [*pair.rows()[0], 90, 0, 101]
    close(pair.model(torch.tensor([ids]), pair.pixels(0)).logits[0], pair.expected(0, ids))


def test_a_text_model_needs_positions_for_embeddings(pair: Pair) -> None:
    with pytest.raises(ValueError, match="no `position_ids`"):
        pair.model.model.language_model(inputs_embeds=torch.zeros(1, 3, 32))
    with pytest.raises(ValueError, match="exactly one"):
        pair.model.model()
    with pytest.raises(ValueError, match="multiple of"):
        VisualGLMConfig(text_config={"hidden_size": 20, "num_attention_heads": 2})


@torch.no_grad()
def test_saving_and_loading_change_nothing(tmp_path: Path) -> None:
    model, processor = build_visualglm()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    found = AutoProcessor.from_pretrained(tmp_path)(tiny.picture(), TEXTS[1], return_tensors="pt")
    batch = processor(tiny.picture(), TEXTS[1], return_tensors="pt")
    assert all(torch.equal(found[key], batch[key]) for key in ("input_ids", "attention_mask", "pixel_values"))
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@torch.no_grad()
def test_hidden_states_and_attentions_come_if_asked_for(pair: Pair) -> None:
    model = copy.deepcopy(pair.model)
    model.set_attn_implementation("eager")
    ids = pair.rows()[0]
    output = model(torch.tensor([ids]), pair.pixels(0), output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == published_glm.LAYERS + 1 and len(output.attentions) == published_glm.LAYERS
    # A context sees itself in both directions, and not `<sop>`.
    weights = output.attentions[0][0, 0]
    assert (weights[:-1, :-1] > 0).all() and (weights[:-1, -1] == 0).all()


def test_gradient_checkpointing_changes_no_gradient(pair: Pair) -> None:
    gradients = []
    for checkpointing in (False, True):
        surrogate = Surrogate(copy.deepcopy(pair.model), pair.processor, gradient_checkpointing=checkpointing)
        prompt = tiny.noise_prompt(canvas_size=64, border_size=12)
        output = surrogate.forward(prompt([pair.image(0)]), ["What?"], ["dog"])
        answer_loss(output).backward()
        gradients.append(prompt.delta.grad)
    torch.testing.assert_close(*gradients)


@torch.no_grad()
def test_half_precision_is_near(pair: Pair) -> None:
    model = copy.deepcopy(pair.model).bfloat16()
    ids = pair.rows(ANSWERS)[1]
    found = model(torch.tensor([ids]), pair.pixels(1)).logits[0].float()
    expected = pair.expected(1, ids)
    assert F.cosine_similarity(found, expected, dim=-1).min() > 0.99
