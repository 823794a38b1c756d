"""Layers recomputed in the backward pass instead of kept, in a frozen model that stays in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_layers(model: nn.Module) -> None:
    """Recomputes every layer of `model` in the backward pass. transformers does so in training mode only, which would
    switch dropout on."""
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            _checkpoint(layer)


def _checkpoint(layer: GradientCheckpointingLayer) -> None:
    def run(function: Callable[..., Any], *args: Any) -> Any:
        layer.training = False
        try:
            return function(*args)
        finally:
            layer.training = True

    layer.gradient_checkpointing = True
    layer.training = True
    # The reentrant form gives no gradient where no parameter needs one, and none of a frozen model does.
    layer._gradient_checkpointing_func = lambda function, *args: checkpoint(run, function, *args, use_reentrant=False)
