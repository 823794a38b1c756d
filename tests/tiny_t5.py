"""A tiny random BLIP-2 whose language model is an encoder-decoder, and its real processor."""

from __future__ import annotations

import torch
from tiny import (
    HEADS,
    LAYERS,
    QUERIES,
    SIZE,
    WIDTH,
    byte_level_tokenizer,
    initialise,
    qformer_config,
    vision_config,
)
from tokenizers import processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    PreTrainedModel,
    ProcessorMixin,
)


def build_t5(seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """BLIP tower, Q-Former and T5 in evaluation mode, the same weights every time. Texts end with the end token."""
    tokenizer = byte_level_tokenizer(["<pad>", "<s>", "</s>", "<image>"], begin=None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    processor = Blip2Processor(BlipImageProcessor(size=SIZE), tokenizer, num_query_tokens=QUERIES)
    config = Blip2Config(
        vision_config=vision_config(), qformer_config=qformer_config(), num_query_tokens=QUERIES,
        text_config={
            "model_type": "t5", "d_model": WIDTH, "d_kv": WIDTH // HEADS, "d_ff": 2 * WIDTH, "num_layers": LAYERS,
            "num_heads": HEADS, "vocab_size": len(tokenizer), "dropout_rate": 0.0, "pad_token_id": 0,
            "eos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": 0,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Blip2ForConditionalGeneration(config)
        initialise(model)
    return model.eval(), processor
