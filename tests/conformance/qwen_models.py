"""Tiny random models of the Qwen-VL lineage: patches of any number of images in one row, merged two by two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from tiny import HEADS, LAYERS, WIDTH, byte_level_tokenizer, chat_template, text_config
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin


# Width and height stay free between these areas: a square canvas of 40 pixels or more becomes 40 x 40, 25 tokens.
PIXELS = {"shortest_edge": 24**2, "longest_edge": 40**2}
PATCHES = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
MELS = 16
HEAD = WIDTH // HEADS

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
IDS = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
       "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
INTERLEAVED = {**ROPE, "mrope_interleaved": True}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": WIDTH // 2}


def chatml(image: str = IMAGE, thought: str = "") -> str:
    """Qwen's template; `thought` is what the assistant's turn begins with."""
    return chat_template(image, "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n" + thought)


def token_ids(tokenizer: PreTrainedTokenizerFast, names: dict[str, str] = IDS) -> dict[str, int]:
    """The ids that a configuration keeps of special tokens."""
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def qwen_processor(
    processor: Callable[..., ProcessorMixin],
    video: Callable[..., Any],
    tokenizer: PreTrainedTokenizerFast,
    template: str | None = None,
    **more: Any,
) -> ProcessorMixin:
    """A processor around the image processor of Qwen2-VL."""
    return processor(
        image_processor=transformers.Qwen2VLImageProcessor(size=PIXELS, **PATCHES), tokenizer=tokenizer,
        video_processor=video(size=PIXELS, **PATCHES), chat_template=template or chatml(), **more,
    )  # fmt: skip


def encoder(**more: Any) -> dict[str, Any]:
    """What the image encoders of Qwen2.5-VL and Qwen3-VL have in common."""
    return {
        "depth": LAYERS, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_heads": HEADS, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": WIDTH, **more,
    }  # fmt: skip


def window_encoder(**more: Any) -> dict[str, Any]:
    """Attention in windows of 2 x 2 merged patches, those at two edges cut, then over everything."""
    return encoder(window_size=16, fullatt_block_indexes=[1], **more)


def position_encoder(**more: Any) -> dict[str, Any]:
    """A learned grid of 4 x 4 positions, interpolated to that of the image."""
    return encoder(num_position_embeddings=16, **more)


def hybrid(model_type: str, tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """One layer with a gated delta rule and one with attention, a quarter of whose dimensions are rotated."""
    return text_config(
        model_type, tokenizer, head_dim=4 * HEAD, rope_parameters={**INTERLEAVED, "partial_rotary_factor": 0.25},
        layer_types=["linear_attention", "full_attention"], linear_key_head_dim=HEAD, linear_value_head_dim=HEAD,
        linear_num_key_heads=2, linear_num_value_heads=HEADS, **more,
    )  # fmt: skip


def omni_tokenizer(image: str, video: str, audio: str, suffixes: tuple[str, str]) -> PreTrainedTokenizerFast:
    """The tokenizer that names the tokens of all modalities, as the processors of Qwen-Omni want it."""
    begin, end = suffixes
    named = {
        "image_token": image, "video_token": video, "audio_token": audio,
        "vision_bos_token": f"<|vision_{begin}|>", "vision_eos_token": f"<|vision_{end}|>",
        "audio_bos_token": f"<|audio_{begin}|>", "audio_eos_token": f"<|audio_{end}|>",
    }  # fmt: skip
    return byte_level_tokenizer(CHATML + list(named.values()), begin=None, **named)


def omni_parts(tokenizer: PreTrainedTokenizerFast) -> tuple[dict[str, int], dict[str, Any]]:
    """Token ids and audio encoder of both generations of Qwen-Omni."""
    ids = {
        "vision_start_token_id": tokenizer.vision_bos_token_id, "vision_end_token_id": tokenizer.vision_eos_token_id,
        "audio_start_token_id": tokenizer.audio_bos_token_id, "audio_end_token_id": tokenizer.audio_eos_token_id,
    }  # fmt: skip
    audio = {
        "d_model": WIDTH, "encoder_layers": 1, "encoder_attention_heads": HEADS, "encoder_ffn_dim": WIDTH,
        "output_dim": WIDTH, "num_mel_bins": MELS,
    }  # fmt: skip
    return ids, audio


def build_qwen2_5_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """An encoder with attention in windows, which reorders the patches, and M-RoPE."""
    tokenizer = byte_level_tokenizer(CHATML + VISION, begin=None)
    config = transformers.Qwen2_5_VLConfig(
        vision_config=window_encoder(), text_config=text_config("qwen2_5_vl_text", tokenizer, rope_parameters=ROPE),
        **token_ids(tokenizer),
    )  # fmt: skip
    processor = qwen_processor(transformers.Qwen2_5_VLProcessor, transformers.Qwen2VLVideoProcessor, tokenizer)
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def build_qwen3_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """DeepStack: features of an early layer of the encoder are added inside the language model."""
    tokenizer = byte_level_tokenizer(CHATML + VISION, begin=None)
    config = transformers.Qwen3VLConfig(
        vision_config=position_encoder(deepstack_visual_indexes=[0]),
        text_config=text_config("qwen3_vl_text", tokenizer, head_dim=HEAD, rope_parameters=INTERLEAVED),
        **token_ids(tokenizer),
    )  # fmt: skip
    processor = qwen_processor(transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor, tokenizer)
    return transformers.Qwen3VLForConditionalGeneration(config), processor


def build_qwen3_vl_moe() -> tuple[PreTrainedModel, ProcessorMixin]:
    """As Qwen3-VL, with experts, which make the loss piecewise smooth."""
    tokenizer = byte_level_tokenizer(CHATML + VISION, begin=None)
    config = transformers.Qwen3VLMoeConfig(
        vision_config=position_encoder(deepstack_visual_indexes=[0]),
        text_config=text_config("qwen3_vl_moe_text", tokenizer, head_dim=HEAD, rope_parameters=INTERLEAVED, **EXPERTS),
        **token_ids(tokenizer),
    )  # fmt: skip
    processor = qwen_processor(transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor, tokenizer)
    return transformers.Qwen3VLMoeForConditionalGeneration(config), processor


def build_qwen3_5() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Linear attention and gated full attention in turn; the template opens a thought."""
    tokenizer = byte_level_tokenizer(CHATML + VISION, begin=None)
    config = transformers.Qwen3_5Config(
        vision_config=position_encoder(), text_config=hybrid("qwen3_5_text", tokenizer), **token_ids(tokenizer)
    )
    processor = qwen_processor(
        transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor, tokenizer, chatml(thought="<think>\n")
    )
    return transformers.Qwen3_5ForConditionalGeneration(config), processor


def build_qwen3_5_moe() -> tuple[PreTrainedModel, ProcessorMixin]:
    """As Qwen3.5, with routed experts and a shared one."""
    tokenizer = byte_level_tokenizer(CHATML + VISION, begin=None)
    text = hybrid("qwen3_5_moe_text", tokenizer, shared_expert_intermediate_size=WIDTH // 2, **EXPERTS)
    config = transformers.Qwen3_5MoeConfig(vision_config=position_encoder(), text_config=text, **token_ids(tokenizer))
    processor = qwen_processor(
        transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor, tokenizer, chatml(thought="<think>\n")
    )
    return transformers.Qwen3_5MoeForConditionalGeneration(config), processor


def build_qwen4_exp() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Several residual streams, hashed n-grams of the text, and attention to the blocks that an indexer selects."""
    tokenizer = byte_level_tokenizer(CHATML + VISION, begin=None)
    text = hybrid(
        "qwen4_exp_text", tokenizer, shared_expert_intermediate_size=WIDTH // 2, **EXPERTS, hc_count=2, hc_lowrank=8,
        ple_layer_ids=[1], ngram_size=3, heads_per_ngram=2, ngram_vocab_size_base=50, split_ngram_parts=1,
        make_ngram_vocab_size_divisible_by=8, indexer_n_heads=4, indexer_kv_heads=1, indexer_head_dim=HEAD,
        indexer_budget=16, indexer_compress_ratio=4,
    )  # fmt: skip
    config = transformers.Qwen4ExpConfig(vision_config=position_encoder(), text_config=text, **token_ids(tokenizer))
    processor = qwen_processor(
        transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor, tokenizer, chatml(thought="<think>\n")
    )
    return transformers.Qwen4ExpForConditionalGeneration(config), processor


def build_qwen2_5_omni_thinker() -> tuple[PreTrainedModel, ProcessorMixin]:
    """The text half of a model that also hears and speaks. The processor pads at the left."""
    tokenizer = omni_tokenizer("<|IMAGE|>", "<|VIDEO|>", "<|AUDIO|>", ("bos", "eos"))
    ids, audio = omni_parts(tokenizer)
    config = transformers.Qwen2_5OmniThinkerConfig(
        vision_config=window_encoder(), audio_config=audio, image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id, audio_token_index=tokenizer.audio_token_id,
        text_config=text_config("qwen2_5_omni_text", tokenizer, rope_parameters=ROPE), **ids,
    )  # fmt: skip
    processor = qwen_processor(
        transformers.Qwen2_5OmniProcessor, transformers.Qwen2VLVideoProcessor, tokenizer, chatml("<|vision_bos|><|IMAGE|><|vision_eos|>"),
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=MELS),
    )  # fmt: skip
    return transformers.Qwen2_5OmniThinkerForConditionalGeneration(config), processor


def build_qwen3_omni_moe_thinker() -> tuple[PreTrainedModel, ProcessorMixin]:
    """As the thinker of Qwen2.5-Omni, with DeepStack and experts."""
    tokenizer = omni_tokenizer("<|image_pad|>", "<|video_pad|>", "<|audio_pad|>", ("start", "end"))
    ids, audio = omni_parts(tokenizer)
    config = transformers.Qwen3OmniMoeThinkerConfig(
        vision_config=position_encoder(deepstack_visual_indexes=[0]), image_token_id=tokenizer.image_token_id,
        audio_config={**audio, "downsample_hidden_size": 8}, video_token_id=tokenizer.video_token_id,
        audio_token_id=tokenizer.audio_token_id,
        text_config=text_config("qwen3_omni_moe_text", tokenizer, rope_parameters=INTERLEAVED, **EXPERTS), **ids,
    )  # fmt: skip
    processor = qwen_processor(
        transformers.Qwen3OmniMoeProcessor, transformers.Qwen2VLVideoProcessor, tokenizer,
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=MELS),
    )  # fmt: skip
    return transformers.Qwen3OmniMoeThinkerForConditionalGeneration(config), processor


def build_cosmos3_edge() -> tuple[PreTrainedModel, ProcessorMixin]:
    """SigLIP 2 before a Nemotron with M-RoPE. Patches are rows of pixels, colours last; one frame a patch."""
    special = ["<unk>", "<s>", "<|im_end|>", "<|im_start|>", *VISION]
    tokenizer = byte_level_tokenizer(special, begin=None)
    patches = {**PATCHES, "temporal_patch_size": 1}
    processor = transformers.Cosmos3EdgeProcessor(
        transformers.Cosmos3EdgeImageProcessor(size=PIXELS, **patches), tokenizer,
        transformers.Cosmos3EdgeVideoProcessor(size=PIXELS, **patches), chat_template=chatml(),
    )  # fmt: skip
    config = transformers.Cosmos3EdgeConfig(
        vision_config={
            "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "patch_size": 4, "num_patches": 16,
        },
        text_config=text_config("cosmos3_edge_text", tokenizer, head_dim=HEAD, rope_parameters=ROPE),
        projector_hidden_size=2 * WIDTH, **token_ids(tokenizer),
    )  # fmt: skip
    return transformers.Cosmos3EdgeForConditionalGeneration(config), processor


def build_cosmos3_omni() -> tuple[PreTrainedModel, ProcessorMixin]:
    """The reasoning half of a world model: Qwen3-VL's encoder and decoder under a class of their own."""
    tokenizer = byte_level_tokenizer(CHATML + VISION, begin=None)
    config = transformers.Cosmos3OmniConfig(
        vision_config={"model_type": "qwen3_vl_vision", **position_encoder(deepstack_visual_indexes=[0])},
        text_config=text_config("qwen3_vl_text", tokenizer, head_dim=HEAD, rope_parameters=INTERLEAVED),
        **token_ids(tokenizer),
    )  # fmt: skip
    processor = qwen_processor(transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor, tokenizer)
    return transformers.Cosmos3OmniForConditionalGeneration(config), processor


def build_dots3_note() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Experts in encoder and decoder, latent attention: to the tokens an indexer selects, then in a window."""
    special = ["<|pad|>", "<|endoftext|>", "<|endofresponse|>", "<|userprompt|>", "<|endofuserprompt|>",
               "<|response|>", "<|img|>", "<|imgpad|>", "<|endofimg|>", "<|video_pad|>", "<|audio_comp_pad|>"]  # fmt: skip
    tokenizer = byte_level_tokenizer(special, begin=None)
    patches = {**PATCHES, "temporal_patch_size": 1}
    processor = transformers.Dots3NoteProcessor(
        transformers.Qwen2VLImageProcessor(size=PIXELS, **patches), tokenizer, transformers.Qwen3VLVideoProcessor(size=PIXELS, **patches),
        transformers.Dots3NoteFeatureExtractor(feature_size=MELS),
        chat_template("<|img|><|imgpad|><|endofimg|>", "<|userprompt|>", "<|endofuserprompt|>", "<|response|>"),
    )  # fmt: skip
    latent = {"qk_nope_head_dim": HEAD, "v_head_dim": HEAD, "q_lora_rank": 16, "kv_lora_rank": 16}
    window = {f"swa_{name}": size for name, size in latent.items()}
    text = text_config(
        "dots3_note_text", tokenizer, **latent, qk_rope_head_dim=HEAD, head_dim=2 * HEAD, swa_head_dim=2 * HEAD,
        swa_num_attention_heads=2, swa_num_key_value_heads=2, **window, sliding_window=16, index_topk=16,
        index_head_dim=2 * HEAD, index_n_heads=8, layer_types=["indexed_attention", "sliding_attention"],
        moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1,
        moe_shared_expert_intermediate_size=16,
    )  # fmt: skip
    config = transformers.Dots3NoteConfig(
        vision_config={
            "embed_dim": WIDTH, "num_heads": HEADS, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
            "patch_size": 4, "moe_intermediate_size": WIDTH, "pyramid_num_routed": [-1, 4], "adapter_in_dim": WIDTH,
            "adapter_out_dim": WIDTH,
        },
        audio_config={
            "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS,
            "feature_size": MELS, "downsample_hidden_size": 8, "adapter_input_size": WIDTH, "adapter_out_dim": WIDTH,
        },
        text_config={**text, "num_key_value_heads": HEADS},
        **token_ids(tokenizer, {"image_token_id": "<|imgpad|>", "video_token_id": "<|video_pad|>",
                                "audio_token_id": "<|audio_comp_pad|>"}),
    )  # fmt: skip
    return transformers.Dots3NoteForConditionalGeneration(config), processor


def build_exaone4_5() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Windows and shared keys in the encoder; EXAONE 4 with a layer that slides, its positions of one dimension."""
    special = ["[PAD]", "[BOS]", "[|endofturn|]", "<|user|>", "<|assistant|>", "<vision>", "</vision>", *VISION[2:]]
    tokenizer = byte_level_tokenizer(special, begin=None)
    config = transformers.Exaone4_5_Config(
        vision_config=window_encoder(num_key_value_heads=HEADS // 2), image_token_id=special.index("<|image_pad|>"),
        text_config=text_config("exaone4", tokenizer, sliding_window=16,
                                layer_types=["sliding_attention", "full_attention"]),
        video_token_id=special.index("<|video_pad|>"),
    )  # fmt: skip
    template = chat_template("<vision><|image_pad|></vision>", "<|user|>\n", "[|endofturn|]\n", "<|assistant|>\n")
    processor = qwen_processor(
        transformers.Exaone4_5_Processor, transformers.Qwen2VLVideoProcessor, tokenizer, template
    )
    return transformers.Exaone4_5_ForConditionalGeneration(config), processor


def build_video_llama_3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """SigLIP with rotary positions before Qwen2. The processor says for every image how many patches are merged."""
    tokenizer = byte_level_tokenizer([*CHATML, *VISION[2:]], begin=None)
    processor = transformers.VideoLlama3Processor(
        transformers.VideoLlama3ImageProcessor(size=PIXELS, patch_size=8, merge_size=1), tokenizer,
        transformers.VideoLlama3VideoProcessor(size=PIXELS, patch_size=8, merge_size=2), chat_template=chatml("<|image_pad|>\n"),
    )  # fmt: skip
    config = transformers.VideoLlama3Config(
        vision_config={
            "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "patch_size": 8,
        },
        text_config=text_config("qwen2", tokenizer), image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
    )  # fmt: skip
    return transformers.VideoLlama3ForConditionalGeneration(config), processor


def build_hyperclovax_vision_v2() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen2.5-VL's encoder and a linear projector before a decoder with the multipliers of muP."""
    tokenizer = byte_level_tokenizer(CHATML + VISION, begin=None)
    processor = qwen_processor(
        transformers.HyperCLOVAXVisionV2Processor, transformers.Qwen2VLVideoProcessor, tokenizer
    )
    config = transformers.HyperCLOVAXVisionV2Config(
        vision_config={"model_type": "qwen2_5_vl_vision", **window_encoder(out_hidden_size=2 * WIDTH)},
        text_config=text_config("hyperclovax", tokenizer, embedding_multiplier=2.0, attention_multiplier=0.25,
                                residual_multiplier=0.5, logits_scaling=0.5),
        image_token_id=processor.image_token_id, video_token_id=processor.video_token_id,
    )  # fmt: skip
    return transformers.HyperCLOVAXVisionV2ForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], tuple[PreTrainedModel, ProcessorMixin]]] = {
    "qwen2_5_vl": build_qwen2_5_vl,
    "qwen3_vl": build_qwen3_vl,
    "qwen3_vl_moe": build_qwen3_vl_moe,
    "qwen3_5": build_qwen3_5,
    "qwen3_5_moe": build_qwen3_5_moe,
    "qwen4_exp": build_qwen4_exp,
    "qwen2_5_omni_thinker": build_qwen2_5_omni_thinker,
    "qwen3_omni_moe_thinker": build_qwen3_omni_moe_thinker,
    "cosmos3_edge": build_cosmos3_edge,
    "cosmos3_omni": build_cosmos3_omni,
    "dots3_note": build_dots3_note,
    "exaone4_5": build_exaone4_5,
    "video_llama_3": build_video_llama_3,
    "hyperclovax_vision_v2": build_hyperclovax_vision_v2,
}
