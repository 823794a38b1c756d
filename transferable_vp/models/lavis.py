r"""
MiniGPT-4, VPGTrans and BLIVA from the files their authors published, all in the layout of LAVIS.

What is not as published, in any of them:

- The published code needs no image placeholder, and transformers does. It is `<0x00>`, id 3, the byte that no text has:
  as no row is added to the output layer, probabilities over the vocabulary are those of the published code.
- MiniGPT-4 and VPGTrans are plain `Blip2ForConditionalGeneration`, which has one epsilon for all layer norms of its
  image encoder: 1e-6. The published code has 1e-5 in the last (`ln_vision`). BLIVA has its own class and is exact.
- BLIVA's code adds a padding token with an embedding of noise to a Vicuna without one. Here padding is then `</s>`, which
  is masked all the same. Vicuna-7B v0 has `[PAD]`.
- LLaMA's tokenizer in transformers 5 makes one piece less of a fragment that begins with a space. None of the paper's
  templates has one.
- Weights stay in the precision of their files, and run in the one the model is loaded with. The authors run the image
  encoder under float16 autocast.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipImageProcessor,
    LlamaTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_protobuf_available, is_sentencepiece_available
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from .bliva import BlivaConfig, BlivaForConditionalGeneration, BlivaProcessor
from .convert import Rules, Weights, read_weights, rename, write_model
from .minigpt4 import MiniGPT4Processor


# Widths of one attention head, which no shape shows: EVA-ViT-g has 1408 // 88 heads (eva_vit.py), BERT 768 // 64.
EVA_HEAD, BERT_HEAD = 88, 64
IMAGE_TOKEN, IMAGE_TOKEN_ID = "<0x00>", 3

_LAYER = r"vision_model.encoder.layers.\1."
_EVA = {
    r"cls_token": "vision_model.embeddings.class_embedding",
    r"pos_embed": "vision_model.embeddings.position_embedding",
    r"patch_embed\.proj\.(weight|bias)": r"vision_model.embeddings.patch_embedding.\1",
    r"blocks\.(\d+)\.norm([12])\.(weight|bias)": _LAYER + r"layer_norm\2.\3",
    r"blocks\.(\d+)\.attn\.qkv\.weight": _LAYER + "self_attn.qkv.weight",
    # The key has no bias: [`_join_biases`] makes one of the two.
    r"blocks\.(\d+)\.attn\.([qv]_bias)": _LAYER + r"self_attn.\2",
    r"blocks\.(\d+)\.attn\.proj\.(weight|bias)": _LAYER + r"self_attn.projection.\2",
    r"blocks\.(\d+)\.mlp\.fc([12])\.(weight|bias)": _LAYER + r"mlp.fc\2.\3",
}
_QFORMER = {
    r"ln_vision\.(weight|bias)": r"vision_model.post_layernorm.\1",
    r"query_tokens": "query_tokens",
    r"Qformer\.bert\.encoder\.layer\.(\d+)\.(attention|crossattention)\.self\.(query|key|value)\.(weight|bias)": (
        r"qformer.encoder.layer.\1.\2.attention.\3.\4"
    ),
    r"Qformer\.bert\.(encoder\.layer\.\d+\.(?:attention|crossattention)\.output\..*)": r"qformer.\1",
    r"Qformer\.bert\.(encoder\.layer\.\d+\.(?:intermediate|output)_query\..*)": r"qformer.\1",
}
# The part of the Q-Former that reads text: InstructBLIP and its children have it, the others delete it.
_QFORMER_TEXT = {
    r"Qformer\.bert\.embeddings\.LayerNorm\.(weight|bias)": r"qformer.embeddings.layernorm.\1",
    r"Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight": r"qformer.embeddings.\1_embeddings.weight",
    r"Qformer\.bert\.(encoder\.layer\.\d+\.(?:intermediate|output)\..*)": r"qformer.\1",
}
_QFORMER_NO_TEXT = {r"Qformer\.bert\.embeddings\.LayerNorm\.(weight|bias)": r"qformer.layernorm.\1"}
_NO_TEXT = {
    r"Qformer\.bert\.embeddings\.(word|position)_embeddings\.weight": "the model deletes what its Q-Former reads text by",
    r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*": "as above",
}
_CONSTANT = {r"Qformer\.bert\.embeddings\.position_ids": "it only counts, and transformers counts by itself"}
_CLS = {r"Qformer\.cls\..*": "it predicts masked words, which only pretraining asks for"}
_LLM = {r"(llama_model|llm_model)\..*": "it is frozen, and the folder of Vicuna has it"}

EVA_RULES = Rules(
    _EVA,
    {
        r"blocks\.(39|[4-9]\d)\..*": "LAVIS builds the first 39 of 40 layers",
        r"(norm|fc_norm|head)\..*|mask_token|lm_head\..*": "LAVIS builds no head for the encoder, nor the norm before it",
    },
    need=("cls_token", "patch_embed.proj.weight"),
)
PROJECTION_RULES = Rules({r"llama_proj\.(weight|bias)": r"language_projection.\1"}, {}, ("llama_proj.weight",))
_VISUAL = {"visual_encoder" + r"\." + pattern: to for pattern, to in _EVA.items()}
VPGTRANS_RULES = Rules(
    {**PROJECTION_RULES.rename, **_QFORMER, **_QFORMER_NO_TEXT, **_VISUAL},
    {**_CONSTANT, **_CLS, **_NO_TEXT, **_LLM},
    need=("llama_proj.weight", "query_tokens", "ln_vision.weight"),
)
BLIP2_RULES = Rules(
    {**_QFORMER, **_QFORMER_NO_TEXT, **_VISUAL},
    {
        **_CONSTANT, **_CLS, **_NO_TEXT,
        r"(t5|opt)_proj\..*": "MiniGPT-4 has a projection of its own, into Vicuna",
        r"(t5|opt)_model\..*": "Vicuna takes the place of the language model",
    },
    need=("query_tokens", "ln_vision.weight"),
)  # fmt: skip
BLIVA_RULES = Rules(
    {
        r"llm_proj\.(weight|bias)": r"language_projection.\1",
        r"vision_project\.(weight|bias)": r"vision_project.\1",
        **_QFORMER, **_QFORMER_TEXT, **_VISUAL,
    },
    {**_CONSTANT, **_CLS, **_LLM},
    need=("vision_project.weight", "llm_proj.weight", "query_tokens", "ln_vision.weight"),
)  # fmt: skip
# Folders of transformers.
BLIP2_FOLDER_RULES = Rules(
    {r"((vision_model|qformer)\..*|query_tokens)": r"\1"},
    {
        r"language_projection\..*": "MiniGPT-4 has a projection of its own, into Vicuna",
        r"language_model\..*": "Vicuna takes the place of the language model",
    },
    need=("query_tokens", "vision_model.post_layernorm.weight"),
)
VISION_FOLDER_RULES = Rules(
    {r"(vision_model\.(embeddings|encoder)\..*)": r"\1"},
    {
        r"vision_model\.post_layernorm\..*": "it is trained, so the checkpoint has its own",
        r"(qformer|language_projection|language_model)\..*|query_tokens": "only the image encoder is wanted",
    },
)
LLAMA_RULES = Rules(
    {r"((model|lm_head)\.(?!.*rotary_emb\.inv_freq$).*)": r"language_model.\1"},
    {r".*\.rotary_emb\.inv_freq": "transformers computes it from the configuration"},
    need=("model.embed_tokens.weight", "lm_head.weight"),
)


def convert_minigpt4(
    checkpoint: str | Path, vicuna: str | Path, blip2: str | Path, output: str | Path, vit: str | Path | None = None,
    max_shard_size: int = 2 * 10**9,
) -> None:  # fmt: skip
    r"""
    Writes MiniGPT-4 as a `Blip2ForConditionalGeneration`.

    Args:
        checkpoint (`str` or `Path`): `prerained_minigpt4_7b.pth`: the projection.
        vicuna (`str` or `Path`): Folder of Vicuna-7B v0, weights and tokenizer.
        blip2 (`str` or `Path`):
            What has the Q-Former: folder of Salesforce/blip2-flan-t5-xxl, or `blip2_pretrained_flant5xxl.pth` of LAVIS.
        output (`str` or `Path`): Folder to write. It must be empty, or not be there.
        vit (`str` or `Path`, *optional*):
            `eva_vit_g.pth`, or a folder of BLIP-2 or InstructBLIP, where `blip2` has no image encoder.
        max_shard_size (`int`, *optional*, defaults to 2 * 10**9): Bytes of one part.

    Raises:
        ValueError: If a file is another than it should be, or misses something.
    """
    weights = rename(read_weights(checkpoint), PROJECTION_RULES, checkpoint)
    found = read_weights(blip2)
    rules = BLIP2_FOLDER_RULES if "language_projection.weight" in found else BLIP2_RULES
    weights |= _with_vision(rename(found, rules, blip2), blip2, vit)
    _write_blip2("minigpt4", weights, vicuna, output, max_shard_size)


def convert_vpgtrans(
    checkpoint: str | Path, vicuna: str | Path, output: str | Path, vit: str | Path | None = None,
    max_shard_size: int = 2 * 10**9,
) -> None:  # fmt: skip
    r"""
    Writes VPGTrans' VL-Vicuna as a `Blip2ForConditionalGeneration`.

    Args:
        checkpoint (`str` or `Path`): `vl-vicuna.pth`: Q-Former, queries, projection.
        vicuna (`str` or `Path`): Folder of Vicuna-7B v0, weights and tokenizer.
        output (`str` or `Path`): Folder to write. It must be empty, or not be there.
        vit (`str` or `Path`, *optional*):
            `eva_vit_g.pth`, or a folder of BLIP-2 or InstructBLIP, if the checkpoint has no image encoder.
        max_shard_size (`int`, *optional*, defaults to 2 * 10**9): Bytes of one part.

    Raises:
        ValueError: If a file is another than it should be, or misses something.
    """
    weights = _with_vision(rename(read_weights(checkpoint), VPGTRANS_RULES, checkpoint), checkpoint, vit)
    _write_blip2("vpgtrans", weights, vicuna, output, max_shard_size)


def convert_bliva(
    checkpoint: str | Path, vicuna: str | Path, output: str | Path, vit: str | Path | None = None,
    qformer_tokenizer: str | Path = "google-bert/bert-base-uncased", max_shard_size: int = 2 * 10**9,
) -> None:  # fmt: skip
    r"""
    Writes BLIVA as a [`BlivaForConditionalGeneration`].

    Args:
        checkpoint (`str` or `Path`): `bliva_vicuna7b.pth`: Q-Former, queries, both projections.
        vicuna (`str` or `Path`): Folder of Vicuna-7B v0, weights and tokenizer.
        output (`str` or `Path`): Folder to write. It must be empty, or not be there.
        vit (`str` or `Path`, *optional*):
            `eva_vit_g.pth`, or a folder of BLIP-2 or InstructBLIP, if the checkpoint has no image encoder.
        qformer_tokenizer (`str` or `Path`, *optional*, defaults to `"google-bert/bert-base-uncased"`):
            BERT's tokenizer, a folder or a Hub id.
        max_shard_size (`int`, *optional*, defaults to 2 * 10**9): Bytes of one part.

    Raises:
        ValueError: If a file is another than it should be, or misses something.
    """
    weights = _with_vision(rename(read_weights(checkpoint), BLIVA_RULES, checkpoint), checkpoint, vit)
    bert = AutoTokenizer.from_pretrained(qformer_tokenizer, truncation_side="left")
    bert.add_special_tokens({"bos_token": "[DEC]"})
    # One token is beginning, end and unknown (blip2_vicuna_instruct.py, which BLIVA took over).
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
    tokenizer = _vicuna_tokenizer(vicuna, **names)
    tokenizer.pad_token = "[PAD]" if "[PAD]" in tokenizer.get_vocab() else tokenizer.eos_token
    parts = _configs(weights, tokenizer, vicuna, checkpoint)
    config = BlivaConfig(**parts, image_token_index=IMAGE_TOKEN_ID)
    patches = weights["vision_model.embeddings.position_embedding"].shape[1] - 1
    processor = BlivaProcessor(_image_processor(parts), tokenizer, bert, config.num_query_tokens, patches,
                               image_token=IMAGE_TOKEN)  # fmt: skip
    if config.qformer_config.vocab_size != len(bert):
        raise ValueError(
            f"The Q-Former of {checkpoint} has {config.qformer_config.vocab_size} words and the tokenizer at "
            f"{qformer_tokenizer} {len(bert)}, with [DEC]: give that of bert-base-uncased."
        )
    weights |= _language_model(vicuna)
    write_model(output, BlivaForConditionalGeneration, config, weights, processor, max_shard_size)


def _write_blip2(name: str, weights: Weights, vicuna: str | Path, output: str | Path, max_shard_size: int) -> None:
    tokenizer = _vicuna_tokenizer(vicuna)
    # As both models' code; rows are masked by their length, so it may be the end token.
    tokenizer.pad_token = tokenizer.eos_token
    parts = _configs(weights, tokenizer, vicuna, name)
    # The name tells the two apart, which differ in how they end an answer (`transferable_vp.paper`).
    config = Blip2Config(**parts, image_token_index=IMAGE_TOKEN_ID, paper_model=name)
    processor = MiniGPT4Processor(_image_processor(parts), tokenizer, config.num_query_tokens, image_token=IMAGE_TOKEN)
    weights |= _language_model(vicuna)
    write_model(output, Blip2ForConditionalGeneration, config, weights, processor, max_shard_size)


def _with_vision(weights: Weights, source: str | Path, vit: str | Path | None) -> Weights:
    """Adds the image encoder from `vit`, where the checkpoint has none, and joins its biases."""
    has_own = any(key.startswith("vision_model.encoder.") for key in weights)
    if has_own == (vit is not None):
        raise ValueError(
            f"{source} has an image encoder of its own: leave out `vit`."
            if has_own
            else f"{source} has no image encoder: give `vit`, which is eva_vit_g.pth of LAVIS or a folder of "
            "Salesforce/blip2-flan-t5-xl, whose image encoder is the same."
        )
    if vit is not None:
        found = read_weights(vit)
        rules = VISION_FOLDER_RULES if "query_tokens" in found else EVA_RULES
        weights = weights | rename(found, rules, vit)
    return _join_biases(weights)


def _join_biases(weights: Weights) -> Weights:
    result = dict(weights)
    for key in [key for key in weights if key.endswith(".self_attn.q_bias")]:
        stem = key.removesuffix("q_bias")
        if f"{stem}v_bias" not in result:
            raise ValueError(
                f"There is a {key} and no {stem}v_bias: the checkpoint of the image encoder is not whole."
            )
        query, value = result.pop(key), result.pop(f"{stem}v_bias")
        result[f"{stem}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return result


def _language_model(vicuna: str | Path) -> Weights:
    return rename(read_weights(vicuna), LLAMA_RULES, vicuna)


def _vicuna_tokenizer(vicuna: str | Path, **names: str) -> PreTrainedTokenizerBase:
    needed = {"sentencepiece": is_sentencepiece_available(), "protobuf": is_protobuf_available()}
    if not (Path(vicuna) / "tokenizer.json").exists() and not all(needed.values()):
        # transformers 5.23 asks for tiktoken instead, which would not help.
        missing = " ".join(name for name, there in needed.items() if not there)
        raise ImportError(f"The tokenizer at {vicuna} is a SentencePiece model: `pip install {missing}` to read it.")
    # By its class, as early folders of Vicuna name one that never was ("LLaMATokenizer").
    tokenizer = LlamaTokenizer.from_pretrained(vicuna, **names)
    found = tokenizer.convert_ids_to_tokens(IMAGE_TOKEN_ID)
    if found != IMAGE_TOKEN:
        raise ValueError(f"Token {IMAGE_TOKEN_ID} of the tokenizer at {vicuna} is {found!r} and not {IMAGE_TOKEN!r}: it "
                         "is not that of a LLaMA.")  # fmt: skip
    return tokenizer


def _image_processor(parts: dict[str, Any]) -> BlipImageProcessor:
    size = parts["vision_config"]["image_size"]
    return BlipImageProcessor(
        size={"height": size, "width": size}, image_mean=OPENAI_CLIP_MEAN, image_std=OPENAI_CLIP_STD
    )


def _configs(
    weights: Weights, tokenizer: PreTrainedTokenizerBase, vicuna: str | Path, source: str | Path
) -> dict[str, Any]:
    """The configurations of the three parts, read off the shapes and the folder of Vicuna."""
    needed = ("query_tokens", "language_projection.weight", "vision_model.embeddings.patch_embedding.weight",
              "vision_model.embeddings.position_embedding", "vision_model.encoder.layers.0.mlp.fc1.weight",
              "qformer.encoder.layer.0.intermediate_query.dense.weight")  # fmt: skip
    if missing := [key for key in needed if key not in weights]:
        raise ValueError(f"None of the files for {source} has {', '.join(missing)}: one of them is not whole.")
    text: PreTrainedConfig = AutoConfig.from_pretrained(vicuna)
    width = weights["language_projection.weight"].shape[0]
    if text.model_type != "llama" or text.hidden_size != width:
        raise ValueError(
            f"The language model at {vicuna} is a {text.model_type} of width {getattr(text, 'hidden_size', None)}, and "
            f"{source} projects into a LLaMA of width {width}: give the Vicuna it was trained with (7B v0: 4096)."
        )
    if len(tokenizer) > text.vocab_size:
        raise ValueError(f"The tokenizer at {vicuna} has {len(tokenizer)} tokens and the model there {text.vocab_size}: "
                         "they are of two versions of Vicuna.")  # fmt: skip
    # What `generate` needs to know, and early folders of Vicuna have wrong or not at all.
    text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    text.pad_token_id = tokenizer.pad_token_id
    return {
        "vision_config": _vision_config(weights), "qformer_config": _qformer_config(weights),
        "text_config": text.to_dict(), "num_query_tokens": weights["query_tokens"].shape[1],
    }  # fmt: skip


def _vision_config(weights: Weights) -> dict[str, Any]:
    width, _, patch, _ = weights["vision_model.embeddings.patch_embedding.weight"].shape
    side = math.isqrt(weights["vision_model.embeddings.position_embedding"].shape[1] - 1)
    return {
        "hidden_size": width, "num_attention_heads": width // EVA_HEAD, "patch_size": patch, "image_size": side * patch,
        "num_hidden_layers": _layers(weights, r"vision_model\.encoder\.layers\.(\d+)\.layer_norm1\.weight"),
        "intermediate_size": weights["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "layer_norm_eps": 1e-6, "hidden_act": "gelu", "qkv_bias": True,
    }  # fmt: skip


def _qformer_config(weights: Weights) -> dict[str, Any]:
    width = weights["query_tokens"].shape[2]
    pattern = r"qformer\.encoder\.layer\.(\d+)\.crossattention\.output\.dense\.weight"
    crossed = sorted(int(match[1]) for key in weights if (match := re.fullmatch(pattern, key)))
    layers = _layers(weights, r"qformer\.encoder\.layer\.(\d+)\.attention\.output\.dense\.weight")
    config = {
        "hidden_size": width, "num_attention_heads": width // BERT_HEAD, "num_hidden_layers": layers,
        "intermediate_size": weights["qformer.encoder.layer.0.intermediate_query.dense.weight"].shape[0],
        "cross_attention_frequency": crossed[1] - crossed[0] if len(crossed) > 1 else layers,
        "layer_norm_eps": 1e-12,
    }  # fmt: skip
    words = "qformer.embeddings.word_embeddings.weight"
    if words in weights:
        config["vocab_size"] = weights[words].shape[0]
        config["max_position_embeddings"] = weights["qformer.embeddings.position_embeddings.weight"].shape[0]
    return config


def _layers(weights: Weights, pattern: str) -> int:
    return 1 + max((int(match[1]) for key in weights if (match := re.fullmatch(pattern, key))), default=-1)
