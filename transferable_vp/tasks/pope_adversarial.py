"""POPE with adversarial objects asked about."""

from __future__ import annotations

from .pope import pope


TASK = pope("adversarial", "pope_adversarial")
