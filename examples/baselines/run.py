"""Every baseline beside transferable visual prompts: same rows, same steps, same seeds, one table.

Offline, on the zoo's colour task (some minutes on one CPU core):

    python examples/baselines/run.py

On models and data of yours:

    python examples/baselines/run.py --model Salesforce/instructblip-vicuna-7b \
        --target_model Salesforce/blip2-flan-t5-xl --clip_model openai/clip-vit-base-patch32 --dtype bfloat16 \
        --dataset uoft-cs/cifar10 --flip --max_steps 500 --n_train 8000 --output_dir runs/baselines

Writes baselines.json and baselines.png. What a baseline chooses, it chooses on the source, on rows held out of the
training split; test rows are read once for every method, model and seed, at the end.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lora
import text_prompt
import torch
from chart import save_chart
from comparison import METHODS, Comparison, Settings
from rows import Rows, dataset_rows, zoo_rows
from table import format_table
from transformers import HfArgumentParser
from transformers.utils.logging import disable_progress_bar

from transferable_vp import Surrogate, TaskSemantics, TransferableVisualPromptConfig
from transferable_vp.bundled import bundled
from transferable_vp.demo import MEMBERS, versions
from transferable_vp.report import make_folder
from transferable_vp.training_args import RECIPES


@dataclass
class BaselineArguments:
    """What to compare, on which models and rows."""

    model: str | None = field(
        default=None, metadata={"help": "Model to learn on: folder or Hub id (default: zoo/llava)."}
    )
    target_model: list[str] | None = field(
        default=None,
        metadata={"help": "Models to measure, never to learn on (default: the zoo's others, without --dataset)."},
    )
    clip_model: str | None = field(default=None, metadata={"help": "CLIP for TSE (default: zoo/clip)."})
    dtype: str = field(default="auto", metadata={"help": "Precision of the models: auto, float32, bfloat16, float16."})
    dataset: str | None = field(
        default=None, metadata={"help": "Hub id, folder or file (default: the zoo's colour task, drawn offline)."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    train_split: str = field(default="train", metadata={"help": "Split to learn from and to choose on."})
    test_split: str = field(default="test", metadata={"help": "Split to measure on."})
    image_column: str | None = field(default=None, metadata={"help": "Column of images; found if not given."})
    answer_column: str | None = field(default=None, metadata={"help": "Column of answers or labels; found likewise."})
    question_column: str | None = field(default=None, metadata={"help": "Column of questions; found likewise."})
    question: str | None = field(default=None, metadata={"help": "The question, where there is no column of them."})
    candidates: list[str] | None = field(default=None, metadata={"help": "Answers to choose from (labels have them)."})
    caption: str | None = field(default=None, metadata={"help": "Caption for TSE, with {answer} in it."})
    flip: bool = field(default=False, metadata={"help": "Mirroring leaves every answer right, so EVP may mirror."})
    n_train: int = field(default=800, metadata={"help": "Rows to learn from, drawn from the training split."})
    n_validation: int = field(default=200, metadata={"help": "Rows held out of the training split, to choose on."})
    n_test: int = field(default=400, metadata={"help": "Rows to measure on, drawn from the test split."})
    canvas_size: int | None = field(
        default=None, metadata={"help": "Pixels of the canvas (default: 64, with --dataset 224)."}
    )
    border_size: int | None = field(
        default=None, metadata={"help": "Width of the border (default: 8, with --dataset 30)."}
    )
    methods: list[str] = field(
        default_factory=lambda: list(METHODS),
        metadata={"help": f"Besides the full image, any of {', '.join(METHODS)}."},
    )
    max_steps: int = field(default=50, metadata={"help": "Steps of every training."})
    batch_size: int = field(default=16, metadata={"help": "Rows per step."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of the trainings."})
    learning_rate: float = field(default=0.05, metadata={"help": "Of VP, FCA, TSE and TVP; EVP's rule has its own."})
    fca_weight: float = field(default=RECIPES["paper"]["fca_weight"], metadata={"help": "Weight of FCA."})
    tse_weight: float = field(default=RECIPES["paper"]["tse_weight"], metadata={"help": "Weight of TSE."})
    lora_rank: int = field(default=8, metadata={"help": "Rank of LoRA's matrices."})
    lora_learning_rates: list[float] = field(
        default_factory=lambda: list(lora.LEARNING_RATES), metadata={"help": "Rates that LoRA chooses from."}
    )
    text_prefixes: list[str] | None = field(
        default=None, metadata={"help": "Instructions that the text prompt chooses from (default: a few of ours)."}
    )
    output_dir: str = field(default="runs/baselines", metadata={"help": "Where table and chart go."})
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bars."})

    def __post_init__(self) -> None:
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown:
            raise ValueError(f"--methods has {', '.join(unknown)}; choose among {', '.join(METHODS)}.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seeds is {self.seeds}; give at least one, and none twice.")
        if min(self.max_steps, self.batch_size) < 1:
            raise ValueError(
                f"--max_steps and --batch_size are {self.max_steps} and {self.batch_size}; each must be 1 or more."
            )
        offline = self.dataset is None
        self.canvas_size = (64 if offline else 224) if self.canvas_size is None else self.canvas_size
        self.border_size = (8 if offline else 30) if self.border_size is None else self.border_size

    def model_paths(self) -> list[str]:
        """Paths of the source and, after it, of the targets."""
        source = self.model or str(bundled("zoo/llava"))
        if self.target_model is not None:
            return [source, *self.target_model]
        others = [name for name in MEMBERS if name != Path(source).name] if self.dataset is None else []
        return [source, *(str(bundled(f"zoo/{name}")) for name in others)]


def load(kind: type[Surrogate] | type[TaskSemantics], path: str, **kwargs: Any) -> Any:
    """Loads a `Surrogate` or a `TaskSemantics`, or says in one sentence that it is not there."""
    if not Path(path).exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise FileNotFoundError(f"There is no model at {path}: no such folder.")
    try:
        return kind.from_pretrained(path, **kwargs).to("cuda" if torch.cuda.is_available() else "cpu")
    except OSError as error:
        why = str(error).strip().splitlines()[0].rstrip(".")
        raise OSError(f"The model {path} cannot be loaded, neither from a folder nor from the Hub: {why}.") from error


def load_rows(args: BaselineArguments) -> Rows:
    """The zoo's colour task, or the dataset that was named."""
    sizes = {"n_train": args.n_train, "n_validation": args.n_validation, "n_test": args.n_test}
    if args.dataset is None:
        return zoo_rows(**sizes)
    names = ("image_column", "answer_column", "question_column", "question", "candidates", "caption", "flip")
    columns = {name: getattr(args, name) for name in names}
    return dataset_rows(args.dataset, args.train_split, args.test_split, name=args.dataset_name, **sizes, **columns)


def compare(args: BaselineArguments) -> dict[str, Any]:
    """Runs all methods, writes `baselines.json` and the chart, and returns the report."""
    started = time.time()
    source, *targets = [load(Surrogate, path, dtype=args.dtype) for path in args.model_paths()]
    needs_clip = args.tse_weight and {"tse_only", "tvp"} & set(args.methods)
    semantics = load(TaskSemantics, args.clip_model or str(bundled("zoo/clip"))) if needs_clip else None
    rows = load_rows(args)
    settings = Settings(
        geometry=TransferableVisualPromptConfig(canvas_size=args.canvas_size, border_size=args.border_size),
        max_steps=args.max_steps,
        batch_size=args.batch_size,
        seeds=args.seeds,
        learning_rate=args.learning_rate,
        fca_weight=args.fca_weight,
        tse_weight=args.tse_weight,
        lora_rank=args.lora_rank,
        lora_learning_rates=args.lora_learning_rates,
        text_prefixes=args.text_prefixes or [*text_prompt.PREFIXES, *rows.hints],
    )
    report = Comparison(settings, rows, source, targets, semantics, not args.disable_tqdm).run(args.methods)
    given = {key: value for key, value in asdict(args).items() if key not in ("seeds", "output_dir", "disable_tqdm")}
    report["settings"] = given | {"flip": rows.task.flip}
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    report["machine"] = f"{name}, {os.cpu_count()} CPU cores, torch threads: {torch.get_num_threads()}"
    report["seconds"] = time.time() - started
    report["versions"] = versions()
    folder = Path(args.output_dir)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    make_folder(folder / "baselines.json").write_text(text, encoding="utf-8")
    save_chart(report, folder / "baselines.png")
    return report


def main(argv: list[str] | None = None) -> int:
    """Command line. Errors a user can mend are printed as one sentence; `TRANSFERABLE_VP_TRACEBACK=1` shows where."""
    parser = HfArgumentParser(BaselineArguments, description=__doc__)
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    # Bars of files that load in milliseconds hide those worth watching.
    disable_progress_bar()
    try:
        (args,) = parser.parse_args_into_dataclasses(argv)
        report = compare(args)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("TRANSFERABLE_VP_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{format_table(report)}\n\nWritten to {args.output_dir}: baselines.json, baselines.png "
          f"({report['seconds']:.0f} s)")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
