"""The models of the app, shared by all visitors."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ..bundled import bundled
from ..surrogate import Surrogate, model_name


# The judge of TSE, which answers nothing.
JUDGE = "clip"

# transformers 5.23 replaces `PreTrainedModel.tie_weights`, `torch.linspace` and the default dtype of the whole process
# while it makes a model, and puts back what it found: two at once would leave the replacements there for good.
LOADING = threading.Lock()


class Models:
    r"""
    Frozen models by name, each loaded when it is first asked for. They are only read, one visitor at a time: a surrogate
    keeps notes while it runs (the features it saw, the texts it has tokenised), which two threads would mix up.

    Args:
        paths (`Sequence[str]`): Folders or Hub ids.

    Raises:
        ValueError: If two of them end in the same name.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = {model_name(path): str(path) for path in paths}
        if len(self.paths) < len(paths):
            names = [model_name(path) for path in paths]
            double = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"Two models are called {double}, after the last part of their path: rename a folder.")
        self._locks = {name: threading.Lock() for name in self.paths}
        self._loaded: dict[str, Surrogate] = {}

    @property
    def names(self) -> list[str]:
        """`list[str]`: In the order given."""
        return list(self.paths)

    @contextmanager
    def use(self, name: str) -> Iterator[Surrogate]:
        """The model of that name, for this thread alone until the block ends."""
        with self._locks[name]:
            if name not in self._loaded:
                self._loaded[name] = self.load(name)
            yield self._loaded[name]

    def load(self, name: str) -> Surrogate:
        """A copy of the model, shared with nobody; on an accelerator if there is one and the model is not tiny."""
        with LOADING:
            surrogate = Surrogate.from_pretrained(self.paths[name], dtype="auto")
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if device is not None and self.paths[name] not in zoo_models():
            surrogate.to(device)
        return surrogate


def zoo_models() -> list[str]:
    """Folders of the zoo's members that answer questions."""
    folders = sorted(Path(file).parent for file in bundled("zoo").glob("*/config.json"))
    # In the README's order: those that the demo measures first.
    first = ["llava", "idefics3", "paligemma", "instructblip"]
    members = [folder for folder in folders if folder.name != JUDGE]
    return [
        str(folder) for folder in sorted(members, key=lambda f: (f.name not in first, (*first, f.name).index(f.name)))
    ]
