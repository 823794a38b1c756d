"""Families that cut an image into tiles, and the DeepSeek lineage that pads it to a square."""

from __future__ import annotations

from typing import Any

import tiny
import transformers
from tiny import HEADS, IMAGE_SIZE, IMAGE_TOKENS, LAYERS, PATCH, SIZE, WIDTH
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin


# Two rows and two columns: what every processor here makes of a square canvas, with a thumbnail as fifth tile.
TILES = 4
SHUFFLED_TOKENS = IMAGE_TOKENS // 4
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# As an expression, because Jinja drops a line break that follows a block.
PARAGRAPH = "{{ '\\n\\n' }}"
DEEPSEEK = ["<｜▁pad▁｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<image_placeholder>"]


def chatml_template(image: str) -> str:
    """The turns of Qwen's language models."""
    return tiny.chat_template(image, "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n")


def build_llama4() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Tiles in bfloat16 and a global one after them, pixel shuffle, chunked and full attention, experts."""
    special = ["<|finetune_right_pad|>", "<|begin_of_text|>", "<|eot|>", "<|header_start|>", "<|header_end|>",
               "<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>", "<|image|>",
               "<|patch|>"]  # fmt: skip
    tokenizer = tiny.byte_level_tokenizer(special, begin="<|begin_of_text|>")
    # Its chat template is a default argument of the class.
    processor = transformers.Llama4Processor(
        transformers.Llama4ImageProcessor(size=SIZE, max_patches=TILES), tokenizer, patch_size=PATCH
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = transformers.Llama4Config(
        vision_config=tiny.vision_config(
            intermediate_size=4 * WIDTH, projector_input_dim=2 * WIDTH, projector_output_dim=2 * WIDTH,
            vision_output_dim=2 * WIDTH, rope_parameters=rope,
        ),
        text_config=tiny.text_config(
            "llama4_text", tokenizer, head_dim=WIDTH // HEADS, intermediate_size_mlp=2 * WIDTH, no_rope_layers=[1, 0],
            attention_chunk_size=24, moe_layers=[1], num_local_experts=4, num_experts_per_tok=2, rope_parameters=rope,
        ),
        boi_token_index=tokenizer.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<|image_end|>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
    )  # fmt: skip
    return transformers.Llama4ForConditionalGeneration(config), processor


def internvl_parts(
    text_type: str,
) -> tuple[PreTrainedTokenizerFast, transformers.GotOcr2ImageProcessor, dict[str, Any]]:
    """What InternVL and Qianfan-OCR share: tokenizer, tiling processor and the arguments of the configuration."""
    tokenizer = tiny.byte_level_tokenizer(
        [*CHATML, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"], begin=None, start_image_token="<img>",
        end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>",
    )  # fmt: skip
    config = {
        "vision_config": tiny.vision_config(),
        "text_config": tiny.text_config(text_type, tokenizer, head_dim=WIDTH // HEADS),
        "image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"), "image_seq_length": SHUFFLED_TOKENS,
    }  # fmt: skip
    return tokenizer, transformers.GotOcr2ImageProcessor(size=SIZE, max_patches=TILES), config


def build_internvl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """InternViT with layer scale, pixel shuffle, Qwen2. The processor cuts tiles and sorts them by place in the text."""
    tokenizer, image_processor, config = internvl_parts("qwen2")
    processor = transformers.InternVLProcessor(
        image_processor, tokenizer, transformers.InternVLVideoProcessor(size=SIZE), image_seq_length=SHUFFLED_TOKENS,
        chat_template=chatml_template("<IMG_CONTEXT>\n"),
    )  # fmt: skip
    return transformers.InternVLForConditionalGeneration(transformers.InternVLConfig(**config)), processor


def build_qianfan_ocr() -> tuple[PreTrainedModel, ProcessorMixin]:
    """As InternVL, with Qwen3. Its text has `<image>` where the processor writes tokens of another name."""
    tokenizer, image_processor, config = internvl_parts("qwen3")
    config["vision_config"]["drop_path_rate"] = 0.0
    processor = transformers.QianfanOCRProcessor(
        image_processor, tokenizer, image_seq_length=SHUFFLED_TOKENS, chat_template=chatml_template("<image>\n")
    )
    return transformers.QianfanOCRForConditionalGeneration(transformers.QianfanOCRConfig(**config)), processor


def build_ovis2() -> tuple[PreTrainedModel, ProcessorMixin]:
    """A probability over a visual vocabulary for every patch, whose embeddings are mixed by it. Tiles with a grid."""
    indicators = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer = tiny.byte_level_tokenizer([*CHATML, "<image>", "<IMG_ATOM>", *indicators], begin=None)
    processor = transformers.Ovis2Processor(
        transformers.Ovis2ImageProcessor(size=SIZE, crop_to_patches=True, max_patches=TILES), tokenizer,
        image_seq_length=SHUFFLED_TOKENS, chat_template=chatml_template("<image>\n"),
    )  # fmt: skip
    config = transformers.Ovis2Config(
        vision_config=tiny.vision_config(vocab_size=40, hidden_stride=2, num_visual_indicator_tokens=len(indicators)),
        text_config=tiny.text_config("qwen2", tokenizer), vocab_size=len(tokenizer), hidden_size=WIDTH,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(indicators),
    )  # fmt: skip
    return transformers.Ovis2ForConditionalGeneration(config), processor


def build_janus() -> tuple[PreTrainedModel, ProcessorMixin]:
    """An image encoder of its own beside a VQ decoder that answers never use. The processor pads to a square."""
    boundaries = {"boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_placeholder>"}
    tokenizer = tiny.byte_level_tokenizer(
        [*DEEPSEEK, "<begin_of_image>", "<end_of_image>"], begin=DEEPSEEK[1], **boundaries
    )
    processor = transformers.JanusProcessor(
        transformers.JanusImageProcessor(size=SIZE), tokenizer, num_image_tokens=IMAGE_TOKENS,
        chat_template=tiny.chat_template("<image_placeholder>\n", "<|User|>: ", PARAGRAPH, "<|Assistant|>:"),
    )  # fmt: skip
    config = transformers.JanusConfig(
        vision_config={
            "hidden_size": WIDTH, "mlp_ratio": 2, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "image_size": IMAGE_SIZE, "patch_size": PATCH, "projection_dim": WIDTH, "num_image_tokens": IMAGE_TOKENS,
        },
        vq_config={
            "embed_dim": 4, "num_embeddings": 16, "latent_channels": 32, "base_channels": 32, "num_res_blocks": 1,
            "channel_multiplier": [1, 1], "projection_dim": WIDTH, "image_token_embed_dim": WIDTH,
        },
        text_config=tiny.text_config("llama", tokenizer), image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    return transformers.JanusForConditionalGeneration(config), processor


def deepseek_parts() -> tuple[PreTrainedTokenizerFast, dict[str, Any], dict[str, Any]]:
    """What both DeepSeek-VLs share: tokenizer, arguments of the processor and of the configuration."""
    tokenizer = tiny.byte_level_tokenizer(DEEPSEEK, begin=DEEPSEEK[1], image_token="<image_placeholder>")
    processor = {
        "num_image_tokens": IMAGE_TOKENS,
        "chat_template": tiny.chat_template("<image_placeholder>", "User: ", PARAGRAPH, "Assistant:"),
    }
    config = {
        "vision_config": tiny.vision_config(model_type="siglip_vision_model", vision_use_head=False),
        "text_config": tiny.text_config("llama", tokenizer), "image_token_id": tokenizer.image_token_id,
    }  # fmt: skip
    return tokenizer, processor, config


def build_deepseek_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """SigLIP tower, two-layer aligner, LLaMA. The processor pads to a square."""
    tokenizer, arguments, config = deepseek_parts()
    processor = transformers.DeepseekVLProcessor(
        transformers.DeepseekVLImageProcessor(size=SIZE), tokenizer, **arguments
    )
    return transformers.DeepseekVLForConditionalGeneration(transformers.DeepseekVLConfig(**config)), processor


def build_deepseek_vl_hybrid() -> tuple[PreTrainedModel, ProcessorMixin]:
    """As DeepSeek-VL, with SAM's encoder on a second, larger copy of the image."""
    tokenizer, arguments, config = deepseek_parts()
    large = 2 * IMAGE_SIZE
    image_processor = transformers.DeepseekVLHybridImageProcessor(
        size=SIZE, high_res_size={"height": large, "width": large}
    )
    processor = transformers.DeepseekVLHybridProcessor(image_processor, tokenizer, **arguments)
    # One layer with windows, one with global attention, whose output is added by a weight that starts at zero.
    sam = {
        "hidden_size": WIDTH, "output_channels": WIDTH // 2, "num_hidden_layers": LAYERS, "mlp_dim": 2 * WIDTH,
        "num_attention_heads": HEADS, "image_size": large, "patch_size": PATCH, "window_size": 4,
        "global_attn_indexes": [1],
    }  # fmt: skip
    model = transformers.DeepseekVLHybridForConditionalGeneration(
        transformers.DeepseekVLHybridConfig(high_res_vision_config=sam, **config)
    )
    model.model.high_res_vision_alpha.data.fill_(0.5)
    return model, processor


FAMILIES = {
    "llama4": build_llama4,
    "internvl": build_internvl,
    "qianfan_ocr": build_qianfan_ocr,
    "ovis2": build_ovis2,
    "janus": build_janus,
    "deepseek_vl": build_deepseek_vl,
    "deepseek_vl_hybrid": build_deepseek_vl_hybrid,
}
