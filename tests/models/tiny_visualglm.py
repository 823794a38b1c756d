"""A tiny random VisualGLM with its real processor, around a SentencePiece model of a few hundred pieces."""

from __future__ import annotations

import atexit
import io
import shutil
import tempfile
from functools import cache
from pathlib import Path

import sentencepiece
import tiny
import torch
from tiny import HEADS, IMAGE_SIZE, LAYERS, PATCH, QUERIES, SENTENCES, SIZE, WIDTH
from transformers import BlipImageProcessor, PreTrainedModel, ProcessorMixin

from transferable_vp.models.visualglm import (
    VisualGLMConfig,
    VisualGLMForConditionalGeneration,
    VisualGLMProcessor,
    VisualGLMTokenizer,
)


# As in ice_text.model: pieces for what SentencePiece would squeeze, then the tokens that texts never have.
BLANKS = ["<n>", "<|tab|>", *(f"<|blank_{length}|>" for length in range(2, 81))]
SPECIAL = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]


@cache
def ice_text() -> bytes:
    """A SentencePiece model with the tokens of ChatGLM's, which spells what it does not know in bytes."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*SENTENCES, "Q: A: <img></img> This is a photo of a dog", "a cat, a plane"] * 4),
        model_writer=written, vocab_size=470, model_type="bpe", byte_fallback=True, hard_vocab_limit=False,
        pad_id=3, unk_id=0, bos_id=1, eos_id=2, pad_piece="<pad>", user_defined_symbols=BLANKS + SPECIAL,
        minloglevel=2,
    )  # fmt: skip
    return written.getvalue()


@cache
def vocabulary_file() -> Path:
    """The model as a file, for the time of the run."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "ice_text.model"
    path.write_bytes(ice_text())
    return path


def tokenizer() -> VisualGLMTokenizer:
    """The real tokenizer on the tiny vocabulary."""
    return VisualGLMTokenizer(str(vocabulary_file()))


def processor() -> VisualGLMProcessor:
    """The real processor at 32 pixels, with 4 placeholders an image."""
    return VisualGLMProcessor(BlipImageProcessor(size=SIZE), tokenizer(), num_query_tokens=QUERIES)


def config() -> VisualGLMConfig:
    """The sizes of the other tiny models. Three layers of the Q-Former, so that one looks at the image again."""
    tokens = tokenizer()
    ids = {f"{name}_token_id": getattr(tokens, f"{name}_token_id") for name in ("pad", "bos", "eos", "gmask")}
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": HEADS}
    return VisualGLMConfig(
        vision_config={**sizes, "num_hidden_layers": LAYERS, "image_size": IMAGE_SIZE, "patch_size": PATCH},
        qformer_config={**sizes, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS + 1},
        # Wider than its vocabulary, as published.
        text_config={**sizes, **ids, "num_hidden_layers": LAYERS, "vocab_size": len(tokens) + 4},
        num_query_tokens=QUERIES,
    )


def build_visualglm(seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """EVA's tower, Q-Former, ChatGLM, in evaluation mode, the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VisualGLMForConditionalGeneration(config())
        with torch.no_grad():
            tiny.initialise(model)
    return model.eval(), processor()
