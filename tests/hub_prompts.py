"""What the tests of sharing have in common: a prompt, what the Hub on loopback holds of it, and a clock that runs."""

from __future__ import annotations

import hashlib
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hub_server import HubServer
from huggingface_hub import file_download
from huggingface_hub.utils import _http

from transferable_vp import TransferableVisualPrompt
from transferable_vp.hub import SHARED_FILES


SMALL = {"canvas_size": 32, "border_size": 6}
ID = "org/tvp-digits"
# The first is there in every repository.
OURS = {".gitattributes", *SHARED_FILES}


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lets the client wait no time between attempts, and tells how long it would have: its clock is set, not its code."""
    waited: list[float] = []
    clock = SimpleNamespace(**vars(time) | {"sleep": waited.append})
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", clock)
    return waited


def files_of(hub: HubServer, revision: str = "main", name: str = ID) -> dict[str, bytes]:
    return hub.repos["model", name].files(revision)


def load(name: Any = ID, **kwargs: Any) -> TransferableVisualPrompt:
    return TransferableVisualPrompt.from_pretrained(name, **kwargs)


def asked(hub: HubServer, method: str = "") -> list[str]:
    return [f"{request.method} {request.route}" for request in hub.requests if method in ("", request.method)]


def same(one: TransferableVisualPrompt, other: TransferableVisualPrompt) -> bool:
    return torch.equal(one.delta, other.delta)


def put_there(hub: HubServer, files: dict[str, bytes | str], name: str = ID) -> None:
    """A repository with files that no push of ours would make."""
    hub.add_repo(name, files)
    for data in files.values():
        content = data.encode() if isinstance(data, str) else data
        hub.keep(hashlib.sha256(content).hexdigest(), content)
