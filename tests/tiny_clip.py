"""A tiny random CLIP with its real processor, for Task Semantics Enrichment."""

from __future__ import annotations

import torch
from tiny import HEADS, IMAGE_SIZE, LAYERS, SIZE, WIDTH, byte_level_tokenizer, initialise, vision_config
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedModel, ProcessorMixin


def build_clip(seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Both towers in evaluation mode, the same weights every time, and the processor."""
    tokenizer = byte_level_tokenizer(["<pad>", "<s>", "</s>"], begin="<s>")
    tokenizer.model_max_length = 64
    processor = CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=SIZE), tokenizer)
    config = CLIPConfig(
        vision_config=vision_config(),
        text_config={
            "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "vocab_size": len(tokenizer), "max_position_embeddings": 64,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0,
        },
        projection_dim=WIDTH,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
        scale = model.logit_scale.detach().clone()
        initialise(model)
        with torch.no_grad():
            model.logit_scale.copy_(scale)
    return model.eval(), processor
