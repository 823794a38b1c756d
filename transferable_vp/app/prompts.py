"""The prompts of the app: those found here, those of the Hub, and what their cards say of the task."""

from __future__ import annotations

import atexit
import functools
import html
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..card_sections import is_hub_id, sections_of, split_card
from ..hub_errors import CLIENT_ERRORS, explain
from ..hub_fetch import find_prompt
from ..hub_safety import CONFIG_NAME, WEIGHTS_NAME, check_size, plain, read_config
from ..modeling import TransferableVisualPrompt
from .models import LOADING


CARD_NAME = "README.md"
MAX_CARD_BYTES = 4_000_000
# A page with more is none that anybody looks through.
MOST = 40

QUESTION = re.compile(r"^- question: (.+)$", re.MULTILINE)
CANDIDATES = re.compile(r"^- answers to choose from \((\d+)\): (.+)$", re.MULTILINE)
ITEM = re.compile(r"`([^`]+)`|([^,`\s][^,`]*)")


@dataclass(frozen=True)
class CardTask:
    """What the card of a prompt says of its task.

    Args:
        question (`str`, *optional*): What was asked of every image, if it was the same of all.
        candidates (`tuple[str, ...]`): Answers to choose from, those that the card names: at most 20.
        of (`int`): How many there were.
    """

    question: str | None
    candidates: tuple[str, ...]
    of: int


def find_prompts(given: Sequence[str], runs: Path | None) -> list[str]:
    """The prompts given at launch, and the folders in `runs` and one level below that hold one."""
    found = []
    for file in () if runs is None else [*runs.glob(f"*/{CONFIG_NAME}"), *runs.glob(f"*/*/{CONFIG_NAME}")]:
        if not (file.parent / WEIGHTS_NAME).is_file():
            continue
        try:
            read_config(file)
        except (ValueError, OSError):
            # Models and checkpoints of other kinds lie there too.
            continue
        found.append(file.parent)
    return list(dict.fromkeys([*given, *sorted(map(str, found))]))[: max(MOST, len(given))]


@functools.cache
def typed_cache() -> Path:
    """The cache of prompts whose Hub id was typed, of this process alone. From the usual one, what was once loaded with
    a token would be given to anybody: a cached file is taken where the Hub refuses to give it."""
    folder = Path(tempfile.mkdtemp(prefix="transferable-vp-hub-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def load_named(name: str, **kwargs: Any) -> TransferableVisualPrompt:
    r"""
    Loads a prompt, whoever named it.

    Args:
        name (`str`): A folder or Hub id.
        kwargs: `token` and `cache_dir`, as in [`TransferableVisualPrompt.from_pretrained`].

    Raises:
        ValueError: If it is no prompt that can be used.
        OSError: If it is not there, or the Hub cannot be reached; in one sentence.
    """
    # Fetched first: nobody else waits for the Hub.
    _, commit = find_prompt(name, **kwargs)
    with LOADING:
        return TransferableVisualPrompt.from_pretrained(
            name, revision=commit, local_files_only=commit is not None, **kwargs
        )


def load_prompt(name: str | None, listed: Sequence[str]) -> TransferableVisualPrompt:
    r"""
    Loads a prompt that a visitor chose or typed.

    Args:
        name (`str`): One of `listed`, or any Hub id. No other folder: what lies on the machine is not the visitor's.
        listed (`Sequence[str]`): What may be chosen.

    Raises:
        ValueError: If it is neither, or no prompt that can be used.
        OSError: If it is not there, or the Hub cannot be reached; in one sentence.
    """
    name = (name or "").strip()
    if not name:
        raise ValueError("No prompt is chosen: choose one, write a Hub id, or learn one in the tab “Learn one”.")
    if name in listed:
        return load_named(name)
    if not is_hub_id(name):
        raise ValueError(
            f"{plain(name, 80)} is neither one of the prompts listed nor a Hub id such as org/tvp-cifar10."
        )
    # Without the token of whoever runs the app: a visitor must not see their private repositories.
    return load_named(name, token=False, cache_dir=typed_cache())


def card_of(prompt: TransferableVisualPrompt, token: bool | None = None) -> str:
    r"""
    The text of the prompt's card, empty if it has none.

    Args:
        prompt ([`TransferableVisualPrompt`]): The prompt.
        token (`bool`, *optional*): `False` for one whose Hub id a visitor typed.

    Raises:
        OSError: If the Hub has one and does not give it; in one sentence.
    """
    name, commit = prompt.config.name_or_path, getattr(prompt.config, "_commit_hash", None)
    if commit is None:
        path = Path(name) / CARD_NAME
        if not path.is_file():
            return ""
        check_size(path.stat().st_size, MAX_CARD_BYTES, CARD_NAME, name)
    else:
        try:
            place: dict[str, Any] = {"repo_id": name, "filename": CARD_NAME, "revision": commit, "token": token,
                                     "cache_dir": typed_cache() if token is False else None}  # fmt: skip
            found: Any = huggingface_hub.hf_hub_download(**place, dry_run=True)
            check_size(found.file_size, MAX_CARD_BYTES, CARD_NAME, name)
            path = Path(str(huggingface_hub.hf_hub_download(**place)))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise explain(error, name, "load the card of") from error
            return ""
        except CLIENT_ERRORS as error:
            raise explain(error, name, "load the card of") from error
    return path.read_text(encoding="utf-8", errors="replace")


def task_of(card: str) -> CardTask | None:
    """What a card of ours says of the task, or `None` if it says nothing. Anybody may have edited it."""
    section = sections_of(split_card(card)).get("task")
    if section is None:
        return None
    question, listed = QUESTION.search(section.body), CANDIDATES.search(section.body)
    # A name that code type cannot hold stands there letter by letter.
    names = [html.unescape(a or b).strip() for a, b in ITEM.findall(listed[2].removesuffix(", …"))] if listed else []
    asked = html.unescape(question[1].strip().strip("`")) if question else ""
    if not names and asked in ("", "one per image"):
        return None
    return CardTask(None if asked in ("", "one per image") else asked, tuple(names), int(listed[1]) if listed else 0)


def describe(prompt: TransferableVisualPrompt) -> str:
    """What a prompt is, in one sentence."""
    config = prompt.config
    size = f"{config.canvas_size} × {config.canvas_size} pixels"
    around = (
        "around the picture at its own size"
        if config.canvas == "native"
        else f"with the picture shrunk to {config.content_size}"
    )
    kind = {"border": f"a border of {config.border_size}", "overlay": "an overlay",
            "both": f"a border of {config.border_size} and an overlay"}[config.layout]  # fmt: skip
    return f"{size}, {kind}, {around}"


def choices(prompts: Sequence[str], mine: Sequence[str]) -> list[tuple[str, str]]:
    """Labels and values of the prompts to choose from: those of a visitor's own first, by number."""
    own = [(f"learned here, {number}", folder) for number, folder in enumerate(mine, 1)]
    return [*reversed(own), *((name, name) for name in prompts)]
