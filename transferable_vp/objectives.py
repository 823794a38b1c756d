"""What a prompt is trained for: named, weighted terms of the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoProcessor, PreTrainedModel

from .answers import SurrogateOutput, answer_loss
from .images import to_pil
from .processing import attach


@dataclass
class Step:
    r"""
    Everything an objective can look at in one training step.

    Attributes:
        canvas (`torch.Tensor`): float32 `(batch, 3, S, S)` in [0, 1], the prompted images, with a graph to `delta`;
            with `canvas="native"` a list of `(3, height, width)`.
        questions, answers, captions (`Sequence[str]`): One per image.
        outputs (`list[SurrogateOutput]`): One per surrogate, all of this canvas.
        clean_features (`list[torch.Tensor]`): One per surrogate, the image features of the same images in a black
            border, without a graph; empty unless an objective has `needs_features`.
        unbounded (`bool`): Whether the prompt's values are those of the paper, which no image can carry.
        compared (`Sequence[int]`): The images that `clean_features`, and the features of `outputs`, are of: all, or with
            `fca_fraction` below 1 those that were drawn for this step.
    """

    canvas: torch.Tensor | Sequence[torch.Tensor]
    questions: Sequence[str]
    answers: Sequence[str]
    captions: Sequence[str]
    outputs: list[SurrogateOutput]
    clean_features: list[torch.Tensor]
    unbounded: bool = False
    compared: Sequence[int] = ()


class Objective(NamedTuple):
    r"""
    A term of the loss.

    Args:
        name (`str`): Under which it is logged.
        function (`Callable[[Step], torch.Tensor]`):
            Gives a scalar to be made small. One with an attribute `needs_features = True` gets image features.
        weight (`float`, *optional*, defaults to 1.0): Its factor in the sum. At 0 the function is not called.

    Example:

    ```python
    >>> from transferable_vp import Objective

    >>> smooth = Objective("smooth", lambda step: step.canvas.diff(dim=-1).abs().mean(), weight=0.1)
    ```
    """

    name: str
    function: Callable[[Step], torch.Tensor]
    weight: float = 1.0


def task_loss(step: Step) -> torch.Tensor:
    """Cross-entropy of the right answers, a mean over answer tokens and over surrogates (TVP, eq. 1)."""
    return torch.stack([answer_loss(output).to(step.canvas[0].device) for output in step.outputs]).mean()


class FeatureConsistency:
    """FCA: mean L2 distance of image features, token by token, prompted against clean (TVP, section 3.3).

    The clean image has the same geometry and a black border. Not squared, as in the paper's released code.
    """

    needs_features = True

    def __call__(self, step: Step) -> torch.Tensor:
        distances = []
        for output, clean in zip(step.outputs, step.clean_features, strict=True):
            assert output.features is not None  # the trainer records them for every objective with `needs_features`
            if output.features.shape != clean.shape:
                raise ValueError(
                    f"A surrogate made {output.features.shape[0]} image tokens of the prompted images and "
                    f"{clean.shape[0]} of the clean ones; they cannot be compared."
                )
            distances.append((output.features - clean).norm(dim=-1).mean().to(step.canvas[0].device))
        return torch.stack(distances).mean()


# Whose text features are kept: datasets that are streamed have no end of captions.
MOST_CAPTIONS = 2**14


class TaskSemantics:
    r"""
    TSE: minus CLIP's similarity between the prompted image and its caption (TVP, section 3.3), scaled by CLIP's own
    temperature as in the paper's released code (a factor of 100 for the published models).

    Args:
        model (`PreTrainedModel`): A CLIP-like model with `get_image_features` and `get_text_features`. Frozen in place.
        processor (`ProcessorMixin`): Its processor.
    """

    needs_features = False

    def __init__(self, model: PreTrainedModel, processor: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self._image_processor = attach(None, getattr(processor, "image_processor", processor), differentiable=True)
        self._text_features: dict[str, torch.Tensor] = {}

    @classmethod
    def from_pretrained(cls, path: str, **kwargs: Any) -> TaskSemantics:
        """Loads model and processor from a folder or the Hub, as `"openai/clip-vit-base-patch32"`, the paper's."""
        return cls(AutoModel.from_pretrained(path, **kwargs), AutoProcessor.from_pretrained(path))

    def to(self, device: torch.device | str) -> TaskSemantics:
        """Moves CLIP, in place, and returns the objective."""
        self.model.to(device)
        self._text_features.clear()
        return self

    def __call__(self, step: Step) -> torch.Tensor:
        with self._image_processor.replacing(list(step.canvas), step.unbounded):
            batch = self._image_processor([to_pil(c) for c in step.canvas], return_tensors="pt")
        pixels = batch["pixel_values"].to(self.model.device, self.model.dtype)
        image = F.normalize(_pooled(self.model.get_image_features(pixel_values=pixels)).float(), dim=-1)
        text = F.normalize(self.text_features(step.captions), dim=-1)
        # The paper's code keeps the temperature within [1, 100].
        scale = self.model.logit_scale.float().clamp(0, 4.6052).exp()
        return -(scale * (image * text).sum(-1)).mean().to(step.canvas[0].device)

    @torch.no_grad()
    def text_features(self, captions: Sequence[str]) -> torch.Tensor:
        """float32 `(batch, width)`; every distinct caption is encoded once."""
        new = sorted(set(captions) - set(self._text_features))
        if new:
            # SigLIP reads its padding, and was trained on texts padded to the full length.
            padding = "max_length" if self.model.config.model_type.startswith("siglip") else True
            tokens = self.processor.tokenizer(new, padding=padding, truncation=True, return_tensors="pt")
            features = _pooled(self.model.get_text_features(**tokens.to(self.model.device))).float()
            self._text_features |= dict(zip(new, features, strict=True))
        found = torch.stack([self._text_features[caption] for caption in captions])
        if len(self._text_features) > MOST_CAPTIONS:
            self._text_features.clear()
        return found


def _pooled(output: Any) -> torch.Tensor:
    # A tensor in transformers 4, an output with `pooler_output` in 5.
    return output if isinstance(output, torch.Tensor) else output.pooler_output
