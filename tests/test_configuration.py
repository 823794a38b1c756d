"""What a prompt is before any pixel is learned: geometry, allowed values, and that all of it survives a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

import transferable_vp
from transferable_vp import TransferableVisualPrompt, TransferableVisualPromptConfig
from transferable_vp.configuration import FORMAT_VERSION, MAX_CANVAS_SIZE


UNUSUAL = {
    "canvas_size": 64,
    "border_size": 7,
    "content_size": 41,
    "fit": "contain",
    "layout": "both",
    "epsilon": 0.25,
    "value_range": "unbounded",
}


def test_defaults_are_the_papers_geometry() -> None:
    config = TransferableVisualPromptConfig()
    assert (config.canvas_size, config.border_size, config.content_size) == (224, 30, 164)
    assert (config.fit, config.layout, config.value_range) == ("crop", "border", "displayable")
    prompt = TransferableVisualPrompt(config)
    assert 3 * int(prompt.trainable_mask.sum()) == 69_840


def test_content_fills_what_the_border_leaves() -> None:
    assert TransferableVisualPromptConfig(canvas_size=336, border_size=42).content_size == 252
    assert TransferableVisualPromptConfig(canvas_size=3, border_size=1).content_size == 1
    assert TransferableVisualPromptConfig(canvas_size=336, border_size=42, content_size=200).content_size == 200


def test_an_overlay_has_no_border() -> None:
    config = TransferableVisualPromptConfig(canvas_size=64, border_size=50, layout="overlay")
    assert (config.border_size, config.content_size) == (0, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fit": "squash"}, r"`fit` is 'squash'; it must be one of 'crop', 'contain', 'stretch'"),
        ({"layout": "frame"}, r"`layout` is 'frame'; it must be one of 'border', 'overlay', 'both'"),
        ({"value_range": "float"}, r"`value_range` is 'float'; it must be one of 'displayable', 'unbounded'"),
        ({"canvas_size": 224.0}, r"`canvas_size` is 224.0; it must be a whole number of pixels"),
        ({"canvas_size": True}, r"`canvas_size` is True; it must be a whole number of pixels"),
        ({"border_size": "30"}, r"`border_size` is '30'; it must be a whole number of pixels"),
        ({"content_size": 164.5}, r"`content_size` is 164.5; it must be a whole number of pixels"),
        ({"canvas_size": 0}, rf"`canvas_size` is 0; it must be between 1 and {MAX_CANVAS_SIZE} pixels"),
        ({"canvas_size": MAX_CANVAS_SIZE + 1}, rf"`canvas_size` is {MAX_CANVAS_SIZE + 1}; it must be between 1 and"),
        ({"border_size": 0}, r"`border_size` is 0; it must be at least 1 \(or use `layout=\"overlay\"`\)"),
        ({"border_size": -1}, r"`border_size` is -1; it must be at least 1"),
        (
            {"border_size": 112},
            r"border of 112 pixels .* no content on a canvas of 224: use a `border_size` below 112",
        ),
        ({"canvas_size": 7, "border_size": 4}, r"no content on a canvas of 7: use a `border_size` below 4"),
        ({"content_size": 0}, r"`content_size` is 0, but a canvas of 224 with a border of 30 .* room for 1 to 164"),
        ({"content_size": 165}, r"`content_size` is 165, but .* room for 1 to 164 pixels"),
        ({"epsilon": 0}, r"`epsilon` is 0; it must be above 0 and at most 1"),
        ({"epsilon": 1.5}, r"`epsilon` is 1.5; it must be above 0 and at most 1"),
        ({"epsilon": float("nan")}, r"`epsilon` is nan; it must be above 0 and at most 1"),
        ({"epsilon": "0.1"}, r"`epsilon` is '0.1'; it must be a number"),
        ({"epsilon": None}, r"`epsilon` is None; it must be a number"),
        ({"canvas_size": None}, r"`canvas_size` is None; it must be a whole number of pixels"),
        ({"version": 1}, r"`version` is 1; it must be a text such as '0.1.0'"),
        ({"format_version": 0}, r"`format_version` is 0; it must be a whole number from 1 on"),
        ({"format_version": True}, r"`format_version` is True; it must be a whole number from 1 on"),
        (
            {"format_version": FORMAT_VERSION + 1, "version": "9.0", "layout": "spiral"},
            r"format 2, written by version '9.0', and this version reads formats up to 1: upgrade with `pip install -U",
        ),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransferableVisualPromptConfig(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"canvas_size": MAX_CANVAS_SIZE}, {"border_size": 111}, {"canvas_size": 7, "border_size": 3}, {"epsilon": 1}],
)
def test_the_largest_values_named_in_messages_are_allowed(arguments: dict[str, Any]) -> None:
    config = TransferableVisualPromptConfig(**arguments)
    assert arguments.items() <= config.to_dict().items()


@pytest.mark.parametrize("arguments", [{}, UNUSUAL], ids=["defaults", "unusual"])
def test_round_trip_through_a_dict(arguments: dict[str, Any]) -> None:
    config = TransferableVisualPromptConfig(**arguments)
    again = TransferableVisualPromptConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert arguments.items() <= again.to_dict().items()


@pytest.mark.parametrize("arguments", [{}, UNUSUAL], ids=["defaults", "unusual"])
def test_round_trip_through_a_file(arguments: dict[str, Any], tmp_path: Path) -> None:
    config = TransferableVisualPromptConfig(**arguments)
    config.save_pretrained(tmp_path)
    again = TransferableVisualPromptConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    # A file must stand on its own: later versions may have other defaults.
    written = json.loads((tmp_path / "config.json").read_text())
    assert {key: written[key] for key in UNUSUAL} == {key: getattr(config, key) for key in UNUSUAL}


def test_auto_config_knows_it(tmp_path: Path) -> None:
    TransferableVisualPromptConfig(**UNUSUAL).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is TransferableVisualPromptConfig
    assert config.content_size == UNUSUAL["content_size"]
    assert type(AutoConfig.for_model("transferable_visual_prompt")) is TransferableVisualPromptConfig


def test_version_is_written_by_saving_a_prompt(tmp_path: Path) -> None:
    config = TransferableVisualPromptConfig(canvas_size=16, border_size=2, version="0.0.1")
    TransferableVisualPrompt(config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["version"], written["format_version"]) == (transferable_vp.__version__, FORMAT_VERSION)


def test_a_broken_file_is_refused_by_its_values(tmp_path: Path) -> None:
    TransferableVisualPromptConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"canvas_size": 224', '"canvas_size": 1000000'))
    with pytest.raises(ValueError, match="`canvas_size` is 1000000"):
        AutoConfig.from_pretrained(tmp_path)
