"""What a prompt does for a model: answers ranked, compared and put into a transfer report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .data import BadImageError, Example, Task, undecoded
from .images import to_images, to_pil
from .modeling import TransferableVisualPrompt
from .report import paired_bootstrap
from .scoring import score_candidates
from .surrogate import Surrogate, SurrogateOutput, answer_loss


@dataclass
class Evaluation:
    r"""
    The answers of one model on one dataset.

    Attributes:
        values (`np.ndarray`): float64 `(n,)`, 1 for a right answer and 0 for a wrong one; for tasks without candidates
            the cross-entropy of each right answer.
        answers (`list[str]`): The model's answers (empty without candidates).
        skipped (`int`): Number of images that could not be read.
    """

    values: np.ndarray
    answers: list[str] = field(default_factory=list)
    skipped: int = 0

    @property
    def mean(self) -> float:
        """`float`: Accuracy in 0..1, or the mean loss."""
        return float(self.values.mean())


# Not `inference_mode`: image processors cache tensors of their own, and one made in that mode cannot be used in training.
@torch.no_grad()
def evaluate(
    surrogate: Surrogate,
    dataset: Any,
    task: Task,
    prompt: TransferableVisualPrompt | None = None,
    prompted: bool = True,
    batch_size: int = 32,
    skip_bad_images: bool = False,
    shard: tuple[int, int] = (0, 1),
    progress: bool = True,
    description: str | None = None,
) -> Evaluation:
    r"""
    Ranks the candidates of every row and compares the best with the right answer.

    Args:
        surrogate ([`Surrogate`]): The model.
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or a sequence of `dict`): The rows.
        task ([`Task`]): How to read them.
        prompt ([`TransferableVisualPrompt`], *optional*): Without it the model is given the images as they are.
        prompted (`bool`, *optional*, defaults to `True`): With `False`, the prompt's geometry with a black border.
        batch_size (`int`, *optional*, defaults to 32): Images per forward pass.
        skip_bad_images (`bool`, *optional*, defaults to `False`): Whether to leave out images that cannot be read.
        shard (`tuple[int, int]`, *optional*, defaults to `(0, 1)`): This process's index and the number of processes.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.
        description (`str`, *optional*): Text of the bar. Defaults to the model's name.

    Returns:
        [`Evaluation`]

    Raises:
        ValueError: If there is no row to evaluate, or a row's label is not among the candidates.
    """
    dataset = undecoded(dataset)
    rows = islice(iter(dataset), shard[0], None, shard[1])
    total = len(range(shard[0], len(dataset), shard[1])) if hasattr(dataset, "__len__") else None
    values: list[float] = []
    answers: list[str] = []
    skipped = 0
    with tqdm(total=total, desc=description or surrogate.name, unit="img", disable=not progress, leave=False) as bar:
        for batch in _batches(_examples(rows, task, skip_bad_images, shard), batch_size):
            examples = [e for e in batch if e is not None]
            skipped += len(batch) - len(examples)
            bar.update(len(batch))
            if examples:
                values += _measure(surrogate, examples, task, prompt, prompted, answers)
    if not values and shard[1] == 1:
        raise ValueError(
            f"There is nothing to evaluate: no rows{f', {skipped} unreadable images' if skipped else ''}."
        )
    return Evaluation(np.asarray(values, dtype=np.float64), answers, skipped)


def _measure(
    surrogate: Surrogate,
    examples: Sequence[Example],
    task: Task,
    prompt: TransferableVisualPrompt | None,
    prompted: bool,
    answers: list[str],
) -> list[float]:
    images: Any = [example.image for example in examples]
    questions = [example.question for example in examples]
    canvas = None if prompt is None else prompt(images, prompted=prompted)
    unbounded = prompt is not None and prompt.config.value_range == "unbounded"
    # Without a prompt too, every image is turned upright and made 8-bit RGB as the prompt would have it: processors do
    # neither, and the two sides of a comparison must show the same picture.
    images = [to_pil(to_images(i)[0]) for i in images] if canvas is None else [to_pil(c) for c in canvas]
    given = canvas if unbounded else None
    if task.candidates is None:
        inputs = surrogate.encode(images, questions, given, unbounded)
        inputs, start, labels = surrogate.append_answers(inputs, questions, [e.answer for e in examples])
        logits = surrogate.answer_logits(inputs, start, labels.shape[1])
        return [
            answer_loss(SurrogateOutput(x[None], y[None], None)).item() for x, y in zip(logits, labels, strict=True)
        ]
    scores = score_candidates(surrogate, images, questions, [task.candidates] * len(images), given)
    best = [task.candidates[int(score.argmax())] for score in scores]
    answers += best
    return [float(answer == example.answer) for answer, example in zip(best, examples, strict=True)]


def _examples(
    rows: Iterable[dict[str, Any]], task: Task, skip_bad_images: bool, shard: tuple[int, int]
) -> Iterator[Example | None]:
    for position, row in enumerate(rows):
        try:
            yield task.example(row, shard[0] + position * shard[1])
        except BadImageError:
            if not skip_bad_images:
                raise
            yield None


def _batches(examples: Iterator[Example | None], size: int) -> Iterator[list[Example | None]]:
    while batch := list(islice(examples, size)):
        yield batch


def random_prompt(prompt: TransferableVisualPrompt, seed: int) -> TransferableVisualPrompt:
    """A prompt of the same geometry whose learned pixels are drawn uniformly, the control of reports."""
    generator = torch.Generator().manual_seed(seed)
    control = TransferableVisualPrompt(prompt.config)
    with torch.no_grad():
        noise = torch.rand(control.delta.shape, generator=generator)
        overlay = (noise * 2 - 1) * prompt.config.epsilon
        control.delta.copy_(torch.where(control.border_mask, noise, overlay))
    return control.project_()


def transfer_report(
    targets: Sequence[Surrogate],
    dataset: Any,
    task: Task,
    prompts: Sequence[TransferableVisualPrompt],
    *,
    source: Sequence[str],
    title: str,
    baselines: Sequence[TransferableVisualPrompt] = (),
    seeds: Sequence[int] = (0,),
    settings: dict[str, Any] | None = None,
    batch_size: int = 32,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    r"""
    Measures prompts on every model, against the unprompted image and the controls, on the same examples.

    Args:
        targets (`Sequence[Surrogate]`): The models, source included.
        dataset, task: As in [`evaluate`].
        prompts (`Sequence[TransferableVisualPrompt]`): The prompts to judge, one per training seed.
        source (`Sequence[str]`): Names of the models that they were learned on.
        title (`str`): Name of the task.
        baselines (`Sequence[TransferableVisualPrompt]`, *optional*): Prompts of the task loss alone (VP), one per seed.
        seeds (`Sequence[int]`, *optional*, defaults to `(0,)`): The training seeds; the random border uses them too.
        settings (`dict`, *optional*): Whatever else made the numbers.
        batch_size, skip_bad_images, progress: As in [`evaluate`].

    Returns:
        `dict`: See `transferable_vp.report`. Columns are means over seeds; the interval is a paired bootstrap over
        examples.
    """
    report: dict[str, Any] = {"source": " + ".join(source), "task": title, "seeds": list(seeds), "settings": settings or {},
                              "targets": []}  # fmt: skip
    shape = prompts[0]
    conditions: dict[str, list[tuple[TransferableVisualPrompt | None, bool]]] = {
        "full_image": [(None, True)],
        "zero_border": [(shape, False)],
        "random_border": [(random_prompt(shape, seed), True) for seed in seeds],
        "vp": [(prompt, True) for prompt in baselines],
        "tvp": [(prompt, True) for prompt in prompts],
    }
    runs = [(name, *run) for name, some in conditions.items() for run in some]
    with tqdm(total=len(targets) * len(runs), desc=f"evaluating {title}", disable=not progress) as bar:
        for target in targets:
            values: dict[str, list[np.ndarray]] = {name: [] for name in conditions}
            for name, prompt, prompted in runs:
                bar.set_postfix_str(f"{target.name}, {name.replace('_', ' ')}")
                result = evaluate(target, dataset, task, prompt, prompted, batch_size, skip_bad_images, progress=False)
                values[name].append(result.values)
                bar.update()
            means = {name: float(np.mean(runs_)) if runs_ else None for name, runs_ in values.items()}
            low, high = paired_bootstrap(values["zero_border"][0], np.stack(values["tvp"]))
            report["targets"].append(
                {
                    "model": target.name,
                    "family": target.config.model_type,
                    "is_source": target.name in source,
                    "n": len(values["zero_border"][0]),
                    **means,
                    "delta": means["tvp"] - means["zero_border"],  # type: ignore[operator]
                    "delta_ci95": [low, high],
                }
            )
    return report
