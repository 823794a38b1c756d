"""Images and texts for a VisualGLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import BatchFeature, BlipImageProcessor, ProcessorMixin
from transformers.processing_utils import ProcessingKwargs

from .tokenization import VisualGLMTokenizer


# English, as VisualGLM was asked in it; earlier answers stand between the questions.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}A: {% else -%}"
    "{%- if message.content is not string -%}{%- for part in message.content if part.type == 'image' -%}"
    "<img></img>{%- endfor -%}{%- endif -%}Q: {% endif -%}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}{%- endif -%}{{ '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}A:{%- endif -%}"
)


class VisualGLMProcessor(ProcessorMixin):
    r"""
    An image processor and a tokenizer as one.

    `<img></img>` in a text is where an image goes: it becomes `<img>`, a placeholder for every query of the Q-Former,
    and `</img>`. `<img>` and `</img>` are ordinary text, and what stands before and behind the placeholders is
    tokenized on its own, as published.

    Args:
        image_processor (`BlipImageProcessor`): 224 by 224 pixels, bicubic, normalised as for CLIP.
        tokenizer ([`VisualGLMTokenizer`]): The tokenizer.
        num_query_tokens (`int`, *optional*, defaults to 32): Placeholders of an image, as in the configuration.
        chat_template (`str`, *optional*): Jinja template. Defaults to `"<img></img>Q: {question}\nA:"`.
    """

    # What the text has of an image. Its placeholder, of which there are many, is the tokenizer's unknown token.
    image_token = "<img></img>"

    def __init__(
        self,
        image_processor: BlipImageProcessor,
        tokenizer: VisualGLMTokenizer,
        num_query_tokens: int = 32,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_query_tokens = num_query_tokens
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        r"""
        Args:
            images (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*): One for every
                `<img></img>`, of all texts in turn.
            text (`str` or `Sequence[str]`, *optional*): One text or several.
            kwargs: Arguments of the tokenizer and the image processor, `return_tensors` among them. `text_pair`, a
                list, has an answer for every text, which goes behind its context and is ended by `<eop>`.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask` if there is a text, `pixel_values` if there is an image.

        Raises:
            ValueError: If there is neither, or the texts do not have as many places for an image as there are images.
        """
        if images is None and text is None:
            raise ValueError("Got neither images nor text: give at least one of them.")
        options = self._merge_kwargs(ProcessingKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        return_tensors = options["text_kwargs"].pop("return_tensors", None)
        data: dict[str, Any] = {}
        count = 0
        if images is not None:
            data.update(self.image_processor(images, **options["images_kwargs"]))
            count = len(data["pixel_values"])
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            places = sum(t.count(self.image_token) for t in texts)
            if places != count:
                raise ValueError(
                    f"Got {count} images and {places} times `{self.image_token}` in the text: write it once for every "
                    "image."
                )
            filled = f"<img>{self.tokenizer.unk_token * self.num_query_tokens}</img>"
            data.update(self.tokenizer([t.replace(self.image_token, filled) for t in texts], **options["text_kwargs"]))
        return BatchFeature(data, tensor_type=return_tensors)

    @property
    def model_input_names(self) -> list[str]:
        """`list[str]`: What a call returns."""
        return ["input_ids", "attention_mask", "pixel_values"]


__all__ = ["VisualGLMProcessor"]
