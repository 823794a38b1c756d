from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report import make_report

from transferable_vp.history import PromptHistory
from transferable_vp.pictures import (
    save_examples_picture,
    save_heatmap,
    save_prompt_picture,
    save_saliency,
    save_training_strip,
    save_transfer_chart,
)
from transferable_vp.saliency import Saliency


GAINS = {
    "llava": {"llava": 31.2, "idefics3": 20.04, "paligemma": -3.0},
    "llava + idefics3": {"llava": 12.0, "idefics3": -0.04},
}


@pytest.fixture
def report() -> dict[str, Any]:
    return make_report()


@pytest.fixture
def prompt_image() -> Image.Image:
    pixels = np.zeros((32, 32, 4), dtype=np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, 255
    pixels[4:-4, 4:-4] = 0
    return Image.fromarray(pixels)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn from here on, instead of files."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    drawn: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    return drawn


@pytest.fixture
def history(prompt_image: Image.Image) -> PromptHistory:
    history = PromptHistory()
    history.frames = dict.fromkeys((10, 0, 60, 30, 20), prompt_image)
    history.losses = {30: 0.5, 10: 2.0, 60: 0.25}
    return history


def make_saliency(**changes: Any) -> Saliency:
    """Of four blocks of a prompt of 32 pixels, one of them too small for a number."""
    blocks = [(0, 0, 8, 8), (0, 8, 8, 24), (0, 24, 8, 32), (28, 0, 30, 2)]
    fields: dict[str, Any] = {
        "blocks": blocks, "effects": np.array([0.5, -0.25, -0.001, 0.1]), "whole": 1.25, "measure": "log_prob",
        "size": 32, "n": 6, "model": "tiny $x_1$",
    }  # fmt: skip
    return Saliency(**fields | changes)


def is_blank(path: Path) -> bool:
    with Image.open(path) as picture:
        return all(low == high for low, high in picture.convert("RGB").getextrema())


def test_prompt_picture(prompt_image: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "new" / "prompt.png"
    save_prompt_picture(prompt_image, path)
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (448, 448, 3)
    assert (pixels[:56] == (200, 0, 0)).all()
    centre = pixels[56:-56, 56:-56]
    assert set(np.unique(centre)) == {232, 255}


def test_prompt_picture_of_a_large_prompt_keeps_its_size(tmp_path: Path) -> None:
    save_prompt_picture(Image.new("RGBA", (600, 600)), tmp_path / "prompt.png")
    with Image.open(tmp_path / "prompt.png") as picture:
        assert picture.size == (600, 600)


@pytest.fixture
def example(prompt_image: Image.Image) -> dict[str, Any]:
    image = Image.new("RGB", (48, 24), (0, 120, 0))
    before = Image.new("RGB", (32, 32))
    after = before.copy()
    after.paste(prompt_image, (0, 0), prompt_image)
    return {
        "image": image,
        "canvas_before": before,
        "canvas_after": after,
        "caption": "It costs $5 or $x_1$; what colour is it?",
        "before": "green " * 40,
        "after": "red",
        "answer": "red",
    }


@pytest.mark.parametrize("n", [1, 2])
def test_examples_picture(example: dict[str, Any], tmp_path: Path, n: int) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "examples.png"
    save_examples_picture([example] * n, path)
    with Image.open(path) as picture:
        assert picture.size == (1050, 435 * n)
    assert not is_blank(path)


def test_examples_picture_marks_right_and_wrong(
    example: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))
    save_examples_picture([example], tmp_path / "examples.png")
    original, before, after = figures[0].subfigs[0].axes
    assert original.get_xlabel() == "original\nexpected: red"
    assert before.get_xlabel().startswith("before: zero border\n✗ green green")
    assert before.get_xlabel().endswith("…")
    assert after.get_xlabel() == "after: with the prompt\n✓ red"


def test_transfer_chart(report: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "chart.png"
    save_transfer_chart(report, path)
    with Image.open(path) as picture:
        assert picture.size == (1125, 622)
    assert not is_blank(path)


def test_transfer_chart_draws_what_was_measured(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    report["task"] = "prices in $ and $x_1$"
    report["targets"][0]["delta_ci95"] = [-0.3, -0.2]
    for target in report["targets"]:
        del target["vp"]
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))
    save_transfer_chart(report, tmp_path / "chart.png")
    figure = figures[0]
    assert figure.get_suptitle() == "prices in $ and $x_1$, prompt trained on llava"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["full image", "zero border", "random border", "prompt", "source model", "95% CI of Δ"]
    accuracy, gain = figure.axes
    ticks = [label.get_text() for label in accuracy.get_yticklabels()]
    assert ticks[0] == "zoo/llava\n(source, n=600)"
    assert [text.get_text() for text in gain.texts] == ["+25.0", "+14.0", "+1.0"]
    # An interval that does not hold its estimate is drawn where it is.
    np.testing.assert_allclose(gain.collections[0].get_segments()[1][:, 0], [-30, -20])


def test_training_strip(history: PromptHistory, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    save_training_strip(history, tmp_path / "strip.png", "learned on $x_1$")
    with Image.open(tmp_path / "strip.png") as picture:
        assert picture.size == (975, 585)
    assert not is_blank(tmp_path / "strip.png")


def test_training_strip_shows_steps_in_order_above_their_losses(history: PromptHistory, figures: list[Any]) -> None:
    save_training_strip(history, "strip.png", max_frames=3)
    *frames, losses = figures[0].axes
    assert [axes.get_xlabel() for axes in frames] == ["step 0", "step 20", "step 60"]
    *marks, curve = losses.lines
    assert [mark.get_xdata()[0] for mark in marks] == [0, 20, 60]
    np.testing.assert_allclose(curve.get_xydata(), [[10, 2.0], [30, 0.5], [60, 0.25]])


def test_training_strip_without_losses_has_frames_only(history: PromptHistory, figures: list[Any]) -> None:
    history.losses = {}
    save_training_strip(history, "strip.png")
    assert len(figures[0].axes) == 5


def test_training_strip_of_nothing_is_refused(history: PromptHistory) -> None:
    with pytest.raises(ValueError, match="`max_frames` is 1; a strip shows the first and the last"):
        save_training_strip(history, "strip.png", max_frames=1)
    with pytest.raises(ValueError, match="The history has no frame: give it to a trainer as a callback"):
        save_training_strip(PromptHistory(), "strip.png")


def test_heatmap(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    save_heatmap(GAINS, tmp_path / "new" / "heat.png", "prices in $ and $x_1$", {"llava": {"llava": (20.0, 40.0)}})
    with Image.open(tmp_path / "new" / "heat.png") as picture:
        assert picture.size == (817, 423)
    assert not is_blank(tmp_path / "new" / "heat.png")


def test_heatmap_prints_gains_with_intervals_and_outlines_own_cells(figures: list[Any]) -> None:
    save_heatmap(GAINS, "heat.png", "title", {"llava": {"llava": (26.24, 36.0)}})
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["llava", "llava + idefics3"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["llava", "idefics3", "paligemma"]
    written = {text.get_text(): tuple(np.round(text.get_position()).astype(int)) for text in axes.texts}
    assert written == {
        "+31.2": (0, 0), "[+26.2, +36.0]": (0, 0), "+20.0": (1, 0), "-3.0": (2, 0), "+12.0": (0, 1), "+0.0": (1, 1)
    }  # fmt: skip
    outlined = [patch.get_center().round().astype(int).tolist() for patch in axes.patches if patch.get_hatch() is None]
    assert sorted(map(tuple, outlined)) == [(0, 0), (0, 0), (0, 1), (0, 1), (1, 1), (1, 1)]
    (missing,) = [patch for patch in axes.patches if patch.get_hatch()]
    assert missing.get_center().tolist() == [2, 1]


@pytest.mark.parametrize(("largest", "limit"), [(31.2, 31.2), (0.4, 5.0)])
def test_heatmap_has_zero_in_the_middle_of_its_colours(figures: list[Any], largest: float, limit: float) -> None:
    save_heatmap({"a": {"a": largest, "b": -0.1}}, "heat.png")
    (image,) = figures[0].axes[0].images
    assert image.get_clim() == (-limit, limit)


@pytest.mark.parametrize(
    ("gains", "message"),
    [
        ({}, "There are no gains to show"),
        ({"llava": {}}, "There are no gains to show"),
        ({"llava": {"llava": float("nan")}}, "A gain is not a finite number"),
    ],
)
def test_heatmap_of_nothing_is_refused(gains: dict[str, dict[str, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_heatmap(gains, "heat.png")


def test_saliency_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    save_saliency(make_saliency(), Image.new("RGB", (32, 32)), tmp_path / "saliency.png", "where it acts")
    with Image.open(tmp_path / "saliency.png") as picture:
        assert picture.size == (960, 585)
    assert not is_blank(tmp_path / "saliency.png")


def test_saliency_picture_has_one_scale_and_numbers_where_there_is_room(figures: list[Any]) -> None:
    points = make_saliency(effects=np.array([1.0, -12.0, 0.2, 0.0]), measure="accuracy", whole=10.0)
    save_saliency([points, make_saliency(measure="accuracy")], Image.new("RGB", (32, 32)), "saliency.png")
    _, left, right, bar = figures[0].axes
    assert [text.get_text() for text in left.texts] == ["+1", "-12", "+0"]
    assert left.get_xlabel() == "whole prompt: +10.0 points (n=6)"
    assert right.get_title() == "tiny $x_1$"
    assert {axes.images[1].get_clim() for axes in (left, right)} == {(-12.0, 12.0)}
    assert "accuracy (points)" in bar.get_ylabel()
    save_saliency(make_saliency(), Image.new("RGB", (32, 32)), "saliency.png")
    assert [text.get_text() for text in figures[1].axes[1].texts] == ["+0.50", "-0.25", "+0.00"]
    assert "nats" in figures[1].axes[2].get_ylabel()
    small = make_saliency(effects=np.array([0.07, -0.0021, -0.0001, 0.0]))
    save_saliency(small, Image.new("RGB", (32, 32)), "saliency.png")
    assert [text.get_text() for text in figures[2].axes[1].texts] == ["+.070", "-.002", "+.000"]


@pytest.mark.parametrize("some", [[], [make_saliency(), make_saliency(size=64)]])
def test_saliency_picture_of_different_things_is_refused(some: list[Saliency]) -> None:
    with pytest.raises(ValueError, match="one or more saliencies, all of one measure and of prompts of one size"):
        save_saliency(some, Image.new("RGB", (32, 32)), "saliency.png")


@pytest.mark.parametrize("draw", ["examples", "chart", "strip", "heatmap", "saliency"])
def test_pictures_name_the_extra_when_matplotlib_is_missing(
    report: dict[str, Any],
    example: dict[str, Any],
    history: PromptHistory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    draw: str,
) -> None:
    path = tmp_path / "picture.png"
    draws = {
        "examples": lambda: save_examples_picture([example], path),
        "chart": lambda: save_transfer_chart(report, path),
        "strip": lambda: save_training_strip(history, path),
        "heatmap": lambda: save_heatmap(GAINS, path),
        "saliency": lambda: save_saliency(make_saliency(), Image.new("RGB", (32, 32)), path),
    }
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=re.escape('pip install "transferable-vp[demo]"')):
        draws[draw]()
