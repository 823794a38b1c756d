"""Plug-ins for evaluation harnesses: lmms-eval, and data for VLMEvalKit."""

from __future__ import annotations

from typing import Any


def lmms_eval_models() -> list[Any]:
    r"""
    What lmms-eval is told through its entry-point group `lmms_eval.models`: the models `prompted_hf` and `prompted`.

    It stands here, and not beside the models, because lmms-eval asks for it while it is itself being imported.

    Returns:
        `list[lmms_eval.models.registry_v2.ModelManifest]`: One per model, with the path of its class.
    """
    from lmms_eval.models.registry_v2 import ModelManifest  # type: ignore[import-not-found,unused-ignore]

    module = f"{__name__}.lmms_eval"
    return [
        ModelManifest(model_id="prompted_hf", simple_class_path=f"{module}.PromptedHF"),
        ModelManifest(model_id="prompted", simple_class_path=f"{module}.PromptedBackend"),
    ]
