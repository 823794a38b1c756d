"""VisualGLM-6B in classes of transformers: it has none, and the published code needs transformers 4.33."""

from __future__ import annotations

from .configuration import VisualGLMConfig, VisualGLMTextConfig
from .decoder import VisualGLMPreTrainedModel, VisualGLMTextModel
from .modeling import VisualGLMForConditionalGeneration, VisualGLMModel
from .processing import VisualGLMProcessor
from .tokenization import VisualGLMTokenizer


__all__ = [
    "VisualGLMConfig",
    "VisualGLMForConditionalGeneration",
    "VisualGLMModel",
    "VisualGLMPreTrainedModel",
    "VisualGLMProcessor",
    "VisualGLMTextConfig",
    "VisualGLMTextModel",
    "VisualGLMTokenizer",
]
