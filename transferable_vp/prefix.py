"""Candidates read from one pass over image and question: its cache is shared by all of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from .answers import append
from .surrogate import Surrogate


# Candidates per step where every one has a copy of the cache: more are slower, as the copies no longer fit near the CPU.
CHUNK = 25


class Prefix(NamedTuple):
    """What a pass over image and question leaves: the logits that predict a first token, and the cache behind them.

    Attributes:
        logits (`torch.Tensor`): `(rows, vocabulary)`.
        cache (`Cache`): Keys and values of every row, or states.
        length (`int`): Tokens in every row of the cache.
        positions (`torch.Tensor` or `None`): Last position of every row, `(..., rows, 1)` as the text model numbers them.
        repeated (`dict`): The last entry of further inputs per token, `(rows, 1, ...)`, which answers repeat.
    """

    logits: torch.Tensor
    cache: Any
    length: int
    positions: torch.Tensor | None
    repeated: dict[str, torch.Tensor]


class Tree(NamedTuple):
    """Candidates as a tree in which those that begin alike share nodes.

    Attributes:
        tokens, parents, depths (`list[int]`): One entry per node. A root has the parent -1 and the depth 0.
        paths (`list[list[int]]`): Nodes that precede every token of a candidate, -1 for the prefix itself.
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    paths: list[list[int]]


def make_tree(candidates: Sequence[Sequence[int]]) -> Tree:
    """The tree of `candidates`. A candidate's last token needs no node: nothing is read after it."""
    known: dict[tuple[int, int], int] = {}
    tree = Tree([], [], [], [])
    for ids in candidates:
        node, path = -1, [-1]
        for depth, token in enumerate(ids[:-1]):
            if (node, token) not in known:
                known[node, token] = len(tree.tokens)
                tree.tokens.append(token)
                tree.parents.append(node)
                tree.depths.append(depth)
            node = known[node, token]
            path.append(node)
        tree.paths.append(path)
    return tree


def read_prefix(surrogate: Surrogate, inputs: dict[str, Any]) -> Prefix:
    """Runs image and question once. Rows must be of equal length."""
    # Padding, and what a tokenizer closes a text with, would stand between question and answer.
    inputs, _, _ = append(inputs, [[]] * len(inputs["input_ids"]), repeated=surrogate.family.grows)
    model = surrogate.model
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    with _positions(surrogate) as seen:
        output = model(**inputs, cache=cache, use_cache=True, **surrogate.last_logits(1))
    positions = next((p for p in seen if p is not None), None)
    length = cache.get_seq_length()
    if length == 0:
        raise RuntimeError("it keeps its cache to itself")
    # A part of the model takes none of them.
    grows = () if surrogate.family.text_model else surrogate.family.grows
    repeated = {name: inputs[name][:, -1:] for name in grows}
    return Prefix(output.logits[:, -1], cache, length, None if positions is None else positions[..., -1:], repeated)


@contextmanager
def _positions(surrogate: Surrogate) -> Iterator[list[torch.Tensor | None]]:
    """Records the position ids that the text model is given in the pass that runs inside."""
    seen: list[torch.Tensor | None] = []
    decoder = surrogate.model.get_decoder()
    handle = decoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("position_ids")), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def score_tree(surrogate: Surrogate, inputs: dict[str, Any], candidates: Sequence[Sequence[int]]) -> torch.Tensor:
    r"""
    Log-probabilities of every token of every candidate: all of them in one row behind the prefix, each node seeing the
    prefix and its own ancestors.

    Returns:
        `torch.Tensor`: float32 `(rows, candidates, longest candidate)`, zero beyond a candidate's end.
    """
    prefix, tree = read_prefix(surrogate, inputs), make_tree(candidates)
    logits = prefix.logits[:, None]
    if tree.tokens:
        rows, device = len(prefix.logits), prefix.logits.device
        depths = torch.tensor(tree.depths, device=device)
        first = torch.tensor(prefix.length) if prefix.positions is None else prefix.positions + 1
        positions = (
            (first.to(device) + depths).expand(*first.shape[:-1], len(depths)) if first.ndim else first + depths
        )
        step = surrogate.text_model(
            input_ids=torch.tensor([tree.tokens] * rows, device=device),
            attention_mask=_tree_masks(surrogate, tree, prefix, rows),
            position_ids=positions if positions.ndim > 1 else positions.expand(rows, -1),
            cache=prefix.cache,
            use_cache=True,
            **{name: value.repeat_interleave(len(depths), 1) for name, value in prefix.repeated.items()},
        )
        logits = torch.cat([logits, step.logits], dim=1)
    # The prefix is entry 0, node i is entry i + 1.
    return _gather(logits, [[node + 1 for node in path] for path in tree.paths], candidates)


def _gather(
    logits: torch.Tensor, entries: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Log-probabilities of the candidates' tokens, of logits `(rows, entries, vocabulary)` the ones that predict each."""
    places = [(column, place) for column, ids in enumerate(candidates) for place in range(len(ids))]
    columns, order = torch.tensor(places, device=logits.device).unbind(1)
    entry = torch.tensor([e for path in entries for e in path], device=logits.device)
    token = torch.tensor([t for ids in candidates for t in ids], device=logits.device)
    result = torch.zeros(len(logits), len(candidates), max(map(len, candidates)), device=logits.device)
    result[:, columns, order] = logits[:, entry, token].float() - logits.float().logsumexp(-1)[:, entry]
    return result


def _tree_masks(surrogate: Surrogate, tree: Tree, prefix: Prefix, rows: int) -> Any:
    """What every node may look at, `(rows, 1, nodes, keys)`, 0 or the least float; one for every kind of layer."""
    nodes, device, dtype = len(tree.tokens), prefix.logits.device, surrogate.model.dtype
    ancestors = torch.eye(nodes, dtype=torch.bool)
    for node, parent in enumerate(tree.parents):
        if parent >= 0:
            ancestors[node] |= ancestors[parent]
    depths = torch.tensor(tree.depths)

    def mask(window: int | None) -> torch.Tensor:
        kept = prefix.length if window is None else min(prefix.length, window - 1)
        visible = torch.cat([torch.ones(nodes, kept, dtype=torch.bool), ancestors], dim=1)
        if window is not None:
            # Counted back from the prefix's end, at which the cache of such a layer ends too.
            ages = torch.cat([torch.arange(kept, 0, -1), -depths])
            visible &= depths[:, None] + ages[None] < window
        floats = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
        return floats.to(device).expand(rows, 1, -1, -1)

    config = surrogate.model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds == {"full_attention"}:
        return mask(None)
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise RuntimeError(f"it has layers of {', '.join(sorted(kinds))}")
    return {kind: mask(None if kind == "full_attention" else config.sliding_window) for kind in kinds}


def score_copies(surrogate: Surrogate, inputs: dict[str, Any], candidates: Sequence[Sequence[int]]) -> torch.Tensor:
    """As [`score_tree`], with a copy of the cache for every candidate: also for layers that keep states."""
    prefix = read_prefix(surrogate, inputs)
    rows, device = len(prefix.logits), prefix.logits.device
    longest = max(map(len, candidates))
    result = torch.zeros(rows, len(candidates), longest, device=device)
    # Of all rows together, as every copy has keys and values of its own.
    chunk = max(1, CHUNK // rows)
    for begin in range(0, len(candidates), chunk):
        part = candidates[begin : begin + chunk]
        copies = torch.arange(rows, device=device).repeat_interleave(len(part))
        logits = prefix.logits[copies, None]
        steps = max(map(len, part)) - 1
        if steps:
            tokens = torch.tensor([[*ids[:-1], *[0] * (steps + 1 - len(ids))] for ids in part], device=device)
            cache = copy.deepcopy(prefix.cache)
            cache.reorder_cache(copies)
            repeated = {name: value[copies].repeat_interleave(steps, 1) for name, value in prefix.repeated.items()}
            # Neither mask nor positions: with none, models number tokens from their cache, M-RoPE and all.
            step = surrogate.text_model(input_ids=tokens.repeat(rows, 1), cache=cache, use_cache=True, **repeated)
            logits = torch.cat([logits, step.logits], dim=1)
        result[:, begin : begin + chunk, : steps + 1] = _gather_rows(logits, part, rows)
    return result


def _gather_rows(logits: torch.Tensor, part: Sequence[Sequence[int]], rows: int) -> torch.Tensor:
    """As [`_gather`], of logits `(rows * candidates, length, vocabulary)` with a row of their own per candidate."""
    length = logits.shape[1]
    entries = [[column * length + place for place in range(len(ids))] for column, ids in enumerate(part)]
    return _gather(logits.unflatten(0, (rows, len(part))).flatten(1, 2), entries, part)


def score_decoder(surrogate: Surrogate, inputs: dict[str, Any], candidates: Sequence[Sequence[int]]) -> torch.Tensor:
    """As [`score_tree`] for encoder-decoders: the encoder is run once, its output shared by all candidates."""
    output = surrogate.model(**inputs, use_cache=False)
    output = getattr(output, "language_model_outputs", None) or output
    states = output.encoder_last_hidden_state
    begin = inputs["decoder_input_ids"]
    rows, length = begin.shape
    result = torch.zeros(rows, len(candidates), max(map(len, candidates)), device=begin.device)
    chunk = max(1, CHUNK // rows)
    for start in range(0, len(candidates), chunk):
        part = candidates[start : start + chunk]
        copies = torch.arange(rows, device=begin.device).repeat_interleave(len(part))
        decoder = {key: inputs[key][copies] for key in ("decoder_input_ids", "decoder_attention_mask")}
        decoder, _, _ = append(decoder, [ids[:-1] for _ in range(rows) for ids in part], side="decoder_")
        mask = {"attention_mask": inputs["attention_mask"][copies]} if "attention_mask" in inputs else {}
        logits = surrogate.text_model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states[copies]), **mask, **decoder, use_cache=False
        ).logits[:, length - 1 :]
        result[:, start : start + chunk, : logits.shape[1]] = _gather_rows(logits, part, rows)
    return result
