"""Tiny models of the paper that transformers has no type for: MiniGPT-4 and VPGTrans as BLIP-2, BLIVA, VisualGLM."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import transformers
from tiny import IMAGE_TOKENS, QUERIES, SIZE, qformer_config, text_config, vision_config, word_piece_tokenizer
from transformers import PreTrainedModel, ProcessorMixin

from transferable_vp.models import BlivaConfig, BlivaForConditionalGeneration, BlivaProcessor, MiniGPT4Processor


# The tokenizers are those of the models' own tests.
sys.path.append(str(Path(__file__).parents[1] / "models"))
from checkpoints import llama_tokenizer


def build_minigpt4() -> tuple[PreTrainedModel, ProcessorMixin]:
    """BLIP-2 with a LLaMA: the image stands in the middle of the text, behind a token of the plain vocabulary."""
    tokenizer = llama_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    processor = MiniGPT4Processor(transformers.BlipImageProcessor(size=SIZE), tokenizer, num_query_tokens=QUERIES)
    config = transformers.Blip2Config(
        vision_config=vision_config(), qformer_config=qformer_config(), text_config=text_config("llama", tokenizer),
        num_query_tokens=QUERIES, image_token_index=processor.image_token_id,
    )  # fmt: skip
    return transformers.Blip2ForConditionalGeneration(config), processor


def build_bliva() -> tuple[PreTrainedModel, ProcessorMixin]:
    """InstructBLIP with the patches of its image encoder behind the queries."""
    tokenizer = llama_tokenizer(bos_token="</s>", unk_token="</s>")
    qformer_tokenizer = word_piece_tokenizer("[DEC]")
    processor = BlivaProcessor(
        transformers.BlipImageProcessor(size=SIZE), tokenizer, qformer_tokenizer, QUERIES, IMAGE_TOKENS
    )
    config = BlivaConfig(
        vision_config=vision_config(), qformer_config=qformer_config(vocab_size=len(qformer_tokenizer)),
        text_config=text_config("llama", tokenizer), num_query_tokens=QUERIES,
        image_token_index=processor.image_token_id,
    )  # fmt: skip
    return BlivaForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], tuple[PreTrainedModel, ProcessorMixin]]] = {
    "bliva": build_bliva,
    "minigpt4": build_minigpt4,
    # The same but for its weights and for how the paper ends its answers.
    "vpgtrans": build_minigpt4,
}
# Its tokenizer cannot be made without sentencepiece, an extra.
if importlib.util.find_spec("sentencepiece"):
    from tiny_visualglm import build_visualglm

    FAMILIES["visualglm"] = build_visualglm
