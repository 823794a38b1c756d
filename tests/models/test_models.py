"""What `import transferable_vp` makes known, in a process that has imported nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


# sentencepiece is an extra, and is not found here. A type that the package makes known loads without another import.
PROGRAM = """
import importlib.machinery, sys

found = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *place: None if name == "sentencepiece" else found(name, *place)

import transferable_vp
from transformers import AutoModelForImageTextToText, AutoProcessor

for folder in sys.argv[1:]:
    print(type(AutoModelForImageTextToText.from_pretrained(folder)).__name__,
          type(AutoProcessor.from_pretrained(folder)).__name__)
try:
    transferable_vp.models.VisualGLMTokenizer("ice_text.model")
except ImportError as error:
    print(error)
"""


@pytest.mark.multiprocess
def test_the_auto_classes_know_the_models_without_sentencepiece(converted: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(converted / "bliva"), str(converted / "minigpt4")],
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    bliva, minigpt4, refusal = done.stdout.split("\n", 2)
    assert bliva.split() == ["BlivaForConditionalGeneration", "BlivaProcessor"]
    assert minigpt4.split() == ["Blip2ForConditionalGeneration", "MiniGPT4Processor"]
    assert "requires the SentencePiece library" in refusal
