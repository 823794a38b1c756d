"""How Sphinx builds the site: `make docs` writes it to build/site."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any


DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]
# Before anything of Hugging Face is imported: a build needs no network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from docstrings import to_rst  # noqa: E402
from docutils import nodes  # noqa: E402
from docutils.parsers.rst import Directive  # noqa: E402
from latex2mathml.converter import convert  # noqa: E402


PACKAGE = (ROOT / "transferable_vp" / "__init__.py").read_text(encoding="utf-8")
EXPORTED = re.findall(r'^    "(\w+)",$', PACKAGE, re.MULTILINE)

project = "Transferable visual prompts"
author = "The transferable_vp contributors"
copyright = author
version = release = re.search(r'^__version__ = "([^"]+)"', PACKAGE, re.MULTILINE)[1]  # type: ignore[index]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["results", "notebooks"]
nitpicky = True
# Types of other packages: their pages are not here, and asking for their inventories would need a network.
nitpick_ignore_regex = [
    ("py:.*", r"(?!transferable_vp\b|\.).*"),
    ("py:.*", r"transferable_vp\.modeling\.ProcessorType"),
]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

autodoc_default_options = {"members": True, "member-order": "bysource", "exclude-members": "config_class"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# lmms-eval pins other releases of what is used here (docs/harnesses.md), so its classes cannot be imported beside it.
autodoc_mock_imports = ["lmms_eval"]
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # in place of "Variables"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"Transferable visual prompts {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_math_renderer = "mathml"

# Pages of the repository that the site has too, by the name it has them under.
PAGES = {"README.md": "index", "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog", "zoo/README.md": "zoo"}


def repository_links(app: Any, name: str, source: list[str]) -> None:
    """Points links that leave docs/, which GitHub follows, to what the site has of it: a page, or a module's source.
    Other files become downloads."""
    up = "../" * name.count("/")

    def replaced(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        path = os.path.relpath(os.path.normpath((DOCS / name).parent / target), ROOT)
        if path in PAGES:
            return f"[{text}]({up}{PAGES[path]}.md{anchor or ''})"
        if path.startswith("transferable_vp/") and path.endswith(".py"):
            module = path.removesuffix(".py").removesuffix("/__init__")
            return f'<a href="{up}_modules/{module}.html">{text}</a>'  # written by sphinx.ext.viewcode
        return match[0]

    source[0] = re.sub(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]+)?\)", replaced, source[0])


def included_links(app: Any, path: Path, parent: str, content: list[str]) -> None:
    """The same for links of a file of the repository that a page of the site consists of."""
    folder = (DOCS / path).resolve().parent

    def replaced(match: re.Match[str]) -> str:
        found = os.path.relpath(os.path.normpath(folder / match[1]), ROOT)
        page = PAGES.get(found, found.removeprefix("docs/").removesuffix(".md") if found.startswith("docs/") else None)
        return f"]({page}.md{match[2] or ''})" if page else match[0]

    content[0] = re.sub(r"\]\((?!\w+:)([^)#\s]+\.md)(#[^)\s]+)?\)", replaced, content[0])


class ProgramHelp(Directive):
    """What `--help` of every command prints, a section each."""

    def run(self) -> list[nodes.Node]:
        """Makes the sections."""
        from transformers import HfArgumentParser

        from transferable_vp.bundled import import_bundled
        from transferable_vp.cli import make_parser

        os.environ["COLUMNS"] = "92"  # argparse's width, whatever terminal the build runs in
        commands = next(a.choices for a in make_parser()._actions if isinstance(a.choices, dict))
        train = HfArgumentParser((import_bundled("examples/train.py").ScriptArguments,), prog="transferable-vp train")
        texts = {name: (train if name == "train" else parser).format_help() for name, parser in commands.items()}
        return [self.section(name, text) for name, text in texts.items()]

    def section(self, name: str, text: str) -> nodes.section:
        """One command."""
        title = f"transferable-vp {name}"
        parts = nodes.title(title, title), nodes.literal_block(text, text, language="text")
        return nodes.section("", *parts, ids=[title.replace(" ", "-")], names=[title])


def docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Markdown of docstrings, before napoleon reads their sections. A property's type stands in its signature too."""
    if what == "property" and lines:
        lines[0] = re.sub(r"^`[^`]+`(?: or `None`)?: (.)", lambda found: found[1].upper(), lines[0])
    lines[:] = to_rst(lines, EXPORTED)


def skipped(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out the fields of named tuples, which the docstring of the class explains."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def signature(app: Any, what: str, name: str, obj: Any, options: Any, given: str | None, returned: Any) -> Any:
    """Leaves out a signature of more than a hundred arguments, which are those of `transformers.TrainingArguments`."""
    return (
        ("(output_dir=None, **kwargs)", returned)
        if name.endswith(".TransferableVisualPromptTrainingArguments")
        else None
    )


def mathml(translator: Any, node: nodes.Element) -> None:
    """Formulas in the browser's own markup: no script of somebody else's server, and they are there offline."""
    display = "inline" if isinstance(node, nodes.math) else "block"
    formula = convert(node.astext(), display=display)
    translator.body.append(formula if display == "inline" else f'<div class="math">{formula}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Connects the functions above."""
    app.add_directive("program-help", ProgramHelp)
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    app.connect("source-read", repository_links)
    app.connect("include-read", included_links)
    app.connect("autodoc-process-docstring", docstring, priority=400)  # napoleon has 500
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skipped)
