"""A frozen vision-language model, seen as answer logits and image features with a gradient to the canvas."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.modeling_layers import GradientCheckpointingLayer

from .images import to_pil
from .processing import attach


class Family(NamedTuple):
    """What one family of models does differently from all the others, and why."""

    reason: str
    places_image: bool = False
    answer_token_type: int = 0
    text_ends_line: bool = False


# The only place that knows families. A model that is not here is treated as most are.
FAMILIES = {
    "blip-2": Family("its processor writes the image placeholders before the text by itself", places_image=True),
    "instructblip": Family("its processor writes the image placeholders before the text by itself", places_image=True),
    "paligemma": Family(
        "tokens of type 0 see each other in both directions, so an answer of type 0 leaks into the question; its "
        "processor ends every text with a line break",
        answer_token_type=1,
        text_ends_line=True,
    ),
}

# Inputs with one entry per text token, which grow when an answer is appended.
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class SurrogateOutput(NamedTuple):
    """What one forward pass of a surrogate gives.

    Attributes:
        logits (`torch.Tensor`): `(batch, length, vocabulary)`; `logits[:, i]` predicts `labels[:, i]`.
        labels (`torch.Tensor`): int64 `(batch, length)`, token ids of the answers, -100 elsewhere.
        features (`torch.Tensor` or `None`): `(tokens of the whole batch, width)`, the image features of this same pass.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    features: torch.Tensor | None


class _FeaturesSeen(Exception):
    """Ends a forward pass that was run for its image features only."""


class Surrogate:
    r"""
    A frozen vision-language model to learn a prompt on, or to evaluate one on.

    Args:
        model (`PreTrainedModel`):
            Any model of `AutoModelForImageTextToText`, also in half precision or PEFT-wrapped. Quantised models and
            those sharded by `device_map` are not tested yet. It is put in evaluation mode and its parameters are
            frozen, in place.
        processor (`ProcessorMixin`): The model's own processor. It is not changed.
        name (`str`, *optional*): Name in logs and reports. Defaults to the last part of the model's path.
        prompt_template (`str`, *optional*):
            Text given to the model, with `{question}` in it and the model's image placeholder where the image goes.
            Defaults to the processor's chat template or, where there is none, to placeholder and question.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`):
            Whether to recompute layers in the backward pass instead of keeping their activations.

    Raises:
        ValueError: If `prompt_template` has no place for the question.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        name: str | None = None,
        prompt_template: str | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        if prompt_template is not None and "{question}" not in prompt_template:
            raise ValueError(f"`prompt_template` is {prompt_template!r}; it must contain '{{question}}'.")
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.config = model.config
        self.name = name or str(getattr(model.config, "_name_or_path", "")).rstrip("/").rsplit("/", 1)[-1] or "model"
        self.family = FAMILIES.get(self.config.model_type, Family("nothing special"))
        self.prompt_template = prompt_template
        self._differentiable: ProcessorMixin | None = None
        self._texts: dict[str, str] = {}
        self._answers: dict[tuple[str, bool, str], list[int]] = {}
        # Not `peft_config`: a model with an adapter loaded by transformers itself has one too, and is its own base.
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._keeps_logits = "logits_to_keep" in inspect.signature(base.forward).parameters
        if gradient_checkpointing:
            self.enable_gradient_checkpointing()

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes every layer in the backward pass instead of keeping its activations."""
        for layer in self.model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                _checkpoint(layer)

    @classmethod
    def from_pretrained(cls, path: str, *, name: str | None = None, prompt_template: str | None = None,
                        gradient_checkpointing: bool = False, **kwargs: Any) -> Surrogate:  # fmt: skip
        r"""
        Loads model and processor from a folder or the Hub. Further arguments (`dtype`, `device_map`, `revision`,
        `quantization_config`, ...) go to `AutoModelForImageTextToText.from_pretrained`.
        """
        shared = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "trust_remote_code")
        hub = {key: kwargs[key] for key in shared if key in kwargs}
        model = AutoModelForImageTextToText.from_pretrained(path, **kwargs)
        processor = AutoProcessor.from_pretrained(path, **hub)
        return cls(model, processor, name or str(path).rstrip("/").rsplit("/", 1)[-1], prompt_template,
                   gradient_checkpointing)  # fmt: skip

    @property
    def device(self) -> torch.device:
        """`torch.device`: Where inputs go."""
        return self.model.device

    @property
    def differentiable_processor(self) -> ProcessorMixin:
        """`ProcessorMixin`: The processor that passes gradients. Raises `TypeError` where there can be none."""
        if self._differentiable is None:
            self._differentiable = attach(None, self.processor, differentiable=True)
        return self._differentiable

    def to(self, device: torch.device | str) -> Surrogate:
        """Moves the model, in place, and returns the surrogate."""
        self.model.to(device)
        return self

    @property
    def is_encoder_decoder(self) -> bool:
        """`bool`: Whether answers are read by a decoder of their own, as in T5-based models."""
        text = getattr(self.config, "text_config", self.config)
        return bool(getattr(self.config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False))

    def forward(
        self,
        canvas: torch.Tensor,
        questions: Sequence[str],
        answers: Sequence[str],
        unbounded: bool = False,
        with_features: bool = False,
    ) -> SurrogateOutput:
        r"""
        One forward pass with a gradient to `canvas`. Pixel values are those of the 8-bit image, to the bit.

        Args:
            canvas (`torch.Tensor`): float32 `(batch, 3, S, S)` in [0, 1], from a [`TransferableVisualPrompt`].
            questions (`Sequence[str]`): One per image.
            answers (`Sequence[str]`): One per image; the end token is added.
            unbounded (`bool`, *optional*, defaults to `False`): Whether to use float values that no image can carry.
            with_features (`bool`, *optional*, defaults to `False`): Whether to record the image features.
        """
        inputs = self.encode([to_pil(c) for c in canvas], questions, canvas, unbounded)
        inputs, start, labels = self.append_answers(inputs, questions, answers)
        with self._recording(with_features) as seen:
            logits = self.answer_logits(inputs, start, labels.shape[1])
        if torch.is_grad_enabled() and canvas.requires_grad and not logits.requires_grad:
            raise RuntimeError(
                f"No gradient passes from the answers of {self.name} ({self.config.model_type}) to the image, so nothing "
                "can be learned on it: models that turn images into discrete tokens, as Chameleon and Emu3 do, are among "
                "these. Use it as a target, and learn on another model."
            )
        features = flatten_features(seen[0] if seen else None, self.name) if with_features else None
        return SurrogateOutput(logits, labels, features)

    @torch.no_grad()
    def features(self, canvas: torch.Tensor, questions: Sequence[str], unbounded: bool = False) -> torch.Tensor:
        """Image features `(tokens of the whole batch, width)` without a graph; the language model is not run."""
        inputs = self.encode([to_pil(c) for c in canvas], questions, canvas, unbounded)
        with self._recording(True, stop=True) as seen, suppress(_FeaturesSeen):
            self.model(**inputs, use_cache=False)
        return flatten_features(seen[0] if seen else None, self.name)

    def encode(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        canvas: torch.Tensor | None = None,
        unbounded: bool = False,
    ) -> dict[str, Any]:
        r"""
        The model's inputs for a batch of images and questions, made by its own processor.

        Args:
            images (`Sequence[PIL.Image.Image]`): One per question.
            questions (`Sequence[str]`): Questions without any model's template.
            canvas (`torch.Tensor`, *optional*): The float canvases that `images` were quantised from: if given, pixel
                values carry their gradient.
            unbounded (`bool`, *optional*, defaults to `False`): Whether the model is given the canvas's floats.
        """
        texts = [self.text(question) for question in questions]
        bos = self.processor.tokenizer.bos_token
        # A chat template that writes the beginning token itself must not get a second one.
        own_bos = bos is not None and texts[0].startswith(bos)
        kwargs = {"text": texts, "padding": True, "return_tensors": "pt"} | (
            {"add_special_tokens": False} if own_bos else {}
        )
        nested = [[image] for image in images]
        if canvas is None:
            batch = self.processor(images=nested, **kwargs)
        else:
            processor = self.differentiable_processor
            with processor.image_processor.replacing(list(canvas), unbounded):
                batch = processor(images=nested, **kwargs)
        inputs = {}
        for key, value in batch.items():
            if key == "labels":
                # PaliGemma's processor returns labels that mask everything when there is no suffix.
                continue
            if isinstance(value, torch.Tensor):
                value = value.to(self.device, self.model.dtype if value.is_floating_point() else None)
            inputs[key] = value
        return inputs

    def text(self, question: str) -> str:
        """The text that the model is given with `question`, image placeholder included."""
        if question not in self._texts:
            if self.prompt_template is not None:
                text = self.prompt_template.replace("{question}", question)
            elif getattr(self.processor, "chat_template", None):
                content = [{"type": "image"}, {"type": "text", "text": question}]
                conversation = [{"role": "user", "content": content}]
                text = self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
            elif self.family.places_image:
                text = question
            else:
                token = getattr(self.processor, "image_token", None)
                if token is None:
                    raise ValueError(
                        f"The processor of {self.name} has neither a chat template nor an `image_token`: give "
                        "`prompt_template`, for example 'USER: <image>\\n{question} ASSISTANT:'."
                    )
                text = f"{token}{question}"
            self._texts[question] = text
        return self._texts[question]

    def answer_ids(self, question: str, answer: str) -> list[int]:
        """Token ids of `answer` as it would follow the text of `question`, without an end token."""
        if not answer.strip():
            raise ValueError(
                f"The answer to {question!r} is {answer!r}: an answer needs at least one visible character."
            )
        text = self.text(question)
        # No space goes before an answer that begins a line, or what a decoder of its own reads.
        begins = self.is_encoder_decoder or self.family.text_ends_line or text[-1:].isspace()
        before = "" if begins or not text else text.splitlines()[-1]
        key = (before, begins, answer)
        if key not in self._answers:
            tokenizer = self.processor.tokenizer
            joined = before + ("" if begins else " ") + answer
            ids = tokenizer(joined, add_special_tokens=False).input_ids
            prefix = tokenizer(before, add_special_tokens=False).input_ids if before else []
            if ids[: len(prefix)] != prefix or len(ids) == len(prefix):
                # The tokenizer merges across the boundary: the answer on its own is the nearest thing.
                prefix, ids = [], tokenizer(answer, add_special_tokens=False).input_ids
            self._answers[key] = list(ids[len(prefix) :])
        if not self._answers[key]:
            raise ValueError(f"The tokenizer of {self.name} makes no token of the answer {answer!r}.")
        return self._answers[key]

    def append_answers(
        self, inputs: dict[str, Any], questions: Sequence[str], answers: Sequence[str], end: bool = True
    ) -> tuple[dict[str, Any], int, torch.Tensor]:
        """Appends an answer to every row of `inputs`.

        Returns:
            The longer inputs; the first position whose logits are needed; labels `(batch, length)` aligned with the
            logits from there on, -100 where there is no answer token.
        """
        eos = self.processor.tokenizer.eos_token_id
        tail = [eos] if end and eos is not None else []
        ids = [self.answer_ids(q, a) + tail for q, a in zip(questions, answers, strict=True)]
        if self.is_encoder_decoder:
            labels = _pad([torch.tensor(i) for i in ids], -100).to(self.device)
            return {**inputs, "labels": labels}, 0, labels
        rows = inputs["attention_mask"].bool()
        lengths = rows.sum(1).tolist()
        fill = {"attention_mask": 1, "token_type_ids": self.family.answer_token_type}
        result = dict(inputs)
        for key in (k for k in PER_TOKEN if k in inputs):
            grown = []
            for i, row in enumerate(rows):
                new = torch.tensor(ids[i], device=self.device) if key == "input_ids" else None
                if new is None:
                    new = torch.full((len(ids[i]),), fill.get(key, 0), device=self.device)
                grown.append(torch.cat([inputs[key][i][row], new.to(inputs[key].dtype)]))
            result[key] = _pad(grown, (self.processor.tokenizer.pad_token_id or 0) if key == "input_ids" else 0)
        start = min(lengths) - 1
        labels = torch.full((len(ids), result["input_ids"].shape[1] - start - 1), -100, device=self.device)
        for i, length in enumerate(lengths):
            labels[i, length - 1 - start : length - 1 - start + len(ids[i])] = torch.tensor(ids[i], device=self.device)
        return result, start, labels

    def answer_logits(self, inputs: dict[str, Any], start: int, length: int) -> torch.Tensor:
        """Logits at positions `start` to `start + length - 1`; the language model's head is run at no other."""
        if self.is_encoder_decoder:
            return self.model(**inputs, use_cache=False).logits
        total = inputs["input_ids"].shape[1]
        keep = {"logits_to_keep": total - start} if self._keeps_logits else {}
        logits = self.model(**inputs, **keep, use_cache=False).logits
        # Some models take `logits_to_keep` and ignore it (vlm_sweep, section 5), so the shape decides.
        if logits.shape[1] == total:
            logits = logits[:, start:]
        return logits[:, :length]

    @contextmanager
    def _recording(self, active: bool, stop: bool = False) -> Iterator[list[Any]]:
        """Records what `get_image_features` returns in the forward pass that runs inside."""
        seen: list[Any] = []
        wrapped: list[nn.Module] = []

        def record(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                output = original(*args, **kwargs)
                seen.append(output)
                if stop:
                    raise _FeaturesSeen
                return output

            return wrapper

        if active:
            for module in self.model.modules():
                if hasattr(type(module), "get_image_features"):
                    module.__dict__["get_image_features"] = record(module.get_image_features)
                    wrapped.append(module)
        try:
            yield seen
        finally:
            for module in wrapped:
                del module.__dict__["get_image_features"]


def flatten_features(output: Any, name: str) -> torch.Tensor:
    """Image features as float32 `(tokens, width)`, whatever a model's `get_image_features` gave."""
    features = getattr(output, "pooler_output", None)
    if features is None:
        features = getattr(output, "last_hidden_state", output if isinstance(output, torch.Tensor) else None)
    if features is None:
        raise ValueError(
            f"{name} ran without calling `get_image_features`, so Feature Consistency Alignment has nothing to compare: "
            "set `fca_weight=0` for it."
        )
    parts = features if isinstance(features, (list, tuple)) else [features]
    return torch.cat([part.flatten(0, -2) for part in parts]).float()


def answer_loss(output: SurrogateOutput) -> torch.Tensor:
    """Mean cross-entropy over all answer tokens of the batch, in float32 (TVP, eq. 1)."""
    return F.cross_entropy(output.logits.flatten(0, 1).float(), output.labels.flatten(), ignore_index=-100)


def _pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def _checkpoint(layer: GradientCheckpointingLayer) -> None:
    """Lets a layer of a model in evaluation mode be recomputed: transformers does so in training mode only, which
    would switch dropout on."""

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
