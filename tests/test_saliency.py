"""Where a prompt acts: on rigged answers, where every number is known, and on a real model by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rigged import TASK, coloured_rows, grey_prompt

from transferable_vp import TransferableVisualPrompt, TransferableVisualPromptConfig, evaluation
from transferable_vp.data import Task
from transferable_vp.saliency import Saliency, border_saliency
from transferable_vp.scoring import score_candidates
from transferable_vp.surrogate import Surrogate


# Of a prompt of 40 pixels with a border of 8: five blocks along the top and the bottom, three more on either side.
CORNER, BELOW = (0, 0, 8, 8), (8, 0, 16, 8)


class Scales:
    """Stands in for `score_candidates`: every answer is as likely as the top left corner is bright, minus half of what
    is below it."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(
        self,
        surrogate: Surrogate,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        candidates: Sequence[Sequence[str]],
        canvas: torch.Tensor | None = None,
        length: str = "mean",
    ) -> list[torch.Tensor]:
        assert length == "sum" and canvas is None
        self.batches.append(len(images))
        pixels = [np.asarray(image, dtype=float) / 255 for image in images]
        values = [p[:8, :8].mean() - 0.5 * p[8:16, :8].mean() for p in pixels]
        return [torch.full((len(names),), v) for v, names in zip(values, candidates, strict=True)]


@pytest.fixture
def llava(surrogates: Callable[[str], Surrogate]) -> Surrogate:
    return surrogates("llava")


@pytest.fixture
def scales(monkeypatch: pytest.MonkeyPatch) -> Scales:
    scales = Scales()
    monkeypatch.setattr(evaluation, "score_candidates", scales)
    return scales


def found(saliency: Saliency) -> dict[tuple[int, ...], float]:
    return {block: effect for block, effect in zip(saliency.blocks, saliency.effects, strict=True) if effect}


def test_effects_are_exact(llava: Surrogate, scales: Scales) -> None:
    prompt = grey_prompt()
    before = prompt.delta.detach().clone()
    saliency = border_saliency(llava, coloured_rows(), TASK, prompt, block_size=8, batch_size=50, progress=False)
    grey = 128 / 255
    assert len(saliency.blocks) == 16
    assert found(saliency) == pytest.approx({CORNER: grey, BELOW: -grey / 2})
    assert saliency.whole == pytest.approx(grey / 2)
    assert (saliency.n, saliency.size, saliency.measure, saliency.model) == (6, 40, "log_prob", "llava")
    # Blocks share the batches: 18 versions of 6 pictures.
    assert scales.batches == [50, 50, 8]
    assert torch.equal(prompt.delta, before)


def test_the_map_has_effects_where_the_blocks_are(llava: Surrogate, scales: Scales) -> None:
    saliency = border_saliency(llava, coloured_rows(), TASK, grey_prompt(), block_size=8, progress=False)
    assert np.array_equal(np.isnan(saliency.map), ~grey_prompt().border_mask[0].numpy())
    assert (saliency.map[:8, :8] == saliency.effects[saliency.blocks.index(CORNER)]).all()
    assert np.nansum(saliency.map != 0) - np.isnan(saliency.map).sum() == 2 * 64


def test_accuracy_counts_right_answers(llava: Surrogate, monkeypatch: pytest.MonkeyPatch) -> None:
    def rigged(surrogate: Surrogate, images: Sequence[Image.Image], *args: Any) -> list[torch.Tensor]:
        seen = [image.getpixel((20, 20)) if image.getpixel((0, 0)) != (0, 0, 0) else (0, 0, 0) for image in images]
        return [torch.tensor([float(v == 255) for v in pixel]) for pixel in seen]

    monkeypatch.setattr(evaluation, "score_candidates", rigged)
    saliency = border_saliency(llava, coloured_rows(), TASK, grey_prompt(), measure="accuracy", progress=False)
    # Five of six answers are right; without the corner every answer is the first, which is right for three.
    assert found(saliency) == pytest.approx({CORNER: 100 * 2 / 6})
    assert saliency.whole == pytest.approx(100 * 2 / 6)


@pytest.mark.parametrize(
    ("config", "block_size"),
    [
        ({"border_size": 8}, None),
        ({"border_size": 3}, 7),
        ({"border_size": 8}, 3),
        ({"border_size": 4, "content_size": 20}, 6),
        ({"border_size": 4, "layout": "overlay"}, 9),
        ({"border_size": 4, "content_size": 20, "layout": "both"}, 40),
    ],
)
def test_blocks_cover_what_is_learned_once(
    llava: Surrogate, scales: Scales, config: dict[str, Any], block_size: int | None
) -> None:
    prompt = TransferableVisualPrompt(TransferableVisualPromptConfig(canvas_size=40, **config))
    saliency = border_saliency(llava, coloured_rows()[:1], TASK, prompt, block_size=block_size, progress=False)
    covered = np.zeros((40, 40), dtype=int)
    for top, left, bottom, right in saliency.blocks:
        covered[top:bottom, left:right] += 1
    assert np.array_equal(covered, prompt.trainable_mask[0].numpy().astype(int))


def test_it_is_the_log_probability_that_a_real_model_gives(llava: Surrogate) -> None:
    prompt = grey_prompt()
    saliency = border_saliency(llava, coloured_rows()[:2], TASK, prompt, block_size=8, progress=False)
    lost = []
    for row in coloured_rows()[:2]:
        whole = prompt.apply(row["image"])
        without = whole.copy()
        without.paste((0, 0, 0), (0, 8, 8, 16))
        right = [list(TASK.candidates or ()).index(row["answer"])]
        (a,), (b,) = (
            score_candidates(llava, [image], [TASK.question], [TASK.candidates or ()], length="sum")
            for image in (whole, without)
        )
        lost.append(float((a - b)[right]))
    assert lost[0] != 0
    assert saliency.effects[saliency.blocks.index(BELOW)] == pytest.approx(np.mean(lost), abs=1e-4)


def test_a_task_without_candidates_has_log_probabilities_too(llava: Surrogate) -> None:
    task = Task(question="Which colour?")
    saliency = border_saliency(llava, coloured_rows()[:2], task, grey_prompt(), block_size=40, progress=False)
    with_, without = (
        evaluation.evaluate(llava, coloured_rows()[:2], task, grey_prompt(), prompted, progress=False).values.mean()
        for prompted in (True, False)
    )
    assert saliency.whole == pytest.approx(without - with_, abs=1e-5)


def test_a_native_canvas_is_blanked_where_its_border_lies(llava: Surrogate, scales: Scales) -> None:
    config = TransferableVisualPromptConfig(canvas_size=40, border_size=8, canvas="native")
    prompt = TransferableVisualPrompt(config)
    with torch.no_grad():
        prompt.delta.fill_(0.5)
    rows = [{"image": Image.new("RGB", (24, 24), (255, 0, 0)), "answer": "red"}]
    saliency = border_saliency(llava, rows, TASK, prompt.project_(), block_size=8, progress=False)
    assert found(saliency) == pytest.approx({CORNER: 128 / 255, BELOW: -64 / 255})


def unbounded() -> TransferableVisualPrompt:
    return TransferableVisualPrompt(
        TransferableVisualPromptConfig(canvas_size=40, border_size=8, value_range="unbounded")
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": unbounded()}, "The prompt is unbounded"),
        ({"measure": "loss"}, "`measure` is 'loss'; it must be one of 'log_prob', 'accuracy'"),
        ({"block_size": 0}, "`block_size` is 0; a block has at least one pixel"),
        ({"dataset": []}, "There are no rows to show the prompt on"),
        ({"measure": "accuracy", "task": Task()}, "Without candidates there is no accuracy"),
    ],
)
def test_what_cannot_be_measured_is_refused(llava: Surrogate, changes: dict[str, Any], message: str) -> None:
    given = {"dataset": coloured_rows(), "task": TASK, "prompt": grey_prompt(), "progress": False} | changes
    with pytest.raises(ValueError, match=message):
        border_saliency(llava, **given)


def test_an_answer_without_log_probability_is_no_number(llava: Surrogate, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = torch.tensor([-torch.inf, 0.0, 0.0])
    monkeypatch.setattr(evaluation, "score_candidates", lambda surrogate, images, *args: [nothing] * len(images))
    with pytest.raises(ValueError, match=r"no log-probability for 18 of 18 right answers.*`measure='accuracy'`"):
        border_saliency(llava, coloured_rows()[:1], TASK, grey_prompt(), progress=False)
