r"""
MiniGPT-4 and VPGTrans' VL-Vicuna: `Blip2ForConditionalGeneration` with a LLaMA, and a processor that puts the image into
the middle of the text, as their code does. `transferable-vp convert minigpt4` and `vpgtrans` make the folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import BaseImageProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.processing_utils import ProcessingKwargs


# What the published templates mark the image's place with.
IMAGE_HERE = "<ImageHere>"
WRAPPER = f"<Img>{IMAGE_HERE}</Img>"


class MiniGPT4Processor(ProcessorMixin):
    r"""
    Makes `<s>`, the pieces of `"<Img>"`, one placeholder for every image feature, the pieces of `"</Img>"`, and the text.
    Every fragment is tokenised by itself without special tokens, so each begins as a word does (`prompt_wrap` of
    MiniGPT-4). A text with `<ImageHere>` in it says itself what stands around the image:
    `"###Human: <Img><ImageHere></Img> What is it? ###Assistant:"`.

    Args:
        image_processor (`BaseImageProcessor`): BLIP's, at the size of the image encoder.
        tokenizer (`PreTrainedTokenizerBase`): LLaMA's. It needs a padding token other than the placeholder.
        num_query_tokens (`int`, *optional*, defaults to 32): Image features, and so placeholders, of an image.
        image_token (`str`, *optional*, defaults to `"<0x00>"`):
            The placeholder: the token of a byte that no text has, so that the vocabulary stays as it was.

    Raises:
        ValueError: If the tokenizer has no beginning or padding token, or pads with the placeholder.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        num_query_tokens: int = 32,
        image_token: str = "<0x00>",
        **kwargs: Any,
    ) -> None:
        self.num_query_tokens = num_query_tokens
        self.image_token = image_token
        self.image_token_id = check_tokens(tokenizer, image_token)
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        r"""
        Args:
            images (*optional*): One image for every text, as BLIP's image processor takes them.
            text (`str` or `Sequence[str]`, *optional*): Questions, or texts with `<ImageHere>` in them.
            kwargs: `return_tensors`, `padding` and what else `tokenizer.pad` takes; `add_special_tokens=False` leaves
                out the beginning token; arguments of the image processor.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask` for texts, `pixel_values` for images.

        Raises:
            ValueError: If a text has the placeholder in it, or has to be cut off.
        """
        if images is None and text is None:
            raise ValueError("There is nothing to process: give `images`, `text` or both.")
        arguments = self._merge_kwargs(
            # The floor, transformers 5.15.1, has no default for it.
            ProcessingKwargs,
            tokenizer_init_kwargs=self.tokenizer.init_kwargs,
            **kwargs,
        )
        options = arguments["text_kwargs"]
        return_tensors = options.pop("return_tensors", None)
        result: dict[str, Any] = {}
        if text is not None:
            begin = [self.tokenizer.bos_token_id] if options.pop("add_special_tokens", True) else []
            texts = [text] if isinstance(text, str) else list(text)
            rows = [[*begin, *self._ids(one, images is not None)] for one in texts]
            result |= pad(self.tokenizer, rows, options)
        if images is not None:
            result |= self.image_processor(images, **arguments["images_kwargs"])
        return BatchFeature(result, tensor_type=return_tensors)

    def _ids(self, text: str, with_image: bool) -> list[int]:
        if not with_image:
            if IMAGE_HERE in text:
                raise ValueError(f"The text {text!r} says where an image stands, and there is none: give `images`.")
            return pieces(self.tokenizer, text, self.image_token_id)
        parts = (text if IMAGE_HERE in text else WRAPPER + text).split(IMAGE_HERE)
        if len(parts) > 2:
            raise ValueError(f"The text {text!r} has {IMAGE_HERE} more than once: there is one image in every text.")
        before, after = parts
        # The question is a fragment of its own behind the wrapper.
        wrapper, closed, question = after.partition("</Img>")
        first, second, third = (pieces(self.tokenizer, part, self.image_token_id)
                                for part in (before, wrapper + closed, question))  # fmt: skip
        return [*first, *[self.image_token_id] * self.num_query_tokens, *second, *third]

    @property
    def model_input_names(self) -> list[str]:
        """`list[str]`: What a model is given."""
        return ["input_ids", "attention_mask", "pixel_values"]


def check_tokens(tokenizer: PreTrainedTokenizerBase, image_token: str) -> int:
    """The placeholder's id, if the tokenizer has all that a processor here needs."""
    image_token_id = tokenizer.get_vocab().get(image_token)
    if image_token_id is None:
        raise ValueError(f"The tokenizer has no token {image_token!r} to hold an image's place: give `image_token`.")
    if tokenizer.bos_token_id is None or tokenizer.pad_token_id in (None, image_token_id):
        raise ValueError(
            f"The tokenizer has {tokenizer.bos_token!r} as beginning and {tokenizer.pad_token!r} as padding token; there "
            f"must be both, and padding must not be the placeholder {image_token!r}: set `tokenizer.pad_token`."
        )
    return image_token_id


def pieces(tokenizer: PreTrainedTokenizerBase, text: str, image_token_id: int) -> list[int]:
    """Token ids of one fragment, by itself and without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids if text else []
    if image_token_id in ids:
        raise ValueError(f"The text {text!r} has the image placeholder in it: take it out, an image is put in for it.")
    return ids


def pad(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], options: dict[str, Any]) -> dict[str, Any]:
    """`rows` with their attention masks, padded if asked for."""
    if options.get("truncation"):
        raise ValueError("Texts are not cut off here, as the image may stand at either end: leave out `truncation`.")
    encoded = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
    if not options.get("padding"):
        return encoded
    names = ("padding", "max_length", "pad_to_multiple_of", "padding_side")
    return dict(tokenizer.pad(encoded, **{name: options[name] for name in names if options.get(name) is not None}))


__all__ = ["MiniGPT4Processor"]
