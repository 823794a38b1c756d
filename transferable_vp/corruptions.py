"""Common corruptions of images at five strengths, to measure how robust a prompt is.

In the style of CIFAR-10-C and ImageNet-C (Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019, arXiv 1903.12261), written anew: results are not comparable digit by digit with
those on the published files. The paper measures on CIFAR-10-C. Eleven of its fifteen corruptions are here; glass blur,
snow, frost (which needs photographs of frost) and elastic transform are not.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from .data import Example, Task
from .images import to_images, to_pil


# Sides of the two benchmarks: strengths are those of CIFAR-10-C at the one and of ImageNet-C at the other.
SMALL, LARGE = 32, 224


def _gaussian_noise(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    return x + strength * _enlarge(random.standard_normal(_grain(x)), x)


def _shot_noise(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """`strength` is the number of photons that white is made of."""
    rows, columns, _ = _grain(x)
    coarse = np.asarray(_to_pil(x).resize((columns, rows), Image.Resampling.BOX), dtype=np.float64) / 255
    return x + _enlarge(random.poisson(coarse * strength) / strength - coarse, x)


def _impulse_noise(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """`strength` is the share of values that become black or white."""
    draw = _enlarge(random.random(_grain(x)), x)
    return np.where(draw < strength, np.where(draw < strength / 2, 0.0, 1.0), x)


def _defocus_blur(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """`strength` is the radius of the disc that a point becomes, in pixels."""
    reach = int(np.ceil(strength))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    # The rim is weighted by how much of a pixel it covers, so that radii between whole numbers differ.
    return _convolve(x, np.clip(strength + 0.5 - np.hypot(rows, columns), 0, 1))


def _motion_blur(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """`strength` is the length of the line that a point becomes, in pixels; its direction is drawn."""
    angle, reach = random.uniform(-np.pi / 4, np.pi / 4), int(np.ceil(strength / 2))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along = columns * np.cos(angle) + rows * np.sin(angle)
    across = rows * np.cos(angle) - columns * np.sin(angle)
    kernel = np.clip(strength / 2 + 0.5 - abs(along), 0, 1) * np.clip(1 - abs(across), 0, 1)
    return _convolve(x, kernel)


def _zoom_blur(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """`strength` is how much closer the last frame of a zoom is than the first."""
    image = _to_pil(x)
    width, height = image.size
    # Enough frames for the rim to move by some two pixels from one to the next.
    frames = int(np.clip(np.ceil(strength * max(image.size) / 4), 6, 32))
    total = np.zeros_like(x)
    for zoom in 1 + strength * np.linspace(0, 1, frames):
        left, top = width * (1 - 1 / zoom) / 2, height * (1 - 1 / zoom) / 2
        frame = image.resize(image.size, Image.Resampling.BILINEAR, box=(left, top, width - left, height - top))
        total += np.asarray(frame, dtype=np.float64) / 255
    return total / frames


def _fog(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """`strength` is how much brighter than white the thickest fog is."""
    height, width, _ = x.shape
    haze = np.zeros((height, width))
    for octave in range(6):
        cells = Image.fromarray(random.random((2**octave + 1,) * 2).astype(np.float32))
        haze += 0.5**octave * np.asarray(cells.resize((width, height), Image.Resampling.BICUBIC))
    haze = (haze - haze.min()) / max(float(np.ptp(haze)), 1e-6)
    return (x + strength * haze[..., None]) * x.max() / (x.max() + strength)


def _brightness(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """`strength` is added to the brightest channel, and the others keep their share of it: hue and saturation stay."""
    value = x.max(axis=-1, keepdims=True)
    brighter = np.minimum(value + strength, 1)
    return np.where(value > 0, x * brighter / np.maximum(value, 1e-6), brighter)


def _contrast(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """`strength` is the share of the contrast that is left."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    return mean + strength * (x - mean)


def _pixelate(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """`strength` is the share of the height and width that is left."""
    image = _to_pil(x)
    small = (max(1, round(image.width * strength)), max(1, round(image.height * strength)))
    coarse = image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)
    return np.asarray(coarse, dtype=np.float64) / 255


def _jpeg_compression(x: np.ndarray, strength: float, random: np.random.Generator) -> np.ndarray:
    """`strength` is the quality as Pillow counts it."""
    file = io.BytesIO()
    _to_pil(x).save(file, "JPEG", quality=round(strength))
    return np.asarray(Image.open(file), dtype=np.float64) / 255


Corruption = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]

# What each does, and its five strengths at 32 and at 224 pixels: the published ones, but for motion (theirs is half a
# Gaussian), defocus at 32 (theirs are hardly wider than a pixel) and fog at 224 (two of theirs differ in texture alone).
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...], tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": (_defocus_blur, (0.6, 0.7, 0.9, 1.2, 1.6), (3, 4, 6, 8, 10)),
    "motion_blur": (_motion_blur, (2, 2.5, 3, 4, 5), (8, 13, 20, 28, 36)),
    "zoom_blur": (_zoom_blur, (0.06, 0.11, 0.16, 0.21, 0.26), (0.11, 0.16, 0.21, 0.26, 0.31)),
    "fog": (_fog, (0.2, 0.5, 0.75, 1.0, 1.5), (1.25, 1.6, 2.0, 2.5, 3.0)),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (_jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}
# Those whose strength is a length: beyond 224 pixels it grows with the image.
LENGTHS = ("defocus_blur", "motion_blur")
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(image: Image.Image, name: str, severity: int = 3, seed: int = 0) -> Image.Image:
    r"""
    A corrupted copy of an image, the same for the same arguments.

    Strengths lie between those of the two benchmarks by the logarithm of the shorter side, from 32 to 224 pixels.
    In larger images blurs and the grain of noise grow with the image, so that shrinking it does not undo them.

    Args:
        image (`PIL.Image.Image`): Any size and mode.
        name (`str`): One of `CORRUPTIONS`, as `"gaussian_noise"`.
        severity (`int`, *optional*, defaults to 3): 1 (weak) to 5 (strong).
        seed (`int`, *optional*, defaults to 0): Seed of what is drawn; every severity draws the same.

    Returns:
        `PIL.Image.Image`: RGB, upright, of the same size.

    Raises:
        ValueError: If there is no such corruption or severity.
    """
    _check(name, severity)
    function, small, large = CORRUPTIONS[name]
    x = to_images(image)[0].permute(1, 2, 0).numpy().astype(np.float64)
    side = min(x.shape[:2])
    share = float(np.clip(np.log(side / SMALL) / np.log(LARGE / SMALL), 0, 1))
    strength = small[severity - 1] ** (1 - share) * large[severity - 1] ** share
    if name in LENGTHS:
        strength *= max(1, side / LARGE)
    random = np.random.default_rng([zlib.crc32(name.encode()), seed])
    return _to_pil(function(x, strength, random))


@dataclass(frozen=True)
class CorruptedTask(Task):
    r"""
    A [`Task`] whose images are corrupted as they are read. Made by [`corrupted`].

    What is drawn depends on the seed and on the image itself, so that neither the order of the rows nor the number of
    processes matters.

    Args:
        corruption (`str`, *optional*, defaults to `"gaussian_noise"`): One of `CORRUPTIONS`.
        severity (`int`, *optional*, defaults to 3): 1 (weak) to 5 (strong).
        seed (`int`, *optional*, defaults to 0): Seed of what is drawn.
    """

    corruption: str = "gaussian_noise"
    severity: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.corruption, self.severity)

    def example(self, row: dict[str, Any], index: int | None = None) -> Example:
        """Reads one row, and corrupts its image."""
        example = super().example(row, index)
        # Not `hash`, which differs between processes.
        seed = zlib.crc32(example.image.tobytes(), self.seed & 0xFFFFFFFF)
        return replace(example, image=corrupt(example.image, self.corruption, self.severity, seed))


def corrupted(task: Task, name: str, severity: int = 3, seed: int = 0) -> CorruptedTask:
    r"""
    The same task on corrupted images: `evaluate(surrogate, rows, corrupted(task, "fog", 5), prompt)`.

    Args:
        task ([`Task`]): The task.
        name (`str`): One of `CORRUPTIONS`.
        severity (`int`, *optional*, defaults to 3): 1 (weak) to 5 (strong).
        seed (`int`, *optional*, defaults to 0): Seed of what is drawn.

    Raises:
        ValueError: If there is no such corruption or severity.
    """
    plain = {field.name: getattr(task, field.name) for field in fields(Task)}
    return CorruptedTask(**plain, corruption=name, severity=severity, seed=seed)


def _check(name: str, severity: int) -> None:
    if name not in CORRUPTIONS:
        raise ValueError(f"There is no corruption {name!r}: expected one of {', '.join(CORRUPTIONS)}.")
    if severity not in SEVERITIES:
        raise ValueError(f"Got the severity {severity!r}; expected 1 (weak) to 5 (strong).")


def _to_pil(x: np.ndarray) -> Image.Image:
    return to_pil(torch.from_numpy(x).permute(2, 0, 1))


def _grain(x: np.ndarray) -> tuple[int, int, int]:
    """The shape of noise: one draw per pixel up to 224 pixels, per block of pixels in larger images."""
    block = max(1.0, min(x.shape[:2]) / LARGE)
    return round(x.shape[0] / block), round(x.shape[1] / block), x.shape[2]


def _enlarge(noise: np.ndarray, x: np.ndarray) -> np.ndarray:
    rows = np.arange(x.shape[0]) * noise.shape[0] // x.shape[0]
    columns = np.arange(x.shape[1]) * noise.shape[1] // x.shape[1]
    return noise[rows][:, columns]


def _convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolves every channel with a kernel of odd size, mirroring the image at its rim."""
    reach = kernel.shape[0] // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    # By the Fourier transform: a kernel of 80 x 80 pixels would otherwise take seconds on a photograph.
    shape = padded.shape[:2]
    spectrum = np.fft.rfft2(kernel / kernel.sum(), shape)[..., None]
    blurred = np.fft.irfft2(np.fft.rfft2(padded, axes=(0, 1)) * spectrum, shape, axes=(0, 1))
    return blurred[2 * reach :, 2 * reach :]
