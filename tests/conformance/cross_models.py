"""Tiny models of families that never call `get_image_features`, or whose images do not stand among the text tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import transformers
from tiny import (
    HEADS,
    IMAGE_SIZE,
    LAYERS,
    PATCH,
    QUERIES,
    SIZE,
    WIDTH,
    byte_level_tokenizer,
    chat_template,
    opt_config,
    qformer_config,
    text_config,
    vision_config,
    word_piece_tokenizer,
)
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin


def open_gates(model: PreTrainedModel, *names: str) -> PreTrainedModel:
    """Sets the gates, which start at zero and so keep the image out of the text."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 and any(gate in name for gate in names):
                parameter.fill_(0.8)
    return model


def build_git() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Image features stand before the text without placeholders, so logits are longer than `input_ids`."""
    tokenizer = word_piece_tokenizer()
    processor = transformers.GitProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=SIZE), tokenizer
    )
    config = transformers.GitConfig(
        vision_config=vision_config(), vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, max_position_embeddings=64, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    return transformers.GitForCausalLM(config), processor


def build_blip() -> tuple[PreTrainedModel, ProcessorMixin]:
    """A BERT decoder that attends to the image in every layer. Texts begin with a token that its processor omits."""
    tokenizer = word_piece_tokenizer("[DEC]")
    processor = transformers.BlipProcessor(transformers.BlipImageProcessor(size=SIZE), tokenizer)
    text = {
        "hidden_size": WIDTH, "encoder_hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "projection_dim": WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": len(tokenizer),
        "max_position_embeddings": 64, "bos_token_id": tokenizer.convert_tokens_to_ids("[DEC]"),
        "eos_token_id": tokenizer.sep_token_id, "sep_token_id": tokenizer.sep_token_id, "pad_token_id": 0,
    }  # fmt: skip
    config = transformers.BlipConfig(
        text_config=text, vision_config=vision_config(), projection_dim=WIDTH, image_text_hidden_size=WIDTH
    )
    return transformers.BlipForConditionalGeneration(config), processor


def kosmos_text_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The decoder of both Kosmos models."""
    return {
        "embed_dim": WIDTH, "ffn_dim": 2 * WIDTH, "layers": LAYERS, "attention_heads": HEADS, "dropout": 0.0,
        "attention_dropout": 0.0, "vocab_size": len(tokenizer), "max_position_embeddings": 256,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip


def build_kosmos2() -> tuple[PreTrainedModel, ProcessorMixin]:
    """64 latent queries, put where a mask says, one value per token. The processor writes placeholders itself."""
    tokenizer = byte_level_tokenizer(["<pad>", "<s>", "</s>", "<unk>"], begin=None)
    tokenizer.unk_token = "<unk>"
    processor = transformers.Kosmos2Processor(
        transformers.CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=SIZE),
        tokenizer,
        num_patch_index_tokens=4,
    )
    config = transformers.Kosmos2Config(
        vision_config=vision_config(), text_config=kosmos_text_config(processor.tokenizer),
        latent_query_num=processor.num_image_tokens,
    )  # fmt: skip
    return transformers.Kosmos2ForConditionalGeneration(config), processor


def build_kosmos2_5() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Patches of any resolution in a row, padded, then latent queries. Placeholders are beginning tokens."""
    tokenizer = byte_level_tokenizer(
        ["<pad>", "<s>", "</s>", "<image>", "</image>", "<ocr>", "<md>"], begin=None,
        boi_token="<image>", eoi_token="</image>", image_token="<s>",
    )  # fmt: skip
    patches = {"patch_size": {"height": PATCH, "width": PATCH}, "max_patches": 20}
    processor = transformers.Kosmos2_5Processor(
        transformers.Kosmos2_5ImageProcessor(**patches), tokenizer, num_image_tokens=QUERIES
    )
    # The class sets 4096, which goes before what the image processor was made with.
    processor.images_kwargs = {**processor.images_kwargs, "max_patches": 20}
    config = transformers.Kosmos2_5Config(
        vision_config={
            "hidden_size": WIDTH, "patch_embed_hidden_size": 3 * PATCH**2, "intermediate_size": 2 * WIDTH,
            "head_dim": WIDTH // HEADS, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "max_num_patches": 32,
        },
        text_config=kosmos_text_config(tokenizer), latent_query_num=QUERIES,
    )  # fmt: skip
    return transformers.Kosmos2_5ForConditionalGeneration(config), processor


def build_mllama() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Up to 4 tiles, gated tile embeddings, gated cross attention in every second layer under a mask per token."""
    special = ["<|finetune_right_pad_id|>", "<|begin_of_text|>", "<|eot_id|>", "<|image|>", "<|python_tag|>",
               "<|start_header_id|>", "<|end_header_id|>"]  # fmt: skip
    tokenizer = byte_level_tokenizer(special, begin="<|begin_of_text|>")
    user, assistant = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))
    processor = transformers.MllamaProcessor(
        transformers.MllamaImageProcessor(size=SIZE, max_image_tiles=4), tokenizer,
        chat_template="<|begin_of_text|>" + chat_template("<|image|>", user, "<|eot_id|>", assistant),
    )  # fmt: skip
    vision = {
        "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS, "num_global_layers": 1,
        "attention_heads": HEADS, "image_size": IMAGE_SIZE, "patch_size": PATCH, "max_num_tiles": 4,
        "intermediate_layers_indices": [0, 1], "vision_output_dim": 3 * WIDTH,
    }  # fmt: skip
    text = text_config("mllama_text_model", tokenizer, num_hidden_layers=4, cross_attention_layers=[1, 3],
                       rope_parameters={"rope_type": "default", "rope_theta": 10000.0})  # fmt: skip
    image_token = tokenizer.convert_tokens_to_ids("<|image|>")
    config = transformers.MllamaConfig(vision_config=vision, text_config=text, image_token_index=image_token)
    return open_gates(transformers.MllamaForConditionalGeneration(config), "gate"), processor


def build_idefics() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Perceiver and gated cross attention between the layers of LLaMA, under a mask per token and image."""
    tokenizer = byte_level_tokenizer(["<pad>", "<s>", "</s>"], begin="<s>")
    plain = len(tokenizer)
    tokenizer.add_tokens(["<fake_token_around_image>", "<image>"], special_tokens=True)
    processor = transformers.IdeficsProcessor(
        transformers.IdeficsImageProcessor(image_size=IMAGE_SIZE), tokenizer, image_size=IMAGE_SIZE
    )
    config = transformers.IdeficsConfig(
        vocab_size=plain, additional_vocab_size=2, hidden_size=WIDTH, intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, cross_layer_interval=1, use_resampler=True,
        qk_layer_norms=True, max_position_embeddings=256, pad_token_id=0,
        vision_config={
            "embed_dim": WIDTH, "image_size": IMAGE_SIZE, "patch_size": PATCH, "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        },
        perceiver_config={
            "resampler_n_latents": QUERIES, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 16,
            "qk_layer_norms_perceiver": True,
        },
    )  # fmt: skip
    return open_gates(transformers.IdeficsForVisionText2Text(config), "alpha"), processor


def build_idefics2() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Four quarters and the whole at native shape, a perceiver for each, Mistral. The processor takes only PIL."""
    special = ["<unk>", "<s>", "</s>", "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    tokenizer = byte_level_tokenizer(
        special, begin="<s>", image_boundary_token="<fake_token_around_image>", image_token="<image>"
    )
    edges = {"shortest_edge": IMAGE_SIZE // 2, "longest_edge": IMAGE_SIZE}
    processor = transformers.Idefics2Processor(
        transformers.Idefics2ImageProcessor(size=edges, do_image_splitting=True), tokenizer, image_seq_len=QUERIES,
        chat_template=chat_template("<image>", "User:", "<end_of_utterance>\n", "Assistant:"),
    )  # fmt: skip
    config = transformers.Idefics2Config(
        vision_config=vision_config(), text_config=text_config("mistral", processor.tokenizer, sliding_window=16),
        perceiver_config={
            "hidden_size": WIDTH, "resampler_n_latents": QUERIES, "resampler_depth": 1, "resampler_n_heads": 2,
            "resampler_head_dim": 16, "num_key_value_heads": 1,
        },
        image_token_id=processor.image_token_id,
    )  # fmt: skip
    return transformers.Idefics2ForConditionalGeneration(config), processor


def build_instructblipvideo() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Four video frames. There is a video processor where others have an image processor, so no prompt attaches."""
    # The token is not named to the tokenizer: the processor looks for `.content` of the name, which is a string.
    tokenizer = byte_level_tokenizer(["<pad>", "<s>", "</s>", "<video>"], begin="</s>")
    qformer_tokenizer = word_piece_tokenizer()
    processor = transformers.InstructBlipVideoProcessor(
        transformers.InstructBlipVideoVideoProcessor(size=SIZE), tokenizer, qformer_tokenizer, num_query_tokens=QUERIES
    )
    config = transformers.InstructBlipVideoConfig(
        vision_config=vision_config(), qformer_config=qformer_config(vocab_size=len(qformer_tokenizer)),
        text_config=opt_config(tokenizer), num_query_tokens=QUERIES,
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )  # fmt: skip
    return transformers.InstructBlipVideoForConditionalGeneration(config), processor


def fuyu_tokenizer() -> PreTrainedTokenizerFast:
    """Puts a space before every piece of text, which Fuyu's processor cuts off again before the placeholders: they
    are therefore words of the vocabulary, not added tokens."""
    special = ["|ENDOFTEXT|", "<s>", "</s>", "<0x04>", "|SPEAKER|", "|NEWLINE|"]
    state = json.loads(byte_level_tokenizer(special, begin=None).backend_tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:4]
    state["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        *(pre_tokenizers.Split(token, "isolated") for token in special[4:]),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="|ENDOFTEXT|", bos_token="<s>", eos_token="</s>"
    )


def build_fuyu() -> tuple[PreTrainedModel, ProcessorMixin]:
    """No image encoder: pixels of patches are projected, with an end of line after every row. Padding is left."""
    tokenizer = fuyu_tokenizer()
    processor = transformers.FuyuProcessor(
        transformers.FuyuImageProcessor(size=SIZE, patch_size={"height": PATCH, "width": PATCH}), tokenizer
    )
    text = text_config("persimmon", tokenizer, hidden_dropout=0.0, attention_dropout=0.0, qk_layernorm=True)
    config = transformers.FuyuConfig(
        text_config=text, image_size=IMAGE_SIZE, patch_size=PATCH, num_channels=3,
        image_token_id=processor.image_token_id,
    )  # fmt: skip
    return transformers.FuyuForCausalLM(config), processor


FAMILIES: dict[str, Callable[[], tuple[PreTrainedModel, ProcessorMixin]]] = {
    "git": build_git,
    "blip": build_blip,
    "kosmos-2": build_kosmos2,
    "kosmos-2.5": build_kosmos2_5,
    "mllama": build_mllama,
    "idefics": build_idefics,
    "idefics2": build_idefics2,
    "instructblipvideo": build_instructblipvideo,
    "fuyu": build_fuyu,
}
