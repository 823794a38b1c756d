"""The prompt itself: what it does to pixels, where its gradient goes, and what is in its files."""

from __future__ import annotations

import errno
import inspect
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
import transformers.modeling_utils
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel

from transferable_vp import TransferableVisualPrompt, TransferableVisualPromptConfig
from transferable_vp.images import fit_image, to_images, to_pil


# A border of 6 around 20 pixels of content.
SMALL = {"canvas_size": 32, "border_size": 6}
FILES = {"config.json", "model.safetensors", "preview.png", "prompt.png"}


@pytest.fixture
def prompt() -> TransferableVisualPrompt:
    return tiny.noise_prompt(**SMALL)


def padded(image: Any, canvas: int = 32, content: int = 20, fit: Any = "crop") -> torch.Tensor:
    """What a canvas without a prompt should be, by another road."""
    fitted = fit_image(to_images(image)[0], content, fit)
    return F.pad(fitted, [(canvas - content) // 2] * 4)[None]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestForward:
    @pytest.mark.parametrize("fit", ["crop", "contain", "stretch"])
    @pytest.mark.parametrize("size", [(48, 36), (10, 31), (20, 20)])
    def test_without_pixels_learned_it_pads(self, fit: Any, size: tuple[int, int]) -> None:
        zero = TransferableVisualPrompt(TransferableVisualPromptConfig(**SMALL, fit=fit))
        assert (zero.delta == 0).all()
        image = tiny.picture(*size)
        assert torch.equal(zero(image), padded(image, fit=fit))

    def test_border_is_delta_and_content_is_the_image(self, prompt: TransferableVisualPrompt) -> None:
        image = tiny.picture()
        canvas, mask = prompt(image), prompt.border_mask.expand(1, 3, 32, 32)
        assert canvas.shape == (1, 3, 32, 32) and canvas.dtype == torch.float32
        assert torch.equal(canvas[mask], prompt.delta[mask[0]])
        assert torch.equal(canvas[~mask], padded(image)[~mask])

    def test_masks(self) -> None:
        config = TransferableVisualPromptConfig(canvas_size=16, border_size=3, content_size=7)
        prompt = TransferableVisualPrompt(config)
        assert prompt.border_mask.shape == prompt.content_mask.shape == (1, 16, 16)
        assert int(prompt.border_mask.sum()) == 16**2 - 10**2
        # 7 in a room of 10: one black row more below than above.
        rows = prompt.content_mask[0].any(1).nonzero().flatten()
        assert rows.tolist() == list(range(4, 11))
        assert not (prompt.border_mask & prompt.content_mask).any()
        assert torch.equal(prompt.trainable_mask, prompt.border_mask)
        canvas = prompt(tiny.picture())
        assert (canvas[:, ~prompt.content_mask.expand(3, 16, 16)] == 0).all()

    def test_a_black_canvas_passes_gradient(self) -> None:
        # The clamp trap: `torch.clamp` at its bound is where every prompt starts.
        zero = TransferableVisualPrompt(TransferableVisualPromptConfig(**SMALL))
        zero(Image.new("RGB", (20, 20))).sum().backward()
        assert (zero.delta.grad == 1).all()

    def test_a_saturated_prompt_passes_gradient(self, prompt: TransferableVisualPrompt) -> None:
        with torch.no_grad():
            prompt.delta.fill_(1).mul_(prompt.border_mask)
        weights = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) + 0.5
        (prompt(Image.new("RGB", (20, 20), "white")) * weights).sum().backward()
        assert torch.equal(prompt.delta.grad, weights[0])

    def test_gradients_of_a_batch_add_up(self, prompt: TransferableVisualPrompt) -> None:
        images = [tiny.picture(seed=seed) for seed in range(3)]
        weights = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        (prompt(images) * weights).sum().backward()
        assert torch.allclose(prompt.delta.grad, weights.sum(0))

    def test_unprompted_has_no_delta_and_no_graph(self, prompt: TransferableVisualPrompt) -> None:
        image = tiny.picture()
        canvas = prompt(image, prompted=False)
        assert torch.equal(canvas, padded(image))
        assert not canvas.requires_grad

    @pytest.mark.parametrize("fit", ["crop", "contain", "stretch"])
    def test_a_batch_is_its_images_to_the_bit(self, fit: Any) -> None:
        prompt = tiny.noise_prompt(**SMALL, fit=fit)
        images = [tiny.picture(48, 36), tiny.picture(13, 70, seed=1), tiny.picture(48, 36, seed=2)]
        singles = torch.cat([prompt(image) for image in images])
        assert torch.equal(prompt(images), singles)
        same = np.stack([np.asarray(images[0]), np.asarray(images[2])])
        assert torch.equal(prompt(same), singles[[0, 2]])
        tensor = torch.from_numpy(same).permute(0, 3, 1, 2)
        assert torch.equal(prompt(tensor), singles[[0, 2]])
        assert torch.equal(prompt(tensor.float() / 255), singles[[0, 2]])

    def test_it_is_deterministic(self, prompt: TransferableVisualPrompt) -> None:
        assert torch.equal(prompt(tiny.picture()), prompt(tiny.picture()))

    def test_what_is_no_image_is_refused(self, prompt: TransferableVisualPrompt) -> None:
        with pytest.raises(ValueError, match=r"expected \[0, 1\]. Divide by 255, or pass uint8"):
            prompt(np.full((8, 8, 3), 255.0))
        with pytest.raises(ValueError, match="the sequence is empty"):
            prompt([])


class TestValues:
    def test_projection_keeps_a_border_displayable_and_the_rest_zero(self, prompt: TransferableVisualPrompt) -> None:
        with torch.no_grad():
            prompt.delta.uniform_(-2, 3)
        before = prompt.delta.detach().clone()
        parameter = prompt.delta
        assert prompt.project_() is prompt
        assert prompt.delta is parameter and parameter.requires_grad
        assert torch.equal(prompt.delta, before.clamp(0, 1) * prompt.border_mask)

    @pytest.mark.parametrize("epsilon", [16 / 255, 0.5])
    def test_projection_keeps_an_overlay_within_epsilon(self, epsilon: float) -> None:
        prompt = tiny.noise_prompt(canvas_size=32, layout="overlay", epsilon=epsilon)
        assert prompt.trainable_mask.all()
        assert prompt.delta.abs().max() == torch.tensor(epsilon)
        image = tiny.picture(32, 32)
        # Through a 8-bit image a change can be at most half a level larger.
        change = np.asarray(prompt.apply(image)).astype(float) - np.asarray(image)
        assert 0 < np.abs(change).max() <= 255 * epsilon + 0.5
        canvas = prompt(image)
        assert canvas.min() >= 0 and canvas.max() <= 1
        assert torch.equal(canvas, (padded(image, content=32) + prompt.delta).clamp(0, 1))

    def test_both_has_a_border_and_an_overlay(self) -> None:
        prompt = tiny.noise_prompt(**SMALL, content_size=18, layout="both", epsilon=0.1)
        border, content = prompt.border_mask.expand(3, 32, 32), prompt.content_mask.expand(3, 32, 32)
        assert prompt.delta[border].min() == 0 and prompt.delta[border].max() == 1
        assert prompt.delta[content].abs().max() == torch.tensor(0.1)
        # Between them lies a black line that nothing is learned on.
        assert (~(border | content)).any()
        assert (prompt.delta[~(border | content)] == 0).all()

    def test_unbounded_is_not_clamped(self) -> None:
        prompt = tiny.noise_prompt(**SMALL, value_range="unbounded")
        image, border = tiny.picture(), prompt.border_mask.expand(1, 3, 32, 32)
        assert prompt.delta.min() < -1.9 and prompt.delta.max() > 1.9
        canvas = prompt(image)
        assert torch.equal(canvas[border], prompt.delta[border[0]])
        assert torch.equal(canvas[~border], padded(image)[~border])
        before = prompt.delta.detach().clone()
        assert torch.equal(prompt.project_().delta, before)

    def test_displayable_never_leaves_what_can_be_shown(self, prompt: TransferableVisualPrompt) -> None:
        # Between an optimizer's step and the projection that follows it.
        with torch.no_grad():
            prompt.delta.uniform_(-2, 3)
        canvas = prompt(tiny.picture())
        assert canvas.min() == 0 and canvas.max() == 1


class TestApply:
    def test_one_image(self, prompt: TransferableVisualPrompt) -> None:
        image = tiny.picture()
        result = prompt.apply(image)
        assert isinstance(result, Image.Image) and (result.mode, result.size) == ("RGB", (32, 32))
        assert np.array_equal(np.asarray(result), np.asarray(to_pil(prompt(image)[0])))
        rounded = (prompt(image)[0].detach() * 255).round().byte().permute(1, 2, 0)
        assert np.array_equal(np.asarray(result), rounded.numpy())

    @pytest.mark.parametrize("kind", ["array", "tensor"])
    def test_one_array(self, prompt: TransferableVisualPrompt, kind: str) -> None:
        array = np.asarray(tiny.picture())
        given = array if kind == "array" else torch.from_numpy(array.copy()).permute(2, 0, 1)
        assert prompt.apply(given).tobytes() == prompt.apply(tiny.picture()).tobytes()

    def test_many_images(self, prompt: TransferableVisualPrompt) -> None:
        images = [tiny.picture(seed=seed) for seed in range(2)]
        expected = [prompt.apply(image).tobytes() for image in images]
        arrays = np.stack([np.asarray(image) for image in images])
        for given in (images, tuple(images), arrays, torch.from_numpy(arrays).permute(0, 3, 1, 2)):
            results = prompt.apply(given)
            assert isinstance(results, list)
            assert [result.tobytes() for result in results] == expected

    @pytest.mark.parametrize("make", [lambda i: [i], lambda i: np.asarray(i)[None]], ids=["list", "batch"])
    def test_a_batch_of_one_stays_a_list(self, prompt: TransferableVisualPrompt, make: Any) -> None:
        assert isinstance(prompt.apply(make(tiny.picture())), list)

    def test_unprompted(self, prompt: TransferableVisualPrompt) -> None:
        image = tiny.picture()
        assert np.array_equal(np.asarray(prompt.apply(image, prompted=False)), np.asarray(to_pil(padded(image)[0])))

    def test_an_unbounded_prompt_is_clamped_to_be_shown(self) -> None:
        prompt = tiny.noise_prompt(**SMALL, value_range="unbounded")
        shown = torch.from_numpy(np.asarray(prompt.apply(tiny.picture())).copy()).permute(2, 0, 1)
        assert torch.equal(shown, (prompt(tiny.picture())[0].clamp(0, 1) * 255).round().byte())

    def test_a_function_is_applied_to_modules(self, prompt: TransferableVisualPrompt) -> None:
        seen: list[nn.Module] = []
        assert prompt.apply(seen.append) is prompt
        assert seen == [prompt]
        assert isinstance(nn.Sequential(prompt).apply(lambda module: None), nn.Sequential)


class TestImage:
    def test_pasted_by_hand_it_is_what_apply_gives(self, prompt: TransferableVisualPrompt, tmp_path: Path) -> None:
        prompt.save_pretrained(tmp_path)
        frame = Image.open(tmp_path / "prompt.png")
        assert (frame.mode, frame.size) == ("RGBA", (32, 32))
        image = tiny.picture()
        by_hand = Image.new("RGB", (32, 32))
        by_hand.paste(to_pil(fit_image(to_images(image)[0], 20, "crop")), (6, 6))
        by_hand.paste(frame, (0, 0), frame)
        assert by_hand.tobytes() == prompt.apply(image).tobytes()

    def test_alpha_is_the_border(self, prompt: TransferableVisualPrompt) -> None:
        alpha = np.asarray(prompt.to_image())[..., 3]
        assert np.array_equal(alpha, prompt.border_mask[0].numpy() * 255)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"layout": "overlay"}, "layout='overlay' and value_range='displayable'. Use `apply`"),
            ({"layout": "both", "border_size": 6}, "layout='both' and value_range='displayable'"),
            ({"value_range": "unbounded", "border_size": 6}, "layout='border' and value_range='unbounded'"),
        ],
    )
    def test_only_a_displayable_border_is_an_image(self, config: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=f"Only a displayable border is an image of its own.*{message}"):
            tiny.noise_prompt(canvas_size=32, **config).to_image()


class TestFiles:
    @pytest.mark.parametrize(
        "config",
        [SMALL, {**SMALL, "layout": "both"}, {"canvas_size": 32, "layout": "overlay"},
         {**SMALL, "value_range": "unbounded", "fit": "stretch", "content_size": 11}],
        ids=["border", "both", "overlay", "unbounded"],
    )  # fmt: skip
    @pytest.mark.parametrize("loader", [TransferableVisualPrompt, AutoModel])
    def test_round_trip_to_the_bit(self, config: dict[str, Any], loader: Any, tmp_path: Path) -> None:
        prompt = tiny.noise_prompt(**config)
        prompt.save_pretrained(tmp_path)
        again = loader.from_pretrained(tmp_path)
        assert type(again) is TransferableVisualPrompt
        assert torch.equal(again.delta, prompt.delta) and again.delta.dtype == torch.float32
        assert again.delta.requires_grad
        geometry = {key: value for key, value in prompt.config.to_dict().items() if not key.startswith("_")}
        assert geometry.items() <= again.config.to_dict().items()
        assert torch.equal(again(tiny.picture()), prompt(tiny.picture()))

    def test_exactly_these_files(self, prompt: TransferableVisualPrompt, tmp_path: Path) -> None:
        prompt.save_pretrained(tmp_path / "new" / "prompt")
        assert {path.name for path in (tmp_path / "new" / "prompt").iterdir()} == FILES
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["prompt"]
        config = json.loads((tmp_path / "new" / "prompt" / "config.json").read_text())
        assert config["model_type"] == "transferable_visual_prompt"
        assert config["architectures"] == ["TransferableVisualPrompt"]

    @pytest.mark.parametrize("config", [{"layout": "overlay"}, {"border_size": 6, "value_range": "unbounded"}])
    def test_what_no_image_can_carry_has_no_image(self, config: dict[str, Any], tmp_path: Path) -> None:
        tiny.noise_prompt(canvas_size=32, **config).save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == FILES - {"prompt.png"}

    def test_an_image_of_an_earlier_prompt_does_not_stay(
        self, prompt: TransferableVisualPrompt, tmp_path: Path
    ) -> None:
        prompt.save_pretrained(tmp_path)
        tiny.noise_prompt(canvas_size=32, layout="overlay").save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == FILES - {"prompt.png"}

    def test_other_files_are_kept(self, prompt: TransferableVisualPrompt, tmp_path: Path) -> None:
        (tmp_path / "README.md").write_text("mine")
        (tmp_path / "runs").mkdir()
        (tmp_path / "config.json").write_text("{}")
        prompt.save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {*FILES, "README.md", "runs"}
        assert (tmp_path / "README.md").read_text() == "mine"
        assert json.loads((tmp_path / "config.json").read_text())["canvas_size"] == 32

    def test_saving_is_deterministic(self, prompt: TransferableVisualPrompt, tmp_path: Path) -> None:
        prompt.save_pretrained(tmp_path / "one")
        TransferableVisualPrompt.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
        assert files_of(tmp_path / "one") == files_of(tmp_path / "two")

    def test_saving_beside_the_working_directory(
        self, prompt: TransferableVisualPrompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        prompt.save_pretrained(".")
        prompt.save_pretrained("relative/")
        assert {path.name for path in tmp_path.iterdir()} == {"here"}
        assert {path.name for path in Path().iterdir()} == {*FILES, "relative"}

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "bfloat16", "auto"])
    def test_half_precision_asked_for_keeps_fp32(
        self, prompt: TransferableVisualPrompt, dtype: Any, tmp_path: Path
    ) -> None:
        prompt.save_pretrained(tmp_path)
        again = TransferableVisualPrompt.from_pretrained(tmp_path, dtype=dtype)
        assert again.delta.dtype == torch.float32
        assert torch.equal(again.delta, prompt.delta)

    def test_a_file_is_not_a_folder(self, prompt: TransferableVisualPrompt, tmp_path: Path) -> None:
        (tmp_path / "prompt").write_text("mine")
        with pytest.raises(NotADirectoryError, match=r"Cannot save to .*prompt: it is a file; give the path of a"):
            prompt.save_pretrained(tmp_path / "prompt")
        assert files_of(tmp_path) == {"prompt": b"mine"}

    def test_only_the_folder_itself_need_be_writable(
        self, prompt: TransferableVisualPrompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A mounted volume: nothing can be made beside it, and nothing can be renamed into it from there.
        volume = tmp_path / "volume"
        volume.mkdir()
        replace, mkdir = os.replace, os.mkdir

        def across(source: Any, target: Any, **kwargs: Any) -> None:
            if volume in Path(target).parents and volume not in Path(source).parents:
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            replace(source, target, **kwargs)

        def read_only(path: Any, *args: Any, **kwargs: Any) -> None:
            if Path(path).parent == tmp_path and Path(path) != volume:
                raise PermissionError(errno.EACCES, "Permission denied")
            mkdir(path, *args, **kwargs)

        monkeypatch.setattr(os, "replace", across)
        monkeypatch.setattr(os, "mkdir", read_only)
        prompt.save_pretrained(volume)
        assert {path.name for path in volume.iterdir()} == FILES

    def test_pushing_exists(self) -> None:
        parameters = inspect.signature(TransferableVisualPrompt.push_to_hub).parameters
        assert {"repo_id", "private", "commit_message"} <= set(parameters)


def no_space(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def no_space_as_safetensors_says_it(*args: Any, **kwargs: Any) -> None:
    # Not an OSError; the wording is of safetensors 0.8, seen with a file size limit.
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


class TestFullDisk:
    @pytest.fixture(params=["weights", "weights, by safetensors", "image", "config"])
    def fill_disk(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        """From the call of it on, one of the three files cannot be written."""
        owner, name, fail = {
            "weights": (transformers.modeling_utils, "safe_save_file", no_space),
            "weights, by safetensors": (
                transformers.modeling_utils, "safe_save_file", no_space_as_safetensors_says_it
            ),
            "image": (Image.Image, "save", no_space),
            "config": (TransferableVisualPromptConfig, "save_pretrained", no_space),
        }[request.param]  # fmt: skip
        return lambda: monkeypatch.setattr(owner, name, fail)

    def test_what_was_there_stays(self, tmp_path: Path, fill_disk: Callable[[], None]) -> None:
        folder = tmp_path / "prompt"
        tiny.noise_prompt(**SMALL).save_pretrained(folder)
        before = files_of(folder)
        assert set(before) == FILES
        fill_disk()
        with pytest.raises(
            OSError, match=r"The disk is full: .*prompt, and what was there before is untouched"
        ) as info:
            tiny.noise_prompt(seed=1, **SMALL).save_pretrained(folder)
        assert info.value.errno == errno.ENOSPC
        assert files_of(folder) == before
        assert [path.name for path in tmp_path.iterdir()] == ["prompt"]

    def test_nothing_half_written_is_left(self, tmp_path: Path, fill_disk: Callable[[], None]) -> None:
        fill_disk()
        with pytest.raises(OSError, match="The disk is full: the prompt could not be saved"):
            tiny.noise_prompt(**SMALL).save_pretrained(tmp_path / "prompt")
        assert list(tmp_path.iterdir()) == []

    def test_other_errors_are_left_as_they_are(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*args: Any, **kwargs: Any) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(Image.Image, "save", broken)
        with pytest.raises(OSError, match="Input/output error"):
            tiny.noise_prompt(**SMALL).save_pretrained(tmp_path / "prompt")


class TestLoadingWhatIsNotThere:
    def test_cut_short(self, prompt: TransferableVisualPrompt, tmp_path: Path) -> None:
        prompt.save_pretrained(tmp_path)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(OSError, match=r"The weights of .* are damaged or cut short .* `model.safetensors` again"):
            TransferableVisualPrompt.from_pretrained(tmp_path)

    def test_no_weights(self, prompt: TransferableVisualPrompt, tmp_path: Path) -> None:
        prompt.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            TransferableVisualPrompt.from_pretrained(tmp_path)

    def test_weights_of_something_else(self, prompt: TransferableVisualPrompt, tmp_path: Path) -> None:
        # transformers would go on with memory that nobody has written to.
        prompt.save_pretrained(tmp_path)
        save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(OSError, match="`delta`"):
            TransferableVisualPrompt.from_pretrained(tmp_path)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match=r"no prompt that can be read at .*nowhere, which must be a folder or"):
            TransferableVisualPrompt.from_pretrained(tmp_path / "nowhere")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match=r"no prompt that can be read at .*: no file named config\.json"):
            TransferableVisualPrompt.from_pretrained(tmp_path)


class TestPaperCheckpoint:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """As the authors save it: the gradient's values over the whole canvas, far outside of [0, 1]."""
        perturbation = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
        torch.save({"perturbation": perturbation}, tmp_path / "checkpoint_best.pth")
        return tmp_path / "checkpoint_best.pth"

    def test_values_are_kept(self, path: Path) -> None:
        prompt = TransferableVisualPrompt.from_paper_checkpoint(path, content_size=20)
        assert (prompt.config.canvas_size, prompt.config.border_size) == (32, 6)
        assert (prompt.config.content_size, prompt.config.value_range) == (20, "unbounded")
        assert torch.equal(prompt.delta, torch.load(path)["perturbation"] * prompt.border_mask)
        assert prompt.delta.requires_grad

    def test_displayable_clamps(self, path: Path) -> None:
        prompt = TransferableVisualPrompt.from_paper_checkpoint(str(path), "displayable", content_size=20)
        assert torch.equal(prompt.delta, torch.load(path)["perturbation"].clamp(0, 1) * prompt.border_mask)

    def test_content_is_as_large_as_was_said(self, path: Path) -> None:
        assert TransferableVisualPrompt.from_paper_checkpoint(path, content_size=19).config.content_size == 19

    def test_the_default_is_the_papers_geometry(self, tmp_path: Path) -> None:
        torch.save({"perturbation": torch.full((3, 224, 224), 3.0)}, tmp_path / "paper.pth")
        prompt = TransferableVisualPrompt.from_paper_checkpoint(tmp_path / "paper.pth")
        assert (prompt.config.content_size, prompt.config.border_size) == (164, 30)
        assert int((prompt.delta == 3).sum()) == 69_840

    def test_code_is_not_run(self, tmp_path: Path) -> None:
        class Malicious:
            def __reduce__(self) -> Any:
                return Path.touch, (tmp_path / "ran",)

        torch.save({"perturbation": Malicious()}, tmp_path / "zip.pth")
        (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(), protocol=2))
        for name in ("zip.pth", "plain.pth"):
            with pytest.raises(ValueError, match=rf"{name} is not a checkpoint that can be read without running code"):
                TransferableVisualPrompt.from_paper_checkpoint(tmp_path / name)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
    def test_no_checkpoint_at_all(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "file.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"file.pth is not a checkpoint that can be read without running code"):
            TransferableVisualPrompt.from_paper_checkpoint(tmp_path / "file.pth")

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            ({"state_dict": {}, "epoch": 3}, r"holds \['epoch', 'state_dict'\]"),
            ({"perturbation": [1.0]}, r"holds \['perturbation'\]"),
            ({"perturbation": torch.zeros(1, 32, 32)}, "a tensor \\(3, size, size\\)"),
            ({"perturbation": torch.zeros(3, 32, 31)}, "a tensor \\(3, size, size\\)"),
            ({"perturbation": torch.zeros(3)}, "a tensor \\(3, size, size\\)"),
            ({"perturbation": torch.tensor(1.0)}, "a tensor \\(3, size, size\\)"),
            (torch.zeros(3, 32, 32), "holds Tensor"),
            ([1, 2], "holds list"),
        ],
    )
    def test_wrong_content(self, content: Any, found: str, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "file.pth")
        with pytest.raises(ValueError, match=rf"file.pth is not the paper's checkpoint: .*{found}"):
            TransferableVisualPrompt.from_paper_checkpoint(tmp_path / "file.pth", content_size=20)

    def test_content_as_large_as_the_canvas(self, path: Path) -> None:
        with pytest.raises(ValueError, match="`border_size` is 0; it must be at least 1"):
            TransferableVisualPrompt.from_paper_checkpoint(path, content_size=32)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
            TransferableVisualPrompt.from_paper_checkpoint(tmp_path / "nowhere.pth")
