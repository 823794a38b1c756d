"""What a user installs: the version, the requirements, the command, the public names."""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path
from typing import Any

import pytest
import setuptools

import transferable_vp


ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def declared() -> dict[str, Any]:
    """The arguments `setup.py` gives to `setup()`; nothing is built."""
    arguments: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(setuptools, "setup", arguments.update)
        runpy.run_path(str(ROOT / "setup.py"))
    return arguments


def test_version_is_the_packages_own(declared: dict[str, Any]) -> None:
    assert declared["version"] == transferable_vp.__version__


def test_every_requirement_has_a_floor_and_compat_pins_it(declared: dict[str, Any]) -> None:
    for requirement in declared["install_requires"]:
        name, separator, floor = requirement.partition(">=")
        assert separator, f"{requirement} has no floor, so `make compat` cannot test it"
        assert f"{name}=={floor}" in declared["extras_require"]["compat"]


def test_dev_holds_every_other_extra(declared: dict[str, Any]) -> None:
    extras = declared["extras_require"]
    for name in ("demo", "test", "quality", "docs"):
        assert set(extras[name]) <= set(extras["dev"]), name


def test_command_exists(declared: dict[str, Any]) -> None:
    (script,) = declared["entry_points"]["console_scripts"]
    name, target = script.split(" = ")
    module, function = target.split(":")
    assert name == "transferable-vp"
    assert callable(getattr(importlib.import_module(module), function))


def test_type_hints_are_shipped(declared: dict[str, Any]) -> None:
    assert (ROOT / "transferable_vp" / "py.typed").exists()
    assert "py.typed" in declared["package_data"]["transferable_vp"]


@pytest.mark.parametrize(
    "name",
    [
        "TransferableVisualPrompt",
        "TransferableVisualPromptConfig",
        "TransferableVisualPromptTrainer",
        "TransferableVisualPromptTrainingArguments",
    ],
)
def test_core_names_are_public(name: str) -> None:
    assert name in dir(transferable_vp)
    assert getattr(transferable_vp, name).__name__ == name
