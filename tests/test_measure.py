"""`transferable-vp evaluate`: tasks, models here and behind an API, several processes, runs that were stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
from PIL import Image

from transferable_vp import cli, scoring
from transferable_vp.bundled import bundled


NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ZOO = [str(bundled("zoo") / name) for name in ("llava", "idefics3")]


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    """Six rows of noise with the Hub's features."""
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = [{"img": tiny.picture(32, 32, seed=i), "label": i} for i in range(6)]
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "data" / "test.parquet")
    return tmp_path / "data"


@pytest.fixture
def prompt(tmp_path: Path) -> str:
    # Not the random border of seed 0, whose answers would be its own.
    tiny.noise_prompt(seed=5, canvas_size=64, border_size=8).save_pretrained(tmp_path / "prompt")
    return str(tmp_path / "prompt")


def run(prompt: str, output: Path, *arguments: str) -> dict[str, Any]:
    assert cli.main(["evaluate", "--prompt", prompt, "--output_dir", str(output), *arguments]) == 0
    return json.loads((output / "transfer.json").read_text())


class FakeEndpoint:
    """Says of every picture that it is a frog, to whoever asks."""

    asked = 0

    def __init__(self, model: str, base_url: str, **settings: Any) -> None:
        self.name, self.settings = settings["name"], {"model": model, "base_url": base_url}

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str], *, on_answer: Any, progress: bool
               ) -> list[str]:  # fmt: skip
        FakeEndpoint.asked += len(images)
        assert all("- frog" in question for question in questions)
        # Not in order, as answers come.
        for index in reversed(range(len(images))):
            on_answer(index, "It is a Frog.")
        return ["It is a Frog."] * len(images)


def test_a_task_of_the_paper_on_models_here_and_behind_an_api(
    prompt: str, cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("transferable_vp.measure.Endpoint", FakeEndpoint)
    arguments = ["--task", "cifar10", "--dataset", str(cifar10), "--model", *ZOO, "--source", "llava",
                 "--api_base", "http://localhost:1/v1", "--api_model", "served"]  # fmt: skip
    report = run(prompt, tmp_path / "out", *arguments)
    assert [(t["model"], t["is_source"], t["n"]) for t in report["targets"]] == [
        ("llava", True, 6), ("idefics3", False, 6), ("served (API)", False, 6),
    ]  # fmt: skip
    assert report["task"] == "CIFAR-10"
    served = report["targets"][2]
    # "frog" is no answer among the first six classes.
    assert [served[key] for key in ("full_image", "zero_border", "random_border", "tvp", "delta")] == [0, 0, 0, 0, 0]
    for target in report["targets"][:2]:
        (found,) = target["metrics"]["tvp"]
        assert found["n"] == 6
        assert found["accuracy"] == target["tvp"]
        assert found["top5"] >= found["accuracy"]
        assert len(found["accuracy_ci95"]) == 2
    shown = capsys.readouterr().out
    assert "served" in shown
    assert "idefics3" in shown
    assert (tmp_path / "out" / "transfer_chart.png").exists()

    asked = FakeEndpoint.asked
    assert run(prompt, tmp_path / "out", *arguments) == report
    assert FakeEndpoint.asked == asked, "answers that were there were asked for again"


class TestStoppedRuns:
    @pytest.fixture
    def arguments(self, cifar10: Path) -> list[str]:
        return ["--task", "cifar10", "--dataset", str(cifar10), "--model", ZOO[0], "--batch_size", "2"]

    def test_one_goes_on_where_it_stopped(
        self, prompt: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = run(prompt, tmp_path / "whole", *arguments)
        images: list[int] = []
        plain = scoring.score_candidates

        def stopping(surrogate: Any, shown: Any, *more: Any) -> Any:
            images.append(len(shown))
            if len(images) == 5:
                raise KeyboardInterrupt
            return plain(surrogate, shown, *more)

        monkeypatch.setattr("transferable_vp.evaluation.score_candidates", stopping)
        assert cli.main(["evaluate", "--prompt", prompt, "--output_dir", str(tmp_path / "out"), *arguments]) == 130
        assert not (tmp_path / "out" / "transfer.json").exists()
        again = run(prompt, tmp_path / "out", *arguments)
        assert again["targets"] == whole["targets"]
        # Four conditions of three batches, of which four batches were done and a fifth was lost.
        assert len(images) == 12 + 1
        run(prompt, tmp_path / "out", *arguments)
        assert len(images) == 13

    def test_another_prompt_is_asked_anew(
        self, prompt: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run(prompt, tmp_path / "out", *arguments)
        other = tiny.noise_prompt(seed=1, canvas_size=64, border_size=8)
        other.save_pretrained(prompt)
        images: list[int] = []
        plain = scoring.score_candidates
        monkeypatch.setattr(
            "transferable_vp.evaluation.score_candidates", lambda s, i, *m: images.append(len(i)) or plain(s, i, *m)
        )
        run(prompt, tmp_path / "out", *arguments)
        # Full image, zero border and random border are what they were.
        assert images == [2, 2, 2]

    def test_without_a_cache(self, prompt: str, arguments: list[str], tmp_path: Path) -> None:
        run(prompt, tmp_path / "out", *arguments, "--no_cache")
        assert not (tmp_path / "out" / "answers").exists()


def test_models_that_write(prompt: str, cifar10: Path, tmp_path: Path) -> None:
    report = run(prompt, tmp_path / "out", "--task", "cifar10", "--dataset", str(cifar10), "--model", ZOO[0],
                 "--by", "generate", "--max_new_tokens", "4")  # fmt: skip
    (target,) = report["targets"]
    assert target["n"] == 6
    lines = [line for path in (tmp_path / "out" / "answers").iterdir() for line in path.read_text().splitlines()[1:]]
    assert all(isinstance(json.loads(line)[1], str) for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "x"], "There is no model to measure"),
        (["--model", "m", "--api_model", "x", "--dataset", "x"], "needs both `--api_base` and `--api_model`"),
        (["--model", "m"], "There is nothing to measure on"),
        (["--model", "m", "--task", "cifar11"], "cifar11"),
    ],
)
def test_what_is_missing(prompt: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "--prompt", prompt, *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_give_the_report_of_one(prompt: str, cifar10: Path, tmp_path: Path) -> None:
    arguments = ["--task", "cifar10", "--dataset", str(cifar10), "--model", ZOO[0], "--batch_size", "2"]
    expected = run(prompt, tmp_path / "one", *arguments)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--module",
               "transferable_vp.cli", "evaluate", "--prompt", prompt, "--output_dir", str(tmp_path / "two"), "--device",
               "cpu", *arguments]  # fmt: skip
    subprocess.run(command, check=True, timeout=300, env={**__import__("os").environ, "ACCELERATE_USE_CPU": "true"})
    found = json.loads((tmp_path / "two" / "transfer.json").read_text())
    assert found["targets"] == expected["targets"]
    assert len(list((tmp_path / "two" / "answers").iterdir())) == 2
