"""What a prompt does for a model: measured on rigged answers, where every number is known beforehand."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import pytest
import tiny
import torch
from by_hand import T5, answer_losses, t5_pair
from PIL import Image
from rigged import COLOURS, SHOWN, TASK, Rig, coloured_rows, grey_prompt
from transformers import PreTrainedModel, ProcessorMixin

from transferable_vp import TransferableVisualPrompt, evaluation
from transferable_vp.answers import answer_loss
from transferable_vp.data import BadImageError, Task
from transferable_vp.endpoints import offer
from transferable_vp.evaluation import Evaluation, evaluate
from transferable_vp.scoring import score_candidates
from transferable_vp.surrogate import Surrogate


Pair = tuple[PreTrainedModel, ProcessorMixin]


@pytest.fixture(scope="module")
def own_pair(shared_pair: Callable[[str], Pair]) -> Callable[[str], Pair]:
    """Gives a copy of model and processor of a family, T5 included."""
    return lambda family: copy.deepcopy(t5_pair() if family == T5 else shared_pair(family))


@pytest.fixture(scope="module")
def surrogates(own_pair: Callable[[str], Pair]) -> Callable[[str], Surrogate]:
    """Gives the surrogate of a family, made once. For tests that do not change it."""
    return functools.cache(lambda family: Surrogate(*own_pair(family), name=family))


@pytest.fixture
def llava(surrogates: Callable[[str], Surrogate]) -> Surrogate:
    return surrogates("llava")


@pytest.fixture
def prompt() -> TransferableVisualPrompt:
    return grey_prompt()


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return coloured_rows()


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    rig = Rig()
    monkeypatch.setattr(evaluation, "score_candidates", rig)
    return rig


def damaged() -> bytes:
    file = io.BytesIO()
    tiny.picture(64, 64).save(file, "JPEG")
    return file.getvalue()[:2000]


def as_dataset(rows: Sequence[dict[str, Any]], bad: Sequence[int] = ()) -> datasets.Dataset:
    """Rows as a dataset whose images are decoded on reading; those at `bad` cannot be."""
    images = []
    for index, row in enumerate(rows):
        file = io.BytesIO()
        row["image"].save(file, "PNG")
        images.append({"bytes": damaged() if index in bad else file.getvalue(), "path": f"{index}.png"})
    features = datasets.Features({"image": datasets.Image(), "answer": datasets.Value("string")})
    return datasets.Dataset.from_dict({"image": images, "answer": [r["answer"] for r in rows]}, features=features)


class TestAccuracy:
    @pytest.mark.parametrize("batch_size", [1, 4, 32])
    def test_it_is_exact(self, llava: Surrogate, rows: list[dict[str, Any]], rig: Rig, batch_size: int) -> None:
        result = evaluate(llava, rows, TASK, batch_size=batch_size, progress=False)
        assert result.values.tolist() == [1, 1, 1, 0, 1, 1]
        assert result.values.dtype == np.float64
        assert result.answers == SHOWN
        assert result.mean == pytest.approx(5 / 6)
        assert result.skipped == 0
        assert max(map(len, rig.images)) == min(batch_size, 6)
        assert {question for some in rig.questions for question in some} == {"Which colour?"}

    @pytest.mark.parametrize("kind", ["list", "dataset", "streaming"])
    def test_every_kind_of_dataset(self, llava: Surrogate, rows: list[dict[str, Any]], rig: Rig, kind: str) -> None:
        data: Any = {"list": rows, "dataset": as_dataset(rows), "streaming": as_dataset(rows).to_iterable_dataset()}[
            kind
        ]
        assert evaluate(llava, data, TASK, progress=False).answers == SHOWN

    def test_an_overflow_is_not_a_wrong_answer(
        self, llava: Surrogate, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scores = lambda surrogate, images, *rest, **more: [np.array([np.nan, 0.0])] * len(images)  # noqa: E731
        monkeypatch.setattr(evaluation, "score_candidates", scores)
        with pytest.raises(ValueError, match=r"score for the question 'Which colour\?' is not a number.*float32"):
            evaluate(llava, rows, TASK, progress=False)

    @pytest.mark.parametrize("family", [*tiny.FAMILIES, T5])
    def test_a_real_model(self, family: str, surrogates: Callable[[str], Surrogate]) -> None:
        names = ["red", "a blue square", "cat", "no"]
        task = Task(candidates=names, question_column="question")
        rows = [{"image": tiny.picture(seed=i), "question": "Why? " * i + "Who?", "answer": "cat"} for i in range(4)]
        result = evaluate(surrogates(family), rows, task, batch_size=3, progress=False)
        answers = []
        for row in rows:
            (score,) = score_candidates(surrogates(family), [row["image"]], [row["question"]], [names])
            answers.append(names[int(score.argmax())])
        assert result.answers == answers
        assert result.values.tolist() == [float(answer == "cat") for answer in answers]


class TestWhatTheModelIsShown:
    def test_without_a_prompt_the_image(self, llava: Surrogate, rows: list[dict[str, Any]], rig: Rig) -> None:
        evaluate(llava, rows, TASK, progress=False)
        for shown, row in zip(rig.images[0], rows, strict=True):
            assert np.array_equal(np.asarray(shown), np.asarray(row["image"]))
        assert rig.canvases == [None]

    @pytest.mark.parametrize("prompted", [True, False])
    def test_with_one_what_it_makes_of_the_image(
        self, llava: Surrogate, rows: list[dict[str, Any]], rig: Rig, prompt: TransferableVisualPrompt, prompted: bool
    ) -> None:
        result = evaluate(llava, rows, TASK, prompt, prompted, progress=False)
        for shown, row in zip(rig.images[0], rows, strict=True):
            assert np.array_equal(np.asarray(shown), np.asarray(prompt.apply(row["image"], prompted=prompted)))
        # The grey border lets the rig see; the black one makes it say red.
        assert result.answers == (SHOWN if prompted else ["red"] * 6)
        assert rig.canvases == [None]

    def test_of_an_unbounded_prompt_the_floats(self, llava: Surrogate, rows: list[dict[str, Any]], rig: Rig) -> None:
        prompt = tiny.noise_prompt(canvas_size=40, border_size=8, value_range="unbounded")
        evaluate(llava, rows, TASK, prompt, progress=False)
        (canvas,) = rig.canvases
        assert canvas is not None
        canvas = torch.stack(list(canvas))
        assert canvas.min() < -0.5
        assert torch.equal(canvas, prompt([row["image"] for row in rows]))

    @pytest.mark.parametrize("prompted", [None, False])
    def test_the_same_picture_with_and_without_a_prompt(
        self, llava: Surrogate, rig: Rig, prompt: TransferableVisualPrompt, prompted: bool | None
    ) -> None:
        """Turned as its camera was held, and all 16 bits of it: a processor does neither."""
        upright = Image.new("RGB", (40, 40), COLOURS["red"])
        upright.paste(COLOURS["blue"], (0, 0, 40, 20))
        lying, exif = upright.rotate(90), Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter to the right
        file = io.BytesIO()
        lying.save(file, "PNG", exif=exif)
        deep = Image.fromarray(np.full((40, 40), 32896, dtype=np.uint16))
        images = [Image.open(file), deep, Image.new("L", (40, 40), 9), Image.new("RGBA", (40, 40), (1, 2, 3, 0))]
        task = Task(candidates=["red"])
        given = (None, True) if prompted is None else (prompt, prompted)
        evaluate(llava, [{"image": i, "answer": "red"} for i in images], task, *given, progress=False)
        (shown,) = rig.images
        assert [image.mode for image in shown] == ["RGB"] * 4
        middle = shown[0].width // 2
        assert shown[0].getpixel((middle, 12)) == COLOURS["blue"]
        assert shown[0].getpixel((middle, 28)) == COLOURS["red"]
        assert [image.getpixel((middle, middle)) for image in shown[1:]] == [(128,) * 3, (9,) * 3, (1, 2, 3)]


class TestLoss:
    @pytest.mark.parametrize("family", ["llava", "qwen2_vl", "instructblip", "paligemma", T5])
    def test_without_candidates_it_is_the_loss_of_the_right_answer(
        self, family: str, surrogates: Callable[[str], Surrogate], own_pair: Callable[[str], Pair]
    ) -> None:
        task = Task(question_column="question")
        rows = [
            {"image": tiny.picture(40, 40, seed=0), "question": "What is it?", "answer": "red"},
            {
                "image": tiny.picture(40, 40, seed=1),
                "question": "Which colour is the square?",
                "answer": "a blue square",
            },
        ]
        result = evaluate(surrogates(family), rows, task, progress=False)
        expected = [answer_losses(family, own_pair(family), *row.values()).mean().item() for row in rows]
        assert result.values == pytest.approx(expected, rel=1e-4)
        assert result.mean == pytest.approx(np.mean(expected), rel=1e-4)
        assert result.answers == []

    def test_of_prompted_images(
        self, surrogates: Callable[[str], Surrogate], own_pair: Callable[[str], Pair], prompt: TransferableVisualPrompt
    ) -> None:
        row = {"image": tiny.picture(), "answer": "red"}
        for value_range in ("displayable", "unbounded"):
            other = tiny.noise_prompt(canvas_size=40, border_size=8, value_range=value_range)
            task = Task(question="What is it?")
            result = evaluate(surrogates("llava"), [row], task, other, progress=False)
            shown = (
                other.apply(row["image"]) if value_range == "displayable" else other(row["image"])[0].detach() * 255
            )
            expected = answer_losses("llava", own_pair("llava"), shown, "What is it?", "red").mean().item()
            assert result.mean == pytest.approx(expected, rel=1e-4)


class TestShards:
    @pytest.mark.parametrize("kind", ["list", "streaming"])
    @pytest.mark.parametrize("count", [1, 2, 4, 8])
    def test_they_are_all_rows_once(
        self, llava: Surrogate, rows: list[dict[str, Any]], rig: Rig, count: int, kind: str
    ) -> None:
        data: Any = rows if kind == "list" else as_dataset(rows).to_iterable_dataset()
        parts = [evaluate(llava, data, TASK, shard=(index, count), progress=False) for index in range(count)]
        assert [part.answers for part in parts] == [SHOWN[index::count] for index in range(count)]
        assert sum(part.values.sum() for part in parts) == 5
        assert sum(len(part.values) for part in parts) == 6

    def test_an_error_names_the_row_of_the_whole_dataset(self, llava: Surrogate, rows: list[dict[str, Any]]) -> None:
        rows[5] = {"image": None, "answer": "red"}
        with pytest.raises(BadImageError, match="row 5 has no image"):
            evaluate(llava, rows, TASK, shard=(1, 2), progress=False)


class TestBadImages:
    @pytest.mark.parametrize("kind", ["list", "dataset", "streaming"])
    def test_they_are_left_out_and_counted(
        self, llava: Surrogate, rows: list[dict[str, Any]], rig: Rig, kind: str
    ) -> None:
        dataset = as_dataset(rows, bad=[0, 3])
        rows[0]["image"] = rows[3]["image"] = damaged()
        data: Any = {"list": rows, "dataset": dataset, "streaming": dataset.to_iterable_dataset()}[kind]
        result = evaluate(llava, data, TASK, batch_size=2, skip_bad_images=True, progress=False)
        assert result.skipped == 2
        assert result.answers == ["green", "blue", "red", "green"]
        assert result.mean == 1

    @pytest.mark.parametrize("kind", ["dataset", "streaming"])
    def test_they_end_it_by_default(self, llava: Surrogate, rows: list[dict[str, Any]], rig: Rig, kind: str) -> None:
        data: Any = as_dataset(rows, bad=[3])
        data = data if kind == "dataset" else data.to_iterable_dataset()
        with pytest.raises(BadImageError, match=r"row 3 \(3\.png\) cannot be read.*skip_bad_images=True"):
            evaluate(llava, data, TASK, progress=False)

    def test_a_whole_batch_of_them(self, llava: Surrogate, rows: list[dict[str, Any]], rig: Rig) -> None:
        for index in (2, 3):
            rows[index]["image"] = damaged()
        result = evaluate(llava, rows, TASK, batch_size=2, skip_bad_images=True, progress=False)
        assert (result.skipped, len(result.values)) == (2, 4)


class TestNothing:
    def test_no_rows(self, llava: Surrogate) -> None:
        with pytest.raises(ValueError, match=r"There is nothing to evaluate: no rows\."):
            evaluate(llava, [], TASK, progress=False)

    def test_only_bad_images(self, llava: Surrogate) -> None:
        with pytest.raises(ValueError, match="nothing to evaluate: no rows, 2 unreadable images"):
            evaluate(llava, [{"image": damaged(), "answer": "red"}] * 2, TASK, skip_bad_images=True, progress=False)

    def test_a_process_without_rows_among_others(self, llava: Surrogate, rows: list[dict[str, Any]], rig: Rig) -> None:
        result = evaluate(llava, rows[:1], TASK, shard=(1, 2), progress=False)
        assert (len(result.values), result.answers, result.skipped) == (0, [], 0)

    def test_a_label_that_is_no_candidate(self, llava: Surrogate, rows: list[dict[str, Any]], rig: Rig) -> None:
        rows[4]["answer"] = "mauve"
        with pytest.raises(ValueError, match="answer of row 4 is 'mauve', which is not among the candidates"):
            evaluate(llava, rows, TASK, progress=False)


@pytest.mark.parametrize("family", [*tiny.FAMILIES, T5])
def test_training_goes_on_after_an_evaluation(family: str, own_pair: Callable[[str], Pair]) -> None:
    """Processors and M-RoPE models keep tensors across calls, and none made here may be unfit for training."""
    surrogate = Surrogate(*own_pair(family))
    prompt = tiny.noise_prompt(canvas_size=40, border_size=8, value_range="unbounded")
    rows = [{"image": tiny.picture(), "answer": "red"}]
    evaluate(surrogate, rows, TASK, prompt, progress=False)
    canvas = prompt([tiny.picture()])
    output = surrogate.forward(canvas, ["What is it?"], ["red"], unbounded=True, with_features=True)
    answer_loss(output).backward()
    assert prompt.delta.grad is not None
    assert torch.isfinite(prompt.delta.grad).all()
    assert prompt.delta.grad.any()


class TestWrittenAnswers:
    """With `generate` rigged: what is asked, and how what was written is read."""

    @pytest.fixture
    def wrote(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        said: dict[str, Any] = {"answers": [], "questions": []}

        def rigged(surrogate: Surrogate, images: Any, questions: Any, canvas: Any, max_new_tokens: int) -> list[str]:
            said["questions"] += questions
            said["max_new_tokens"] = max_new_tokens
            return said["answers"][: len(images)]

        monkeypatch.setattr(evaluation, "generate", rigged)
        return said

    def run(
        self, llava: Surrogate, task: Task, right: Sequence[str], wrote: dict[str, Any], metric: str
    ) -> Evaluation:
        rows = [{"image": tiny.picture(seed=i), "answer": answer} for i, answer in enumerate(right)]
        return evaluate(llava, rows, task, by="generate", metric=metric, max_new_tokens=7, progress=False)

    def test_as_one_of_the_candidates(self, llava: Surrogate, wrote: dict[str, Any]) -> None:
        wrote["answers"] = ["Red.", "it is a green one", "Bluish, I think", "red or green"]
        result = self.run(llava, TASK, ["red", "green", "blue", "red"], wrote, "candidate_accuracy")
        assert result.values.tolist() == [1, 1, 0, 0]
        assert result.answers == ["red", "green", "Bluish, I think", "red or green"]
        assert result.references == ["red", "green", "blue", "red"]
        assert result.scores == []
        # The candidates are offered, in the words that an API gets too.
        assert wrote["questions"][0] == offer("Which colour?", TASK.candidates)
        assert wrote["max_new_tokens"] == 7

    def test_as_yes_or_no(self, llava: Surrogate, wrote: dict[str, Any]) -> None:
        wrote["answers"] = ["Yes, there is.", "no", "I cannot say", "Yes"]
        task = Task(candidates=("no", "yes"), question="Is there?")
        result = self.run(llava, task, ["yes", "no", "no", "no"], wrote, "pope")
        assert result.values.tolist() == [1, 1, 0, 0]
        assert result.answers == ["yes", "no", "I cannot say", "yes"]

    def test_as_a_number(self, llava: Surrogate, wrote: dict[str, Any]) -> None:
        wrote["answers"] = ["There are three objects.", "13", "4", "none"]
        task = Task(question="How many?")
        result = self.run(llava, task, ["3", "3", "4", "5"], wrote, "counting")
        assert result.values.tolist() == [1, 0, 1, 0]
        assert wrote["questions"][0] == "How many?"

    def test_as_it_is(self, llava: Surrogate, wrote: dict[str, Any]) -> None:
        wrote["answers"] = ["A red Square!", "a circle"]
        result = self.run(llava, Task(), ["red square", "square"], wrote, "candidate_accuracy")
        assert result.values.tolist() == [1, 0]


def test_the_mean_of_an_evaluation() -> None:
    assert Evaluation(np.array([1, 0, 0, 1.0])).mean == 0.5
