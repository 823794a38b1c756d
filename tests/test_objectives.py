"""The terms of the loss, each against its formula written out."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny_clip import build_clip
from transformers import PreTrainedModel, ProcessorMixin, SiglipConfig, SiglipModel

from transferable_vp import TransferableVisualPrompt, TransferableVisualPromptConfig
from transferable_vp.answers import SurrogateOutput
from transferable_vp.images import to_pil
from transferable_vp.objectives import FeatureConsistency, Objective, Step, TaskSemantics, task_loss
from transferable_vp.surrogate import Surrogate


Pair = tuple[PreTrainedModel, ProcessorMixin]
CAPTIONS = ["this is a photo of a cat", "this is a photo of a very large red square"]


@pytest.fixture(scope="module")
def surrogates(shared_pair: Callable[[str], Pair]) -> Callable[[str], Surrogate]:
    return functools.cache(lambda family: Surrogate(*copy.deepcopy(shared_pair(family)), name=family))


@functools.cache
def clip_pair() -> Pair:
    return build_clip()


@pytest.fixture
def semantics() -> TaskSemantics:
    return TaskSemantics(*copy.deepcopy(clip_pair()))


def make_canvas(count: int = 2, size: int = 40) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()


def make_step(
    canvas: torch.Tensor | None = None,
    outputs: Sequence[SurrogateOutput] = (),
    clean: Sequence[torch.Tensor] = (),
    captions: Sequence[str] = CAPTIONS,
    unbounded: bool = False,
) -> Step:
    canvas = make_canvas() if canvas is None else canvas
    return Step(canvas, ["?"] * 2, ["a"] * 2, captions, list(outputs), list(clean), unbounded)


def random_output(seed: int, tokens: int = 6, labels: Any = ((3, 1), (2, -100))) -> SurrogateOutput:
    """Logits for two rows, and image features `(tokens, 4)`."""
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.tensor(labels)
    logits = torch.randn(*wanted.shape, 5, generator=generator)
    return SurrogateOutput(logits, wanted, torch.randn(tokens, 4, generator=generator))


class TestTask:
    def test_it_is_a_mean_over_tokens_then_over_surrogates(self) -> None:
        outputs = [random_output(0), random_output(1, labels=((4, -100), (0, -100)))]
        means = []
        for output in outputs:
            losses = [
                -output.logits[row, place].log_softmax(0)[token]
                for row, tokens in enumerate(output.labels.tolist())
                for place, token in enumerate(tokens)
                if token != -100
            ]
            means.append(sum(losses) / len(losses))
        # Three tokens and two: a mean over all tokens would weigh the first surrogate more.
        torch.testing.assert_close(task_loss(make_step(outputs=outputs)), (means[0] + means[1]) / 2)
        torch.testing.assert_close(task_loss(make_step(outputs=outputs[:1])), means[0])

    def test_both_surrogates_pull_at_the_canvas(self, surrogates: Callable[[str], Surrogate]) -> None:
        canvas, models = make_canvas(), [surrogates("llava"), surrogates("qwen2_vl")]

        def gradient(some: Sequence[Surrogate]) -> torch.Tensor:
            outputs = [s.forward(canvas, ["What is it?"] * 2, ["red", "a blue square"]) for s in some]
            return torch.autograd.grad(task_loss(make_step(canvas, outputs)), canvas)[0]

        expected = (gradient(models[:1]) + gradient(models[1:])) / 2
        torch.testing.assert_close(gradient(models), expected, rtol=1e-4, atol=1e-7)


class TestFeatureConsistency:
    def test_it_is_the_mean_distance_token_by_token(self) -> None:
        outputs = [random_output(0, 6), random_output(1, 10)]
        clean = [random_output(2, 6).features, random_output(3, 10).features]
        distances = []
        for output, other in zip(outputs, clean, strict=True):
            distances.append(
                sum(((a - b) ** 2).sum() ** 0.5 for a, b in zip(output.features, other, strict=True)) / len(other)
            )
        value = FeatureConsistency()(make_step(outputs=outputs, clean=clean))
        torch.testing.assert_close(value, (distances[0] + distances[1]) / 2)

    def test_it_is_not_squared(self) -> None:
        clean = torch.zeros(3, 4)
        value = FeatureConsistency()(
            make_step(outputs=[random_output(0)._replace(features=clean + 10)], clean=[clean])
        )
        assert value.item() == pytest.approx(20)

    def test_it_asks_for_features(self) -> None:
        assert FeatureConsistency().needs_features
        assert not getattr(task_loss, "needs_features", False)
        assert not TaskSemantics.needs_features

    @pytest.mark.parametrize("family", tiny.FAMILIES)
    def test_a_prompt_of_zero_is_consistent(self, family: str, surrogates: Callable[[str], Surrogate]) -> None:
        surrogate = surrogates(family)
        prompt = TransferableVisualPrompt(TransferableVisualPromptConfig(canvas_size=40, border_size=6))
        pictures = [tiny.picture(seed=1), tiny.picture(30, 50, seed=2)]
        questions, answers = ["What is it?", "Is there a cat?"], ["red", "no"]
        clean = surrogate.features(prompt(pictures, prompted=False), questions)

        def value() -> torch.Tensor:
            output = surrogate.forward(prompt(pictures), questions, answers, with_features=True)
            return FeatureConsistency()(make_step(outputs=[output], clean=[clean]))

        start = value()
        assert start.item() == 0
        start.backward()
        # Where a norm is zero its slope is not defined: it has to be zero, and not a NaN that ends the training.
        assert prompt.delta.grad is not None
        assert torch.equal(prompt.delta.grad, torch.zeros_like(prompt.delta))

        with torch.no_grad():
            prompt.delta.copy_(tiny.noise_prompt(canvas_size=40, border_size=6).delta)
        prompted = value()
        assert prompted.item() > 0.1
        prompted.backward()
        gradient = prompt.delta.grad[prompt.border_mask.expand(3, -1, -1)]
        assert torch.isfinite(gradient).all()
        assert (gradient != 0).all()

    def test_a_model_that_makes_other_tokens_of_the_clean_image(self) -> None:
        step = make_step(outputs=[random_output(0, 6)], clean=[torch.zeros(8, 4)])
        with pytest.raises(ValueError, match="6 image tokens of the prompted images and 8 of the clean ones"):
            FeatureConsistency()(step)

    def test_every_surrogate_needs_its_clean_side(self) -> None:
        with pytest.raises(ValueError):
            FeatureConsistency()(make_step(outputs=[random_output(0), random_output(1)], clean=[torch.zeros(6, 4)]))


class TestTaskSemantics:
    @pytest.mark.parametrize(
        ("logit_scale", "factor"),
        # exp(4.6052) is the most that the paper's code lets the temperature be, and 1 the least.
        [(2.0, 7.389056), (10.0, 100.0032), (-3.0, 1.0)],
    )
    def test_it_is_minus_the_scaled_cosine(self, semantics: TaskSemantics, logit_scale: float, factor: float) -> None:
        model, processor = copy.deepcopy(clip_pair())
        canvas = make_canvas()
        images = [to_pil(c) for c in canvas]
        with torch.no_grad():
            semantics.model.logit_scale.fill_(logit_scale)
            # CLIP's own forward pass, which normalises and compares by itself.
            model.logit_scale.fill_(0)
            inputs = processor(text=CAPTIONS, images=images, padding=True, return_tensors="pt")
            cosines = model(**inputs).logits_per_image.diagonal()
        assert cosines.abs().min() > 1e-3
        assert abs(cosines[0] - cosines[1]) > 1e-3
        value = semantics(make_step(canvas))
        torch.testing.assert_close(value.detach(), -factor * cosines.mean(), rtol=1e-4, atol=1e-6)

    def test_the_gradient_reaches_the_canvas(self, semantics: TaskSemantics) -> None:
        canvas = make_canvas()
        start = semantics(make_step(canvas))
        start.backward()
        assert canvas.grad is not None
        assert torch.isfinite(canvas.grad).all()
        assert (canvas.grad != 0).all()
        with torch.no_grad():
            better = canvas - 0.02 * canvas.grad.sign()
        assert semantics(make_step(better.clamp(0, 1))) < start

    @pytest.mark.parametrize("unbounded", [False, True])
    def test_it_sees_the_image_as_deployed_unless_unbounded(self, semantics: TaskSemantics, unbounded: bool) -> None:
        canvas = (make_canvas().detach() * 255).round() / 255
        beyond = canvas.clone()
        beyond[:, :, :5] += 1.5
        beyond[:, :, 5:] += 0.4 / 255
        deployed = torch.stack([beyond[0].clamp(0, 1), beyond[1].clamp(0, 1)])
        values = [semantics(make_step(c, unbounded=unbounded)) for c in (beyond, (deployed * 255).round() / 255)]
        assert torch.equal(*values) is not unbounded

    def test_clip_is_frozen(self, semantics: TaskSemantics) -> None:
        model, processor = copy.deepcopy(clip_pair())
        model.train().requires_grad_(True)
        semantics = TaskSemantics(model, processor)
        semantics(make_step()).backward()
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
        assert not semantics.text_features(CAPTIONS).requires_grad

    def test_every_caption_is_encoded_once(self, semantics: TaskSemantics, monkeypatch: pytest.MonkeyPatch) -> None:
        counts: list[int] = []
        plain = semantics.model.get_text_features

        def counting(**kwargs: Any) -> Any:
            counts.append(len(kwargs["input_ids"]))
            return plain(**kwargs)

        monkeypatch.setattr(semantics.model, "get_text_features", counting)
        captions = [CAPTIONS[0], CAPTIONS[1], CAPTIONS[0]]
        first = semantics.text_features(captions)
        assert counts == [2]
        assert torch.equal(first[0], first[2])
        assert not torch.allclose(first[0], first[1])
        assert torch.equal(semantics.text_features(captions), first)
        semantics(make_step())
        assert counts == [2]
        semantics.text_features([CAPTIONS[1], "a new one"])
        assert counts == [2, 1]

    def test_a_caption_does_not_depend_on_its_neighbours(self, semantics: TaskSemantics) -> None:
        both = semantics.text_features(CAPTIONS)
        for row, caption in enumerate(CAPTIONS):
            alone = TaskSemantics(*copy.deepcopy(clip_pair())).text_features([caption])[0]
            torch.testing.assert_close(alone, both[row], rtol=1e-4, atol=1e-5)

    def test_a_caption_longer_than_clip_reads(self, semantics: TaskSemantics) -> None:
        assert semantics.text_features(["cat " * 200]).shape == (1, tiny.WIDTH)

    def test_moving_clip_forgets_what_lies_on_the_old_device(self, semantics: TaskSemantics) -> None:
        first = semantics.text_features(CAPTIONS)
        assert semantics.to("cpu") is semantics
        with torch.no_grad():
            semantics.model.text_projection.weight.mul_(2)
        # There is but one device here; that they are encoded again shows in other values.
        torch.testing.assert_close(semantics.text_features(CAPTIONS), 2 * first)

    def test_half_precision(self) -> None:
        model, processor = copy.deepcopy(clip_pair())
        full = TaskSemantics(*copy.deepcopy(clip_pair()))
        with torch.no_grad():
            for one in (model, full.model):
                one.logit_scale.fill_(4.59375)  # a value that bfloat16 has
        canvas = make_canvas()
        value = TaskSemantics(model.bfloat16(), processor)(make_step(canvas))
        value.backward()
        assert value.dtype == torch.float32
        assert canvas.grad is not None
        assert canvas.grad.dtype == torch.float32
        assert torch.isfinite(canvas.grad).all()
        torch.testing.assert_close(value.detach(), full(make_step(canvas)).detach(), rtol=0.05, atol=1.0)

    def test_the_processor_is_left_as_it_is(self) -> None:
        model, processor = copy.deepcopy(clip_pair())
        part = processor.image_processor
        kind, before = type(part), copy.deepcopy(vars(part))
        TaskSemantics(model, processor)(make_step())
        assert processor.image_processor is part
        assert type(part) is kind
        assert vars(part) == before

    def test_from_a_folder(self, semantics: TaskSemantics, tmp_path: Any) -> None:
        for part in copy.deepcopy(clip_pair()):
            part.save_pretrained(tmp_path)
        step = make_step()
        loaded = TaskSemantics.from_pretrained(str(tmp_path))
        torch.testing.assert_close(loaded(step), semantics(step))
        assert TaskSemantics.from_pretrained(str(tmp_path), dtype=torch.bfloat16).model.dtype == torch.bfloat16


class TestObjective:
    def test_a_term_of_ones_own(self) -> None:
        smooth = Objective("smooth", lambda step: step.canvas.diff(dim=-1).abs().mean(), weight=0.1)
        assert (smooth.name, smooth.weight) == ("smooth", 0.1)
        assert Objective("task", task_loss).weight == 1.0
        step = make_step()
        value = smooth.weight * smooth.function(step)
        torch.testing.assert_close(value, 0.1 * F.l1_loss(step.canvas[..., 1:], step.canvas[..., :-1]))

    def test_a_weighted_sum_of_all(self, surrogates: Callable[[str], Surrogate], semantics: TaskSemantics) -> None:
        """The three together on one pass: their gradients add up with their weights."""
        surrogate, canvas = surrogates("llava"), make_canvas()
        questions, answers = ["What is it?"] * 2, ["red", "no"]
        clean = [surrogate.features(canvas.detach().flip(-1), questions)]
        output = surrogate.forward(canvas, questions, answers, with_features=True)
        step = make_step(canvas, [output], clean)
        terms = [Objective("task", task_loss), Objective("fca", FeatureConsistency(), 0.005),
                 Objective("tse", semantics, 0.001)]  # fmt: skip
        values = [term.function(step) for term in terms]
        parts = [torch.autograd.grad(value, canvas, retain_graph=True)[0] for value in values]
        total = torch.stack([term.weight * value for term, value in zip(terms, values, strict=True)]).sum()
        (gradient,) = torch.autograd.grad(total, canvas)
        torch.testing.assert_close(gradient, parts[0] + 0.005 * parts[1] + 0.001 * parts[2], rtol=1e-4, atol=1e-7)


def test_a_siglip_reads_a_caption_the_same_in_any_batch() -> None:
    _, processor = build_clip()
    processor.tokenizer.model_max_length = 12
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": len(processor.tokenizer), "max_position_embeddings": 12, "projection_size": 16}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 16}  # fmt: skip
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    together = TaskSemantics(model, processor).text_features(["a cat", "a photo of a very large red square"])
    alone = TaskSemantics(model, processor).text_features(["a cat"])
    torch.testing.assert_close(together[0], alone[0])
