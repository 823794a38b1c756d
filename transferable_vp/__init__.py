"""Transferable visual prompts: one learned image prompt that makes many vision-language models better at a task."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import models  # makes the paper's models known to the Auto classes
from .configuration import TransferableVisualPromptConfig
from .modeling import TransferableVisualPrompt


if TYPE_CHECKING:
    from .data import Example, ExampleCollator, Task, load_data
    from .diversity import InputDiversity
    from .endpoints import Endpoint
    from .evaluation import Evaluation, evaluate
    from .generation import generate
    from .hub import search_prompts, share_report
    from .objectives import FeatureConsistency, Objective, Step, TaskSemantics
    from .optim import PaperSGD
    from .scoring import score_candidates
    from .surrogate import Surrogate
    from .tasks import PaperTask, get_task
    from .trainer import TransferableVisualPromptTrainer
    from .training_args import TransferableVisualPromptTrainingArguments
    from .transfer import random_prompt, transfer_report

__version__ = "0.1.0.dev0"

# The two classes above come with the package, so that AutoConfig and AutoModel know them; the rest on first use, so that
# applying a prompt does not import the Trainer.
_LAZY = {
    "Endpoint": "endpoints",
    "Evaluation": "evaluation",
    "Example": "data",
    "ExampleCollator": "data",
    "FeatureConsistency": "objectives",
    "InputDiversity": "diversity",
    "Objective": "objectives",
    "PaperSGD": "optim",
    "PaperTask": "tasks",
    "Step": "objectives",
    "Surrogate": "surrogate",
    "Task": "data",
    "TaskSemantics": "objectives",
    "TransferableVisualPromptTrainer": "trainer",
    "TransferableVisualPromptTrainingArguments": "training_args",
    "evaluate": "evaluation",
    "generate": "generation",
    "get_task": "tasks",
    "load_data": "data",
    "random_prompt": "transfer",
    "score_candidates": "scoring",
    "search_prompts": "hub",
    "share_report": "hub",
    "transfer_report": "transfer",
}

__all__ = [
    "TransferableVisualPrompt",
    "TransferableVisualPromptConfig",
    "Endpoint",
    "Evaluation",
    "Example",
    "ExampleCollator",
    "FeatureConsistency",
    "InputDiversity",
    "Objective",
    "PaperSGD",
    "PaperTask",
    "Step",
    "Surrogate",
    "Task",
    "TaskSemantics",
    "TransferableVisualPromptTrainer",
    "TransferableVisualPromptTrainingArguments",
    "evaluate",
    "generate",
    "get_task",
    "load_data",
    "random_prompt",
    "score_candidates",
    "search_prompts",
    "share_report",
    "transfer_report",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
