"""Prints the folder of the task files."""

from __future__ import annotations

from pathlib import Path


print(Path(__file__).parent)
