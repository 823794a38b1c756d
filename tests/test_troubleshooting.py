"""docs/troubleshooting.md: every error text that it explains is still one of the source."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
# What is specific to a case: `{path}` on the page, an expression of an f-string or a `%s` of a log in the source.
PLACEHOLDER = re.compile(r"\{[^{}]*\}|%[sdr]")
OTHERS = "From other libraries"


def sections() -> dict[str, dict[str, str]]:
    """What the page says, by heading of the second level and by text of an error."""
    found: dict[str, dict[str, str]] = {}
    for part in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title, *entries = re.split(r"^### ", part, flags=re.MULTILINE)
        texts = {}
        for entry in entries:
            heading, _, body = entry.partition("\n")
            span = re.fullmatch(r"(`+)(.+)\1", heading)
            assert span, f"The heading is no literal text: {heading}"
            assert span[2].strip() not in texts, f"The page has this twice: {heading}"
            texts[span[2].strip()] = body
        found[title.splitlines()[0]] = texts
    return found


ENTRIES = {text: body for title, texts in sections().items() if title != OTHERS for text, body in texts.items()}


def without_specifics(text: str) -> str:
    return PLACEHOLDER.sub("{}", text)


@cache
def source_texts() -> tuple[str, ...]:
    """Every text of the package and of examples/train.py, with `{}` in the place of what is put in."""
    texts = []
    for path in [*(ROOT / "transferable_vp").rglob("*.py"), ROOT / "examples" / "train.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
                texts.append(without_specifics("".join(parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(without_specifics(node.value))
    return tuple(texts)


def is_in_source(text: str) -> bool:
    return any(without_specifics(text) in known for known in source_texts())


@pytest.mark.parametrize("text", ENTRIES)
def test_text_is_in_the_source(text: str) -> None:
    # A few words would be found somewhere, whatever became of the message.
    assert len(without_specifics(text).replace("{}", "")) >= 20, "too short to be told from any other text"
    assert is_in_source(text), f"No message of the package reads like this any more: {text}"


def test_another_wording_is_not_found() -> None:
    text = "There is no dataset at {path}: no such file or folder."
    assert is_in_source(text)
    assert not is_in_source(text.replace("no such", "not a"))
    assert not is_in_source(text.replace("{path}", "the path"))


def test_every_entry_says_why_and_what_to_do() -> None:
    for text, body in ENTRIES.items():
        assert re.search(r"^\*\*Why\.\*\* \S.*^\*\*Do\.\*\* \S", body, re.MULTILINE | re.DOTALL), text


def test_the_page_has_what_users_meet() -> None:
    assert len(ENTRIES) >= 30
