"""LLaVA's successors: one image tower, a projector, placeholders in the text of a decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from tiny import (
    HEADS,
    IMAGE_SIZE,
    IMAGE_TOKENS,
    LAYERS,
    PATCH,
    SIZE,
    WIDTH,
    byte_level_tokenizer,
    chat_template,
    qformer_config,
    text_config,
    vision_config,
)
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin


Pair = tuple[PreTrainedModel, ProcessorMixin]

# Resolutions that images are laid out on: one row, one column or two rows of two tiles, next to the whole image.
PINPOINTS = [[IMAGE_SIZE, 2 * IMAGE_SIZE], [2 * IMAGE_SIZE, IMAGE_SIZE], [2 * IMAGE_SIZE, 2 * IMAGE_SIZE]]
CROPPED = {"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": SIZE}
# CLIP's tower puts a class token before the patches, which is then dropped.
CLIP = vision_config(model_type="clip_vision_model", projection_dim=WIDTH, hidden_act="gelu")
CLASS_TOKEN = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
SIGLIP = vision_config(model_type="siglip_vision_model", vision_use_head=False)
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
CHATML = ("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n")
COHERE = ("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
          "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>")  # fmt: skip
COHERE_TOKENS = ["<PAD>", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>",
                 "<|CHATBOT_TOKEN|>"]  # fmt: skip


def llama_tokenizer(*more: str) -> PreTrainedTokenizerFast:
    """LLaMA's special tokens and the image's."""
    return byte_level_tokenizer(["<pad>", "<s>", "</s>", "<image>", *more], begin="<s>")


def token_ids(tokenizer: PreTrainedTokenizerFast, **tokens: str) -> dict[str, int]:
    """The ids of `tokens`, under the names that a configuration has for them."""
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def build_llava_next() -> Pair:
    """Tiles at the nearest of several resolutions, padding cut off again, a learned token at every line's end."""
    tokenizer = llama_tokenizer()
    processor = transformers.LlavaNextProcessor(
        transformers.LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, **CROPPED), tokenizer,
        chat_template=chat_template("<image>\n", "[INST] ", " [/INST]", ""), **CLASS_TOKEN,
    )  # fmt: skip
    config = transformers.LlavaNextConfig(
        vision_config=CLIP, text_config=text_config("mistral", tokenizer, sliding_window=None),
        image_grid_pinpoints=PINPOINTS, image_seq_length=IMAGE_TOKENS,
        **token_ids(tokenizer, image_token_index="<image>"),
    )  # fmt: skip
    return transformers.LlavaNextForConditionalGeneration(config), processor


def build_llava_next_video() -> Pair:
    """As LLaVA-NeXT, with a processor whose first part is for videos."""
    tokenizer = llama_tokenizer("<video>")
    processor = transformers.LlavaNextVideoProcessor(
        transformers.LlavaNextVideoVideoProcessor(**CROPPED),
        transformers.LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, **CROPPED), tokenizer,
        chat_template=chat_template("<image>\n"), **CLASS_TOKEN,
    )  # fmt: skip
    config = transformers.LlavaNextVideoConfig(
        vision_config=CLIP, text_config=text_config("llama", tokenizer), image_grid_pinpoints=PINPOINTS,
        image_seq_length=IMAGE_TOKENS, video_seq_length=IMAGE_TOKENS // 4,
        **token_ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )  # fmt: skip
    return transformers.LlavaNextVideoForConditionalGeneration(config), processor


def build_llava_onevision() -> Pair:
    """As LLaVA-NeXT on SigLIP and Qwen2; features of many tiles are shrunk, here those of more than two."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    tokenizer = byte_level_tokenizer(special, begin=None)
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(image_grid_pinpoints=PINPOINTS, size=SIZE), tokenizer,
        transformers.LlavaOnevisionVideoProcessor(size=SIZE), num_image_tokens=IMAGE_TOKENS, vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2", chat_template=chat_template("<image>\n", *CHATML),
    )  # fmt: skip
    config = transformers.LlavaOnevisionConfig(
        vision_config=SIGLIP, text_config=text_config("qwen2", tokenizer), image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_2",
        **token_ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )  # fmt: skip
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def build_vipllava() -> Pair:
    """As LLaVA, with the features of several layers of the tower side by side."""
    tokenizer = llama_tokenizer()
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(**CROPPED), tokenizer, chat_template=chat_template("<image>\n"), **CLASS_TOKEN
    )
    config = transformers.VipLlavaConfig(
        vision_config=CLIP | {"num_hidden_layers": 4}, text_config=text_config("llama", tokenizer),
        vision_feature_layer=[-1, -2, -4, 2], image_seq_length=IMAGE_TOKENS,
        **token_ids(tokenizer, image_token_index="<image>"),
    )  # fmt: skip
    return transformers.VipLlavaForConditionalGeneration(config), processor


def build_video_llava() -> Pair:
    """A tower for images and one for videos; no gradient, its image processor works on NumPy arrays."""
    tokenizer = llama_tokenizer("<video>")
    processor = transformers.VideoLlavaProcessor(
        transformers.VideoLlavaImageProcessor(**CROPPED), transformers.VideoLlavaVideoProcessor(**CROPPED), tokenizer,
        chat_template=chat_template("<image>\n"), **CLASS_TOKEN,
    )  # fmt: skip
    config = transformers.VideoLlavaConfig(
        vision_config=CLIP, text_config=text_config("llama", tokenizer), image_seq_length=IMAGE_TOKENS,
        **token_ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )  # fmt: skip
    return transformers.VideoLlavaForConditionalGeneration(config), processor


def pixtral_parts(text_type: str, **more: Any) -> tuple[ProcessorMixin, dict[str, Any]]:
    """Pixtral's processor, and the configuration of its tower and of a decoder of Mistral's."""
    special = ["<pad>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    tokenizer = byte_level_tokenizer(special, begin="<s>")
    processor = transformers.PixtralProcessor(
        transformers.PixtralImageProcessor(size={"longest_edge": 2 * IMAGE_SIZE}, patch_size=PATCH), tokenizer, patch_size=PATCH,
        spatial_merge_size=2, chat_template="<s>" + chat_template("[IMG]", "[INST]", "", "[/INST]"),
    )  # fmt: skip
    return processor, {
        "vision_config": vision_config(model_type="pixtral") | {"image_size": 2 * IMAGE_SIZE},
        "text_config": text_config(text_type, tokenizer, **more),
        "spatial_merge_size": 2, **token_ids(tokenizer, image_token_index="[IMG]"),
    }  # fmt: skip


def build_mistral3() -> Pair:
    """Pixtral at any resolution, patches merged by four, a break token after every line, heads of a width of their own."""
    processor, parts = pixtral_parts("mistral", head_dim=WIDTH // 2, sliding_window=None)
    return transformers.Mistral3ForConditionalGeneration(
        transformers.Mistral3Config(tie_word_embeddings=False, **parts)
    ), processor


def build_mistral_large4() -> Pair:
    """As Mistral 3; every token attends to 16 that an indexer picks, keys are compressed and shared, half are experts."""
    # With few heads many tokens score exactly zero, and which of them are picked depends on the length of the batch.
    processor, parts = pixtral_parts(
        "mistral_large4_text", num_hidden_layers=4, num_key_value_heads=HEADS, moe_intermediate_size=WIDTH,
        n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=2, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8, index_topk=16, index_head_dim=16, index_n_heads=16,
        indexer_types=["full", "full", "shared", "full"], kv_source_layers=[0, 1, 1, 3],
    )  # fmt: skip
    model = transformers.MistralLarge4ForConditionalGeneration(transformers.MistralLarge4Config(**parts))
    for name, parameter in model.named_parameters():
        if name.endswith("softmax_scaling.scale"):
            # Queries grow with the logarithm of the position. At zero the small biases would leave next to no query.
            torch.nn.init.constant_(parameter, 0.3)
    return model, processor


def build_lighton_ocr() -> Pair:
    """Pixtral's tower and Qwen3; the image's tokens are in one row, without breaks."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_pad|>", "<|vision_end|>"]
    tokenizer = byte_level_tokenizer(
        special, begin=None, image_token="<|image_pad|>", image_break_token="<|vision_pad|>",
        image_end_token="<|vision_end|>",
    )  # fmt: skip
    processor = transformers.LightOnOcrProcessor(
        transformers.PixtralImageProcessor(size={"longest_edge": 2 * IMAGE_SIZE}, patch_size=2 * PATCH), tokenizer,
        patch_size=PATCH, spatial_merge_size=2, chat_template=chat_template("<|image_pad|>", *CHATML),
    )  # fmt: skip
    config = transformers.LightOnOcrConfig(
        vision_config=vision_config(model_type="pixtral") | {"image_size": 2 * IMAGE_SIZE},
        text_config=text_config("qwen3", tokenizer, head_dim=WIDTH // HEADS), spatial_merge_size=2,
        image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    return transformers.LightOnOcrForConditionalGeneration(config), processor


def build_aya_vision() -> Pair:
    """Tiles with their numbers in words, pixel shuffle, gated projector, Cohere 2; pads on the left."""
    images = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL",
              *(f"TILE_{tile}" for tile in range(1, 5))]  # fmt: skip
    tokenizer = byte_level_tokenizer(COHERE_TOKENS + images, begin="<BOS_TOKEN>")
    processor = transformers.AyaVisionProcessor(
        transformers.GotOcr2ImageProcessor(size=SIZE, max_patches=4), tokenizer, patch_size=PATCH, img_size=IMAGE_SIZE,
        downsample_factor=2, chat_template="<BOS_TOKEN>" + chat_template("<image>", *COHERE),
    )  # fmt: skip
    config = transformers.AyaVisionConfig(
        vision_config=SIGLIP, text_config=text_config("cohere2", tokenizer, **SLIDING), downsample_factor=2,
        **token_ids(tokenizer, image_token_index="<|IMG_PATCH|>"),
    )  # fmt: skip
    return transformers.AyaVisionForConditionalGeneration(config), processor


def build_cohere2_vision() -> Pair:
    """As Aya Vision, with tiles told apart by line breaks only."""
    images = {"boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>", "image_token": "<|IMG_PATCH|>",
              "img_line_break_token": "<|IMG_LINE_BREAK|>"}  # fmt: skip
    tokenizer = byte_level_tokenizer(COHERE_TOKENS + list(images.values()), begin="<BOS_TOKEN>", **images)
    # This `patch_size` is the number of tokens along a side of a tile.
    processor = transformers.Cohere2VisionProcessor(
        transformers.Cohere2VisionImageProcessor(size=SIZE, max_patches=4, patch_size=IMAGE_SIZE // PATCH // 2), tokenizer,
        chat_template="<BOS_TOKEN>" + chat_template("<|IMG_PATCH|>", *COHERE),
    )  # fmt: skip
    config = transformers.Cohere2VisionConfig(
        vision_config=SIGLIP, text_config=text_config("cohere2", tokenizer, **SLIDING), downsample_factor=2,
        alignment_intermediate_size=2 * WIDTH, image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    return transformers.Cohere2VisionForConditionalGeneration(config), processor


def build_cohere_compass() -> Pair:
    """Qwen3-VL's tower with deepstack; M-RoPE in the sliding-window layer, no positions in the full one."""
    images = {"image_token": "<|IMAGE_PAD|>", "video_token": "<|VIDEO_PAD|>", "vision_start_token": "<|VISION_START|>",
              "vision_end_token": "<|VISION_END|>"}  # fmt: skip
    tokenizer = byte_level_tokenizer(COHERE_TOKENS + list(images.values()), begin="<BOS_TOKEN>")
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    pixels = {"shortest_edge": IMAGE_SIZE**2, "longest_edge": 4 * IMAGE_SIZE**2}
    processor = transformers.CohereCompassProcessor(
        transformers.CohereCompassImageProcessor(size=pixels, **sizes), tokenizer, transformers.CohereCompassVideoProcessor(size=pixels, **sizes),
        chat_template="<BOS_TOKEN>" + chat_template("<|VISION_START|><|IMAGE_PAD|><|VISION_END|>", *COHERE),
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = transformers.CohereCompassConfig(
        vision_config={
            "depth": LAYERS, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_heads": HEADS,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": WIDTH,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
        },
        text_config=text_config("cohere_compass_text", tokenizer, **SLIDING,
                                rope_parameters={"sliding_attention": rope, "full_attention": None}),
        **token_ids(tokenizer, **{f"{name}_id": token for name, token in images.items()}),
    )  # fmt: skip
    return transformers.CohereCompassForConditionalGeneration(config), processor


def build_granite4_vision() -> Pair:
    """LLaVA-NeXT's tiles, six Q-Formers on windows of the tower, one for every layer of the language model."""
    special = ["<|pad|>", "<|start_of_role|>", "<|end_of_text|>", "<|end_of_role|>", "<image>"]
    tokenizer = byte_level_tokenizer(special, begin=None)
    role = "<|start_of_role|>{}<|end_of_role|>"
    processor = transformers.Granite4VisionProcessor(
        transformers.LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, **CROPPED), tokenizer, patch_size=PATCH // 2,
        vision_feature_select_strategy="full", downsample_rate="2/4",
        chat_template=chat_template("<image>\n", role.format("user"), "<|end_of_text|>\n", role.format("assistant")),
    )  # fmt: skip
    config = transformers.Granite4VisionConfig(
        # Heads of the Q-Formers are 64 wide, always.
        vision_config=SIGLIP | {"hidden_size": 64, "patch_size": PATCH // 2},
        text_config=text_config("granite4_vision_text", tokenizer, num_hidden_layers=6, embedding_multiplier=1.5,
                                residual_multiplier=0.5, attention_multiplier=0.4, logits_scaling=0.5),
        qformer_config=qformer_config(model_type="blip_2_qformer", num_hidden_layers=1, use_qformer_text_input=False),
        vision_feature_select_strategy="full", downsample_rate="2/4", deepstack_layer_map=[[-2, 0], [-1, 1]],
        spatial_target_layers=[2, 3, 4, 5], projector_dropout=0.0, image_grid_pinpoints=PINPOINTS,
        image_seq_length=IMAGE_TOKENS, **token_ids(tokenizer, image_token_index="<image>"),
    )  # fmt: skip
    return transformers.Granite4VisionForConditionalGeneration(config), processor


def build_aria() -> Pair:
    """Queries that read the tower by cross attention, experts; every image becomes 980 pixels high and wide."""
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<fim_prefix>", "<|img|>", "<fim_suffix>"]
    tokenizer = byte_level_tokenizer(special, begin=None, image_token="<|img|>")
    processor = transformers.AriaProcessor(
        transformers.AriaImageProcessor(max_image_size=980, min_image_size=336), tokenizer, size_conversion={980: 16},
        chat_template=chat_template("<fim_prefix><|img|><fim_suffix>", *CHATML),
    )  # fmt: skip
    config = transformers.AriaConfig(
        vision_config=vision_config(model_type="idefics3_vision") | {"image_size": 980, "patch_size": 140},
        text_config=text_config("aria_text", tokenizer, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        projector_patch_to_query_dict={(980 // 140) ** 2: 16}, **token_ids(tokenizer, image_token_index="<|img|>"),
    )  # fmt: skip
    return transformers.AriaForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], Pair]] = {
    "llava_next": build_llava_next,
    "llava_next_video": build_llava_next_video,
    "llava_onevision": build_llava_onevision,
    "vipllava": build_vipllava,
    "video_llava": build_video_llava,
    "mistral3": build_mistral3,
    "mistral_large4": build_mistral_large4,
    "lighton_ocr": build_lighton_ocr,
    "aya_vision": build_aya_vision,
    "cohere2_vision": build_cohere2_vision,
    "cohere_compass": build_cohere_compass,
    "granite4_vision": build_granite4_vision,
    "aria": build_aria,
}
