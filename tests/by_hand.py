"""What an answer costs, without a line of the package: one plain forward pass over the whole text, written out."""

from __future__ import annotations

import functools
from typing import Any

import tiny
import torch
import torch.nn.functional as F
from tiny_t5 import build_t5
from transformers import PreTrainedModel, ProcessorMixin


Pair = tuple[PreTrainedModel, ProcessorMixin]
# The name under which tests list it beside `tiny.FAMILIES`.
T5 = "blip-2-t5"


@functools.cache
def t5_pair() -> Pair:
    """BLIP-2 with T5, built once. For tests that change neither."""
    return build_t5()


@torch.no_grad()
def answer_losses(family: str, pair: Pair, image: Any, question: str, answer: str) -> torch.Tensor:
    """Cross-entropy of every token of `answer` and of the end token, the last."""
    model, processor = pair
    text, end = (question if family == T5 else tiny.question_text(processor, question)), processor.tokenizer.eos_token
    if family == T5:
        inputs = processor(images=[[image]], text=[text], return_tensors="pt")
        # T5's tokenizer adds the end token itself.
        labels = processor.tokenizer(answer, return_tensors="pt").input_ids
        logits = model(**inputs, labels=labels).logits[0]
        return F.cross_entropy(logits, labels[0], reduction="none")
    if family == "paligemma":
        # Its own way to say that a text is an answer: token types and labels follow from it.
        inputs = processor(images=[[image]], text=[text], suffix=[answer], return_tensors="pt")
        length = int((inputs.pop("labels") == -100).sum())
        assert inputs["token_type_ids"][0, length:].tolist() == [1] * (inputs["input_ids"].shape[1] - length)
    else:
        prefix = tiny.question_inputs(processor, [image], question)
        kwargs = {"add_special_tokens": False} if text.startswith(processor.tokenizer.bos_token) else {}
        whole = text + ("" if text.endswith("\n") else " ") + answer + end
        inputs = processor(images=[[image]], text=[whole], return_tensors="pt", **kwargs)
        # InstructBLIP's Q-Former reads the question, and must not read the answer.
        inputs |= {key: value for key, value in prefix.items() if key.startswith("qformer")}
        length = prefix["input_ids"].shape[1]
        assert torch.equal(inputs["input_ids"][:, :length], prefix["input_ids"])
    logits = model(**inputs).logits[0]
    return F.cross_entropy(logits[length - 1 : -1], inputs["input_ids"][0, length:], reduction="none")
