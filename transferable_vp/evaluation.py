"""What a model answers, with and without a prompt, and whether that is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from .answers import SurrogateOutput, answer_loss
from .cache import AnswerCache, given
from .data import BadImageError, Example, Task, undecoded
from .endpoints import offer
from .generation import generate
from .images import to_images, to_pil
from .metrics.answers import match_candidate, normalize, number, yes_no
from .modeling import TransferableVisualPrompt
from .scoring import Length, score_candidates
from .surrogate import Surrogate


if TYPE_CHECKING:
    from .endpoints import Endpoint


By = Literal["rank", "generate"]


@dataclass
class Evaluation:
    r"""
    The answers of one model on one dataset.

    Attributes:
        values (`np.ndarray`): float64 `(n,)`, 1 for a right answer and 0 for a wrong one; for tasks without candidates
            the cross-entropy of each right answer.
        answers (`list[str]`): The model's answers (empty without candidates); of a written answer that is none of the
            candidates, the text.
        skipped (`int`): Number of images that could not be read.
        references (`list[str]`): The right answers.
        scores (`list[list[float]]`): Log-likelihoods of all candidates, one list per image; empty for written answers.
    """

    values: np.ndarray
    answers: list[str] = field(default_factory=list)
    skipped: int = 0
    references: list[str] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """`float`: Accuracy in 0..1, or the mean loss."""
        return float(self.values.mean())


# Not `inference_mode`: image processors cache tensors of their own, and one made in that mode cannot be used in training.
@torch.no_grad()
def evaluate(
    model: Surrogate | Endpoint,
    dataset: Any,
    task: Task,
    prompt: TransferableVisualPrompt | None = None,
    prompted: bool = True,
    batch_size: int = 32,
    skip_bad_images: bool = False,
    shard: tuple[int, int] = (0, 1),
    progress: bool = True,
    description: str | None = None,
    *,
    by: By = "rank",
    length: Length = "mean",
    max_new_tokens: int = 16,
    metric: str = "candidate_accuracy",
    cache: AnswerCache | None = None,
) -> Evaluation:
    r"""
    Asks a model about every row and compares its answer with the right one.

    Args:
        model ([`Surrogate`] or [`Endpoint`]): The model, here or behind an API.
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or a sequence of `dict`): The rows.
        task ([`Task`]): How to read them.
        prompt ([`TransferableVisualPrompt`], *optional*): Without it the model is given the images as they are.
        prompted (`bool`, *optional*, defaults to `True`): With `False`, the prompt's geometry with a black border.
        batch_size (`int`, *optional*, defaults to 32): Images per forward pass, or questions handed to an API at a time.
            Answers of a pass are cached together, those of an API one by one.
        skip_bad_images (`bool`, *optional*, defaults to `False`): Whether to leave out images that cannot be read.
        shard (`tuple[int, int]`, *optional*, defaults to `(0, 1)`): This process's index and the number of processes.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.
        description (`str`, *optional*): Text of the bar. Defaults to the model's name.
        by (`str`, *optional*, defaults to `"rank"`):
            `"rank"` takes the likeliest candidate, by [`score_candidates`], or of an API by the log-probabilities of
            the letters of its options; `"generate"` lets the model write, and reads its answer.
        length (`str`, *optional*, defaults to `"mean"`): As in [`score_candidates`].
        max_new_tokens (`int`, *optional*, defaults to 16): Where a written answer is cut; an API has its own setting.
        metric (`str`, *optional*, defaults to `"candidate_accuracy"`):
            How a written answer is read: as one of the candidates, as yes or no (`"pope"`, `"auroc"`), or as a number
            (`"counting"`).
        cache ([`AnswerCache`], *optional*): Where answers are kept, and found again.

    Returns:
        [`Evaluation`]

    Raises:
        ValueError: If there is no row to evaluate, a row's label is not among the candidates, or a model's score is not a
            number, as when it overflows in float16.
    """
    dataset = undecoded(dataset)
    rows = islice(iter(dataset), shard[0], None, shard[1])
    total = len(range(shard[0], len(dataset), shard[1])) if hasattr(dataset, "__len__") else None
    result = Evaluation(np.empty(0))
    values: list[float] = []
    ask = partial(_ask, model, task, by=by, length=length, max_new_tokens=max_new_tokens)
    with tqdm(total=total, desc=description or model.name, unit="img", disable=not progress, leave=False) as bar:
        for batch in _batches(_examples(rows, task, skip_bad_images, shard), batch_size):
            examples = [e for e in batch if e is not None]
            result.skipped += len(batch) - len(examples)
            bar.update(len(batch))
            if examples:
                shown = _shown(examples, prompt, prompted)
                for example, raw in zip(examples, _cached(ask, examples, shown, task, cache), strict=True):
                    values.append(_judge(raw, example, task, metric, by, result))
    if not values and shard[1] == 1:
        skipped = f", {result.skipped} unreadable images" if result.skipped else ""
        raise ValueError(f"There is nothing to evaluate: no rows{skipped}.")
    result.values = np.asarray(values, dtype=np.float64)
    return result


def _shown(
    examples: Sequence[Example], prompt: TransferableVisualPrompt | None, prompted: bool
) -> list[Image.Image | torch.Tensor]:
    """What the model sees: 8-bit images, or the float canvases of an unbounded prompt."""
    images: Any = [example.image for example in examples]
    if prompt is None:
        # Here too, every image is turned upright and made 8-bit RGB as the prompt would have it: processors do neither,
        # and the two sides of a comparison must show the same picture.
        return [to_pil(to_images(image)[0]) for image in images]
    canvases = prompt(images, prompted=prompted)
    return list(canvases) if prompt.config.value_range == "unbounded" else [to_pil(canvas) for canvas in canvases]


def _cached(
    ask: Callable[..., None],
    examples: Sequence[Example],
    shown: Sequence[Image.Image | torch.Tensor],
    task: Task,
    cache: AnswerCache | None,
) -> list[Any]:
    """The model's raw answers, from the cache where it has them; the others are asked for and kept as they come."""
    found: dict[int, Any] = {}
    keys: list[str] = []
    if cache is not None:
        ranked = list(task.candidates or ())
        keys = [
            given(image, example.question, [*ranked, *([] if ranked else [example.answer])])
            for image, example in zip(shown, examples, strict=True)
        ]
        found = {row: raw for row, key in enumerate(keys) if (raw := cache.get(key)) is not None}
    new = [row for row in range(len(examples)) if row not in found]

    def keep(row: int, raw: Any) -> None:
        found[new[row]] = raw
        if cache is not None:
            cache.put({keys[new[row]]: raw})

    if new:
        ask([examples[row] for row in new], [shown[row] for row in new], keep)
    return [found[row] for row in range(len(examples))]


def _ask(
    model: Surrogate | Endpoint,
    task: Task,
    examples: Sequence[Example],
    shown: Sequence[Any],
    keep: Callable[[int, Any], None],
    by: By,
    length: Length,
    max_new_tokens: int,
) -> None:
    """Hands raw answers by row to `keep`: a text, a list of log-likelihoods or, without candidates, a loss."""
    questions = [example.question for example in examples]
    if by == "generate" and task.candidates is not None:
        # In the same words to a model here and to one behind an API.
        questions = [offer(question, task.candidates) for question in questions]
    if not isinstance(model, Surrogate):
        _ask_endpoint(model, task, shown, questions, keep, by)
        return
    unbounded = isinstance(shown[0], torch.Tensor)
    images, canvas = ([to_pil(c) for c in shown], shown) if unbounded else (shown, None)
    values: Iterable[Any]
    if by == "generate":
        values = generate(model, images, questions, canvas, max_new_tokens)
    elif task.candidates is not None:
        scores = score_candidates(model, images, questions, [task.candidates] * len(images), canvas, length)
        values = [score.tolist() for score in scores]
    else:
        inputs = model.encode(images, questions, canvas, unbounded)
        inputs, start, labels = model.append_answers(inputs, questions, [e.answer for e in examples])
        logits = model.answer_logits(inputs, start, labels.shape[1])
        values = [
            answer_loss(SurrogateOutput(x[None], y[None], None)).item() for x, y in zip(logits, labels, strict=True)
        ]
    for row, value in enumerate(values):
        keep(row, value)


def _ask_endpoint(
    endpoint: Endpoint,
    task: Task,
    shown: Sequence[Any],
    questions: Sequence[str],
    keep: Callable[[int, Any], None],
    by: By,
) -> None:
    if isinstance(shown[0], torch.Tensor):
        raise ValueError(
            "An unbounded prompt has values that no image can carry, so it cannot be shown to a model behind an API: use "
            "a displayable one."
        )
    if by == "generate":
        endpoint.answer(shown, questions, on_answer=keep, progress=False)
    elif task.candidates is None:
        raise ValueError("There are no candidates to rank: give some, or let the model write (`by='generate'`).")
    else:
        endpoint.rank(shown, questions, [task.candidates] * len(questions), on_scores=keep, progress=False)


def _judge(raw: Any, example: Example, task: Task, metric: str, by: By, result: Evaluation) -> float:
    """1 for a right answer and 0 for a wrong one, which is added to `result`; or the loss."""
    result.references.append(example.answer)
    if by == "rank" and np.isnan(raw).any():
        raise ValueError(
            f"The model's score for the question {example.question!r} is not a number: it overflows in its precision. Load "
            "it in float32 or bfloat16 (`dtype`, `--dtype`)."
        )
    if by == "rank" and task.candidates is None:
        return float(raw)
    if by == "rank":
        result.scores.append(raw)
        # A row of nothing but -inf (no letter among those an API names) is no choice at all.
        answer = task.candidates[int(np.argmax(raw))] if max(raw) > -math.inf else ""  # type: ignore[index]
        right = answer == example.answer
    else:
        answer, right = _read(raw, example, task, metric)
    result.answers.append(answer)
    return float(right)


def _read(text: str, example: Example, task: Task, metric: str) -> tuple[str, bool]:
    """What a written answer says, and whether it is right."""
    if metric in ("pope", "auroc"):
        said = yes_no(text)
        return said or text, said == yes_no(example.answer)
    if metric == "counting":
        count = number(text)
        return text if count is None else str(count), count is not None and count == number(example.answer)
    if task.candidates is not None:
        found = match_candidate(text, task.candidates)
        return found or text, found == example.answer
    return text, normalize(text) == normalize(example.answer)


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
