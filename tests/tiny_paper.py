"""Tiny random models of the paper's forms, and what its released code does with them, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tiny
import torch
from tiny import QUERIES, SIZE
from tiny_t5 import build_t5
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from transferable_vp.models import BlivaConfig, BlivaForConditionalGeneration


Pair = tuple[PreTrainedModel, ProcessorMixin]


def build_minigpt4() -> Pair:
    """BLIP tower, Q-Former, LLaMA: MiniGPT-4's graph, and VPGTrans's."""
    tokenizer = tiny.byte_level_tokenizer(["<pad>", "<s>", "</s>", "<image>"], begin="<s>")
    processor = Blip2Processor(BlipImageProcessor(size=SIZE), tokenizer, num_query_tokens=QUERIES)
    config = Blip2Config(
        vision_config=tiny.vision_config(), qformer_config=tiny.qformer_config(), num_query_tokens=QUERIES,
        text_config=tiny.text_config("llama", tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return Blip2ForConditionalGeneration(config), processor


def build_bliva() -> Pair:
    """InstructBLIP with its patches among the image tokens, in the form that the loss has."""
    plain, processor = tiny.build_instructblip()
    return BlivaForConditionalGeneration(BlivaConfig(**plain.config.to_dict() | {"model_type": "bliva"})), processor


def build(form: str) -> Pair:
    """A model of a form of the paper, the same weights every time, and its processor."""
    if form == "blip2":
        return build_t5()
    if form == "instructblip":
        return tiny.build("instructblip")
    if form == "bliva":
        return tiny.build(form, {form: build_bliva})
    model, processor = tiny.build(form, {form: build_minigpt4})
    model.config.paper_model = form
    return model, processor


class Released:
    """The released code's `encode_img`, `model_loss` and `model_loglikelihood_for_postfixes`: embeddings put together by
    hand, and a language model that knows nothing of images."""

    def __init__(self, form: str, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.form, self.model, self.llm = form, model, model.language_model
        self.tokenizer, self.bert = processor.tokenizer, getattr(processor, "qformer_tokenizer", None)

    def encode_img(self, pixels: torch.Tensor, questions: Sequence[str]) -> torch.Tensor:
        vision = self.model.vision_model(pixels, output_hidden_states=True)
        image = vision.last_hidden_state
        query = self.model.query_tokens.expand(len(pixels), -1, -1)
        if self.bert is None:
            return self.model.language_projection(self.model.qformer(query, encoder_hidden_states=image)[0])
        text = self.bert(list(questions), padding="longest", return_tensors="pt")
        atts = torch.cat([torch.ones(query.shape[:2], dtype=torch.long), text.attention_mask], dim=1)
        output = self.model.qformer(
            text.input_ids, attention_mask=atts, query_embeds=query, encoder_hidden_states=image
        )[0]
        projected = self.model.language_projection(output[:, : query.shape[1]])
        if self.form == "instructblip":
            return projected
        return torch.cat([projected, self.model.vision_project(vision.hidden_states[-2][:, 1:])], dim=1)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        return self.llm.get_input_embeddings()(torch.tensor(list(ids), dtype=torch.long))

    def context(self, image: torch.Tensor, question: str, ranking: bool) -> torch.Tensor:
        """Embeddings of all that goes before an answer (of BLIP-2, that the encoder reads)."""
        eos = [self.tokenizer.eos_token_id]
        if self.form in ("minigpt4", "vpgtrans"):
            before, after = (
                self.embed([self.tokenizer.bos_token_id, *self.ids("<Img>")]),
                self.embed(self.ids("</Img>")),
            )
            return torch.cat([before, image, after, self.embed(self.ids(question))])
        if ranking:
            # BLIVA's patches are in its loss only.
            return torch.cat([image[:QUERIES], self.embed(self.ids(question))])
        if self.form == "blip2":
            return torch.cat([image, self.embed(self.ids(question) + eos)])
        return torch.cat([image, self.embed(eos + self.ids(question))])

    def loss(self, image: torch.Tensor, questions: Sequence[str], names: Sequence[str]) -> torch.Tensor:
        """Mean cross-entropy over all answer tokens of the batch."""
        end = {"minigpt4": "\n", "vpgtrans": "###"}.get(self.form)
        logits, labels = [], []
        for row, question, name in zip(image, questions, names, strict=True):
            answer = [*self.ids(name), self.tokenizer.eos_token_id] if end is None else self.ids(name + end)
            logits.append(self.read(self.context(row, question, ranking=False), answer))
            labels += answer
        return torch.nn.functional.cross_entropy(torch.cat(logits), torch.tensor(labels))

    def scores(self, image: torch.Tensor, questions: Sequence[str], names: Sequence[str]) -> torch.Tensor:
        """Mean log-probability of every name's own tokens, `(batch, names)`."""
        rows = []
        for row, question in zip(image, questions, strict=True):
            context, found = self.context(row, question, ranking=True), []
            for name in names:
                ids = self.ids(name)
                found.append(self.read(context, ids).log_softmax(-1)[torch.arange(len(ids)), ids].mean())
            rows.append(torch.stack(found))
        return torch.stack(rows)

    def read(self, context: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
        """The logits that predict every token of `answer` behind `context`."""
        if self.form == "blip2":
            labels = torch.tensor([list(answer)])
            return self.llm(inputs_embeds=context[None], labels=labels).logits[0]
        embeds = torch.cat([context, self.embed(answer)])[None]
        return self.llm(inputs_embeds=embeds).logits[0, len(context) - 1 : -1]


def standardised(canvas: torch.Tensor, mean: Any, std: Any) -> torch.Tensor:
    """Torchvision's `Normalize`, written out."""
    mean, std = (torch.tensor(values, dtype=canvas.dtype).view(3, 1, 1) for values in (mean, std))
    return (canvas - mean) / std
