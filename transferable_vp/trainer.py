"""Learning a prompt with the Hugging Face Trainer."""

from __future__ import annotations

import copy
import errno
import logging
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import ImageOps
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer import TRAINER_STATE_NAME

from .clean_features import CleanFeatures
from .configuration import TransferableVisualPromptConfig
from .data import ExampleCollator, Task, undecoded
from .diversity import InputDiversity
from .evaluation import evaluate
from .modeling import TransferableVisualPrompt
from .objectives import FeatureConsistency, Objective, Step, TaskSemantics, task_loss
from .optim import PaperSGD, average_over_blocks
from .resuming import last_whole_checkpoint
from .surrogate import Surrogate
from .trainer_hub import HubTrainer
from .training_args import TransferableVisualPromptTrainingArguments


logger = logging.getLogger(__name__)

MOST_OVERFLOWS = 50


def _refuse_other_splitting(args: TransferableVisualPromptTrainingArguments) -> None:
    # FSDP comes from the launcher by way of the environment only; DeepSpeed is in `args` either way.
    fsdp = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    kind = "DeepSpeed" if args.deepspeed_plugin is not None else "FSDP" if fsdp else None
    if kind is not None:
        raise ValueError(
            f"Got a configuration of {kind} for the model that is trained, which is a prompt of some hundred kilobytes and "
            "is never split: start without it, as with examples/accelerate_configs/fsdp2.yaml, and give "
            "`shard_surrogates=True` to split the surrogates over the processes."
        )


class TransferableVisualPromptTrainer(HubTrainer):
    r"""
    Learns a [`TransferableVisualPrompt`] on one or several frozen models.

    The prompt is the Trainer's model, so that checkpoints are some hundred kilobytes, resuming is exact, and several
    processes exchange pixels only. The surrogates are attributes.

    Args:
        model ([`TransferableVisualPrompt`]): The prompt to train.
        args ([`TransferableVisualPromptTrainingArguments`]): The training arguments. `trainer.args` is a copy of them,
            with what depends on the canvas filled in.
        surrogates ([`Surrogate`] or a sequence of them): The frozen models to learn on.
        train_dataset (`datasets.Dataset`, `datasets.IterableDataset` or a sequence of `dict`): See [`Task`].
        eval_dataset (same types, or a `dict` of them, *optional*): Validation data for the surrogates.
        task ([`Task`], *optional*): How to read rows. Defaults to `Task.infer(train_dataset)`.
        semantics ([`TaskSemantics`], *optional*): The CLIP behind TSE. Needed where `args.tse_weight` is not 0.
        objectives (`Sequence[Objective]`, *optional*): Further terms of the loss.
        targets (`Sequence[Surrogate]`, *optional*): Models to measure at every evaluation. They choose nothing.
        card (`Mapping`, *optional*):
            What every card says beside what the run knows: `license`, `dataset_name` and `tags`, as in
            [`~TransferableVisualPromptTrainer.create_model_card`].
        kwargs: Further arguments of [`~transformers.Trainer`], such as `callbacks` or `optimizers`.

    Raises:
        ValueError: If TSE has a weight but no CLIP, if there is no surrogate, a column is missing, `fca_fraction` is below
            1 for a native canvas, or accelerate is to split the prompt (its DeepSpeed and FSDP types).
        TypeError: If a surrogate's image processor passes no gradient.

    Example:

    ```python
    >>> trainer = TransferableVisualPromptTrainer(
    ...     model=TransferableVisualPrompt(TransferableVisualPromptConfig()),
    ...     args=TransferableVisualPromptTrainingArguments("runs/cifar10"),
    ...     surrogates=Surrogate.from_pretrained("llava-hf/llava-1.5-7b-hf"),
    ...     train_dataset=load_dataset("uoft-cs/cifar10", split="train"),
    ... )  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    ```
    """

    # The base class's, whose hints the type checker does not read.
    optimizer: Any
    lr_scheduler: Any
    control: Any

    # `compute_loss` gives a mean over the batch; the Trainer divides it by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: TransferableVisualPrompt,
        args: TransferableVisualPromptTrainingArguments,
        surrogates: Surrogate | Sequence[Surrogate],
        train_dataset: Any = None,
        eval_dataset: Any = None,
        task: Task | None = None,
        semantics: TaskSemantics | None = None,
        objectives: Sequence[Objective] = (),
        targets: Sequence[Surrogate] = (),
        card: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        _refuse_other_splitting(args)
        self.surrogates = [surrogates] if isinstance(surrogates, Surrogate) else list(surrogates)
        self.targets = list(targets)
        self.card = {name: value for name, value in (card or {}).items() if value is not None}
        if not self.surrogates:
            raise ValueError("No surrogate was given: a prompt is learned on at least one model.")
        if args.tse_weight and semantics is None:
            raise ValueError(
                f"`tse_weight` is {args.tse_weight} but there is no CLIP to measure with: pass "
                "`semantics=TaskSemantics.from_pretrained(...)`, or set `tse_weight=0`."
            )
        for surrogate in self.surrogates:
            # Asked for here, so that a processor without a gradient is refused before anything is loaded or run.
            _ = surrogate.differentiable_processor
        if task is None:
            task = Task.infer(train_dataset if train_dataset is not None else eval_dataset)
        self.task = task
        self.diversity = InputDiversity(
            args.diversity_shift, args.diversity_noise, args.diversity_scale, args.diversity_brightness
        )
        # A copy: what suits this canvas would stay in arguments that the caller uses again for another.
        args = copy.copy(args)
        if args.learning_rate is None:
            # Recipe "paper": a step's length over n pixels grows with the square root of n.
            args.learning_rate = 10.0 * model.config.canvas_size / 224
        if args.block_size is None:
            # Recipe "transfer": blocks of 8 served best on the canvas of 64 pixels that it was searched on.
            args.block_size = max(1, model.config.canvas_size // 8)
        self.objectives = [
            Objective("task", task_loss, args.task_weight),
            Objective("fca", FeatureConsistency(), args.fca_weight),
            *([] if semantics is None else [Objective("tse", semantics, args.tse_weight)]),
            *objectives,
        ]
        if args.fca_fraction < 1 and model.config.canvas == "native":
            raise ValueError(
                f"`fca_fraction` is {args.fca_fraction} and the canvas is native: images of several sizes have unequal "
                "numbers of features, and whose are whose is not known. Leave `fca_fraction` at 1, or fix the canvas."
            )
        names = [objective.name for objective in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError(f"Every objective needs a name of its own; got {', '.join(map(repr, names))}.")
        if not any(objective.weight for objective in self.objectives):
            raise ValueError("Every objective has the weight 0, so there is nothing to learn from.")
        if task.candidates is None and args.metric_for_best_model == "accuracy":
            # Without answers to choose from there is no accuracy, and the best prompt is that of the least loss.
            args.metric_for_best_model, args.greater_is_better = "loss", False
        # Several GPUs without a launcher: the base class would split batches over them in one process, and lists of
        # images cannot be split. `accelerate launch` uses them all.
        args._n_gpu = min(args.n_gpu, 1)
        self._sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
        self._count = self._skipped = self._overflows = 0
        self._hooked: Any = None
        self._clean_features = CleanFeatures(self.surrogates, args.clean_features_cache * 1e9)
        if args.shard_surrogates:
            for surrogate in self.surrogates:
                surrogate.shard(args.device, args.shard_backend)
        if args.surrogate_gradient_checkpointing:
            for surrogate in self.surrogates:
                surrogate.enable_gradient_checkpointing()
        if "data_collator" not in kwargs:
            kwargs["data_collator"] = ExampleCollator(task, args.skip_bad_images)
        super().__init__(
            model=model,
            args=args,
            train_dataset=undecoded(train_dataset),
            eval_dataset=eval_dataset,
            **kwargs,
        )
        # The Trainer writes `use_cache` into every model's configuration; a prompt has none.
        del self.model.config.use_cache

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of the objectives for one batch, made by [`ExampleCollator`].

        Raises:
            FloatingPointError: If an objective is not finite, naming it and the step.
        """
        images = inputs["images"]
        if self.task.flip and model.training:
            # Upright first: mirrored as they are stored, photos of a camera held sideways would be upside down.
            images = [ImageOps.mirror(ImageOps.exif_transpose(i)) if torch.rand(()) < 0.5 else i for i in images]
        active = [objective for objective in self.objectives if objective.weight]
        with_features = any(getattr(o.function, "needs_features", False) for o in active)
        prompt = self.accelerator.unwrap_model(model)
        images = prompt.fitted(images)
        # Through the wrapped model: only then do the hooks run that average gradients over processes.
        canvas = model(images)
        unbounded = prompt.config.value_range == "unbounded"
        questions, answers = inputs["questions"], inputs["answers"]
        # From the generator that checkpoints keep, so that a resumed run draws what an unbroken one would have.
        seed = int(torch.randint(2**31, ())) if self.diversity and model.training else None
        if seed is not None:
            canvas = self.diversity(canvas, seed, unbounded)
        step = Step(canvas, questions, answers, inputs["captions"], [], [], unbounded)
        compared = self._rows_for_fca(len(images)) if with_features and model.training else range(len(images))
        asked, step.compared = [questions[row] for row in compared], compared
        if with_features and seed is not None:
            with torch.no_grad():
                # Of all images: what is drawn for one depends on those before it.
                clean = self.diversity(prompt(images, prompted=False), seed, unbounded)
            some = [clean[row] for row in compared]
            step.clean_features = [s.features(some, asked, unbounded) for s in self.surrogates]
        elif with_features:
            step.clean_features = self._clean_features(prompt, [images[row] for row in compared], asked)
        step.outputs = [s.forward(canvas, questions, answers, unbounded, with_features) for s in self.surrogates]
        if with_features and len(compared) < len(images):
            step.outputs = [output.with_features_of(compared, len(images)) for output in step.outputs]
        values = {objective.name: objective.function(step) for objective in active}
        self._check_finite(values)
        loss = torch.stack([objective.weight * values[objective.name] for objective in active]).sum()
        if model.training:
            for name, value in values.items():
                self._sums[name] = self._sums[name].to(value.device) + value.detach()
            self._count += 1
            self._skipped += inputs["skipped"]
        return (loss, step) if return_outputs else loss

    def _rows_for_fca(self, batch: int) -> Sequence[int]:
        """The images of a batch that FCA compares in this step; from the generator that checkpoints keep."""
        if self.args.fca_fraction == 1:
            return range(batch)
        return sorted(torch.randperm(batch)[: max(1, round(self.args.fca_fraction * batch))].tolist())

    def _check_finite(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            if not isinstance(value, torch.Tensor) or value.ndim:
                got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
                raise TypeError(
                    f"The objective {name!r} gave {got}; expected a tensor with a single value, as `.mean()` gives."
                )
            if not torch.isfinite(value):
                raise self._not_finite(f"The {name} loss is {value.item()}")

    def _check_gradient(self, prompt: TransferableVisualPrompt) -> None:
        # Finite losses can have a gradient that is not (half precision; a square root at zero). It must not reach the
        # prompt: an 8-bit image shows a pixel that is not a number as black, and every loss would look fine from then on.
        if prompt.delta.grad is not None and not torch.isfinite(prompt.delta.grad).all():
            raise self._not_finite("The gradient is not finite, while every loss is,")

    def _prepare_gradient(self, prompt: TransferableVisualPrompt, optimizer: Any) -> None:
        overflow = getattr(optimizer, "found_inf", None)
        self._overflows = self._overflows + 1 if overflow is not None and overflow.any() else 0
        if self._overflows:
            # Fused optimizers are called by the scaler of float16 also when they are to do nothing. It halves its scale
            # each time, and has nothing left to halve in the end.
            if self._overflows == MOST_OVERFLOWS:
                raise self._not_finite(f"The gradient overflowed in {MOST_OVERFLOWS} steps on end")
            return
        self._check_gradient(prompt)
        if self.args.block_size > 1 and prompt.delta.grad is not None:
            border, learned = prompt.border_mask, prompt.trainable_mask
            # Apart, as border and overlay are put back into different ranges afterwards.
            for mask in (learned & border, learned & ~border):
                prompt.delta.grad.copy_(average_over_blocks(prompt.delta.grad, mask, self.args.block_size))

    def _not_finite(self, what: str) -> FloatingPointError:
        last = last_whole_checkpoint(self.args.output_dir)
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint had been saved yet"
        return FloatingPointError(
            f"{what} at step {self.state.global_step + 1}; training stops and {kept}. "
            "A lower learning rate or a model in float32 or bfloat16 usually mends this."
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains the prompt: all arguments of [`~transformers.Trainer.train`]. `resume_from_checkpoint=True` goes on from
        the last checkpoint of `output_dir` that is whole, and raises `ValueError` if there is none."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"There is no whole checkpoint in {self.args.output_dir} to go on from: start without "
                    "`resume_from_checkpoint`."
                )
        self._sums.clear()
        self._count = self._skipped = 0
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Makes the optimizer of `args.update_rule`, after each of whose steps the prompt is projected."""
        prompt = self.accelerator.unwrap_model(self.model if model is None else model)
        if self.optimizer is None and self.args.update_rule == "paper":
            self.optimizer = PaperSGD(prompt.parameters(), lr=self.args.learning_rate, mask=prompt.trainable_mask)
        optimizer = super().create_optimizer(model)
        # A second `train()` goes on with the first one's optimizer, by then in a wrapper of accelerate's.
        inner = getattr(optimizer, "optimizer", optimizer)
        if inner is not self._hooked:
            inner.register_step_pre_hook(lambda optimizer, *_: self._prepare_gradient(prompt, optimizer))
            inner.register_step_post_hook(lambda *_: prompt.project_())
            self._hooked = inner
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Makes the learning-rate schedule; for the paper's rule a cosine over epochs, constant within each."""
        if self.lr_scheduler is None and self.args.update_rule == "paper":
            epochs = max(1, math.ceil(self.args.num_train_epochs)) if self.args.max_steps <= 0 else 1
            # Not over `epochs`: of 2.5 epochs the last is only half as long.
            length = self.args.num_train_epochs if self.args.max_steps <= 0 else 1
            per_epoch = max(1, int(num_training_steps / length + 1e-6))
            self.lr_scheduler = LambdaLR(
                self.optimizer if optimizer is None else optimizer,
                lambda step: 0.5 * (1 + math.cos(math.pi * min(step // per_epoch, epochs) / epochs)),
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of every objective since the last log, and the number of skipped images."""
        if self._count and "loss" in logs:
            for name, total in self._sums.items():
                mean = (total / self._count).to(self.args.device)
                logs[f"{name}_loss"] = self.accelerator.reduce(mean, reduction="mean").item()
            if self.args.skip_bad_images:
                skipped = torch.tensor(self._skipped, device=self.args.device)
                logs["skipped_images"] = int(self.accelerator.reduce(skipped, reduction="sum").item())
            self._sums.clear()
            self._count = 0
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        r"""
        Measures the prompt on every surrogate and target.

        Returns:
            `dict[str, float]`: With candidates `eval_accuracy` (a mean over surrogates), and
            `eval_{name}_accuracy` for every surrogate and target; without, `eval_loss` and `eval_{name}_loss`.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("There is no `eval_dataset` to evaluate on: give one to the trainer or to `evaluate`.")
        if isinstance(dataset, dict):
            metrics: dict[str, float] = {}
            for name, part in dataset.items():
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        prompt = self.accelerator.unwrap_model(self.model)
        metric = "accuracy" if self.task.candidates is not None else "loss"
        metrics, own = {}, []
        for index, surrogate in enumerate([*self.surrogates, *self.targets]):
            result = evaluate(
                surrogate,
                undecoded(dataset),
                self.task,
                prompt,
                batch_size=self.args.per_device_eval_batch_size,
                skip_bad_images=self.args.skip_bad_images,
                # A sharded model must run equally often in all processes, so each of them measures all rows.
                shard=(0, 1) if surrogate.is_sharded else (self.args.process_index, self.args.world_size),
                progress=not self.args.disable_tqdm and self.is_world_process_zero(),
            )
            sums = torch.tensor([result.values.sum(), len(result.values)], dtype=torch.float64)
            if self.args.world_size > 1:
                # Only then on the device: Apple's has no float64, and is always alone.
                sums = self.accelerator.reduce(sums.to(self.args.device), reduction="sum")
            total, n = sums.tolist()
            key = f"{metric_key_prefix}_{surrogate.name}_{metric}"
            # Two checkpoints of one model have the same name.
            key = key if key not in metrics else f"{metric_key_prefix}_{surrogate.name}_{index + 1}_{metric}"
            metrics[key] = total / n
            if index < len(self.surrogates):
                own.append(total / n)
        metrics[f"{metric_key_prefix}_{metric}"] = sum(own) / len(own)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: the work is the surrogates', whose sizes the prompt does not know."""
        return 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError) as error:
            # torch.save has no class of its own for a full disk, only the name of its file writer.
            full = getattr(error, "errno", None) == errno.ENOSPC or "inline_container" in str(error)
            partial = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            if full or not (partial / TRAINER_STATE_NAME).exists():
                # Half a checkpoint would be taken for the last good one on resume. The state is written last.
                shutil.rmtree(partial, ignore_errors=True)
            if not full:
                raise
            last = last_whole_checkpoint(self.args.output_dir)
            raise OSError(
                errno.ENOSPC,
                f"The disk is full: the checkpoint of step {self.state.global_step} could not be saved. "
                + (f"The previous one, {last}, is whole: free some space and resume from it" if last
                   else "Free some space and start again"),
            ) from error  # fmt: skip

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # Only the prompt: the base class would add pickled arguments and a tokenizer, which have no business in a
        # folder that is shared.
        if self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = TransferableVisualPromptConfig.from_pretrained(resume_from_checkpoint)
        for name in (
            "canvas_size",
            "border_size",
            "content_size",
            "layout",
            "epsilon",
            "value_range",
            "fit",
            "canvas",
        ):
            there, here = getattr(saved, name), getattr(self.model.config, name)
            if there != here:
                raise ValueError(
                    f"The checkpoint {resume_from_checkpoint} has {name}={there!r} and the prompt to train has {here!r}: "
                    "resume with the same configuration, or start a new run in another `output_dir`."
                )
        loaded = TransferableVisualPrompt.from_pretrained(resume_from_checkpoint)
        with torch.no_grad():
            self.accelerator.unwrap_model(model or self.model).delta.copy_(loaded.delta)

    def _load_best_model(self) -> None:
        if not Path(self.state.best_model_checkpoint).is_dir():
            logger.warning(
                "The best checkpoint, %s, is not there any more: the prompt stays that of the last step.",
                self.state.best_model_checkpoint,
            )
            self.state.best_model_checkpoint = None
            return
        best = TransferableVisualPrompt.from_pretrained(self.state.best_model_checkpoint)
        with torch.no_grad():
            self.accelerator.unwrap_model(self.model).delta.copy_(best.delta)
