"""What a VisualGLM is made of: an image encoder, a Q-Former and ChatGLM-6B, with the token ids they share."""

from __future__ import annotations

from typing import Any

from transformers import Blip2QFormerConfig, Blip2VisionConfig, PretrainedConfig


class VisualGLMTextConfig(PretrainedConfig):
    r"""
    Configuration of ChatGLM-6B, the language model of a VisualGLM. The defaults are those of the published weights.

    Args:
        vocab_size (`int`, *optional*, defaults to 130528): Number of embeddings; the tokenizer uses fewer.
        hidden_size (`int`, *optional*, defaults to 4096): Width.
        intermediate_size (`int`, *optional*, defaults to 16384): Inner width of the feed-forward layers.
        num_hidden_layers (`int`, *optional*, defaults to 28):
            Number of layers. The residual scale, `sqrt(2 * num_hidden_layers)`, follows from it.
        num_attention_heads (`int`, *optional*, defaults to 32):
            Number of heads. A head's width must be a multiple of 4, as each half of it is rotated on its own.
        hidden_act (`str`, *optional*, defaults to `"gelu_pytorch_tanh"`): Activation of the feed-forward layers.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of every layer norm.
        rotary_base (`float`, *optional*, defaults to 10000.0): Base of the rotary frequencies.
        max_position_embeddings (`int`, *optional*, defaults to 2048): Longest text that it was trained on.
        attention_dropout (`float`, *optional*, defaults to 0.0): Dropout of attention weights in training mode.
        initializer_range (`float`, *optional*, defaults to 0.02): Deviation of random weights.
        pad_token_id (`int`, *optional*, defaults to 3): Id of padding.
        bos_token_id (`int`, *optional*, defaults to 130004): Id of `<sop>`, behind which an answer begins.
        eos_token_id (`int`, *optional*, defaults to 130005): Id of `<eop>`, which ends an answer.
        gmask_token_id (`int`, *optional*, defaults to 130001): Id of `[gMASK]`, which stands right before `<sop>`.
        use_cache (`bool`, *optional*, defaults to `True`): Whether to return keys and values.

    Raises:
        ValueError: If `hidden_size` gives no head width that is a multiple of 4.
    """

    model_type = "visualglm_text"
    base_config_key = "text_config"
    keys_to_ignore_at_inference = ["cache"]

    def __init__(
        self,
        vocab_size: int = 130528,
        hidden_size: int = 4096,
        intermediate_size: int = 16384,
        num_hidden_layers: int = 28,
        num_attention_heads: int = 32,
        hidden_act: str = "gelu_pytorch_tanh",
        layer_norm_eps: float = 1e-5,
        rotary_base: float = 10000.0,
        max_position_embeddings: int = 2048,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        pad_token_id: int = 3,
        bos_token_id: int = 130004,
        eos_token_id: int = 130005,
        gmask_token_id: int = 130001,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        if hidden_size % (4 * num_attention_heads):
            raise ValueError(
                f"`hidden_size` is {hidden_size} and `num_attention_heads` {num_attention_heads}: it must be a "
                "multiple of 4 times the heads, as each half of a head is rotated on its own."
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads
        self.head_dim = hidden_size // num_attention_heads
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.rotary_base = rotary_base
        self.max_position_embeddings = max_position_embeddings
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.gmask_token_id = gmask_token_id
        self.use_cache = use_cache
        # Derived, and kept under the names that caches read: a saved file has them too.
        for name in ("num_key_value_heads", "head_dim"):
            kwargs.pop(name, None)
        # transformers would tie the head to the embeddings by default before 5.0.
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)


class VisualGLMConfig(PretrainedConfig):
    r"""
    Configuration of a [`VisualGLMForConditionalGeneration`]. The defaults are those of `THUDM/visualglm-6b`.

    Args:
        vision_config (`dict` or `Blip2VisionConfig`, *optional*): The image encoder: EVA-CLIP's ViT-g, 39 blocks.
        qformer_config (`dict` or `Blip2QFormerConfig`, *optional*): The Q-Former, 12 layers, without a text branch.
        text_config (`dict` or [`VisualGLMTextConfig`], *optional*): The language model.
        num_query_tokens (`int`, *optional*, defaults to 32): Queries of the Q-Former, hence placeholders of an image.
        image_token_id (`int`, *optional*, defaults to 0):
            Id of the placeholder that stands for one query in a text. As published it is the unknown token, which no
            text has: what is not in the vocabulary is spelled in bytes.
        vision_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the layer norm behind the image encoder. The encoder's own, 1e-6, is in `vision_config`.

    Example:

    ```python
    >>> from transferable_vp.models.visualglm import VisualGLMConfig

    >>> VisualGLMConfig().text_config.num_hidden_layers
    28
    ```
    """

    model_type = "visualglm"
    sub_configs = {
        "vision_config": Blip2VisionConfig,
        "qformer_config": Blip2QFormerConfig,
        "text_config": VisualGLMTextConfig,
    }

    def __init__(
        self,
        vision_config: dict[str, Any] | Blip2VisionConfig | None = None,
        qformer_config: dict[str, Any] | Blip2QFormerConfig | None = None,
        text_config: dict[str, Any] | VisualGLMTextConfig | None = None,
        num_query_tokens: int = 32,
        image_token_id: int = 0,
        vision_norm_eps: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        given = {"vision_config": vision_config, "qformer_config": qformer_config, "text_config": text_config}
        for name, config in given.items():
            made = config if isinstance(config, PretrainedConfig) else self.sub_configs[name](**(config or {}))
            setattr(self, name, made)
        self.qformer_config.encoder_hidden_size = self.vision_config.hidden_size
        self.num_query_tokens = num_query_tokens
        self.image_token_id = image_token_id
        self.vision_norm_eps = vision_norm_eps
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)


__all__ = ["VisualGLMConfig", "VisualGLMTextConfig"]
