"""The training arguments: transformers' own, and the few that a visual prompt needs."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy


UPDATE_RULES = ("adam", "paper")


@dataclass
class TransferableVisualPromptTrainingArguments(TrainingArguments):
    r"""
    [`~transformers.TrainingArguments`] with the weights of the objectives and the rule by which pixels are updated.

    Defaults that differ from transformers': cosine schedule, no gradient clipping (the length of a gradient over pixels
    says nothing), no weight decay, no reporting to trackers unless asked for, columns are kept, nothing is pushed before
    the end, and the best checkpoint (`load_best_model_at_end`) is the one with the best accuracy (without candidates, the
    least loss) on the *source's* validation data.

    Args:
        update_rule (`str`, *optional*, defaults to `"adam"`):
            `"adam"` takes the optimizer that `optim` names (AdamW without weight decay, which is Adam). `"paper"` is the
            released code's rule: gradient over its norm on the whole canvas, masked, times the learning rate, which is
            constant within an epoch and follows a cosine over epochs.
        learning_rate (`float`, *optional*):
            Defaults to 0.05 (in units of the pixel range) for Adam and to 10 for the paper's rule at 224 pixels.
        task_weight (`float`, *optional*, defaults to 1.0): Weight of the answers' cross-entropy.
        fca_weight (`float`, *optional*, defaults to 0.005): Weight of Feature Consistency Alignment (paper: 0.005).
        tse_weight (`float`, *optional*, defaults to 0.001): Weight of Task Semantics Enrichment (paper: 0.001).
        skip_bad_images (`bool`, *optional*, defaults to `False`):
            Whether to leave out images that cannot be read instead of stopping. They are counted in the log.
        surrogate_gradient_checkpointing (`bool`, *optional*, defaults to `False`):
            Whether the surrogates' layers are recomputed in the backward pass to save memory.
        hub_strategy (`str`, *optional*, defaults to `"end"`):
            When to push, with `push_to_hub=True`, the prompt, its pictures and its card: `"end"` by
            [`~TransferableVisualPromptTrainer.push_to_hub`] and `save_model` only, `"every_save"` with every checkpoint
            while training goes on, `"checkpoint"` then also as folder `last-checkpoint` and `"all_checkpoints"` as
            folders `checkpoint-N`, which `from_pretrained(..., subfolder=...)` reads. transformers' own `"checkpoint"`
            pushes the pickled state of optimizer and random generators too; here nothing pickled leaves the machine,
            and training is resumed from a checkpoint in `output_dir`.
    """

    update_rule: str = field(
        default="adam", metadata={"help": "How pixels are updated.", "choices": list(UPDATE_RULES)}
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate; by default 0.05 for Adam, 10 for the paper's rule."}
    )
    task_weight: float = field(default=1.0, metadata={"help": "Weight of the answers' cross-entropy."})
    fca_weight: float = field(default=0.005, metadata={"help": "Weight of Feature Consistency Alignment."})
    tse_weight: float = field(default=0.001, metadata={"help": "Weight of Task Semantics Enrichment (needs a CLIP)."})
    skip_bad_images: bool = field(
        default=False, metadata={"help": "Leave out images that cannot be read; count them."}
    )
    surrogate_gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute the surrogates' layers in the backward pass to save memory."}
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
        if self.update_rule not in UPDATE_RULES:
            raise ValueError(f"`update_rule` is {self.update_rule!r}; it must be 'adam' or 'paper'.")
        if self.remove_unused_columns:
            raise ValueError("`remove_unused_columns=True` would drop the images; leave it false.")
        for name in ("task_weight", "fca_weight", "tse_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; a weight cannot be negative, 0 turns it off.")
        if self.learning_rate is None:
            self.learning_rate = 0.05 if self.update_rule == "adam" else 10.0
        if self.load_best_model_at_end and self.metric_for_best_model is None:  # type: ignore[has-type]
            self.metric_for_best_model, self.greater_is_better = "accuracy", True
        if self.accelerator_config is None:  # type: ignore[has-type]
            # A process that dispatches batches to the others can send tensors of one shape only; images are neither.
            self.accelerator_config = {"dispatch_batches": False}
        super().__post_init__()
