"""Log-likelihoods of candidate answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from PIL import Image

from .prefix import make_tree, score_copies, score_decoder, score_tree
from .surrogate import Surrogate


Length = Literal["mean", "sum"]
Method = Callable[[Surrogate, dict[str, Any], Sequence[Sequence[int]]], torch.Tensor]

logger = logging.getLogger(__name__)

# Logits of one pass, in bytes of float32.
BUDGET = 2**29
# How far a method may be from full forward passes, in nats per candidate: rounding, and no more.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
COARSE_TOLERANCE = 0.1


@dataclass
class _Checked:
    """What is known of the methods for one model: up to which length of prefix each was found right, or why not."""

    right_to: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    told: bool = False


_CHECKED: WeakKeyDictionary[Surrogate, _Checked] = WeakKeyDictionary()


@torch.no_grad()
def score_candidates(
    surrogate: Surrogate,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    candidates: Sequence[Sequence[str]],
    canvas: torch.Tensor | Sequence[torch.Tensor] | None = None,
    length: Length = "mean",
    end: bool = False,
) -> list[torch.Tensor]:
    r"""
    Log-likelihood of every candidate answer, by default as a mean over its own tokens without end token (the paper's
    ranking).

    Image and question are run once for all candidates, which share their cache, and candidates that begin alike share
    their common tokens. The first time, and again for prefixes a quarter longer, this is compared with full forward
    passes of some candidates; a model for which it is not the same gets full passes, and a warning says so once.

    Args:
        surrogate ([`Surrogate`]): The model.
        images (`Sequence[PIL.Image.Image]`): 8-bit images as deployed, one per question.
        questions (`Sequence[str]`): One per image.
        candidates (`Sequence[Sequence[str]]`): The answers to rank, one list per image.
        canvas (`torch.Tensor`, *optional*): The float canvases of an unbounded prompt, to be used instead of `images`.
        length (`str`, *optional*, defaults to `"mean"`):
            `"mean"` over tokens (the paper), or their `"sum"`, which is the likelihood proper and favours short answers.
        end (`bool`, *optional*, defaults to `False`): Whether the end token is scored as well, as one token more.

    Returns:
        `list[torch.Tensor]`: float32 `(number of candidates,)` per image, on the CPU.

    Raises:
        ValueError: If `length` is neither, or an image has no candidates.
    """
    if length not in get_args(Length):
        raise ValueError(f"`length` is {length!r}; it must be one of {', '.join(map(repr, get_args(Length)))}.")
    if not all(candidates):
        raise ValueError("There are no candidates for an image: give at least one answer to rank.")
    tail = [surrogate.end_token_id] if end and surrogate.end_token_id is not None else []
    ids = [
        tuple((*surrogate.answer_ids(q, name), *tail) for name in names)
        for q, names in zip(questions, candidates, strict=True)
    ]
    inputs = _encode(surrogate, images, questions, canvas, range(len(images)))
    tokens: list[torch.Tensor] = [torch.empty(0)] * len(images)
    if all(len(candidate) == 1 for row in ids for candidate in row):
        logits = _logits(surrogate, inputs, [row[0] for row in ids])
        for row, (values, names) in enumerate(zip(logits, ids, strict=True)):
            tokens[row] = values[0].log_softmax(-1)[[i for (i,) in names], None].cpu()
    else:
        side = "decoder_" if surrogate.is_encoder_decoder else ""
        lengths = inputs[f"{side}attention_mask"].sum(1).tolist()
        groups: dict[Any, list[int]] = {}
        for row, key in enumerate(zip(lengths, ids, strict=True)):
            groups.setdefault(key, []).append(row)
        for (prefix, names), rows in groups.items():
            # Split again if all of their logits would not fit.
            size = max(1, BUDGET // (4 * surrogate.vocabulary * (1 + len(make_tree(names).tokens))))
            for part in (rows[begin : begin + size] for begin in range(0, len(rows), size)):
                some = inputs if len(part) == len(images) else _encode(surrogate, images, questions, canvas, part)
                first = partial(_encode, surrogate, images, questions, canvas, part[:1])
                values = _read(surrogate, some, names, prefix, first)
                for row, value in zip(part, values.cpu(), strict=True):
                    tokens[row] = value
    counts = [torch.tensor([len(candidate) for candidate in row]) for row in ids]
    return [t.sum(-1) / (n if length == "mean" else 1) for t, n in zip(tokens, counts, strict=True)]


def _encode(
    surrogate: Surrogate, images: Sequence[Any], questions: Sequence[str], canvas: Any, rows: Sequence[int]
) -> dict[str, Any]:
    given = None if canvas is None else [canvas[row] for row in rows]
    return surrogate.encode(
        [images[row] for row in rows], [questions[row] for row in rows], given, unbounded=canvas is not None
    )


def _logits(surrogate: Surrogate, inputs: dict[str, Any], answers: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Of a full forward pass per answer the float32 logits that predict its tokens, `(length, vocabulary)`."""
    inputs, start, labels = surrogate.append_ids(inputs, answers)
    logits = surrogate.answer_logits(inputs, start, labels.shape[1])
    return [row[label != -100].float() for row, label in zip(logits, labels, strict=True)]


def _read(
    surrogate: Surrogate,
    inputs: dict[str, Any],
    candidates: Sequence[Sequence[int]],
    prefix: int,
    first_row: Callable[[], dict[str, Any]],
) -> torch.Tensor:
    """Log-probabilities `(rows, candidates, longest)`, zero beyond a candidate's end, by the best method that is right."""
    checked = _CHECKED.setdefault(surrogate, _Checked())
    methods: dict[str, Method] = {"tree": score_tree, "copies": score_copies}
    if surrogate.is_encoder_decoder:
        methods = {"decoder": score_decoder}
    for name, method in methods.items():
        if name in checked.wrong:
            continue
        try:
            values = method(surrogate, inputs, candidates)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a stranger's model may raise anything; why is told below, and full passes follow
            checked.wrong[name] = f"{type(error).__name__}: {error}"
            continue
        if prefix > 1.25 * checked.right_to.get(name, 0):
            off = _difference(surrogate, first_row(), candidates, values[0])
            # Half precision is coarser the larger the numbers are.
            size = float(values[0].sum(-1).abs().max()) * torch.finfo(surrogate.model.dtype).eps
            if not off <= TOLERANCE.get(surrogate.model.dtype, COARSE_TOLERANCE) + 4 * size:
                checked.wrong[name] = f"off by {off:.2g} nats"
                continue
            checked.right_to[name] = prefix
        return values
    if not checked.told:
        checked.told = True
        logger.warning(
            "%s (%s): every candidate costs a full forward pass, as sharing the cache of image and question is not exact "
            "(%s).", surrogate.name, surrogate.config.model_type, "; ".join(f"{n}: {w}" for n, w in checked.wrong.items())
        )  # fmt: skip
    return _loop(surrogate, inputs, candidates)


def _loop(surrogate: Surrogate, inputs: dict[str, Any], candidates: Sequence[Sequence[int]]) -> torch.Tensor:
    side = "decoder_" if surrogate.is_encoder_decoder else ""
    rows, device = len(inputs[f"{side}input_ids"]), inputs[f"{side}input_ids"].device
    result = torch.zeros(rows, len(candidates), max(map(len, candidates)), device=device)
    for column, ids in enumerate(candidates):
        index = torch.tensor(ids, device=device)[:, None]
        for row, logits in enumerate(_logits(surrogate, inputs, [ids] * rows)):
            result[row, column, : len(ids)] = logits.log_softmax(-1).gather(1, index)[:, 0]
    return result


def _difference(
    surrogate: Surrogate, inputs: dict[str, Any], candidates: Sequence[Sequence[int]], values: torch.Tensor
) -> float:
    """Largest difference from full forward passes, per candidate, over the longest, the first and the last of them."""
    longest = max(range(len(candidates)), key=lambda column: len(candidates[column]))
    columns = sorted({0, longest, len(candidates) - 1})
    full = _loop(surrogate, inputs, [candidates[column] for column in columns])[0]
    return float((full.sum(-1) - values[columns].sum(-1)).abs().max())
