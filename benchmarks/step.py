"""What a training step costs: against its floor, against the paper's loop as published, and against a LoRA step.

    python benchmarks/step.py --variants --json docs/results/step.json               # some minutes on one CPU core
    python benchmarks/step.py --device cuda --dtype bfloat16 --size full --json step_gpu.json      # needs 80 GB

In one run, on the same model, batch and precision:

- `floor`: the surrogate's forward and the backward to the pixels, its head at the answer's positions only; inputs are
  ready. `floor_whole_head` is the same with the head at every position, as a plain call of the model has it.
- `ours`: a step of the Trainer with task loss, FCA and TSE, from PIL images to the new `delta`, nothing kept from
  before. `ours_cached`: the same when it meets images again and keeps their clean features (`clean_features_cache`).
  `ours_half`: as `ours`, with FCA on half of the images, drawn anew in each step (`fca_fraction`).
  `ours_default`: a step of the default recipe, which has neither FCA nor TSE, and is the same in every epoch.
- `paper_loop`: the paper's released step, restated here in plain torch: three image encodes (two of them with
  backward), CLIP not frozen and its text tower run every time, all logits, the prompt on the CPU. Its images are
  resized beforehand.
- `lora`: a PEFT LoRA step of rank 8 beside every linear layer but the head, as in `examples/baselines`, with AdamW;
  `lora_qv`: beside the queries and values of the language model only, so that nothing goes back into the image encoder.
  Inputs are ready.
- with `--variants`, settings of the surrogate: `floor_eager` has plain attention in place of SDPA, `floor_compiled` and
  `ours_compiled` are the first and `ours` with the surrogate in `torch.compile`, `ours_recomputed` has every layer
  recomputed in the backward pass.

The contenders take turns, round by round. A ratio is the median over rounds of the ratio within a round, of CPU time on
the CPU (one thread: other processes then disturb little) and of wall time on a GPU. Memory is what a contender keeps (the
weights it runs, their gradients and states) and the highest sum of what its step allocates, as torch's allocators report
it: by the profiler's memory events on the CPU, by `max_memory_allocated` on a GPU. Floating-point operations are those of
matrix products, counted by torch; they do not depend on the machine.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.functional import to_tensor

from transferable_vp import (
    Surrogate,
    Task,
    TaskSemantics,
    TransferableVisualPrompt,
    TransferableVisualPromptConfig,
    TransferableVisualPromptTrainer,
    TransferableVisualPromptTrainingArguments,
)
from transferable_vp.answers import SurrogateOutput, answer_loss
from transferable_vp.demo import versions
from transferable_vp.images import fit_image, to_pil


sys.path.insert(0, str(Path(__file__).parent))

from shapes import Shape, Size, build, build_clip


# Constants of CLIP, with which all of the paper's models normalise.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


# Of the figures of our own steps.
SUFFIXES = {
    "ours_cached": "", "ours": "_first_epoch", "ours_half": "_first_epoch_half", "ours_default": "_default_recipe",
}  # fmt: skip


@dataclasses.dataclass
class Batch:
    """One batch, and the models that read it.

    Attributes:
        surrogate (`Surrogate`), semantics (`TaskSemantics`): Frozen.
        geometry (`TransferableVisualPromptConfig`): Of the canvas.
        inputs (`dict`): What the Trainer's collator makes: PIL images, questions, answers and captions.
    """

    surrogate: Surrogate
    semantics: TaskSemantics
    geometry: TransferableVisualPromptConfig
    inputs: dict[str, Any]


@dataclasses.dataclass
class Contender:
    """A step to be run again and again, and the tensors that are there between two of them."""

    step: Callable[[], Any]
    kept: Callable[[], Iterable[torch.Tensor]]


def make_batch(shape: Shape, size: Size, rows: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Batch:
    """Images of noise half as large again as the content, 6 words of question, as the paper's has, answers of two."""
    draw = np.random.default_rng(0)
    geometry = TransferableVisualPromptConfig(**({"canvas_size": 28, "border_size": 4} if size == "toy" else {}))
    side = 3 * geometry.content_size // 2
    images = [Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(rows)]
    words = [[f"w{word}" for word in draw.integers(4, 200, 4)] for _ in range(rows)]
    inputs = {
        "images": images,
        "questions": ["w4 w5 w6 w7 w8 w9"] * rows,
        "answers": [" ".join(four[:2]) for four in words],
        "captions": [" ".join(["w4 w5 w6 w7 w8", *four[2:]]) for four in words],
        "skipped": 0,
    }
    return Batch(build(shape, size, device, dtype), build_clip(shape, size, device, dtype), geometry, inputs)


def encoded(batch: Batch) -> tuple[dict[str, Any], int, torch.Tensor]:
    """The surrogate's inputs for the clean images, with answers; where the logits begin; and labels."""
    surrogate, rows = batch.surrogate, batch.inputs
    with torch.no_grad():
        canvas = TransferableVisualPrompt(batch.geometry)(rows["images"], prompted=False)
        inputs = surrogate.encode([to_pil(c) for c in canvas], rows["questions"])
    return surrogate.append_answers(inputs, rows["questions"], rows["answers"])


def floor(batch: Batch, whole_head: bool = False) -> Contender:
    """Forward, and backward to the pixels."""
    surrogate = batch.surrogate
    inputs, start, labels = encoded(batch)
    inputs["pixel_values"].requires_grad_()

    def step() -> torch.Tensor:
        if whole_head:
            logits = surrogate.model(**inputs, use_cache=False).logits[:, start : start + labels.shape[1]]
        else:
            logits = surrogate.answer_logits(inputs, start, labels.shape[1])
        loss = answer_loss(SurrogateOutput(logits, labels, None))
        inputs["pixel_values"].grad = None
        loss.backward()
        return inputs["pixel_values"].grad

    return Contender(step, lambda: [*surrogate.model.parameters(), *tensors(inputs)])


def new_trainer(
    batch: Batch, folder: str, sources: int = 1, train_dataset: Any = None, **arguments: Any
) -> TransferableVisualPromptTrainer:
    """A trainer about to take its first step; on several sources, which share their weights."""
    trainer = TransferableVisualPromptTrainer(
        model=TransferableVisualPrompt(batch.geometry),
        args=TransferableVisualPromptTrainingArguments(
            folder, max_steps=100, use_cpu=batch.surrogate.device.type == "cpu", disable_tqdm=True, save_strategy="no",
            **({"fca_weight": 0.005, "tse_weight": 0.001} | arguments),
        ),
        surrogates=[batch.surrogate] * sources,
        semantics=batch.semantics if arguments.get("tse_weight", 1) else None,
        task=Task(),
        train_dataset=train_dataset,
    )  # fmt: skip
    trainer.create_optimizer_and_scheduler(100)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def take_step(trainer: TransferableVisualPromptTrainer, batch: Batch) -> torch.Tensor:
    """The Trainer's own step, with its optimizer and schedule."""
    loss = trainer.training_step(trainer.model, batch.inputs)
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    trainer.model.zero_grad()
    return loss


def ours(batch: Batch, folder: str, sources: int = 1, **arguments: Any) -> Contender:
    """See [`take_step`]."""
    trainer = new_trainer(batch, folder, sources, **arguments)
    parts = [trainer.model, batch.surrogate.model, *([batch.semantics.model] if trainer.args.tse_weight else [])]
    features = trainer._clean_features._kept
    return Contender(
        lambda: take_step(trainer, batch),
        lambda: [*(p for part in parts for p in part.parameters()), *states(trainer.optimizer), *features.values()],
    )


class PaperLoop:
    r"""
    One step as in the paper's released code (its facts: docs/design.md, docs/paper.md), in plain torch.

    The language model's part is the surrogate's own model, called with the same token ids as ours. Where the surrogate
    reads larger images than the canvas, which none of the paper's does, canvases are resized.

    Args:
        batch ([`Batch`]): What to learn from.
        lr (`float`, *optional*, defaults to 10.0): The paper's.
        fca, tse (`float`, *optional*, default to 0.005 and 0.001): Weights, the paper's.

    Attributes:
        perturbation (`torch.Tensor`): float32 `(3, canvas, canvas)`, on the CPU.
    """

    def __init__(self, batch: Batch, lr: float = 10.0, fca: float = 0.005, tse: float = 0.001) -> None:
        self.model, self.lr, self.fca, self.tse = batch.surrogate.model, lr, fca, tse
        self.device, dtype = batch.surrogate.device, batch.surrogate.model.dtype
        # Not frozen, which the prompt's own objective needs its CLIP to be.
        self.clip = copy.deepcopy(batch.semantics.model).requires_grad_(True)
        self.inputs, start, labels = encoded(batch)
        self.side = self.inputs.pop("pixel_values").shape[-1]
        self.labels = torch.full_like(self.inputs["input_ids"], -100)
        self.labels[:, start + 1 : start + 1 + labels.shape[1]] = labels[:, : self.labels.shape[1] - start - 1]
        config = batch.geometry
        self.border, size = config.border_size, config.canvas_size
        self.perturbation = torch.zeros(3, size, size)
        self.mask = torch.ones(3, size, size)
        self.mask[:, self.border : size - self.border, self.border : size - self.border] = 0
        # The released code resizes in the processes of its loader.
        self.images = torch.stack(
            [fit_image(to_tensor(i), config.content_size, "crop") for i in batch.inputs["images"]]
        )
        self.mean, self.std = (torch.tensor(c, device=self.device).view(3, 1, 1) for c in (MEAN, STD))
        # OpenAI's tokenizer pads every text to 77 tokens.
        text = batch.semantics.processor.tokenizer(
            batch.inputs["captions"], padding="max_length", max_length=77, return_tensors="pt"
        )
        self.captions, self.dtype = text, dtype

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Image features as the language model gets them."""
        own = {key: self.inputs[key] for key in ("qformer_input_ids", "qformer_attention_mask") if key in self.inputs}
        return self.model.get_image_features(self.resized(pixels), **own).pooler_output

    def resized(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised canvases at the size that the surrogate reads."""
        if pixels.shape[-1] == self.side:
            return pixels
        return F.interpolate(pixels, self.side, mode="bicubic", antialias=True)

    def step(self) -> torch.Tensor:
        """Moves the perturbation once and returns the loss."""
        canvas = F.pad(self.images, [self.border] * 4).to(self.device)
        clean = _stacked(self.encode(((canvas - self.mean) / self.std).to(self.dtype)))
        noise = self.perturbation.to(self.device).repeat(len(canvas), 1, 1, 1).requires_grad_()
        pixels = ((canvas + noise - self.mean) / self.std).to(self.dtype)
        logits = self.model(pixel_values=self.resized(pixels), **self.inputs, use_cache=False).logits.float()
        task = F.cross_entropy(logits[:, :-1].flatten(0, 1), self.labels[:, 1:].flatten(), ignore_index=-100)
        consistency = (_stacked(self.encode(pixels)) - clean).float().norm(dim=-1).mean()
        text = self.clip.get_text_features(**self.captions.to(self.device)).pooler_output.float()
        small = pixels if pixels.shape[-1] == 224 else F.interpolate(pixels, 224, mode="bicubic")
        image = self.clip.get_image_features(pixel_values=small).pooler_output.float()
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        similarity = (self.clip.logit_scale.float().exp() * image @ text.T).diagonal().mean()
        self.clip.logit_scale.data.clamp_(0, 4.6052)
        loss = task + self.fca * consistency - self.tse * similarity
        loss.backward()
        assert noise.grad is not None
        gradient = noise.grad.mean(0)
        move = self.lr * self.mask.to(self.device) * gradient / (gradient.norm() + 1e-10)
        self.perturbation -= move.cpu()
        self.clip.zero_grad()
        loss.item()
        return loss.detach()


def _stacked(features: Any) -> torch.Tensor:
    return features if isinstance(features, torch.Tensor) else torch.stack(list(features))


def paper_loop(batch: Batch) -> Contender:
    """See [`PaperLoop`]."""
    loop = PaperLoop(batch)
    return Contender(loop.step, lambda: [*loop.model.parameters(), *loop.clip.parameters()])


def twin(batch: Batch) -> Any:
    """The surrogate's layers copied, for what changes them in place; the weights are the same tensors."""
    shared = {id(p): p for p in [*batch.surrogate.model.parameters(), *batch.surrogate.model.buffers()]}
    return copy.deepcopy(batch.surrogate.model, shared)


def with_model(batch: Batch, model: Any) -> Batch:
    """The same batch for another model of the same weights."""
    own = batch.surrogate
    other = Surrogate(model, own.processor, own.name, prompt_template=own.prompt_template)
    return dataclasses.replace(batch, surrogate=other)


def variants(batch: Batch, folder: str) -> dict[str, Contender]:
    """Floor and step with other settings of the surrogate."""
    eager = twin(batch)
    eager.set_attn_implementation("eager")
    compiled = with_model(batch, torch.compile(twin(batch)))
    recomputed = with_model(batch, twin(batch))
    return {
        "floor_eager": floor(with_model(batch, eager)),
        "floor_compiled": floor(compiled),
        "ours_compiled": ours(compiled, folder),
        "ours_recomputed": ours(recomputed, folder, surrogate_gradient_checkpointing=True),
    }


def lora(batch: Batch, targets: str) -> Contender:
    """Forward, backward to the matrices beside `targets`, and a step of AdamW."""
    inputs, start, labels = encoded(batch)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=targets)
    model = get_peft_model(twin(batch), config, autocast_adapter_dtype=False)
    surrogate = Surrogate(model, batch.surrogate.processor, prompt_template=batch.surrogate.prompt_template)
    adapter = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    for parameter in adapter:
        parameter.requires_grad_()
    optimizer = torch.optim.AdamW(adapter, lr=1e-4)

    def step() -> torch.Tensor:
        loss = answer_loss(SurrogateOutput(surrogate.answer_logits(inputs, start, labels.shape[1]), labels, None))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return Contender(step, lambda: [*model.parameters(), *tensors(inputs), *states(optimizer)])


def tensors(inputs: dict[str, Any]) -> list[torch.Tensor]:
    """Those among a model's inputs."""
    return [value for value in inputs.values() if isinstance(value, torch.Tensor)]


def states(optimizer: Any) -> list[torch.Tensor]:
    """What an optimizer remembers."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]


def peak_memory(contender: Contender, device: str) -> tuple[int, int]:
    """Bytes that are there between steps, and the most that one step has allocated beside them."""
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in contender.kept()}
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contender.step()
        return sum(kept.values()), torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        contender.step()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return sum(kept.values()), peak


def seconds(step: Callable[[], Any], device: str) -> tuple[float, float]:
    """CPU and wall seconds of one step."""
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def matmul_rate(side: int = 8192, repeats: int = 20) -> float:
    """Floating-point operations a second of a bf16 matrix product on the GPU."""
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    multiply = lambda: [a @ b for _ in range(repeats)]  # noqa: E731
    seconds(multiply, "cuda")
    return 2 * side**3 * repeats / seconds(multiply, "cuda")[1]


def measure(batch: Batch, rounds: int, device: str, more: bool = False) -> dict[str, Any]:
    """Every contender's seconds, memory and operations, and the ratios between them."""
    # One epoch after the other over the same batch: with a cache, the second step meets the images again.
    with tempfile.TemporaryDirectory() as folder:
        contenders = {
            "floor": floor(batch),
            "floor_whole_head": floor(batch, whole_head=True),
            "ours": ours(batch, folder),
            "ours_half": ours(batch, folder, fca_fraction=0.5),
            "ours_cached": ours(batch, folder, clean_features_cache=1.0),
            "ours_default": ours(batch, folder, fca_weight=0.0, tse_weight=0.0),
            "paper_loop": paper_loop(batch),
            "lora": lora(batch, "all-linear"),
            "lora_qv": lora(batch, r".*language_model.*\.(q_proj|v_proj)"),
        }
        if more:
            contenders |= variants(batch, folder)
        found: dict[str, dict[str, Any]] = {}
        for name, contender in contenders.items():
            contender.step()  # makes caches and optimizer states
            kept, peak = peak_memory(contender, device)
            with FlopCounterMode(display=False) as counter:
                contender.step()
            found[name] = {"bytes": kept + peak, "bytes_kept": kept, "bytes_of_step": peak,
                           "gflop": counter.get_total_flops() / 1e9, "cpu_seconds": [], "wall_seconds": []}  # fmt: skip
        for _ in range(rounds):
            for name, contender in contenders.items():
                cpu, wall = seconds(contender.step, device)
                found[name]["cpu_seconds"].append(cpu)
                found[name]["wall_seconds"].append(wall)
    clock = "wall_seconds" if device == "cuda" else "cpu_seconds"

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(found[one][clock], found[other][clock], strict=True))

    figures: dict[str, Any] = {"seconds": {name: statistics.median(row[clock]) for name, row in found.items()}}
    for name, suffix in SUFFIXES.items():
        figures |= {
            f"time_vs_floor{suffix}": ratio(name, "floor"),
            f"time_vs_floor_whole_head{suffix}": ratio(name, "floor_whole_head"),
            f"speedup_vs_paper_loop{suffix}": ratio("paper_loop", name),
            f"time_vs_lora{suffix}": ratio(name, "lora"),
            f"time_vs_lora_qv{suffix}": ratio(name, "lora_qv"),
            f"memory_vs_floor{suffix}": found[name]["bytes"] / found["floor"]["bytes"],
            f"gflop_vs_floor{suffix}": found[name]["gflop"] / found["floor"]["gflop"],
            f"gflop_saved_vs_paper_loop{suffix}": found["paper_loop"]["gflop"] / found[name]["gflop"],
        }
    if more:
        figures |= {
            "eager_vs_floor": ratio("floor_eager", "floor"),
            "compiled_vs_ours": ratio("ours_compiled", "ours"),
            "compiled_vs_compiled_floor": ratio("ours_compiled", "floor_compiled"),
            "recomputed_vs_ours": ratio("ours_recomputed", "ours"),
        }
    return figures | {"contenders": found}


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["llava", "instructblip"], choices=["llava", "instructblip"])
    parser.add_argument("--size", default="small", choices=["toy", "small", "full"], help="default: %(default)s")
    parser.add_argument("--batch", type=int, help="images a step (default: 4 and 6; 16 in full size, the paper's)")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each contender (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default: %(default)s")
    parser.add_argument("--variants", action="store_true", help="eager, compiled and recomputed surrogates too")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", help="write the figures here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = {}
    for shape in args.shapes:
        rows = args.batch or (16 if args.size == "full" else {"llava": 4, "instructblip": 6}[shape])
        batch = make_batch(shape, args.size, rows, args.device, getattr(torch, args.dtype))
        found[shape] = {"batch": rows, **measure(batch, args.rounds, args.device, args.variants)}
        del batch
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()
        print(f"{shape}, {rows} images a step", flush=True)
        for name, row in found[shape]["contenders"].items():
            least, highest = found[shape]["seconds"][name], row["bytes"] / 2**20
            print(f"  {name:18} {least:8.3f} s {row['gflop']:10.1f} GFLOP {highest:10.1f} MiB")
        print("  " + ", ".join(f"{k} {v:.2f}" for k, v in found[shape].items() if isinstance(v, float)), flush=True)
    figures: dict[str, Any] = {}
    for key in ("time_vs_floor", "speedup_vs_paper_loop", "time_vs_lora", "memory_vs_floor"):
        for suffix in SUFFIXES.values():
            # The worse of the shapes; but InstructBLIP is the one that the paper's loop was made for.
            asked = {"instructblip"} & set(found) if key == "speedup_vs_paper_loop" else set()
            figures[key + suffix] = max(row[key + suffix] for shape, row in found.items() if shape in (asked or found))
    if args.device == "cuda":
        rate = matmul_rate()
        figures["bf16_matmul_tflops"] = rate / 1e12
        figures["share_of_matmul_rate"] = {
            shape: row["contenders"]["ours"]["gflop"] * 1e9 / row["seconds"]["ours"] / rate
            for shape, row in found.items()
        }
    figures |= {
        "shapes": found,
        "settings": {k: v for k, v in vars(args).items() if k != "json"},
        "versions": versions(),
    }
    print(
        {key: value for key, value in figures.items() if isinstance(value, (float, dict)) and key not in ("shapes",)}
    )
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
