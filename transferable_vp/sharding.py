"""A frozen model's weights split over all processes, for models that do not fit one device."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer


BACKENDS = ("fsdp2", "deepspeed")


def shard_layers(model: nn.Module, device: torch.device | str, backend: str = "fsdp2") -> None:
    r"""
    Splits the weights of a model over all processes, in place. What is split is gathered while it runs.

    Args:
        model (`torch.nn.Module`): A frozen model of transformers, on the CPU or on `device`.
        device (`torch.device` or `str`): This process's.
        backend (`str`, *optional*, defaults to `"fsdp2"`):
            `"fsdp2"` splits the layers, with PyTorch's FSDP2. What is no layer (embeddings, projector, head) stays whole
            on every device: a forward pass is stopped in the middle for the clean image's features, and only modules that
            ran to their end have given their gathered weights back. `"deepspeed"` splits every weight, with ZeRO stage 3
            of DeepSpeed, which has to be installed.

    Raises:
        RuntimeError: If there is only one process.
        ValueError: If there is no such backend.
        ImportError: If DeepSpeed is asked for and not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"The backend is {backend!r}; it must be 'fsdp2' or 'deepspeed'.")
    if not dist.is_initialized() or dist.get_world_size() == 1:
        raise RuntimeError(
            "Got one process; splitting a model's layers needs several: start them with `accelerate launch --num_processes N`."
        )
    if backend == "deepspeed":
        _split_by_zero3(model)
    else:
        mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
        for layer in [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
            # Said, as every layer is a root of its own here, and roots keep their gathered weights by default.
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    model.to(device)


def _split_by_zero3(model: nn.Module) -> None:
    try:
        import deepspeed  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError(
            "Got the backend 'deepspeed' and no DeepSpeed: `pip install deepspeed`, or split with the backend 'fsdp2'."
        ) from error
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    config = {
        # Asked for by DeepSpeed, and used for nothing where there is no optimizer.
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "zero_optimization": {
            "stage": 3,
            # Every weight is split, and given back as soon as its module has run: which module comes next is not the
            # same in a pass that is stopped and in one that is not, so fetching ahead would fetch the wrong ones.
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_max_live_parameters": 0,
        },
    }
    # Weight by weight, before the engine would move the whole model to the device. It also puts a function of its own
    # in the place of `torch.nn.functional.linear`, for good: torch's would keep gathered weights for the backward pass.
    # That function keeps its input, which torch's does not where the weight is frozen.
    deepspeed.zero.Init(module=model, config_dict_or_path=config)
    # Without an optimizer the engine is hooks in the modules, forward and backward: it need not be kept or called.
    deepspeed.initialize(model=model, config=config)
