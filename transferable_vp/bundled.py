"""Where the zoo and the examples are: inside the installed package, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path


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
