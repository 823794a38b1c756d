"""The image features of a forward pass, taken while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


# Where models that never call `get_image_features` leave their image features in the output. Not `image_hidden_states`,
# which transformers 5.24 gives up: what it says there is no longer what the text looks at.
OUTPUT_NAMES = ("image_embeds", "encoder_last_hidden_state")


class FeaturesSeen(Exception):
    """Ends a forward pass that was run for its image features only."""


class FeatureRecorder:
    r"""
    Records the image features of forward passes.

    Args:
        model (`torch.nn.Module`): The vision-language model.
        module (`str`, *optional*):
            Last part of the name of the module whose output the features are. By default they are what
            `get_image_features` returns: most models call it, on the module that owns the image encoder.
    """

    def __init__(self, model: nn.Module, module: str | None = None) -> None:
        self.seen: list[Any] = []
        self._stop = False
        self._hooked: list[nn.Module] = []
        # Made once: a compiled model would be compiled again for every new function.
        self._wrappers: list[tuple[nn.Module, Callable[..., Any]]] = []
        for name, part in model.named_modules():
            if module is not None:
                if name.rsplit(".", 1)[-1] == module:
                    self._hooked.append(part)
            elif hasattr(type(part), "get_image_features"):
                self._wrappers.append((part, self._recorded(part.get_image_features)))

    def _recorded(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_image_features(*args: Any, **kwargs: Any) -> Any:
            return self._keep(original(*args, **kwargs))

        return get_image_features

    def _keep(self, output: Any) -> Any:
        self.seen.append(output)
        if self._stop:
            raise FeaturesSeen
        return output

    @contextmanager
    def recording(self, stop: bool = False) -> Iterator[list[Any]]:
        """Yields a list that fills with what is seen. With `stop` the pass ends in [`FeaturesSeen`] at the first."""
        self.seen, self._stop = [], stop
        handles = [part.register_forward_hook(lambda _, args, output: self._keep(output)) for part in self._hooked]
        for part, wrapper in self._wrappers:
            part.__dict__["get_image_features"] = wrapper
        try:
            yield self.seen
        finally:
            self.seen = []
            for part, _ in self._wrappers:
                del part.__dict__["get_image_features"]
            for handle in handles:
                handle.remove()


def features_in(output: Any) -> Any:
    """The image features in a model's output, or `None`."""
    for name in OUTPUT_NAMES:
        # BLIP-2 and others carry the whole output of their language model.
        for part in (output, getattr(output, "language_model_outputs", None)):
            if getattr(part, name, None) is not None:
                return getattr(part, name)
    return None


def feature_parts(output: Any) -> list[torch.Tensor]:
    """The tensors `(..., tokens, width)` of image features, in whatever form a model gives them; empty if in none that
    is known."""
    features = output
    if not isinstance(output, (torch.Tensor, list, tuple)):
        names = ("pooler_output", "last_hidden_state")
        features = next((f for name in names if (f := getattr(output, name, None)) is not None), None)
        depths = getattr(output, "deepstack_features", None)
        if features is None and depths:
            # Granite Vision has features of several depths of the image encoder and no other: (layer of the language
            # model, one tensor an image) for each. They belong side by side, as every token gets all of them.
            return [torch.cat([torch.cat(list(images)) for _, images in depths], dim=-1)]
    if isinstance(features, torch.Tensor):
        return [features]
    return [part for some in features or () for part in feature_parts(some)]


def flatten_features(parts: list[torch.Tensor]) -> torch.Tensor:
    """Image features as float32 `(tokens of the whole batch, width)`."""
    return torch.cat([part.flatten(0, -2) for part in parts]).float()
