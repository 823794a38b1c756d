"""Where the zoo and the examples are: inside the installed package, or beside it in a checkout."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def bundled(name: str) -> Path:
    """Path of a file or folder that comes with the package, as `"zoo/llava"` or `"examples/train.py"`.

    Raises:
        FileNotFoundError: If it is in neither place.
    """
    package = Path(__file__).parent
    for root in (package, package.parent):
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(
        f"{name} is neither in {package} nor beside it: reinstall transferable-vp, or run from a full checkout."
    )


def import_bundled(name: str) -> ModuleType:
    """Imports a bundled script, as `"zoo/world.py"`, under a name that no other module has."""
    path = bundled(name)
    spec = importlib.util.spec_from_file_location(f"transferable_vp_bundled_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up here while it is still being run.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
