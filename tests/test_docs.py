"""The documentation: its code blocks run, the site builds without a warning and its links lead somewhere, and every
public name is in the reference.

For writers of pages. A page is run from top to bottom in a new folder that has links `zoo/`, `examples/` and `docs/` to
the repository's, `photo.jpg` (320 x 240), `my_images/` (folders red, green, blue and yellow of eight pictures each) and
`runs/demo/prompt` (64 pixels, a border of 8, nothing learned). `max_steps`, `n_test` and `--limit` become 2 here. The
rest stands in `docs_pages.py`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import datasets
import pytest
from docs_pages import ROOT, Block, check, check_command, commands, environment, make_folder, read_blocks, run
from hub_server import hub_environment

import transferable_vp


DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md"))
# On the site by inclusion, or the first page that anybody sees. Their unmarked blocks are checked, and not run.
CHECKED = ("CONTRIBUTING.md", "README.md", "zoo/README.md")
# Pages that need a Hub: a server on loopback.
HUB_PAGES = ("docs/sharing.md",)
# Pages left to `make test-slow`, and why.
SLOW = {
    "docs/sharing.md": "it starts six programs, which import torch each; test_cli_hub.py has its commands in one process",
    "docs/how_to/big_surrogate.md": "its training is that of several_sources.md with other flags",
}
PUBLIC_MODULES = ("app", "report", "pictures", "saliency", "history", "corruptions", "tasks", "metrics", "metrics.answers", "metrics.intervals",
                  "integrations", "integrations.vlmevalkit", "models", "models.convert", "paper")  # fmt: skip


def _pages() -> list[Any]:
    marks = {page: [pytest.mark.slow] if page in SLOW else [] for page in PAGES}
    return [pytest.param(page, marks=marks[page]) for page in PAGES if _run_blocks(page)]


def _run_blocks(page: str) -> list[Block]:
    blocks = read_blocks((ROOT / page).read_text(encoding="utf-8"))
    return [block for block in blocks if block.language in ("python", "bash") and not block.not_run]


# Code blocks


@pytest.mark.parametrize("page", _pages())
def test_the_code_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    make_folder(folder)
    env = environment(folder)
    # Read when `datasets` was imported, so the variable comes too late for this process.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "hf_home" / "datasets")
    if page in HUB_PAGES:
        hub = request.getfixturevalue("hub")
        env |= hub_environment(hub, tmp_path / "hf_home")
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in _run_blocks(page):
        run(block, ROOT / page, namespace, env)


@pytest.mark.parametrize("page", [*PAGES, *CHECKED])
def test_code_that_is_not_run_is_right_as_far_as_can_be_told(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run_elsewhere = [] if page in CHECKED else _run_blocks(page)
    for block in read_blocks((ROOT / page).read_text(encoding="utf-8")):
        if block not in run_elsewhere:
            check(block)


def test_blocks_are_found() -> None:
    text = "```python\na\n```\n\n<!-- not run: a GPU -->\n```bash\nb\n```\n- item\n  ```json\n  {}\n  ```\n```{toctree}\nc\n```\n"
    found = read_blocks(text)
    assert [(block.language, block.code, block.not_run) for block in found] == [
        ("python", "a\n", None), ("bash", "b\n", "a GPU"), ("json", "{}\n", None)]  # fmt: skip
    with pytest.raises(ValueError, match="line 1 opens is not closed"):
        read_blocks("```python\na\n")


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "def f(:\n"),
        ("python", "from transferable_vp import NoSuchName\n"),
        ("bash", "transferable-vp evaluate --prompt a --no_such_flag b\n"),
        ("bash", "FOO=1 accelerate launch examples/train.py --model a --no_such_flag b\n"),
        ("bash", "python benchmarks/scoring.py \\\n    --no_such_flag\n"),
        ("yaml", "a: [1\n"),
        ("json", "{,}\n"),
        ("sh", "true\n"),
    ],
)
def test_wrong_code_is_noticed(language: str, code: str) -> None:
    with pytest.raises(Exception, match=r"."):
        check(Block(language, code, 1, "a reason"))


def test_a_failing_block_names_its_page(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"docs/a\.md:7 ended with 3:\n.*\nsaid"):
        run(Block("bash", "echo said >&2\nexit 3\n", 7, None), Path("docs/a.md"), {}, dict(os.environ))
    with pytest.raises(AssertionError, match="Expected"):
        run(Block("python", ">>> 1 + 1\n3\n", 7, None), Path("docs/a.md"), {}, {})


def test_commands_are_found_behind_launchers_and_in_pipes() -> None:
    code = "A=1 accelerate launch --num_processes 2 examples/train.py --model a \\\n  --seed 1 | tee log && transferable-vp env\n"
    assert commands(code) == [["examples/train.py", "--model", "a", "--seed", "1"], ["transferable-vp", "env"]]
    loop = "for s in 1 2; do\n  python zoo/train.py --zoo_seed $s\ndone"
    assert commands(loop) == [["zoo/train.py", "--zoo_seed", "1"]]
    assert commands("cp examples/train.py . # transferable-vp nothing\npip install transferable-vp\n") == []
    check_command(["transferable-vp", "apply", "--help"])


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Building is the test that it has no warnings."""
    # `make compat` has no extra `docs`.
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    built = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html", "-d",
                           str(built / "doctrees"), str(DOCS), str(built / "html")],
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return (built / "html").resolve()


class _Page(HTMLParser):
    """Ids, links and images of a page of HTML."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.images: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := given.get(name))}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"] or "")
        if tag == "img":
            self.images.add(given.get("src") or "")


@pytest.fixture(scope="module")
def html(site: Path) -> dict[Path, _Page]:
    """Every page but the sources that `sphinx.ext.viewcode` 9.0 adds: it links back from these by one module name a
    file, which is wrong for names that the package exports."""
    return {path: _Page(path) for path in site.rglob("*.html") if "_modules" not in path.parts}


def test_every_page_is_on_the_site(site: Path) -> None:
    missing = [page for page in PAGES if not (site / Path(page).relative_to("docs").with_suffix(".html")).is_file()]
    assert not missing


def test_links_and_images_lead_somewhere(site: Path, html: dict[Path, _Page]) -> None:
    broken = []
    for path, page in html.items():
        for link in sorted(page.links | page.images):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in html and anchor not in html[target].ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken


def test_every_page_is_reached_from_the_first(site: Path, html: dict[Path, _Page]) -> None:
    reached, waiting = set(), [site / "index.html"]
    while waiting:
        path = waiting.pop()
        reached.add(path)
        for link in html[path].links:
            target = (path.parent / unquote(urlsplit(link).path)).resolve()
            if not urlsplit(link).scheme and target in html and target not in reached:
                waiting.append(target)
    by_the_theme = {site / f"{name}.html" for name in ("search", "genindex", "py-modindex")}
    assert set(html) - by_the_theme <= reached


def test_no_markup_is_left_over(html: dict[Path, _Page]) -> None:
    """What a docstring or a page had as markup would be read as text if it were not understood."""
    from bs4 import BeautifulSoup  # furo needs it

    left = []
    for path in sorted(html):
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for code in page.select("pre, code, script, style, math, dt.sig"):
            code.decompose()
        left += [f"{path.name}: {line.strip()[:120]}" for line in page.get_text().splitlines()
                 if any(mark in line for mark in ("`", "](", ":py:"))]  # fmt: skip
    assert not left


# The reference


def documented(site: Path) -> set[str]:
    """The Python names that the reference explains."""
    data = (site / "objects.inv").read_bytes()
    # Four lines of header, then one line a name, compressed.
    lines = zlib.decompress(data.split(b"\n", 4)[4]).decode().splitlines()
    return {line.split(" ")[0] for line in lines if line.split(" ")[1].startswith("py:")}


def public_names(module: Any) -> list[str]:
    """What a module offers: its `__all__`, else the functions and classes that it defines without an underscore."""
    if hasattr(module, "__all__"):
        names = list(module.__all__)
    else:
        names = [name for name, value in vars(module).items()
                 if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__]  # fmt: skip
    return [name for name in names if inspect.isclass(value := getattr(module, name)) or inspect.isfunction(value)]


@pytest.mark.parametrize("name", ["", *PUBLIC_MODULES])
def test_every_public_name_is_in_the_reference(name: str, site: Path) -> None:
    module = importlib.import_module(f"transferable_vp.{name}".rstrip("."))
    names = public_names(module)
    assert names
    # What the package exports is explained under that name only.
    places = [f"transferable_vp.{n}" if n in transferable_vp.__all__ else f"{module.__name__}.{n}" for n in names]
    assert set(places) <= documented(site)


def _to_rst(text: str) -> str:
    spec = importlib.util.spec_from_file_location("docstrings", DOCS / "docstrings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return "\n".join(module.to_rst(text.split("\n"), {"Task", "Surrogate"}))


@pytest.mark.parametrize(
    ("markdown", "rst"),
    [
        ("A `float` and `a\nb`.", "A ``float`` and ``a\nb``."),
        ("`dict`s", "``dict``\\ s"),
        ("joined by ` + `", "joined by ``+``"),
        ("see [`Task`]", "see :py:obj:`Task <transferable_vp.Task>`"),
        ("see [`~Surrogate.forward`]", "see :py:obj:`~transferable_vp.Surrogate.forward`"),
        ("see [`~optim.step`]", "see :py:obj:`~.optim.step`"),
        ("a [`~transformers.Trainer`]", "a ``Trainer``"),
        ("[POPE](https://a.b/c) says", "`POPE <https://a.b/c>`__ says"),
        ("x ([`Task`], *optional*): y", "x (:py:obj:`Task <transferable_vp.Task>`, *optional*): y"),
        ("Two:\n- a\n  b\n- c", "Two:\n\n- a\n  b\n- c"),
        ("```python\n>>> `1`\n```", "\n.. code-block:: pycon\n\n   >>> `1`\n"),
        ("  ```yaml\n  a: 1\n  ```", "\n  .. code-block:: yaml\n\n     a: 1\n"),
    ],
)
def test_docstrings_become_what_sphinx_reads(markdown: str, rst: str) -> None:
    assert _to_rst(markdown) == rst
