"""Devices that a machine does not have: tensors that say they lie elsewhere, and refuse to meet those of another place.

Values are computed on the CPU. What is shown is that every tensor is sent where it is needed, forward and backward, as
torch's own check for tensors on two devices has it. No kernel, stream or copy of a real device is.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten


# Autograd runs the backward pass of meta tensors in the calling thread and looks for no device.
FIRST, SECOND = torch.device("meta:0"), torch.device("meta:1")
MOVES = ("_to_copy", "copy_")


class Elsewhere(torch.Tensor):
    """A tensor of the CPU that says it lies on `FIRST` or `SECOND`."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device) -> Elsewhere:
        self = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=device
        )  # fmt: skip
        self.held = held
        return self

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held!r}, {self.device})"

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{function} was called outside of `Pretending`.")


class _Moved(TorchFunctionMode):
    """Makes `torch.tensor` on the CPU first: on a meta device it makes a tensor behind the back of other modes."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None) if function is torch.tensor else None
        return function(*args, **kwargs) if device is None else function(*args, **kwargs).to(device)


class Pretending(TorchDispatchMode):
    """Within this mode the two devices are there. `computed` counts the operations on each."""

    def __init__(self) -> None:
        super().__init__()
        self.computed: Counter[torch.device] = Counter()
        self.moved = _Moved()

    def __enter__(self) -> Pretending:
        self.moved.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.moved.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves, structure = tree_flatten((args, kwargs or {}))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        name = function.overloadpacket.__name__
        # A single number of the CPU may meet any device, as it may a GPU.
        places = {t.device for t in tensors if t.ndim or t.device.type != "cpu"}
        if len(places) > 1 and name not in MOVES:
            raise RuntimeError(f"Expected all tensors of {name} on one device; got {sorted(map(str, places))}.")
        given = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
        place = given or (tensors[0].device if name == "copy_" else next(iter(places), torch.device("cpu")))
        plain = [leaf.held if isinstance(leaf, Elsewhere) else leaf for leaf in leaves]
        plain = [torch.device("cpu") if isinstance(leaf, torch.device) else leaf for leaf in plain]
        args, kwargs = tree_unflatten(plain, structure)
        result = function(*args, **kwargs)
        if place.type == "cpu":
            return result
        self.computed[place] += 1
        if name.endswith("_") and not name.endswith("__"):
            return leaves[0]  # in place: the same tensor, not another around it
        return tree_map_only(torch.Tensor, lambda t: Elsewhere(t, place), result)


def pretend(model: nn.Module, device: torch.device) -> nn.Module:
    """Puts every weight of `model` on `device`, in place."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(Elsewhere(parameter.detach(), device), requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = Elsewhere(buffer.detach(), device)
    assert all(t.device == device for t in itertools.chain(model.parameters(), model.buffers()))
    return model
