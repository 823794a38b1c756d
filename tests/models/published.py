r"""
The paper's models restated in plain torch, from their papers and published code, and from nothing of transformers: EVA's
image encoder, the Q-Former, LLaMA and T5 as functions of weights under the keys that their authors use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


Weights = dict[str, Tensor]

EVA_HEAD, BERT_HEAD = 88, 64


def part(weights: Weights, prefix: str) -> Weights:
    """The weights below `prefix`."""
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def linear(weights: Weights, name: str, states: Tensor) -> Tensor:
    return states @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)


def layer_norm(weights: Weights, name: str, states: Tensor, eps: float) -> Tensor:
    centred = states - states.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + eps).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def rms_norm(weight: Tensor, states: Tensor, eps: float) -> Tensor:
    return weight * states / (states.square().mean(-1, keepdim=True) + eps).sqrt()


def attend(
    query: Tensor, key: Tensor, value: Tensor, head: int, bias: Tensor | float = 0, scale: float | None = None
) -> Tensor:
    """Softmax attention; all are `(batch, length, width)`, the result too. `bias` goes onto the scores."""
    query, key, value = (states.unflatten(-1, (-1, head)).transpose(1, 2) for states in (query, key, value))
    scores = query @ key.transpose(2, 3) * (head**-0.5 if scale is None else scale) + bias
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def hidden(mask: Tensor) -> Tensor:
    """`(batch, keys)` of ones and zeros as something to add to scores."""
    return (1 - mask[:, None, None].float()) * -1e9


def image_layers(weights: Weights, pixels: Tensor) -> list[Tensor]:
    """EVA: what every layer gives, `(batch, 1 + patches, width)`."""
    patch = weights["patch_embed.proj.weight"].shape[-1]
    states = F.conv2d(pixels, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=patch)
    states = states.flatten(2).transpose(1, 2)
    states = torch.cat([weights["cls_token"].expand(len(pixels), -1, -1), states], dim=1) + weights["pos_embed"]
    seen = []
    while f"blocks.{len(seen)}.norm1.weight" in weights:
        block = part(weights, f"blocks.{len(seen)}.")
        normed = layer_norm(block, "norm1", states, 1e-6)
        query, key, value = (normed @ block["attn.qkv.weight"].T).chunk(3, -1)
        attended = attend(query + block["attn.q_bias"], key, value + block["attn.v_bias"], EVA_HEAD)
        states = states + linear(block, "attn.proj", attended)
        inner = F.gelu(linear(block, "mlp.fc1", layer_norm(block, "norm2", states, 1e-6)))
        states = states + linear(block, "mlp.fc2", inner)
        seen.append(states)
    return seen


def bert_attention(weights: Weights, name: str, states: Tensor, source: Tensor, bias: Tensor | float = 0) -> Tensor:
    query, key, value = (linear(weights, f"{name}.self.{part_}", given)
                         for part_, given in (("query", states), ("key", source), ("value", source)))  # fmt: skip
    attended = linear(weights, f"{name}.output.dense", attend(query, key, value, BERT_HEAD, bias))
    return layer_norm(weights, f"{name}.output.LayerNorm", states + attended, 1e-12)


def bert_feed_forward(weights: Weights, side: str, states: Tensor) -> Tensor:
    inner = F.gelu(linear(weights, f"intermediate{side}.dense", states))
    return layer_norm(
        weights, f"output{side}.LayerNorm", states + linear(weights, f"output{side}.dense", inner), 1e-12
    )


def query_tokens(weights: Weights, image: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """The Q-Former of a LAVIS file: what its queries become `(batch, queries, width)`, having read the image and `ids`."""
    bert = part(weights, "Qformer.bert.")
    states = weights["query_tokens"].expand(len(image), -1, -1)
    queries, bias = states.shape[1], 0
    if ids is not None:
        words = bert["embeddings.word_embeddings.weight"][ids]
        words = words + bert["embeddings.position_embeddings.weight"][: ids.shape[1]]
        states = torch.cat([states, words], dim=1)
        bias = hidden(torch.cat([torch.ones(len(ids), queries), mask], dim=1))
    states = layer_norm(bert, "embeddings.LayerNorm", states, 1e-12)
    index = 0
    while f"encoder.layer.{index}.attention.output.dense.weight" in bert:
        layer = part(bert, f"encoder.layer.{index}.")
        states = bert_attention(layer, "attention", states, states, bias)
        queried, text = states[:, :queries], states[:, queries:]
        if index % 2 == 0:
            queried = bert_attention(layer, "crossattention", queried, image)
        queried = bert_feed_forward(layer, "_query", queried)
        states = queried if ids is None else torch.cat([queried, bert_feed_forward(layer, "", text)], dim=1)
        index += 1
    return states[:, :queries]


def image_tokens(
    weights: Weights,
    vit: Weights,
    pixels: Tensor,
    projection: str,
    ids: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """What the language model sees of an image: encoder, `ln_vision`, Q-Former and projection."""
    image = layer_norm(weights, "ln_vision", image_layers(vit, pixels)[-1], 1e-5)
    return linear(weights, projection, query_tokens(weights, image, ids, mask))


def bliva_tokens(weights: Weights, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """BLIVA's: the queries, then the patches of the last layer but one, projected, without the class token."""
    vit = part(weights, "visual_encoder.")
    queries = image_tokens(weights, vit, pixels, "llm_proj", ids, mask)
    patches = linear(weights, "vision_project", image_layers(vit, pixels)[-2][:, 1:])
    return torch.cat([queries, patches], dim=1)


def rotate(states: Tensor, head: int, theta: float = 10000.0) -> Tensor:
    """Rotary positions 0, 1, ... of `(batch, length, width)`: the two halves of a head are the parts of numbers."""
    length = states.shape[1]
    speeds = theta ** -(torch.arange(0, head, 2).double() / head)
    angles = (torch.arange(length).double()[:, None] * speeds).float()[None, :, None]
    first, second = states.unflatten(-1, (-1, head)).chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(2)


def llama(weights: Weights, states: Tensor, heads: int, eps: float = 1e-6) -> Tensor:
    """Logits `(batch, length, vocabulary)` of LLaMA, from embeddings. Padding is behind the text, so no mask is needed."""
    head, length = states.shape[-1] // heads, states.shape[1]
    causal = torch.full((length, length), -1e9).triu(1)
    index = 0
    while f"model.layers.{index}.input_layernorm.weight" in weights:
        layer = part(weights, f"model.layers.{index}.")
        normed = rms_norm(layer["input_layernorm.weight"], states, eps)
        query, key, value = (linear(layer, f"self_attn.{name}_proj", normed) for name in "qkv")
        attended = attend(rotate(query, head), rotate(key, head), value, head, causal)
        states = states + linear(layer, "self_attn.o_proj", attended)
        normed = rms_norm(layer["post_attention_layernorm.weight"], states, eps)
        inner = F.silu(linear(layer, "mlp.gate_proj", normed)) * linear(layer, "mlp.up_proj", normed)
        states = states + linear(layer, "mlp.down_proj", inner)
        index += 1
    return linear(weights, "lm_head", rms_norm(weights["model.norm.weight"], states, eps))


def t5_distances(rows: int, columns: int, two_sided: bool, buckets: int = 32, furthest: int = 128) -> Tensor:
    """T5's bucket of every distance `(rows, columns)`: the near ones have one each, the far ones share, by logarithm."""
    result = torch.zeros(rows, columns, dtype=torch.long)
    for row in range(rows):
        for column in range(columns):
            distance, first, count = row - column, 0, buckets
            if two_sided:
                count //= 2
                first = count if distance < 0 else 0
                distance = abs(distance)
            distance = max(distance, 0)
            exact = count // 2
            if distance >= exact:
                share = math.log(distance / exact) / math.log(furthest / exact)
                distance = min(exact + int(share * (count - exact)), count - 1)
            result[row, column] = first + distance
    return result


def t5_stack(
    weights: Weights, states: Tensor, head: int, bias: Tensor, source: Tensor | None, source_bias: Tensor
) -> Tensor:
    """Encoder, or with `source` decoder, of T5 v1.1 with an exact GELU (`blip2_t5.py` of LAVIS)."""
    index = 0
    while f"block.{index}.layer.0.layer_norm.weight" in weights:
        block = part(weights, f"block.{index}.")
        kinds = ["SelfAttention"] if source is None else ["SelfAttention", "EncDecAttention"]
        for number, kind in enumerate(kinds):
            layer = part(block, f"layer.{number}.")
            normed = rms_norm(layer["layer_norm.weight"], states, 1e-6)
            given = normed if kind == "SelfAttention" else source
            query, key, value = (
                linear(layer, f"{kind}.{name}", s) for name, s in zip("qkv", (normed, given, given), strict=True)
            )
            scores = bias if kind == "SelfAttention" else source_bias
            states = states + linear(layer, f"{kind}.o", attend(query, key, value, head, scores, scale=1.0))
        layer = part(block, f"layer.{len(kinds)}.")
        normed = rms_norm(layer["layer_norm.weight"], states, 1e-6)
        inner = F.gelu(linear(layer, "DenseReluDense.wi_0", normed)) * linear(layer, "DenseReluDense.wi_1", normed)
        states = states + linear(layer, "DenseReluDense.wo", inner)
        index += 1
    return rms_norm(weights["final_layer_norm.weight"], states, 1e-6)


def t5(weights: Weights, embeddings: Tensor, mask: Tensor, decoder_ids: Tensor, head: int) -> Tensor:
    """Logits `(batch, length, vocabulary)` of T5's decoder; its encoder is given embeddings."""
    encoder, decoder = part(weights, "encoder."), part(weights, "decoder.")
    name = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    count, length = embeddings.shape[1], decoder_ids.shape[1]
    bias = encoder[name][t5_distances(count, count, True)].permute(2, 0, 1)[None] + hidden(mask)
    states = t5_stack(encoder, embeddings, head, bias, None, hidden(mask))
    bias = decoder[name][t5_distances(length, length, False)].permute(2, 0, 1)[None]
    bias = bias + torch.full((length, length), -1e9).triu(1)
    written = t5_stack(decoder, weights["shared.weight"][decoder_ids], head, bias, states, hidden(mask))
    return linear(weights, "lm_head", written)


def answer_log_probabilities(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Of one row's logits `(length, vocabulary)`, whose text ends with `ids`: the log-probability of each of them."""
    predicted = logits[-len(ids) - 1 : -1].log_softmax(-1)
    return predicted[torch.arange(len(ids)), torch.tensor(ids)]
