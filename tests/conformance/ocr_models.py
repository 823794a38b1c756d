"""Tiny random models of the families that read documents, and of those that turn images into discrete tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from tiny import (
    HEADS,
    IMAGE_SIZE,
    LAYERS,
    PATCH,
    SIZE,
    WIDTH,
    byte_level_tokenizer,
    chat_template,
    text_config,
    vision_config,
)
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin


SMALL = 4  # patches of the SAM towers, which halve their grid twice
SAM_TOKENS = (IMAGE_SIZE // SMALL // 4) ** 2
CODES = 64


def sam_config(**more: Any) -> dict[str, Any]:
    """SAM's tower: one layer that sees windows and one that sees all."""
    return {
        "hidden_size": WIDTH, "output_channels": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "image_size": IMAGE_SIZE, "patch_size": SMALL, "window_size": 3, "global_attn_indexes": [1],
        "mlp_dim": 2 * WIDTH, **more,
    }  # fmt: skip


def deepseek_text(model_type: str, tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """DeepSeek's decoder: a dense layer, then experts and two shared ones."""
    return text_config(
        model_type, tokenizer, mlp_layer_types=["dense", "sparse"], n_routed_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=WIDTH, **more,
    )  # fmt: skip


DEEPSEEK_TOKENS = ["<｜▁pad▁｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<image>", "<|det|>", "<|/det|>"]


def build_deepseek_ocr2() -> tuple[PreTrainedModel, ProcessorMixin]:
    """SAM, then a decoder whose learned queries are the image tokens; tiles and a full view; experts."""
    tokenizer = byte_level_tokenizer(DEEPSEEK_TOKENS, begin="<｜begin▁of▁sentence｜>")
    processor = transformers.DeepseekOcr2Processor(
        transformers.DeepseekOcr2ImageProcessor(size=SIZE, tile_size=IMAGE_SIZE), tokenizer, chat_template("<image>\n", "", "", ""),
        patch_size=SMALL, downsample_ratio=4,
    )  # fmt: skip
    encoder = text_config("deepseek_ocr2_encoder", tokenizer)
    config = transformers.DeepseekOcr2Config(
        vision_config={"sam_config": sam_config(downsample_channels=[WIDTH, WIDTH]), "encoder_config": encoder},
        text_config=deepseek_text("deepseek_ocr2_text", tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    model = transformers.DeepseekOcr2ForConditionalGeneration(config)
    # The library has 144 queries a tile, for 768 pixels in patches of 16, and no setting for it.
    model.model.vision_tower.query_768_resolution = nn.Embedding(SAM_TOKENS, WIDTH)
    return model, processor


def build_unlimited_ocr() -> tuple[PreTrainedModel, ProcessorMixin]:
    """SAM and CLIP in a row, tiles with a token after every line, experts, a window that keeps the whole question."""
    tokenizer = byte_level_tokenizer(DEEPSEEK_TOKENS, begin="<｜begin▁of▁sentence｜>")
    processor = transformers.UnlimitedOcrProcessor(
        transformers.UnlimitedOcrImageProcessor(size=SIZE, tile_size=IMAGE_SIZE, max_patches=4), tokenizer,
        chat_template("<image>\n", "", "", ""), patch_size=SMALL, downsample_ratio=4,
    )  # fmt: skip
    config = transformers.UnlimitedOcrConfig(
        vision_config={"sam_config": sam_config(downsample_channels=[WIDTH, WIDTH]),
                       "encoder_config": {**vision_config(), "patch_size": 4 * SMALL}},
        text_config=deepseek_text("unlimited_ocr_text", tokenizer, sliding_window=8),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return transformers.UnlimitedOcrForConditionalGeneration(config), processor


GOT_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>"]


def got_config(kind: type, tokenizer: PreTrainedTokenizerFast) -> Any:
    """SAM's tower before a Qwen2 decoder."""
    return kind(
        vision_config=sam_config(), text_config=text_config("qwen2", tokenizer, tie_word_embeddings=True),
        image_token_index=tokenizer.convert_tokens_to_ids("<imgpad>"), image_seq_length=SAM_TOKENS,
    )  # fmt: skip


def build_got_ocr2() -> tuple[PreTrainedModel, ProcessorMixin]:
    """SAM and Qwen2. The processor takes images in a flat list only and has no chat template."""
    tokenizer = byte_level_tokenizer(GOT_TOKENS, begin=None)
    processor = transformers.GotOcr2Processor(transformers.GotOcr2ImageProcessor(size=SIZE), tokenizer)
    processor.num_image_tokens = SAM_TOKENS
    return transformers.GotOcr2ForConditionalGeneration(got_config(transformers.GotOcr2Config, tokenizer)), processor


def build_pp_chart2table() -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model of GOT-OCR 2. The template, not the processor, writes one placeholder for every image token."""
    tokenizer = byte_level_tokenizer(GOT_TOKENS, begin=None)
    image = "<img>" + "<imgpad>" * SAM_TOKENS + "</img>\n"
    processor = transformers.PPChart2TableProcessor(
        transformers.PPChart2TableImageProcessor(size=SIZE), tokenizer,
        chat_template(image, "<|im_start|>user\n", "<|im_end|>", "<|im_start|>assistant\n"),
    )  # fmt: skip
    return transformers.GotOcr2ForConditionalGeneration(
        got_config(transformers.PPChart2TableConfig, tokenizer)
    ), processor


def build_granite_docling() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Tiles and a thumbnail, pixel shuffle, features of an early layer added to an early layer of the decoder."""
    rows = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    special = ["<|pad|>", "<|start_of_text|>", "<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<image>",
               "<fake_token_around_image>", "<global-img>", *rows]  # fmt: skip
    tokenizer = byte_level_tokenizer(special, begin=None)
    processor = transformers.GraniteDoclingProcessor(
        transformers.GraniteDoclingImageProcessor(size=SIZE, max_patches=4), tokenizer, image_seq_len=4,
        chat_template=chat_template("<image>", "<|start_of_role|>user<|end_of_role|>", "<|end_of_text|>\n",
                                    "<|start_of_role|>assistant<|end_of_role|>"),
    )  # fmt: skip
    config = transformers.GraniteDoclingConfig(
        vision_config={**vision_config(), "out_hidden_size": WIDTH, "scale_factor": 2, "deepstack_visual_indexes": [0]},
        text_config=text_config("granite_docling_text", tokenizer, embedding_multiplier=2.0, logits_scaling=1.0,
                                residual_multiplier=1.0, attention_multiplier=(WIDTH // HEADS) ** -0.5),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return transformers.GraniteDoclingForConditionalGeneration(config), processor


def build_fast_vlm() -> tuple[PreTrainedModel, ProcessorMixin]:
    """A convolutional tower whose map is read as tokens. ConvNext stands for the published FastViT, which needs timm."""
    tokenizer = byte_level_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"], begin=None)
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=SIZE), tokenizer, patch_size=PATCH,
        vision_feature_select_strategy="full", num_additional_image_tokens=0,
        chat_template=chat_template("<image>\n", "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n"),
    )  # fmt: skip
    tower = transformers.ConvNextConfig(
        patch_size=4, hidden_sizes=[WIDTH, WIDTH], depths=[1, 1], num_stages=2, image_size=IMAGE_SIZE
    )
    tower.hidden_size = WIDTH
    config = transformers.FastVlmConfig(
        vision_config=tower, text_config=text_config("qwen2", tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=(IMAGE_SIZE // PATCH) ** 2,
    )  # fmt: skip
    return transformers.FastVlmForConditionalGeneration(config), processor


def build_chameleon() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Images become words of the vocabulary, by the nearest of 64 codes, so no gradient reaches them."""
    codes = ["IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z" for code in range(CODES)]
    special = ["<pad>", "<s>", "</s>", "<image>", "<racm3:break>", "<eoss>", "<reserved08706>", *codes]
    tokenizer = byte_level_tokenizer(special, begin="<s>")
    tokenizer.sep_token = "<reserved08706>"
    processor = transformers.ChameleonProcessor(
        transformers.ChameleonImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=SIZE),
        tokenizer,
        image_seq_length=16,
    )
    text = text_config("chameleon", tokenizer)
    del text["model_type"]
    config = transformers.ChameleonConfig(
        vq_config={"embed_dim": WIDTH, "num_embeddings": CODES, "latent_channels": WIDTH, "resolution": IMAGE_SIZE,
                   "base_channels": WIDTH, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1},
        vocabulary_map=tokenizer.get_vocab(), **text,
    )  # fmt: skip
    return transformers.ChameleonForConditionalGeneration(config), processor


def build_emu3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """As Chameleon, at native resolution; its image processor is the only one, and takes no tensors with gradients."""
    named = {"image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>",
             "image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>"}  # fmt: skip
    codes = [f"<|visual token {code:06d}|>" for code in range(CODES)]
    special = ["<|endoftext|>", "<|extra_203|>", "<|extra_204|>", "<|extra_200|>", *named.values(), *codes]
    tokenizer = byte_level_tokenizer(special, begin=None, **named)
    processor = transformers.Emu3Processor(
        transformers.Emu3ImageProcessor(min_pixels=IMAGE_SIZE**2, max_pixels=IMAGE_SIZE**2), tokenizer,
        chat_template=chat_template("<image>", "User: ", ". ", "Assistant:"),
    )  # fmt: skip
    config = transformers.Emu3Config(
        vq_config={"codebook_size": CODES, "base_channels": WIDTH, "channel_multiplier": [1, 1, 1, 1],
                   "num_res_blocks": 1, "hidden_size": WIDTH, "temporal_downsample_factor": 4},
        text_config=text_config("emu3_text_model", tokenizer, attention_dropout=0.0),
        vocabulary_map=tokenizer.get_vocab(),
    )  # fmt: skip
    model = transformers.Emu3ForConditionalGeneration(config)
    # Else the random tower's outputs are so alike that one code is nearest to all.
    nn.init.constant_(model.model.vqmodel.encoder.norm_out.weight, 16.0)
    return model, processor


# Not here: evolla reads proteins, not images; pi0 gives robot actions, not words.
FAMILIES: dict[str, Callable[[], tuple[PreTrainedModel, ProcessorMixin]]] = {
    "deepseek_ocr2": build_deepseek_ocr2,
    "unlimited_ocr": build_unlimited_ocr,
    "got_ocr2": build_got_ocr2,
    "pp_chart2table": build_pp_chart2table,
    "granite_docling": build_granite_docling,
    "fast_vlm": build_fast_vlm,
    "chameleon": build_chameleon,
    "emu3": build_emu3,
}
