"""LoRA on the source: the weights are adapted instead of the picture (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from transferable_vp import ExampleCollator, Surrogate, Task, evaluate
from transferable_vp.answers import SurrogateOutput, answer_loss
from transferable_vp.demo import TrainingBar
from transferable_vp.images import to_images, to_pil


LABEL = "LoRA on the source"
# A factor of about three apart, around the rates that are usual for LoRA with Adam.
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


@contextmanager
def adapter(surrogate: Surrogate, seed: int, rank: int = 8) -> Iterator[Surrogate]:
    r"""
    Lends the surrogate low-rank matrices beside every linear layer but the output one, and takes them away again.

    The model's own weights stay frozen and are neither merged nor saved: after the block the model is what it was.

    Args:
        surrogate ([`Surrogate`]): The model to adapt.
        seed (`int`): Of the matrices' initial values.
        rank (`int`, *optional*, defaults to 8): Their rank. The scale is 2, `lora_alpha` being twice the rank.

    Yields:
        [`Surrogate`]: The adapted model.
    """
    set_seed(seed)
    model = get_peft_model(surrogate.model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    adapted = Surrogate(model, surrogate.processor, surrogate.name, surrogate.prompt_template)
    # A surrogate freezes all that it is given.
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    try:
        yield adapted
    finally:
        model.unload()


class LoraTrainer(Trainer):
    """The Trainer with the loss that prompts are learned with, on the images as they are."""

    def __init__(self, surrogate: Surrogate, **kwargs: Any) -> None:
        config = surrogate.model.config
        use_cache = vars(config).get("use_cache")
        super().__init__(model=surrogate.model, **kwargs)
        # The Trainer writes its own into the configuration, which is the frozen model's too.
        config.use_cache = use_cache
        if use_cache is None:
            del config.use_cache
        self.surrogate = surrogate

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy of the right answers, end token included, a mean over the answer tokens of the batch."""
        surrogate = self.surrogate
        images = [to_pil(to_images(image)[0]) for image in inputs["images"]]
        encoded = surrogate.encode(images, inputs["questions"])
        encoded, start, labels = surrogate.append_answers(encoded, inputs["questions"], inputs["answers"])
        logits = surrogate.answer_logits(encoded, start, labels.shape[1])
        output = SurrogateOutput(logits, labels, None)
        loss = answer_loss(output)
        return (loss, output) if return_outputs else loss


def learn_lora(
    adapted: Surrogate,
    rows: Any,
    task: Task,
    seed: int,
    batch_size: int,
    learning_rate: float,
    progress: bool = True,
) -> None:
    r"""
    Trains the adapter of `adapted`, in place, with AdamW and a cosine schedule.

    Args:
        adapted ([`Surrogate`]): From `adapter`.
        rows (sequence of `dict`): From `training_order`; each is seen once, in this order.
        task ([`Task`]): How to read them. Images are not mirrored.
        seed (`int`): Of whatever else is random.
        batch_size (`int`): Rows per step.
        learning_rate (`float`): At the start of the schedule.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.
    """
    with TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=len(rows) // batch_size, per_device_train_batch_size=batch_size, seed=seed,
            learning_rate=learning_rate, lr_scheduler_type="cosine", train_sampling_strategy="sequential",
            remove_unused_columns=False, dataloader_pin_memory=False, save_strategy="no", logging_strategy="no",
            disable_tqdm=True, report_to="none", use_cpu=adapted.device.type == "cpu",
        )  # fmt: skip
        bar = TrainingBar(
            f"learning LoRA on {adapted.name}, seed {seed}, rate {learning_rate:g}", disable=not progress
        )
        trainer = LoraTrainer(
            adapted, args=args, train_dataset=rows, data_collator=ExampleCollator(task), callbacks=[bar]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    adapted.model.eval()


def choose_learning_rate(
    surrogate: Surrogate,
    rows: Any,
    validation: Any,
    task: Task,
    seed: int,
    batch_size: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    rank: int = 8,
    progress: bool = True,
) -> tuple[float, dict[float, float]]:
    r"""
    Trains once with every learning rate and compares them on validation rows of the source.

    Returns:
        The best rate (of equals the smallest), and the accuracy of each.
    """
    found = {}
    for rate in sorted(learning_rates):
        with adapter(surrogate, seed, rank) as adapted:
            learn_lora(adapted, rows, task, seed, batch_size, rate, progress)
            found[rate] = evaluate(
                adapted, validation, task, progress=progress, description=f"LoRA, rate {rate:g}"
            ).mean
    return max(found, key=lambda rate: found[rate]), found


def trainable_parameters(adapted: Surrogate) -> int:
    """How many numbers an adapter has."""
    return sum(p.numel() for p in adapted.model.parameters() if p.requires_grad)
