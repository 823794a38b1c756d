"""Makes the zoo: trains every member from scratch on its own sample of the world and saves ordinary checkpoints.

    python zoo/train.py                          # all five members, one after another: an hour or so on two CPU cores
    python zoo/train.py --members llava --seed 7 # one member, another seed
    python zoo/train.py --evaluate               # what the members in the folder can do

A member learns in two stages. First its vision tower alone, with a linear reading of object and colour from its tokens
(thrown away at the end): language-model gradients alone leave so small a tower on a plateau for thousands of steps. Then
the whole model, by next-token loss on the answer and its end token only. CLIP learns from captions instead.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import families
import numpy as np
import torch
import torch.nn.functional as F
import world
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPModel,
    PreTrainedModel,
    ProcessorMixin,
    get_cosine_schedule_with_warmup,
)


HERE = Path(__file__).parent
COLORS, OBJECTS = list(world.COLORS), list(world.OBJECTS)
SEEDS = {"llava": 3, "idefics3": 1, "paligemma": 4, "instructblip": 2, "clip": 5}
# Tower steps, whole-model steps.
STEPS = {
    "llava": (1300, 1200),
    "idefics3": (1300, 1200),
    "paligemma": (1300, 1200),
    "instructblip": (1300, 1600),
    "clip": (1000, 1200),
}
# Weight of the linear reading while the whole model learns.
READING_WEIGHT = 0.3


class Sample:
    """`n` pictures of the world as tensors: `images` uint8 `(n, 3, 64, 64)`, `colors` and `objects` int64 `(n,)`."""

    def __init__(self, n: int, seed: int, cues: bool = True, device: str = "cpu") -> None:
        rng = np.random.default_rng(seed)
        images, colors, objects = np.empty((n, world.SIZE, world.SIZE, 3), np.uint8), [], []
        for i in tqdm(range(n), desc="drawing", mininterval=5):
            scene = world.draw_scene(rng, cues)
            images[i] = np.asarray(scene.image)
            colors.append(COLORS.index(scene.color))
            objects.append(OBJECTS.index(scene.object))
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)
        self.colors, self.objects = torch.tensor(colors, device=device), torch.tensor(objects, device=device)

    def __len__(self) -> int:
        return len(self.images)


def normalise(images: torch.Tensor, processor: ProcessorMixin) -> torch.Tensor:
    """What the member's image processor makes of a 64 x 64 picture: no resize, only rescaling and normalising."""
    mean = torch.tensor(processor.image_processor.image_mean, device=images.device).view(3, 1, 1)
    std = torch.tensor(processor.image_processor.image_std, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def tower_of(model: PreTrainedModel) -> nn.Module:
    """The vision tower, a module from `(b, 3, 64, 64)` pixels to `last_hidden_state`."""
    inner = getattr(model, "model", model)
    return inner.vision_tower if hasattr(inner, "vision_tower") else inner.vision_model


class Reading(nn.Module):
    """The linear reading of object and colour from a tower's tokens, and its loss.

    Each token is read in its place: a mean over them hides where a stroke is, and characters are learned far later.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens = (world.SIZE // families.PATCH) ** 2
        self.norm = nn.LayerNorm(families.WIDTH)
        self.head = nn.Linear(self.tokens * families.WIDTH, len(OBJECTS) + len(COLORS))

    def forward(self, tokens: torch.Tensor, objects: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
        # The last tokens are the patches; a class token, where there is one, comes first.
        scores = self.head(self.norm(tokens[:, -self.tokens :]).flatten(1))
        return F.cross_entropy(scores[:, : len(OBJECTS)], objects) + F.cross_entropy(scores[:, len(OBJECTS) :], colors)


class Prompts:
    """Token ids of each question with its image placeholders, as the member's own processor writes them."""

    def __init__(self, processor: ProcessorMixin) -> None:
        blank = world.Image.new("RGB", (world.SIZE, world.SIZE))
        self.inputs, self.answers = {}, {}
        for kind, question in world.QUESTIONS.items():
            text = question
            if processor.chat_template is not None:
                content = [{"type": "image"}, {"type": "text", "text": question}]
                text = processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True
                )
            encoded = processor(images=[[blank]], text=[text], return_tensors="pt")
            self.inputs[kind] = {k: v for k, v in encoded.items() if k not in ("pixel_values", "labels")}
            # After a newline the answer begins a line; after anything else it is the next word.
            space = "" if text.endswith("\n") or type(processor).__name__ == "PaliGemmaProcessor" else " "
            self.answers[kind] = [processor.tokenizer(space + a, add_special_tokens=False).input_ids
                                  for a in world.CANDIDATES[kind]]  # fmt: skip
        self.end = processor.tokenizer.eos_token_id


def language_loss(
    model: PreTrainedModel, prompts: Prompts, kind: str, pixels: torch.Tensor, answers: list[list[int]]
) -> torch.Tensor:
    """Next-token loss of `answers` and their end token, in a batch that is asked one question."""
    fixed = prompts.inputs[kind]
    b, length = len(pixels), max(map(len, answers)) + 1
    tail = torch.full((b, length), -100, device=pixels.device)
    for row, answer in enumerate(answers):
        tail[row, : len(answer) + 1] = torch.tensor([*answer, prompts.end])
    batch = {k: v.to(pixels.device).expand(b, *v.shape[1:]) for k, v in fixed.items()}
    shown = tail.clamp(min=0)
    prefix = batch["input_ids"].shape[1]
    batch["input_ids"] = torch.cat([batch["input_ids"], shown], 1)
    batch["attention_mask"] = torch.cat([batch["attention_mask"], (tail >= 0).long()], 1)
    if "token_type_ids" in batch:
        # 1 marks the answer: PaliGemma reads everything marked 0 in both directions, answers included.
        batch["token_type_ids"] = torch.cat([batch["token_type_ids"], torch.ones_like(shown)], 1)
    if "pixel_attention_mask" in batch:
        pixels = pixels[:, None]
    logits = model(pixel_values=pixels, **batch).logits[:, prefix - 1 : -1]
    return F.cross_entropy(logits.flatten(0, 1).float(), tail.flatten())


def caption_loss(model: CLIPModel, processor: ProcessorMixin, pixels: torch.Tensor, names: list[str]) -> torch.Tensor:
    """Symmetric contrastive loss; captions that occur twice in the batch count as right in both places."""
    text = processor.tokenizer(names, padding=True, return_tensors="pt").to(pixels.device)
    logits = model(pixel_values=pixels, **text).logits_per_image
    same = torch.tensor([[a == b for b in names] for a in names], dtype=logits.dtype, device=logits.device)
    return F.cross_entropy(logits, same / same.sum(1, keepdim=True)) + F.cross_entropy(
        logits.T, same / same.sum(1, keepdim=True)
    )


def train_member(name: str, seed: int, args: argparse.Namespace) -> None:
    """Trains one member and saves it with its processor under `args.output_dir/name`."""
    torch.manual_seed(seed)
    model, processor = families.BUILDERS[name]()
    families.initialise(model)
    model.to(args.device).train()
    sample = Sample(args.pictures, seed, cues=not args.no_cues, device=args.device)
    reading = Reading().to(args.device)
    prompts = None if name == "clip" else Prompts(processor)
    tower = tower_of(model)
    seen: list[torch.Tensor] = []
    hook = tower.register_forward_hook(lambda _, __, output: seen.append(output.last_hidden_state))
    started = time.time()
    for stage, steps in zip(("tower", "whole"), STEPS[name], strict=True):
        steps = max(2, int(steps * args.scale))
        module = tower if stage == "tower" else model
        parameters = [*module.parameters(), *reading.parameters()]
        peak = 1.5e-3 if stage == "tower" else 1e-3
        optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.05, betas=(0.9, 0.98))
        schedule = get_cosine_schedule_with_warmup(optimizer, min(100, steps // 4), steps)
        mean, bar = 0.0, tqdm(range(steps), desc=f"{name} {stage}", mininterval=5)
        for step in bar:
            pick = torch.randint(len(sample), (args.batch_size,)).to(args.device)
            pixels = normalise(sample.images[pick], processor)
            objects, colors = sample.objects[pick], sample.colors[pick]
            order = torch.arange(len(pick), device=args.device)
            if stage == "tower":
                tower(pixels)
                loss = torch.zeros((), device=args.device)
            elif name == "clip":
                form = families.CAPTIONS[step % len(families.CAPTIONS)]
                captions = [form.format(color=COLORS[c], object=OBJECTS[o])
                            for c, o in zip(colors.tolist(), objects.tolist(), strict=True)]  # fmt: skip
                loss = caption_loss(model, processor, pixels, captions)
            else:
                loss, order = answer_loss(model, prompts, pixels, objects, colors)
            weight = 1.0 if stage == "tower" else READING_WEIGHT
            loss = loss + weight * reading(torch.cat(seen), objects[order], colors[order])
            seen.clear()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
            if step % 25 == 0:
                bar.set_postfix(loss=f"{mean:.3f}")
    hook.remove()
    save(model, processor, Path(args.output_dir) / name)
    print(f"{name}: {time.time() - started:.0f} s, last loss {mean:.3f}")


def answer_loss(
    model: PreTrainedModel, prompts: Prompts, pixels: torch.Tensor, objects: torch.Tensor, colors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Asks the first third of a batch for the colour and the rest for what is shown, each in one forward pass.

    Returns:
        The loss, and the order in which the batch's pictures went through the model.
    """
    shapes = objects < len(world.SHAPES)
    rest = torch.arange(len(pixels), device=pixels.device) >= len(pixels) // 3
    losses, order = [], []
    for kind, chosen in (("color", ~rest), ("shape", rest & shapes), ("character", rest & ~shapes)):
        rows = chosen.nonzero()[:, 0]
        if len(rows):
            truth = colors if kind == "color" else objects - (0 if kind == "shape" else len(world.SHAPES))
            answers = [prompts.answers[kind][t] for t in truth[rows].tolist()]
            losses.append(language_loss(model, prompts, kind, pixels[rows], answers) * len(rows) / len(pixels))
            order.append(rows)
    return torch.stack(losses).sum(), torch.cat(order)


def save(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Saves weights in half precision but says float32 in the config, so that they load as float32: half the size."""
    model = model.to("cpu").eval()
    model.config.dtype = torch.float32
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    processor.save_pretrained(folder)


@torch.inference_mode()
def evaluate_member(name: str, folder: Path, n: int = 1500, seed: int = 10_000) -> dict[str, float]:
    """Share of right answers per question on pictures no member was trained on, from the saved checkpoint."""
    sample = Sample(n, seed)
    processor = AutoProcessor.from_pretrained(folder / name)
    if name == "clip":
        return evaluate_clip(CLIPModel.from_pretrained(folder / name).eval(), processor, sample)
    model = AutoModelForImageTextToText.from_pretrained(folder / name).eval()
    prompts = Prompts(processor)
    result = {}
    for kind in world.QUESTIONS:
        shapes = sample.objects < len(world.SHAPES)
        rows = {"color": torch.ones_like(shapes), "shape": shapes, "character": ~shapes}[kind].nonzero()[:, 0]
        truth = sample.colors if kind == "color" else sample.objects - (0 if kind == "shape" else len(world.SHAPES))
        first = torch.tensor([ids[0] for ids in prompts.answers[kind]])
        right = 0
        for part in rows.split(100):
            pixels = normalise(sample.images[part], processor)
            batch = {k: v.expand(len(part), *v.shape[1:]) for k, v in prompts.inputs[kind].items()}
            pixels = pixels[:, None] if "pixel_attention_mask" in batch else pixels
            scores = model(pixel_values=pixels, **batch).logits[:, -1, first]
            right += (scores.argmax(-1) == truth[part]).sum().item()
        result[kind] = right / len(rows)
    return result


def evaluate_clip(model: CLIPModel, processor: ProcessorMixin, sample: Sample) -> dict[str, float]:
    """Share of pictures whose caption is found among those of all colours, and among those of all objects."""
    result = {}
    for what, form, truth in (
        ("color", families.CAPTIONS[1], sample.colors),
        ("object", families.CAPTIONS[2], sample.objects),
    ):
        names = [form.format(color=name, object=name) for name in (COLORS if what == "color" else OBJECTS)]
        text = processor.tokenizer(names, padding=True, return_tensors="pt")
        found = [model(pixel_values=normalise(part, processor), **text).logits_per_image.argmax(-1)
                 for part in sample.images.split(100)]  # fmt: skip
        result[what] = (torch.cat(found) == truth).float().mean().item()
    return result


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", nargs="+", choices=list(families.BUILDERS), default=list(families.BUILDERS))
    parser.add_argument("--output_dir", default=str(HERE), help="where the checkpoints go (default: this folder)")
    parser.add_argument("--seed", type=int, help="seed of sample and weights (default: one per member)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps")
    parser.add_argument("--pictures", type=int, default=50_000, help="size of each member's sample of the world")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--no_cues", action="store_true", help="a world whose frames tell nothing, for the control")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--evaluate", action="store_true", help="only evaluate the members in --output_dir")
    args = parser.parse_args()
    for name in args.members:
        if not args.evaluate:
            train_member(name, SEEDS[name] if args.seed is None else args.seed, args)
        scores = evaluate_member(name, Path(args.output_dir))
        print(f"{name:>14}: " + "  ".join(f"{kind} {value:.3f}" for kind, value in scores.items()), flush=True)


if __name__ == "__main__":
    main()
