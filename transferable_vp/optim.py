"""How pixels are updated: the paper's own rule, and learning them in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F


class PaperSGD(torch.optim.Optimizer):
    r"""
    The update rule of the paper's released code (inherited from EVP): the gradient is divided by its L2 norm over the
    *whole* canvas, then masked to the learned pixels, then scaled by `lr`. No momentum, no weight decay.

    As the norm is taken before the mask, a step is as long as `lr` times the border's share of the gradient. The L2
    norm makes `lr` depend on the canvas: the paper's 10 belongs to 224 x 224 pixels.

    Args:
        params (`Iterable[torch.nn.Parameter]`): Canvas-sized parameters.
        lr (`float`, *optional*, defaults to 10.0): Length of a step if all of the gradient were on learned pixels.
        mask (`torch.Tensor`, *optional*): True (or 1) where pixels are learned; everywhere by default.
    """

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float = 10.0, mask: torch.Tensor | None = None
    ) -> None:
        if lr < 0:
            raise ValueError(f"`lr` is {lr}; it must not be negative.")
        super().__init__(params, {"lr": lr})
        self.mask = mask

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step along the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                step = parameter.grad / (parameter.grad.norm() + 1e-10)
                if self.mask is not None:
                    step = step * self.mask.to(step.device)
                parameter.sub_(step, alpha=group["lr"])
        return loss


def average_over_blocks(gradient: torch.Tensor, mask: torch.Tensor, block_size: int) -> torch.Tensor:
    r"""
    The gradient with every learned pixel given the mean over the learned pixels of its block.

    After it, any rule that treats pixels one by one leaves `delta` constant in each block: a prompt of low frequency.
    Blocks start at the upper left corner of the canvas; the last ones are cut where the canvas ends.

    Args:
        gradient (`torch.Tensor`): float `(3, height, width)`.
        mask (`torch.Tensor`): bool `(1, height, width)`, true where pixels are learned. Others keep their gradient.
        block_size (`int`): Side of a block in pixels of the canvas; 1 changes nothing.

    Returns:
        `torch.Tensor`: Of the shape of `gradient`.
    """
    height, width = gradient.shape[-2:]
    weights = mask.to(gradient)
    beyond = (0, -width % block_size, 0, -height % block_size)
    sums, counts = (F.avg_pool2d(F.pad(x, beyond), block_size) for x in (gradient * weights, weights))
    # Both are means over all pixels of a block, so that their ratio is the mean over the learned ones.
    means = sums / counts.clamp_min(1e-12)
    blocks = means.repeat_interleave(block_size, -2).repeat_interleave(block_size, -1)[:, :height, :width]
    return torch.where(mask, blocks, gradient)
