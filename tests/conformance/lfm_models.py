"""Tiny models of the LFM-VL families: short convolutions among the layers of attention."""

from __future__ import annotations

import tiny
import transformers
from tiny import HEADS, WIDTH
from transformers import PreTrainedModel, ProcessorMixin


def build_lfm2_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """SigLIP 2 on padded rows of patches, convolution and attention. The processor cuts 2 x 2 tiles and a thumbnail."""
    special = ["<|pad|>", "<|startoftext|>", "<|im_end|>", "<|im_start|>", "<image>", "<|image_start|>",
               "<|image_end|>", "<|img_thumbnail|>",
               *(f"<|img_row_{row}_col_{col}|>" for row in range(1, 5) for col in range(1, 5))]  # fmt: skip
    tokenizer = tiny.byte_level_tokenizer(special, begin="<|startoftext|>")
    template = "<|startoftext|>" + tiny.chat_template(
        "<image>", "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n"
    )
    images = transformers.Lfm2VlImageProcessor(
        encoder_patch_size=8, tile_size=32, min_tiles=2, max_tiles=4, min_image_tokens=2, max_image_tokens=4
    )
    processor = transformers.Lfm2VlProcessor(images, tokenizer, chat_template=template)
    vision = tiny.vision_config(model_type="siglip2_vision_model", num_patches=16, vision_use_head=False)
    del vision["image_size"]
    config = transformers.Lfm2VlConfig(
        vision_config=vision, projector_hidden_size=2 * WIDTH, downsample_factor=2,
        text_config=tiny.text_config("lfm2", tokenizer, layer_types=["conv", "full_attention"],
                                     block_auto_adjust_ff_dim=False),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return transformers.Lfm2VlForConditionalGeneration(config), processor


def build_lfm3_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Convolution and attention in the encoder too, full and sliding in the decoder. Qwen2-VL's image processor."""
    special = ["<|pad|>", "<|startoftext|>", "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>",
               "<|image_pad|>", "<|video_pad|>"]  # fmt: skip
    tokenizer = tiny.byte_level_tokenizer(special, begin=None)
    template = "<|startoftext|>" + tiny.chat_template(
        "<|vision_start|><|image_pad|><|vision_end|>", "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n"
    )
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2,
             "size": {"shortest_edge": 32**2, "longest_edge": 40**2}}  # fmt: skip
    images, videos = transformers.Qwen2VLImageProcessor(**sizes), transformers.Qwen3VLVideoProcessor(**sizes)
    processor = transformers.Lfm3VlProcessor(images, tokenizer, videos, chat_template=template)
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in (
        ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"), ("vision_end", "vision_end")
    )}  # fmt: skip
    config = transformers.Lfm3VlConfig(
        vision_config={
            "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2,
            "num_attention_heads": HEADS, "num_key_value_heads": HEADS // 2, "patch_size": 4,
            "layer_types": ["conv", "full_attention"],
        },
        text_config=tiny.text_config(
            "lfm3", tokenizer, num_hidden_layers=3, head_dim=8, sliding_window=16,
            layer_types=["conv", "full_attention", "sliding_attention"],
        ),
        projector_hidden_size=2 * WIDTH, **ids,
    )  # fmt: skip
    return transformers.Lfm3VlForConditionalGeneration(config), processor


FAMILIES = {"lfm2_vl": build_lfm2_vl, "lfm3_vl": build_lfm3_vl}
