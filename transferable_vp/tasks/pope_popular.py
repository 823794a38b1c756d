"""POPE with popular objects asked about."""

from __future__ import annotations

from .pope import pope


TASK = pope("popular", "pope_popular")
