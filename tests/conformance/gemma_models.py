"""Gemma's lineage after Gemma 3, which `tiny.py` has."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import transformers
from tiny import HEADS, IMAGE_TOKENS, LAYERS, SIZE, WIDTH
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextAltUp


HEAD = WIDTH // HEADS
POOLED_TOKENS = IMAGE_TOKENS // 4
BASIC = ["<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
IMAGE = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
BOTH_ATTENTIONS = ["sliding_attention", "full_attention"]
# Patches of 4 x 4 pixels, pooled 2 x 2: at most 70 tokens, the fewest allowed, so 8 x 8 of a square canvas.
PATCHES = {"patch_size": 4, "pooling_kernel_size": 2}


def turns(image: str, start: str = "<start_of_turn>", end: str = "<end_of_turn>") -> str:
    """Gemma's chat template, which writes the beginning token itself."""
    return "<bos>" + tiny.chat_template(image, f"{start}user\n", f"{end}\n", f"{start}model\n")


def gemma3_tokens() -> tuple[PreTrainedTokenizerFast, dict[str, int]]:
    """Gemma 3's tokenizer and the token ids of its configurations."""
    tokenizer = tiny.byte_level_tokenizer([*BASIC, *IMAGE.values()], begin="<bos>", **IMAGE)
    return tokenizer, {
        "boi_token_index": tokenizer.boi_token_id, "eoi_token_index": tokenizer.eoi_token_id,
        "image_token_index": tokenizer.image_token_id,
    }  # fmt: skip


def gemma3_text(tokenizer: PreTrainedTokenizerFast, model_type: str = "gemma3_text") -> dict[str, Any]:
    """Gemma 3's decoder, one layer with a window and one without."""
    return tiny.text_config(
        model_type, tokenizer, head_dim=HEAD, query_pre_attn_scalar=HEAD, sliding_window=16,
        layer_types=BOTH_ATTENTIONS,
    )  # fmt: skip


def build_shieldgemma2() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Gemma 3 as a judge. The processor ignores the text given and asks about every policy, one row each."""
    tokenizer, ids = gemma3_tokens()
    processor = transformers.ShieldGemma2Processor(
        transformers.Gemma3ImageProcessor(size=SIZE), tokenizer, image_seq_length=POOLED_TOKENS,
        chat_template=turns(IMAGE["boi_token"]),
    )  # fmt: skip
    config = transformers.ShieldGemma2Config(
        vision_config=tiny.vision_config(model_type="siglip_vision_model", vision_use_head=False),
        text_config=gemma3_text(tokenizer), mm_tokens_per_image=POOLED_TOKENS, **ids,
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(config), processor


def build_t5gemma2() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Gemma 3 as an encoder, and a decoder that attends to itself and to it at once. No chat template."""
    tokenizer, ids = gemma3_tokens()
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size=SIZE), tokenizer, image_seq_length=POOLED_TOKENS
    )
    encoder = {
        "vision_config": tiny.vision_config(model_type="siglip_vision_model", vision_use_head=False),
        "text_config": gemma3_text(tokenizer, "t5gemma2_text"), "mm_tokens_per_image": POOLED_TOKENS, **ids,
    }  # fmt: skip
    config = transformers.T5Gemma2Config(
        encoder=encoder, decoder=gemma3_text(tokenizer, "t5gemma2_decoder"), image_token_index=tokenizer.image_token_id
    )
    model = transformers.T5Gemma2ForConditionalGeneration(config)
    # The end of the image has an embedding of its own, which starts at zero.
    model.model.encoder.text_model.embed_tokens.eoi_embedding.data.normal_()
    return model, processor


def build_gemma3n() -> tuple[PreTrainedModel, ProcessorMixin]:
    """MobileNet V5 of timm, per-layer embeddings, AltUp, shared keys and values, and an audio tower left unused."""
    pytest.importorskip("timm")
    # Tokens that are not among the special ones come last, image before audio: the model goes by the order.
    named = IMAGE | {
        "eoa_token": "<end_of_audio>",
        "audio_token": "<audio_soft_token>",
        "boa_token": "<start_of_audio>",
    }
    tokenizer = tiny.byte_level_tokenizer([*BASIC, named["boi_token"], named["boa_token"]], begin="<bos>", **named)
    size = 64
    processor = transformers.Gemma3nProcessor(
        transformers.Gemma3nAudioFeatureExtractor(), transformers.SiglipImageProcessor(size={"height": size, "width": size}), tokenizer,
        chat_template=turns(IMAGE["image_token"]), image_seq_length=IMAGE_TOKENS, audio_seq_length=4,
    )  # fmt: skip
    vision = {
        "architecture": "mobilenetv5_300m_enc", "hidden_size": 2048, "vocab_size": 2,
        "vocab_offset": tokenizer.eoi_token_id,
        "model_args": {"channel_multiplier": 0.05, "msfa_output_resolution": 4, "layer_scale_init_value": 0.5},
    }  # fmt: skip
    audio = {
        "hidden_size": WIDTH, "conf_num_attention_heads": HEADS, "conf_num_hidden_layers": 1, "vocab_size": 2,
        "sscp_conv_channel_size": (4, 4), "vocab_offset": tokenizer.eoa_token_id,
    }  # fmt: skip
    text = tiny.text_config(
        "gemma3n_text", tokenizer, head_dim=HEAD, num_hidden_layers=4, num_kv_shared_layers=2, sliding_window=16,
        layer_types=2 * BOTH_ATTENTIONS, activation_sparsity_pattern=[0.95, 0.95, 0.0, 0.0], laurel_rank=4,
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=tokenizer.eoi_token_id,
    )  # fmt: skip
    config = transformers.Gemma3nConfig(
        text_config=text, vision_config=vision, audio_config=audio, vision_soft_tokens_per_image=IMAGE_TOKENS,
        audio_soft_tokens_per_image=4,
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()},
    )  # fmt: skip
    model = transformers.Gemma3nForConditionalGeneration(config)
    for module in model.modules():
        if isinstance(module, Gemma3nTextAltUp):
            module.correct_output_scale.data.fill_(1.0)
    return model, processor


GEMMA4 = {
    "boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>", "boa_token": "<|audio>",
    "eoa_token": "<audio|>", "audio_token": "<|audio|>",
}  # fmt: skip


def gemma4_tokens() -> tuple[PreTrainedTokenizerFast, dict[str, int]]:
    """Gemma 4's tokenizer and the token ids of its configurations."""
    special = [*BASIC[:3], "<|turn>", "<turn|>", *GEMMA4.values(), "<|video|>"]
    tokenizer = tiny.byte_level_tokenizer(special, begin="<bos>", **GEMMA4)
    names = {"boi_token": "boi_token_id", "eoi_token": "eoi_token_id", "image_token": "image_token_id"}
    return tokenizer, {name: tokenizer.convert_tokens_to_ids(GEMMA4[token]) for token, name in names.items()}


def gemma4_heard(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Token ids of the configurations that know sound and video."""
    tokens = {"audio_token_id": "<|audio|>", "boa_token_id": "<|audio>", "eoa_token_index": "<audio|>",
              "video_token_id": "<|video|>"}  # fmt: skip
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def gemma4_text(model_type: str, tokenizer: PreTrainedTokenizerFast, layers: int, **more: Any) -> dict[str, Any]:
    """Gemma 4's decoder: pairs of a layer with a window and one without, the latter with wider and fewer heads."""
    return tiny.text_config(
        model_type, tokenizer, num_hidden_layers=layers, head_dim=HEAD, global_head_dim=2 * HEAD,
        num_global_key_value_heads=1, sliding_window=16, layer_types=layers // 2 * BOTH_ATTENTIONS,
        use_bidirectional_attention="vision", **more,
    )  # fmt: skip


def gemma4_processor(tokenizer: PreTrainedTokenizerFast) -> transformers.Gemma4Processor:
    """Patches in one long row, padded to the most there can be."""
    return transformers.Gemma4Processor(
        transformers.Gemma4AudioFeatureExtractor(), transformers.Gemma4ImageProcessor(max_soft_tokens=70, **PATCHES), tokenizer,
        transformers.Gemma4VideoProcessor(max_soft_tokens=70, **PATCHES), chat_template=turns("<|image|>", "<|turn>", "<turn|>"),
        image_seq_length=70,
    )  # fmt: skip


GEMMA4_VISION = {
    "model_type": "gemma4_vision", "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD, "position_embedding_size": 80,
    "standardize": True, **PATCHES,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": WIDTH}


def build_gemma4() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Native aspect ratio, pooled patches, per-layer embeddings, experts, a window where image tokens see each other."""
    tokenizer, ids = gemma4_tokens()
    text = gemma4_text(
        "gemma4_text", tokenizer, 4, num_kv_shared_layers=2, attention_k_eq_v=True, use_double_wide_mlp=True,
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=len(tokenizer), enable_moe_block=True, **EXPERTS,
    )  # fmt: skip
    config = transformers.Gemma4Config(text_config=text, vision_config=GEMMA4_VISION, **ids, **gemma4_heard(tokenizer))
    return transformers.Gemma4ForConditionalGeneration(config), gemma4_processor(tokenizer)


def build_gemma4_unified() -> tuple[PreTrainedModel, ProcessorMixin]:
    """No image encoder: the decoder reads merged patches through one linear layer."""
    tokenizer, ids = gemma4_tokens()
    processor = transformers.Gemma4UnifiedProcessor(
        transformers.Gemma4UnifiedAudioFeatureExtractor(), transformers.Gemma4UnifiedImageProcessor(max_soft_tokens=70, **PATCHES), tokenizer,
        transformers.Gemma4UnifiedVideoProcessor(max_soft_tokens=70, **PATCHES), image_seq_length=70,
        chat_template=turns("<|image|>", "<|turn>", "<turn|>"),
    )  # fmt: skip
    vision = {"mm_embed_dim": WIDTH, "mm_posemb_size": 80, "output_proj_dims": WIDTH, **PATCHES}
    text = gemma4_text("gemma4_unified_text", tokenizer, LAYERS, attention_k_eq_v=True)
    config = transformers.Gemma4UnifiedConfig(text_config=text, vision_config=vision, **ids, **gemma4_heard(tokenizer))
    return transformers.Gemma4UnifiedForConditionalGeneration(config), processor


def build_diffusion_gemma() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Gemma 4 with experts as the encoder of a canvas of tokens, denoised all at once: answers have no next token."""
    tokenizer, ids = gemma4_tokens()
    text = gemma4_text("diffusion_gemma_text", tokenizer, LAYERS, **EXPERTS)
    config = transformers.DiffusionGemmaConfig(text_config=text, vision_config=GEMMA4_VISION, canvas_length=64, **ids)
    return transformers.DiffusionGemmaForBlockDiffusion(config), gemma4_processor(tokenizer)


FAMILIES = {
    "gemma3n": build_gemma3n,
    "gemma4": build_gemma4,
    "gemma4_unified": build_gemma4_unified,
    "shieldgemma2": build_shieldgemma2,
    "t5gemma2": build_t5gemma2,
    "diffusion_gemma": build_diffusion_gemma,
}
