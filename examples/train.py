"""Learns one visual prompt on one or several models, from a dataset with images and labels or questions and answers.

On the zoo, offline (one CPU, two minutes):

    accelerate launch examples/train.py --model zoo/llava --dataset path/to/images --canvas_size 64 \
        --border_size 8 --output_dir runs/mine --max_steps 80 --per_device_train_batch_size 32

As in the paper, its models, inputs and updates (one GPU, see docs/paper.md):

    accelerate launch examples/train.py examples/paper/cifar10.yaml

All flags can stand in a YAML file, given first: `examples/train.py recipe.yaml --seed 1`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import yaml
from transformers import HfArgumentParser

from transferable_vp import (
    Surrogate,
    TaskSemantics,
    TransferableVisualPrompt,
    TransferableVisualPromptConfig,
    TransferableVisualPromptTrainer,
    TransferableVisualPromptTrainingArguments,
    get_task,
)
from transferable_vp.paper import PAPER_RECIPE, flags, load_rows, paper_surrogate


@dataclass
class ScriptArguments:
    """What to learn on, and from what. Everything else is a training argument."""

    model: list[str] = field(metadata={"help": "Model(s) to learn on: folders or Hub ids."})
    dataset: str | None = field(default=None, metadata={"help": "Hub id, folder or file; of a --task, a local copy."})
    task: str | None = field(default=None, metadata={"help": "A task of the paper, as cifar10 (docs/tasks.md)."})
    target_model: list[str] = field(default_factory=list, metadata={"help": "Models to measure, never to learn on."})
    clip_model: str = field(default="openai/clip-vit-base-patch32", metadata={"help": "CLIP for TSE."})
    dtype: str = field(default="auto", metadata={"help": "Precision of the models: auto, float32, bfloat16, float16."})
    device_map: str | None = field(default=None, metadata={"help": "'auto' spreads a model over GPUs (one process)."})
    dataset_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."})
    train_split: str = field(default="train", metadata={"help": "Split to learn from, as train[:1%%]."})
    eval_split: str | None = field(default=None, metadata={"help": "Split to validate on."})
    eval_share: float = field(
        default=0.0, metadata={"help": "Or: share of the train split, shuffled, to validate on."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read rows as they are needed; set --max_steps."})
    image_column: str | None = field(default=None, metadata={"help": "Column of images; found if not given."})
    answer_column: str | None = field(default=None, metadata={"help": "Column of answers or labels; found likewise."})
    question_column: str | None = field(default=None, metadata={"help": "Column of questions; found likewise."})
    question: str | None = field(default=None, metadata={"help": "The question, where there is no column of them."})
    candidates: list[str] | None = field(default=None, metadata={"help": "Answers to choose from (labels have them)."})
    caption: str | None = field(default=None, metadata={"help": "Caption for TSE, with {answer} in it."})
    flip: bool = field(default=False, metadata={"help": "Mirror half of the images; not for digits or text."})
    prompt: str | None = field(default=None, metadata={"help": "A prompt to start from: folder or Hub id."})
    canvas_size: int = field(default=224, metadata={"help": "Height and width of the canvas in pixels."})
    border_size: int = field(default=30, metadata={"help": "Width of the learned border in pixels."})
    canvas: str = field(default="fixed", metadata={"help": "fixed, or native: the border goes around the image."})
    layout: str = field(default="border", metadata={"help": "border, overlay or both."})
    fit: str = field(default="crop", metadata={"help": "crop, contain or stretch."})
    value_range: str = field(default="displayable", metadata={"help": "displayable or unbounded (the paper's)."})
    license: str | None = field(default=None, metadata={"help": "Licence named in the card, as the Hub calls it."})


def main(argv: list[str] | None = None) -> None:
    # 1. Arguments, from flags or from a YAML file that flags override.
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0].endswith((".yaml", ".yml")):
        with open(argv[0], encoding="utf-8") as file:
            argv = flags(yaml.safe_load(file) or {}) + argv[1:]
    parser = HfArgumentParser((ScriptArguments, TransferableVisualPromptTrainingArguments), description=__doc__)
    script, args = parser.parse_args_into_dataclasses(argv)
    if args.recipe == "paper":  # its settings first, so that everything given overrides them
        script, args = parser.parse_args_into_dataclasses(flags(PAPER_RECIPE) + argv)

    # 2. Data: any dataset, no code.
    if script.eval_share and script.streaming:
        raise ValueError("`eval_share` needs all rows, and `streaming` reads one after another: give `eval_split`.")
    columns = ("image_column", "answer_column", "question_column", "question", "candidates", "caption", "flip")
    given = {"dataset_name": script.dataset_name, "revision": script.dataset_revision}
    given |= {name: getattr(script, name) for name in columns}
    train, task = load_rows(script.task, script.dataset, script.train_split, streaming=script.streaming, **given)
    evaluation = None
    if script.eval_split is not None:
        evaluation, _ = load_rows(script.task, script.dataset, script.eval_split, **given)
    elif script.eval_share:
        parts = train.train_test_split(test_size=script.eval_share, seed=args.data_seed or args.seed)
        train, evaluation = parts["train"], parts["test"]

    # 3. The prompt: kilobytes of pixels, and all that is trained.
    if script.prompt is not None:
        prompt = TransferableVisualPrompt.from_pretrained(script.prompt)
    else:
        geometry = ("canvas_size", "border_size", "canvas", "layout", "fit", "value_range")
        config = TransferableVisualPromptConfig(**{name: getattr(script, name) for name in geometry})
        prompt = TransferableVisualPrompt(config)

    # 4. The models: frozen, each behind its own processor.
    placement = {"device_map": script.device_map} if script.device_map else {}

    def load(path: str, whole: bool = True) -> Surrogate:
        surrogate = Surrogate.from_pretrained(path, dtype=script.dtype, **placement)
        surrogate = paper_surrogate(surrogate) if args.recipe == "paper" else surrogate
        return surrogate if placement or not whole else surrogate.to(args.device)

    surrogates = [load(path, whole=not args.shard_surrogates) for path in script.model]
    targets = [load(path) for path in script.target_model]

    # 5. CLIP, for Task Semantics Enrichment.
    semantics = TaskSemantics.from_pretrained(script.clip_model).to(args.device) if args.tse_weight else None

    # 6. Learn.
    data = {"id": script.dataset or get_task(script.task or "").dataset, "split": script.train_split}
    data |= {"config": script.dataset_name, "revision": script.dataset_revision}
    trainer = TransferableVisualPromptTrainer(
        model=prompt,
        args=args,
        surrogates=surrogates,
        train_dataset=train,
        eval_dataset=evaluation,
        task=task,
        semantics=semantics,
        targets=targets,
        card={"license": script.license, "dataset_name": [data]},
    )
    last = (args.resume_from_checkpoint or "").lower() == "true"  # or else a folder
    trainer.train(resume_from_checkpoint=last or args.resume_from_checkpoint)

    # 7. Measure, save, share.
    if evaluation is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.save_state()
    (trainer.push_to_hub if args.push_to_hub else trainer.save_model)()  # pushing saves first
    if trainer.is_world_process_zero():
        pushed = f"Shared as {trainer.hub_model_id}." if args.push_to_hub else ""
        share = f"To share it: transferable-vp push {args.output_dir} ME/NAME"
        print(f"The prompt is in {args.output_dir}, with its card, README.md. {pushed or share}")


if __name__ == "__main__":
    main()
