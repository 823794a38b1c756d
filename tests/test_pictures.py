from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report import make_report

from transferable_vp.pictures import save_examples_picture, save_prompt_picture, save_transfer_chart


@pytest.fixture
def report() -> dict[str, Any]:
    return make_report()


@pytest.fixture
def prompt_image() -> Image.Image:
    pixels = np.zeros((32, 32, 4), dtype=np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, 255
    pixels[4:-4, 4:-4] = 0
    return Image.fromarray(pixels)


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
    assert labels == ["full image", "zero border", "random border", "TVP", "source model", "95% CI of Δ"]
    accuracy, gain = figure.axes
    ticks = [label.get_text() for label in accuracy.get_yticklabels()]
    assert ticks[0] == "zoo/llava\n(source, n=600)"
    assert [text.get_text() for text in gain.texts] == ["+25.0", "+14.0", "+1.0"]
    # An interval that does not hold its estimate is drawn where it is.
    np.testing.assert_allclose(gain.collections[0].get_segments()[1][:, 0], [-30, -20])


@pytest.mark.parametrize("draw", ["examples", "chart"])
def test_pictures_name_the_extra_when_matplotlib_is_missing(
    report: dict[str, Any], example: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: str
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=re.escape('pip install "transferable-vp[demo]"')):
        if draw == "examples":
            save_examples_picture([example], tmp_path / "examples.png")
        else:
            save_transfer_chart(report, tmp_path / "chart.png")
