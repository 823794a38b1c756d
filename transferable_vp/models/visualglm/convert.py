"""VisualGLM-6B from the files of THUDM/visualglm-6b: ChatGLM-6B, and towers as SwissArmyTransformer has them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from transformers import BlipImageProcessor

from ..convert import Rules, Weights, read_weights, rename, write_model
from .configuration import VisualGLMConfig
from .modeling import VisualGLMForConditionalGeneration
from .processing import VisualGLMProcessor
from .tokenization import VisualGLMTokenizer


_END = r"\.(weight|bias)"
_TEXT = r"transformer\.layers\.(\d+)\."
_VIT = r"image_encoder\.vit\.transformer\."
_QFORMER = r"image_encoder\.qformer\.transformer\."
_TO_TEXT = r"model.language_model.layers.\1."
_TO_VIT = r"model.vision_model.encoder.layers.\1."
_TO_QFORMER = r"model.qformer.encoder.layer.\1."
# Fused projections get their new place here and are taken apart by [`_split`], which also moves the norms of the
# Q-Former: its layers begin with what BERT's end with.
RULES = Rules(
    rename={
        r"lm_head\.weight": "lm_head.weight",
        r"transformer\.word_embeddings\.weight": "model.language_model.embed_tokens.weight",
        r"transformer\.final_layernorm" + _END: r"model.language_model.norm.\1",
        _TEXT + r"((?:input|post_attention)_layernorm)" + _END: _TO_TEXT + r"\2.\3",
        _TEXT + r"attention\.query_key_value" + _END: _TO_TEXT + r"self_attn.query_key_value.\2",
        _TEXT + r"attention\.dense" + _END: _TO_TEXT + r"self_attn.o_proj.\2",
        _TEXT + r"mlp\.dense_h_to_4h" + _END: _TO_TEXT + r"mlp.up_proj.\2",
        _TEXT + r"mlp\.dense_4h_to_h" + _END: _TO_TEXT + r"mlp.down_proj.\2",
        _VIT + r"word_embeddings\.weight": "model.vision_model.embeddings.class_embedding",
        _VIT + r"position_embeddings\.weight": "model.vision_model.embeddings.position_embedding",
        r"image_encoder\.vit\.mixins\.patch_embedding\.proj"
        + _END: r"model.vision_model.embeddings.patch_embedding.\1",
        r"image_encoder\.vit\.mixins\.cls\.ln_vision" + _END: r"model.vision_model.post_layernorm.\1",
        _VIT + r"layers\.(\d+)\.input_layernorm" + _END: _TO_VIT + r"layer_norm1.\2",
        _VIT + r"layers\.(\d+)\.attention\.query_key_value" + _END: _TO_VIT + r"self_attn.qkv.\2",
        _VIT + r"layers\.(\d+)\.attention\.dense" + _END: _TO_VIT + r"self_attn.projection.\2",
        _VIT + r"layers\.(\d+)\.post_attention_layernorm" + _END: _TO_VIT + r"layer_norm2.\2",
        _VIT + r"layers\.(\d+)\.mlp\.dense_h_to_4h" + _END: _TO_VIT + r"mlp.fc1.\2",
        _VIT + r"layers\.(\d+)\.mlp\.dense_4h_to_h" + _END: _TO_VIT + r"mlp.fc2.\2",
        _QFORMER + r"word_embeddings\.weight": "model.query_tokens",
        _QFORMER + r"layers\.(\d+)\.input_layernorm" + _END: _TO_QFORMER + r"input_layernorm.\2",
        _QFORMER + r"final_layernorm" + _END: r"model.qformer.encoder.final_layernorm.\1",
        _QFORMER + r"layers\.(\d+)\.attention\.query_key_value" + _END: (
            _TO_QFORMER + r"attention.attention.query_key_value.\2"
        ),
        _QFORMER + r"layers\.(\d+)\.attention\.dense" + _END: _TO_QFORMER + r"attention.output.dense.\2",
        _QFORMER + r"layers\.(\d+)\.post_attention_layernorm" + _END: _TO_QFORMER + r"attention.output.LayerNorm.\2",
        _QFORMER + r"layers\.(\d+)\.cross_attention\.(query|key_value)" + _END: (
            _TO_QFORMER + r"crossattention.attention.\2.\3"
        ),
        _QFORMER + r"layers\.(\d+)\.cross_attention\.dense" + _END: _TO_QFORMER + r"crossattention.output.dense.\2",
        _QFORMER + r"layers\.(\d+)\.post_cross_attention_layernorm" + _END: (
            _TO_QFORMER + r"crossattention.output.LayerNorm.\2"
        ),
        _QFORMER + r"layers\.(\d+)\.mlp\.dense_h_to_4h" + _END: _TO_QFORMER + r"intermediate_query.dense.\2",
        _QFORMER + r"layers\.(\d+)\.mlp\.dense_4h_to_h" + _END: _TO_QFORMER + r"output_query.dense.\2",
        r"image_encoder\.glm_proj" + _END: r"model.language_projection.\1",
    },
    drop={
        _TEXT + r"attention\.rotary_emb\.inv_freq": "the frequencies follow from the configuration; published code "
        "does not read them either",
    },
)


def convert_visualglm(checkpoint: str | Path, output: str | Path, max_shard_size: int = 2 * 10**9) -> None:
    r"""
    Writes a folder that `AutoModelForImageTextToText` and `AutoProcessor` load. Weights keep their precision, float16.

    Args:
        checkpoint (`str` or `Path`):
            Folder with the files of `THUDM/visualglm-6b`: `config.json`, `pytorch_model-*.bin` with their index, and
            `ice_text.model`. Its Python files are not needed and not run.
        output (`str` or `Path`): Folder to write. It must be empty, or not be there.
        max_shard_size (`int`, *optional*, defaults to 2 * 10**9): Bytes of one file of weights.

    Raises:
        FileNotFoundError: If one of the files is missing.
        ValueError: If the folder has another model, or its tokenizer does not belong to it.
    """
    checkpoint = Path(checkpoint)
    for name in ("config.json", "ice_text.model"):
        if not (checkpoint / name).exists():
            raise FileNotFoundError(f"The folder {checkpoint} has no {name}: download all of THUDM/visualglm-6b.")
    config = read_config(checkpoint / "config.json")
    tokenizer = VisualGLMTokenizer(str(checkpoint / "ice_text.model"))
    text = config.text_config
    for name in ("pad", "bos", "eos", "gmask"):
        wanted, found = getattr(text, f"{name}_token_id"), getattr(tokenizer, f"{name}_token_id")
        if wanted != found:
            raise ValueError(
                f"{checkpoint} says that the {name} token is {wanted}, and its ice_text.model has it at {found}: the "
                "files are not of the same model, or the configuration counts image tokens, as ChatGLM-6B first did."
            )
    size = config.vision_config.image_size
    processor = VisualGLMProcessor(
        BlipImageProcessor(size={"height": size, "width": size}), tokenizer, config.num_query_tokens
    )
    weights = _split(rename(read_weights(checkpoint), RULES, checkpoint), config)
    write_model(output, VisualGLMForConditionalGeneration, config, weights, processor, max_shard_size)


def read_config(path: str | Path) -> VisualGLMConfig:
    """The configuration that the published `config.json` describes in names of its own."""
    published = json.loads(Path(path).read_text(encoding="utf-8"))
    if not {"eva_config", "qformer_config", "inner_hidden_size"} <= set(published):
        raise ValueError(
            f"{path} is of a {published.get('model_type', 'nameless')} model without `eva_config` and "
            "`qformer_config`: it is not VisualGLM-6B's."
        )
    eva, qformer = published["eva_config"], published["qformer_config"]
    return VisualGLMConfig(
        vision_config=_sizes(eva) | {"image_size": eva["image_size"][0], "patch_size": eva["patch_size"]},
        qformer_config=_sizes(qformer) | {"cross_attention_frequency": _every(qformer["is_decoder"], path)},
        text_config=_sizes(published)
        | {
            "vocab_size": published["vocab_size"],
            "max_position_embeddings": published["max_sequence_length"],
            **{f"{name}_token_id": published[f"{name}_token_id"] for name in ("pad", "bos", "eos", "gmask")},
        },
        num_query_tokens=qformer["vocab_size"],
    )


def _sizes(published: dict[str, Any]) -> dict[str, Any]:
    """What the three parts have in common."""
    return {
        "hidden_size": published["hidden_size"],
        "intermediate_size": published.get("inner_hidden_size") or 4 * published["hidden_size"],
        "num_hidden_layers": published["num_layers"],
        "num_attention_heads": published["num_attention_heads"],
        "layer_norm_eps": published["layernorm_epsilon"],
    }


def _every(crossing: list[bool], path: str | Path) -> int:
    """At which distance layers look at the image, of a list that says for each whether it does."""
    frequency = [*crossing, True].index(True, 1)
    if crossing != [layer % frequency == 0 for layer in range(len(crossing))]:
        raise ValueError(f"{path} has cross attention in the layers {crossing}: it should be in every second one.")
    return frequency


def _split(weights: Weights, config: VisualGLMConfig) -> Weights:
    """Takes fused projections apart, and gives the Q-Former's norms the places that BERT has for them."""
    heads, last = config.text_config.num_attention_heads, config.qformer_config.num_hidden_layers - 1
    result: Weights = {}
    for key, tensor in weights.items():
        base, end = key.rsplit(".", 2)[0], key.rsplit(".", 1)[1]
        if ".self_attn.query_key_value." in key:
            # Of every head in turn its query, key and value. To join the heads would copy; `write_model` does.
            parts = tensor.unflatten(0, (heads, 3, -1)).unbind(1)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                result[f"{base}.{name}.{end}"] = part
        elif key.startswith("model.qformer.") and key.endswith(
            ("query_key_value." + end, "attention.key_value." + end)
        ):
            names = ("query", "key", "value")[-3 if "query_key_value" in key else -2 :]
            for name, part in zip(names, tensor.chunk(len(names)), strict=True):
                result[f"{base}.{name}.{end}"] = part
        elif norm := re.fullmatch(r"model\.qformer\.encoder\.(?:layer\.(\d+)\.input|final)_layernorm\.(\w+)", key):
            layer = last if norm[1] is None else int(norm[1]) - 1
            place = "layernorm" if layer < 0 else f"encoder.layer.{layer}.output_query.LayerNorm"
            result[f"model.qformer.{place}.{end}"] = tensor
        elif key == "model.query_tokens" or key.endswith((".class_embedding", ".position_embedding")):
            result[key] = tensor[None]
        else:
            result[key] = tensor
    return result


__all__ = ["convert_visualglm", "read_config"]
