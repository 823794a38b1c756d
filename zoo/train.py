"""Makes a zoo: trains its members from scratch on a sample of the world and saves ordinary checkpoints.

    python zoo/train.py                                     # all members, one after another, into this folder
    python zoo/train.py --zoo_seed 1 --output_dir zoos/1    # another zoo: other pictures, other weights
    python zoo/train.py --no_cues --output_dir zoos/nocue   # the control: a world whose frames tell nothing
    python zoo/train.py --evaluate                          # what the members in the folder can do

A member learns in two stages. First its vision tower alone, with a linear reading of object and colour from its tokens
(thrown away at the end): language-model gradients alone leave so small a tower on a plateau for thousands of steps. Then
the whole model, by next-token loss on the answer and its end token only. CLIP learns from captions instead. BLIP-2 takes
the vision tower that InstructBLIP has learned, frozen, and skips the first stage.
"""

from __future__ import annotations

import argparse
import json
import os
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
# Seeds of the weights; those of another zoo are 100 further on.
SEEDS = {"llava": 3, "idefics3": 1, "paligemma": 4, "instructblip": 2, "clip": 5, "internvl": 6, "blip2": 7}
# Tower steps, whole-model steps.
STEPS = {
    "llava": (1300, 1200),
    "idefics3": (1300, 1200),
    "paligemma": (1300, 1200),
    "instructblip": (1300, 1600),
    "internvl": (1300, 1200),
    "blip2": (0, 1600),
    "clip": (1000, 1200),
}
# Members that read another member's vision tower, which stays frozen: most published models share theirs this way.
SHARED_TOWERS = {"blip2": "instructblip"}
# Weight of the linear reading while the whole model learns.
READING_WEIGHT = 0.3


class Sample:
    """`n` pictures of the world as tensors: `images` uint8 `(n, 3, 64, 64)`, `colors` and `objects` int64 `(n,)`.

    With `file` the pictures are read from there, or drawn and left there for the next member or process.
    """

    def __init__(
        self, n: int, seed: int, cues: bool = True, device: str = "cpu", file: str | Path | None = None
    ) -> None:
        if file is not None and Path(file).exists():
            # Mapped copy-on-write: processes that train beside each other share the one copy in memory.
            rows = np.load(file, mmap_mode="c")
            if len(rows) != n:
                raise ValueError(f"{file} holds {len(rows)} pictures, expected {n}: delete it or pass --pictures.")
        else:
            rows = self.draw(n, seed, cues)
            if file is not None:
                # Another process may be drawing the same pictures: whoever is last replaces equal by equal.
                part = Path(f"{file}.{os.getpid()}.npy")
                np.save(part, rows)
                part.replace(file)
        self.images = torch.from_numpy(rows[:, :-2]).view(n, 3, world.SIZE, world.SIZE).to(device)
        self.colors, self.objects = (torch.from_numpy(rows[:, i].astype(np.int64)).to(device) for i in (-2, -1))

    @staticmethod
    def draw(n: int, seed: int, cues: bool) -> np.ndarray:
        """A picture per row, uint8 `(n, 3 * 64 * 64 + 2)`: channels first, then the numbers of colour and object."""
        rng = np.random.default_rng(seed)
        rows = np.empty((n, 3 * world.SIZE**2 + 2), np.uint8)
        for row in tqdm(rows, desc="drawing", mininterval=5):
            scene = world.draw_scene(rng, cues)
            row[:-2] = np.asarray(scene.image).transpose(2, 0, 1).ravel()
            row[-2:] = COLORS.index(scene.color), OBJECTS.index(scene.object)
        return rows

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
    """Each question as the member's own processor writes it, alone and with each of its answers.

    `rows` holds one row per question and answer - colours, then shapes and characters in the order of `OBJECTS` - with
    `labels` for the answer and the end token that follows it, all padded to one length: one forward pass of one shape
    takes a batch of mixed questions.
    """

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
        rows = [self.row(fixed, [*answer, processor.tokenizer.eos_token_id])
                for kind, fixed in self.inputs.items() for answer in self.answers[kind]]  # fmt: skip
        self.rows = {}
        for key in rows[0]:
            length = max(row[key].shape[0] for row in rows)
            fill = -100 if key == "labels" else 0
            self.rows[key] = torch.stack(
                [F.pad(r[key], [0] * (2 * r[key].ndim - 1) + [length - len(r[key])], value=fill) for r in rows]
            )

    @staticmethod
    def row(fixed: dict[str, torch.Tensor], answer: list[int]) -> dict[str, torch.Tensor]:
        """One question with its answer appended, without batch dimension."""
        row, shown = {k: v[0] for k, v in fixed.items()}, torch.tensor(answer)
        row["input_ids"] = torch.cat([row["input_ids"], shown])
        row["attention_mask"] = torch.cat([row["attention_mask"], torch.ones_like(shown)])
        if "token_type_ids" in row:
            # 1 marks the answer: PaliGemma reads everything marked 0 in both directions, answers included.
            row["token_type_ids"] = torch.cat([row["token_type_ids"], torch.ones_like(shown)])
        # What stands at a place predicts the token after it.
        row["labels"] = torch.full_like(row["input_ids"], -100)
        row["labels"][-len(answer) - 1 : -1] = shown
        return row


def answer_loss(
    model: PreTrainedModel, prompts: Prompts, pixels: torch.Tensor, objects: torch.Tensor, colors: torch.Tensor
) -> torch.Tensor:
    """Next-token loss of the answers; the first third of a batch is asked for the colour, the rest for the object."""
    asked_color = torch.arange(len(pixels), device=pixels.device) < len(pixels) // 3
    index = torch.where(asked_color, colors, len(COLORS) + objects).cpu()
    batch = {k: v[index].to(pixels.device) for k, v in prompts.rows.items()}
    labels = batch.pop("labels")
    pixels = pixels[:, None] if "pixel_attention_mask" in batch else pixels
    logits = model(pixel_values=pixels, **batch).logits
    return F.cross_entropy(logits[labels >= 0].float(), labels[labels >= 0])


def caption_loss(
    model: CLIPModel, processor: ProcessorMixin, form: str, pixels: torch.Tensor, objects: torch.Tensor,
    colors: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Symmetric contrastive loss; captions that occur twice in the batch count as right in both places."""
    names = [form.format(color=COLORS[c], object=OBJECTS[o])
             for c, o in zip(colors.tolist(), objects.tolist(), strict=True)]  # fmt: skip
    text = processor.tokenizer(names, padding=True, return_tensors="pt").to(pixels.device)
    logits = model(pixel_values=pixels, **text).logits_per_image.float()
    same = torch.tensor([[a == b for b in names] for a in names], dtype=logits.dtype, device=logits.device)
    return F.cross_entropy(logits, same / same.sum(1, keepdim=True)) + F.cross_entropy(
        logits.T, same / same.sum(1, keepdim=True)
    )


def train_member(name: str, sample: Sample, args: argparse.Namespace) -> None:
    """Trains one member and saves it with its processor under `args.output_dir/name`."""
    torch.manual_seed(SEEDS[name] + 100 * args.zoo_seed)
    model, processor = families.BUILDERS[name]()
    families.initialise(model)
    tower = tower_of(model)
    if name in SHARED_TOWERS:
        lender = AutoModelForImageTextToText.from_pretrained(Path(args.output_dir) / SHARED_TOWERS[name])
        tower.load_state_dict(tower_of(lender).state_dict())
        tower.requires_grad_(False)
    model.to(args.device).train()
    # bfloat16 halves the time of a matrix product on CPUs that have it (and on GPUs), but torch 2.15's fused attention
    # is slow to differentiate in it there; attention written out is not.
    model.set_attn_implementation("eager")
    reading = Reading().to(args.device)
    prompts = None if name == "clip" else Prompts(processor)
    seen: list[torch.Tensor] = []
    hook = tower.register_forward_hook(lambda _, __, output: seen.append(output.last_hidden_state))
    started, mean = time.time(), 0.0
    for stage, steps in zip(("tower", "whole"), STEPS[name], strict=True):
        steps = max(2, int(steps * args.scale)) if steps else 0
        module = tower if stage == "tower" else model
        parameters = [p for p in [*module.parameters(), *reading.parameters()] if p.requires_grad]
        peak = 1.5e-3 if stage == "tower" else 1e-3
        # Nothing is to be read from a frozen tower.
        weight = 1.0 if stage == "tower" else 0.0 if name in SHARED_TOWERS else READING_WEIGHT
        optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.05, betas=(0.9, 0.98))
        schedule = get_cosine_schedule_with_warmup(optimizer, min(100, steps // 4), steps)
        bar = tqdm(range(steps), desc=f"{name} {stage}", mininterval=5)
        for step in bar:
            pick = torch.randint(len(sample), (args.batch_size,)).to(args.device)
            pixels = normalise(sample.images[pick], processor)
            objects, colors = sample.objects[pick], sample.colors[pick]
            with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=not args.float32):
                if stage == "tower":
                    tower(pixels)
                    loss = torch.zeros((), device=args.device)
                elif name == "clip":
                    form = families.CAPTIONS[step % len(families.CAPTIONS)]
                    loss = caption_loss(model, processor, form, pixels, objects, colors)
                else:
                    loss = answer_loss(model, prompts, pixels, objects, colors)
            loss = loss + weight * reading(seen.pop().float(), objects, colors)
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
def evaluate_member(name: str, folder: Path, cues: bool = True, n: int = 1500, seed: int = 10_000) -> dict[str, float]:
    """Share of right answers per question on pictures no member was trained on, from the saved checkpoint."""
    sample = Sample(n, seed, cues)
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
    parser.add_argument("--zoo_seed", type=int, default=0, help="another seed: other pictures, other weights")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps")
    parser.add_argument("--pictures", type=int, default=50_000, help="size of the sample of the world")
    parser.add_argument("--pictures_file", help="file (.npy) that keeps the drawn sample for another run or process")
    parser.add_argument("--resume", action="store_true", help="leave out members that --output_dir already has")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--no_cues", action="store_true", help="a world whose frames tell nothing, for the control")
    parser.add_argument("--float32", action="store_true", help="for processors that are slow in bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--evaluate", action="store_true", help="only evaluate the members in --output_dir")
    args = parser.parse_args()
    output, sample = Path(args.output_dir), None
    for name in args.members:
        if args.resume and (output / name / "model.safetensors").exists():
            print(f"{name}: is there already")
            continue
        if not args.evaluate:
            sample = sample or Sample(
                args.pictures, 1000 + args.zoo_seed, not args.no_cues, args.device, args.pictures_file
            )
            train_member(name, sample, args)
        scores = evaluate_member(name, output, not args.no_cues)
        print(f"{name:>14}: " + "  ".join(f"{kind} {value:.3f}" for kind, value in scores.items()), flush=True)


if __name__ == "__main__":
    main()
