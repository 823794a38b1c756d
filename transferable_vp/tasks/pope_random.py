"""POPE with random objects asked about."""

from __future__ import annotations

from .pope import pope


TASK = pope("random", "pope_random")
