"""Learning while one watches, without a browser: the real trainer on the zoo, a few steps of it."""

from __future__ import annotations

import re
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_report import make_report


pytest.importorskip("gradio", reason='the app is an extra: pip install "transferable-vp[app]"')

from transferable_vp import TransferableVisualPrompt
from transferable_vp.app import training
from transferable_vp.app.models import Models
from transferable_vp.app.prompts import card_of, task_of
from transferable_vp.app.train_tab import chart_svg, forget, progress_html, result_html
from transferable_vp.app.training import Progress, Recipe, learn_live
from transferable_vp.bundled import bundled
from transferable_vp.report import read_json
from transferable_vp.transfer import weights_digest


SMALL: dict[str, Any] = {"n_train": 32, "n_test": 4}


@pytest.fixture(scope="module")
def zoo() -> Models:
    return Models([str(bundled("zoo/llava")), str(bundled("zoo/paligemma"))])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"sources": ()}, "No source is chosen"),
        ({"steps": 0}, "The number of steps is 0; it must be between 1 and 200"),
        ({"steps": 201}, "must be between 1 and 200"),
        ({"fca_weight": -0.1}, "The weight of FCA is -0.1; it must be between 0"),
        ({"tse_weight": float("nan")}, "The weight of TSE is nan"),
        ({"fca_weight": float("inf")}, "The weight of FCA is inf"),
    ],
)
def test_recipe_out_of_range(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        Recipe(**{"sources": ("llava",), "steps": 3, "fca_weight": 0.005, "tse_weight": 0.001} | changed)


def test_learns_measures_and_saves(zoo: Models, tmp_path: Path) -> None:
    stages, borders = [], []
    for progress in learn_live(Recipe(("llava",), 2, 0.005, 0.001), zoo, tmp_path, threading.Event(), **SMALL):
        stages.append(progress.stage)
        if progress.picture is not None and len(progress.history) > len(borders):
            borders.append(progress.picture)
    assert [entry["step"] for entry in progress.history] == [1, 2]
    for entry in progress.history:
        assert entry["loss"] == pytest.approx(
            entry["task_loss"] + 0.005 * entry["fca_loss"] + 0.001 * entry["tse_loss"], rel=1e-3
        )
    assert (
        stages[0] == "Loading the models …" and "Step 2 of 2" in stages and stages[-1] == "Done: learned in 2 steps."
    )
    assert any("Measuring paligemma, 2 of 2" in stage for stage in stages)
    assert borders[0].size == (64, 64) and borders[0].tobytes() != borders[1].tobytes()
    assert [step for step, _ in progress.frames] == [1, 2]

    assert progress.folder is not None and progress.archive is not None and progress.report is not None
    prompt = TransferableVisualPrompt.from_pretrained(progress.folder)
    report = read_json(progress.folder / "transfer.json")
    assert report["settings"]["block_size"] == 8
    assert [(row["model"], row["is_source"], row["n"]) for row in report["targets"]] == [
        ("llava", True, 4), ("paligemma", False, 4)
    ]  # fmt: skip
    assert {row["weights"] for row in report["targets"]} == {weights_digest(prompt)}
    task = task_of(card_of(prompt))
    assert task is not None and task.question is None and task.candidates[:2] == ("red", "orange")
    with zipfile.ZipFile(progress.archive) as archive:
        assert {"prompt/model.safetensors", "prompt/README.md", "prompt/prompt.png"} <= set(archive.namelist())
    shown = result_html(progress)
    assert "paligemma" in shown and "<img" in shown and "4 pictures that it was not learned from" in shown
    forget([str(progress.folder)])
    assert not tmp_path.exists()


def test_stop_ends_it_early_and_what_was_learned_is_measured(zoo: Models, tmp_path: Path) -> None:
    stop = threading.Event()
    for progress in learn_live(Recipe(("llava",), 200, 0.0, 0.0), zoo, tmp_path, stop, **SMALL):
        if progress.history:
            stop.set()
    assert 1 <= len(progress.history) < 200
    # Terms without a weight are not computed.
    assert {"fca_loss", "tse_loss"}.isdisjoint(progress.history[-1])
    assert progress.report is not None
    assert progress.report["settings"]["steps"] == len(progress.history)


def test_ends_when_nobody_listens(zoo: Models, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    stop = threading.Event()
    steps = learn_live(Recipe(("llava",), 200, 0.0, 0.0), zoo, tmp_path, stop, **SMALL)
    while not next(steps).history:
        pass
    steps.close()
    assert stop.is_set()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_an_error_in_the_thread_is_raised_here(zoo: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise OSError("The disk is full.")

    monkeypatch.setattr(training, "color_data", fail)
    with pytest.raises(OSError, match="The disk is full"):
        list(learn_live(Recipe(("llava",), 2, 0.0, 0.0), zoo, tmp_path, threading.Event(), **SMALL))
    with pytest.raises(ValueError, match=r"^There is no model gpt in the zoo; there are llava, paligemma\.$"):
        next(learn_live(Recipe(("gpt",), 2, 0.0, 0.0), zoo, tmp_path, threading.Event()))


def test_progress_shows_the_terms_that_there_are() -> None:
    assert "Loading the models" in progress_html(Progress(4)) and "<img" not in progress_html(Progress(4))
    image = Image.new("RGB", (8, 8))
    history = [{"step": 1, "loss": 2.0, "task_loss": 2.0}, {"step": 2, "loss": 1.0, "task_loss": 1.0}]
    shown = progress_html(Progress(4, "Step 2 of 4", history, image, [(1, image)]))
    assert shown.count("<svg") == 1 and "task loss" in shown and 'aria-valuenow="2"' in shown
    assert shown.count("<img") == 2 and "width:50%" in shown


@pytest.mark.parametrize("values", [[(1, 0.5)], [(1, 0.5), (2, 0.5)], [(1, -5.0), (2, -6.0), (3, 1e-9)]])
def test_chart_stays_within_its_frame(values: list[tuple[float, float]]) -> None:
    line = re.search(r'polyline points="([^"]+)"', chart_svg("a", values, 240, 110))
    assert line is not None
    dots = [tuple(map(float, dot.split(","))) for dot in line[1].split()]
    assert len(dots) == len(values)
    assert all(34 <= x <= 240 and 8 <= y <= 90 for x, y in dots)


def test_result_of_a_prompt_learned_on_all(tmp_path: Path) -> None:
    report = make_report()
    for target in report["targets"]:
        target["is_source"] = True
    assert "none left to say whether it transfers" in result_html(Progress(1, report=report))
