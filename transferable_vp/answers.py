"""Answers: what a forward pass gives of them, what they cost, and inputs with one behind the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel


# Inputs with one entry per text token, which grow when an answer is appended.
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")


class SurrogateOutput(NamedTuple):
    """What one forward pass of a surrogate gives.

    Attributes:
        logits (`torch.Tensor`): `(batch, length, vocabulary)`; `logits[:, i]` predicts `labels[:, i]`.
        labels (`torch.Tensor`): int64 `(batch, length)`, token ids of the answers, -100 elsewhere.
        features (`torch.Tensor` or `None`): `(tokens of the whole batch, width)`, the image features of this same pass.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    features: torch.Tensor | None

    def with_features_of(self, rows: Sequence[int], batch: int) -> SurrogateOutput:
        """The same with the image features of some images of the batch only, all of which have equally many."""
        assert self.features is not None  # the trainer records them before it asks for some
        return self._replace(features=self.features.unflatten(0, (batch, -1))[list(rows)].flatten(0, 1))


def answer_loss(output: SurrogateOutput) -> torch.Tensor:
    """Mean cross-entropy over all answer tokens of the batch, in float32 (TVP, eq. 1)."""
    return F.cross_entropy(output.logits.flatten(0, 1).float(), output.labels.flatten(), ignore_index=-100)


def append(
    inputs: dict[str, Any],
    answers: Sequence[Sequence[int]],
    side: str = "",
    pad: int = 0,
    token_type: int = 0,
    repeated: Sequence[str] = (),
    multiple: int = 1,
) -> tuple[dict[str, Any], int, torch.Tensor]:
    r"""
    Appends an answer to every row, whichever side the rows are padded on; afterwards it is the right one.

    Args:
        inputs (`dict`): The model's inputs, `input_ids` and `attention_mask` among them.
        answers (`Sequence[Sequence[int]]`): Token ids, one answer a row.
        side (`str`, *optional*, defaults to `""`): What the names begin with: `"decoder_"` for encoder-decoders.
        pad (`int`, *optional*, defaults to 0): Id that rows are padded with.
        token_type (`int`, *optional*, defaults to 0): Token type of an answer.
        repeated (`Sequence[str]`, *optional*): Further inputs per token, of which an answer repeats the last entry.
        multiple (`int`, *optional*, defaults to 1):
            Of which the length of all rows, and the first position whose logits are given, are made multiples: there are
            then few shapes.

    Returns:
        The longer inputs; the first position whose logits are needed; labels, int64 `(batch, length)`, aligned with the
        logits from there on, -100 where there is no answer token.
    """
    rows = inputs[f"{side}attention_mask"].bool()
    device, lengths = rows.device, rows.sum(1).tolist()
    fill = {"attention_mask": 1, "token_type_ids": token_type}
    result = dict(inputs)
    for name in (n for n in (*PER_TOKEN, *repeated) if side + n in inputs):
        grown = []
        for own, row, ids in zip(inputs[side + name], rows, answers, strict=True):
            if name == "input_ids":
                new = torch.tensor(ids, device=device)
            elif name in repeated:
                new = own[row][-1:].expand(len(ids), *own.shape[1:])
            else:
                new = torch.full((len(ids),), fill.get(name, 0), device=device)
            grown.append(torch.cat([own[row], new.to(own.dtype)]))
        value = pad if name == "input_ids" else 0
        padded = nn.utils.rnn.pad_sequence(grown, batch_first=True, padding_value=value)
        missing = -padded.shape[1] % multiple
        result[side + name] = F.pad(padded, [0, 0] * (padded.ndim - 2) + [0, missing], value=value)
    start = (min(lengths) - 1) // multiple * multiple
    labels = torch.full((len(answers), result[f"{side}input_ids"].shape[1] - start - 1), -100, device=device)
    for label, length, ids in zip(labels, lengths, answers, strict=True):
        first = length - 1 - start
        label[first : first + len(ids)] = torch.tensor(ids, device=device)
    return result, start, labels


def left_padded(inputs: dict[str, Any], pad: int = 0, side: str = "", repeated: Sequence[str] = ()) -> dict[str, Any]:
    """Moves the padding of every row from the right side, where [`append`] has it, to the left."""
    mask = inputs[f"{side}attention_mask"]
    lengths = mask.sum(1).tolist()
    result = dict(inputs)
    for name in (n for n in (*PER_TOKEN, *repeated) if side + n in inputs):
        moved = torch.full_like(inputs[side + name], pad if name == "input_ids" else 0)
        for row, length in enumerate(lengths):
            moved[row, mask.shape[1] - length :] = inputs[side + name][row, :length]
        result[side + name] = moved
    return result


def with_decoder_inputs(
    model: PreTrainedModel, inputs: dict[str, Any], rows: int, text_in_decoder: bool
) -> dict[str, Any]:
    """Adds what the decoder reads before an answer: its start token and, with `text_in_decoder`, the text."""
    inputs = dict(inputs)
    if text_in_decoder and "input_ids" in inputs:
        inputs |= {f"decoder_{key}": inputs.pop(key) for key in ("input_ids", "attention_mask")}
        inputs.pop("token_type_ids", None)
    given = {key: inputs.pop(key) for key in ("decoder_input_ids", "decoder_attention_mask") if key in inputs}
    configs = (model.generation_config, model.config, model.config.get_text_config(decoder=True))
    starts = [getattr(c, name, None) for c in configs for name in ("decoder_start_token_id", "bos_token_id")]
    start = next(token for token in starts if token is not None)
    # What `generate` begins with, its exception for Donut included.
    ids, given = model._prepare_decoder_input_ids_for_generation(
        rows, "", given, torch.full((rows,), start, device=model.device), model.device
    )
    mask = given.get("decoder_attention_mask", torch.ones_like(ids))
    return {**inputs, "decoder_input_ids": ids, "decoder_attention_mask": mask}


def without_end(inputs: dict[str, Any], end: int | None) -> dict[str, Any]:
    """Hides the token `end` that some tokenizers close every text with: the answer goes in its place."""
    mask = inputs["attention_mask"].clone()
    # The last 1 of every row, whichever side the padding is on.
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    rows = torch.arange(len(mask), device=mask.device)
    if end is not None and (inputs["input_ids"][rows, last] == end).all():
        mask[rows, last] = 0
    return {**inputs, "attention_mask": mask}
