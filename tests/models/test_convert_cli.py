"""`transferable-vp convert`, as a shell would call it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from transferable_vp import Surrogate
from transferable_vp.models.convert_cli import add_convert_parser


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_convert_parser(parser.add_subparsers())
    return parser


@pytest.mark.parametrize("name", ["minigpt4", "vpgtrans", "bliva"])
def test_a_folder_is_made_that_loads(
    parser: argparse.ArgumentParser, published: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {
        "minigpt4": ["--blip2", str(published / "blip2.pth"), "--vit", str(published / "eva.pth")],
        "vpgtrans": ["--vit", str(published / "eva.pth")],
        "bliva": ["--qformer_tokenizer", str(published / "bert")],
    }[name]
    output = str(tmp_path / name)
    args = parser.parse_args(["convert", name, str(published / f"{name}.pth"), "--vicuna", str(published / "vicuna"),
                              "--output_dir", output, *more])  # fmt: skip
    assert args.function(args) == 0
    assert f"Wrote {output}" in capsys.readouterr().out
    assert Surrogate.from_pretrained(output).name == name


def test_visualglm_goes_to_its_own_converter(parser: argparse.ArgumentParser, tmp_path: Path) -> None:
    args = parser.parse_args(
        ["convert", "visualglm", str(tmp_path / "nothing"), "--output_dir", str(tmp_path / "out")]
    )
    with pytest.raises((FileNotFoundError, ValueError, OSError), match="nothing"):
        args.function(args)


def test_what_is_missing_is_said(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(["convert", "minigpt4", "a.pth", "--output_dir", "out"])
    assert "--vicuna, --blip2" in capsys.readouterr().err
