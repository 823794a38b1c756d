"""Which update rule and learning rate to take by default, measured on the source's own validation images only.

    python benchmarks/update_rules.py --json docs/results/update_rules.json      # about 15 minutes on one CPU core

For every zoo member as source: learn a prompt (task loss) for colours under a green light with each rule and learning
rate, and measure the source on validation images (world seed 2; the demo's test images are seed 3). No model but the
source is ever asked, so nothing here can favour transfer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from transferable_vp import (
    Surrogate,
    Task,
    TransferableVisualPrompt,
    TransferableVisualPromptConfig,
    TransferableVisualPromptTrainer,
    TransferableVisualPromptTrainingArguments,
    evaluate,
)
from transferable_vp.bundled import bundled
from transferable_vp.demo import MEMBERS, load_world


# The paper's 10 is for a canvas of 224 pixels. The norm of a step over n pixels grows with the square root of n, so
# 10 * 64 / 224 = 2.86 changes a pixel as much on this canvas of 64.
SETTINGS = [
    ("adam", 0.01),
    ("adam", 0.02),
    ("adam", 0.05),
    ("adam", 0.1),
    ("paper", 1.0),
    ("paper", 2.86),
    ("paper", 10.0),
]


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", default=list(MEMBERS), choices=MEMBERS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--n", type=int, default=400, help="validation images")
    parser.add_argument("--json", help="write the results here too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    world = load_world()
    task = Task(question_column="question", candidates=world.CANDIDATES["color"])
    train, validation = world.color_examples(800, seed=1), world.color_examples(args.n, seed=2)
    geometry = TransferableVisualPromptConfig(canvas_size=64, border_size=8)
    rows = []
    print(
        f"{'source':>14} {'rule':>6} {'lr':>6}   gain on the source, points (mean ± std over {len(args.seeds)} seeds)"
    )
    for source in args.sources:
        surrogate = Surrogate.from_pretrained(str(bundled(f"zoo/{source}")))
        start = TransferableVisualPrompt(geometry)
        zero = evaluate(surrogate, validation, task, start, prompted=False, progress=False).mean
        for rule, learning_rate in SETTINGS:
            gains = []
            for seed in args.seeds:
                prompt = TransferableVisualPrompt(geometry)
                with tempfile.TemporaryDirectory() as folder:
                    training = TransferableVisualPromptTrainingArguments(
                        folder, update_rule=rule, learning_rate=learning_rate, max_steps=args.steps, seed=seed,
                        per_device_train_batch_size=32, fca_weight=0, tse_weight=0, block_size=1,
                        save_strategy="no", logging_strategy="no", disable_tqdm=True,
                    )  # fmt: skip
                    trainer = TransferableVisualPromptTrainer(
                        prompt, training, surrogate, train_dataset=train, task=task
                    )
                    trainer.train()
                gains.append(evaluate(surrogate, validation, task, prompt, progress=False).mean - zero)
            rows.append(
                {"source": source, "update_rule": rule, "learning_rate": learning_rate, "zero_border": zero,
                 "gains": gains, "steps": args.steps, "n": args.n, "seeds": args.seeds}
            )  # fmt: skip
            mean, std = 100 * np.mean(gains), 100 * np.std(gains)
            print(f"{source:>14} {rule:>6} {learning_rate:>6}   {mean:+.1f} ± {std:.1f}", flush=True)
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
