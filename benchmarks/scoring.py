"""What it costs to rank candidate answers, against a full forward pass for each of them.

    python benchmarks/scoring.py --candidates 100 --json docs/results/scoring.json    # about two minutes on one CPU core

A LLaVA of random weights (24 layers of width 256, 32,000 tokens, 37 million parameters by default) reads one image and a
question, 300 tokens in all, and ranks candidates of one to four tokens. In one run: `score_candidates`; a loop of full
forward passes over the same inputs, with the head at the candidate's tokens only; and one plain forward pass of image and
question, with the head at the last token only. Every figure is the least of `--repeats` runs, candidates without shared
beginnings, which share no work but the prefix.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from transferable_vp import Surrogate, score_candidates
from transferable_vp.demo import versions
from transferable_vp.scoring import _encode, _loop


def build(layers: int, width: int, vocabulary: int, device: str, dtype: torch.dtype) -> Surrogate:
    """A LLaVA whose words are `w4`, `w5`, ...: one token each, so that lengths are what they are said to be."""
    words = ["<pad>", "<s>", "</s>", "<image>", *(f"w{i}" for i in range(4, vocabulary))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}), tokenizer, patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    heads = width // 32
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
                       "num_attention_heads": 4, "image_size": 224, "patch_size": 14, "projection_dim": 64},
        text_config={"model_type": "llama", "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers,
                     "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": vocabulary},
        image_token_index=3, image_seq_length=256,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).to(device, dtype)
    return Surrogate(model, processor, prompt_template="<s> <image> {question}")


def least(function: Callable[[], Any], repeats: int, device: str) -> float:
    """Seconds of the fastest of `repeats` runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=100, help="answers to rank (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=24, help="default: %(default)s")
    parser.add_argument("--width", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--vocabulary", type=int, default=32000, help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--json", help="write the figures here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    surrogate = build(args.layers, args.width, args.vocabulary, args.device, getattr(torch, args.dtype))
    draw = np.random.default_rng(0)
    question = " ".join(f"w{i}" for i in draw.integers(4, args.vocabulary, 42))
    image = Image.fromarray(draw.integers(0, 256, (224, 224, 3), dtype=np.uint8))
    # Distinct first words: nothing but image and question is shared.
    firsts = draw.permutation(np.arange(4, args.vocabulary))[: args.candidates]
    names = [" ".join(f"w{w}" for w in [first, *draw.integers(4, args.vocabulary, i % 4)])
             for i, first in enumerate(firsts)]  # fmt: skip

    inputs = _encode(surrogate, [image], [question], None, [0])
    ids = [tuple(surrogate.answer_ids(question, name)) for name in names]
    run = lambda: score_candidates(surrogate, [image], [question], [names])  # noqa: E731
    first = least(run, 1, args.device)  # with the comparison against full passes that the first call makes
    shared = least(run, args.repeats, args.device)
    plain = least(lambda: surrogate.model(**inputs, use_cache=False, logits_to_keep=1), 3 * args.repeats, args.device)
    default = least(lambda: surrogate.model(**inputs, use_cache=False), 3 * args.repeats, args.device)
    looped: list[torch.Tensor] = []
    loop = least(lambda: looped.append(_loop(surrogate, inputs, ids)), 1, args.device)
    lengths = torch.tensor([len(i) for i in ids])
    difference = (run()[0] - (looped[0][0].cpu().sum(-1) / lengths)).abs().max()
    figures = {
        "speedup_vs_loop": loop / shared,
        "cost_in_forwards": shared / default,
        "cost_in_last_logit_forwards": shared / plain,
        "max_abs_diff": float(difference),
        "candidates": args.candidates,
        "tokens_per_candidate": float(lengths.float().mean()),
        "prefix_tokens": inputs["input_ids"].shape[1],
        "seconds": {"shared": shared, "shared_first_call": first, "loop": loop, "plain": plain, "default": default},
        "settings": {key: value for key, value in vars(args).items() if key != "json"},
        "versions": versions(),
    }
    print(f"{args.candidates} candidates of {figures['tokens_per_candidate']:.1f} tokens after {figures['prefix_tokens']}: "
          f"{shared:.3f} s, {figures['cost_in_forwards']:.2f} plain forward passes ({figures['cost_in_last_logit_forwards']:.2f} "
          f"with the head at the last token only); a loop takes {figures['speedup_vs_loop']:.1f} times as long; largest "
          f"difference {difference:.1e} nats")  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
