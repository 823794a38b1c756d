"""Measures the prompt that the paper's authors released, as it is and as 8-bit images can show it.

    python examples/paper/verify_released_prompt.py --prompt checkpoint_best.pth \
        --model weights/minigpt4 Salesforce/instructblip-vicuna-7b Salesforce/blip2-flan-t5-xl

`checkpoint_best.pth` is `save/checkpoint_best.pth` of https://github.com/zycheiheihei/Transferable-Visual-Prompting; a
folder with a prompt learned by the paper's recipe will do too. Every model is asked as the released code asks it, and
measured on the image as it is, in a black border, in a random one, and with the prompt. Writes `transfer_unbounded.json`
and `transfer_8bit.json`. Answers are kept, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from transferable_vp import Surrogate, TransferableVisualPrompt, TransferableVisualPromptConfig, transfer_report
from transferable_vp.cache import AnswerCache, fingerprint
from transferable_vp.paper import PaperSurrogate, load_rows, paper_surrogate
from transferable_vp.report import format_table, write_json
from transferable_vp.surrogate import model_name
from transferable_vp.tasks import get_task


RELEASED = "18aa6b2777c02c8503f5f44e3cedadfbf0bf3bf93768393ca166d0e2cf8dabc7"


def read_prompts(path: str, content_size: int) -> dict[str, TransferableVisualPrompt]:
    """The prompt by the arithmetic that it is measured in: as it is, if it has values for that, and in 8 bits."""
    if path.endswith(".pth"):
        load = partial(TransferableVisualPrompt.from_paper_checkpoint, path, content_size=content_size)
        return {"unbounded": load("unbounded"), "8bit": load("displayable")}
    prompt = TransferableVisualPrompt.from_pretrained(path)
    if prompt.config.value_range == "displayable":
        return {"8bit": prompt}
    config = TransferableVisualPromptConfig(**prompt.config.to_dict() | {"value_range": "displayable"})
    shown = TransferableVisualPrompt(config)
    shown.load_state_dict(copy.deepcopy(prompt.state_dict()))
    return {"unbounded": prompt, "8bit": shown.project_()}


def describe(path: str, prompt: TransferableVisualPrompt) -> str:
    """What is known of the prompt before any model has seen it."""
    border = prompt.delta.detach()[:, prompt.border_mask[0]]
    outside = ((border < 0) | (border > 1)).float().mean().item()
    text = (
        f"{100 * outside:.1f} % of the border's values are outside [0, 1] ({border.min():.3f} .. {border.max():.3f})."
    )
    if not path.endswith(".pth"):
        return text
    is_released = hashlib.sha256(Path(path).read_bytes()).hexdigest() == RELEASED
    return f"{'The released file' if is_released else 'NOT the released file (another sha256)'}: {text}"


def summary(reports: dict[str, dict[str, Any]]) -> str:
    """One line per model: what the two arithmetics make of the same prompt."""
    lines = [f"{'model':<28}{'full image':>12}{'zero border':>13}" + "".join(f"{name:>12}" for name in reports)]
    for targets in zip(*(report["targets"] for report in reports.values()), strict=True):
        first = [100 * targets[0][key] for key in ("full_image", "zero_border")]
        prompted = "".join(f"{100 * target['tvp']:>12.1f}" for target in targets)
        lines.append(f"{targets[0]['model']:<28}{first[0]:>12.1f}{first[1]:>13.1f}{prompted}")
    return "\n".join(lines)


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The reports by arithmetic; one model in memory at a time."""
    prompts = read_prompts(args.prompt, args.content_size)
    print(describe(args.prompt, next(iter(prompts.values()))), flush=True)
    split = "test" if args.limit is None else f"test[:{args.limit}]"
    rows, task = load_rows(args.task, args.dataset, split)
    paper = get_task(args.task)
    reports: dict[str, dict[str, Any]] = {}
    for path in args.model:
        surrogate = paper_surrogate(Surrogate.from_pretrained(path, dtype=args.dtype).to(args.device))
        inputs = surrogate.form if isinstance(surrogate, PaperSurrogate) else "the model's own"
        settings = {
            "inputs": inputs,
            "transformers": version("transformers"),
            "transferable_vp": version("transferable-vp"),
        }
        kept = AnswerCache(Path(args.output_dir) / "answers", fingerprint(surrogate), settings)
        for name, prompt in prompts.items():
            part = transfer_report(
                [surrogate], rows, task, [prompt], source=args.source, title=f"{paper.title} ({split}), {name}",
                metric=paper.metric, batch_size=args.batch_size, cache=lambda _, kept=kept: kept,
                settings={"prompt": args.prompt, "value_range": prompt.config.value_range, "dtype": args.dtype,
                          "protocol": "paper", "model": args.model},
            )  # fmt: skip
            before = reports.get(name, {}).get("targets", [])
            reports[name] = {**part, "targets": [*before, *part["targets"]]}
        del surrogate
    return reports


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", required=True, help="the released .pth, or the folder of a prompt")
    parser.add_argument("--model", nargs="+", required=True, help="folders or Hub ids of the models to measure")
    parser.add_argument(
        "--source", nargs="*", help="names of those it was learned on (default: what is called minigpt4)"
    )
    parser.add_argument("--task", default="cifar10", help="a task of the paper (default: %(default)s)")
    parser.add_argument("--dataset", help="a local copy of its data (default: from the Hub)")
    parser.add_argument("--limit", type=int, help="number of test images (default: all)")
    parser.add_argument(
        "--content_size", type=int, default=164, help="of a .pth: pixels inside the border (default: 164)"
    )
    parser.add_argument("--dtype", default="bfloat16", help="precision of the models (default: %(default)s)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s"
    )
    parser.add_argument("--batch_size", type=int, default=32, help="images per forward pass (default: %(default)s)")
    parser.add_argument("--output_dir", default="runs/paper/released", help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.source is None:
        args.source = [name for path in args.model if (name := model_name(path)) == "minigpt4"] or ["MiniGPT-4"]
    try:
        reports = measure(args)
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, report in reports.items():
        write_json(report, Path(args.output_dir) / f"transfer_{name}.json")
        print("\n" + format_table(report))
    print("\n" + summary(reports))
    print(f"Written to {args.output_dir}: {', '.join(f'transfer_{name}.json' for name in reports)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
