"""The attached image processor: the path that a deployed model sees, and the same path with a gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import BaseImageProcessor, BatchFeature, ProcessorMixin
from transformers.image_utils import load_image

from .images import to_pil


if TYPE_CHECKING:
    from .modeling import TransferableVisualPrompt


class _StraightThrough(torch.autograd.Function):
    """Gives the deployed value and the gradient of the float one.

    `f + (q - f).detach()` would do the same up to rounding; this is exact to the bit.
    """

    @staticmethod
    def forward(ctx: Any, deployed: torch.Tensor, smooth: torch.Tensor) -> torch.Tensor:
        return deployed.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, grad


class AttachedImageProcessor:
    r"""
    What [`~TransferableVisualPrompt.attach`] makes of an image processor: the same object with a prompt in front.

    It is mixed in before the processor's own class, under the same name, so that every route of transformers ends here
    (`processor(...)`, chat templates and pipelines all call `image_processor.preprocess`) and so that what is saved is
    the original: a folder that loads without this package.

    Attributes:
        visual_prompt ([`TransferableVisualPrompt`] or `None`):
            The prompt, or `None` where canvases are given from outside by [`~AttachedImageProcessor.replacing`].
        is_differentiable (`bool`): Whether pixel values carry a gradient.
        smooth_processor (`BaseImageProcessor` or `None`):
            An image processor that takes the same steps with a gradient, where this one passes none.
    """

    # On the class, not on the instance: `to_dict` serialises whatever stands in an instance's `__dict__`.
    visual_prompt: TransferableVisualPrompt | None
    is_differentiable: bool
    smooth_processor: BaseImageProcessor | None
    _canvases: list[torch.Tensor] | None = None
    _unbounded = False
    _used = 0

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """Prompts `images` (any nesting that the processor takes), then processes them as the original would."""
        original = super().preprocess  # type: ignore[misc]
        canvases, unbounded = self._canvases, self._unbounded
        if canvases is None:
            if self.visual_prompt is None:
                return original(images, *args, **kwargs)
            if kwargs.get("do_rescale") is False:
                raise ValueError(
                    "`do_rescale=False` says that pixel values are in [0, 1] already, but those of a prompted image are "
                    "0..255: leave it out."
                )
            canvases, images = self._compose(images)
            unbounded = self.visual_prompt.config.value_range == "unbounded"
        else:
            # Idefics' processor comes here once for every row.
            count = len(_leaves(images))
            canvases = canvases[self._used : self._used + count]
            self._used = (self._used + count) % len(self._canvases)  # type: ignore[arg-type]
        differentiable = self.smooth_processor.preprocess if self.smooth_processor else original
        if unbounded:
            # No 8-bit image can carry these values, so there is no deployed path to be equal to.
            return differentiable(_substitute(canvases, images), *args, **kwargs)
        deployed = original(images, *args, **kwargs)
        if not (self.is_differentiable and torch.is_grad_enabled() and any(c.requires_grad for c in canvases)):
            return deployed
        smooth = differentiable(_substitute(canvases, images), *args, **kwargs)
        if isinstance(smooth, torch.Tensor):
            # Idefics' image processor gives bare pixel values.
            return _graft("pixel_values", deployed, smooth)
        for key, value in smooth.items():
            # Another class may call its pixel values otherwise.
            own = key if key in deployed else next(iter(deployed))
            deployed[own] = _graft(own, deployed[own], value)
        return deployed

    def _compose(self, images: Any) -> tuple[list[torch.Tensor], Any]:
        canvases: list[torch.Tensor] = []

        def compose(image: Any) -> Any:
            canvases.append(self.visual_prompt(load_image(image) if isinstance(image, str) else image)[0])  # type: ignore[misc]
            return to_pil(canvases[-1])

        with torch.set_grad_enabled(self.is_differentiable and torch.is_grad_enabled()):
            images = map_images(compose, images)
        return canvases, images

    @contextmanager
    def replacing(self, canvases: list[torch.Tensor], unbounded: bool = False) -> Iterator[None]:
        """Within this context the images given to the processor stand for `canvases`, in order.

        Args:
            canvases (`list[torch.Tensor]`): float32 `(3, S, S)` in [0, 1], whose gradient the pixel values carry.
            unbounded (`bool`, *optional*, defaults to `False`): Whether to use the canvases' float values as they are.
        """
        self._canvases, self._unbounded, self._used = canvases, unbounded, 0
        try:
            yield
            if self._used:
                raise RuntimeError(
                    f"The processor was given fewer images than the {len(canvases)} canvases they stand for."
                )
        finally:
            del self._canvases, self._unbounded, self._used

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made at run time, so pickle (worker processes) and copy make it again from its parts.
        base = type(self).__mro__[2]
        plain: Any = object.__new__(base)
        plain.__dict__.update(self.__dict__)
        return _mix_in, (plain, self.visual_prompt, self.is_differentiable, self.smooth_processor)


def _mix_in(
    image_processor: BaseImageProcessor,
    prompt: TransferableVisualPrompt | None,
    differentiable: bool,
    smooth: BaseImageProcessor | None,
) -> BaseImageProcessor:
    base = type(image_processor)
    attributes = {
        "visual_prompt": prompt,
        "is_differentiable": differentiable,
        "smooth_processor": smooth,
        "__module__": base.__module__,
        "__doc__": base.__doc__,
    }
    attached = copy.copy(image_processor)
    attached.__class__ = type(base.__name__, (AttachedImageProcessor, base), attributes)
    return attached


def attach(
    prompt: TransferableVisualPrompt | None,
    processor: Any,
    differentiable: bool = False,
    smooth: BaseImageProcessor | None = None,
) -> Any:
    """The work of [`~TransferableVisualPrompt.attach`]; with `prompt=None` only the gradient path is added, if need be
    that of `smooth`, an image processor that takes the same steps."""
    image_processor = getattr(processor, "image_processor", processor)
    if not isinstance(image_processor, BaseImageProcessor):
        raise TypeError(
            f"Got {type(processor).__name__}, which has no image processor: a visual prompt attaches to a processor or "
            "an image processor, as loaded by `AutoProcessor` or `AutoImageProcessor`."
        )
    if isinstance(image_processor, AttachedImageProcessor):
        raise TypeError(
            f"This {type(processor).__name__} already has a visual prompt attached: attach to the original processor."
        )
    backend = getattr(smooth or image_processor, "backend", "PIL")
    needs_floats = differentiable or (prompt is not None and prompt.config.value_range == "unbounded")
    if needs_floats and backend != "torchvision":
        raise TypeError(
            f"{type(image_processor).__name__} has the {backend} backend, which passes no gradient and no float "
            "pixels: load the processor with the torchvision backend, or choose another model to train on. (A "
            "displayable prompt can still be applied to this model.)"
        )
    attached = _mix_in(image_processor, prompt, differentiable, smooth)
    if processor is image_processor:
        return attached
    if not isinstance(processor, ProcessorMixin):
        raise TypeError(f"Got {type(processor).__name__}; expected a transformers processor or image processor.")
    processor = copy.copy(processor)
    processor.image_processor = attached
    return processor


def map_images(function: Callable[[Any], Any], images: Any) -> Any:
    """Applies `function` to every image in a nesting of lists; a batch tensor or array counts as a list."""
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", 3) >= 4:
        return [map_images(function, image) for image in images]
    return function(images)


def _substitute(canvases: list[torch.Tensor], images: Any) -> Any:
    # Floats go in as 0..255 with the processor's own rescaling: a [0, 1] canvas with `do_rescale=False` is off by more
    # than 1 in chameleon, fuyu and others.
    floats = iter(canvases)

    def substitute(_: Any) -> torch.Tensor:
        canvas = next(floats, None)
        if canvas is None:
            raise RuntimeError(
                f"The processor looks at more images than the {len(canvases)} it was given, so it does not ask one question "
                "of each: no gradient can be passed through it."
            )
        return canvas * 255

    return map_images(substitute, images)


def _leaves(images: Any) -> list[Any]:
    found: list[Any] = []
    map_images(found.append, images)
    return found


def _graft(key: str, deployed: Any, smooth: Any) -> Any:
    if isinstance(smooth, (list, tuple)):
        return [_graft(key, d, s) for d, s in zip(deployed, smooth, strict=True)]
    if not isinstance(smooth, torch.Tensor) or not smooth.requires_grad:
        return deployed
    if deployed.shape != smooth.shape:
        raise RuntimeError(
            f"The processor gives `{key}` of shape {tuple(deployed.shape)} for 8-bit images and {tuple(smooth.shape)} "
            "for float ones: no gradient can be passed."
        )
    return _StraightThrough.apply(deployed.to(smooth.device), smooth)
