"""Image features, in every form that models give them, and the recorder that takes them from a pass."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from by_hand import T5
from tiny import language_model, make_canvas
from torch import nn
from torch._dynamo.utils import counters
from transformers import PreTrainedModel, ProcessorMixin

from transferable_vp.features import (
    OUTPUT_NAMES,
    FeatureRecorder,
    FeaturesSeen,
    feature_parts,
    features_in,
    flatten_features,
)
from transferable_vp.images import to_pil
from transferable_vp.surrogate import Surrogate


Pair = tuple[PreTrainedModel, ProcessorMixin]
QUESTIONS = ["What is it?", "Which colour is the square in the picture, and why is it so?"]
ANSWERS = ["red", "a blue square"]
all_families = pytest.mark.parametrize("family", [*tiny.FAMILIES, T5])


def patched(model: nn.Module) -> list[str]:
    """Names of the modules that carry anything of a recorder. (transformers has hooks of its own.)"""
    return [
        name
        for name, part in model.named_modules()
        if "get_image_features" in vars(part)
        or any(hook.__module__ == FeatureRecorder.__module__ for hook in part._forward_hooks.values())
    ]


class Tower(nn.Module):
    """Counts its passes, and gives one feature a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.visual_projection, self.passes = nn.Linear(3, 4), 0

    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.visual_projection(pixels)


class Whole(nn.Module):
    """A model whose language model adds the features up, after them."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.language, self.read = Tower(), nn.Linear(4, 2), 0

    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """As in transformers, where the outer class passes the call on to the inner."""
        return self.tower.get_image_features(pixels)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.tower.get_image_features(pixels)
        self.read += 1
        return self.language(features).sum()


class TestRecorder:
    def test_it_records_what_the_pass_itself_computes(self) -> None:
        model = Whole()
        recorder = FeatureRecorder(model)
        pixels = torch.rand(2, 5, 3)
        with recorder.recording() as seen:
            model(pixels)
        assert model.tower.passes == 1
        # The caller's list is left to the caller.
        assert len(seen) == 1
        torch.testing.assert_close(seen[0], model.tower.visual_projection(pixels))
        assert seen[0].grad_fn is not None
        assert recorder.seen == []

    def test_every_pass_within_is_seen_in_order_and_none_after(self) -> None:
        model = Whole()
        recorder = FeatureRecorder(model)
        with recorder.recording() as seen:
            model(torch.zeros(1, 1, 3))
            model(torch.ones(1, 1, 3))
        model(torch.ones(1, 1, 3))
        assert len(seen) == 2
        assert torch.equal(seen[0][0, 0], model.tower.visual_projection.bias)
        with recorder.recording() as again:
            model(torch.ones(1, 1, 3))
        assert len(seen) == 2
        assert len(again) == 1
        assert torch.equal(again[0], seen[1])

    def test_a_stopped_pass_ends_before_the_language_model(self) -> None:
        model = Whole()
        recorder = FeatureRecorder(model)
        with recorder.recording(stop=True) as seen, pytest.raises(FeaturesSeen):
            model(torch.ones(1, 1, 3))
        assert (model.tower.passes, model.read, len(seen)) == (1, 0, 1)
        # And the next is not stopped.
        with recorder.recording() as seen:
            model(torch.ones(1, 1, 3))
        assert (model.tower.passes, model.read, len(seen)) == (2, 1, 1)

    def test_features_that_are_a_modules_output(self) -> None:
        model = Whole()
        recorder = FeatureRecorder(model, module="visual_projection")
        pixels = torch.rand(2, 5, 3)
        with recorder.recording() as seen:
            assert patched(model) == ["tower.visual_projection"]
            expected = model(pixels)
        assert patched(model) == []
        torch.testing.assert_close(seen[0], model.tower.visual_projection(pixels))
        torch.testing.assert_close(model.language(seen[0]).sum(), expected)
        with recorder.recording(stop=True) as seen, suppress(FeaturesSeen):
            model(pixels)
        assert (len(seen), model.read) == (1, 1)

    @pytest.mark.parametrize("module", ["projection", "tower.visual_projection", "visual_projection.weight"])
    def test_it_is_the_last_part_of_a_modules_name(self, module: str) -> None:
        model = Whole()
        with FeatureRecorder(model, module=module).recording() as seen:
            assert patched(model) == []
            model(torch.ones(1, 1, 3))
        assert seen == []

    @pytest.mark.parametrize("module", [None, "visual_projection"])
    @pytest.mark.parametrize("stop", [False, True])
    def test_nothing_stays_after_an_error(self, module: str | None, stop: bool) -> None:
        model = Whole()
        recorder = FeatureRecorder(model, module)
        during: list[list[str]] = []
        with pytest.raises(KeyError, match="mine"), recorder.recording(stop):
            during.append(patched(model))
            raise KeyError("mine")
        assert during == [["", "tower"] if module is None else ["tower.visual_projection"]]
        assert patched(model) == []
        assert model.get_image_features.__func__ is Whole.get_image_features
        with recorder.recording() as seen:
            model(torch.ones(1, 1, 3))
        assert len(seen) == 1

    @pytest.mark.parametrize("module", [None, "visual_projection"])
    def test_a_copy_of_the_model_is_its_own(self, module: str | None) -> None:
        model = Whole()
        recorder = FeatureRecorder(model, module)
        with recorder.recording():
            model(torch.ones(1, 1, 3))
        other = copy.deepcopy(model)
        with recorder.recording() as seen:
            other(torch.ones(1, 1, 3))
            assert seen == []
            model(torch.ones(1, 1, 3))
            assert len(seen) == 1
        assert (other.tower.passes, model.tower.passes) == (2, 2)
        with torch.no_grad():
            other.tower.visual_projection.weight.zero_()
        with FeatureRecorder(other, module).recording() as seen:
            other(torch.ones(1, 1, 3))
        assert torch.equal(seen[0][0, 0], other.tower.visual_projection.bias)

    @pytest.mark.parametrize("family", ["llava", "instructblip", T5])
    def test_a_copy_of_a_model_that_was_recorded(self, surrogate: Surrogate) -> None:
        surrogate.forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1], with_features=True)
        copied = Surrogate(copy.deepcopy(surrogate.model), surrogate.processor)
        tower = next(p for name, p in copied.model.named_parameters() if "patch_embed" in name and p.ndim == 4)
        with torch.no_grad():
            tower.zero_()
        features = copied.features(make_canvas(), QUESTIONS[:1])
        expected = surrogate.features(make_canvas(), QUESTIONS[:1])
        assert features.shape == expected.shape
        # The copy's encoder is asked, and not the one it was copied from.
        assert torch.equal(features, copied.features(make_canvas(seed=1), QUESTIONS[:1]))
        assert not torch.allclose(features, expected)

    @pytest.mark.slow
    def test_a_compiled_model_is_compiled_once(self, shared_pair: Callable[[str], Pair]) -> None:
        model, processor = copy.deepcopy(shared_pair("llava"))
        plain = Surrogate(copy.deepcopy(model), processor)
        torch._dynamo.reset()
        counters.clear()
        surrogate = Surrogate(torch.compile(model, backend="aot_eager"), processor)
        frames: list[int] = []
        for _ in range(3):
            output = surrogate.forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1], with_features=True)
            frames.append(counters["frames"]["total"])
        assert frames[0] > 0
        assert frames == frames[:1] * 3
        expected = plain.forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1], with_features=True)
        assert output.features is not None
        torch.testing.assert_close(output.features, expected.features)
        torch.testing.assert_close(output.logits, expected.logits)
        # Without a gradient it is another program, as for any compiled model; but that too is made once.
        for _ in range(3):
            clean = surrogate.features(make_canvas(), QUESTIONS[:1])
            frames.append(counters["frames"]["total"])
        assert frames[3:] == frames[3:4] * 3
        torch.testing.assert_close(clean, output.features.detach())


class TestPass:
    @all_families
    def test_they_are_those_of_the_same_pass(self, surrogate: Surrogate, monkeypatch: pytest.MonkeyPatch) -> None:
        canvas = make_canvas(2)
        owner = type(surrogate.model)
        inputs = surrogate.encode([to_pil(c) for c in canvas], QUESTIONS[:2])
        names = inspect.signature(inspect.unwrap(owner.get_image_features)).parameters
        given = {key: value for key, value in inputs.items() if key in names}
        with torch.no_grad():
            output = surrogate.model.get_image_features(**given).pooler_output
        parts = output if isinstance(output, (list, tuple)) else [output]
        expected = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])

        calls: list[int] = []
        for module in surrogate.model.modules():
            # The image encoder proper, whatever it is called: one run in all, whoever asks.
            if type(module).__name__.endswith(
                ("VisionModel", "VisionTransformer", "VisionTransformerPretrainedModel")
            ):
                plain = module.forward
                monkeypatch.setattr(module, "forward", lambda *a, _p=plain, **k: calls.append(1) or _p(*a, **k))
                break
        features = surrogate.forward(canvas, QUESTIONS[:2], ANSWERS[:2], with_features=True).features
        assert features is not None
        assert calls == [1]
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.detach(), expected)
        # One row for every placeholder in the texts, of both images.
        assert features.shape[0] % 2 == 0
        assert not torch.allclose(features[: len(features) // 2], features[len(features) // 2 :])

    @all_families
    def test_they_carry_a_gradient_and_the_clean_side_does_not(self, surrogate: Surrogate) -> None:
        canvas = make_canvas()
        output = surrogate.forward(canvas, QUESTIONS[:1], ANSWERS[:1], with_features=True)
        assert output.features is not None
        (gradient,) = torch.autograd.grad(output.features.square().mean(), canvas)
        assert torch.isfinite(gradient).all()
        assert (gradient != 0).all()
        clean = surrogate.features(canvas, QUESTIONS[:1])
        assert not clean.requires_grad
        assert torch.equal(clean, output.features.detach())

    @all_families
    def test_the_clean_side_does_not_run_the_language_model(self, surrogate: Surrogate) -> None:
        runs = []
        handle = language_model(surrogate.model).register_forward_pre_hook(lambda *_: runs.append(1))
        try:
            surrogate.features(make_canvas(), QUESTIONS[:1])
            assert runs == []
            surrogate.forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1])
            assert len(runs) == 1
        finally:
            handle.remove()

    @all_families
    def test_nothing_stays_patched(self, surrogate: Surrogate) -> None:
        surrogate.forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1], with_features=True)
        assert patched(surrogate.model) == []
        surrogate.features(make_canvas(), QUESTIONS[:1])
        assert patched(surrogate.model) == []
        during: list[list[str]] = []

        def fail(*_: Any) -> None:
            during.append(patched(surrogate.model))
            raise KeyError("a failure within the language model")

        handle = language_model(surrogate.model).register_forward_pre_hook(fail)
        try:
            with pytest.raises(KeyError, match="a failure within"):
                surrogate.forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1], with_features=True)
        finally:
            handle.remove()
        assert during[0] != []
        assert patched(surrogate.model) == []
        # And it works as before.
        surrogate.forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1], with_features=True)


def tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.rand(shape) for shape in shapes]


class TestParts:
    def test_a_tensor_is_the_one_part(self) -> None:
        (features,) = tensors((2, 3, 4))
        (part,) = feature_parts(features)
        assert part is features

    @pytest.mark.parametrize("form", [list, tuple])
    def test_a_list_is_a_part_an_image(self, form: type) -> None:
        parts = tensors((2, 4), (3, 4))
        found = feature_parts(form(parts))
        assert [a is b for a, b in zip(found, parts, strict=True)] == [True, True]

    def test_lists_within_lists_are_in_order(self) -> None:
        a, b, c, d = tensors((1, 4), (2, 4), (3, 4), (4, 4))
        found = feature_parts([(a, [b]), SimpleNamespace(pooler_output=(c,)), d])
        assert [part.shape[0] for part in found] == [1, 2, 3, 4]
        assert all(x is y for x, y in zip(found, (a, b, c, d), strict=True))

    def test_what_goes_to_the_language_model_comes_before_the_encoders_own(self) -> None:
        pooled, last = tensors((2, 3), (2, 5, 3))
        both = SimpleNamespace(last_hidden_state=last, pooler_output=pooled)
        assert feature_parts(both)[0] is pooled
        assert len(feature_parts(both)) == 1
        assert feature_parts(SimpleNamespace(pooler_output=None, last_hidden_state=last))[0] is last
        assert feature_parts(SimpleNamespace(last_hidden_state=last))[0] is last

    def test_a_pooled_list(self) -> None:
        parts = tensors((2, 3), (5, 3))
        found = feature_parts(SimpleNamespace(pooler_output=parts, last_hidden_state=torch.rand(9, 9)))
        assert [part.shape for part in found] == [(2, 3), (5, 3)]

    def test_depths_go_side_by_side(self) -> None:
        shallow, deep = tensors((2, 3), (4, 3)), tensors((2, 3), (4, 3))
        (part,) = feature_parts(SimpleNamespace(pooler_output=None, deepstack_features=[(0, shallow), (5, deep)]))
        assert part.shape == (6, 6)
        assert torch.equal(part[:, :3], torch.cat(shallow))
        assert torch.equal(part[:, 3:], torch.cat(deep))

    def test_depths_beside_features_are_left_out(self) -> None:
        # Qwen3-VL has both: the pooled ones take the places of placeholders.
        pooled, depth = tensors((2, 3), (2, 3))
        (part,) = feature_parts(SimpleNamespace(pooler_output=pooled, deepstack_features=[depth]))
        assert part is pooled

    @pytest.mark.parametrize(
        "output", [None, [], (), 3, SimpleNamespace(logits=torch.zeros(1)), SimpleNamespace(deepstack_features=[])]
    )
    def test_none_where_no_form_is_known(self, output: Any) -> None:
        assert feature_parts(output) == []


class TestFlat:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    def test_they_are_float32(self, dtype: torch.dtype) -> None:
        part = torch.tensor([[[1.5, -2.0], [0.25, 3.0]]], dtype=dtype)
        flat = flatten_features([part])
        assert flat.dtype == torch.float32
        assert flat.tolist() == [[1.5, -2.0], [0.25, 3.0]]

    def test_a_row_is_a_token_of_the_batch(self) -> None:
        a, b, c = tensors((2, 3, 5), (2, 2, 2, 5), (4, 5))
        flat = flatten_features([a, b, c])
        assert flat.shape == (6 + 8 + 4, 5)
        assert torch.equal(flat[:3], a[0])
        assert torch.equal(flat[6 + 5], b[1, 0, 1])
        assert torch.equal(flat[14:], c)

    def test_they_keep_their_graph(self) -> None:
        part = torch.rand(1, 3, 2, requires_grad=True)
        flatten_features([part, part]).sum().backward()
        assert part.grad is not None
        assert torch.equal(part.grad, torch.full((1, 3, 2), 2.0))


class TestInOutput:
    @pytest.mark.parametrize("name", OUTPUT_NAMES)
    def test_under_each_name(self, name: str) -> None:
        (features,) = tensors((2, 3))
        assert features_in(SimpleNamespace(**{name: features}, logits=torch.zeros(1))) is features

    def test_in_the_output_of_the_language_model(self) -> None:
        (features,) = tensors((2, 3))
        inner = SimpleNamespace(encoder_last_hidden_state=features)
        assert features_in(SimpleNamespace(image_embeds=None, language_model_outputs=inner)) is features

    def test_image_features_come_before_what_an_encoder_made_of_image_and_text(self) -> None:
        image, encoded = tensors((1, 3), (3, 3))
        assert features_in(SimpleNamespace(encoder_last_hidden_state=encoded, image_embeds=image)) is image
        inner = SimpleNamespace(image_embeds=image)
        assert features_in(SimpleNamespace(encoder_last_hidden_state=encoded, language_model_outputs=inner)) is image

    @pytest.mark.parametrize("output", [
        None, SimpleNamespace(logits=1), SimpleNamespace(image_embeds=None), SimpleNamespace(image_hidden_states=torch.ones(1, 3)),
    ])  # fmt: skip
    def test_none_where_there_are_none(self, output: Any) -> None:
        assert features_in(output) is None
