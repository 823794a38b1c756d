from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from transferable_vp import TransferableVisualPrompt
from transferable_vp.demo import MEMBERS, load_world, make_panels, run_demo
from transferable_vp.report import read_json


@pytest.fixture(scope="module")
def world():
    return load_world()


def test_quick_demo_writes_all_it_promises(tmp_path) -> None:
    reports = run_demo(tmp_path, seeds=(0,), quick=True, progress=False)
    (report,) = reports
    assert read_json(tmp_path / "report" / "transfer.json") == json.loads(json.dumps(report))
    assert [row["model"] for row in report["targets"]] == list(MEMBERS)
    assert [row["is_source"] for row in report["targets"]] == [True, False, False, False]
    for row in report["targets"]:
        assert row["n"] == 60
        assert row["delta"] == pytest.approx(row["tvp"] - row["zero_border"])
        assert row["delta_ci95"][0] <= row["delta"] <= row["delta_ci95"][1]
    prompt = TransferableVisualPrompt.from_pretrained(tmp_path / "prompt")
    assert prompt.delta.abs().max() > 0
    for name in ("chart", "prompt", "examples"):
        assert Image.open(tmp_path / "report" / f"transfer_{name}.png").width > 100
    page = (tmp_path / "report" / "report.html").read_text()
    assert "transferable-vp demo --source llava" in page


def test_panels_share_no_image_between_learning_and_measuring(world) -> None:
    for panel in make_panels(world, 800, 400, quick=False):
        train = {example["image"].tobytes() for example in panel.train}
        assert len(panel.test) == 400
        assert not any(example["image"].tobytes() in train for example in panel.test)
        assert all(example["answer"] in panel.task.candidates for example in panel.train + panel.test)


def test_digits_are_scanned_not_drawn(world) -> None:
    digits = make_panels(world, 20, 20, quick=False)[1]
    assert {example["answer"] for example in digits.test} <= set("0123456789")
    assert len(digits.task.candidates) == 36


def test_unknown_source_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="`source` is 'gpt'; the zoo's members are 'llava', 'idefics3'"):
        run_demo(tmp_path, source="gpt")


def test_missing_extra_says_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'pip install "transferable-vp\[demo\]"'):
        load_world()
