"""What families of vision-language models do differently from all the others: the only place that knows them."""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers import BaseImageProcessor, CLIPImageProcessor


class Family(NamedTuple):
    r"""
    What one family of models does differently from all the others, and why.

    Attributes:
        reason (`str`): Why the row is there.
        places_image (`bool`): Whether the text needs no image placeholder, as the processor writes any by itself.
        answer_token_type (`int`): Token type of an answer.
        text_ends_line (`bool`): Whether the processor ends every text with a line break.
        text_model (`str`, *optional*): Part that goes on without an image, where the whole model cannot.
        passes_on (`bool`): Whether its forward hands arguments that it does not name on to its `language_model`.
        features_module (`str`, *optional*):
            Module whose output the image features are, where they do not take the places of placeholders.
        grows (`tuple[str, ...]`): Further inputs with an entry per text token; an answer repeats the last one.
        processor_kwargs (`dict`, *optional*): Arguments that the processor needs.
        flat_images (`bool`): Whether the processor wants one list of images and not one for every row.
        reads_text (`bool`): Whether the processor takes a text at all.
        begins_with_bos (`bool`): Whether the first token has to be replaced by the beginning token.
        gradient_processor (`type`, *optional*): Image processor to take the gradient from, where the own has none.
    """

    reason: str
    places_image: bool = False
    answer_token_type: int = 0
    text_ends_line: bool = False
    text_model: str | None = None
    passes_on: bool = False
    features_module: str | None = None
    grows: tuple[str, ...] = ()
    processor_kwargs: dict[str, Any] | None = None
    flat_images: bool = False
    reads_text: bool = True
    begins_with_bos: bool = False
    gradient_processor: type[BaseImageProcessor] | None = None


_WRITES_PLACEHOLDERS = Family(
    "its processor writes the image placeholders before the text by itself", places_image=True
)
_NO_PLACEHOLDERS = Family("its text has no placeholders: the image is all its encoder reads", places_image=True)
_BLIP_2 = Family(
    "its processor writes the image placeholders before the text by itself, and its forward needs pixel values",
    places_image=True,
    text_model="language_model",
    passes_on=True,
)
_KOSMOS = Family(
    "its processor writes image placeholders and a mask of where they are; its text model goes on from a cache alone",
    places_image=True,
    grows=("image_embeds_position_mask",),
    text_model="text_model",
)

# By model type. A model that is not here is treated as most are.
FAMILIES = {
    "blip": Family(
        "its image goes to the text decoder by cross attention, and the decoder begins with a token of its own, which "
        "`generate` puts in the place of the tokenizer's first",
        places_image=True,
        begins_with_bos=True,
    ),
    "blip-2": _BLIP_2,
    "bliva": _BLIP_2,
    "cosmos3_edge": Family(
        "its model needs the token types that its processor leaves out unless asked",
        processor_kwargs={"return_mm_token_type_ids": True},
    ),
    "florence2": _WRITES_PLACEHOLDERS,
    "fuyu": _WRITES_PLACEHOLDERS,
    "git": Family(
        "it has no placeholders: image features go before the text, by no call of `get_image_features`",
        places_image=True,
        features_module="visual_projection",
    ),
    "got_ocr2": Family(
        "its processor takes an image per row only as the pages of a document",
        processor_kwargs={"multi_page": True},
    ),
    "idefics": Family(
        "its processor writes the placeholder where the image stands in one list of images and texts, its text looks "
        "at the image through a mask with a row per token, and the features come by no call of `get_image_features`; one "
        "without a resampler, as none is published, has none for FCA",
        places_image=True,
        flat_images=True,
        features_module="perceiver_resampler",
        grows=("image_attention_mask",),
    ),
    "instructblip": _BLIP_2,
    "kosmos-2": _KOSMOS,
    "kosmos-2.5": _KOSMOS,
    "mllama": Family(
        "its text looks at the image by cross attention, through a mask with a row per token, and the features come "
        "by no call of `get_image_features`",
        features_module="multi_modal_projector",
        grows=("cross_attention_mask",),
    ),
    "paligemma": Family(
        "tokens of type 0 see each other in both directions, so an answer of type 0 leaks into the question; its "
        "processor ends every text with a line break",
        answer_token_type=1,
        text_ends_line=True,
    ),
    "pix2struct": _NO_PLACEHOLDERS,
    "pp_formulanet": Family(
        "it reads formulas and no question: its processor takes images only",
        places_image=True,
        reads_text=False,
        features_module="multi_modal_projector",
    ),
    "video_llava": Family(
        "its image processor has no torchvision backend; CLIP's takes the same steps and passes their gradient",
        gradient_processor=CLIPImageProcessor,
    ),
    "vision-encoder-decoder": _NO_PLACEHOLDERS,
}
