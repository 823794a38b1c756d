r"""
BLIVA (Hu et al., 2023, arXiv 2308.09936): InstructBLIP that also sees the patches of its image encoder, projected by one
layer of their own. `transferable-vp convert bliva` makes the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    BaseImageProcessor,
    BatchFeature,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.processing_utils import ProcessingKwargs
from transformers.utils.generic import can_return_tuple

from .minigpt4 import check_tokens, pad, pieces


class BlivaConfig(InstructBlipConfig):
    r"""
    Configuration of a [`BlivaForConditionalGeneration`].

    Args:
        use_patch_tokens (`bool`, *optional*, defaults to `True`):
            Whether the language model is given the patches behind the queries: 32 + 256 tokens an image. Without them it
            is InstructBLIP's graph, 32 tokens, which is what the paper's code ranks answers with. It is read at every
            pass, so it may be changed on a loaded model; a [`BlivaProcessor`] has one as well, which must agree.
        post_layernorm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the norm behind the image encoder (`ln_vision` of LAVIS). InstructBLIP in transformers takes that
            of the encoder's layers.
        kwargs: As [`~transformers.InstructBlipConfig`].
    """

    model_type = "bliva"

    use_patch_tokens: bool = True
    post_layernorm_eps: float = 1e-5

    @property
    def num_patch_tokens(self) -> int:
        """`int`: Patches of an image."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @property
    def num_image_tokens(self) -> int:
        """`int`: Placeholders of an image in the text."""
        return self.num_query_tokens + (self.num_patch_tokens if self.use_patch_tokens else 0)


class BlivaForConditionalGeneration(InstructBlipForConditionalGeneration):
    """InstructBLIP with the patches of its image encoder among the image tokens. Inputs and outputs are InstructBLIP's."""

    config: BlivaConfig
    config_class = BlivaConfig

    def __init__(self, config: BlivaConfig) -> None:
        super().__init__(config)
        self.vision_model.post_layernorm.eps = config.post_layernorm_eps
        self.vision_project = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.post_init()

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        qformer_input_ids: torch.Tensor,
        qformer_attention_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = False,
        **kwargs: Any,
    ) -> Any:
        r"""
        Args:
            pixel_values (`torch.Tensor`): `(batch, 3, height, width)`.
            qformer_input_ids (`torch.Tensor`): int64 `(batch, length)`, the question in BERT's tokens.
            qformer_attention_mask (`torch.Tensor`, *optional*): `(batch, length)`, 0 where there is padding.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): Whether another image size is allowed.

        Returns:
            `BaseModelOutputWithVisionQformerOutputs`: `pooler_output` is what the language model is given, `(batch,
            tokens, width)`: first the queries, then the patches in rows from the top left.
        """
        wanted = self.config.use_patch_tokens
        outputs = super().get_image_features(
            pixel_values,
            qformer_input_ids=qformer_input_ids,
            qformer_attention_mask=qformer_attention_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            **kwargs | ({"output_hidden_states": True} if wanted else {}) | {"return_dict": True},
        )
        if wanted:
            # The output of the last layer but one, before any norm, without the class token.
            patches = self.vision_project(outputs.vision_outputs.hidden_states[-2][:, 1:])
            outputs.pooler_output = torch.cat([outputs.pooler_output, patches], dim=1)
        return outputs

    def get_placeholder_mask(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Where image features go, `(batch, length, 1)`. Raises `ValueError` if a row has too few places or too many."""
        mask = super().get_placeholder_mask(input_ids, inputs_embeds)
        # With fewer places than features, those of one row would slide into the next without a word.
        found, expected = mask[..., 0].sum(-1), self.config.num_image_tokens
        if not torch.compiler.is_compiling() and (found != expected).any():
            raise ValueError(
                f"The texts have {found.tolist()} image placeholders and every image makes {expected} features: model "
                f"({self.config.use_patch_tokens=}) and processor must agree on `use_patch_tokens`."
            )
        return mask

    @torch.no_grad()
    def generate(
        self, pixel_values: torch.Tensor, *args: Any, input_ids: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """As InstructBLIP's, which without `input_ids` would leave no place for the patches."""
        if input_ids is None and kwargs.get("inputs_embeds") is None and len(args) < 3:
            begin = [self.config.image_token_id] * self.config.num_image_tokens + [
                self.config.text_config.bos_token_id
            ]
            input_ids = torch.tensor([begin] * len(pixel_values), device=pixel_values.device)
        if input_ids is not None:
            kwargs["input_ids"] = input_ids
        return super().generate(pixel_values, *args, **kwargs)


class BlivaProcessor(ProcessorMixin):
    r"""
    Makes a placeholder for every image feature, `</s>` and the question for the language model, and the question once
    more for the Q-Former.

    Args:
        image_processor (`BaseImageProcessor`): BLIP's, at the size of the image encoder.
        tokenizer (`PreTrainedTokenizerBase`):
            LLaMA's, with `</s>` as beginning token. It needs a padding token other than the placeholder.
        qformer_tokenizer (`PreTrainedTokenizerBase`): BERT's.
        num_query_tokens (`int`, *optional*, defaults to 32): Queries of the Q-Former.
        num_patch_tokens (`int`, *optional*, defaults to 256): Patches of an image.
        use_patch_tokens (`bool`, *optional*, defaults to `True`): As [`BlivaConfig`].
        image_token (`str`, *optional*, defaults to `"<0x00>"`):
            The placeholder: the token of a byte that no text has, so that the vocabulary stays as it was.

    Raises:
        ValueError: If the tokenizer has no beginning or padding token, or pads with the placeholder.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        qformer_tokenizer: PreTrainedTokenizerBase,
        num_query_tokens: int = 32,
        num_patch_tokens: int = 256,
        use_patch_tokens: bool = True,
        image_token: str = "<0x00>",
        **kwargs: Any,
    ) -> None:
        self.num_query_tokens = num_query_tokens
        self.num_patch_tokens = num_patch_tokens
        self.use_patch_tokens = use_patch_tokens
        self.image_token = image_token
        self.image_token_id = check_tokens(tokenizer, image_token)
        super().__init__(image_processor, tokenizer, qformer_tokenizer, **kwargs)

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        r"""
        Args:
            images (*optional*): One image for every text, as BLIP's image processor takes them.
            text (`str` or `Sequence[str]`, *optional*): Questions.
            kwargs: `return_tensors`, `padding` and what else `tokenizer.pad` takes; `add_special_tokens=False` leaves
                out the beginning token; arguments of the image processor.

        Returns:
            `BatchFeature`: `input_ids`, `attention_mask`, `qformer_input_ids` and `qformer_attention_mask` for texts,
            `pixel_values` for images.

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
            count = self.num_query_tokens + (self.num_patch_tokens if self.use_patch_tokens else 0)
            image = [] if images is None else [self.image_token_id] * count
            rows = [[*image, *begin, *pieces(self.tokenizer, one, self.image_token_id)] for one in texts]
            result |= pad(self.tokenizer, rows, options)
            # BERT's special tokens are always there.
            question = self.qformer_tokenizer(texts, padding=bool(options.get("padding")))
            result |= {f"qformer_{name}": question[name] for name in ("input_ids", "attention_mask")}
        if images is not None:
            result |= self.image_processor(images, **arguments["images_kwargs"])
        return BatchFeature(result, tensor_type=return_tensors)

    @property
    def model_input_names(self) -> list[str]:
        """`list[str]`: What a model is given."""
        return ["input_ids", "attention_mask", "qformer_input_ids", "qformer_attention_mask", "pixel_values"]


__all__ = ["BlivaConfig", "BlivaForConditionalGeneration", "BlivaProcessor"]
