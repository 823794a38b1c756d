"""Docstrings in the style of Hugging Face, made into what Sphinx reads: Markdown in, reStructuredText out.

Sections (`Args:`, `Returns:`, ...) are left to `sphinx.ext.napoleon`, which runs after this.
"""

from __future__ import annotations

import re
from collections.abc import Collection


FENCE = re.compile(r"^( *)```(\w*)\s*$")
ITEM = re.compile(r"^( *)(- |\d+\. )")
# In this order: a reference, a link, code. Code may go over one line's end, not over a paragraph's.
INLINE = re.compile(r"\[`(~?)([\w.]+)`\]|\[([^\]`]+)\]\((https?://[^)\s]+)\)|`([^`\n]+(?:\n[^`\n]+)?)`")


def reference(name: str, short: bool, exported: Collection[str]) -> str:
    """A cross reference to `name`: to the package's own where it exports it, else to whatever ends in that name."""
    if name.startswith("transformers."):
        return f"``{name.removeprefix('transformers.')}``"  # no inventory of theirs is read, so that builds need no network
    target = f"transferable_vp.{name}" if name.split(".")[0] in exported else f".{name}"
    return f":py:obj:`{'~' if short else ''}{target}`" if short else f":py:obj:`{name} <{target}>`"


def inline(text: str, exported: Collection[str]) -> str:
    """References, links and code of a text without code blocks."""

    def replaced(match: re.Match[str]) -> str:
        tilde, name, title, url, code = match.groups()
        made = (
            reference(name, bool(tilde), exported)
            if name
            else f"`{title} <{url}>`__"
            if url
            else f"``{code.strip()}``"
        )
        # Markup has to end at the end of a word: `float`s
        return made + ("\\ " if re.match(r"\w", text[match.end() : match.end() + 1]) else "")

    return INLINE.sub(replaced, text)


def to_rst(lines: list[str], exported: Collection[str] = ()) -> list[str]:
    """
    A docstring as reStructuredText.

    Args:
        lines (`list[str]`): The docstring, without common indentation.
        exported (`Collection[str]`, *optional*): Names that are documented as the package's own.

    Returns:
        `list[str]`: The lines, with fences as code blocks, links and single backticks in the other markup, and the blank
        line that a list needs before it.
    """
    made: list[str] = []
    text: list[str] = []
    code: list[str] = []
    opened: re.Match[str] | None = None

    def flush() -> None:
        made.extend(inline("\n".join(text), exported).split("\n") if text else [])
        text.clear()

    for line in lines:
        fence = FENCE.match(line)
        if opened and fence:
            made += _block(code, opened[1], opened[2])
            opened, code = None, []
        elif opened:
            code.append(line)
        elif fence:
            flush()
            opened = fence
        else:
            item = ITEM.match(line)
            before = text[-1] if text else ""
            if item and before.strip() and not before.startswith((item[0], item[1] + " ")):
                text.append("")
            text.append(line)
    flush()
    return made


def _block(code: list[str], indent: str, language: str) -> list[str]:
    first = next((line.strip() for line in code if line.strip()), "")
    language = "pycon" if first.startswith(">>>") else language or "text"
    body = [f"   {line}" if line.strip() else "" for line in code]
    return ["", f"{indent}.. code-block:: {language}", "", *body, ""]
