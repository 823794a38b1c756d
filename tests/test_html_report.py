from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_report import make_report

from transferable_vp.html_report import write_html


@pytest.fixture
def report() -> dict[str, Any]:
    return make_report()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (300, 100)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


ORIGIN = {"title": "A title", "command": "transferable-vp demo", "versions": {"torch": "1.2.3"}}


class Page(HTMLParser):
    """Collects text and tags, and fails on a tag that is closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_is_one_self_contained_page(report: dict[str, Any], picture: Path, tmp_path: Path) -> None:
    pictures = {"prompt": [("the border", picture)], "examples": [("a photo", picture)]}
    path = tmp_path / "new" / "report.html"
    write_html([report, report], pictures, path, **ORIGIN)
    page = Page(path.read_text(encoding="utf-8"))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == ["the border", "a photo"]
    for image in images:
        prefix, data = image["src"].split(",", 1)
        assert prefix == "data:image/png;base64"
        assert base64.b64decode(data) == picture.read_bytes()
        assert image["width"] == "192"
    assert not any(tag in ("script", "link") for tag, _ in page.tags)
    assert sum(tag == "table" for tag, _ in page.tags) == 2
    assert sum(tag == "tr" and attributes.get("class") == "source" for tag, attributes in page.tags) == 2
    for text in (
        "[+21.0, +29.0]",
        "held-out models improved: 2 of 2 (interval above zero: 1 of 2)",
        "the picture shrunk into a black frame",
        "where the checkerboard is",
        '"learning_rate": 10',
        "transferable-vp demo",
        "torch 1.2.3",
    ):
        assert text in page.text


def test_html_escapes_everything(report: dict[str, Any], picture: Path, tmp_path: Path) -> None:
    attack = '"><script>alert(1)</script>'
    report.update(source=attack, task=attack, seeds=[attack], settings={attack: attack})
    report["targets"][0]["model"] = attack
    report["targets"][1]["n"] = attack
    path = tmp_path / "report.html"
    write_html([report], {"chart": [(attack, picture)]}, path, title=attack, command=attack, versions={attack: attack})
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert all(attributes["alt"] == attack for tag, attributes in Page(text).tags if tag == "img")


def test_html_shows_a_loss_and_marks_what_is_no_chance(report: dict[str, Any], tmp_path: Path) -> None:
    report["targets"][0].update(delta=-0.04, delta_ci95=[-0.06, -0.01])
    write_html([report], {}, tmp_path / "report.html", **ORIGIN)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<td><strong>-4.0</strong></td>" in text
    assert "<td>+1.0</td>" in text
    assert "worsened: 1 of 2 (interval below zero: 1 of 2)" in text
