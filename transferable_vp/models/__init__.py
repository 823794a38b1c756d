"""
The models of the paper that transformers does not have, known to its Auto classes once `transferable_vp` is imported:
BLIVA and VisualGLM-6B. MiniGPT-4 and VPGTrans are BLIP-2 with a LLaMA, and have a processor here.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from .bliva import BlivaConfig, BlivaForConditionalGeneration, BlivaProcessor
from .minigpt4 import MiniGPT4Processor
from .visualglm import VisualGLMConfig, VisualGLMForConditionalGeneration, VisualGLMProcessor, VisualGLMTokenizer


AutoConfig.register(BlivaConfig.model_type, BlivaConfig)
AutoModelForImageTextToText.register(BlivaConfig, BlivaForConditionalGeneration)
AutoProcessor.register(BlivaConfig, BlivaProcessor)

AutoConfig.register(VisualGLMConfig.model_type, VisualGLMConfig)
AutoModelForImageTextToText.register(VisualGLMConfig, VisualGLMForConditionalGeneration)
AutoProcessor.register(VisualGLMConfig, VisualGLMProcessor)
AutoTokenizer.register(VisualGLMConfig, VisualGLMTokenizer)

# A folder names its processor's class, and AutoProcessor looks for the name among the registered ones, whatever they
# are registered for. Not for Blip2Config: that would make it the processor of BLIP-2 folders that name none.
AutoProcessor.register(MiniGPT4Processor, MiniGPT4Processor)

__all__ = [
    "BlivaConfig",
    "BlivaForConditionalGeneration",
    "BlivaProcessor",
    "MiniGPT4Processor",
    "VisualGLMConfig",
    "VisualGLMForConditionalGeneration",
    "VisualGLMProcessor",
    "VisualGLMTokenizer",
]
