"""Tiny models of the GLM-V, ERNIE, Hunyuan, Kimi and Step families: native resolution, M-RoPE, experts."""

from __future__ import annotations

from typing import Any

import tiny
import transformers
from tiny import HEADS, LAYERS, WIDTH
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin


# Patches of 4 pixels, merged 2 x 2 into a token of 8 x 8; images keep their shape and have 16 to 25 tokens.
SIZES = {"patch_size": 4, "merge_size": 2}
PIXELS = {"shortest_edge": 32**2, "longest_edge": 40**2}
EXPERTS = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": WIDTH,
    "n_group": 2, "topk_group": 1,
}  # fmt: skip


def token_ids(tokenizer: PreTrainedTokenizerFast, **tokens: str) -> dict[str, int]:
    """The id of every token, under the name that a configuration has for it."""
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def glm_tokenizer() -> PreTrainedTokenizerFast:
    """GLM's tokens. As published, one token ends a text and pads it, and there is none to begin it."""
    special = ["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|begin_of_image|>",
               "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>"]  # fmt: skip
    tokenizer = tiny.byte_level_tokenizer(special, begin=None)
    tokenizer.bos_token, tokenizer.eos_token = None, tokenizer.pad_token
    return tokenizer


def glm_template() -> str:
    """GLM's way to write a question about an image."""
    image = "<|begin_of_image|><|image|><|end_of_image|>"
    return "[gMASK]<sop>" + tiny.chat_template(image, "<|user|>\n", "", "<|assistant|>\n")


def glm_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The ids that all GLM configurations ask for."""
    return token_ids(
        tokenizer, image_token_id="<|image|>", video_token_id="<|video|>",
        image_start_token_id="<|begin_of_image|>", image_end_token_id="<|end_of_image|>",
        video_start_token_id="<|begin_of_video|>", video_end_token_id="<|end_of_video|>",
    )  # fmt: skip


def glm_vision(**more: Any) -> dict[str, Any]:
    """GLM's image encoder: patches of two equal frames, learned positions that are interpolated, axial rotations."""
    return {
        "depth": LAYERS, "hidden_size": WIDTH, "num_heads": HEADS, "intermediate_size": 2 * WIDTH,
        "out_hidden_size": WIDTH, "image_size": 32, "patch_size": 4, "spatial_merge_size": 2,
        "temporal_patch_size": 2, **more,
    }  # fmt: skip


def glm_text(model_type: str, tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """GLM's decoder: half of a head of 16 is rotated, its 4 frequencies shared by time, height and width."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return tiny.text_config(model_type, tokenizer, rope_parameters=rope, **heads, **more)


# GLM counts the pixels of both frames of a patch.
GLM_SIZES = {**SIZES, "temporal_patch_size": 2, "size": {key: 2 * pixels for key, pixels in PIXELS.items()}}


def glm4v_processor() -> transformers.Glm4vProcessor:
    """The processor of GLM-4.1V and GLM-4.5V."""
    images, videos = transformers.Glm4vImageProcessor(**GLM_SIZES), transformers.Glm4vVideoProcessor(**GLM_SIZES)
    return transformers.Glm4vProcessor(images, glm_tokenizer(), videos, chat_template=glm_template())


def glm46v_processor() -> transformers.Glm46VProcessor:
    """The processor of GLM-4.6V and GLM-OCR."""
    images, videos = transformers.Glm46VImageProcessor(**GLM_SIZES), transformers.Glm46VVideoProcessor(**GLM_SIZES)
    return transformers.Glm46VProcessor(images, glm_tokenizer(), videos, chat_template=glm_template())


def build_glm4v() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Native resolution, strided convolution to the tokens, M-RoPE with other positions on every axis."""
    processor = glm4v_processor()
    text = glm_text("glm4v_text", processor.tokenizer)
    config = transformers.Glm4vConfig(vision_config=glm_vision(), text_config=text, **glm_ids(processor.tokenizer))
    return transformers.Glm4vForConditionalGeneration(config), processor


def build_glm4v_moe() -> tuple[PreTrainedModel, ProcessorMixin]:
    """As GLM-4V, with a dense layer and one of grouped experts."""
    processor = glm4v_processor()
    text = glm_text("glm4v_moe_text", processor.tokenizer, first_k_dense_replace=1, **EXPERTS)
    config = transformers.Glm4vMoeConfig(vision_config=glm_vision(), text_config=text, **glm_ids(processor.tokenizer))
    return transformers.Glm4vMoeForConditionalGeneration(config), processor


def build_glm46v() -> tuple[PreTrainedModel, ProcessorMixin]:
    """As GLM-4V, in classes of its own around the encoder and decoder of GLM-4V."""
    processor = glm46v_processor()
    text = glm_text("glm4v_text", processor.tokenizer)
    vision = glm_vision(model_type="glm4v_vision")
    config = transformers.Glm46VConfig(vision_config=vision, text_config=text, **glm_ids(processor.tokenizer))
    return transformers.Glm46VForConditionalGeneration(config), processor


def build_glmga() -> tuple[PreTrainedModel, ProcessorMixin]:
    """GLM-4.6V's model under another configuration. The processor resizes to a multiple of two tokens."""
    images = transformers.GlmgaImageProcessor(patch_expand_factor=2, **GLM_SIZES)
    videos = transformers.GlmgaVideoProcessor(patch_expand_factor=2, **GLM_SIZES)
    processor = transformers.Glm46VProcessor(images, glm_tokenizer(), videos, chat_template=glm_template())
    text = glm_text("glm4v_text", processor.tokenizer)
    vision = glm_vision(model_type="glm4v_vision")
    config = transformers.GlmgaConfig(vision_config=vision, text_config=text, **glm_ids(processor.tokenizer))
    return transformers.Glm46VForConditionalGeneration(config), processor


def build_glm_ocr() -> tuple[PreTrainedModel, ProcessorMixin]:
    """As GLM-4V, without learned positions, with norms on the encoder's queries and keys. GLM-4.6V's processor."""
    processor = glm46v_processor()
    text = glm_text("glm_ocr_text", processor.tokenizer)
    config = transformers.GlmOcrConfig(vision_config=glm_vision(), text_config=text, **glm_ids(processor.tokenizer))
    return transformers.GlmOcrForConditionalGeneration(config), processor


def build_glm5_next() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Linear attention, then two layers of sparse attention that share what the first selects; several residual
    streams, experts, no positions at all. The processor pads what it does not resize."""
    sizes = {**SIZES, "temporal_patch_size": 2, "min_image_tokens": 16, "max_image_tokens": 25}
    images, videos = transformers.Glm5NextImageProcessor(**sizes), transformers.Glm5NextVideoProcessor(**sizes)
    processor = transformers.Glm5NextProcessor(images, glm_tokenizer(), videos, chat_template=glm_template())
    # Many heads score the selection: of two, both are often at zero, and ties fall differently in longer texts.
    text = tiny.text_config(
        "glm5_next_text", processor.tokenizer, **EXPERTS, num_hidden_layers=3, num_key_value_heads=HEADS,
        layer_types=["linear_attention", "indexed_attention", "indexed_attention"],
        indexer_types=["full", "full", "shared"], mlp_layer_types=["dense", "sparse", "sparse"],
        q_lora_rank=WIDTH // 2, kv_lora_rank=WIDTH // 2, qk_nope_head_dim=8, v_head_dim=8, index_n_heads=16,
        index_head_dim=8, index_topk=16, index_kpool=4, linear_num_heads=2, linear_head_dim=8, hc_mult=2,
    )  # fmt: skip
    vision = glm_vision(projection_intermediate_size=2 * WIDTH)
    config = transformers.Glm5NextConfig(vision_config=vision, text_config=text, **glm_ids(processor.tokenizer))
    return transformers.Glm5NextForConditionalGeneration(config), processor


ERNIE_TOKENS = ["<unk>", "<|begin_of_sentence|>", "</s>", "<|IMAGE_START|>", "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_END|>",
                "<|VIDEO_START|>", "<|video_pad|>", "<|VIDEO_END|>"]  # fmt: skip
ERNIE_IMAGE = "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"


def build_ernie4_5_vl_moe() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Experts of their own for image tokens, which an input with one entry per token names."""
    named = {
        "image_token": "<|IMAGE_PLACEHOLDER|>", "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>", "video_token": "<|video_pad|>", "video_start_token": "<|VIDEO_START|>",
        "video_end_token": "<|VIDEO_END|>",
    }  # fmt: skip
    tokenizer = tiny.byte_level_tokenizer(ERNIE_TOKENS, begin=None, **named)
    template = "<|begin_of_sentence|>" + tiny.chat_template("Picture 1:" + ERNIE_IMAGE, "User: ", "\n", "Assistant:")
    processor = transformers.Ernie4_5_VLMoeProcessor(
        transformers.Ernie4_5_VLMoeImageProcessor(size=PIXELS, **SIZES), tokenizer,
        transformers.Ernie4_5_VLMoeVideoProcessor(size=PIXELS, **SIZES), chat_template=template,
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = transformers.Ernie4_5_VLMoeConfig(
        vision_config={
            "depth": LAYERS, "hidden_size": WIDTH, "num_heads": HEADS, "intermediate_size": 2 * WIDTH,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_merge_size": 2,
        },
        text_config=tiny.text_config(
            "ernie4_5_vl_moe_text", tokenizer, rope_parameters=rope, moe_intermediate_size=[WIDTH, WIDTH // 2],
            moe_num_experts=4, moe_k=2, moe_num_shared_experts=1, mlp_layer_types=["dense", "sparse"],
        ),
        **token_ids(tokenizer, **{f"{name}_id": token for name, token in named.items()}),
    )  # fmt: skip
    return transformers.Ernie4_5_VLMoeForConditionalGeneration(config), processor


def build_paddleocr_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """NaViT-like encoder at native resolution, M-RoPE, ERNIE's tokens. Pixel values are a row of square patches."""
    tokenizer = tiny.byte_level_tokenizer(ERNIE_TOKENS, begin=None, image_token="<|IMAGE_PLACEHOLDER|>")
    template = "<|begin_of_sentence|>" + tiny.chat_template(ERNIE_IMAGE, "User: ", "\n", "Assistant:")
    images = transformers.PaddleOCRVLImageProcessor(size=PIXELS, **SIZES)
    processor = transformers.PaddleOCRVLProcessor(images, tokenizer, chat_template=template)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = transformers.PaddleOCRVLConfig(
        vision_config=tiny.vision_config(patch_size=4, spatial_merge_size=2),
        text_config=tiny.text_config("paddleocr_vl_text", tokenizer, rope_parameters=rope, head_dim=WIDTH // HEADS),
        **token_ids(tokenizer, image_token_id="<|IMAGE_PLACEHOLDER|>", video_token_id="<|video_pad|>",
                    vision_start_token_id="<|IMAGE_START|>", vision_end_token_id="<|IMAGE_END|>"),
    )  # fmt: skip
    return transformers.PaddleOCRVLForConditionalGeneration(config), processor


def build_hunyuan_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Learned features begin and end an image and each of its rows; M-RoPE on four axes. The processor insists on
    wrapped placeholders."""
    image, start, end = (f"<｜hy_place▁holder▁no▁{number}｜>" for number in (102, 100, 101))
    user, begin = "<｜hy_User｜>", "<｜hy_begin▁of▁sentence｜>"
    special = ["<｜hy_▁pad▁｜>", begin, "<｜hy_end▁of▁sentence｜>", user, start, end, image]
    tokenizer = tiny.byte_level_tokenizer(
        special, begin=None, image_token=image, image_start_token=start, image_end_token=end
    )
    template = begin + tiny.chat_template(f"{start}{image}{end}", "", user, "")
    processor = transformers.HunYuanVLProcessor(
        transformers.HunYuanVLImageProcessor(size=PIXELS, **SIZES), tokenizer, chat_template=template
    )
    rope = {"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0, "rope_theta": 10000.0,
            "mrope_section": [1, 1, 1, 1]}  # fmt: skip
    vision = tiny.vision_config(patch_size=4, spatial_merge_size=2, out_hidden_size=WIDTH, max_image_size=32)
    del vision["image_size"]
    config = transformers.HunYuanVLConfig(
        vision_config=vision, image_token_id=tokenizer.image_token_id, im_start_id=tokenizer.image_start_token_id,
        im_end_id=tokenizer.image_end_token_id,
        text_config=tiny.text_config("hunyuan_vl_text", tokenizer, rope_parameters=rope, head_dim=WIDTH // HEADS),
    )  # fmt: skip
    return transformers.HunYuanVLForConditionalGeneration(config), processor


def build_kimi_k25() -> tuple[PreTrainedModel, ProcessorMixin]:
    """MoonViT and DeepSeek V3: latent attention, grouped experts. The processor never enlarges, and pads in black."""
    special = ["[PAD]", "[BOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|media_begin|>",
               "<|media_content|>", "<|media_pad|>", "<|media_end|>", "<|kimi_k25_video_placeholder|>"]  # fmt: skip
    tokenizer = tiny.byte_level_tokenizer(special, begin=None)
    template = tiny.chat_template(
        "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>\n", "<|im_user|>user<|im_middle|>",
        "<|im_end|>", "<|im_assistant|>assistant<|im_middle|>",
    )  # fmt: skip
    sizes = {"patch_size": 8, "merge_size": 2, "max_patches": 30}
    images, videos = transformers.Kimi_K25ImageProcessor(**sizes), transformers.Kimi_K25VideoProcessor(**sizes)
    processor = transformers.Kimi_K25Processor(images, tokenizer, videos, chat_template=template)
    config = transformers.Kimi_K25Config(
        vision_config={
            "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "patch_size": 8, "pos_emb_height": 4, "pos_emb_width": 4,
        },
        text_config=tiny.text_config(
            "deepseek_v3", tokenizer, **EXPERTS, first_k_dense_replace=1, num_key_value_heads=HEADS,
            q_lora_rank=WIDTH // 2, kv_lora_rank=WIDTH // 2, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        ),
        projection_hidden_size=WIDTH,
        **token_ids(tokenizer, image_token_id="<|media_pad|>", video_token_id="<|kimi_k25_video_placeholder|>",
                    vision_start_token_id="<|media_begin|>", vision_end_token_id="<|media_end|>"),
    )  # fmt: skip
    return transformers.Kimi_K25ForConditionalGeneration(config), processor


def build_step3p7() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Tiles beside a global view, full and sliding attention with other numbers of heads, gates, clamped experts."""
    special = ["<｜▁pad▁｜>", "<｜begin▁of▁sentence｜>", "<|im_end|>", "<|im_start|>", "<im_start>", "<im_patch>",
               "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>"]  # fmt: skip
    tokenizer = tiny.byte_level_tokenizer(special, begin=None)
    images = transformers.Step3p7ImageProcessor(size={"height": 40, "width": 40}, patch_size=32, vision_patch_size=2)
    template = "<｜begin▁of▁sentence｜>" + tiny.chat_template(
        "<im_patch>", "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n"
    )
    processor = transformers.Step3p7Processor(images, tokenizer, chat_template=template)
    text = tiny.text_config(
        "step3p5", tokenizer, head_dim=8, layer_types=["full_attention", "sliding_attention"], sliding_window=16,
        num_sliding_attention_heads=2 * HEADS, mlp_layer_types=["dense", "sparse"], rope_theta=[50000.0, 10000.0],
        partial_rotary_factors=[0.5, 1.0], n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=WIDTH,
        share_expert_dim=WIDTH, swiglu_limits=[0.0, 7.0], swiglu_limits_shared=[0.0, 16.0],
    )  # fmt: skip
    vision = tiny.vision_config(image_size=40, patch_size=2, mlp_ratio=2.0)
    config = transformers.Step3p7Config(
        vision_config=vision, text_config=text, **token_ids(tokenizer, image_token_id="<im_patch>")
    )
    return transformers.Step3p7ForConditionalGeneration(config), processor


FAMILIES = {
    "glm4v": build_glm4v,
    "glm4v_moe": build_glm4v_moe,
    "glm46v": build_glm46v,
    "glmga": build_glmga,
    "glm_ocr": build_glm_ocr,
    "glm5_next": build_glm5_next,
    "ernie4_5_vl_moe": build_ernie4_5_vl_moe,
    "paddleocr_vl": build_paddleocr_vl,
    "hunyuan_vl": build_hunyuan_vl,
    "kimi_k25": build_kimi_k25,
    "step3p7": build_step3p7,
}
