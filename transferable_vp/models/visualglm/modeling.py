"""VisualGLM-6B: an EVA-CLIP tower and a Q-Former in front of ChatGLM-6B."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Blip2QFormerModel, Blip2VisionModel, DynamicCache, GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration import VisualGLMConfig
from .decoder import VisualGLMPreTrainedModel, VisualGLMTextModel, relative_positions, visible_tokens


@dataclass
class VisualGLMModelOutput(ModelOutput):
    """What [`VisualGLMModel`] returns: the language model's output and the image features.

    Attributes:
        last_hidden_state (`torch.Tensor`): `(batch, tokens, hidden_size)`.
        cache (`Cache`, *optional*): Keys and values.
        hidden_states (`tuple[torch.Tensor]`, *optional*): Of every layer, if asked for.
        attentions (`tuple[torch.Tensor]`, *optional*): Of every layer, if asked for.
        image_hidden_states (`torch.Tensor`, *optional*): `(images, num_query_tokens, hidden_size)`.
    """

    last_hidden_state: torch.Tensor | None = None
    cache: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None


@dataclass
class VisualGLMCausalLMOutput(VisualGLMModelOutput):
    """As [`VisualGLMModelOutput`], with logits in place of the last hidden state.

    Attributes:
        loss (`torch.Tensor`, *optional*): Mean cross-entropy over the answer tokens, if there are labels.
        logits (`torch.Tensor`): `(batch, tokens, vocab_size)`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class VisualGLMModel(VisualGLMPreTrainedModel):
    r"""
    VisualGLM without its head: the image's queries take the places of their placeholders in the text.

    Args:
        config ([`VisualGLMConfig`]): The configuration.
    """

    def __init__(self, config: VisualGLMConfig) -> None:
        super().__init__(config)
        self.vision_model = Blip2VisionModel._from_config(config.vision_config)
        # BLIP-2's class has one epsilon; as published, the norm behind the blocks has torch's default.
        self.vision_model.post_layernorm.eps = config.vision_norm_eps
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size))
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)
        self.language_projection = nn.Linear(config.qformer_config.hidden_size, config.text_config.hidden_size)
        self.language_model = VisualGLMTextModel._from_config(config.text_config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisualGLMModel):
            init.normal_(module.query_tokens, std=self.config.qformer_config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of the text."""
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces them."""
        self.language_model.embed_tokens = value

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        r"""
        What the language model is given of images.

        Args:
            pixel_values (`torch.Tensor`): `(images, 3, height, width)`, normalised.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output`, `(images, num_query_tokens, hidden_size of the text)`, and
            the image encoder's `last_hidden_state`.
        """
        encoded = self.vision_model(pixel_values=pixel_values, return_dict=True, **kwargs).last_hidden_state
        queries = self.qformer(
            query_embeds=self.query_tokens.expand(len(encoded), -1, -1),
            encoder_hidden_states=encoded,
            return_dict=True,
        ).last_hidden_state
        features = self.language_projection(queries.to(self.language_projection.weight.dtype))
        return BaseModelOutputWithPooling(last_hidden_state=encoded, pooler_output=features)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> VisualGLMModelOutput:
        """See [`~VisualGLMForConditionalGeneration.forward`]."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Got both `input_ids` and `inputs_embeds`, or neither: give exactly one of them.")
        use_cache = self.config.text_config.use_cache if use_cache is None else use_cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config.text_config)
        if position_ids is None:
            position_ids = self._positions(input_ids, cache)
        if cache is not None and not cache.get_seq_length():
            # Kept with the cache, as that is what a continuation comes with; the model may hold many at a time.
            cache.first_positions = position_ids[:, :1]
        embeddings = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        features = None
        if pixel_values is not None:
            features = self.get_image_features(pixel_values, return_dict=True).pooler_output
            embeddings = self._place(input_ids, position_ids, embeddings, features)
        output = self.language_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=use_cache,
            **kwargs,
        )
        return VisualGLMModelOutput(**output, image_hidden_states=features)

    def _positions(self, input_ids: torch.Tensor | None, cache: Cache | None) -> torch.Tensor:
        """Of a whole text, or of tokens behind those in the cache, whose rows may have been repeated since."""
        if input_ids is None:
            raise ValueError(
                "Got `inputs_embeds` without `position_ids`: give both, as they follow from a text's ids."
            )
        length = 0 if cache is None else cache.get_seq_length()
        if not length:
            return relative_positions(input_ids, self.config.text_config.bos_token_id)
        first = getattr(cache, "first_positions", None)
        if first is None or len(input_ids) % len(first):
            raise ValueError(
                f"Got {len(input_ids)} rows to continue from a cache that this model has not filled for as many: give "
                "`position_ids`."
            )
        columns = torch.arange(length, length + input_ids.shape[1], device=input_ids.device)
        return first.repeat_interleave(len(input_ids) // len(first), 0).to(input_ids.device) + columns

    def _place(
        self,
        input_ids: torch.Tensor | None,
        position_ids: torch.Tensor,
        embeddings: torch.Tensor,
        features: torch.Tensor,
    ) -> torch.Tensor:
        """Puts image features in the places of their placeholders, all of which are in the context."""
        if input_ids is None:
            raise ValueError("Got `pixel_values` without `input_ids`, which say where the image goes.")
        places = (input_ids == self.config.image_token_id) & (position_ids <= 0)
        if int(places.sum()) != features.shape[0] * features.shape[1]:
            raise ValueError(
                f"The text has {int(places.sum())} image placeholders (id {self.config.image_token_id}) and its "
                f"images make {features.shape[0] * features.shape[1]} features: write `<img></img>` once for every "
                "image, and no placeholder besides."
            )
        return embeddings.masked_scatter(places[..., None], features.to(embeddings.device, embeddings.dtype))


class VisualGLMForConditionalGeneration(VisualGLMPreTrainedModel, GenerationMixin):
    r"""
    VisualGLM-6B (https://github.com/THUDM/VisualGLM-6B; ChatGLM-6B, https://github.com/THUDM/ChatGLM-6B).

    Differences from the published code: angles of rotations are computed in float32 also in half precision, where they
    are rounded; `labels` count for answers only.

    Args:
        config ([`VisualGLMConfig`]): The configuration.
    """

    def __init__(self, config: VisualGLMConfig) -> None:
        super().__init__(config)
        self.model = VisualGLMModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See [`~VisualGLMModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> VisualGLMCausalLMOutput:
        r"""
        Args:
            input_ids (`torch.Tensor`, *optional*):
                int64 `(batch, tokens)`: contexts that end with `[gMASK]` and `<sop>`, answers or parts of them behind,
                and padding on any side. With a filled cache, what goes on behind it.
            pixel_values (`torch.Tensor`, *optional*): `(images, 3, height, width)`, normalised, for the placeholders.
            attention_mask (`torch.Tensor`, *optional*):
                `(batch, tokens so far)`, 0 at padding; or `(batch, 1, tokens, tokens so far)`, used as it is.
            position_ids (`torch.Tensor`, *optional*): As [`relative_positions`] gives, which is the default.
            cache (`Cache`, *optional*): Keys and values of the tokens before.
            inputs_embeds (`torch.Tensor`, *optional*): `(batch, tokens, hidden_size)`, instead of `input_ids`.
            labels (`torch.Tensor`, *optional*):
                int64 `(batch, tokens)`, aligned with `input_ids`. -100 is not counted, nor is any context or padding:
                a copy of `input_ids` does.
            use_cache (`bool`, *optional*): Whether to return keys and values.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                How many of the last positions, or which ones, get logits; 0 for all. With `labels`, all are needed.

        Raises:
            ValueError: If a context has no end, placeholders and images do not agree, or labels miss their logits.
        """
        if labels is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            raise ValueError("Got `labels` with `logits_to_keep`: the loss needs all logits, so give one of the two.")
        if labels is not None and position_ids is None:
            position_ids = self.model._positions(input_ids, cache)
        output = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        states = output.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(states[:, kept])
        loss = None
        if labels is not None and position_ids is not None:
            # `<sop>`, at 1, is part of every prompt.
            labels = labels.masked_fill(position_ids <= 1, -100)
            if attention_mask is not None and attention_mask.ndim == 2:
                labels = labels.masked_fill(attention_mask[:, -labels.shape[1] :] == 0, -100)
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return VisualGLMCausalLMOutput(
            loss=loss,
            logits=logits,
            cache=output.cache,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            image_hidden_states=output.image_hidden_states,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        cache: Cache | None = None,
        pixel_values: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As all models, without the image where the cache has it already."""
        inputs = super().prepare_inputs_for_generation(input_ids, cache=cache, **kwargs)
        if cache is None or not cache.get_seq_length():
            inputs["pixel_values"] = pixel_values
        return inputs

    @staticmethod
    def create_masks_for_generate(
        config: VisualGLMConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
        position_ids: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor | None:
        """The mask that `generate` makes itself for a static cache."""
        return visible_tokens(config.get_text_config(), inputs_embeds, attention_mask, cache, position_ids)

    def _prepare_position_ids_for_generation(self, inputs_tensor: torch.Tensor, model_kwargs: dict) -> torch.Tensor:
        """`generate` counts on from these by one a token, which is what they need."""
        ids = model_kwargs.get("input_ids")
        return relative_positions(inputs_tensor if ids is None else ids, self.config.text_config.bos_token_id)


__all__ = ["VisualGLMForConditionalGeneration", "VisualGLMModel"]
