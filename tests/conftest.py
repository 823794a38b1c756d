"""Fixtures that all tests share."""

from __future__ import annotations

import os


# Before transformers is imported: no test may need the Hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import copy
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from by_hand import T5, t5_pair
from hub_prompts import ID, without_waiting
from hub_server import HubServer, hub_environment
from huggingface_hub import close_session, constants, hf_api
from transformers import PreTrainedModel, ProcessorMixin

from transferable_vp import Surrogate, TransferableVisualPrompt
from transferable_vp.bundled import bundled


EXAMPLES = Path(__file__).parent.parent / "examples"
Pair = tuple[PreTrainedModel, ProcessorMixin]


@pytest.fixture(scope="session")
def shared_pair() -> Callable[[str], Pair]:
    """Gives model and processor of a family, built once a session. For tests that change neither."""
    return functools.cache(tiny.build)


@pytest.fixture
def pair(shared_pair: Callable[[str], Pair]) -> Callable[[str], Pair]:
    """Gives a test its own copy of model and processor of a family."""
    return lambda name: copy.deepcopy(shared_pair(name))


@pytest.fixture
def own_pair(pair: Callable[[str], Pair]) -> Callable[[str], Pair]:
    """Gives a test its own copy of model and processor of a family, T5 included."""
    return lambda family: copy.deepcopy(t5_pair()) if family == T5 else pair(family)


@pytest.fixture(scope="module")
def surrogates(shared_pair: Callable[[str], Pair]) -> Callable[[str], Surrogate]:
    """Gives the surrogate of a family, made once, of a copy of its own. For tests that do not change it."""
    return functools.cache(
        lambda family: Surrogate(*copy.deepcopy(t5_pair() if family == T5 else shared_pair(family)), name=family)
    )


@pytest.fixture
def surrogate(family: str, surrogates: Callable[[str], Surrogate]) -> Surrogate:
    """The surrogate of the family that a test is parametrised by."""
    return surrogates(family)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub on loopback, and the client of this process pointed to it as `someone`, with an empty cache.

    The client reads its environment when it is imported, so what it read is set anew; none of its code is replaced.
    The environment itself stays offline for whatever else is imported meanwhile and would keep what it reads then.
    """
    home = tmp_path / "hf_home"
    with HubServer() as server:
        server.add_user("someone", "hf_someone", orgs=("org",))
        server.add_user("other", "hf_other")
        for name in ("HF_TOKEN", "NO_PROXY"):
            monkeypatch.setenv(name, hub_environment(server, home)[name])
        files = {"HF_HUB_CACHE": "hub", "HF_ASSETS_CACHE": "assets", "HF_XET_CACHE": "xet", "HF_TOKEN_PATH": "token",
                 "HF_STORED_TOKENS_PATH": "stored_tokens", "AGENT_HARNESSES_PATH": "harnesses.json"}  # fmt: skip
        settings = {name: str(home / file) for name, file in files.items()} | {"HF_HOME": str(home)}
        settings |= {"ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        settings |= {"HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}"}
        settings |= {"HF_HUB_DISABLE_TELEMETRY": True}
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value, raising=False)  # not every release knows every one
        # Two clients that were made at import or at the first use keep the address they were made with.
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        close_session()
        yield server
        close_session()
    assert not server.errors, server.errors[0]


@pytest.fixture
def shared(hub: HubServer, prompt: TransferableVisualPrompt) -> TransferableVisualPrompt:
    """The test's own `prompt`, on the Hub."""
    prompt.push_to_hub(ID)
    hub.requests.clear()
    return prompt


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have waited between attempts."""
    return without_waiting(monkeypatch)


@pytest.fixture(scope="module")
def claims() -> Iterator[SimpleNamespace]:
    """The modules of examples/claims/, and the script, imported as the script imports them."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        modules = {path.stem: importlib.import_module(f"claims.{path.stem}") for path in EXAMPLES.glob("claims/*.py")}
        yield SimpleNamespace(**modules, script=importlib.import_module("reproduce_claims"))
    finally:
        sys.path.remove(str(EXAMPLES))
        for name in [
            name for name in sys.modules if name.split(".")[0] in ("claims", "baselines", "reproduce_claims")
        ]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def zoo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members of the shipped zoo, and its CLIP."""
    folder = tmp_path_factory.mktemp("zoos") / "0"
    folder.mkdir()
    for name in ("llava", "paligemma", "clip"):
        (folder / name).symlink_to(bundled(f"zoo/{name}"), target_is_directory=True)
    return folder


@pytest.fixture
def runner(claims: SimpleNamespace, zoo_folder: Path, tmp_path: Path) -> Any:
    """Two steps of four rows, twenty rows of everything."""
    settings = claims.experiment.Settings(steps=2, batch_size=4, n_train=20, n_validation=20, n_test=20)
    return claims.experiment.Runner({"0": zoo_folder}, tmp_path, settings)
