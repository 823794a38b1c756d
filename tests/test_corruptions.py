"""Common corruptions: the same for the same arguments, stronger with severity, and lazily in a task."""

from __future__ import annotations

import dataclasses
import pickle
import zlib
from itertools import pairwise

import datasets
import numpy as np
import pytest
import tiny
from PIL import Image

from transferable_vp.bundled import bundled
from transferable_vp.corruptions import CORRUPTIONS, CorruptedTask, corrupt, corrupted
from transferable_vp.data import BadImageError, ExampleCollator, Task
from transferable_vp.evaluation import evaluate
from transferable_vp.surrogate import Surrogate


NOISES = ["gaussian_noise", "shot_noise", "impulse_noise"]


def scene(side: int = 64, seed: int = 0) -> Image.Image:
    """Something with plains, edges and detail at every scale, wider than high, between black and white."""
    generator = np.random.default_rng(seed)
    size = (4 * side // 3, side)
    layers = []
    for cells in (3, 6, 12, 24):
        blocks = Image.fromarray(generator.integers(0, 256, (cells, 4 * cells // 3, 3), dtype=np.uint8))
        layers.append(np.asarray(blocks.resize(size, Image.Resampling.BICUBIC), dtype=np.float64) / cells**0.5)
    total = sum(layers) - np.min(sum(layers))
    return Image.fromarray((255 * total / total.max()).astype(np.uint8))


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64) / 255


def change(image: Image.Image, name: str, severity: int, seed: int = 0) -> float:
    return float(abs(values(corrupt(image, name, severity, seed)) - values(image)).mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("side", [32, 100, 224, 448])
def test_stronger_with_every_severity(name: str, side: int) -> None:
    changes = [change(scene(side), name, severity) for severity in range(1, 6)]
    assert changes[0] > 0.002
    assert all(weaker < stronger for weaker, stronger in pairwise(changes))
    assert changes[-1] < 0.5


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_comes_back(name: str) -> None:
    image = scene(48)
    before = image.copy()
    first = corrupt(image, name, 4, seed=3)
    assert first.mode == "RGB"
    assert first.size == image.size
    assert image == before
    assert corrupt(image, name, 4, seed=3) == first
    drawn = name in (*NOISES, "motion_blur", "fog")
    assert (corrupt(image, name, 4, seed=4) != first) == drawn
    # Other corruptions with the same seed draw other numbers.
    assert len({corrupt(image, other, 4, seed=3).tobytes() for other in CORRUPTIONS}) == len(CORRUPTIONS)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_kind_of_image(name: str, mode: str) -> None:
    image = Image.new("I;16", (20, 16), 30000) if mode == "I;16" else scene(16).convert(mode)
    result = corrupt(image, name, 5)
    assert (result.mode, result.size) == ("RGB", image.size)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (300, 2)])
@pytest.mark.parametrize("severity", [1, 5])
def test_every_size(name: str, size: tuple[int, int], severity: int) -> None:
    assert corrupt(scene(32).resize(size), name, severity).size == size


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "zoom_blur", "contrast", "pixelate"])
def test_a_plain_image_stays_as_it_is(name: str) -> None:
    plain = Image.new("RGB", (50, 40), (10, 120, 250))
    assert abs(values(corrupt(plain, name, 5)) - values(plain)).max() <= 1 / 255


def test_the_photographs_orientation_is_kept(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(30).save(tmp_path / "a.jpg", exif=exif)
    assert corrupt(Image.open(tmp_path / "a.jpg"), "contrast").size == (30, 40)


class TestWhatIsDone:
    def test_gaussian_noise_has_its_deviation(self) -> None:
        grey = Image.new("RGB", (224, 224), (128, 128, 128))
        noise = values(corrupt(grey, "gaussian_noise", 1)) - values(grey)
        assert noise.std() == pytest.approx(0.08, rel=0.02)
        assert noise.mean() == pytest.approx(0, abs=0.002)
        small = Image.new("RGB", (32, 32), (128, 128, 128))
        assert values(corrupt(small, "gaussian_noise", 5)).std() == pytest.approx(0.10, rel=0.05)

    def test_shot_noise_grows_with_light(self) -> None:
        # The variance of a count of photons is its mean: x / 60 of white.
        for level in (64, 128):
            grey = Image.new("RGB", (224, 224), (level,) * 3)
            assert values(corrupt(grey, "shot_noise", 1)).std() == pytest.approx((level / 255 / 60) ** 0.5, rel=0.02)
        black = Image.new("RGB", (224, 224))
        assert corrupt(black, "shot_noise", 5) == black

    def test_impulse_noise_is_black_and_white(self) -> None:
        grey = Image.new("RGB", (224, 224), (128, 128, 128))
        noisy = np.asarray(corrupt(grey, "impulse_noise", 4))
        assert set(np.unique(noisy)) == {0, 128, 255}
        assert (noisy != 128).mean() == pytest.approx(0.17, rel=0.03)
        assert (noisy == 0).sum() == pytest.approx((noisy == 255).sum(), rel=0.05)

    def test_defocus_spreads_a_point_over_a_disc(self) -> None:
        point = Image.new("RGB", (224, 224))
        point.putpixel((100, 120), (255, 255, 255))
        blurred = values(corrupt(point, "defocus_blur", 1))[..., 0]
        lit = np.argwhere(blurred > 0)
        assert lit.mean(axis=0).tolist() == [120, 100]
        assert np.hypot(*(lit - [120, 100]).T).max() == pytest.approx(3, abs=0.5)
        assert blurred.sum() == pytest.approx(1, rel=0.05)

    def test_motion_spreads_a_point_over_a_line(self) -> None:
        point = Image.new("RGB", (224, 224))
        point.putpixel((100, 120), (255, 255, 255))
        directions = []
        for seed in range(5):
            lit = np.argwhere(values(corrupt(point, "motion_blur", 3, seed))[..., 0] > 0)
            assert lit.mean(axis=0) == pytest.approx([120, 100], abs=0.3)
            # Long one way, a pixel or two across; between 45 degrees up and down.
            variances, axes = np.linalg.eigh(np.cov((lit - [120, 100]).T))
            across, along = np.sqrt(variances)
            assert 5 < along < 7
            assert across < 1
            directions.append(np.arctan(axes[0, 1] / axes[1, 1]))
        assert abs(np.array(directions)).max() < np.pi / 4 + 0.05
        assert np.ptp(directions) > 0.3

    def test_zoom_leaves_the_middle_and_blurs_the_rim(self) -> None:
        image = scene(120)
        difference = abs(values(corrupt(image, "zoom_blur", 3)) - values(image)).mean(axis=-1)
        assert difference[50:70, 70:90].mean() < 0.3 * difference.mean()

    def test_fog_is_smooth_and_hides(self) -> None:
        # White fog of twice the light of the image leaves a third of what tells two images apart.
        one, other = scene(224), scene(224, seed=1)
        foggy = values(corrupt(one, "fog", 3)) - values(corrupt(other, "fog", 3))
        assert abs(foggy - (values(one) - values(other)) / 3).max() < 0.005
        haze = values(corrupt(Image.new("RGB", (224, 224), (255, 255, 255)), "fog", 3))[..., 0]
        assert abs(np.diff(haze, axis=0)).max() < 0.05
        assert np.ptp(haze) > 0.3
        # Wide and narrow fields differ from side to side as well as from top to bottom.
        assert haze.mean(axis=0).std() > 0.01
        assert haze.mean(axis=1).std() > 0.01

    def test_brightness_keeps_the_hue(self) -> None:
        image = Image.new("RGB", (32, 32), (100, 50, 0))
        assert corrupt(image, "brightness", 2).getpixel((0, 0)) == pytest.approx((125.5, 62.75, 0), abs=1)
        assert corrupt(Image.new("RGB", (32, 32)), "brightness", 5).getpixel((0, 0)) == pytest.approx(
            (76.5,) * 3, abs=1
        )
        assert corrupt(Image.new("RGB", (32, 32), (250, 125, 0)), "brightness", 5).getpixel((0, 0)) == pytest.approx(
            (255, 127.5, 0), abs=1
        )

    def test_contrast_keeps_the_mean(self) -> None:
        image = scene(224)
        flat = values(corrupt(image, "contrast", 1))
        assert flat.mean(axis=(0, 1)) == pytest.approx(values(image).mean(axis=(0, 1)), abs=0.003)
        assert flat.std(axis=(0, 1)) == pytest.approx(0.4 * values(image).std(axis=(0, 1)), rel=0.02)

    def test_pixelate_makes_blocks(self) -> None:
        blocks = np.asarray(corrupt(scene(224), "pixelate", 5))
        assert (blocks[0:4, 0:4] == blocks[0, 0]).all()
        assert np.unique(blocks.reshape(-1, 3), axis=0).shape[0] <= 56 * 75

    def test_jpeg_works_on_blocks_of_eight(self) -> None:
        # Quality 7 keeps little but the mean of a block.
        steps = abs(np.diff(values(corrupt(scene(224), "jpeg_compression", 5)), axis=1)).mean(axis=(0, 2))
        at_seams = steps[7::8].mean()
        assert at_seams > 1.5 * np.delete(steps, np.s_[7::8]).mean()


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "motion_blur"])
def test_a_large_image_is_no_better_off_once_it_is_shrunk(name: str) -> None:
    # A model sees every image at its own size: noise per pixel and blurs of fixed length would vanish in a photograph.
    small, large = scene(224), scene(672)
    shrunk = corrupt(large, name, 3).resize(small.size, Image.Resampling.BOX)
    clean = large.resize(small.size, Image.Resampling.BOX)
    seen = float(abs(values(shrunk) - values(clean)).mean())
    assert seen == pytest.approx(change(small, name, 3), rel=0.2)


def test_between_the_anchors_strengths_are_between() -> None:
    grey = {side: Image.new("RGB", (side, side), (128, 128, 128)) for side in (16, 32, 85, 224)}
    deviation = {side: values(corrupt(image, "gaussian_noise", 3)).std() for side, image in grey.items()}
    assert deviation[16] == pytest.approx(deviation[32], rel=0.1)
    # 85 is the geometric mean of 32 and 224, 0.12 that of 0.08 and 0.18.
    assert deviation[85] == pytest.approx(0.12, rel=0.03)


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [
        ("rain", 3, "no corruption 'rain': expected one of gaussian_noise, .*, jpeg_compression"),
        ("fog", 0, r"Got the severity 0; expected 1 \(weak\) to 5 \(strong\)"),
        ("fog", 6, "Got the severity 6"),
        ("fog", 2.5, "Got the severity 2.5"),
    ],
)
def test_unknown_names_and_severities(name: str, severity: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt(tiny.picture(), name, severity)
    with pytest.raises(ValueError, match=message):
        corrupted(Task(), name, severity)


class TestTask:
    TASK = Task(image_column="img", answer_column="label", candidates=("a", "b"), question="Which?", flip=True)

    def test_only_the_image_differs(self) -> None:
        task = corrupted(self.TASK, "contrast", 2, seed=7)
        assert isinstance(task, CorruptedTask)
        for field in dataclasses.fields(Task):
            assert getattr(task, field.name) == getattr(self.TASK, field.name)
        assert (task.corruption, task.severity, task.seed) == ("contrast", 2, 7)
        row = {"img": tiny.picture(), "label": 1}
        plain, changed = self.TASK.example(row), task.example(row, 3)
        assert (changed.question, changed.answer, changed.caption) == (plain.question, plain.answer, plain.caption)
        assert changed.image == corrupt(tiny.picture(), "contrast", 2)
        assert row["img"] == tiny.picture()

    def test_noise_is_that_of_seed_and_image(self) -> None:
        task, other = (corrupted(self.TASK, "gaussian_noise", seed=seed) for seed in (0, 1))
        grey, same, lighter = ({"img": Image.new("RGB", (32, 32), (v,) * 3), "label": 0} for v in (100, 100, 101))
        first = task.example(grey, 0).image
        # Neither the position nor the process matters, so that shards and slices show the same images.
        assert task.example(same, 5).image == first
        assert ExampleCollator(task)([lighter, same])["images"][1] == first
        assert pickle.loads(pickle.dumps(task)).example(grey).image == first
        assert other.example(grey).image != first
        noise, noise_of_lighter = (values(task.example(row).image) - values(row["img"]) for row in (grey, lighter))
        assert abs(np.corrcoef(noise.ravel(), noise_of_lighter.ravel())[0, 1]) < 0.1

    def test_another_process_draws_the_same(self) -> None:
        # Two digests of another process, which `hash` of a text would not give: it differs between processes.
        grey = Image.new("RGB", (32, 32), (128, 128, 128))
        drawn = corrupted(Task(), "impulse_noise", 4, seed=-3).example({"image": grey, "answer": "x"}).image
        assert zlib.crc32(drawn.tobytes()) == 1705098630
        assert zlib.crc32(corrupt(grey, "impulse_noise", 4, seed=3).tobytes()) == 1541557130

    def test_of_a_corrupted_task_replaces(self) -> None:
        assert corrupted(corrupted(self.TASK, "fog"), "contrast", 1) == corrupted(self.TASK, "contrast", 1)

    def test_bad_images_are_still_named(self) -> None:
        with pytest.raises(BadImageError, match="row 4"):
            corrupted(self.TASK, "fog").example({"img": b"broken", "label": 0}, 4)

    def test_evaluate_sees_corrupted_images(self) -> None:
        surrogate = Surrogate.from_pretrained(str(bundled("zoo/llava")))
        task = Task(question="What color is it?", candidates=("red", "blue"))
        rows = {
            "image": [Image.new("RGB", (64, 64), (250 - 80 * i, 0, 80 * i)) for i in range(4)],
            "answer": ["red"] * 4,
        }
        dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        harsh = corrupted(task, "contrast", 5)
        seen = [harsh.example(row).image for row in dataset]
        by_hand = [{"image": image, "answer": "red"} for image in seen]
        prompt = tiny.noise_prompt(canvas_size=64, border_size=8)
        for rows_ in (dataset, dataset.to_iterable_dataset()):
            result = evaluate(surrogate, rows_, harsh, prompt, batch_size=4, progress=False)
            assert result.answers == evaluate(surrogate, by_hand, task, prompt, batch_size=4, progress=False).answers
