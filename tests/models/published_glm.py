"""VisualGLM-6B restated in plain torch, one text at a time, on weights by their published keys.

From THUDM/VisualGLM-6B (model/blip2.py, modeling_chatglm.py of its Hub files) and SwissArmyTransformer (ViTModel, the
default hooks of BaseTransformer): what they compute, with none of their code and none of what is tested.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tiny_visualglm import ice_text, tokenizer


Weights = dict[str, torch.Tensor]

LAYERS, WIDTH, HEADS, INNER = 3, 32, 4, 96
VIT_LAYERS, VIT_WIDTH, VIT_HEADS, VIT_INNER = 2, 24, 3, 40
Q_LAYERS, Q_WIDTH, Q_HEADS, QUERIES = 4, 16, 2, 4
IMAGE, PATCH = 32, 8


def config() -> dict[str, Any]:
    """`config.json` as published, at these sizes."""
    tokens = tokenizer()
    return {
        "model_type": "chatglm", "architectures": ["ChatGLMModel"], "num_layers": LAYERS, "hidden_size": WIDTH,
        "num_attention_heads": HEADS, "inner_hidden_size": INNER, "layernorm_epsilon": 1e-5,
        "max_sequence_length": 2048, "position_encoding_2d": True, "use_cache": True, "torch_dtype": "float16",
        "vocab_size": len(tokens) + 2, "pad_token_id": 3, "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id, "mask_token_id": tokens.mask_token_id,
        "gmask_token_id": tokens.gmask_token_id, "image_length": QUERIES,
        "eva_config": {
            "num_layers": VIT_LAYERS, "hidden_size": VIT_WIDTH, "num_attention_heads": VIT_HEADS, "vocab_size": 1,
            "layernorm_order": "pre", "max_sequence_length": (IMAGE // PATCH) ** 2 + 1,
            "inner_hidden_size": VIT_INNER, "use_final_layernorm": False, "layernorm_epsilon": 1e-6,
            "image_size": [IMAGE, IMAGE], "pre_len": 1, "post_len": 0, "in_channels": 3, "num_classes": 0,
            "patch_size": PATCH,
        },
        "qformer_config": {
            "num_layers": Q_LAYERS, "hidden_size": Q_WIDTH, "num_attention_heads": Q_HEADS, "vocab_size": QUERIES,
            "layernorm_order": "post", "max_sequence_length": 0, "layernorm_epsilon": 1e-12,
            "is_decoder": [layer % 2 == 0 for layer in range(Q_LAYERS)], "cross_attn_hidden_size": VIT_WIDTH,
        },
    }  # fmt: skip


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    def linear(name: str, into: int, out: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{name}.weight", (out, into)), (f"{name}.bias", (out,)))

    def norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{name}.weight", (width,)), (f"{name}.bias", (width,)))

    def layer(name: str, width: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from norm(f"{name}.input_layernorm", width)
        yield from linear(f"{name}.attention.query_key_value", width, 3 * width)
        yield from linear(f"{name}.attention.dense", width, width)
        yield from norm(f"{name}.post_attention_layernorm", width)
        yield from linear(f"{name}.mlp.dense_h_to_4h", width, inner)
        yield from linear(f"{name}.mlp.dense_4h_to_h", inner, width)

    vocabulary = config()["vocab_size"]
    yield "transformer.word_embeddings.weight", (vocabulary, WIDTH)
    for index in range(LAYERS):
        yield from layer(f"transformer.layers.{index}", WIDTH, INNER)
        yield f"transformer.layers.{index}.attention.rotary_emb.inv_freq", (WIDTH // HEADS // 4,)
    yield from norm("transformer.final_layernorm", WIDTH)
    yield "lm_head.weight", (vocabulary, WIDTH)
    vit, qformer = "image_encoder.vit", "image_encoder.qformer.transformer"
    yield f"{vit}.transformer.word_embeddings.weight", (1, VIT_WIDTH)
    yield f"{vit}.transformer.position_embeddings.weight", ((IMAGE // PATCH) ** 2 + 1, VIT_WIDTH)
    for index in range(VIT_LAYERS):
        yield from layer(f"{vit}.transformer.layers.{index}", VIT_WIDTH, VIT_INNER)
    yield f"{vit}.mixins.patch_embedding.proj.weight", (VIT_WIDTH, 3, PATCH, PATCH)
    yield f"{vit}.mixins.patch_embedding.proj.bias", (VIT_WIDTH,)
    yield from norm(f"{vit}.mixins.cls.ln_vision", VIT_WIDTH)
    yield f"{qformer}.word_embeddings.weight", (QUERIES, Q_WIDTH)
    for index in range(Q_LAYERS):
        name = f"{qformer}.layers.{index}"
        yield from layer(name, Q_WIDTH, 4 * Q_WIDTH)
        if index % 2 == 0:
            yield from linear(f"{name}.cross_attention.query", Q_WIDTH, Q_WIDTH)
            yield from linear(f"{name}.cross_attention.key_value", VIT_WIDTH, 2 * Q_WIDTH)
            yield from linear(f"{name}.cross_attention.dense", Q_WIDTH, Q_WIDTH)
            yield from norm(f"{name}.post_cross_attention_layernorm", Q_WIDTH)
    yield from norm(f"{qformer}.final_layernorm", Q_WIDTH)
    yield from linear("image_encoder.glm_proj", Q_WIDTH, WIDTH)


def weights(seed: int = 0) -> Weights:
    """Random weights under every key of the published files; norms are not ones and zeros either."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in _shapes():
        value = torch.randn(shape, generator=generator)
        if "norm" in name or "ln_vision" in name:
            made[name] = 1 + 0.2 * value if name.endswith("weight") else 0.2 * value
        else:
            made[name] = (
                0.5 * value if "embeddings" in name or len(shape) == 1 else value / math.sqrt(value[0].numel())
            )
    return made


def save(folder: Path, made: Weights, parts: int = 2) -> Path:
    """Writes a folder as on the Hub: configuration, tokenizer, and the weights in parts with an index."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config()))
    (folder / "ice_text.model").write_bytes(ice_text())
    places = {}
    names = list(made)
    for part in range(parts):
        file = f"pytorch_model-{part + 1:05d}-of-{parts:05d}.bin"
        torch.save({name: made[name] for name in names[part::parts]}, folder / file)
        places |= dict.fromkeys(names[part::parts], file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


class Published:
    """The published computation on weights by their published keys."""

    def __init__(self, made: Weights) -> None:
        self.weights = made
        published = config()
        self.bos, self.gmask = published["bos_token_id"], published["gmask_token_id"]

    def linear(self, name: str, states: torch.Tensor) -> torch.Tensor:
        return states @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, states: torch.Tensor, epsilon: float) -> torch.Tensor:
        centred = states - states.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    @staticmethod
    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`(heads, tokens, head_dim)` to `(tokens, width)`; `hidden` is what may not be seen."""
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        if hidden is not None:
            scores = scores.masked_fill(hidden, -10000.0)
        return (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)

    @staticmethod
    def heads(states: torch.Tensor, count: int) -> torch.Tensor:
        return states.view(len(states), count, -1).transpose(0, 1)

    def plain_attention(self, name: str, states: torch.Tensor, heads: int) -> torch.Tensor:
        """SwissArmyTransformer's: all queries, then all keys, then all values."""
        query, key, value = self.linear(f"{name}.query_key_value", states).chunk(3, -1)
        attended = self.attend(self.heads(query, heads), self.heads(key, heads), self.heads(value, heads))
        return self.linear(f"{name}.dense", attended)

    def mlp(self, name: str, states: torch.Tensor, approximate: str = "none") -> torch.Tensor:
        inner = F.gelu(self.linear(f"{name}.dense_h_to_4h", states), approximate=approximate)
        return self.linear(f"{name}.dense_4h_to_h", inner)

    def image_features(self, image: torch.Tensor) -> torch.Tensor:
        """`(3, height, width)`, normalised, to `(queries, width)`."""
        vit = "image_encoder.vit"
        patches = F.conv2d(
            image[None], self.weights[f"{vit}.mixins.patch_embedding.proj.weight"],
            self.weights[f"{vit}.mixins.patch_embedding.proj.bias"], stride=PATCH,
        )[0].flatten(1).T  # fmt: skip
        states = torch.cat([self.weights[f"{vit}.transformer.word_embeddings.weight"], patches])
        states = states + self.weights[f"{vit}.transformer.position_embeddings.weight"]
        for index in range(VIT_LAYERS):
            name = f"{vit}.transformer.layers.{index}"
            normed = self.norm(f"{name}.input_layernorm", states, 1e-6)
            states = states + self.plain_attention(f"{name}.attention", normed, VIT_HEADS)
            states = states + self.mlp(f"{name}.mlp", self.norm(f"{name}.post_attention_layernorm", states, 1e-6))
        return self.queries(self.norm(f"{vit}.mixins.cls.ln_vision", states, 1e-5))

    def queries(self, encoded: torch.Tensor) -> torch.Tensor:
        """The Q-Former, norms behind every part of a layer and one before the first, and the projection."""
        qformer = "image_encoder.qformer.transformer"
        states = self.weights[f"{qformer}.word_embeddings.weight"]
        for index in range(Q_LAYERS):
            name = f"{qformer}.layers.{index}"
            states = self.norm(f"{name}.input_layernorm", states, 1e-12)
            states = states + self.plain_attention(f"{name}.attention", states, Q_HEADS)
            states = self.norm(f"{name}.post_attention_layernorm", states, 1e-12)
            if index % 2 == 0:
                query = self.linear(f"{name}.cross_attention.query", states)
                key, value = self.linear(f"{name}.cross_attention.key_value", encoded).chunk(2, -1)
                attended = self.attend(
                    self.heads(query, Q_HEADS), self.heads(key, Q_HEADS), self.heads(value, Q_HEADS)
                )
                states = states + self.linear(f"{name}.cross_attention.dense", attended)
                states = self.norm(f"{name}.post_cross_attention_layernorm", states, 1e-12)
            states = states + self.mlp(f"{name}.mlp", states)
        return self.linear("image_encoder.glm_proj", self.norm(f"{qformer}.final_layernorm", states, 1e-12))

    @staticmethod
    def turn(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotates `(tokens, heads, dim)` by positions `(tokens,)`, with frequencies in half precision."""
        dim = states.shape[-1]
        frequencies = (1.0 / 10000 ** (torch.arange(0, dim, 2).float() / dim)).half().float()
        angles = (positions.float()[:, None] * frequencies).repeat(1, 2)[:, None]
        turned = torch.cat([-states[..., dim // 2 :], states[..., : dim // 2]], -1)
        return states * angles.cos() + turned * angles.sin()

    def logits(self, ids: list[int], image: torch.Tensor | None = None, before: int = 0) -> torch.Tensor:
        """All logits, `(tokens, vocabulary)`, of a text whose image stands behind its first `before` tokens."""
        end, mask_place = ids.index(self.bos), ids.index(self.gmask)
        states = self.weights["transformer.word_embeddings.weight"][torch.tensor(ids)]
        if image is not None:
            states = torch.cat([states[:before], self.image_features(image), states[before + QUERIES :]])
        positions, blocks = torch.arange(len(ids)), torch.zeros(len(ids), dtype=torch.long)
        positions[end:] = mask_place
        blocks[end:] = torch.arange(len(ids) - end) + 1
        visible = torch.ones(len(ids), len(ids)).tril()
        visible[:, :end] = 1
        scale = math.sqrt(2 * LAYERS)
        for index in range(LAYERS):
            name = f"transformer.layers.{index}"
            normed = self.norm(f"{name}.input_layernorm", states, 1e-5)
            # Head by head: its query, its key, its value.
            mixed = self.linear(f"{name}.attention.query_key_value", normed).view(len(ids), HEADS, -1)
            query, key, value = mixed.chunk(3, -1)
            query, key = (
                torch.cat([self.turn(first, positions), self.turn(second, blocks)], -1)
                for first, second in (query.chunk(2, -1), key.chunk(2, -1))
            )
            attended = self.attend(query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), visible < 0.5)
            states = normed * scale + self.linear(f"{name}.attention.dense", attended)
            normed = self.norm(f"{name}.post_attention_layernorm", states, 1e-5)
            states = normed * scale + self.mlp(f"{name}.mlp", normed, approximate="tanh")
        return self.norm("transformer.final_layernorm", states, 1e-5) @ self.weights["lm_head.weight"].T
