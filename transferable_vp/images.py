"""Every kind of picture that users hold, made into one kind of tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as TF

from .configuration import Fit


# What a resize or a change of precision may add to [0, 1].
TOLERANCE = 1e-4

ImageLike: TypeAlias = "Image.Image | np.ndarray | torch.Tensor"


def to_images(images: ImageLike | Sequence[Any], device: torch.device | str = "cpu") -> list[torch.Tensor]:
    """Makes one picture, a sequence or a batch into a list of float32 RGB tensors `(3, h, w)` in [0, 1].

    Raises:
        ValueError: For an empty sequence, an empty picture, a shape or dtype no picture has, or floats outside [0, 1].
        TypeError: For anything that is not a picture.
    """
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("No images were given: the sequence is empty.")
        return [_to_image(image, device) for image in images]
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        if len(images) == 0:
            raise ValueError("No images were given: the batch is empty.")
        return [_to_image(image, device) for image in images]
    return [_to_image(images, device)]


def _to_image(image: Any, device: torch.device | str) -> torch.Tensor:
    if isinstance(image, Image.Image):
        return _from_pil(image).to(device)
    if isinstance(image, np.ndarray):
        # numpy's convention is channels last, torch's channels first.
        array = image[..., None] if image.ndim == 2 else image
        if array.ndim != 3:
            raise ValueError(f"An image array has shape {image.shape}; expected (h, w) or (h, w, 1, 3 or 4).")
        # Copied, because torch warns about arrays that it may not write to, such as `np.asarray(pil_image)`.
        return _from_tensor(torch.from_numpy(array.copy()).permute(2, 0, 1), device)
    if isinstance(image, torch.Tensor):
        return _from_tensor(image[None] if image.ndim == 2 else image, device)
    raise TypeError(
        f"Got {type(image).__name__} where an image is needed: give a PIL image, a numpy array or a tensor."
    )


def _from_pil(image: Image.Image) -> torch.Tensor:
    if image.width == 0 or image.height == 0:
        raise ValueError(f"An image of {image.width} x {image.height} pixels has nothing to show.")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # `convert("RGB")` would clip these at 255 instead of scaling them.
        values = np.asarray(image, dtype=np.float32)
        if np.isnan(values).any():
            raise ValueError(f"An image of mode {image.mode} has values that are not a number; expected 0..255.")
        top = 255.0 if image.mode == "F" else 65535.0
        grey = torch.from_numpy(np.clip(values / top, 0, 1))
        return grey.expand(3, -1, -1).contiguous()
    array = np.asarray(image.convert("RGB"))
    return torch.from_numpy(array.copy()).permute(2, 0, 1).to(torch.float32).div(255)


def _from_tensor(image: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4) or image.numel() == 0:
        raise ValueError(
            f"An image has shape {tuple(image.shape)} with channels first; expected (1, 3 or 4, height, width)."
        )
    if image.dtype == torch.uint8:
        image = image.to(device, torch.float32).div(255)
    elif image.is_floating_point():
        low, high = image.detach().min().item(), image.detach().max().item()
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
            raise ValueError(
                f"A float image has values from {low:.4g} to {high:.4g}; expected [0, 1]. Divide by 255, or pass uint8."
            )
        image = image.to(device, torch.float32).clamp(0, 1)
    else:
        raise ValueError(f"An image has dtype {image.dtype}; expected uint8 in 0..255 or floats in [0, 1].")
    return image[:3] if image.shape[0] >= 3 else image.expand(3, -1, -1)


def fit_image(image: torch.Tensor, size: int, fit: Fit) -> torch.Tensor:
    """Resizes `(3, h, w)` in [0, 1] to `(3, size, size)`: bicubic, antialiased, one image at a time.

    One at a time because a batched resize of the same image may differ from it in the last bit, and training must see
    what deployment does.
    """
    if fit == "crop":
        # A strip of 1 x 5000 pixels would be resized to 164 x 820,000, only to be cut: most of it goes first.
        longest = 8 * min(image.shape[-2:])
        image = TF.center_crop(image, [min(side, longest) for side in image.shape[-2:]])
    height, width = image.shape[-2:]
    if fit == "stretch":
        new = (size, size)
    else:
        # Half a pixel rounds up: `torch.round` and Python's `round` would send it to the even neighbour.
        scale = size / (min(height, width) if fit == "crop" else max(height, width))
        new = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
    if new != (height, width):
        image = TF.resize(image, list(new), TF.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    if fit == "crop":
        return TF.center_crop(image, [size, size])
    if fit == "contain":
        left, top = (size - new[1]) // 2, (size - new[0]) // 2
        return TF.pad(image, [left, top, size - new[1] - left, size - new[0] - top])
    return image


def resample(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resizes `(channels, h, w)`: bilinear, antialiased, so that no value leaves the range of those it is made of."""
    return TF.resize(image, [height, width], TF.InterpolationMode.BILINEAR, antialias=True)


def quantize(canvas: torch.Tensor) -> torch.Tensor:
    """Rounds values in [0, 1] to 8 bits, clamping what no image can show: uint8 in 0..255, same shape."""
    return canvas.clamp(0, 1).mul(255).round().to(torch.uint8)


def to_pil(canvas: torch.Tensor) -> Image.Image:
    """A canvas `(3, S, S)` in [0, 1] as the 8-bit RGB image that a deployed model is given."""
    return Image.fromarray(quantize(canvas.detach()).permute(1, 2, 0).cpu().numpy())
