"""The README of a shared prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard, ModelCardData


if TYPE_CHECKING:
    from .trainer import TransferableVisualPromptTrainer


def write_model_card(trainer: TransferableVisualPromptTrainer, path: Path) -> None:
    """Writes the card of a trained prompt: what it is, how it was made, what was measured, how to use it.

    Args:
        trainer ([`TransferableVisualPromptTrainer`]): The trainer, after training.
        path (`pathlib.Path`): The `README.md` to write.
    """
    config, args = trainer.model.config, trainer.args
    # A local path means nothing to anyone else, and the Hub refuses it (transformers#33922).
    sources = [s.config._name_or_path for s in trainer.surrogates]
    hub_sources = [s for s in sources if s and not Path(s).exists() and s.count("/") == 1]
    data = ModelCardData(
        library_name="transferable-vp",
        tags=["transferable-vp", "visual-prompt"],
        pipeline_tag="image-text-to-text",
        base_model=hub_sources or None,
    )
    names = ", ".join(f"`{s.name}` ({s.config.model_type})" for s in trainer.surrogates)
    question = trainer.task.question if trainer.task.question_column is None else "one per image"
    metric = "accuracy" if trainer.task.candidates is not None else "loss"
    # The latest of every model: with several validation sets each has an entry of its own in the history.
    latest = {k: v for entry in trainer.state.log_history for k, v in entry.items()
              if k.startswith("eval_") and k.endswith(f"_{metric}") and k != f"eval_{metric}"}  # fmt: skip
    measured = "Nothing was measured during training."
    if latest:
        show = "{:.1%}" if metric == "accuracy" else "{:.4g}"
        rows = [
            f"| `{k.removeprefix('eval_').removesuffix('_' + metric)}` | {show.format(v)} |" for k, v in latest.items()
        ]
        title = f"{metric.capitalize()} on the validation data, as last measured:"
        measured = "\n".join([title, "", f"| model | {metric} |", "|---|---|", *rows])
    border = f"a border of {config.border_size} pixels" if config.layout != "overlay" else "an overlay"
    scaled = ", scaled to the size of every image" if config.canvas == "native" else ""
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    text = f"""---
{data.to_yaml()}
---

# A transferable visual prompt

{border.capitalize()} on a canvas of {config.canvas_size} x {config.canvas_size} pixels{scaled}, learned on {names}.
One image prompt, meant to help vision-language models that it was not learned on as well
([paper](https://arxiv.org/abs/2404.11207)).

## Use

```python
from transformers import AutoProcessor
from transferable_vp import TransferableVisualPrompt

prompt = TransferableVisualPrompt.from_pretrained("THIS_REPO")
processor = prompt.attach(AutoProcessor.from_pretrained("YOUR_MODEL"))  # then use it as you always do
prompt.apply(image).save("prompted.png")                               # or send this to any API
```

## How it was made

- question: {question}
- weights: task {args.task_weight}, FCA {args.fca_weight}, TSE {args.tse_weight}
- update rule: {args.update_rule}, learning rate {args.learning_rate}, batch {batch}, seed {args.seed},
  {trainer.state.global_step} steps

## Measured

{measured}
"""
    ModelCard(text).save(path)
