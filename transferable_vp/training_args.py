"""The training arguments: transformers' own, and the few that a visual prompt needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from .sharding import BACKENDS


UPDATE_RULES = ("adam", "paper")
LEARNING_RATES = {"adam": 0.1, "paper": 10.0}
# A default that says: not given. `__post_init__` puts the recipe's value there, so the types are those of values.
FROM_RECIPE: Any = None

# What an argument is that was not given. "transfer" is what `examples/reproduce_claims.py --search` chose on validation
# pictures: Adam, the task loss, and pixels learned in blocks of an eighth of the canvas. "paper" is the released code's;
# its rate of 10 belongs to a canvas of 224 pixels. Rate and blocks that are None are set by the trainer, which knows the
# canvas.
RECIPES: dict[str, dict[str, Any]] = {
    "transfer": {
        "update_rule": "adam", "learning_rate": 0.1, "fca_weight": 0.0, "tse_weight": 0.0, "block_size": None,
        "diversity_shift": 0, "diversity_noise": 0.0, "diversity_scale": 0.0, "diversity_brightness": 0.0,
    },
    "paper": {
        "update_rule": "paper", "learning_rate": None, "fca_weight": 0.005, "tse_weight": 0.001, "block_size": 1,
        "diversity_shift": 0, "diversity_noise": 0.0, "diversity_scale": 0.0, "diversity_brightness": 0.0,
    },
}  # fmt: skip


@dataclass
class TransferableVisualPromptTrainingArguments(TrainingArguments):
    r"""
    [`~transformers.TrainingArguments`] with the weights of the objectives and the rule by which pixels are updated.

    Defaults that differ from transformers': cosine schedule, no gradient clipping (the length of a gradient over pixels
    says nothing), no weight decay, no reporting to trackers unless asked for, columns are kept, nothing is pushed before
    the end, and the best checkpoint (`load_best_model_at_end`) is the one with the best accuracy (without candidates, the
    least loss) on the *source's* validation data.

    Args:
        recipe (`str`, *optional*, defaults to `"transfer"`):
            What arguments are that are not given. `"transfer"` has the values named as defaults below, those that did
            most for models that were not learned on in the search that `docs/results_claims.md` reports. `"paper"` is the
            paper's: its update rule at a learning rate of 10 * canvas_size / 224, FCA 0.005, TSE 0.001, no blocks, no
            diversity. An argument that is given is never changed.
        update_rule (`str`, *optional*, defaults to `"adam"`):
            `"adam"` takes the optimizer that `optim` names (AdamW without weight decay, which is Adam). `"paper"` is the
            released code's rule: gradient over its norm on the whole canvas, masked, times the learning rate, which is
            constant within an epoch and follows a cosine over epochs.
        learning_rate (`float`, *optional*):
            Defaults to 0.1 (in units of the pixel range) for Adam and to 10 for the paper's rule; with `recipe="paper"`
            to 10 * canvas_size / 224, which the trainer sets.
        task_weight (`float`, *optional*, defaults to 1.0): Weight of the answers' cross-entropy.
        fca_weight (`float`, *optional*, defaults to 0.0): Weight of Feature Consistency Alignment (paper: 0.005).
        fca_fraction (`float`, *optional*, defaults to 1.0):
            Fraction, above 0, of every batch's images that FCA compares, drawn anew in each step; rounded, at least one. The
            clean side, an image encode of its own, costs that fraction; the term keeps its mean and gets noisier.
            Evaluation compares all. Not for `canvas="native"`.
        tse_weight (`float`, *optional*, defaults to 0.0):
            Weight of Task Semantics Enrichment, which needs a CLIP (paper: 0.001).
        block_size (`int`, *optional*):
            Side, in pixels of the canvas, of the blocks in which pixels are learned: the gradient is averaged over each
            before the update, see [`~optim.average_over_blocks`]. Defaults to an eighth of the canvas, which the trainer
            sets; 1 learns every pixel by itself.
        diversity_shift (`int`, *optional*, defaults to 0): In pixels of the canvas, see [`InputDiversity`].
        diversity_noise (`float`, *optional*, defaults to 0.0): As a standard deviation in units of the pixel range.
        diversity_scale (`float`, *optional*, defaults to 0.0): As a share of the canvas, below 1.
        diversity_brightness (`float`, *optional*, defaults to 0.0):
            As a share of every pixel, at most 1. All four change the canvas before every model of a training step sees
            it, all models the same way, the clean canvas of FCA as well. Evaluation is without.
        clean_features_cache (`float`, *optional*, defaults to 0.0):
            Gigabytes of memory, in every process, in which FCA keeps the clean images' features. From the second time on
            that an image comes with its question (mirrored it is another image), one image encode a step is saved. What
            is kept can differ from what would be computed in the last bit, as other images were in its batch, and a
            resumed run computes it anew: resuming is then exact up to rounding. 0 keeps nothing.
        skip_bad_images (`bool`, *optional*, defaults to `False`):
            Whether to leave out images that cannot be read instead of stopping. They are counted in the log.
        surrogate_gradient_checkpointing (`bool`, *optional*, defaults to `False`):
            Whether the surrogates' layers are recomputed in the backward pass to save memory.
        shard_surrogates (`bool`, *optional*, defaults to `False`):
            Whether the surrogates' layers are split over all processes, for models that do not fit one GPU. Load them on
            the CPU; the trainer moves the shards. The prompt itself is never split.
        shard_backend (`str`, *optional*, defaults to `"fsdp2"`):
            What splits them: `"fsdp2"` is PyTorch's, `"deepspeed"` ZeRO stage 3 of DeepSpeed; see [`shard_layers`].
        hub_strategy (`str`, *optional*, defaults to `"end"`):
            When to push, with `push_to_hub=True`, the prompt, its pictures and its card: `"end"` by
            [`~TransferableVisualPromptTrainer.push_to_hub`] and `save_model` only, `"every_save"` with every checkpoint
            while training goes on, `"checkpoint"` then also as folder `last-checkpoint` and `"all_checkpoints"` as
            folders `checkpoint-N`, which `from_pretrained(..., subfolder=...)` reads. transformers' own `"checkpoint"`
            pushes the pickled state of optimizer and random generators too; here nothing pickled leaves the machine,
            and training is resumed from a checkpoint in `output_dir`.
    """

    recipe: str = field(
        default="transfer",
        metadata={
            "help": "What arguments are that are not given: for transfer, or the paper's.",
            "choices": list(RECIPES),
        },
    )
    update_rule: str = field(
        default=FROM_RECIPE,
        metadata={"help": "How pixels are updated (default: adam).", "choices": list(UPDATE_RULES)},
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate (default: 0.1 for Adam, 10 for the paper's rule)."}
    )
    task_weight: float = field(default=1.0, metadata={"help": "Weight of the answers' cross-entropy."})
    fca_weight: float = field(
        default=FROM_RECIPE, metadata={"help": "Weight of Feature Consistency Alignment (default: 0; paper: 0.005)."}
    )
    fca_fraction: float = field(
        default=1.0,
        metadata={"help": "Fraction of every batch's images that FCA compares; less is faster (default: 1)."},
    )
    tse_weight: float = field(
        default=FROM_RECIPE,
        metadata={"help": "Weight of Task Semantics Enrichment, which needs a CLIP (default: 0; paper: 0.001)."},
    )
    block_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the blocks of pixels that are learned together (default: an eighth of the canvas)."
        },
    )
    diversity_shift: int = field(
        default=FROM_RECIPE, metadata={"help": "Largest random shift of the canvas in training, pixels (default: 0)."}
    )
    diversity_noise: float = field(
        default=FROM_RECIPE, metadata={"help": "Largest std of random noise in training, in 0..1 (default: 0)."}
    )
    diversity_scale: float = field(
        default=FROM_RECIPE, metadata={"help": "Largest share of shrinking and enlarging in training (default: 0)."}
    )
    diversity_brightness: float = field(
        default=FROM_RECIPE, metadata={"help": "Largest share of darker and lighter in training (default: 0)."}
    )
    clean_features_cache: float = field(
        default=0.0, metadata={"help": "GB in which to keep the clean images' features, for more than one epoch."}
    )
    skip_bad_images: bool = field(
        default=False, metadata={"help": "Leave out images that cannot be read; count them."}
    )
    surrogate_gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute the surrogates' layers in the backward pass to save memory."}
    )
    shard_surrogates: bool = field(
        default=False, metadata={"help": "Split the surrogates' layers over all processes."}
    )
    shard_backend: str = field(
        default="fsdp2",
        metadata={
            "help": "What splits them: PyTorch's FSDP2, or DeepSpeed's ZeRO-3.",
            "choices": list(BACKENDS),
        },
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule (Adam only)."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 is none."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Of no use to batches of PIL images."})
    hub_strategy: str = field(
        default="end",
        metadata={
            "help": "When to push config.json, model.safetensors, pictures and card, and nothing else: 'end'; "
            "'every_save', while training goes on; 'checkpoint', then also as folder last-checkpoint; "
            "'all_checkpoints', then also as folders checkpoint-N. Unlike transformers' own, none pushes the "
            "optimizer's state or other pickles: resume from the checkpoints in --output_dir.",
            "choices": [strategy.value for strategy in HubStrategy],
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: the prompt's forward names none of the dataset's columns."}
    )

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(f"`recipe` is {self.recipe!r}; it must be {' or '.join(map(repr, RECIPES))}.")
        recipe = RECIPES[self.recipe]
        for name, value in recipe.items():
            if name != "learning_rate" and getattr(self, name) is None:
                setattr(self, name, value)
        if self.update_rule not in UPDATE_RULES:
            raise ValueError(f"`update_rule` is {self.update_rule!r}; it must be 'adam' or 'paper'.")
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns=True` would drop the images; leave it false.")
        for name in ("task_weight", "fca_weight", "tse_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; a weight cannot be negative, 0 turns it off.")
        if not 0 < self.fca_fraction <= 1:
            raise ValueError(
                f"`fca_fraction` is {self.fca_fraction}; it must be above 0 and at most 1. `fca_weight=0` turns FCA off."
            )
        if self.block_size is not None and self.block_size < 1:
            raise ValueError(f"`block_size` is {self.block_size}; it must be 1 (every pixel by itself) or more.")
        if self.clean_features_cache < 0:
            raise ValueError(
                f"`clean_features_cache` is {self.clean_features_cache} GB; it cannot be negative, 0 keeps nothing."
            )
        if self.shard_backend not in BACKENDS:
            raise ValueError(f"`shard_backend` is {self.shard_backend!r}; it must be 'fsdp2' or 'deepspeed'.")
        if self.shard_backend == "deepspeed" and self.surrogate_gradient_checkpointing:
            raise ValueError(
                "Got `surrogate_gradient_checkpointing` and `shard_backend='deepspeed'`, which have not been tried "
                "together: use `shard_backend='fsdp2'`, or leave the checkpointing out."
            )
        if self.clean_features_cache and self.shard_surrogates:
            raise ValueError(
                "Got `clean_features_cache` and `shard_surrogates`: processes whose caches differ would wait for each other "
                "forever. Leave one of them out."
            )
        if self.learning_rate is None:
            # A recipe's rate belongs to its rule.
            same_rule = self.update_rule == recipe["update_rule"]
            self.learning_rate = recipe["learning_rate"] if same_rule else LEARNING_RATES[self.update_rule]
        if self.load_best_model_at_end and self.metric_for_best_model is None:  # type: ignore[has-type]
            self.metric_for_best_model, self.greater_is_better = "accuracy", True
        if self.accelerator_config is None:  # type: ignore[has-type]
            # A process that dispatches batches to the others can send tensors of one shape only; images are neither.
            self.accelerator_config = {"dispatch_batches": False}
        super().__post_init__()
