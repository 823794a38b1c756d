"""Input diversity: small random changes of the canvas that a transferable prompt has to survive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from .modeling import _StraightThroughClamp


@dataclass(frozen=True)
class InputDiversity:
    r"""
    Changes every canvas a little and differently, with a gradient back to it.

    A border that works only pixel by pixel for one model stops working when it is moved, resized or noisy; what is
    left to be learned is what other models see as well. The idea is from transferable adversarial examples ([Xie et
    al., CVPR 2019](https://arxiv.org/abs/1803.06978)). All strengths are 0 by default, which changes nothing. The order
    is brightness, scale, shift, noise.

    Args:
        shift (`int`, *optional*, defaults to 0):
            The largest shift, in pixels of the canvas. The whole canvas moves by a whole number of pixels between
            `-shift` and `shift`, drawn for rows and for columns; pixels at its edge are repeated.
        noise (`float`, *optional*, defaults to 0.0):
            The largest standard deviation of Gaussian noise, in units of the pixel range [0, 1]; drawn between 0 and
            this for each canvas.
        scale (`float`, *optional*, defaults to 0.0):
            The largest share, below 1, by which a canvas is shrunk or enlarged before it is resized back: at 0.25 by
            a factor between 0.75 and 1.25. The geometry stays, fine detail does not.
        brightness (`float`, *optional*, defaults to 0.0):
            The largest share, at most 1, by which all pixels are made darker or lighter: at 0.3 they are multiplied by
            a number between 0.7 and 1.3.

    Raises:
        ValueError: If a strength is outside its range.

    Example:

    ```python
    >>> import torch
    >>> from transferable_vp.diversity import InputDiversity

    >>> diversity = InputDiversity(shift=2, noise=0.1)
    >>> diversity(torch.rand(4, 3, 64, 64), seed=0).shape
    torch.Size([4, 3, 64, 64])
    ```
    """

    shift: int = 0
    noise: float = 0.0
    scale: float = 0.0
    brightness: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0:
                raise ValueError(f"`diversity_{field.name}` is {value}; it cannot be negative, 0 turns it off.")
        if self.shift != int(self.shift):
            raise ValueError(f"`diversity_shift` is {self.shift}; it must be a whole number of pixels.")
        if self.scale >= 1 or self.brightness > 1:
            raise ValueError(
                f"`diversity_scale` is {self.scale} and `diversity_brightness` is {self.brightness}; they are shares, the "
                "one below 1, the other at most 1."
            )

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    def __call__(
        self, canvas: torch.Tensor | Sequence[torch.Tensor], seed: int, unbounded: bool = False
    ) -> torch.Tensor | list[torch.Tensor]:
        r"""
        Changed canvases.

        Args:
            canvas (`torch.Tensor` or a sequence of them):
                float32 `(batch, 3, height, width)` in [0, 1], or one `(3, height, width)` for every image.
            seed (`int`): Of everything that is drawn. The same seed makes the same changes, whatever the canvas shows.
            unbounded (`bool`, *optional*, defaults to `False`): Whether values may leave [0, 1].

        Returns:
            What was given, changed. What leaves [0, 1] is clamped, and the gradient passes as if it had not been.
        """
        # On the CPU wherever the canvas is, so that every device draws the same.
        generator = torch.Generator().manual_seed(seed)
        changed = [self._change(picture, generator) for picture in canvas]
        if not unbounded:
            changed = [_StraightThroughClamp.apply(picture) for picture in changed]
        return torch.stack(changed) if isinstance(canvas, torch.Tensor) else changed

    def _change(self, picture: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        darker, smaller, noisier = torch.rand(3, generator=generator).tolist()
        if self.brightness:
            picture = picture * (1 + self.brightness * (2 * darker - 1))
        if self.scale:
            picture = _resampled(picture, 1 + self.scale * (2 * smaller - 1))
        if self.shift:
            reach = int(self.shift)
            top, left = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
            height, width = picture.shape[-2:]
            wide = F.pad(picture[None], (reach, reach, reach, reach), mode="replicate")[0]
            picture = wide[:, top : top + height, left : left + width]
        if self.noise:
            noise = torch.randn(picture.shape, generator=generator)
            picture = picture + (self.noise * noisier * noise).to(picture)
        return picture


def _resampled(picture: torch.Tensor, factor: float) -> torch.Tensor:
    """Resized by `factor` and back."""
    height, width = picture.shape[-2:]
    small = [max(1, round(side * factor)) for side in (height, width)]
    # The antialias filter is what takes detail away from the smaller picture, as a processor's own resize does.
    there = F.interpolate(picture[None], small, mode="bilinear", antialias=True)
    return F.interpolate(there, (height, width), mode="bilinear", antialias=True)[0]
