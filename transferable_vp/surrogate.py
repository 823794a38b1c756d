"""A frozen vision-language model, seen as answer logits and image features with a gradient to the canvas."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from .answers import SurrogateOutput, append, with_decoder_inputs, without_end
from .checkpointing import checkpoint_layers, recomputing
from .families import FAMILIES, Family
from .features import FeatureRecorder, FeaturesSeen, feature_parts, features_in, flatten_features
from .images import to_pil
from .processing import attach
from .sharding import shard_layers


# Questions and answers whose texts and tokens are kept: datasets that are streamed have no end of them.
MOST_TEXTS = 2**16


def model_name(path: str) -> str:
    """What reports call a model of a folder or the Hub: the last part of its path."""
    return str(path).rstrip("/").rsplit("/", 1)[-1]


class Surrogate:
    r"""
    A frozen vision-language model to learn a prompt on, or to evaluate one on.

    Args:
        model (`PreTrainedModel`):
            Any model of `AutoModelForImageTextToText` that `transferable-vp support` lists, also in half precision,
            PEFT-wrapped, compiled or quantised. It is put in evaluation mode and its parameters are frozen, in place.
        processor (`ProcessorMixin`): The model's own processor. It is not changed.
        name (`str`, *optional*): Name in logs and reports. Defaults to the last part of the model's path.
        prompt_template (`str`, *optional*):
            Text given to the model, with `{question}` in it and the model's image placeholder where the image goes.
            Defaults to the processor's chat template or, where there is none, to placeholder and question.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`):
            Whether to recompute layers in the backward pass instead of keeping their activations.

    Attributes:
        pad_to_multiple_of (`int`):
            1, or a number of tokens of which the lengths of all texts are made multiples. The model then meets few shapes,
            for each of which `torch.compile` compiles it once; its head runs at up to so many more positions.

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
        if not hasattr(processor, "image_processor"):
            raise TypeError(
                f"Got {type(processor).__name__} as the processor of a {model.config.model_type} model: it has no image "
                "processor, and a visual prompt can only be put on images."
            )
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.config = model.config
        self.name = name or model_name(getattr(model.config, "_name_or_path", "")) or "model"
        self.family = FAMILIES.get(self.config.model_type, Family("nothing special"))
        self.prompt_template = prompt_template
        self._differentiable: ProcessorMixin | None = None
        self._texts: dict[str, str] = {}
        self._answers: dict[tuple[str, bool, str], list[int]] = {}
        # Not `peft_config`: a model with an adapter loaded by transformers itself has one too, and is its own base.
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        # What `torch.compile` gives says nothing of its arguments.
        self.base_model = getattr(base, "_orig_mod", base)
        self._parameters = inspect.signature(self.base_model.forward).parameters
        # BLIP-2 and InstructBLIP hand what they do not know on to their language model, which does.
        reader = self.base_model.language_model if self.family.passes_on else self.base_model
        self._keeps_logits = "logits_to_keep" in inspect.signature(reader.forward).parameters
        self._recorder = FeatureRecorder(model, self.family.features_module)
        self._recomputed: list[Any] = []
        self.is_sharded = False
        self.pad_to_multiple_of = 1
        if gradient_checkpointing:
            self.enable_gradient_checkpointing()

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes every layer in the backward pass instead of keeping its activations."""
        self._recomputed = checkpoint_layers(self.model)

    def shard(self, device: torch.device | str, backend: str = "fsdp2") -> Surrogate:
        """Splits the weights over all processes and puts them on `device`, this process's, in place; see
        [`shard_layers`]. From then on all processes must run the model equally often. Returns the surrogate."""
        if backend == "deepspeed" and self._recomputed:
            raise ValueError(
                f"The layers of {self.name} are recomputed in the backward pass, which has not been tried with DeepSpeed: "
                "shard with 'fsdp2', or load it without `gradient_checkpointing`."
            )
        shard_layers(self.model, device, backend)
        self.is_sharded = True
        return self

    @classmethod
    def from_pretrained(cls, path: str, *, name: str | None = None, prompt_template: str | None = None,
                        gradient_checkpointing: bool = False, **kwargs: Any) -> Surrogate:  # fmt: skip
        r"""
        Loads model and processor from a folder or the Hub. Further arguments (`dtype`, `device_map`, `revision`,
        `quantization_config`, ...) go to `AutoModelForImageTextToText.from_pretrained`.
        """
        if str(path).startswith(("/", ".", "~")) and not Path(path).exists():
            raise FileNotFoundError(f"There is no model at {path}: no such folder.")
        shared = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "trust_remote_code")
        hub = {key: kwargs[key] for key in shared if key in kwargs}
        model = AutoModelForImageTextToText.from_pretrained(path, **kwargs)
        processor = AutoProcessor.from_pretrained(path, **hub)
        return cls(model, processor, name or model_name(path), prompt_template, gradient_checkpointing)

    @property
    def device(self) -> torch.device:
        """`torch.device`: Where inputs go."""
        return self.model.device

    @property
    def tokenizer(self) -> Any:
        """`PreTrainedTokenizerBase`: The processor's."""
        return self.processor.tokenizer

    @property
    def vocabulary(self) -> int:
        """`int`: Number of logits per token."""
        return self.config.get_text_config(decoder=True).vocab_size

    @property
    def image_token_id(self) -> int | None:
        """`int` or `None`: Id of the placeholder that stands for one image feature in the text."""
        for name in ("image_token_id", "image_token_index"):
            if isinstance(getattr(self.config, name, None), int):
                return getattr(self.config, name)
        return None

    @property
    def differentiable_processor(self) -> ProcessorMixin:
        """`ProcessorMixin`: The processor that passes gradients. Raises `TypeError` where there can be none."""
        if self._differentiable is None:
            gradient = self.family.gradient_processor
            smooth = gradient.from_dict(self.processor.image_processor.to_dict()) if gradient else None
            self._differentiable = attach(None, self.processor, differentiable=True, smooth=smooth)
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

    @property
    def end_token_id(self) -> int | None:
        """`int` or `None`: Id of the token that ends an answer. BERT's tokenizers name none; there it is the separator."""
        eos = self.tokenizer.eos_token_id
        return self.tokenizer.sep_token_id if eos is None else eos

    @property
    def _text_in_decoder(self) -> bool:
        return self.is_encoder_decoder and "input_ids" not in self._parameters

    def forward(
        self,
        canvas: torch.Tensor | Sequence[torch.Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        unbounded: bool = False,
        with_features: bool = False,
    ) -> SurrogateOutput:
        r"""
        One forward pass with a gradient to `canvas`. Pixel values are those of the 8-bit image, to the bit.

        Args:
            canvas (`torch.Tensor`): float32 `(batch, 3, S, S)` in [0, 1], or a list of `(3, height, width)`, from a
                [`TransferableVisualPrompt`].
            questions (`Sequence[str]`): One per image.
            answers (`Sequence[str]`): One per image; the end token is added.
            unbounded (`bool`, *optional*, defaults to `False`): Whether to use float values that no image can carry.
            with_features (`bool`, *optional*, defaults to `False`): Whether to record the image features.
        """
        inputs = self.encode([to_pil(c) for c in canvas], questions, canvas, unbounded)
        inputs, start, labels = self.append_answers(inputs, questions, answers)
        with recomputing(self._recomputed if torch.is_grad_enabled() else ()):
            logits, features = self._answer_pass(inputs, start, labels.shape[1])
        if torch.is_grad_enabled() and canvas[0].requires_grad and not logits.requires_grad:
            raise RuntimeError(
                f"No gradient passes from the answers of {self.name} ({self.config.model_type}) to the image, so nothing "
                "can be learned on it: models that turn images into discrete tokens, as Chameleon and Emu3 do, are among "
                "these. Use it as a target, and learn on another model."
            )
        return SurrogateOutput(logits, labels, self._flat(features) if with_features else None)

    @torch.no_grad()
    def features(
        self, canvas: torch.Tensor | Sequence[torch.Tensor], questions: Sequence[str], unbounded: bool = False
    ) -> torch.Tensor:
        """Image features `(tokens of the whole batch, width)` without a graph; the language model is not run."""
        inputs = self.encode([to_pil(c) for c in canvas], questions, canvas, unbounded)
        output = None
        with self._recorder.recording(stop=True) as seen, suppress(FeaturesSeen):
            output = self.model(**inputs, use_cache=False)
        return self._flat(feature_parts(seen[0] if seen else features_in(output)))

    def _flat(self, features: list[torch.Tensor]) -> torch.Tensor:
        if not features:
            raise ValueError(
                f"{self.name} ({self.config.model_type}) gives its image features in no way that is known, so Feature "
                "Consistency Alignment has nothing to compare: set `fca_weight=0` for it."
            )
        return flatten_features(features)

    def encode(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        canvas: torch.Tensor | Sequence[torch.Tensor] | None = None,
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
        arguments = self.processor_arguments(images, questions)
        if canvas is None:
            batch = self.processor(**arguments)
        else:
            processor = self.differentiable_processor
            with processor.image_processor.replacing(list(canvas), unbounded):
                batch = processor(**arguments)
        rows = len(batch["input_ids"]) if "input_ids" in batch else len(questions)
        if rows != len(questions):
            raise ValueError(
                f"The processor of {self.name} ({type(self.processor).__name__}) made {rows} texts of "
                f"{len(questions)} questions, so no question can be put to the model through it."
            )
        inputs = {}
        for key, value in batch.items():
            if key == "labels":
                # PaliGemma's processor returns labels that mask everything when there is no suffix.
                continue
            if isinstance(value, torch.Tensor):
                value = value.to(self.device, self.model.dtype if value.is_floating_point() else None)
            inputs[key] = value
        if self.is_encoder_decoder:
            return with_decoder_inputs(self.model, inputs, rows, self._text_in_decoder)
        if self.family.begins_with_bos:
            inputs["input_ids"][torch.arange(rows), inputs["attention_mask"].argmax(1)] = (
                self.config.text_config.bos_token_id
            )
        return without_end(inputs, self.end_token_id) if self._closes_text else inputs

    @cached_property
    def _closes_text(self) -> bool:
        return self.tokenizer("a").input_ids[-1] == self.end_token_id

    def processor_arguments(self, images: Sequence[Any], questions: Sequence[str]) -> dict[str, Any]:
        """What the processor is called with, `processor(**arguments)`, for one image and one question in every row."""
        nested = list(images) if self.family.flat_images else [[image] for image in images]
        if not self.family.reads_text:
            return {"images": nested, "return_tensors": "pt"}
        texts = [self.text(question) for question in questions]
        arguments: dict[str, Any] = {"images": nested, "text": texts, "padding": True, "return_tensors": "pt",
                                     **(self.family.processor_kwargs or {})}  # fmt: skip
        if self.pad_to_multiple_of > 1:
            arguments["pad_to_multiple_of"] = self.pad_to_multiple_of
        bos = self.tokenizer.bos_token
        if bos is not None and texts[0].startswith(bos):
            # A chat template that writes the beginning token itself must not get a second one.
            arguments["add_special_tokens"] = False
        return arguments

    def text(self, question: str) -> str:
        """The text that the model is given with `question`, image placeholder included."""
        if question not in self._texts:
            if len(self._texts) >= MOST_TEXTS:
                self._texts.clear()
            if self.prompt_template is not None:
                text = self.prompt_template.replace("{question}", question)
            elif getattr(self.processor, "chat_template", None):
                content = [{"type": "image"}, {"type": "text", "text": question}]
                conversation = [{"role": "user", "content": content}]
                # Some templates open a thought otherwise, and the answer would be learned as a part of it.
                thinks = "enable_thinking" in str(self.processor.chat_template)
                text = self.processor.apply_chat_template(
                    conversation,
                    add_generation_prompt=True,
                    tokenize=False,
                    **({"enable_thinking": False} if thinks else {}),
                )
            elif self.family.places_image:
                text = question
            else:
                # Qianfan-OCR has both: the second is what the first becomes.
                names = ("image_placeholder_token", "image_token")
                token = next((t for name in names if (t := getattr(self.processor, name, None)) is not None), None)
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
        # No space goes before an answer that begins a line or a turn, or that a decoder of its own begins with.
        begins = (
            (self.is_encoder_decoder and not self._text_in_decoder)
            or self.family.text_ends_line
            or text[-1:].isspace()
            or text.endswith(tuple(self.tokenizer.all_special_tokens))
        )
        before = "" if begins or not text else text.splitlines()[-1]
        key = (before, begins, answer)
        if key not in self._answers:
            if len(self._answers) >= MOST_TEXTS:
                self._answers.clear()
            tokenizer = self.tokenizer
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
        tail = [self.end_token_id] if end and self.end_token_id is not None else []
        ids = [self.answer_ids(q, a) + tail for q, a in zip(questions, answers, strict=True)]
        return self.append_ids(inputs, ids)

    def append_ids(
        self, inputs: dict[str, Any], ids: Sequence[Sequence[int]]
    ) -> tuple[dict[str, Any], int, torch.Tensor]:
        """As [`~Surrogate.append_answers`], of token ids."""
        return append(
            inputs,
            ids,
            side="decoder_" if self.is_encoder_decoder else "",
            pad=self.tokenizer.pad_token_id or 0,
            token_type=self.family.answer_token_type,
            repeated=self.family.grows,
            multiple=self.pad_to_multiple_of,
        )

    def answer_logits(self, inputs: dict[str, Any], start: int, length: int) -> torch.Tensor:
        """Logits at positions `start` to `start + length - 1`; the language model's head is run at no other."""
        return self._answer_pass(inputs, start, length)[0]

    def last_logits(self, count: int) -> dict[str, int]:
        """The argument that makes a forward pass give the last `count` logits only; empty where a model has none."""
        return {"logits_to_keep": count} if self._keeps_logits else {}

    @property
    def text_model(self) -> Any:
        """`PreTrainedModel`: What goes on from a cache, or from an encoder's output, without an image."""
        return getattr(self.model, self.family.text_model) if self.family.text_model else self.model

    def _answer_pass(self, inputs: dict[str, Any], start: int, length: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The answer's logits, and the image features of the same pass."""
        total = inputs["decoder_input_ids" if self.is_encoder_decoder else "input_ids"].shape[1]
        with self._recorder.recording() as seen:
            output = self.model(**inputs, **self.last_logits(total - start), use_cache=False)
        features = feature_parts(seen[0] if seen else features_in(output))
        self._check_placeholders(inputs, features)
        logits = output.logits
        # Some models take `logits_to_keep` and ignore it (vlm_sweep, section 5), so the shape decides.
        if logits.shape[1] == total:
            logits = logits[:, start:]
        elif logits.shape[1] != total - start:
            raise ValueError(
                f"{self.name} ({self.config.model_type}) gave {logits.shape[1]} logits for a text of {total} tokens: it "
                "does not predict each next token of its text, so answers cannot be learned or scored on it."
            )
        return logits[:, :length], features

    def _check_placeholders(self, inputs: dict[str, Any], features: list[torch.Tensor]) -> None:
        if not features or self.family.features_module or self.image_token_id is None or "input_ids" not in inputs:
            return
        expected = int((inputs["input_ids"] == self.image_token_id).sum())
        found = sum(part.shape[:-1].numel() for part in features)
        if expected and expected != found:
            # In some models features would slide along the text without a word.
            raise ValueError(
                f"The text given to {self.name} has {expected} image placeholders and its images make {found} "
                "features: processor and model do not belong together, or a question contains the placeholder."
            )
