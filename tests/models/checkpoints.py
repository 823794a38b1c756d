"""Checkpoints in the layouts that the authors of the paper's models published, tiny and random, and what goes with them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer


Weights = dict[str, torch.Tensor]

# Heads are 88 and 64 wide, as in the published models: no shape shows how many there are.
VIT, VIT_MLP, VIT_LAYERS, PATCH, IMAGE_SIZE = 176, 40, 3, 8, 32
PATCHES = (IMAGE_SIZE // PATCH) ** 2
QFORMER, QFORMER_MLP, QFORMER_LAYERS, QUERIES = 128, 24, 4, 4
LLAMA, LLAMA_MLP, LLAMA_LAYERS, LLAMA_HEADS = 32, 48, 2, 4

WORDS = ["What", "is", "in", "the", "picture", "This", "a", "photo", "of", "red", "blue", "square", "Img", "Human"]


def llama_tokenizer(**names: str) -> LlamaTokenizer:
    """A LLaMA tokenizer of few words: `<unk>`, `<s>`, `</s>`, 256 bytes, letters, words with a space before, `[PAD]`."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    letters = sorted({*"".join(WORDS), *"▁<>/?.:#airplneh"})
    merges = []
    for word in ["▁" + word for word in WORDS] + WORDS:
        for end in range(2, len(word) + 1):
            if (pair := (word[: end - 1], word[end - 1])) not in merges:
                merges.append(pair)
    for token in (*letters, *("".join(pair) for pair in merges), "[PAD]"):
        vocab.setdefault(token, len(vocab))
    return LlamaTokenizer(vocab=vocab, merges=merges, pad_token="[PAD]", **names)


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> Weights:
    """Normal values at the scale of their width; those of norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if "norm" in key.lower() or key.startswith("ln_"):
            weights[key] = 0.2 * noise + float(key.endswith("weight"))
        elif len(shape) == 1:
            weights[key] = 0.2 * noise
        else:
            weights[key] = noise * math.prod(shape[1:]) ** -0.5
    return weights


def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def eva(prefix: str = "", seed: int = 1) -> Weights:
    """`eva_vit_g.pth`; with the prefix `visual_encoder.` as it is inside other files."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, VIT),
        "pos_embed": (1, PATCHES + 1, VIT),
        "patch_embed.proj.weight": (VIT, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (VIT,),
    }
    for layer in range(VIT_LAYERS):
        block = f"blocks.{layer}."
        shapes |= norm(f"{block}norm1", VIT) | norm(f"{block}norm2", VIT)
        shapes |= {f"{block}attn.q_bias": (VIT,), f"{block}attn.v_bias": (VIT,)}
        shapes[f"{block}attn.qkv.weight"] = (3 * VIT, VIT)
        shapes |= linear(f"{block}attn.proj", VIT, VIT)
        shapes |= linear(f"{block}mlp.fc1", VIT_MLP, VIT) | linear(f"{block}mlp.fc2", VIT, VIT_MLP)
    weights = random_weights({prefix + key: shape for key, shape in shapes.items()}, seed)
    for name in ("cls_token", "pos_embed"):
        weights[prefix + name] *= 3
    return weights


def qformer(text_vocabulary: int | None, seed: int = 2) -> Weights:
    """The Q-Former, queries and `ln_vision` of a LAVIS file; `text_vocabulary` is `None` for one that reads no text."""
    shapes: dict[str, tuple[int, ...]] = norm("ln_vision", VIT) | {"query_tokens": (1, QUERIES, QFORMER)}
    bert = "Qformer.bert."
    shapes |= norm(f"{bert}embeddings.LayerNorm", QFORMER)
    if text_vocabulary is not None:
        shapes[f"{bert}embeddings.word_embeddings.weight"] = (text_vocabulary, QFORMER)
        shapes[f"{bert}embeddings.position_embeddings.weight"] = (64, QFORMER)
    for index in range(QFORMER_LAYERS):
        layer = f"{bert}encoder.layer.{index}."
        for kind, source in (("attention", QFORMER), *([("crossattention", VIT)] if index % 2 == 0 else [])):
            shapes |= linear(f"{layer}{kind}.self.query", QFORMER, QFORMER)
            shapes |= linear(f"{layer}{kind}.self.key", QFORMER, source)
            shapes |= linear(f"{layer}{kind}.self.value", QFORMER, source)
            shapes |= linear(f"{layer}{kind}.output.dense", QFORMER, QFORMER)
            shapes |= norm(f"{layer}{kind}.output.LayerNorm", QFORMER)
        for side in ("_query", *([""] if text_vocabulary is not None else [])):
            shapes |= linear(f"{layer}intermediate{side}.dense", QFORMER_MLP, QFORMER)
            shapes |= linear(f"{layer}output{side}.dense", QFORMER, QFORMER_MLP)
            shapes |= norm(f"{layer}output{side}.LayerNorm", QFORMER)
    weights = random_weights(shapes, seed)
    weights["query_tokens"] *= 10
    # A buffer that is saved along.
    return weights | {f"{bert}embeddings.position_ids": torch.arange(64)[None]}


def projection(name: str, source: int = QFORMER, seed: int = 3) -> Weights:
    return random_weights(linear(name, LLAMA, source), seed)


def minigpt4() -> Weights:
    return projection("llama_proj")


def vpgtrans() -> Weights:
    return qformer(None, seed=4) | projection("llama_proj", seed=5)


def bliva(text_vocabulary: int) -> Weights:
    """With its image encoder inside, as its authors saved all weights."""
    return {
        **eva("visual_encoder."), **qformer(text_vocabulary), **projection("llm_proj"),
        **projection("vision_project", VIT, seed=6),
    }  # fmt: skip


def save_checkpoint(weights: Weights, path: Path, **more: object) -> Path:
    """As LAVIS' runner does: under `model`, with what else a run needs to go on."""
    torch.save({"model": weights, "epoch": 3, "config": {"run": {"lr": 1e-4}}, **more}, path)
    return path


def save_vicuna(folder: Path, seed: int = 7) -> Path:
    """A folder as merged from the delta of Vicuna v0: parts of pickles, an index, the tokenizer."""
    tokenizer = llama_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=LLAMA, intermediate_size=LLAMA_MLP, num_hidden_layers=LLAMA_LAYERS,
        num_attention_heads=LLAMA_HEADS, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        tiny.initialise(model)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    for layer in range(LLAMA_LAYERS):
        # Buffers that transformers saved along before 4.32.
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(LLAMA // LLAMA_HEADS // 2)
    keys = list(weights)
    half = len(keys) // 2
    parts = {"pytorch_model-00001-of-00002.bin": keys[:half], "pytorch_model-00002-of-00002.bin": keys[half:]}
    for name, names in parts.items():
        torch.save({key: weights[key] for key in names}, folder / name)
    places = {key: name for name, names in parts.items() for key in names}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder
