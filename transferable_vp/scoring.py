"""Log-likelihoods of candidate answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from .surrogate import Surrogate


@torch.no_grad()
def score_candidates(
    surrogate: Surrogate,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    candidates: Sequence[Sequence[str]],
    canvas: torch.Tensor | Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    r"""
    Log-likelihood of every candidate answer, as a mean over its own tokens without end token (the paper's ranking).

    Candidates of one token are all read from a single forward pass over image and question. Longer ones cost a full
    forward pass each.

    Args:
        surrogate ([`Surrogate`]): The model.
        images (`Sequence[PIL.Image.Image]`): 8-bit images as deployed, one per question.
        questions (`Sequence[str]`): One per image.
        candidates (`Sequence[Sequence[str]]`): The answers to rank, one list per image.
        canvas (`torch.Tensor`, *optional*): The float canvases of an unbounded prompt, to be used instead of `images`.

    Returns:
        `list[torch.Tensor]`: float32 `(number of candidates,)` per image.
    """
    short: list[tuple[int, int, list[int]]] = []
    long: list[tuple[int, int, list[int]]] = []
    for row, (question, names) in enumerate(zip(questions, candidates, strict=True)):
        for column, name in enumerate(names):
            ids = surrogate.answer_ids(question, name)
            (short if len(ids) == 1 else long).append((row, column, ids))
    scores = [torch.empty(len(names)) for names in candidates]
    if short:
        # What is appended here is not scored; an answer per row gives the batch its shape.
        rows = _log_probabilities(surrogate, images, questions, [names[0] for names in candidates], canvas)
        for row, column, ids in short:
            scores[row][column] = rows[row][0][0, ids[0]]
    for begin in range(0, len(long), len(images)):
        part = long[begin : begin + len(images)]
        answers = [candidates[row][column] for row, column, _ in part]
        index = [row for row, _, _ in part]
        rows = _log_probabilities(
            surrogate,
            [images[i] for i in index],
            [questions[i] for i in index],
            answers,
            None if canvas is None else [canvas[i] for i in index],
        )
        for (row, column, _), (log_probabilities, tokens) in zip(part, rows, strict=True):
            scores[row][column] = log_probabilities.gather(1, tokens[:, None]).mean()
    return scores


def _log_probabilities(
    surrogate: Surrogate,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    answers: Sequence[str],
    canvas: torch.Tensor | Sequence[torch.Tensor] | None,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each row the log-probabilities `(length of the answer, vocabulary)` and the answer's ids, on the CPU."""
    inputs = surrogate.encode(images, questions, canvas, unbounded=canvas is not None)
    inputs, start, labels = surrogate.append_answers(inputs, questions, answers, end=False)
    logits = surrogate.answer_logits(inputs, start, labels.shape[1])
    return [
        (row[ids != -100].float().log_softmax(-1).cpu(), ids[ids != -100].cpu())
        for row, ids in zip(logits, labels, strict=True)
    ]
