"""The notebooks under docs/notebooks run from top to bottom, and are kept without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient


FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# What a run of each prints, in this order: the last thing that can only be there if all before it worked.
PRINTED = {
    "own_data": ["500 pictures; candidates: blue, brown", "best: checkpoint-", "held-out models improved", "10 files"],
    "sharing": ["'prompt.png'", "org/tvp-green-light - "],
    "tour": ["What color is it?", "'prompt.png'", "prompted: ", "held-out models improved"],
}
# The number of pictures that are shown.
SHOWN = {"own_data": 4, "sharing": 1, "tour": 6}


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(PRINTED) == list(SHOWN)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")


@pytest.mark.parametrize(
    "path",
    # Sharing is the quickest, and the one that touches most of the package: it runs with every change.
    [pytest.param(path, marks=[] if path.stem == "sharing" else pytest.mark.slow, id=path.stem) for path in NOTEBOOKS],
)
def test_a_notebook_runs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    # An error in a cell is raised here, with the cell.
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "\n".join(output.get("text", output.get("data", {}).get("text/plain", "")) for output in outputs)
    position = 0
    for text in PRINTED[path.stem]:
        position = printed.index(text, position)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == SHOWN[path.stem]
    if path.stem == "sharing":
        assert "training_args" not in printed
