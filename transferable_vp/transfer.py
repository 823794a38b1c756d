"""Transfer reports: prompts measured on models that they were not learned on, against the controls."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save
from tqdm.auto import tqdm

from .cache import AnswerCache
from .data import Task
from .evaluation import By, Evaluation, evaluate
from .metrics import load_metric
from .metrics.intervals import paired_interval
from .modeling import TransferableVisualPrompt
from .report import paired_bootstrap
from .scoring import Length
from .surrogate import Surrogate


if TYPE_CHECKING:
    from .endpoints import Endpoint


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
    targets: Sequence[Surrogate | Endpoint],
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
    metric: str = "candidate_accuracy",
    by: By = "rank",
    length: Length = "mean",
    max_new_tokens: int = 16,
    cache: Callable[[Surrogate | Endpoint], AnswerCache] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    r"""
    Measures prompts on every model, against the unprompted image and the controls, on the same examples.

    Args:
        targets (`Sequence[Surrogate | Endpoint]`): The models, source included.
        dataset, task: As in [`evaluate`].
        prompts (`Sequence[TransferableVisualPrompt]`): The prompts to judge, one per training seed.
        source (`Sequence[str]`): Names of the models that they were learned on.
        title (`str`): Name of the task.
        baselines (`Sequence[TransferableVisualPrompt]`, *optional*): Prompts of the task loss alone (VP), one per seed.
        seeds (`Sequence[int]`, *optional*, defaults to `(0,)`): The training seeds; the random border uses them too.
        settings (`dict`, *optional*): Whatever else made the numbers.
        metric (`str`, *optional*, defaults to `"candidate_accuracy"`):
            What the columns show, of [`load_metric`]. All that the metric gives is under `"metrics"` of each model.
        cache (`Callable`, *optional*): Gives the cache of a model.
        shard (`tuple[int, int]`, *optional*, defaults to `(0, 1)`):
            This process's index and the number of processes. A process of several fills its cache and reports nothing:
            `{}`. One that comes after all of them then finds every answer there.
        batch_size, skip_bad_images, progress, by, length, max_new_tokens: As in [`evaluate`].

    Returns:
        `dict`: See `transferable_vp.report`. Columns are means over seeds; the interval is a paired bootstrap over
        examples.
    """
    if by == "rank" and task.candidates is None:
        raise ValueError(
            "There are no candidates to rank, so there is no accuracy to report: give the task some, or let models write "
            "(`by='generate'`)."
        )
    report: dict[str, Any] = {"source": " + ".join(source), "task": title, "metric": metric, "seeds": list(seeds),
                              "settings": settings or {}, "targets": []}  # fmt: skip
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
            found: dict[str, list[Evaluation]] = {name: [] for name in conditions}
            kept = None if cache is None else cache(target)
            for name, prompt, prompted in runs:
                bar.set_postfix_str(f"{target.name}, {name.replace('_', ' ')}")
                result = evaluate(
                    target, dataset, task, prompt, prompted, batch_size, skip_bad_images, shard, progress=False, by=by,
                    length=length, max_new_tokens=max_new_tokens, metric=metric, cache=kept,
                )  # fmt: skip
                found[name].append(result)
                bar.update()
            if shard[1] == 1:
                row = _row(target, found, task, metric, target.name in source)
                report["targets"].append({**row, "by": by, "weights": weights_digest(prompts[0])})
    return report if shard[1] == 1 else {}


def weights_digest(prompt: TransferableVisualPrompt) -> str:
    """The first eight digits of the SHA-256 of the prompt's `model.safetensors`, by which a card knows whether a row was
    measured with the prompt that it is shared with."""
    data = save({"delta": prompt.delta.detach().cpu().contiguous()}, metadata={"format": "pt"})
    return hashlib.sha256(data).hexdigest()[:8]


def _row(
    target: Surrogate | Endpoint, found: dict[str, list[Evaluation]], task: Task, metric: str, is_source: bool
) -> dict[str, Any]:
    """One model's line of the report."""
    details = {name: [_measured(result, task, metric) for result in results] for name, results in found.items()}
    key = "auroc" if metric == "auroc" else "accuracy"
    means = {name: float(np.mean([d[key] for d in some])) if some else None for name, some in details.items()}
    low, high = _interval(found["zero_border"], found["tvp"], task, metric)
    return {
        "model": target.name,
        "family": target.config.model_type if isinstance(target, Surrogate) else "API",
        "is_source": is_source,
        "n": len(found["zero_border"][0].values),
        **means,
        "delta": means["tvp"] - means["zero_border"],  # type: ignore[operator]
        "delta_ci95": [low, high],
        "metrics": details,
    }


def _measured(result: Evaluation, task: Task, metric: str) -> dict[str, Any]:
    """All that the metric's module gives for one evaluation."""
    if metric == "auroc":
        return load_metric(metric).compute(predictions=_margins(result, task), references=_positive(result))
    if metric == "candidate_accuracy" and result.scores and task.candidates is not None:
        references = [list(task.candidates).index(answer) for answer in result.references]
        # A row of nothing but -inf (no letter among those that an API names) is no choice, and none of its ranks is right.
        scores = [
            row if max(row) > -math.inf else [-float(column == right) for column in range(len(row))]
            for row, right in zip(result.scores, references, strict=True)
        ]
        return load_metric(metric).compute(predictions=scores, references=references)
    if metric == "candidate_accuracy":
        # Written answers have no ranks: right or wrong is all there is.
        scores = [[value, 0.5] for value in result.values.tolist()]
        return load_metric(metric).compute(predictions=scores, references=[0] * len(scores))
    return load_metric(metric).compute(predictions=result.answers, references=result.references)


def _positive(result: Evaluation) -> list[int]:
    return [int(answer == "yes") for answer in result.references]


def _margins(result: Evaluation, task: Task) -> list[float]:
    """How much likelier yes is than no; 1 or -1 of a written answer that says so, 0 of one that says neither."""
    if not result.scores:
        return [{"yes": 1.0, "no": -1.0}.get(answer, 0.0) for answer in result.answers]
    if sorted(task.candidates or ()) != ["no", "yes"]:
        raise ValueError(f"An AUROC is of the answers yes and no, but the candidates are {task.candidates}.")
    sign = 1 if list(task.candidates or ())[1] == "yes" else -1
    # An API names no letter that is far from likely; a difference of infinities is none.
    return [sign * float(np.nan_to_num(b - a, nan=0.0)) for a, b in result.scores]


def _interval(
    before: Sequence[Evaluation], after: Sequence[Evaluation], task: Task, metric: str
) -> tuple[float, float]:
    """95 % interval of the difference of means over seeds, the same examples drawn on both sides."""
    if metric != "auroc":
        return paired_bootstrap(before[0].values, np.stack([result.values for result in after]))
    from .metrics.auroc.auroc import area_under_roc

    def mean(scores: np.ndarray, positive: np.ndarray) -> float:
        return float(np.mean([area_under_roc(column, positive) for column in scores.T]))

    positive = np.array(_positive(before[0]))
    without, with_ = (np.array([_margins(result, task) for result in results]).T for results in (before, after))
    return paired_interval(mean, without, with_, positive, strata=positive)
