"""Which models a prompt can be learned on: what the conformance suite found, and a probe for any one model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from .answers import answer_loss
from .configuration import TransferableVisualPromptConfig
from .modeling import TransferableVisualPrompt
from .scoring import score_candidates
from .surrogate import Surrogate


# Written by `make support`, which runs tests/conformance; never by hand.
SUPPORTED_MODELS = Path(__file__).with_name("supported_models.json")
STATUSES = ("supported", "unsupported", "untested")
QUESTION, ANSWERS = "What is in the picture?", ["red", "a blue square"]


def supported_models() -> dict[str, Any]:
    r"""
    Every type that the installed transformers loads with `AutoModelForImageTextToText`, and whether it is supported; and
    the paper's models that come with this package.

    Returns:
        `dict`: `"transformers"`, the version that the conformance suite was run with; `"models"`, one `dict` a type
        with `"model_type"`, `"model_class"`, `"status"` (`"supported"`, `"unsupported"`, or `"untested"` for a type
        that the suite has not seen), `"reason"` and `"checks"` (outcome by name of the check); `"paper_models"`, such a
        `dict` for each of BLIVA, MiniGPT-4, VisualGLM and VPGTrans, without `"model_class"`. BLIP-2 and InstructBLIP are
        types of transformers.
    """
    measured = json.loads(SUPPORTED_MODELS.read_text(encoding="utf-8"))
    known = {row["model_type"]: row for row in measured["models"]}
    models = []
    for model_type, model_class in sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items()):
        row = known.get(model_type)
        if row is None:
            reason = (
                f"not in the conformance suite, which was run with transformers {measured['transformers']}; this is "
                f"{transformers.__version__}. `transferable-vp support MODEL` probes a model of it"
            )
            row = {"model_type": model_type, "status": "untested", "reason": reason, "checks": {}}
        models.append({**row, "model_class": model_class})
    return {"transformers": measured["transformers"], "models": models, "paper_models": measured["paper_models"]}


class Finding(NamedTuple):
    """What [`probe`] found: a promise, whether it is kept, and why not."""

    what: str
    works: bool
    detail: str


def probe(surrogate: Surrogate) -> list[Finding]:
    r"""
    Runs the passes of one training step with a noisy prompt and two pictures, and says what works.

    Args:
        surrogate ([`Surrogate`]): The model, as it would be trained on.

    Returns:
        `list[Finding]`: On attaching, parity of pixels, gradient, image features and ranking, in this order.
    """
    prompt = TransferableVisualPrompt(TransferableVisualPromptConfig())
    generator = np.random.default_rng(0)
    with torch.no_grad():
        prompt.delta.copy_(torch.from_numpy(generator.random(prompt.delta.shape, dtype=np.float32)))
    prompt.project_()
    pictures = [Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
                for shape in ((240, 320, 3), (256, 256, 3))]  # fmt: skip
    questions = [QUESTION] * len(pictures)
    prompted = prompt.apply(pictures)

    def attached() -> str:
        arguments = surrogate.processor_arguments(pictures, questions)
        ours = prompt.attach(surrogate.processor)(**arguments)
        theirs = surrogate.processor(**surrogate.processor_arguments(prompted, questions))
        _require_same(ours, theirs)
        return "the processor gives what it gives for the prompted image"

    def parity() -> str:
        _require_same(surrogate.encode(prompted, questions, prompt(pictures)), surrogate.encode(prompted, questions))
        return "training sees the pixel values of deployment, to the bit"

    def gradient() -> str:
        answer_loss(surrogate.forward(prompt(pictures), questions, ANSWERS)).backward()
        found, border = prompt.delta.grad, prompt.config.border_size
        if found is None or not found.isfinite().all():
            raise ValueError("the gradient is not finite")
        sides = {"top": found[:, :border], "bottom": found[:, -border:],
                 "left": found[..., :border], "right": found[..., -border:]}  # fmt: skip
        if none := [side for side, part in sides.items() if not part.any()]:
            raise ValueError(f"no gradient on these sides of the border: {', '.join(none)}")
        return "finite, and not zero on any side of the border"

    def features() -> str:
        found = surrogate.features(prompt(pictures), questions)
        return f"{len(found)} features of width {found.shape[1]} for two pictures"

    def ranking() -> str:
        scores = score_candidates(surrogate, prompted, questions, [ANSWERS] * len(pictures))
        if not torch.stack(scores).isfinite().all():
            raise ValueError("a candidate's log-likelihood is not finite")
        return "candidate answers have finite log-likelihoods"

    steps: dict[str, Callable[[], str]] = {"attach": attached, "pixels": parity, "gradient": gradient,
                                           "image features": features, "ranking": ranking}  # fmt: skip
    findings = []
    for what, step in steps.items():
        try:
            findings.append(Finding(what, True, step()))
        except Exception as error:  # the model is a stranger's and may raise anything; what it raised is the finding
            findings.append(Finding(what, False, f"{type(error).__name__}: {error}"))
    return findings


def _require_same(ours: Any, theirs: Any, name: str = "inputs") -> None:
    if isinstance(theirs, torch.Tensor):
        if not torch.equal(ours, theirs):
            raise ValueError(f"`{name}` differs between the two")
    elif hasattr(theirs, "items"):
        for key, value in theirs.items():
            _require_same(ours[key], value, key)
    elif isinstance(theirs, (list, tuple)):
        for mine, value in zip(ours, theirs, strict=True):
            _require_same(mine, value, name)
