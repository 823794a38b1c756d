"""Layers recomputed in the backward pass instead of kept, in a frozen model that stays in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers of `model` that can be recomputed, made ready for [`recomputing`]."""
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for layer in layers:
        # The reentrant form gives no gradient where no parameter needs one, and none of a frozen model does.
        layer._gradient_checkpointing_func = partial(_checkpointed, layer)
    return layers


@contextmanager
def recomputing(layers: Sequence[GradientCheckpointingLayer]) -> Iterator[None]:
    """Within this context `layers` keep no activations, and compute them again in a backward pass, whenever that is.

    transformers does so in training mode only, in which a layer uses no cache and drops out: so the mode is on in this
    context, and off again while the layer itself runs.
    """
    for layer in layers:
        layer.gradient_checkpointing = layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = False


def _checkpointed(layer: GradientCheckpointingLayer, function: Callable[..., Any], *args: Any) -> Any:
    def run(*args: Any) -> Any:
        was, layer.training = layer.training, False
        try:
            return function(*args)
        finally:
            layer.training = was

    return checkpoint(run, *args, use_reentrant=False)
