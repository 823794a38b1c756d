"""`canvas="native"`: the prompt follows the image instead of the image the prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from tiny_training import dataset, make_args, surrogate
from torchvision.transforms.v2 import functional as TF
from transformers import PreTrainedModel, ProcessorMixin

from transferable_vp import (
    Surrogate,
    TransferableVisualPrompt,
    TransferableVisualPromptConfig,
    TransferableVisualPromptTrainer,
)


Pair = tuple[PreTrainedModel, ProcessorMixin]


def native(**config: object) -> TransferableVisualPrompt:
    return tiny.noise_prompt(**({"canvas_size": 40, "border_size": 8, "canvas": "native"} | config))


class TestGeometry:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            ((640, 480), (640 + 2 * 117, 480 + 2 * 88)),  # of the paper's 164 of content in borders of 30
            ((164, 164), (224, 224)),
            ((32, 32), (44, 44)),
            ((1, 1), (3, 3)),
            ((1, 500), (3, 500 + 2 * 91)),
        ],
    )
    def test_the_canvas_grows_in_proportion(self, size: tuple[int, int], expected: tuple[int, int]) -> None:
        prompt = TransferableVisualPrompt(TransferableVisualPromptConfig(canvas="native"))
        assert prompt.apply(tiny.picture(*size)).size == expected

    def test_the_image_keeps_every_pixel(self) -> None:
        image = tiny.picture(61, 37)
        prompted = native().apply(image)
        left, top = (prompted.width - 61) // 2, (prompted.height - 37) // 2
        assert prompted.crop((left, top, left + 61, top + 37)).tobytes() == image.tobytes()

    @pytest.mark.parametrize("layout", ["border", "overlay", "both"])
    @pytest.mark.parametrize("content_size", [24, 20])
    def test_at_the_size_of_its_content_it_is_the_fixed_canvas(self, layout: str, content_size: int) -> None:
        image = tiny.picture(content_size, content_size)
        border = 0 if layout == "overlay" else 8
        sizes = {"canvas_size": 24 if layout == "overlay" else 40, "border_size": border, "layout": layout,
                 "content_size": content_size}  # fmt: skip
        (canvas,) = native(**sizes)(image)
        assert torch.equal(canvas, native(**sizes, canvas="fixed")(image)[0])

    @pytest.mark.parametrize("size", [(61, 37), (200, 90), (24, 24), (7, 5)])
    def test_the_frame_does_not_fade_at_its_edges(self, size: tuple[int, int]) -> None:
        prompt = native()
        with torch.no_grad():
            prompt.delta.fill_(0.5)
        prompt.project_()
        (canvas,) = prompt(Image.new("RGB", size, "white"))
        frame = canvas[canvas != 1]
        assert len(frame) > 0
        torch.testing.assert_close(frame, torch.full_like(frame, 0.5))

    def test_the_frame_is_the_learned_one_resized(self) -> None:
        prompt = native()
        (canvas,) = prompt(tiny.picture(240, 240))
        # Ten times as large, so that away from the inner edge nothing else is mixed in.
        expected = TF.resize(prompt.delta, [400, 400], TF.InterpolationMode.BILINEAR, antialias=True)
        assert canvas.shape == (3, 400, 400)
        torch.testing.assert_close(canvas[:, :70], expected[:, :70], rtol=0, atol=1e-5)

    def test_a_gap_between_frame_and_image_stays_black(self) -> None:
        prompt = native(content_size=12)
        with torch.no_grad():
            prompt.delta.fill_(1.0)
        prompt.project_()
        (canvas,) = prompt(Image.new("RGB", (24, 24), "white"))
        # 8 + 6 + 12 + 6 + 8, twice as large.
        assert canvas.shape == (3, 80, 80)
        assert canvas[0, 40].tolist() == [1.0] * 16 + [0.0] * 12 + [1.0] * 24 + [0.0] * 12 + [1.0] * 16

    def test_an_overlay_covers_the_image(self) -> None:
        prompt = native(canvas_size=24, layout="overlay", epsilon=0.25)
        (canvas,), (clean,) = prompt(tiny.picture(50, 30)), prompt(tiny.picture(50, 30), prompted=False)
        assert canvas.shape == (3, 30, 50)
        change = (canvas - clean).abs()
        assert 0.1 < change.max() <= 0.25 + 1e-6

    def test_a_huge_image_shrinks(self) -> None:
        prompt = TransferableVisualPrompt(TransferableVisualPromptConfig(canvas="native"))
        width, height = prompt.apply(Image.new("RGB", (12000, 300))).size
        assert 4000 <= width <= 4097
        assert height == pytest.approx(width * 300 / 12000, abs=2)

    @pytest.mark.parametrize("size", [(61, 37), (1, 1), (5, 300)])
    @pytest.mark.parametrize("layout", ["border", "both"])
    def test_values_can_be_shown(self, size: tuple[int, int], layout: str) -> None:
        (canvas,) = native(layout=layout)(tiny.picture(*size))
        assert canvas.min() >= 0
        assert canvas.max() <= 1

    def test_unprompted_the_frame_is_black(self) -> None:
        (canvas,) = native()(Image.new("RGB", (61, 37), "white"), prompted=False)
        assert set(canvas.unique().tolist()) == {0.0, 1.0}
        assert canvas.sum() == 3 * 61 * 37


class TestGradient:
    @pytest.mark.parametrize("layout", ["border", "overlay", "both"])
    def test_it_is_that_of_finite_differences(self, layout: str) -> None:
        prompt = native(layout=layout, **({"canvas_size": 24} if layout == "overlay" else {}), value_range="unbounded")
        image = tiny.picture(31, 50)
        weight = torch.randn(prompt(image)[0].shape, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad((prompt(image)[0] * weight).sum(), prompt.delta)
        assert (gradient[prompt.trainable_mask.expand_as(gradient)] != 0).all()
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(2)) * prompt.trainable_mask
        ends = []
        for sign in (1, -1):
            moved = native(**prompt.config.to_diff_dict())
            with torch.no_grad():
                moved.delta.copy_(prompt.delta + sign * direction)
                ends.append(float((moved(image)[0] * weight).double().sum()))
        # The canvas is linear in the learned pixels, so any step will do.
        assert (ends[0] - ends[1]) / 2 == pytest.approx(float((gradient * direction).sum()), rel=1e-3)

    def test_a_black_frame_can_be_left(self) -> None:
        prompt = TransferableVisualPrompt(
            TransferableVisualPromptConfig(canvas_size=40, border_size=8, canvas="native")
        )
        prompt(tiny.picture(31, 50))[0].sum().backward()
        assert (prompt.delta.grad[prompt.border_mask.expand_as(prompt.delta)] > 0).all()


class TestModels:
    def test_the_resolution_follows_the_image(self, pair: Callable[[str], Pair]) -> None:
        model, processor = pair("qwen2_vl")
        processor.image_processor.size = {"shortest_edge": 8**2, "longest_edge": 512**2}
        prompt, images = native(), [tiny.picture(48, 96), tiny.picture(96, 24)]
        batch = tiny.question_inputs(prompt.attach(processor), images)
        # 80 x 160 and 160 x 40 pixels, in patches of 4.
        assert batch["image_grid_thw"].tolist() == [[1, 40, 20], [1, 10, 40]]
        surrogate = Surrogate(model, processor)
        canvas = prompt(images)
        output = surrogate.forward(canvas, ["What is it?", "Is it?"], ["red", "no"], with_features=True)
        assert output.features is not None
        assert len(output.features) == 200 + 100
        output.logits.sum().backward()
        assert prompt.delta.grad is not None
        assert prompt.delta.grad.abs().sum() > 0

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        prompt = native()
        prompt.save_pretrained(tmp_path)
        loaded = TransferableVisualPrompt.from_pretrained(tmp_path)
        assert loaded.config.canvas == "native"
        assert loaded.apply(tiny.picture()).tobytes() == prompt.apply(tiny.picture()).tobytes()

    def test_trained_evaluated_and_resumed(self, tmp_path: Path) -> None:
        config = TransferableVisualPromptConfig(canvas_size=40, border_size=8, canvas="native")
        rows = dataset(8)
        trainer = TransferableVisualPromptTrainer(
            model=TransferableVisualPrompt(config), surrogates=[surrogate("qwen2_vl"), surrogate("llava")],
            args=make_args(tmp_path, max_steps=2, save_strategy="steps", save_steps=2, fca_weight=0.1), train_dataset=rows, eval_dataset=rows,
        )  # fmt: skip
        trainer.train()
        assert trainer.model.delta.abs().sum() > 0
        assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
        fixed = TransferableVisualPromptTrainer(
            model=TransferableVisualPrompt(TransferableVisualPromptConfig(canvas_size=40, border_size=8)),
            surrogates=[surrogate("llava")], args=make_args(tmp_path, max_steps=4), train_dataset=rows,
        )  # fmt: skip
        with pytest.raises(ValueError, match="canvas='native' and the prompt to train has 'fixed'"):
            fixed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
