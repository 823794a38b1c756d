"""A frozen model's layers split over all processes, for models that do not fit one device."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer


def shard_layers(model: nn.Module, device: torch.device | str) -> None:
    r"""
    Splits the weights of every layer over all processes, in place, with PyTorch's FSDP2.

    Each layer is gathered while it runs. What is no layer (embeddings, projector, head) stays whole on every device: a
    forward pass is stopped in the middle for the clean image's features, and only modules that ran to their end have
    given their gathered weights back.

    Args:
        model (`torch.nn.Module`): A model of transformers, on the CPU or on `device`.
        device (`torch.device` or `str`): This process's.

    Raises:
        RuntimeError: If there is only one process.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        raise RuntimeError(
            "Got one process; splitting a model's layers needs several: start them with `accelerate launch --num_processes N`."
        )
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    for layer in [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
        # Said, as every layer is a root of its own here, and roots keep their gathered weights by default.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    model.to(device)
