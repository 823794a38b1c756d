"""Every kind of picture that users hold becomes the same tensor, or an error that says what is wrong with it."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from transferable_vp.images import fit_image, quantize, to_images, to_pil


WIDTH, HEIGHT = 7, 5


@pytest.fixture
def rgb() -> np.ndarray:
    return np.asarray(tiny.picture(WIDTH, HEIGHT)).copy()


def only(images: Any) -> torch.Tensor:
    """The one tensor that `images` makes, with what holds for all of them checked."""
    (tensor,) = to_images(images)
    assert tensor.dtype == torch.float32
    assert tensor.shape[0] == 3
    assert tensor.min() >= 0 and tensor.max() <= 1
    return tensor


def expected(rgb: np.ndarray) -> torch.Tensor:
    """`(h, w, 3)` bytes as the tensor they should become."""
    return torch.from_numpy(rgb).permute(2, 0, 1).float() / 255


class TestPIL:
    def test_rgb(self, rgb: np.ndarray) -> None:
        assert torch.equal(only(Image.fromarray(rgb)), expected(rgb))

    def test_rgb_is_exact_for_every_byte(self) -> None:
        ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
        again = quantize(only(Image.fromarray(ramp)))
        assert torch.equal(again[0], torch.from_numpy(ramp))

    def test_alpha_is_dropped_not_blended(self, rgb: np.ndarray) -> None:
        alpha = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 1), dtype=np.uint8)
        assert torch.equal(only(Image.fromarray(np.concatenate([rgb, alpha], axis=2))), expected(rgb))

    def test_grey(self, rgb: np.ndarray) -> None:
        grey = np.repeat(rgb[..., :1], 3, axis=2)
        assert torch.equal(only(Image.fromarray(rgb[..., 0])), expected(grey))

    def test_grey_with_alpha(self, rgb: np.ndarray) -> None:
        grey = np.repeat(rgb[..., :1], 3, axis=2)
        image = Image.merge("LA", (Image.fromarray(rgb[..., 0]), Image.fromarray(rgb[..., 1])))
        assert torch.equal(only(image), expected(grey))

    @pytest.mark.parametrize("transparency", [None, 1, b"\xff\x00"])
    def test_palette(self, transparency: int | bytes | None) -> None:
        image = Image.new("P", (WIDTH, HEIGHT), 0)
        image.putpalette([10, 20, 30, 200, 100, 50])
        image.putpixel((2, 1), 1)
        if transparency is not None:
            image.info["transparency"] = transparency
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow would like such images as RGBA
            tensor = only(image)
        # A transparent entry of the palette still has its colour.
        assert (tensor[:, 1, 2] * 255).tolist() == [200, 100, 50]
        assert (tensor[:, 0, 0] * 255).tolist() == [10, 20, 30]

    def test_one_bit(self) -> None:
        image = Image.new("1", (WIDTH, HEIGHT), 0)
        image.putpixel((2, 1), 1)
        tensor = only(image)
        assert tensor.sum() == 3
        assert (tensor[:, 1, 2] == 1).all()

    def test_cmyk(self) -> None:
        tensor = only(Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0)))
        assert (tensor[0] == 1).all() and (tensor[1:] == 0).all()

    @pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
    def test_16_bit_is_scaled_not_clipped(self, mode: str) -> None:
        values = np.array([[0, 1000], [40_000, 65_535]], dtype=np.int32)
        image = Image.new(mode, (2, 2))
        for (row, column), value in np.ndenumerate(values):
            image.putpixel((column, row), int(value))
        tensor = only(image)
        assert torch.allclose(tensor[0], torch.from_numpy(values).float() / 65_535)
        assert torch.equal(tensor[0], tensor[2])

    def test_16_bit_png(self) -> None:
        values = np.array([[0, 1000], [40_000, 65_535]], dtype=np.uint16)
        file = io.BytesIO()
        Image.fromarray(values).save(file, "PNG")
        assert torch.allclose(only(Image.open(file))[1], torch.from_numpy(values.astype(np.float32)) / 65_535)

    def test_float_mode(self, rgb: np.ndarray) -> None:
        grey = np.repeat(rgb[..., :1], 3, axis=2)
        assert torch.allclose(only(Image.fromarray(rgb[..., 0]).convert("F")), expected(grey))

    def test_float_mode_beyond_white_is_clipped(self) -> None:
        tensor = only(Image.fromarray(np.array([[-3.0, 300.0]], dtype=np.float32)))
        assert tensor[0].tolist() == [[0, 1]]

    def test_nan_is_refused(self) -> None:
        with pytest.raises(ValueError, match="not a number"):
            to_images(Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32)))

    def test_exif_rotation_is_applied(self) -> None:
        image = Image.new("RGB", (WIDTH, HEIGHT))
        image.putpixel((0, 0), (255, 0, 0))
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees clockwise to show
        file = io.BytesIO()
        image.save(file, "PNG", exif=exif)
        tensor = only(Image.open(file))
        assert tensor.shape == (3, WIDTH, HEIGHT)
        # The top left corner has gone to the top right.
        assert tensor[:, 0, -1].tolist() == [1, 0, 0]
        assert tensor.sum() == 1

    def test_no_pixels(self) -> None:
        with pytest.raises(ValueError, match="An image of 0 x 5 pixels has nothing to show"):
            to_images(Image.new("RGB", (0, HEIGHT)))

    def test_the_image_is_left_as_it_was(self, rgb: np.ndarray) -> None:
        image = Image.fromarray(rgb)
        only(image).zero_()
        assert np.array_equal(np.asarray(image), rgb)


class TestArrays:
    def test_channels_last(self, rgb: np.ndarray) -> None:
        assert torch.equal(only(rgb), expected(rgb))

    def test_alpha(self, rgb: np.ndarray) -> None:
        assert torch.equal(only(np.concatenate([rgb, rgb[..., :1]], axis=2)), expected(rgb))

    @pytest.mark.parametrize("axes", [2, 3])
    def test_grey(self, rgb: np.ndarray, axes: int) -> None:
        grey = rgb[..., 0] if axes == 2 else rgb[..., :1]
        assert torch.equal(only(grey), expected(np.repeat(rgb[..., :1], 3, axis=2)))

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_floats(self, dtype: type, channels: int) -> None:
        array = np.random.default_rng(0).random((HEIGHT, WIDTH, channels)).astype(dtype)
        tensor = only(array)
        assert tensor.shape == (3, HEIGHT, WIDTH)
        assert np.array_equal(tensor[0].numpy(), array[..., 0].astype(np.float32))

    def test_mirrored_view(self, rgb: np.ndarray) -> None:
        assert torch.equal(only(rgb[:, ::-1]), expected(rgb).flip(2))

    def test_read_only_arrays_make_no_noise(self, rgb: np.ndarray) -> None:
        # What `np.asarray(pil_image)` gives.
        rgb.flags.writeable = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(only(rgb), expected(rgb.copy()))

    def test_batch(self, rgb: np.ndarray) -> None:
        batch = np.stack([rgb, 255 - rgb])
        first, second = to_images(batch)
        assert torch.equal(first, expected(rgb))
        assert torch.equal(second, expected(255 - rgb))

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((4, 4, 3), np.int64), r"dtype torch.int64; expected uint8 in 0..255 or floats in \[0, 1\]"),
            (np.zeros((4, 4, 3), bool), r"dtype torch.bool; expected uint8"),
            (np.full((4, 4, 3), 255.0), r"values from 255 to 255; expected \[0, 1\]. Divide by 255, or pass uint8"),
            (np.full((4, 4, 3), -0.5), r"values from -0.5 to -0.5; expected \[0, 1\]"),
            (np.full((4, 4, 3), np.nan), r"values from nan to nan; expected \[0, 1\]"),
            (np.full((4, 4, 3), np.inf), r"values from inf to inf; expected \[0, 1\]"),
            (np.zeros((4, 4, 2), np.uint8), r"shape \(2, 4, 4\) with channels first; expected"),
            (np.zeros((0, 4, 3), np.uint8), r"shape \(3, 0, 4\)"),
            (np.zeros((0, 0), np.uint8), r"shape \(1, 0, 0\)"),
            (np.zeros(4, np.uint8), r"array has shape \(4,\); expected \(h, w\) or \(h, w, 1, 3 or 4\)"),
            (np.zeros((0, 4, 4, 3), np.uint8), "No images were given: the batch is empty"),
        ],
    )
    def test_what_is_no_image(self, array: np.ndarray, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            to_images(array)

    def test_one_nan_is_enough(self) -> None:
        array = np.zeros((4, 4, 3))
        array[1, 2, 0] = np.nan
        with pytest.raises(ValueError, match="values from nan to nan"):
            to_images(array)


class TestTensors:
    def test_bytes(self, rgb: np.ndarray) -> None:
        assert torch.equal(only(torch.from_numpy(rgb).permute(2, 0, 1)), expected(rgb))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_floats(self, dtype: torch.dtype) -> None:
        image = torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert torch.equal(only(image), image.float())

    def test_grey_and_alpha(self, rgb: np.ndarray) -> None:
        image = expected(rgb)
        grey = image[:1].expand(3, -1, -1)
        assert torch.equal(only(image[0]), grey)
        assert torch.equal(only(image[:1]), grey)
        assert torch.equal(only(torch.cat([image, image[:1]])), image)

    def test_batch(self, rgb: np.ndarray) -> None:
        image = expected(rgb)
        first, second = to_images(torch.stack([image, 1 - image]))
        assert torch.equal(first, image)
        assert torch.equal(second, 1 - image)

    @pytest.mark.parametrize(
        ("tensor", "message"),
        [
            (torch.zeros(3, 4, 4, dtype=torch.int64), r"dtype torch.int64; expected uint8"),
            (torch.full((3, 4, 4), 255.0), r"expected \[0, 1\]. Divide by 255, or pass uint8"),
            (torch.full((3, 4, 4), torch.nan, dtype=torch.bfloat16), r"values from nan to nan"),
            # Channels last, as no tensor has them.
            (torch.zeros(5, 4, 3), r"shape \(5, 4, 3\) with channels first; expected \(1, 3 or 4, height, width\)"),
            (torch.zeros(3, 4, 0), r"shape \(3, 4, 0\)"),
            (torch.zeros(0, 3, 4, 4), "No images were given: the batch is empty"),
            (torch.zeros(1, 1, 3, 4, 4), r"shape \(1, 1, 3, 4, 4\)"),
        ],
    )
    def test_what_is_no_image(self, tensor: torch.Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            to_images(tensor)


class TestSequences:
    def test_all_kinds_in_one(self, rgb: np.ndarray) -> None:
        images = to_images((Image.fromarray(rgb), rgb, expected(rgb)))
        assert len(images) == 3
        assert all(torch.equal(image, expected(rgb)) for image in images)

    @pytest.mark.parametrize("nothing", [[], ()])
    def test_nothing(self, nothing: Any) -> None:
        with pytest.raises(ValueError, match="No images were given: the sequence is empty"):
            to_images(nothing)

    @pytest.mark.parametrize("thing", ["cat.png", None, 3, b"\x89PNG", [None], [[Image.new("RGB", (4, 4))]]])
    def test_what_is_no_picture(self, thing: Any) -> None:
        with pytest.raises(TypeError, match=r"Got \w+ where an image is needed: give a PIL image, a numpy array or"):
            to_images(thing)


class TestFit:
    """The picture is two halves, red and green, so that one sees where they went."""

    @staticmethod
    def halves(height: int, width: int) -> torch.Tensor:
        image = torch.zeros(3, height, width)
        if width >= height:
            image[0, :, : width // 2] = 1
            image[1, :, width // 2 :] = 1
        else:
            image[0, : height // 2] = 1
            image[1, height // 2 :] = 1
        return image

    def test_crop_cuts_the_longer_side_evenly(self) -> None:
        image = torch.zeros(3, 8, 16)
        image[0, :, 4:12] = 1
        # Same height, so no resampling: the middle half stays.
        assert torch.equal(fit_image(image, 8, "crop"), torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 8, 8))

    def test_crop_resizes_the_shorter_side(self) -> None:
        fitted = fit_image(self.halves(20, 40), 10, "crop")
        assert fitted.shape == (3, 10, 10)
        assert (fitted[0, :, :3] > 0.99).all() and (fitted[1, :, -3:] > 0.99).all()
        assert torch.allclose(fitted[2], torch.zeros(10, 10))

    def test_crop_is_resize_then_center_crop(self) -> None:
        # The paper's geometry, on sizes that divide so that all roundings agree.
        image = torch.rand(3, 30, 45, generator=torch.Generator().manual_seed(0))
        resized = TF.resize(image, [20, 30], TF.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        assert torch.equal(fit_image(image, 20, "crop"), resized[:, :, 5:25])

    def test_contain_adds_black_bars(self) -> None:
        fitted = fit_image(torch.ones(3, 20, 40), 10, "contain")
        assert fitted.shape == (3, 10, 10)
        # 5 rows of picture; of the odd bar out the larger half is below.
        assert torch.allclose(fitted[:, 2:7], torch.ones(3, 5, 10))
        assert (fitted[:, :2] == 0).all() and (fitted[:, 7:] == 0).all()

    def test_contain_shows_all_of_the_picture(self) -> None:
        fitted = fit_image(self.halves(40, 20), 12, "contain")
        assert (fitted[0, :5, 3:9] > 0.99).all() and (fitted[1, -5:, 3:9] > 0.99).all()
        assert (fitted[:, :, :3] == 0).all() and (fitted[:, :, 9:] == 0).all()

    def test_stretch_fills_with_all_of_the_picture(self) -> None:
        fitted = fit_image(self.halves(6, 40), 10, "stretch")
        assert fitted.shape == (3, 10, 10)
        assert (fitted[0, :, :3] > 0.99).all() and (fitted[1, :, -3:] > 0.99).all()

    @pytest.mark.parametrize("fit", ["crop", "contain", "stretch"])
    @pytest.mark.parametrize("shape", [(1, 500), (500, 1), (1, 1), (3, 4), (37, 53), (12, 12)])
    def test_any_shape_fills_the_square(self, fit: Any, shape: tuple[int, int]) -> None:
        fitted = fit_image(torch.ones(3, *shape), 12, fit)
        assert fitted.shape == (3, 12, 12)
        if fit == "contain" and shape in [(1, 500), (500, 1)]:
            # Far thinner than a pixel, but never nothing.
            assert fitted.sum() == 3 * 12
        else:
            assert torch.allclose(fitted[:, 6, 6], torch.ones(3))

    @pytest.mark.parametrize("shape", [(1, 5000), (5000, 1)])
    def test_a_strip_is_not_enlarged_to_be_cut(self, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        # At the paper's size it would be 164 x 820,000 pixels: 12 seconds and 4 GB.
        sizes: list[list[int]] = []
        resize = TF.resize
        monkeypatch.setattr(
            TF, "resize", lambda image, size, *a, **k: sizes.append(size) or resize(image, size, *a, **k)
        )
        assert torch.allclose(fit_image(torch.ones(3, *shape), 12, "crop"), torch.ones(3, 12, 12))
        assert max(map(max, sizes)) <= 20 * 12

    @pytest.mark.parametrize("fit", ["crop", "contain", "stretch"])
    def test_the_right_size_is_not_resampled(self, fit: Any) -> None:
        image = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0))
        assert torch.equal(fit_image(image, 12, fit), image)

    @pytest.mark.parametrize("fit", ["crop", "contain", "stretch"])
    def test_bicubic_overshoot_stays_displayable(self, fit: Any) -> None:
        # Black and white noise is what overshoots most.
        image = torch.rand(3, 5, 9, generator=torch.Generator().manual_seed(0)).round()
        raw = TF.resize(image, [16, 16], TF.InterpolationMode.BICUBIC, antialias=True)
        assert raw.min() < -0.05 and raw.max() > 1.05
        fitted = fit_image(image, 16, fit)
        assert fitted.min() == 0 and fitted.max() == 1

    def test_half_a_pixel_rounds_up(self) -> None:
        # 5 * 10 / 20 = 2.5 rows. Python's `round` gives 2.
        fitted = fit_image(torch.ones(3, 5, 20), 10, "contain")
        assert (fitted.sum((0, 2)) > 0).sum() == 3


def test_quantize_rounds_to_the_nearest_byte_and_clamps() -> None:
    values = torch.tensor([-1.0, 0.0, 0.49 / 255, 0.51 / 255, 128.4 / 255, 254.6 / 255, 1.0, 7.0])
    assert quantize(values).tolist() == [0, 0, 0, 1, 128, 255, 255, 255]
    assert quantize(values).dtype == torch.uint8


def test_to_pil_and_back_is_exact() -> None:
    image = tiny.picture(6, 6)
    canvas = only(image).requires_grad_()
    again = to_pil(canvas)
    assert (again.mode, again.size) == ("RGB", (6, 6))
    assert np.array_equal(np.asarray(again), np.asarray(image))


def test_rounding_beyond_the_range_is_clamped() -> None:
    (image,) = to_images(torch.full((3, 4, 4), 1 + 1e-6))
    assert image.max() == 1
    with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
        to_images(torch.full((3, 4, 4), 1.01))
