"""Transfer reports: measured on rigged answers, and on real models."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from rigged import COLOURS, SHOWN, TASK, Rig, coloured_rows, grey_prompt
from transformers import PreTrainedModel, ProcessorMixin

from transferable_vp import Task, TransferableVisualPrompt, TransferableVisualPromptConfig, evaluate, evaluation
from transferable_vp.report import check_report, format_table, paired_bootstrap
from transferable_vp.surrogate import Surrogate
from transferable_vp.transfer import random_prompt, transfer_report


Pair = tuple[PreTrainedModel, ProcessorMixin]


@pytest.fixture
def own_pair(shared_pair: Callable[[str], Pair]) -> Callable[[str], Pair]:
    """Gives a copy of model and processor of a family."""
    return lambda family: copy.deepcopy(shared_pair(family))


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


class TestRandomPrompt:
    @pytest.mark.parametrize("layout", ["border", "overlay", "both"])
    @pytest.mark.parametrize("value_range", ["displayable", "unbounded"])
    def test_it_is_drawn_from_what_can_be_shown(self, layout: str, value_range: str) -> None:
        config = TransferableVisualPromptConfig(
            canvas_size=64, border_size=12, layout=layout, value_range=value_range, epsilon=0.1
        )
        prompt = TransferableVisualPrompt(config)
        control = random_prompt(prompt, seed=0)
        assert control.config.to_dict() == config.to_dict()
        assert not prompt.delta.any()
        border, content = (mask.expand(3, -1, -1) for mask in (control.border_mask, control.content_mask))
        delta = control.delta.detach()
        assert (delta[~prompt.trainable_mask.expand(3, -1, -1)] == 0).all()
        if layout != "overlay":
            assert 0 <= delta[border].min() < 0.01
            assert 0.99 < delta[border].max() <= 1
            assert delta[border].mean() == pytest.approx(0.5, abs=0.02)
        if layout != "border":
            assert -0.1 <= delta[content].min() < -0.098
            assert 0.098 < delta[content].max() <= 0.1
            assert delta[content].mean() == pytest.approx(0, abs=0.005)

    def test_it_is_the_seed_that_decides(self, prompt: TransferableVisualPrompt) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            before = torch.get_rng_state()
            one = random_prompt(prompt, seed=3)
            assert torch.equal(torch.get_rng_state(), before)
            torch.manual_seed(2)
            assert torch.equal(random_prompt(prompt, seed=3).delta, one.delta)
        assert not torch.equal(random_prompt(prompt, seed=4).delta, one.delta)


class TestTransferReport:
    @pytest.fixture
    def targets(self, own_pair: Callable[[str], Pair]) -> Iterator[list[Surrogate]]:
        yield [Surrogate(*own_pair(family), name=f"tiny-{family}") for family in ("llava", "qwen2_vl")]

    def test_its_numbers(
        self, targets: list[Surrogate], rows: list[dict[str, Any]], rig: Rig, prompt: TransferableVisualPrompt
    ) -> None:
        report = transfer_report(
            targets,
            rows,
            TASK,
            [prompt],
            source=["tiny-llava"],
            title="colours",
            settings={"steps": 3},
            progress=False,
        )
        check_report(report)
        assert {key: report[key] for key in ("source", "task", "seeds", "settings")} == {
            "source": "tiny-llava", "task": "colours", "seeds": [0], "settings": {"steps": 3},
        }  # fmt: skip
        assert [target["model"] for target in report["targets"]] == ["tiny-llava", "tiny-qwen2_vl"]
        assert [target["family"] for target in report["targets"]] == ["llava", "qwen2_vl"]
        assert [target["is_source"] for target in report["targets"]] == [True, False]
        # In black the rig says red, which is right three times in six.
        zero_border = np.array([1, 0, 0, 1, 1, 0.0])
        seeing = np.array([1, 1, 1, 0, 1, 1.0])
        for target in report["targets"]:
            assert target["n"] == 6
            assert target["full_image"] == target["random_border"] == target["tvp"] == pytest.approx(5 / 6)
            assert target["zero_border"] == 0.5
            assert target["vp"] is None
            assert target["delta"] == pytest.approx(target["tvp"] - target["zero_border"])
            assert target["delta"] == pytest.approx(1 / 3)
            assert tuple(target["delta_ci95"]) == paired_bootstrap(zero_border, seeing)

    def test_losses_are_no_accuracies(
        self, targets: list[Surrogate], rows: list[dict[str, Any]], prompt: TransferableVisualPrompt
    ) -> None:
        with pytest.raises(ValueError, match="There are no candidates to rank"):
            transfer_report(targets, rows, Task(), [prompt], source=[], title="colours", progress=False)

    def test_means_over_seeds(
        self, targets: list[Surrogate], rows: list[dict[str, Any]], rig: Rig, prompt: TransferableVisualPrompt
    ) -> None:
        black = TransferableVisualPrompt(prompt.config)
        report = transfer_report(
            targets[:1], rows, TASK, [prompt, black], source=["a", "b"], title="colours", baselines=[black, black],
            seeds=[5, 6], progress=False,
        )  # fmt: skip
        check_report(report)
        (target,) = report["targets"]
        assert (report["source"], report["seeds"], target["is_source"]) == ("a + b", [5, 6], False)
        assert target["tvp"] == pytest.approx((5 / 6 + 1 / 2) / 2)
        assert target["vp"] == 0.5
        assert target["random_border"] == pytest.approx(5 / 6)
        assert target["delta"] == pytest.approx(1 / 6)
        zero_border = np.array([1, 0, 0, 1, 1, 0.0])
        seeds = np.array([[1, 1, 1, 0, 1, 1.0], zero_border])
        assert tuple(target["delta_ci95"]) == paired_bootstrap(zero_border, seeds)

    def test_every_condition_is_shown_its_own_images(
        self, targets: list[Surrogate], rows: list[dict[str, Any]], rig: Rig, prompt: TransferableVisualPrompt
    ) -> None:
        other = tiny.noise_prompt(canvas_size=40, border_size=8)
        transfer_report(targets[:1], rows[:1], TASK, [prompt], source=[], title="", baselines=[other], seeds=[7],
                        progress=False)  # fmt: skip
        image = rows[0]["image"]
        expected = [
            image,
            prompt.apply(image, prompted=False),
            random_prompt(prompt, 7).apply(image),
            other.apply(image),
            prompt.apply(image),
        ]
        assert len(rig.images) == 5
        for (shown,), wanted in zip(rig.images, expected, strict=True):
            assert np.array_equal(np.asarray(shown), np.asarray(wanted))

    def test_with_real_models(
        self, targets: list[Surrogate], rows: list[dict[str, Any]], prompt: TransferableVisualPrompt
    ) -> None:
        report = transfer_report(targets, rows, TASK, [prompt], source=["tiny-llava"], title="colours", progress=False)
        check_report(report)
        for target, surrogate in zip(report["targets"], targets, strict=True):
            for key, arguments in (("full_image", ()), ("zero_border", (prompt, False)), ("tvp", (prompt,))):
                assert target[key] == evaluate(surrogate, rows, TASK, *arguments, progress=False).mean

    def test_a_choice_of_none_is_wrong(
        self, targets: list[Surrogate], rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
        prompt: TransferableVisualPrompt,
    ) -> None:  # fmt: skip
        # As of an API that names the letter of no candidate.
        none = torch.full((len(COLOURS),), -torch.inf)
        monkeypatch.setattr(evaluation, "score_candidates", lambda s, images, *_: [none] * len(images))
        report = transfer_report(targets[:1], rows, TASK, [prompt], source=[], title="", progress=False)
        (target,) = report["targets"]
        assert [target[name] for name in ("full_image", "zero_border", "tvp")] == [0, 0, 0]
        assert target["by"] == "rank"

    def test_a_row_names_the_file_it_was_measured_with(
        self, targets: list[Surrogate], rows: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        prompt = grey_prompt()
        report = transfer_report(targets[:1], rows, TASK, [prompt], source=[], title="", progress=False)
        prompt.save_pretrained(tmp_path)
        file = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
        assert report["targets"][0]["weights"] == file[:8]

    def test_an_auroc(
        self, targets: list[Surrogate], rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
        prompt: TransferableVisualPrompt,
    ) -> None:  # fmt: skip
        task = Task(candidates=("no", "yes"), question="Is it red?")
        rows = [{"image": row["image"], "answer": "yes" if shown == "red" else "no"}
                for row, shown in zip(rows, SHOWN, strict=True)]  # fmt: skip

        def redness(surrogate: Surrogate, images: list[Image.Image], *_: Any) -> list[torch.Tensor]:
            # How red the middle is, but in a black frame how blue: right and wrong by turns.
            found = []
            for image in images:
                red, _green, blue = image.getpixel((image.width // 2, image.height // 2))
                found.append(torch.tensor([0.0, (blue if image.getpixel((0, 0)) == (0, 0, 0) else red) / 255]))
            return found

        monkeypatch.setattr(evaluation, "score_candidates", redness)
        report = transfer_report(
            targets[:1], rows, task, [prompt], source=[], title="", metric="auroc", progress=False
        )
        check_report(report)
        (target,) = report["targets"]
        # Two red, two blue, two green: of the pairs of a red and another, all are right, or half tie and half are wrong.
        assert target["tvp"] == target["full_image"] == 1
        assert target["zero_border"] == 0.25
        assert target["delta"] == 0.75
        low, high = target["delta_ci95"]
        assert 0 < low <= 0.75 <= high <= 1
        assert "AUROC in %" in format_table(report)
