"""Answers that a model writes itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from PIL import Image
from transformers import GenerationConfig

from .answers import append, left_padded
from .scoring import COARSE_TOLERANCE, TOLERANCE
from .surrogate import Surrogate


logger = logging.getLogger(__name__)

# Up to which length of prefix a model's own `generate` was found right, and the models whose is not.
_RIGHT_TO: WeakKeyDictionary[Surrogate, int] = WeakKeyDictionary()
_BY_FULL_PASSES: WeakSet[Surrogate] = WeakSet()


@torch.no_grad()
def generate(
    surrogate: Surrogate,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    canvas: torch.Tensor | Sequence[torch.Tensor] | None = None,
    max_new_tokens: int = 16,
    stop: Sequence[str] = (),
) -> list[str]:
    r"""
    The most likely answer, token by token (greedy), to every question.

    Rows are padded on the left and written by the model's own `generate`. The first time, and again for prefixes a quarter
    longer, the answers are compared with a full forward pass; a model whose `generate` writes something else gets a full
    pass per token, and a warning says so once.

    Args:
        surrogate ([`Surrogate`]): The model.
        images (`Sequence[PIL.Image.Image]`): 8-bit images as deployed, one per question.
        questions (`Sequence[str]`): One per image.
        canvas (`torch.Tensor`, *optional*): The float canvases of an unbounded prompt, to be used instead of `images`.
        max_new_tokens (`int`, *optional*, defaults to 16): Where an answer is cut.
        stop (`Sequence[str]`, *optional*): Texts that end an answer, beside the model's own end tokens.

    Returns:
        `list[str]`: The answers without special tokens, without the stop text and without space around them.
    """
    inputs = surrogate.encode(images, questions, canvas, unbounded=canvas is not None)
    if surrogate in _BY_FULL_PASSES:
        written = _by_full_passes(surrogate, inputs, max_new_tokens)
    else:
        written = _by_generate(surrogate, inputs, max_new_tokens, stop)
    answers = surrogate.tokenizer.batch_decode(written, skip_special_tokens=True)
    return [_cut(answer, stop) for answer in answers]


def _by_generate(
    surrogate: Surrogate, inputs: dict[str, Any], max_new_tokens: int, stop: Sequence[str]
) -> list[list[int]]:
    """What the model's own `generate` writes; the first time, and for longer prefixes, after a look at whether it is what
    full passes find most likely."""
    side = "decoder_" if surrogate.is_encoder_decoder else ""
    lengths = inputs[f"{side}attention_mask"].sum(1)
    try:
        written = _generated(surrogate, inputs, max_new_tokens, stop)
        reason = None
        if int(lengths.max()) > 1.25 * _RIGHT_TO.get(surrogate, 0):
            # A row that is padded, if there is one.
            reason = _doubt(surrogate, inputs, written, int(lengths.argmin()))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a stranger's model may raise anything; why is told below, and full passes follow
        reason = f"{type(error).__name__}: {error}"
    if reason is None:
        _RIGHT_TO[surrogate] = max(_RIGHT_TO.get(surrogate, 0), int(lengths.max()))
        return written
    logger.warning("%s (%s): every token of an answer costs a full forward pass, as its own `generate` does not do (%s).",
                   surrogate.name, surrogate.config.model_type, reason)  # fmt: skip
    _BY_FULL_PASSES.add(surrogate)
    return _by_full_passes(surrogate, inputs, max_new_tokens)


def _generated(
    surrogate: Surrogate, inputs: dict[str, Any], max_new_tokens: int, stop: Sequence[str]
) -> list[list[int]]:
    side, grows = "decoder_" if surrogate.is_encoder_decoder else "", surrogate.family.grows
    rows = len(inputs[f"{side}input_ids"])
    # Stripped of padding and of what a tokenizer closes a text with, then padded anew: a model goes on at the right end.
    inputs, _, _ = append(inputs, [[]] * rows, side=side, repeated=grows)
    inputs = left_padded(inputs, surrogate.tokenizer.pad_token_id or 0, side=side, repeated=grows)
    begin = inputs[f"{side}input_ids"]
    settings = _settings(surrogate, max_new_tokens, stop)
    owner = surrogate.base_model
    own, owner.generation_config = owner.generation_config, settings["generation_config"]
    try:
        output = surrogate.model.generate(**inputs, **settings)
    finally:
        owner.generation_config = own
    # Some models give what they were given as well, others only what is new.
    length = begin.shape[1]
    if output.shape[1] >= length and torch.equal(output[:, :length], begin):
        output = output[:, length:]
    return [_until_end(row, settings["generation_config"]) for row in output.tolist()]


def _until_end(ids: list[int], config: GenerationConfig) -> list[int]:
    stops = [place for place, token in enumerate(ids) if token in config.eos_token_id]
    if stops:
        return ids[: stops[0] + 1]
    while ids and ids[-1] == config.pad_token_id:
        # Of a row that a stop text has ended, beside longer ones.
        ids = ids[:-1]
    return ids


def _doubt(surrogate: Surrogate, inputs: dict[str, Any], written: list[list[int]], row: int) -> str | None:
    """Whether any token of the row is not the most likely one of a full pass, and which."""
    longer, start, labels = surrogate.append_ids(inputs, [ids or [surrogate.end_token_id or 0] for ids in written])
    logits = surrogate.answer_logits(longer, start, labels.shape[1])[row].float()
    logits = logits[labels[row] != -100]
    tolerance = TOLERANCE.get(surrogate.model.dtype, COARSE_TOLERANCE)
    for place, (token, values) in enumerate(zip(written[row], logits, strict=False)):
        # Written so that a value that is not a number fails as well.
        if not values.max() - values[token] <= tolerance:
            return f"token {place + 1} is {token}, where a full pass finds {int(values.argmax())} most likely"
    return None


def _by_full_passes(surrogate: Surrogate, inputs: dict[str, Any], max_new_tokens: int) -> list[list[int]]:
    side = "decoder_" if surrogate.is_encoder_decoder else ""
    written: list[list[int]] = [[] for _ in inputs[f"{side}input_ids"]]
    ends = _settings(surrogate, max_new_tokens, ())["generation_config"].eos_token_id
    for _ in range(max_new_tokens):
        longer, start, labels = surrogate.append_ids(inputs, [[*ids, surrogate.end_token_id or 0] for ids in written])
        logits = surrogate.answer_logits(longer, start, labels.shape[1])
        for ids, row, label in zip(written, logits, labels, strict=True):
            if not ids or ids[-1] not in ends:
                ids.append(int(row[label != -100][-1].argmax()))
        if all(ids[-1] in ends for ids in written):
            break
    return written


def _settings(surrogate: Surrogate, max_new_tokens: int, stop: Sequence[str]) -> dict[str, Any]:
    # A checkpoint's own settings may sample, penalise and force: of them only the tokens are taken. `generate` would take
    # the others from the model's, which is why that is replaced as well while it runs.
    given = surrogate.model.generation_config
    own = given.eos_token_id if isinstance(given.eos_token_id, (list, tuple)) else [given.eos_token_id]
    ends = sorted({int(token) for token in (*own, surrogate.end_token_id) if token is not None})
    pads = (given.pad_token_id, surrogate.tokenizer.pad_token_id, *ends, 0)
    config = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, eos_token_id=ends, bos_token_id=given.bos_token_id,
        pad_token_id=next(token for token in pads if token is not None),
        decoder_start_token_id=given.decoder_start_token_id,
    )  # fmt: skip
    settings: dict[str, Any] = {"generation_config": config}
    if stop:
        config.stop_strings = list(stop)
        settings["tokenizer"] = surrogate.tokenizer
    return settings


def _cut(answer: str, stop: Sequence[str]) -> str:
    for text in stop:
        answer = answer.split(text, 1)[0]
    return answer.strip()
