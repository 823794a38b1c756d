"""The attached processor: the values of the deployed image to the bit, the gradient of the float one, on every route.

`plain` is always a family's own processor on the PNG that `prompt.apply` made: what a user without this package has.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    BatchFeature,
    BertTokenizerFast,
    CLIPImageProcessor,
    PreTrainedModel,
    ProcessorMixin,
    pipeline,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from transferable_vp import TransferableVisualPrompt
from transferable_vp.images import to_pil
from transferable_vp.processing import AttachedImageProcessor, attach, map_images


Pair = tuple[PreTrainedModel, ProcessorMixin]
# Larger and smaller than what the models see, so that every processor has to resize, down and up.
CANVAS_SIZES = [40, 24]
all_families = pytest.mark.parametrize("family", tiny.FAMILIES)
templated_families = pytest.mark.parametrize("family", tiny.TEMPLATED)


@pytest.fixture
def processor(family: str, shared_pair: Callable[[str], Pair]) -> ProcessorMixin:
    """The own processor of a family. Shared: attaching must not change it, which a test below asserts."""
    return shared_pair(family)[1]


@pytest.fixture
def prompt() -> TransferableVisualPrompt:
    return tiny.noise_prompt(canvas_size=40, border_size=8)


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Two raw images of different sizes."""
    return [tiny.picture(48, 36, seed=1), tiny.picture(29, 53, seed=2)]


def png(image: Image.Image) -> Image.Image:
    """An image as it comes out of its file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return Image.open(file)


def assert_same(actual: BatchFeature, expected: BatchFeature) -> None:
    """Equal keys, types, shapes and values, to the bit."""
    assert dict(actual).keys() == dict(expected).keys()
    assert "pixel_values" in expected
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert actual[key].dtype == value.dtype, key
            assert torch.equal(actual[key], value), key
        else:
            assert actual[key] == value, key


def noise_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5))


class TestDeployed:
    @all_families
    @pytest.mark.parametrize("canvas_size", CANVAS_SIZES)
    def test_it_is_what_the_png_gives(
        self, processor: ProcessorMixin, canvas_size: int, pictures: list[Image.Image]
    ) -> None:
        prompt = tiny.noise_prompt(canvas_size=canvas_size, border_size=5)
        attached = prompt.attach(processor)
        plain = tiny.question_inputs(processor, [png(prompt.apply(picture)) for picture in pictures])
        assert_same(tiny.question_inputs(attached, pictures), plain)
        # And the prompt is in it.
        bare = tiny.question_inputs(processor, [prompt.apply(picture, prompted=False) for picture in pictures])
        assert not torch.equal(plain["pixel_values"], bare["pixel_values"])

    @all_families
    def test_no_graph_is_made(
        self, processor: ProcessorMixin, prompt: TransferableVisualPrompt, pictures: list[Image.Image]
    ) -> None:
        assert not tiny.question_inputs(prompt.attach(processor), pictures)["pixel_values"].requires_grad

    @all_families
    def test_texts_and_images_of_different_lengths(
        self, processor: ProcessorMixin, prompt: TransferableVisualPrompt, pictures: list[Image.Image]
    ) -> None:
        questions = ["What is it?", "Is there a cat in the picture, yes or no?"]
        plain = tiny.question_inputs(processor, prompt.apply(pictures), questions)
        both = tiny.question_inputs(prompt.attach(processor), pictures, questions)
        assert_same(both, plain)
        alone = [tiny.question_inputs(prompt.attach(processor), [picture]) for picture in pictures]
        assert torch.equal(both["pixel_values"], torch.cat([one["pixel_values"] for one in alone]))

    @all_families
    @pytest.mark.parametrize("kind", ["grey", "alpha", "array", "tensor", "path"])
    def test_other_kinds_of_image(
        self, processor: ProcessorMixin, prompt: TransferableVisualPrompt, kind: str, tmp_path: Path
    ) -> None:
        image = tiny.picture()
        if kind in ("grey", "alpha"):
            image = image.convert({"grey": "L", "alpha": "RGBA"}[kind])
        given: Any = image
        if kind == "array":
            given = np.asarray(image)
        elif kind == "tensor":
            given = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
        elif kind == "path":
            given = str(tmp_path / "picture.png")
            image.save(given)
        plain = tiny.question_inputs(processor, [prompt.apply(image)])
        assert_same(tiny.question_inputs(prompt.attach(processor), [given]), plain)

    @pytest.mark.parametrize("family", ["llava", "qwen2_vl", "idefics3", "gemma3"])
    def test_a_flat_list_and_a_single_image(
        self, family: str, processor: ProcessorMixin, prompt: TransferableVisualPrompt, pictures: list[Image.Image]
    ) -> None:
        attached, text = prompt.attach(processor), tiny.question_text(processor, "What is it?")
        for images, texts in ((pictures[0], text), ([pictures[0]], [text])):
            plain = map_images(prompt.apply, images)
            arguments: dict[str, Any] = {"text": texts, "return_tensors": "pt"}
            assert_same(attached(images=images, **arguments), processor(images=plain, **arguments))

    @pytest.mark.parametrize("family", ["llava", "qwen2_vl", "idefics3", "smolvlm", "gemma3"])
    def test_several_images_in_one_text(
        self, processor: ProcessorMixin, prompt: TransferableVisualPrompt, pictures: list[Image.Image]
    ) -> None:
        image = {"type": "image"}
        content = [image, {"type": "text", "text": "or"}, image, {"type": "text", "text": "?"}]
        text = processor.apply_chat_template([{"role": "user", "content": content}])
        arguments: dict[str, Any] = {"text": [text], "return_tensors": "pt"}
        plain = processor(images=[prompt.apply(pictures)], **arguments)
        assert_same(prompt.attach(processor)(images=[pictures], **arguments), plain)

    @pytest.mark.parametrize("family", [name for name in tiny.FAMILIES if name != "paligemma"])
    def test_text_alone(self, processor: ProcessorMixin, prompt: TransferableVisualPrompt) -> None:
        arguments: dict[str, Any] = {"text": ["What is it?"], "return_tensors": "pt"}
        plain, attached = processor(**arguments), prompt.attach(processor)(**arguments)
        assert torch.equal(attached["input_ids"], plain["input_ids"])
        assert "pixel_values" not in attached

    @all_families
    def test_the_prompt_may_change_later(
        self, processor: ProcessorMixin, prompt: TransferableVisualPrompt, pictures: list[Image.Image]
    ) -> None:
        attached = prompt.attach(processor)
        before = tiny.question_inputs(attached, pictures)
        with torch.no_grad():
            prompt.delta.zero_()
        after = tiny.question_inputs(attached, pictures)
        assert not torch.equal(before["pixel_values"], after["pixel_values"])
        assert_same(after, tiny.question_inputs(processor, prompt.apply(pictures)))


class TestTraining:
    @all_families
    @pytest.mark.parametrize("canvas_size", CANVAS_SIZES)
    def test_values_are_those_deployed_and_carry_a_gradient(
        self, family: str, processor: ProcessorMixin, canvas_size: int, pictures: list[Image.Image]
    ) -> None:
        prompt = tiny.noise_prompt(canvas_size=canvas_size, border_size=5)
        attached = prompt.attach(processor, differentiable=True)
        batch = tiny.question_inputs(attached, pictures)
        plain = tiny.question_inputs(processor, [png(prompt.apply(picture)) for picture in pictures])
        assert_same(batch, plain)
        assert batch["pixel_values"].requires_grad
        (batch["pixel_values"] * noise_like(batch["pixel_values"])).sum().backward()
        gradient, border = prompt.delta.grad, 5
        assert torch.isfinite(gradient).all()
        reached = (gradient != 0).float()
        for side in (reached[:, :border], reached[:, -border:], reached[..., :border], reached[..., -border:]):
            assert side.mean() > 0.99
        # Nothing here is made so much smaller that a pixel could fall between two samples.
        assert (gradient[prompt.border_mask.expand(3, -1, -1)] != 0).all()

    @all_families
    def test_a_black_border_learns(self, processor: ProcessorMixin, pictures: list[Image.Image]) -> None:
        prompt = tiny.noise_prompt(canvas_size=40, border_size=8)
        with torch.no_grad():
            prompt.delta.zero_()
        batch = tiny.question_inputs(prompt.attach(processor, differentiable=True), pictures)
        (batch["pixel_values"] * noise_like(batch["pixel_values"])).sum().backward()
        assert (prompt.delta.grad[prompt.border_mask.expand(3, -1, -1)] != 0).all()

    @all_families
    def test_the_gradient_comes_through_the_model(
        self, family: str, prompt: TransferableVisualPrompt, pictures: list[Image.Image], pair: Callable[[str], Pair]
    ) -> None:
        model, processor = pair(family)
        model.requires_grad_(False)
        batch = tiny.question_inputs(prompt.attach(processor, differentiable=True), pictures)
        batch.pop("labels", None)
        model(**batch).logits[:, -1].logsumexp(-1).sum().backward()
        border = prompt.border_mask.expand(3, -1, -1)
        assert torch.isfinite(prompt.delta.grad).all()
        assert (prompt.delta.grad[border] != 0).float().mean() > 0.99
        assert all(parameter.grad is None for parameter in model.parameters())

    @all_families
    def test_each_image_has_its_own_gradient(self, processor: ProcessorMixin, pictures: list[Image.Image]) -> None:
        # Rows must not be mixed up between the 8-bit and the float pass.
        prompt = tiny.noise_prompt(canvas_size=40, border_size=8)
        canvases = [canvas.detach().requires_grad_() for canvas in prompt(pictures)]
        attached = attach(None, processor, differentiable=True)
        with attached.image_processor.replacing(canvases):
            batch = tiny.question_inputs(attached, [to_pil(canvas) for canvas in canvases])
        first = batch["pixel_values"][: len(batch["pixel_values"]) // 2]
        gradients = torch.autograd.grad(first.square().sum(), canvases)
        assert (gradients[0] != 0).any() and (gradients[1] == 0).all()

    @pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
    def test_without_grad_there_is_one_pass(
        self, processor: ProcessorMixin, prompt: TransferableVisualPrompt, monkeypatch: pytest.MonkeyPatch,
        pictures: list[Image.Image],
    ) -> None:  # fmt: skip
        calls: list[Any] = []
        plain_class = type(processor.image_processor)
        original = plain_class._preprocess

        def counting(self: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(images[0].dtype)
            return original(self, images, *args, **kwargs)

        monkeypatch.setattr(plain_class, "_preprocess", counting)
        attached = prompt.attach(processor, differentiable=True)
        with torch.no_grad():
            inputs = tiny.question_inputs(attached, pictures)
        assert calls == [torch.uint8] and not inputs["pixel_values"].requires_grad
        calls.clear()
        prompt.delta.requires_grad_(False)
        tiny.question_inputs(attached, pictures)
        assert calls == [torch.uint8]
        calls.clear()
        canvases = [canvas.clone().requires_grad_() for canvas in prompt(pictures)]
        with torch.no_grad(), attached.image_processor.replacing(canvases):
            tiny.question_inputs(attached, [to_pil(canvas) for canvas in canvases])
        assert calls == [torch.uint8]
        calls.clear()
        prompt.delta.requires_grad_(True)
        assert tiny.question_inputs(attached, pictures)["pixel_values"].requires_grad
        assert calls == [torch.uint8, torch.float32]

    @pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
    def test_gradient_agrees_with_finite_differences(self, processor: ProcessorMixin) -> None:
        # Of the float pass: the deployed one is a staircase. Single precision, so the function is linear, the step is
        # large and no value comes near a bound, where the path has a kink of its own.
        prompt = tiny.noise_prompt(canvas_size=40, border_size=8)
        with torch.no_grad():
            prompt.delta.mul_(0.5).add_(0.25).mul_(prompt.border_mask)
        image = Image.new("RGB", (30, 30), (128, 100, 90))
        weights: list[torch.Tensor] = []

        def total(unbounded: bool) -> torch.Tensor:
            # In the unbounded mode the values are those of the float pass.
            attached = attach(None, processor, differentiable=True)
            canvases = list(prompt(image))
            with attached.image_processor.replacing(canvases, unbounded=unbounded):
                pixels = tiny.question_inputs(attached, [to_pil(canvas) for canvas in canvases])["pixel_values"]
            if not weights:
                weights.append(noise_like(pixels))
            return (pixels.double() * weights[0]).sum()

        total(unbounded=False).backward()
        gradient = prompt.delta.grad.clone()
        direction = noise_like(prompt.delta).sign() * prompt.border_mask
        step = 0.05
        with torch.no_grad():
            prompt.delta.add_(step * direction)
            above = total(unbounded=True)
            prompt.delta.sub_(2 * step * direction)
            below = total(unbounded=True)
        expected = ((above - below) / (2 * step)).item()
        assert abs(expected) > 1
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-3)


class TestChatTemplate:
    ARGUMENTS: dict[str, Any] = {
        "add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt",
    }  # fmt: skip

    @templated_families
    @pytest.mark.parametrize("differentiable", [False, True], ids=["deployed", "training"])
    def test_it_is_what_the_png_gives(
        self, processor: ProcessorMixin, prompt: TransferableVisualPrompt, differentiable: bool
    ) -> None:
        image, question = tiny.picture(), "What is in the picture?"
        attached = prompt.attach(processor, differentiable=differentiable)
        plain = processor.apply_chat_template(tiny.conversation(question, png(prompt.apply(image))), **self.ARGUMENTS)
        batch = attached.apply_chat_template(tiny.conversation(question, image), **self.ARGUMENTS)
        assert_same(batch, plain)
        assert batch["pixel_values"].requires_grad == differentiable
        if differentiable:
            (batch["pixel_values"] * noise_like(batch["pixel_values"])).sum().backward()
            assert (prompt.delta.grad[prompt.border_mask.expand(3, -1, -1)] != 0).all()

    @templated_families
    def test_a_batch_of_conversations(
        self, processor: ProcessorMixin, prompt: TransferableVisualPrompt, pictures: list[Image.Image]
    ) -> None:
        questions = ["What is it?", "Is there a cat in the picture, yes or no?"]

        def encode(one: ProcessorMixin, images: list[Image.Image]) -> BatchFeature:
            conversations = [tiny.conversation(q, image) for q, image in zip(questions, images, strict=True)]
            return one.apply_chat_template(conversations, processor_kwargs={"padding": True}, **self.ARGUMENTS)

        assert_same(encode(prompt.attach(processor), pictures), encode(processor, prompt.apply(pictures)))

    @pytest.mark.parametrize("family", ["llava", "idefics3"])
    def test_an_image_named_by_its_path(
        self, processor: ProcessorMixin, prompt: TransferableVisualPrompt, tmp_path: Path
    ) -> None:
        tiny.picture().save(tmp_path / "picture.png")
        message = tiny.conversation("What is it?")
        message[0]["content"][0]["path"] = str(tmp_path / "picture.png")
        plain = processor.apply_chat_template(
            tiny.conversation("What is it?", prompt.apply(tiny.picture())), **self.ARGUMENTS
        )
        assert_same(prompt.attach(processor).apply_chat_template(message, **self.ARGUMENTS), plain)


def spy_on_generate(model: PreTrainedModel) -> list[torch.Tensor]:
    """The pixel values of every call of `model.generate` from now on."""
    seen: list[torch.Tensor] = []
    original = model.generate

    def generate(**kwargs: Any) -> Any:
        seen.append(kwargs["pixel_values"])
        return original(**kwargs)

    model.generate = generate
    return seen


class TestPipeline:
    @pytest.mark.parametrize("family", ["llava", "qwen2_vl", "idefics3", "smolvlm", "paligemma", "gemma3"])
    def test_the_model_sees_the_prompted_image(
        self, family: str, prompt: TransferableVisualPrompt, pair: Callable[[str], Pair]
    ) -> None:
        model, processor = pair(family)
        seen = spy_on_generate(model)
        image, question = tiny.picture(), "What is in the picture?"

        def run(one: ProcessorMixin, picture: Image.Image) -> str:
            pipe = pipeline("image-text-to-text", model=model, processor=one, device="cpu")
            conversation = tiny.conversation(question, picture)
            return pipe(text=conversation, max_new_tokens=3, return_full_text=False)[0]["generated_text"]

        answer = run(prompt.attach(processor), image)
        assert answer == run(processor, png(prompt.apply(image)))
        assert len(seen) == 2
        assert torch.equal(seen[0], seen[1])
        assert torch.equal(seen[0], tiny.question_inputs(processor, [prompt.apply(image)])["pixel_values"])

    @pytest.mark.parametrize("family", ["blip-2", "instructblip"])
    def test_without_a_chat_template(
        self, family: str, prompt: TransferableVisualPrompt, pair: Callable[[str], Pair]
    ) -> None:
        model, processor = pair(family)
        seen = spy_on_generate(model)
        pipe = pipeline("image-text-to-text", model=model, processor=prompt.attach(processor), device="cpu")
        pipe(images=tiny.picture(), text="What is it?", max_new_tokens=2)
        expected = processor.image_processor(prompt.apply(tiny.picture()), return_tensors="pt")
        assert len(seen) == 1
        assert torch.equal(seen[0], expected["pixel_values"])


class TestAttaching:
    @all_families
    @pytest.mark.parametrize("differentiable", [False, True])
    def test_the_original_is_not_changed(
        self, processor: ProcessorMixin, prompt: TransferableVisualPrompt, differentiable: bool,
        pictures: list[Image.Image],
    ) -> None:  # fmt: skip
        image_processor = processor.image_processor
        before, attributes = tiny.question_inputs(processor, pictures), processor.to_dict()
        attached = prompt.attach(processor, differentiable=differentiable)
        tiny.question_inputs(attached, pictures)
        assert processor.image_processor is image_processor
        assert not isinstance(image_processor, AttachedImageProcessor)
        assert not hasattr(image_processor, "visual_prompt")
        assert processor.to_dict() == attributes
        assert_same(tiny.question_inputs(processor, pictures), before)

    @all_families
    def test_it_is_still_the_same_type(self, processor: ProcessorMixin, prompt: TransferableVisualPrompt) -> None:
        attached = prompt.attach(processor)
        assert type(attached) is type(processor)
        assert isinstance(attached.image_processor, type(processor.image_processor))
        assert isinstance(attached.image_processor, AttachedImageProcessor)
        assert type(attached.image_processor).__name__ == type(processor.image_processor).__name__
        assert attached.tokenizer is processor.tokenizer
        assert attached.image_processor.visual_prompt is prompt
        assert type(processor.image_processor).__name__ in repr(attached)

    @all_families
    @pytest.mark.parametrize("differentiable", [False, True])
    def test_what_is_saved_is_the_plain_processor(
        self, processor: ProcessorMixin, prompt: TransferableVisualPrompt, differentiable: bool, tmp_path: Path,
        pictures: list[Image.Image],
    ) -> None:  # fmt: skip
        attached = prompt.attach(processor, differentiable=differentiable)
        assert attached.to_dict() == processor.to_dict()
        assert attached.image_processor.to_dict() == processor.image_processor.to_dict()
        attached.save_pretrained(tmp_path / "attached")
        processor.save_pretrained(tmp_path / "plain")
        written, expected = (
            {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            for folder in (tmp_path / "attached", tmp_path / "plain")
        )
        # The same bytes, so nothing of this package: the folder loads without it.
        assert written == expected
        config = json.loads(written["processor_config.json"])
        assert config["image_processor"]["image_processor_type"] == type(processor.image_processor).__name__
        loaded = AutoProcessor.from_pretrained(tmp_path / "attached")
        assert type(loaded) is type(processor)
        assert type(loaded.image_processor) is type(processor.image_processor)
        assert_same(tiny.question_inputs(loaded, pictures), tiny.question_inputs(processor, pictures))

    @all_families
    @pytest.mark.parametrize("differentiable", [False, True])
    def test_a_bare_image_processor(
        self, processor: ProcessorMixin, prompt: TransferableVisualPrompt, differentiable: bool, tmp_path: Path
    ) -> None:
        plain = processor.image_processor
        attached = prompt.attach(plain, differentiable=differentiable)
        assert isinstance(attached, type(plain)) and not isinstance(plain, AttachedImageProcessor)
        image = tiny.picture()
        batch = attached(image, return_tensors="pt")
        assert_same(batch, plain(prompt.apply(image), return_tensors="pt"))
        assert_same(attached.preprocess(image, return_tensors="pt"), batch)
        assert batch["pixel_values"].requires_grad == differentiable
        attached.save_pretrained(tmp_path)
        assert type(AutoImageProcessor.from_pretrained(tmp_path)) is type(plain)

    @all_families
    @pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
                             ids=["copy", "deepcopy", "pickle"])  # fmt: skip
    def test_copies_still_prompt(
        self, processor: ProcessorMixin, prompt: TransferableVisualPrompt, clone: Callable[[Any], Any],
        pictures: list[Image.Image],
    ) -> None:  # fmt: skip
        for differentiable in (False, True):
            attached = prompt.attach(processor, differentiable=differentiable)
            expected = tiny.question_inputs(attached, pictures)
            # A collator pickles the processor, a user copies the image processor.
            again = clone(attached)
            again.image_processor = clone(attached.image_processor)
            assert again.image_processor is not attached.image_processor
            assert isinstance(again.image_processor, AttachedImageProcessor)
            assert type(again.image_processor).__name__ == type(processor.image_processor).__name__
            batch = tiny.question_inputs(again, pictures)
            assert_same(batch, expected)
            assert batch["pixel_values"].requires_grad == differentiable

    @pytest.mark.parametrize("family", ["llava"])
    def test_two_prompts_on_one_processor_do_not_mix(
        self, processor: ProcessorMixin, prompt: TransferableVisualPrompt, pictures: list[Image.Image]
    ) -> None:
        other = tiny.noise_prompt(seed=9, canvas_size=40, border_size=8)
        first, second = prompt.attach(processor), other.attach(processor)
        assert_same(tiny.question_inputs(first, pictures), tiny.question_inputs(processor, prompt.apply(pictures)))
        assert_same(tiny.question_inputs(second, pictures), tiny.question_inputs(processor, other.apply(pictures)))

    @pytest.mark.parametrize("family", ["llava", "idefics3", "qwen2_vl", "gemma3"])
    @pytest.mark.parametrize("differentiable", [False, True])
    def test_an_unbounded_prompt_gives_float_values(
        self, family: str, processor: ProcessorMixin, differentiable: bool
    ) -> None:
        # On the canvas size of the model no pixel is resampled (but by Idefics3), so values can be worked out.
        prompt = tiny.noise_prompt(canvas_size=32, border_size=6, value_range="unbounded")
        image, attached = tiny.picture(), prompt.attach(processor, differentiable=differentiable)
        batch = tiny.question_inputs(attached, [image])
        pixels = batch["pixel_values"]
        assert pixels.requires_grad == differentiable
        shown = tiny.question_inputs(processor, [prompt.apply(image)])
        assert not torch.allclose(pixels, shown["pixel_values"], atol=0.5)
        for key in set(shown) - {"pixel_values"}:
            assert torch.equal(batch[key], shown[key])
        if family in ("llava", "gemma3"):
            mean = torch.tensor(processor.image_processor.image_mean)[:, None, None]
            std = torch.tensor(processor.image_processor.image_std)[:, None, None]
            assert torch.allclose(pixels[0], (prompt(image)[0] - mean) / std, atol=1e-5)


class TestReplacing:
    @pytest.fixture
    def canvases(self, pictures: list[Image.Image]) -> list[torch.Tensor]:
        """As a surrogate is given them: composed once, for all models."""
        return list(tiny.noise_prompt(canvas_size=40, border_size=8)(pictures).detach().requires_grad_().unbind())

    @all_families
    def test_images_stand_for_canvases_in_order(self, processor: ProcessorMixin, canvases: list[torch.Tensor]) -> None:
        attached = attach(None, processor, differentiable=True)
        images = [to_pil(canvas) for canvas in canvases]
        leaves = [canvas.detach().requires_grad_() for canvas in canvases]
        with attached.image_processor.replacing(leaves):
            batch = tiny.question_inputs(attached, images)
        assert_same(batch, tiny.question_inputs(processor, images))
        pixels = batch["pixel_values"]
        weights = noise_like(pixels)
        gradients = torch.autograd.grad((pixels * weights).sum(), leaves)
        # Each on its own gives the same: the first half of the rows belongs to the first image.
        half = len(pixels) // 2
        for leaf, gradient, image, part in zip(leaves, gradients, images, weights.split(half), strict=True):
            with attached.image_processor.replacing([leaf]):
                alone = tiny.question_inputs(attached, [image])["pixel_values"]
            (expected,) = torch.autograd.grad((alone * part).sum(), leaf)
            assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
    @pytest.mark.parametrize("unbounded", [False, True])
    def test_fewer_images_than_canvases(
        self, processor: ProcessorMixin, canvases: list[torch.Tensor], unbounded: bool
    ) -> None:
        attached = attach(None, processor, differentiable=True)
        with (
            pytest.raises(RuntimeError, match="given fewer images than the 2 canvases they stand for"),
            attached.image_processor.replacing(canvases, unbounded=unbounded),
        ):
            tiny.question_inputs(attached, [to_pil(canvases[0])])

    @pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
    def test_more_images_than_canvases(self, processor: ProcessorMixin, canvases: list[torch.Tensor]) -> None:
        attached = attach(None, processor, differentiable=True)
        with (
            pytest.raises(RuntimeError, match="looks at more images than the 1 it was given"),
            attached.image_processor.replacing(canvases[:1]),
        ):
            tiny.question_inputs(attached, [to_pil(canvas) for canvas in canvases])

    @pytest.mark.parametrize("family", ["llava"])
    def test_it_ends_with_the_context_even_by_an_error(
        self, processor: ProcessorMixin, canvases: list[torch.Tensor]
    ) -> None:
        attached = attach(None, processor, differentiable=True)
        image = tiny.picture()
        with pytest.raises(KeyError), attached.image_processor.replacing(canvases):
            raise KeyError
        batch = tiny.question_inputs(attached, [image])
        assert_same(batch, tiny.question_inputs(processor, [image]))
        assert not batch["pixel_values"].requires_grad
        assert attached.to_dict() == processor.to_dict()

    @pytest.mark.parametrize("family", ["llava", "idefics3"])
    def test_unbounded_canvases(self, processor: ProcessorMixin, pictures: list[Image.Image]) -> None:
        prompt = tiny.noise_prompt(canvas_size=40, border_size=8, value_range="unbounded")
        expected = tiny.question_inputs(prompt.attach(processor, differentiable=True), pictures)
        attached, canvases = attach(None, processor, differentiable=True), list(prompt(pictures))
        with attached.image_processor.replacing(canvases, unbounded=True):
            batch = tiny.question_inputs(attached, [to_pil(canvas) for canvas in canvases])
        assert_same(batch, expected)

    @pytest.mark.parametrize("family", ["llava"])
    def test_a_prompt_of_its_own_is_left_out(
        self, processor: ProcessorMixin, prompt: TransferableVisualPrompt, canvases: list[torch.Tensor]
    ) -> None:
        attached = prompt.attach(processor, differentiable=True)
        images = [to_pil(canvas) for canvas in canvases]
        with attached.image_processor.replacing(canvases):
            batch = tiny.question_inputs(attached, images)
        assert_same(batch, tiny.question_inputs(processor, images))


class TestErrors:
    def test_no_image_processor(self, prompt: TransferableVisualPrompt) -> None:
        tokenizer = BertTokenizerFast(vocab={"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4})
        for thing in (tokenizer, None, "llava"):
            with pytest.raises(
                TypeError, match=rf"Got {type(thing).__name__}, which has no image processor: a visual"
            ):
                prompt.attach(thing)

    @pytest.mark.parametrize("family", ["llava"])
    def test_already_attached(self, processor: ProcessorMixin, prompt: TransferableVisualPrompt) -> None:
        attached = prompt.attach(processor)
        with pytest.raises(TypeError, match="This LlavaProcessor already has a visual prompt attached: attach to the"):
            prompt.attach(attached)
        with pytest.raises(TypeError, match="This CLIPImageProcessor already has a visual prompt attached"):
            prompt.attach(attached.image_processor)

    def test_a_holder_that_is_no_processor(self, prompt: TransferableVisualPrompt) -> None:
        class Holder:
            image_processor = CLIPImageProcessor()

        with pytest.raises(TypeError, match="Got Holder; expected a transformers processor or image processor"):
            prompt.attach(Holder())


class TestPILBackend:
    """The other backend of transformers: numpy and PIL, so no gradient, but a prompt can be applied."""

    @pytest.fixture
    def plain(self, shared_pair: Callable[[str], Pair]) -> ProcessorMixin:
        processor = copy.copy(shared_pair("llava")[1])
        processor.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=tiny.SIZE)
        assert processor.image_processor.backend == "pil"
        return processor

    def test_deployed_it_works(
        self, plain: ProcessorMixin, prompt: TransferableVisualPrompt, pictures: list[Image.Image]
    ) -> None:
        expected = tiny.question_inputs(plain, [png(prompt.apply(picture)) for picture in pictures])
        assert_same(tiny.question_inputs(prompt.attach(plain), pictures), expected)
        assert_same(
            prompt.attach(plain.image_processor)(pictures, return_tensors="pt"),
            plain.image_processor(prompt.apply(pictures), return_tensors="pt"),
        )

    def test_loaded_by_name_of_the_backend(self, prompt: TransferableVisualPrompt, tmp_path: Path) -> None:
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=tiny.SIZE).save_pretrained(tmp_path)
        plain = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
        image = tiny.picture()
        expected = plain(prompt.apply(image), return_tensors="pt")
        assert_same(prompt.attach(plain)(image, return_tensors="pt"), expected)
        with pytest.raises(TypeError, match="CLIPImageProcessorPil has the pil backend"):
            prompt.attach(plain, differentiable=True)

    def test_no_gradient(self, plain: ProcessorMixin, prompt: TransferableVisualPrompt) -> None:
        message = r"CLIPImageProcessorPil has the pil backend, which passes no gradient .* torchvision backend"
        with pytest.raises(TypeError, match=message):
            prompt.attach(plain, differentiable=True)
        with pytest.raises(TypeError, match=message):
            prompt.attach(plain.image_processor, differentiable=True)

    def test_no_unbounded_values(self, plain: ProcessorMixin) -> None:
        prompt = tiny.noise_prompt(canvas_size=40, border_size=8, value_range="unbounded")
        with pytest.raises(
            TypeError, match="CLIPImageProcessorPil has the pil backend, which passes no gradient and no"
        ):
            prompt.attach(plain)


def test_map_images_keeps_the_nesting() -> None:
    assert map_images(str, [[1, 2], (3,), []]) == [["1", "2"], ["3"], []]
    assert map_images(str, 1) == "1"
    shapes = map_images(lambda image: tuple(image.shape), [torch.zeros(2, 3, 4, 5), np.zeros((4, 5, 3))])
    assert shapes == [[(3, 4, 5), (3, 4, 5)], (4, 5, 3)]


def test_all_families_have_the_torchvision_backend(shared_pair: Callable[[str], Pair]) -> None:
    # Otherwise half of the tests above would test nothing.
    for family in tiny.FAMILIES:
        assert shared_pair(family)[1].image_processor.backend == "torchvision"
    assert transformers.utils.is_torchvision_available()


def test_do_rescale_false_is_refused(shared_pair) -> None:
    _, processor = shared_pair("llava")
    attached = tiny.noise_prompt(canvas_size=32, border_size=4).attach(processor.image_processor)
    with pytest.raises(ValueError, match="`do_rescale=False` says that pixel values are in"):
        attached([tiny.picture()], do_rescale=False, return_tensors="pt")
