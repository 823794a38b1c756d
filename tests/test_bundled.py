from __future__ import annotations

import pytest

from transferable_vp import bundled as module
from transferable_vp.bundled import bundled, import_bundled


def test_finds_what_comes_with_the_package() -> None:
    assert bundled("examples/train.py").is_file()
    assert (bundled("zoo") / "world.py").is_file()


def test_the_installed_package_comes_before_the_checkout(tmp_path, monkeypatch) -> None:
    package = tmp_path / "site" / "transferable_vp"
    (package / "zoo").mkdir(parents=True)
    (tmp_path / "site" / "zoo").mkdir()
    monkeypatch.setattr(module, "__file__", str(package / "bundled.py"))
    assert bundled("zoo") == package / "zoo"
    (package / "zoo").rmdir()
    assert bundled("zoo") == tmp_path / "site" / "zoo"


def test_says_what_to_do_where_it_is_missing() -> None:
    with pytest.raises(FileNotFoundError, match=r"zoo/unicorn is neither in .* reinstall transferable-vp"):
        bundled("zoo/unicorn")


def test_imports_a_script_with_its_dataclasses() -> None:
    script = import_bundled("examples/train.py")
    assert script.ScriptArguments(model=["m"], dataset="d").canvas_size == 224
