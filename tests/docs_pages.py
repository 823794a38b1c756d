"""Code blocks of the documentation: found, prepared for, run, and checked where they cannot be run.

How a page says what is to be done with a block:

- ```python and ```bash blocks are run from top to bottom, in one folder; Python blocks share one namespace, and one that
  begins with `>>>` is a doctest.
- `<!-- not run: REASON -->` on the line before a block keeps it from being run. Python must then compile, and what it
  imports from the package must exist; a command of this repository must be accepted by its own parser.
- yaml and json must parse. Other blocks are text.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import doctest
import importlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image, ImageDraw
from transformers import HfArgumentParser

from transferable_vp import TransferableVisualPrompt, TransferableVisualPromptConfig
from transferable_vp.bundled import import_bundled
from transferable_vp.cli import main


ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = {"", "python", "bash", "text", "console", "json", "jsonl", "yaml", "bibtex", "html", "markdown", "csv"}
FENCE = re.compile(r"^( *)(```+)(.*)$")
NOT_RUN = re.compile(r"^\s*<!-- not run: (\S.*) -->$")
# A page says what a user would want; a test has no such time.
SHORTER = re.compile(r"(--(?:max_steps|n_test|limit)[ =]|\b(?:max_steps|n_test)=)\d+")


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    code: str
    line: int
    not_run: str | None


def read_blocks(text: str) -> list[Block]:
    """The fenced blocks of Markdown, without directives of MyST."""
    blocks: list[Block] = []
    opened: tuple[str, str, str, int, str | None] | None = None
    code: list[str] = []
    before = ""
    for number, line in enumerate(text.splitlines(), start=1):
        fence = FENCE.match(line)
        if opened is None and fence:
            reason = NOT_RUN.match(before)
            opened, code = (fence[1], fence[2], fence[3].strip(), number, reason and reason[1]), []
        elif opened is not None and fence and fence[2] == opened[1] and not fence[3].strip():
            if not opened[2].startswith("{"):
                blocks.append(Block(opened[2], "\n".join(code) + "\n", opened[3], opened[4]))
            opened = None
        elif opened is not None:
            code.append(line.removeprefix(opened[0]))
        before = line
    if opened is not None:
        raise ValueError(f"The block that line {opened[3]} opens is not closed.")
    return blocks


def make_folder(folder: Path) -> None:
    """What every page finds where it is run: see the note for writers in `test_docs.py`."""
    for name in ("zoo", "examples", "docs"):
        (folder / name).symlink_to(ROOT / name)
    picture = Image.new("RGB", (320, 240), (90, 140, 200))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 160, 320, 240), fill=(60, 120, 50))
    draw.ellipse((110, 70, 210, 170), fill=(200, 40, 40))
    picture.save(folder / "photo.jpg")
    world: Any = import_bundled("zoo/world.py")
    rng, white = np.random.default_rng(0), np.ones(3, np.float32)
    for color in ("red", "green", "blue", "yellow"):
        (folder / "my_images" / color).mkdir(parents=True)
        for index in range(8):
            content = world.draw_content(rng, color, world.SHAPES[index % len(world.SHAPES)], white)
            image = Image.fromarray((content * 255).round().astype(np.uint8))
            image.save(folder / "my_images" / color / f"{index}.png")
    config = TransferableVisualPromptConfig(canvas_size=64, border_size=8)
    TransferableVisualPrompt(config).save_pretrained(folder / "runs/demo/prompt")


def environment(folder: Path) -> dict[str, str]:
    """The environment of commands: this interpreter's programs first, no network, caches of its own, one thread."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(folder / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }


def run(block: Block, page: Path, namespace: dict[str, Any], env: dict[str, str]) -> None:
    """Runs a block in the working folder. What goes wrong names the page and its line."""
    code = SHORTER.sub(r"\g<1>2", block.code)
    where = f"{page}:{block.line}"
    if block.language == "bash":
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], env=env, capture_output=True, text=True,
                              timeout=600)  # fmt: skip
        if done.returncode:
            raise AssertionError(
                f"{where} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            )
    elif code.lstrip().startswith(">>>"):
        test = doctest.DocTestParser().get_doctest(code, namespace, where, str(page), block.line)
        report = io.StringIO()
        if doctest.DocTestRunner(verbose=False).run(test, out=report.write, clear_globs=False).failed:
            raise AssertionError(report.getvalue())
        namespace.update(test.globs)
    else:
        # As many lines before it as on the page: a traceback then shows the page's own.
        exec(compile("\n" * block.line + code, str(page), "exec"), namespace)


def check(block: Block) -> None:
    """What can be said of a block without running it."""
    if block.language not in LANGUAGES:
        raise AssertionError(f"line {block.line}: {block.language!r} is none of {sorted(LANGUAGES)}")
    if block.language == "python":
        check_python(block.code)
    elif block.language == "bash":
        for command in commands(block.code):
            check_command(command)
    elif block.language == "yaml":
        yaml.compose(block.code)
    elif block.language == "json":
        json.loads(block.code)


def check_python(code: str) -> None:
    """Python that compiles, and whose imports from the package exist."""
    if code.lstrip().startswith(">>>"):
        code = "".join(example.source for example in doctest.DocTestParser().get_examples(code))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transferable_vp":
            module = importlib.import_module(node.module or "")
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{node.module} has no {', '.join(missing)}"


def commands(code: str) -> list[list[str]]:
    """The commands of a script as lists of words, from this repository's program on. A variable of the shell is a 1."""
    found = []
    for line in re.sub(r"\\\n", " ", code).splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set(";|&()<>"):
                found.append(command)
                command = []
            else:
                command.append(re.sub(r"\$\{?\w+\}?", "1", word))
    return [ours for command in found if (ours := _from_program(command))]


def _from_program(words: list[str]) -> list[str]:
    while words and (re.match(r"\w+=", words[0]) or words[0] in ("do", "then", "time")):
        words = words[1:]
    starter = Path(words[0]).name if words else ""
    for index, word in enumerate(words):
        rest = [argument for argument in words[index + 1 :] if argument != "..."]
        if starter == word == "transferable-vp" or (index and word == "transferable_vp.cli"):
            return ["transferable-vp", *rest]
        ours = (
            word.startswith(("examples/", "benchmarks/", "zoo/")) and word.endswith(".py") and (ROOT / word).is_file()
        )
        if ours and (index == 0 or starter.startswith(("python", "accelerate", "torchrun"))):
            return [word, *rest]
    return []


class _Accepted(BaseException):
    """The program took its arguments, and is not to go on."""


@contextlib.contextmanager
def _only_parsing(argv: list[str]) -> Iterator[None]:
    """Programs stop as soon as their parser has taken the arguments."""
    given = sys.argv
    kept = {argparse.ArgumentParser: "parse_args", HfArgumentParser: "parse_args_into_dataclasses"}
    originals = {parser: getattr(parser, name) for parser, name in kept.items()}

    def stopping(original: Any) -> Any:
        def parse(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            raise _Accepted

        return parse

    folder, path, modules = ROOT / Path(argv[0]).parent, list(sys.path), set(sys.modules)
    try:
        sys.argv = argv
        sys.path.insert(0, str(folder))  # as for a script that is started
        for parser, name in kept.items():
            setattr(parser, name, stopping(originals[parser]))
        yield
    finally:
        sys.argv, sys.path[:] = given, path
        for name in set(sys.modules) - modules:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == folder:
                del sys.modules[name]  # a name such as `table` is another script's as well
        for parser, name in kept.items():
            setattr(parser, name, originals[parser])


def check_command(command: list[str]) -> None:
    """The program's own parser accepts the arguments. A script without one would run, so it is left alone."""
    if command[0] != "transferable-vp" and "parse_args" not in (ROOT / command[0]).read_text(encoding="utf-8"):
        return
    said = io.StringIO()
    try:
        with _only_parsing(command), contextlib.redirect_stderr(said):
            if command[0] == "transferable-vp":
                main(command[1:])
            else:
                runpy.run_path(str(ROOT / command[0]), run_name="__main__")
    except _Accepted:
        return
    except SystemExit as error:
        if error.code == 0 and {"--help", "--version"} & set(command):
            return
    raise AssertionError(f"{shlex.join(command)} is refused: {said.getvalue().strip()[-600:]}")
