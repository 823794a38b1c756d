"""The app: prompts tried on models, looked at, and learned, in a browser."""

from __future__ import annotations


try:
    import gradio
except ImportError as error:
    raise ImportError(f'The app needs {error.name}: pip install "transferable-vp[app]".') from error

from .page import launch, make_app


__all__ = ["launch", "make_app"]
