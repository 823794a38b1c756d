"""The paper's protocol as a mode: its settings, and models given what its released code gives them (docs/paper.md)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, ProcessorMixin

from .answers import SurrogateOutput, with_decoder_inputs
from .data import Task, load_data
from .surrogate import Surrogate
from .tasks import get_task
from .training_args import TransferableVisualPromptTrainingArguments


logger = logging.getLogger(__name__)

# Flags of examples/train.py, from the README line of the released code and its defaults (transfer_cls.py). Update rule,
# rate and weights are those of `training_args.RECIPES["paper"]`.
PAPER_RECIPE: dict[str, Any] = {
    "recipe": "paper",
    "canvas_size": 224,
    "border_size": 30,
    "layout": "border",
    "fit": "crop",
    "value_range": "unbounded",
    "clip_model": "openai/clip-vit-base-patch32",
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "seed": 42,
    # The released code computes in float16 without scaling the loss: see docs/paper.md.
    "dtype": "bfloat16",
}


class PaperForm(NamedTuple):
    r"""
    What the released code gives one model around an image, a question and an answer.

    Attributes:
        begins (`str`): Where the beginning token stands: `"text"` (before all), `"question"` (behind the image, in the
            loss only) or `"nowhere"`.
        before, after (`str`): Text before and behind the image, either tokenised by itself.
        end (`str`, *optional*): Text that closes an answer in the loss. Defaults to the tokenizer's end token.
        longest (`int`, *optional*): Tokens of a question in the loss, beginning or end token included.
        cut (`str`): Side on which a longer question is cut: `"left"` or `"right"`.
    """

    begins: Literal["text", "question", "nowhere"] = "nowhere"
    before: str = ""
    after: str = ""
    end: str | None = None
    longest: int | None = None
    cut: Literal["left", "right"] = "right"


# The six models of the paper, as util/*_utils.py of its released code treat them.
PAPER_FORMS = {
    "minigpt4": PaperForm(begins="text", before="<Img>", after="</Img>", end="\n"),
    "vpgtrans": PaperForm(begins="text", before="<Img>", after="</Img>", end="###"),
    "instructblip": PaperForm(begins="question", longest=128, cut="left"),
    "bliva": PaperForm(begins="question", longest=128, cut="left"),
    "blip2": PaperForm(longest=32),
    "visualglm": PaperForm(end=""),
}


def paper_form(model: PreTrainedModel) -> str | None:
    r"""
    Which of the paper's models this is.

    Returns:
        `str` or `None`: A key of `PAPER_FORMS`; `None` for any other model.

    Raises:
        ValueError: If it may be MiniGPT-4 or VPGTrans, whose architectures are the same.
    """
    config = model.config
    marked = getattr(config, "paper_model", None)
    if marked is not None and marked not in PAPER_FORMS:
        raise ValueError(
            f"`paper_model` is {marked!r} in the configuration; expected one of {', '.join(PAPER_FORMS)}."
        )
    if marked is not None or config.model_type in ("instructblip", "bliva", "visualglm"):
        return marked or config.model_type
    text = config.get_text_config().model_type
    if config.model_type != "blip-2" or text not in ("t5", "llama"):
        return None
    if text == "t5":
        return "blip2"
    raise ValueError(
        "A BLIP-2 with a LLaMA may be MiniGPT-4 or VPGTrans, which close an answer differently: put "
        '"paper_model": "minigpt4" (or "vpgtrans") into its config.json, as `transferable-vp convert` does, or give `form`.'
    )


def paper_surrogate(surrogate: Surrogate, form: str | None = None) -> Surrogate:
    r"""
    The same model, given what the paper's released code would give it.

    Args:
        surrogate ([`Surrogate`]): The model.
        form (`str`, *optional*): A key of `PAPER_FORMS`. Found if not given.

    Returns:
        [`PaperSurrogate`], or `surrogate` itself, with a warning, if it is none of the paper's six models.
    """
    form = form or paper_form(surrogate.base_model)
    if form is None:
        logger.warning(
            "%s (%s) is none of the paper's six models: it is given its own template.",
            surrogate.name, surrogate.config.model_type,
        )  # fmt: skip
        return surrogate
    return PaperSurrogate(surrogate.model, surrogate.processor, surrogate.name, form=form)


class PaperSurrogate(Surrogate):
    r"""
    One of the paper's models with the inputs of its released code, token by token: its text around the image, where the
    beginning token is and where not, what closes an answer, and for BLIVA the patch tokens that its loss has and its
    ranking lacks. Answers are tokenised by themselves.

    Args:
        model, processor, name, gradient_checkpointing: As in [`Surrogate`].
        prompt_template (`str`, *optional*): Must be left out: the text is the paper's.
        form (`str`, *optional*): A key of `PAPER_FORMS`. Found if not given.

    Raises:
        ValueError: If the model is none of the paper's, or a template is given.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        name: str | None = None,
        prompt_template: str | None = None,
        gradient_checkpointing: bool = False,
        form: str | None = None,
    ) -> None:
        if prompt_template is not None:
            raise ValueError("`prompt_template` is given, but the text around the image is the paper's: leave it out.")
        if form is not None and form not in PAPER_FORMS:
            raise ValueError(f"`form` is {form!r}; expected one of {', '.join(PAPER_FORMS)}.")
        found = form or paper_form(model)
        if found is None:
            raise ValueError(
                f"A {model.config.model_type} model is none of the paper's ({', '.join(PAPER_FORMS)}): use `Surrogate`."
            )
        self.form: str = found
        # ChatGLM's tokenizer puts its own tokens behind the text, so that here the processor makes all of it.
        template = "<img></img> {question}" if self.form == "visualglm" else None
        super().__init__(model, processor, name, template, gradient_checkpointing)
        self._pieces: dict[str, list[int]] = {}
        self._is_learning = False
        self._use_patch_tokens(False)

    def forward(self, *args: Any, **kwargs: Any) -> SurrogateOutput:
        """As [`Surrogate.forward`], with the inputs of the released loss."""
        with self._learning():
            return super().forward(*args, **kwargs)

    def features(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As [`Surrogate.features`], of the same tokens as in the loss."""
        with self._learning():
            return super().features(*args, **kwargs)

    def encode(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        canvas: torch.Tensor | Sequence[torch.Tensor] | None = None,
        unbounded: bool = False,
    ) -> dict[str, Any]:
        """As [`Surrogate.encode`], with the inputs of the released ranking; in [`~PaperSurrogate.forward`] and
        [`~PaperSurrogate.features`] those of its loss."""
        if self.form == "visualglm":
            return super().encode(images, questions, canvas, unbounded)
        pixels = self._pixels(images, canvas, unbounded)
        rows = [torch.tensor(self.question_ids(question), device=self.device) for question in questions]
        inputs: dict[str, Any] = {
            "pixel_values": pixels.to(self.device, self.model.dtype),
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id or 0),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        }
        if self.form in ("instructblip", "bliva"):
            read = self.processor.qformer_tokenizer(
                list(questions), padding=True, truncation=True, max_length=128, return_tensors="pt"
            ).to(self.device)
            inputs |= {"qformer_input_ids": read.input_ids, "qformer_attention_mask": read.attention_mask}
        if self.is_encoder_decoder:
            return with_decoder_inputs(self.model, inputs, len(rows), text_in_decoder=False)
        return inputs

    def question_ids(self, question: str) -> list[int]:
        """Token ids of image placeholders and question, with all that the released code puts around them."""
        form, text = PAPER_FORMS[self.form], self._ids(question)
        assert self.image_token_id is not None  # every BLIP-2 and InstructBLIP has one
        image = [self.image_token_id] * self._image_tokens
        if form.begins == "text":
            return [self.tokenizer.bos_token_id, *self._ids(form.before), *image, *self._ids(form.after), *text]
        if not self._is_learning:
            return image + text
        room = (form.longest or len(text) + 1) - 1
        # InstructBLIP's tokenizer has the end token for a beginning token too.
        end = self.tokenizer.eos_token_id
        if form.cut == "left":
            text = text[-room:]
        return [*image, end, *text] if form.begins == "question" else [*image, *text[:room], end]

    def answer_ids(self, question: str, answer: str) -> list[int]:
        """Token ids of `answer` by itself, without whatever closes it."""
        if not answer.strip():
            raise ValueError(
                f"The answer to {question!r} is {answer!r}: an answer needs at least one visible character."
            )
        return self._ids(answer)

    def append_answers(
        self, inputs: dict[str, Any], questions: Sequence[str], answers: Sequence[str], end: bool = True
    ) -> tuple[dict[str, Any], int, torch.Tensor]:
        """As [`Surrogate.append_answers`], closed as in the released loss."""
        ids, closing = [], PAPER_FORMS[self.form].end
        for question, answer in zip(questions, answers, strict=True):
            own = self.answer_ids(question, answer)
            if end and closing is None:
                own = [*own, self.tokenizer.eos_token_id]
            elif end:
                # Together, as there: a tokenizer may merge the last letter of an answer with what closes it.
                own = self._ids(f"{answer}{closing}")
            ids.append(own)
        return self.append_ids(inputs, ids)

    @property
    def _image_tokens(self) -> int:
        return self.config.num_image_tokens if self.form == "bliva" else self.config.num_query_tokens

    def _pixels(self, images: Sequence[Image.Image], canvas: Any, unbounded: bool) -> torch.Tensor:
        if canvas is None:
            return self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        image_processor = self.differentiable_processor.image_processor
        with image_processor.replacing(list(canvas), unbounded):
            return image_processor(list(images), return_tensors="pt")["pixel_values"]

    def _ids(self, text: str) -> list[int]:
        if text not in self._pieces:
            self._pieces[text] = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        return self._pieces[text]

    @contextmanager
    def _learning(self) -> Iterator[None]:
        """What runs inside is the loss, and no ranking."""
        self._is_learning = True
        self._use_patch_tokens(True)
        try:
            yield
        finally:
            self._is_learning = False
            self._use_patch_tokens(False)

    def _use_patch_tokens(self, use: bool) -> None:
        if self.form == "bliva":
            self.config.use_patch_tokens = use


def paper_arguments(output_dir: str, **overrides: Any) -> TransferableVisualPromptTrainingArguments:
    """The training arguments of `PAPER_RECIPE`; `overrides` are any of [`TransferableVisualPromptTrainingArguments`]. The
    learning rate, where none is given, is set by the trainer: 10 on the paper's canvas of 224 pixels."""
    known = {field.name for field in fields(TransferableVisualPromptTrainingArguments)}
    recipe = {name: value for name, value in PAPER_RECIPE.items() if name in known}
    return TransferableVisualPromptTrainingArguments(output_dir, **(recipe | overrides))


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings, as a YAML file or `PAPER_RECIPE` has them, as flags of `examples/train.py`; `None` and an empty list are as
    good as no line."""
    words: list[str] = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        if isinstance(value, list) and any(isinstance(v, bool) for v in values):
            raise ValueError(f"`{name}` is {value}: YAML reads yes and no as true and false. Put quotes around them.")
        if values:
            words += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
    return words


def load_rows(
    task: str | None,
    dataset: str | None,
    split: str,
    dataset_name: str | None = None,
    streaming: bool = False,
    revision: str | None = None,
    **given: Any,
) -> tuple[Any, Task]:
    r"""
    Loads rows of a task of the paper or of any dataset, and finds out how to read them.

    Args:
        task (`str`, *optional*): Name of a task, as in [`get_task`].
        dataset (`str`, *optional*): With a task a local copy of its data; without, as `path` in [`load_data`].
        split (`str`): As `"train"`, `"test"` or `"test[:500]"`.
        dataset_name (`str`, *optional*): Configuration of a Hub dataset, without a task.
        streaming (`bool`, *optional*, defaults to `False`): Whether to read rows as they are needed.
        revision (`str`, *optional*): Branch, tag or commit of a Hub dataset, without a task.
        given: Arguments of [`Task`]; `None`, and a `flip` that is not set, say nothing.

    Returns:
        The dataset, and its [`Task`].

    Raises:
        ValueError: If there is neither task nor dataset, or a configuration is given for a task.
    """
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    if task is None:
        if dataset is None:
            raise ValueError("There is nothing to learn from: give `dataset`, or a `task` of the paper.")
        rows = load_data(dataset, split, dataset_name, streaming, revision)
        return rows, Task.infer(rows, **given)
    for name, value in (("dataset_name", dataset_name), ("dataset_revision", revision)):
        if value is not None:
            raise ValueError(f"`{name}` is {value!r}, but the task {task} knows its own: leave it out.")
    paper = get_task(task)
    return paper.load(split, path=dataset, streaming=streaming), replace(paper.task, **given)
