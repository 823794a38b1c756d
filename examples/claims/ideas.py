"""Ideas for transfer that the package does not have, tried on top of what it has; `--ideas` judges them.

From work on adversarial examples that transfer, where a picture is learned on one model to move others: JPEG before the
model ([Das et al., 2018](https://arxiv.org/abs/1802.06816)), noise in the model, sharpness-aware steps ([Foret et al.,
ICLR 2021](https://arxiv.org/abs/2010.01412)), features of several layers ([Huang et al., ICCV
2019](https://arxiv.org/abs/1907.10823)), and losses of several sources made equally large. None adds to the transfer
recipe (`docs/results_claims.md`), which is why they are here and not in the package.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import TrainerCallback

from transferable_vp import Objective, Step, Surrogate, TransferableVisualPrompt, TransferableVisualPromptTrainer
from transferable_vp.answers import answer_loss
from transferable_vp.images import to_pil


# Names among a condition's overrides that are no training arguments.
NAMES = ("jpeg", "model_noise", "sharpness", "layers_weight", "balanced", "stopped_by_proxy")
SNAPSHOT_STEPS = 10


class Jpeg:
    r"""
    Every canvas through a JPEG file of random quality; in place of [`InputDiversity`], and the gradient passes it by.

    Args:
        worst (`int`): The lowest quality, 1 to 95; drawn between this and 95 for each canvas.
    """

    def __init__(self, worst: int) -> None:
        self.worst = worst

    def __call__(self, canvas: torch.Tensor, seed: int, unbounded: bool = False) -> torch.Tensor:
        draw = np.random.default_rng(seed)
        read = [torch.from_numpy(compressed(picture, int(draw.integers(self.worst, 96)))) for picture in canvas]
        return canvas + (torch.stack(read).to(canvas) - canvas).detach()


def compressed(picture: torch.Tensor, quality: int) -> np.ndarray:
    """float32 `(3, height, width)` in [0, 1]: the picture as it comes back from a JPEG file."""
    return np.asarray(through_jpeg(to_pil(picture), quality), np.float32).transpose(2, 0, 1) / 255


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The picture as it comes back from a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def tower_layers(source: Surrogate) -> nn.ModuleList:
    """The layers of a source's image encoder: its longest list of modules."""
    lists = [module for name, module in source.model.named_modules()
             if isinstance(module, nn.ModuleList) and "vision" in name]  # fmt: skip
    return max(lists, key=len)


def hidden_states(output: Any) -> torch.Tensor:
    """Those among what a layer gives."""
    return output[0] if isinstance(output, tuple) else output


class LayerConsistency:
    r"""
    FCA in every layer of the image encoder: the distance of a token's states, prompted against clean, over the length
    of the clean ones; a mean over tokens, layers and sources.

    Args:
        sources (`Sequence[Surrogate]`): Whose layers are listened to, inside `listening()`.
    """

    needs_features = True

    def __init__(self, sources: Sequence[Surrogate]) -> None:
        self.seen: dict[nn.Module, list[torch.Tensor]] = {
            layer: [] for source in sources for layer in tower_layers(source)
        }

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keeps what the layers give; a step runs them on the clean canvas first, then on the prompted one."""
        handles = [
            layer.register_forward_hook(lambda module, _, output: self.seen[module].append(hidden_states(output)))
            for layer in self.seen
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __call__(self, step: Step) -> torch.Tensor:
        distances = []
        for states in self.seen.values():
            clean, prompted = states
            distances.append(((prompted - clean).norm(dim=-1) / clean.norm(dim=-1)).mean())
            states.clear()
        return torch.stack(distances).mean()


@contextmanager
def noisy(sources: Sequence[Surrogate], strength: float) -> Iterator[None]:
    """Adds Gaussian noise to what every layer of the image encoders gives, `strength` times as large as that varies."""

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        states = hidden_states(output)
        changed = states + strength * states.detach().std() * torch.randn_like(states)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handles = [layer.register_forward_hook(add) for source in sources for layer in tower_layers(source)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def balanced_loss(step: Step) -> torch.Tensor:
    """The task loss with every source's made as large as their mean, so that none outweighs the others."""
    losses = torch.stack([answer_loss(output) for output in step.outputs])
    return (losses * (losses.mean() / losses).detach()).mean()


class SharpnessAware(TransferableVisualPromptTrainer):
    """Steps by the gradient at the point `sharpness` uphill, an L2 distance of the prompt pixel by pixel, also where steps are
    taken in blocks: twice the work. One process, no accumulation."""

    sharpness: float

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One step of the Trainer, taken twice."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        uphill = model.delta.grad * model.trainable_mask
        uphill *= self.sharpness / (uphill.norm() + 1e-12)
        model.delta.grad = None
        with torch.no_grad():
            model.delta.add_(uphill)
        super().training_step(model, inputs, *args, **kwargs)
        with torch.no_grad():
            model.delta.sub_(uphill)
        return loss


class Snapshots(TrainerCallback):
    """Keeps the prompt of every `SNAPSHOT_STEPS`-th step."""

    def __init__(self, prompt: TransferableVisualPrompt) -> None:
        self.prompt, self.kept = prompt, dict[int, torch.Tensor]()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer."""
        if state.global_step % SNAPSHOT_STEPS == 0:
            self.kept[state.global_step] = self.prompt.delta.detach().clone()


def disturbed(image: Image.Image, seed: int) -> Image.Image:
    """A prompted picture as the proxy shows it: up to three pixels aside, and through a JPEG file of quality 50."""
    down, right = np.random.default_rng(seed).integers(-3, 4, 2)
    return through_jpeg(Image.fromarray(np.roll(np.asarray(image), (down, right), (0, 1))), quality=50)


class Ideas:
    r"""
    Takes the ideas out of a condition's overrides and puts them into its training.

    Args:
        overrides (`dict`): Training arguments, from which the names of `NAMES` are taken.
        sources (`Sequence[Surrogate]`): What is learned on.
    """

    def __init__(self, overrides: dict[str, Any], sources: Sequence[Surrogate]) -> None:
        self.taken = {name: overrides.pop(name) for name in NAMES if name in overrides}
        self.sources = sources
        self.objectives: list[Objective] = []
        self.layers = LayerConsistency(sources) if "layers_weight" in self.taken else None
        if self.layers is not None:
            self.objectives.append(Objective("layers", self.layers, self.taken["layers_weight"]))
        if self.taken.get("balanced"):
            overrides["task_weight"] = 0.0
            self.objectives.append(Objective("balanced", balanced_loss))

    @property
    def trainer_class(self) -> type[TransferableVisualPromptTrainer]:
        """What trains."""
        return SharpnessAware if "sharpness" in self.taken else TransferableVisualPromptTrainer

    @contextmanager
    def at_work(self, trainer: TransferableVisualPromptTrainer) -> Iterator[Snapshots | None]:
        """Inside, `trainer` trains with the ideas. Yields what keeps prompts on the way, if one of them is to be chosen."""
        if "jpeg" in self.taken:
            trainer.diversity = Jpeg(self.taken["jpeg"])  # type: ignore[assignment]
        if isinstance(trainer, SharpnessAware):
            trainer.sharpness = self.taken["sharpness"]
        snapshots = Snapshots(trainer.model) if self.taken.get("stopped_by_proxy") else None
        if snapshots is not None:
            trainer.add_callback(snapshots)
        with ExitStack() as hooks:
            if self.layers is not None:
                hooks.enter_context(self.layers.listening())
            if "model_noise" in self.taken:
                hooks.enter_context(noisy(self.sources, self.taken["model_noise"]))
            yield snapshots
