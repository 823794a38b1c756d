"""Tiny random models of the newest families: windows, slices, hybrids, sparse attention and experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from tiny import (
    HEADS,
    IMAGE_SIZE,
    LAYERS,
    PATCH,
    WIDTH,
    byte_level_tokenizer,
    chat_template,
    text_config,
    vision_config,
)
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin


SMALL = 4  # patches of those towers that merge 2 x 2 of them
HEAD = WIDTH // HEADS
CHATML = ("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n")
SQUARE = {"height": 16, "width": 16}


def ids(tokenizer: PreTrainedTokenizerFast, **tokens: str) -> dict[str, int]:
    """Token ids under the names that a config wants."""
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def build_molmo2() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Overlapping crops and a small view, patches pooled 2 x 2 by attention, image tokens that see each other."""
    special = ["<|endoftext|>", "<|bos|>", "<|im_end|>", "<|im_start|>", "<|image|>", "<|video|>", "<im_patch>",
               "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>",
               "<im_low>"]  # fmt: skip
    tokenizer = byte_level_tokenizer(special, begin=None)
    sizes = {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "patch_size": PATCH}
    processor = transformers.Molmo2Processor(
        image_processor=transformers.Molmo2ImageProcessor(max_crops=4, overlap_margins=[1, 1], **sizes),
        video_processor=transformers.Molmo2VideoProcessor(**sizes), tokenizer=tokenizer,
        chat_template=chat_template("<|image|>", *CHATML),
    )  # fmt: skip
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD}
    config = transformers.Molmo2Config(
        vision_config={"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
                       "image_size": [IMAGE_SIZE, IMAGE_SIZE], "patch_size": PATCH, **heads},
        adapter_config={"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "text_hidden_size": WIDTH,
                        "vision_feature_layer": [1, 0], **heads},
        text_config=text_config("molmo2_text", tokenizer, head_dim=HEAD, additional_vocab_size=8),
        **ids(tokenizer, image_start_token_id="<im_start>", low_res_image_start_token_id="<low_res_im_start>",
              image_end_token_id="<im_end>", image_patch_id="<im_patch>", frame_start_token_id="<frame_start>",
              frame_end_token_id="<frame_end>"),
    )  # fmt: skip
    return transformers.Molmo2ForConditionalGeneration(config), processor


MUSE_TOKENS = ["<|finetune_right_pad|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot|>", "<|header_start|>",
               "<|header_end|>", "<|patch|>", "<|image_start|>", "<|image_end|>", "<|video|>", "<|vid_start|>",
               "<|vid_end|>", "<|vid_frame_separator|>", "<|audio|>", "<|soft_audio_start|>",
               "<|soft_audio_end|>"]  # fmt: skip
MUSE_TEMPLATE = "<|begin_of_text|>" + chat_template(
    "<|patch|>", "<|header_start|>user<|header_end|>\n\n", "<|eot|>", "<|header_start|>assistant<|header_end|>\n\n"
)


def muse(text_type: str, vision_type: str, tokenizer: PreTrainedTokenizerFast, **text: Any) -> dict[str, Any]:
    """What the two Muse families share: windowed tower, sliding decoder with a last full layer without positions."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    return {
        "text_config": text_config(text_type, tokenizer, head_dim=HEAD, sliding_window=16, rope_parameters=rope,
                                   final_logit_softcapping=20.0, **text),
        "vision_config": {
            "model_type": vision_type, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "patch_size": SMALL, "pos_emb_height": 4,
            "pos_emb_width": 4, "max_position_embeddings": 16,
        },
        "out_hidden_size": 4 * WIDTH, "projector_hidden_size": WIDTH,
        **ids(tokenizer, image_token_id="<|patch|>", video_token_id="<|video|>"),
    }  # fmt: skip


MUSE_SIZES = {"patch_size": SMALL, "merge_size": 2, "temporal_patch_size": 2}


def build_muse_glimmer() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Windowed and full attention in the tower, sliding and full in the decoder, Lanczos resizing."""
    tokenizer = byte_level_tokenizer(MUSE_TOKENS, begin="<|begin_of_text|>")
    processor = transformers.MuseGlimmerProcessor(
        transformers.MuseGlimmerImageProcessor(max_image_tokens=30, **MUSE_SIZES), transformers.MuseGlimmerVideoProcessor(**MUSE_SIZES),
        tokenizer, chat_template=MUSE_TEMPLATE,
    )  # fmt: skip
    return transformers.MuseGlimmerForConditionalGeneration(
        transformers.MuseGlimmerConfig(**muse("muse_glimmer_text", "muse_glimmer_vision", tokenizer))
    ), processor


def build_muse_spark() -> tuple[PreTrainedModel, ProcessorMixin]:
    """As Muse Glimmer, with experts, gated residuals and an audio tower."""
    tokenizer = byte_level_tokenizer(MUSE_TOKENS, begin="<|begin_of_text|>")
    processor = transformers.MuseSparkProcessor(
        transformers.MuseGlimmerImageProcessor(max_image_tokens=30, **MUSE_SIZES), transformers.MuseGlimmerVideoProcessor(**MUSE_SIZES),
        tokenizer, transformers.MuseSparkFeatureExtractor(), chat_template=MUSE_TEMPLATE,
    )  # fmt: skip
    shared = muse("muse_spark_text", "muse_spark_vision", tokenizer, moe_intermediate_size=WIDTH, num_local_experts=4,
                  num_experts_per_tok=2, moe_hidden_size=WIDTH // 2, mlp_layer_types=["dense", "sparse"])  # fmt: skip
    audio = {"patch_sizes": [16, 4], "hidden_sizes": [8, 8], "depths": [1, 1], "num_hidden_layers": 2,
             "out_hidden_size": WIDTH}  # fmt: skip
    config = transformers.MuseSparkConfig(audio_config=audio, **ids(tokenizer, audio_token_id="<|audio|>"), **shared)
    return transformers.MuseSparkForConditionalGeneration(config), processor


MINICPM_NAMED = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
                 "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
                 "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>"}  # fmt: skip


def minicpm() -> tuple[PreTrainedTokenizerFast, dict[str, Any], dict[str, Any]]:
    """Tokenizer, slicing and config that the MiniCPM families share: a hybrid decoder, slices with tags around them."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *MINICPM_NAMED.values()]
    tokenizer = byte_level_tokenizer(special, begin=None, **MINICPM_NAMED)
    slicing = {"max_slice_nums": 4, "scale_resolution": IMAGE_SIZE, "patch_size": SMALL}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True,
            "partial_rotary_factor": 1.0}  # fmt: skip
    text = text_config(
        "qwen3_5_text", tokenizer, head_dim=HEAD, layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=HEAD, linear_value_head_dim=HEAD, linear_num_key_heads=2, linear_num_value_heads=4,
        rope_parameters=rope,
    )  # fmt: skip
    config = {
        "text_config": text, "vision_config": vision_config(patch_size=SMALL), "insert_layer_id": 0,
        **ids(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    }  # fmt: skip
    return tokenizer, slicing, config


def build_minicpm_ocr() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Slices of 4 times as many tokens as MiniCPM-V 4.6, linear and full attention, image ids in the text."""
    tokenizer, slicing, config = minicpm()
    processor = transformers.MiniCPMOcrProcessor(
        transformers.MiniCPMOcrImageProcessor(**slicing), transformers.MiniCPMOcrVideoProcessor(**slicing), tokenizer,
        chat_template=chat_template("<|image_pad|>", *CHATML),
    )  # fmt: skip
    return transformers.MiniCPMOcrForConditionalGeneration(
        transformers.MiniCPMOcrConfig(tie_word_embeddings=False, **config)
    ), processor


def build_minicpmv4_6() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Slices, a tower that merges windows after its first layer, linear and full attention."""
    tokenizer, slicing, config = minicpm()
    processor = transformers.MiniCPMV4_6Processor(
        transformers.MiniCPMV4_6ImageProcessor(**slicing), transformers.MiniCPMV4_6VideoProcessor(**slicing), tokenizer,
        chat_template=chat_template("<|image_pad|>", *CHATML),
    )  # fmt: skip
    return transformers.MiniCPMV4_6ForConditionalGeneration(
        transformers.MiniCPMV4_6Config(image_size=IMAGE_SIZE, **config)
    ), processor


def build_minicpmv4_7() -> tuple[PreTrainedModel, ProcessorMixin]:
    """As MiniCPM-V 4.6, with positions on a canvas that the tags around slices are pinned to."""
    tokenizer, slicing, config = minicpm()
    processor = transformers.MiniCPMV4_7Processor(
        transformers.MiniCPMV4_6ImageProcessor(**slicing), transformers.MiniCPMV4_6VideoProcessor(**slicing), tokenizer,
        chat_template=chat_template("<|image_pad|>", *CHATML),
    )  # fmt: skip
    tags = ids(tokenizer, image_start_id="<image>", image_end_id="</image>", slice_start_id="<slice>",
               slice_end_id="</slice>", newline_id="Ċ")  # fmt: skip
    return transformers.MiniCPMV4_7ForConditionalGeneration(
        transformers.MiniCPMV4_7Config(image_size=IMAGE_SIZE, **config, **tags)
    ), processor


def build_minimax_m3_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Native resolution, a dense and a sparse layer: experts, and attention to the 2 best blocks of 8 tokens."""
    names = transformers.MiniMaxM3VLProcessor
    special = ["]!p~[", "]~!b[", "[e~[", "]~b]", names.IMAGE_TOKEN, names.VIDEO_TOKEN, names.VISION_START_TOKEN,
               names.VISION_END_TOKEN]  # fmt: skip
    tokenizer = byte_level_tokenizer(special, begin=None)
    sizes = {"patch_size": SMALL, "merge_size": 2, "temporal_patch_size": 2}
    pixels = {"shortest_edge": 16**2, "longest_edge": IMAGE_SIZE**2}
    processor = transformers.MiniMaxM3VLProcessor(
        transformers.MiniMaxM3VLImageProcessor(size=pixels, **sizes), tokenizer, transformers.MiniMaxM3VLVideoProcessor(**sizes),
        chat_template="]~!b[" + chat_template(names.IMAGE_TOKEN, "]~b]user\n", "[e~[\n", "]~b]ai\n"),
    )  # fmt: skip
    text = text_config(
        "minimax_m3_vl_text", tokenizer, head_dim=HEAD, rotary_dim=HEAD // 2, num_local_experts=4,
        num_experts_per_tok=2, dense_intermediate_size=2 * WIDTH, shared_intermediate_size=WIDTH,
        mlp_layer_types=["dense", "sparse"], layer_types=["full_attention", "minimax_m3_sparse"],
        index_n_heads=HEADS // 2, index_head_dim=HEAD, index_block_size=8, index_topk_blocks=2,
    )  # fmt: skip
    config = transformers.MiniMaxM3VLConfig(
        text_config=text, vision_config=vision_config(patch_size=SMALL), projector_hidden_size=WIDTH,
        **ids(tokenizer, image_token_index=names.IMAGE_TOKEN, video_token_index=names.VIDEO_TOKEN),
    )  # fmt: skip
    return transformers.MiniMaxM3SparseForConditionalGeneration(config), processor


def build_nemotron_h_omni() -> tuple[PreTrainedModel, ProcessorMixin]:
    """RADIO tower with registers, pixel shuffle, and all 4 kinds of layers: Mamba, experts, attention, MLP."""
    named = {"image_token": "<image>", "video_token": "<video>", "audio_token": "<so_embedding>",
             "image_start_token": "<img>", "image_end_token": "</img>"}  # fmt: skip
    special = ["<unk>", "<s>", "<|im_end|>", "<|im_start|>", "<so_start>", "<so_end>", *named.values()]
    tokenizer = byte_level_tokenizer(special, begin=None, **named)
    processor = transformers.NemotronH_Omni_Reasoning_V3Processor(
        transformers.NemotronH_Omni_Reasoning_V3ImageProcessor(patch_size=PATCH, min_num_patches=16, max_num_patches=30),
        transformers.NemotronH_Omni_Reasoning_V3VideoProcessor(), tokenizer, transformers.ParakeetFeatureExtractor(),
        chat_template=chat_template("<image>", *CHATML),
    )  # fmt: skip
    text = text_config(
        "nemotron_h", tokenizer, head_dim=HEAD, ssm_state_size=8, mamba_num_heads=HEADS, mamba_head_dim=2 * HEAD,
        n_groups=2, chunk_size=16, n_routed_experts=4, moe_intermediate_size=WIDTH,
        moe_shared_expert_intermediate_size=WIDTH, layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
    )  # fmt: skip
    del text["num_hidden_layers"]
    vision = {"model_type": "radio", "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
              "mlp_ratio": 2.0, "patch_size": PATCH, "image_size": IMAGE_SIZE, "max_img_size": 2 * IMAGE_SIZE,
              "num_cls_tokens": 2, "num_registers": 2, "video_temporal_patch_size": 2}  # fmt: skip
    config = transformers.NemotronH_Omni_Reasoning_V3_Config(
        vision_config=vision, text_config=text, projector_hidden_size=WIDTH, vision_hidden_size=WIDTH,
        **ids(tokenizer, image_token_id="<image>", video_token_id="<video>", audio_token_id="<so_embedding>"),
    )  # fmt: skip
    return transformers.NemotronH_Omni_Reasoning_V3(config), processor


def build_perception_lm() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Tiles and a thumbnail, pooled 2 x 2. CLIP's tower stands for the published one, which needs timm."""
    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    special = ["<|finetune_right_pad_id|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>",
               "<|start_header_id|>", "<|end_header_id|>", *named.values()]  # fmt: skip
    tokenizer = byte_level_tokenizer(special, begin="<|begin_of_text|>", **named)
    processor = transformers.PerceptionLMProcessor(
        transformers.PerceptionLMVideoProcessor(), transformers.PerceptionLMImageProcessor(tile_size=IMAGE_SIZE, max_num_tiles=4), tokenizer,
        patch_size=PATCH, pooling_ratio=2, chat_template="<|begin_of_text|>" + chat_template(
            "<|image|>", "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    )  # fmt: skip
    config = transformers.PerceptionLMConfig(
        vision_config=vision_config(model_type="clip_vision_model", model_args={"embed_dim": WIDTH}),
        text_config=text_config("llama", tokenizer),
        projector_pooling_ratio=2, **ids(tokenizer, image_token_id="<|image|>", video_token_id="<|video|>"),
    )  # fmt: skip
    return transformers.PerceptionLMForConditionalGeneration(config), processor


INKLING_TOKENS = ["<|pad|>", "<|begin|>", "<|end|>", "<|message_user|>", "<|message_model|>", "<|content_text|>",
                  "<|content_image|>", "<|content_audio_input|>", "<|unused_200054|>",
                  "<|unused_200053|>"]  # fmt: skip
INKLING_TEMPLATE = chat_template(
    "<|content_image|><|unused_200054|>", "<|message_user|>", "<|end|>", "<|message_model|><|content_text|>"
)
# Short convolutions, relative positions, a sliding and a full layer, experts.
INKLING_TEXT = {
    "head_dim": HEAD, "swa_num_attention_heads": HEADS, "swa_num_key_value_heads": HEADS // 2, "swa_head_dim": HEAD,
    "sliding_window_size": 16, "d_rel": 4, "rel_extent": 32, "layer_types": ["hybrid_sliding", "hybrid"],
    "moe_intermediate_size": WIDTH, "n_routed_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


def inkling2(text_type: str, **text: Any) -> tuple[ProcessorMixin, dict[str, Any]]:
    """Processor and config of the Inkling 2 families: images are padded, never resized, to a grid with one token a
    cell; block attention residuals, experts."""
    tokenizer = byte_level_tokenizer(INKLING_TOKENS, begin=None)
    processor = transformers.Inkling2Processor(
        transformers.Inkling2ImageProcessor(size=SQUARE), tokenizer, INKLING_TEMPLATE
    )
    decoder = text_config(text_type, tokenizer, unpadded_vocab_size=len(tokenizer), n_layers_per_attn_res_block=1,
                          **(INKLING_TEXT | text))  # fmt: skip
    del decoder["intermediate_size"]
    vision = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "mlp_ratio": 2.0,
              "patch_size": PATCH, "posemb_grid_size": 4, "projection_hidden_dim": WIDTH,
              "text_hidden_size": WIDTH}  # fmt: skip
    images = ids(tokenizer, image_token_id="<|unused_200054|>")
    return processor, {"text_config": decoder, "vision_config": vision, **images}


def build_inkling2() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Every layer once, in turn."""
    processor, config = inkling2("inkling2_text")
    return transformers.Inkling2ForConditionalGeneration(transformers.Inkling2Config(**config)), processor


def build_inkling2_loop() -> tuple[PreTrainedModel, ProcessorMixin]:
    """As Inkling 2, going 3 times through the 2 layers in the middle, with messages from the time before."""
    loop = {"loop_layer_index_start": 1, "loop_layer_index_end": 3, "loop_num_passes": 3, "loop_gate_rank": HEAD}
    kinds = ["hybrid_sliding", "hybrid_sliding", "hybrid", "hybrid"]
    processor, config = inkling2("inkling2_loop_text", num_hidden_layers=len(kinds), layer_types=kinds, **loop)
    return transformers.Inkling2LoopForConditionalGeneration(transformers.Inkling2LoopConfig(**config)), processor


def build_inkling() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Images are cut, never resized, into patches that are one token each and see nothing of each other."""
    tokenizer = byte_level_tokenizer(INKLING_TOKENS, begin=None)
    processor = transformers.InklingProcessor(
        transformers.InklingFeatureExtractor(),
        transformers.InklingImageProcessor(size=SQUARE),
        tokenizer,
        INKLING_TEMPLATE,
    )
    text = text_config("inkling_text", tokenizer, n_shared_experts=1, mlp_layer_types=["dense", "sparse"],
                       logits_mup_width_multiplier=2.0, **INKLING_TEXT)  # fmt: skip
    config = transformers.InklingConfig(
        text_config=text, vision_config={"patch_size": 16, "hidden_size": WIDTH, "num_hidden_layers": 3},
        audio_config={"n_mel_bins": 8, "mel_vocab_size": 16},
        **ids(tokenizer, image_token_id="<|unused_200054|>", audio_token_id="<|unused_200053|>",
              image_bos_token_id="<|content_image|>", audio_bos_token_id="<|content_audio_input|>"),
    )  # fmt: skip
    return transformers.InklingForConditionalGeneration(config), processor


def build_hy_v4_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """A learned feature ends each row of an image; sparse latent attention, whose selection the second layer takes from
    the first, with sinks and gates; several residual streams, experts, M-RoPE."""
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    special = ["<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", *named.values()]
    tokenizer = byte_level_tokenizer(special, begin=None, **named)
    sizes = {"patch_size": SMALL, "merge_size": 2, "size": {"shortest_edge": 16**2, "longest_edge": IMAGE_SIZE**2}}
    processor = transformers.HYV4VLProcessor(
        transformers.HYV4VLImageProcessor(**sizes), tokenizer, transformers.HYV4VLVideoProcessor(**sizes),
        chat_template="<|bos|>" + chat_template("<|image_pad|>", "<|user|>", "<|eos|>", "<|assistant|>"),
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    # Many heads score the selection: of two, both are often at zero, and ties fall differently in longer texts.
    text = text_config(
        "hy_v4_vl_text", tokenizer, rope_parameters=rope, n_routed_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=WIDTH, q_lora_rank=WIDTH // 2, kv_lora_rank=WIDTH // 2, qk_nope_head_dim=HEAD,
        qk_rope_head_dim=HEAD, v_head_dim=HEAD, indexer_types=["full", "shared"], index_topk=16, index_n_heads=16,
        index_head_dim=2 * HEAD, hc_mult=2,
    )  # fmt: skip
    vision = vision_config(patch_size=SMALL, spatial_merge_size=2, out_hidden_size=WIDTH, max_image_size=IMAGE_SIZE)
    del vision["image_size"]
    config = transformers.HYV4VLConfig(
        text_config=text, vision_config=vision,
        **ids(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )  # fmt: skip
    return transformers.HYV4VLForConditionalGeneration(config), processor


CODES = 64


def build_apertus1p5() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Images become words of the vocabulary, the best of 64 codes for each cell, so no gradient reaches them. Only
    words of text can be written."""
    named = {
        "image_token": "<|image|>", "audio_token": "<|audio|>", "boi_token": "<|img_start|>",
        "eoi_token": "<|img_end|>", "image_wrapper_token": "<|img_token_start|>", "eol_token": "<|img_end_of_row|>",
        "boa_token": "<|audio_start|>", "eoa_token": "<|audio_end|>",
    }  # fmt: skip
    special = ["<pad>", "<s>", "<|assistant_end|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>"]
    tokenizer = byte_level_tokenizer([*special, *named.values()], begin=None, **named)
    processor = transformers.Apertus1p5Processor(
        transformers.Apertus1p5ImageProcessor(
            size={"min_pixels": 16**2, "max_pixels": IMAGE_SIZE**2}, spatial_factor=PATCH
        ),
        transformers.WavTokenizerFeatureExtractor(hop_length=16), tokenizer,
        chat_template="<s>" + chat_template("<|image|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>"),
    )  # fmt: skip
    words = len(tokenizer)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    text = text_config("apertus1p5_text", tokenizer, output_vocab_size=words, rope_parameters=rope)
    text["vocab_size"] = words + 2 * CODES
    config = transformers.Apertus1p5Config(
        text_config=text, image_token_offset=words, audio_token_offset=words + CODES,
        vision_config={"codebook_size": CODES, "embed_dim": WIDTH, "latent_channels": WIDTH, "base_channels": WIDTH,
                       "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1, "resolution": IMAGE_SIZE,
                       "attn_resolutions": [PATCH]},
        audio_config={"model_type": "wavtokenizer_encoder", "num_filters": 4, "upsampling_ratios": [4, 4],
                      "num_lstm_layers": 1, "hidden_size": WIDTH, "codebook_dim": WIDTH, "codebook_size": CODES},
        **ids(tokenizer, image_token_id="<|image|>", audio_token_id="<|audio|>"),
    )  # fmt: skip
    return transformers.Apertus1p5ForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], tuple[PreTrainedModel, ProcessorMixin]]] = {
    "molmo2": build_molmo2,
    "muse_glimmer": build_muse_glimmer,
    "muse_spark": build_muse_spark,
    "minicpm_ocr": build_minicpm_ocr,
    "minicpmv4_6": build_minicpmv4_6,
    "minicpmv4_7": build_minicpmv4_7,
    "minimax_m3_vl": build_minimax_m3_vl,
    "nemotron_h_omni": build_nemotron_h_omni,
    "perception_lm": build_perception_lm,
    "inkling2": build_inkling2,
    "inkling2_loop": build_inkling2_loop,
    "inkling_mm_model": build_inkling,
    "hy_v4_vl": build_hy_v4_vl,
    "apertus1p5": build_apertus1p5,
}
