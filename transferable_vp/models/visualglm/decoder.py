"""ChatGLM-6B: a decoder that reads a context in both directions and numbers every token twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.output_capturing import capture_outputs

from .configuration import VisualGLMConfig, VisualGLMTextConfig


def relative_positions(input_ids: torch.Tensor, bos_token_id: int) -> torch.Tensor:
    r"""
    Where every token stands, counted from the token before `<sop>`, which is `[gMASK]`.

    ChatGLM numbers a token twice: the first number grows along the context and stays at that of `[gMASK]` behind it,
    the second is 0 in the context and grows from 1 behind it. Rotations see differences only, so one number says both:
    `min(position, 0)` and `max(position, 0)`. It grows by one a token, as with other models, wherever padding is.

    Args:
        input_ids (`torch.Tensor`): int64 `(batch, tokens)`, whole texts.
        bos_token_id (`int`): Id of `<sop>`.

    Returns:
        `torch.Tensor`: int64 `(batch, tokens)`: negative before `[gMASK]`, 0 at it, 1 at `<sop>`.

    Raises:
        ValueError: If a row has no `<sop>`.
    """
    begins = input_ids == bos_token_id
    if not begins.any(1).all():
        raise ValueError(
            f"{int((~begins.any(1)).sum())} of {len(input_ids)} rows have no token {bos_token_id} (`<sop>`), so it is "
            "not known where the context ends: let the tokenizer add its special tokens."
        )
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    return columns - (begins.int().argmax(1, keepdim=True) - 1)


def visible_tokens(
    config: VisualGLMTextConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Cache | None,
    position_ids: torch.Tensor,
) -> torch.Tensor | None:
    r"""
    What every token may look at: the whole context, up to `[gMASK]`, and what stands before the token.

    Args:
        config ([`VisualGLMTextConfig`]): The configuration, for the kind of attention.
        inputs_embeds (`torch.Tensor`): `(batch, tokens, width)`, for shape, type and device.
        attention_mask (`torch.Tensor`, *optional*):
            `(batch, tokens so far)`, 0 at padding; one of four axes is returned as it is.
        cache (`Cache`, *optional*): Keys and values of the tokens before.
        position_ids (`torch.Tensor`): As [`relative_positions`] gives: not above 0 in the context.

    Returns:
        `torch.Tensor` or `None`: `(batch, 1, tokens, tokens so far)`, as the attention wants it; `None` for all.
    """
    length = position_ids.shape[1]
    context = position_ids <= 0
    offset = 0 if cache is None else cache.get_seq_length()

    def in_context(batch: Any, head: Any, query: Any, key: Any) -> Any:
        # Earlier keys are seen anyway, and a static cache has keys that are not there yet.
        place = key - offset
        return context[batch, place.clamp(0, length - 1)] & (place >= 0) & (place < length)

    return create_causal_mask(
        config=config,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        cache=cache,
        # A single token has nothing behind it to see, and attention is faster without a mask.
        or_mask_function=in_context if length > 1 else None,
    )


class VisualGLMRotaryEmbedding(nn.Module):
    """Cosines and sines, `(batch, tokens, 2, head_dim // 2)`: one half of a head turns with the place in the context,
    the other with the place in the answer."""

    def __init__(self, config: VisualGLMTextConfig) -> None:
        super().__init__()
        self.dim = config.head_dim // 2
        self.base = config.rotary_base

    @torch.no_grad()
    def forward(self, states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        exponents = torch.arange(0, self.dim, 2, device=states.device).float() / self.dim
        # Published in half precision, and so used in any.
        frequencies = (1.0 / self.base**exponents).half().float()
        pairs = torch.stack([position_ids.clamp(max=0), position_ids.clamp(min=0)], dim=-1)
        angles = pairs[..., None].float() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(states.dtype), angles.sin().to(states.dtype)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns queries or keys `(batch, heads, tokens, head_dim)`, each half of a head on its own."""
    halves = states.unflatten(-1, (2, -1))
    first, second = halves.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (halves * cos[:, None] + turned * sin[:, None]).flatten(-2)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain steps, with a softmax in float32."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class VisualGLMAttention(nn.Module):
    """Self-attention with rotations of both halves of a head."""

    def __init__(self, config: VisualGLMTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.num_key_value_groups = 1
        self.is_causal = True
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights


class VisualGLMMLP(nn.Module):
    """The feed-forward part of a layer."""

    def __init__(self, config: VisualGLMTextConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activation(self.up_proj(hidden_states)))


class VisualGLMDecoderLayer(GradientCheckpointingLayer):
    """A layer whose residuals are what its norms give, scaled up by the root of twice the number of layers."""

    def __init__(self, config: VisualGLMTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.residual_scale = math.sqrt(2 * config.num_hidden_layers)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = VisualGLMAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisualGLMMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        normed = self.input_layernorm(hidden_states)
        attended, _ = self.self_attn(normed, position_embeddings, attention_mask, cache, **kwargs)
        normed = self.post_attention_layernorm(normed * self.residual_scale + attended)
        return normed * self.residual_scale + self.mlp(normed)


class VisualGLMPreTrainedModel(PreTrainedModel):
    """What the classes below share: loading, saving and random weights."""

    config_class: type[PreTrainedConfig] = VisualGLMConfig
    base_model_prefix = "model"
    input_modalities: tuple[str, ...] = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["VisualGLMDecoderLayer", "Blip2EncoderLayer", "Blip2QFormerLayer"]
    _skip_keys_device_placement = ["cache"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": VisualGLMDecoderLayer, "attentions": VisualGLMAttention}


class VisualGLMTextModel(VisualGLMPreTrainedModel):
    r"""
    ChatGLM-6B without its head.

    Args:
        config ([`VisualGLMTextConfig`]): The configuration.
    """

    config_class = VisualGLMTextConfig
    input_modalities = ("text",)

    def __init__(self, config: VisualGLMTextConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(VisualGLMDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rotary_emb = VisualGLMRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        r"""
        Args:
            input_ids (`torch.Tensor`, *optional*): int64 `(batch, tokens)`.
            attention_mask (`torch.Tensor`, *optional*):
                `(batch, tokens so far)`, 0 at padding; or `(batch, 1, tokens, tokens so far)`, used as it is.
            position_ids (`torch.Tensor`, *optional*):
                int64 `(batch, tokens)`, as [`relative_positions`] gives. Needed with a filled cache and with
                `inputs_embeds`.
            cache (`Cache`, *optional*): Keys and values of the tokens before.
            inputs_embeds (`torch.Tensor`, *optional*): `(batch, tokens, hidden_size)`, instead of `input_ids`.
            use_cache (`bool`, *optional*): Whether to return keys and values.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Got both `input_ids` and `inputs_embeds`, or neither: give exactly one of them.")
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            if input_ids is None or (cache is not None and cache.get_seq_length()):
                raise ValueError(
                    "Got no `position_ids`, which cannot be told here: they follow from a whole text's ids."
                )
            position_ids = relative_positions(input_ids, self.config.bos_token_id)
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        mask = visible_tokens(self.config, hidden_states, attention_mask, cache, position_ids)
        rotations = self.rotary_emb(hidden_states, position_ids)
        for layer in self.layers:
            hidden_states = layer(hidden_states, rotations, mask, cache, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), cache=cache)


__all__ = ["VisualGLMPreTrainedModel", "VisualGLMTextModel", "relative_positions", "visible_tokens"]
