"""Prompts on the Hub: pushed and loaded to the bit, found in the cache, and one sentence when they cannot be had."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from hub_cards import problems
from hub_prompts import ID, OURS, SMALL, asked, files_of, load, same
from hub_server import Fault, HubServer, hub_environment
from huggingface_hub import HfApi, constants
from PIL import Image
from safetensors import safe_open
from transformers import AutoModel

from transferable_vp import TransferableVisualPrompt
from transferable_vp.hub import SHARED_FILES, push_prompt
from transferable_vp.hub_fetch import fetch_prompt


@pytest.fixture
def prompt() -> TransferableVisualPrompt:
    return tiny.noise_prompt(**SMALL)


class TestRoundTrip:
    @pytest.mark.parametrize(
        ("config", "missing"),
        [(SMALL, set()), ({"canvas_size": 32, "layout": "overlay"}, {"prompt.png"}),
         ({**SMALL, "value_range": "unbounded", "content_size": 11}, {"prompt.png"})],
        ids=["border", "overlay", "unbounded"],
    )  # fmt: skip
    @pytest.mark.parametrize("loader", [TransferableVisualPrompt, AutoModel])
    def test_to_the_bit(self, hub: HubServer, config: dict[str, Any], missing: set[str], loader: Any) -> None:
        prompt = tiny.noise_prompt(**config)
        info = prompt.push_to_hub(ID)
        assert info.oid == hub.repos["model", ID].revisions["main"]
        again = loader.from_pretrained(ID)
        assert type(again) is TransferableVisualPrompt
        assert same(again, prompt) and again.delta.requires_grad
        assert again.apply(tiny.picture()).tobytes() == prompt.apply(tiny.picture()).tobytes()
        assert config.items() <= again.config.to_dict().items()
        assert set(files_of(hub)) == OURS - missing

    def test_one_commit_with_a_card_that_the_hub_takes(self, hub: HubServer, prompt: TransferableVisualPrompt) -> None:
        prompt.push_to_hub(ID, commit_message="First", commit_description="More", tags=["digits"], license="mit")
        commit, first = hub.repos["model", ID].history()
        assert (commit.title, commit.description) == ("First", "More") and first.title == "initial commit"
        card = files_of(hub)["README.md"].decode()
        assert problems(card) == ([], [])
        assert "- digits\n" in card and "license: mit\n" in card and f'from_pretrained("{ID}")' in card

    def test_nothing_of_this_machine_goes_along(
        self, hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = tmp_path / "private" / "prompt"
        tiny.noise_prompt(**SMALL).save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": str(folder), "home": str(folder)}))
        picture = Image.open(folder / "prompt.png")
        picture.load()
        picture.save(folder / "prompt.png", exif=b"Exif\0\0" + str(folder).encode())
        for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "tokenizer.json", ".env", "notes.md"):
            (folder / name).write_text(str(folder))
        load(folder).push_to_hub(ID)
        push_prompt(folder, "org/by-folder")
        for name in (ID, "org/by-folder"):
            files = files_of(hub, name=name)
            assert set(files) == OURS - ({"README.md"} if name != ID else set())
            for path, data in files.items():
                for secret in ("hf_someone", str(Path.home()) + "/", str(tmp_path), socket.gethostname(), "private"):
                    assert secret.encode() not in data, (path, secret)
            with safe_open(io_path(tmp_path, files["model.safetensors"]), "pt") as weights:
                assert weights.metadata() == {"format": "pt"} and list(weights.keys()) == ["delta"]
            for picture_name in ("prompt.png", "preview.png"):
                kinds = re.findall(rb"....(IHDR|PLTE|IDAT|IEND|tEXt|zTXt|iTXt|eXIf|tIME)", files[picture_name], re.S)
                assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}
                assert Image.open(io.BytesIO(files[picture_name])).size >= (32, 32)

    def test_a_token_in_the_card_is_not_pushed(self, hub: HubServer, tmp_path: Path) -> None:
        tiny.noise_prompt(**SMALL).save_pretrained(tmp_path / "prompt")
        (tmp_path / "prompt" / "README.md").write_text("export HF_TOKEN=hf_someone")
        with pytest.raises(ValueError, match=r"README\.md holds your token, .*: take it out"):
            push_prompt(tmp_path / "prompt", ID)
        assert not hub.repos

    def test_only_two_files_are_asked_for(self, hub: HubServer, shared: TransferableVisualPrompt) -> None:
        load()
        names = {route.rsplit("/", 1)[1] for route in asked(hub) if "/resolve/" in route}
        assert names == {"config.json", "model.safetensors"}

    def test_what_is_cached_costs_one_question(self, hub: HubServer, shared: TransferableVisualPrompt) -> None:
        load()
        hub.requests.clear()
        assert same(load(), shared)
        assert asked(hub) == [f"HEAD /{ID}/resolve/main/config.json"]
        hub.requests.clear()
        load(revision=hub.repos["model", ID].revisions["main"])
        assert asked(hub) == []
        # transformers has asked for the commit, and hands it on.
        AutoModel.from_pretrained(ID)
        assert f"HEAD /{ID}/resolve/main/config.json" not in asked(hub)

    def test_it_says_where_it_is_from(self, hub: HubServer, shared: TransferableVisualPrompt, tmp_path: Path) -> None:
        again = load()
        assert again.name_or_path == again.config.name_or_path == ID
        assert again.config._commit_hash == hub.repos["model", ID].revisions["main"]
        again.save_pretrained(tmp_path)
        assert not {"_commit_hash", "_name_or_path"} & set(json.loads((tmp_path / "config.json").read_text()))

    @pytest.mark.slow
    @pytest.mark.multiprocess
    def test_in_a_process_of_its_own(self, hub: HubServer, shared: TransferableVisualPrompt, tmp_path: Path) -> None:
        code = (
            "from transferable_vp import TransferableVisualPrompt as P; import hashlib; "
            f"print(hashlib.sha256(P.from_pretrained({ID!r}).delta.detach().numpy().tobytes()).hexdigest())"
        )
        environment = os.environ | hub_environment(hub, tmp_path / "elsewhere")
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.split()[-1] == hashlib.sha256(shared.delta.detach().numpy().tobytes()).hexdigest()


class TestWhere:
    def test_branch_tag_and_commit(self, hub: HubServer, shared: TransferableVisualPrompt) -> None:
        HfApi().create_tag(ID, tag="v1")
        first = hub.repos["model", ID].revisions["main"]
        later, other = tiny.noise_prompt(seed=1, **SMALL), tiny.noise_prompt(seed=2, **SMALL)
        later.push_to_hub(ID)
        other.push_to_hub(ID, revision="wild")
        assert same(load(), later) and same(load(revision="main"), later)
        assert same(load(revision="v1"), shared) and same(load(revision=first), shared)
        assert same(load(revision="wild"), other)
        assert same(AutoModel.from_pretrained(ID, revision="v1"), shared)
        assert load(revision="wild").config._commit_hash == hub.repos["model", ID].revisions["wild"]

    def test_subfolder(self, hub: HubServer, shared: TransferableVisualPrompt, tmp_path: Path) -> None:
        checkpoint = tiny.noise_prompt(seed=1, **SMALL)
        checkpoint.save_pretrained(tmp_path)
        push_prompt(tmp_path, ID, path_in_repo="checkpoints/10")
        inside = {f"checkpoints/10/{name}" for name in SHARED_FILES if name != "README.md"}
        assert set(files_of(hub)) == OURS | inside
        again = load(subfolder="checkpoints/10")
        assert same(again, checkpoint) and same(load(), shared)
        assert again.config._commit_hash == hub.repos["model", ID].revisions["main"]
        assert same(AutoModel.from_pretrained(ID, subfolder="checkpoints/10"), checkpoint)
        with pytest.raises(OSError, match=rf"Could not load checkpoints/11/config\.json of {ID}: it has no such file"):
            load(subfolder="checkpoints/11")

    def test_private(self, hub: HubServer, prompt: TransferableVisualPrompt) -> None:
        prompt.push_to_hub(ID, private=True)
        assert hub.repos["model", ID].private
        assert same(load(token="hf_someone"), prompt)
        for token in (False, "hf_other"):
            with pytest.raises(FileNotFoundError, match="no repository of this name, or not for this token"):
                load(token=token, force_download=True)

    def test_another_cache(self, hub: HubServer, shared: TransferableVisualPrompt, tmp_path: Path) -> None:
        assert same(load(cache_dir=tmp_path / "mine"), shared)
        assert list((tmp_path / "mine").glob("models--*/snapshots/*/model.safetensors"))
        hub.stop()
        assert same(load(cache_dir=tmp_path / "mine", local_files_only=True), shared)
        with pytest.raises(FileNotFoundError, match=r"not .* in the cache"):
            load(local_files_only=True)

    def test_again_by_force(self, hub: HubServer, shared: TransferableVisualPrompt) -> None:
        folder = fetch_prompt(ID)
        (folder / "model.safetensors").resolve().write_bytes(b"spoilt on this disk")
        with pytest.raises(
            OSError,
            match=r"The header of .*model\.safetensors is damaged.* `force_download=True` replaces what is in the cache",
        ):
            load()
        assert same(load(force_download=True), shared) and same(load(), shared)

    def test_a_name_that_is_neither_folder_nor_repository(self, hub: HubServer) -> None:
        with pytest.raises(FileNotFoundError, match=r"has no repository of this name, .*, nor is it a folder; check"):
            load("runs/prompt")
        with pytest.raises(FileNotFoundError, match=r"a/b/c, which must be a folder or the id of a repository"):
            load("a/b/c")
        assert all("a/b/c" not in route for route in asked(hub))

    def test_no_such_revision(self, hub: HubServer, shared: TransferableVisualPrompt) -> None:
        load()
        with pytest.raises(
            FileNotFoundError, match=rf"config\.json \(revision 'v9'\) of {ID}: it has no such revision"
        ):
            load(revision="v9")

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json"])
    def test_weights_that_are_not_read(self, hub: HubServer, shared: TransferableVisualPrompt, name: str) -> None:
        hub.repos["model", ID].add({name: b"anything"}, delete=["model.safetensors"])
        with pytest.raises(
            FileNotFoundError, match=rf"{ID} has no file named model\.safetensors.* It has {name}, but only"
        ):
            load()
        assert not any(name in route for route in asked(hub))


class TestOffline:
    @pytest.mark.parametrize("how", ["variable", "argument"])
    def test_from_the_cache(
        self, hub: HubServer, shared: TransferableVisualPrompt, how: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load()
        hub.requests.clear()
        if how == "variable":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        given = {} if how == "variable" else {"local_files_only": True}
        assert same(load(**given), shared)
        assert asked(hub) == []
        assert same(AutoModel.from_pretrained(ID, **given), shared)
        for missing in ({"revision": "wild"}, {"subfolder": "other"}):
            with pytest.raises(
                FileNotFoundError, match=r"not \(or not all of it\) in the cache, .*; load it once while on"
            ):
                load(**given, **missing)

    def test_the_hub_is_gone_and_the_cache_is_not(
        self, hub: HubServer, shared: TransferableVisualPrompt, caplog: pytest.LogCaptureFixture
    ) -> None:
        load()
        hub.stop()
        assert same(load(), shared)
        assert re.search(
            rf"look for a newer config.json of {ID}: {hub.url} cannot be reached.* taken from the cache", caplog.text
        )

    @pytest.mark.parametrize("status", [401, 429, 503])
    def test_the_hub_fails_and_the_cache_does_not(
        self, hub: HubServer, shared: TransferableVisualPrompt, status: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        load()
        hub.faults.append(Fault("/resolve/", times=99, status=status))
        assert same(load(), shared)
        assert f"({status})" in caplog.text and "taken from the cache" in caplog.text

    def test_the_hub_is_gone_and_nothing_is_cached(
        self, hub: HubServer, shared: TransferableVisualPrompt, waits: list[float]
    ) -> None:
        hub.stop()
        with pytest.raises(
            ConnectionError, match=rf"{ID}: {hub.url} cannot be reached.*; check the connection and do it"
        ):
            load()
        assert waits

    @pytest.mark.parametrize("fault", [{"status": 500}, {"cut_after": 0}])
    def test_a_branch_in_the_cache_never_points_to_half_a_prompt(
        self, hub: HubServer, shared: TransferableVisualPrompt, fault: dict[str, Any], waits: list[float]
    ) -> None:
        load()
        later = tiny.noise_prompt(seed=1, **SMALL)
        later.push_to_hub(ID)
        hub.faults.append(Fault("/storage/", "GET", times=99, **fault))
        with pytest.raises(OSError, match=rf"Could not load model\.safetensors of {ID}"):
            load()
        assert same(load(local_files_only=True), shared)
        hub.faults.clear()
        assert same(load(), later) and same(load(local_files_only=True), later)


class TestFaultsOfLoading:
    @pytest.mark.parametrize(
        ("status", "kind", "sentence"),
        [
            (401, PermissionError, r"does not accept the token, or wants one \(401\); log in with `hf auth login`"),
            (403, PermissionError, r"the token does not allow it \(403\)"),
            (429, OSError, r"too many requests from here \(429\); wait some minutes"),
            (503, OSError, r"has a problem of its own \(503\); do it again later"),
            (418, OSError, r"refuses it \(418: It is told to fail"),
        ],
    )
    @pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
    def test_one_sentence(
        self, hub: HubServer, shared: TransferableVisualPrompt, status: int, kind: type[OSError], sentence: str,
        path: str, waits: list[float],
    ) -> None:  # fmt: skip
        hub.faults.append(
            Fault(f"/resolve/.*{path}", times=99, status=status, message="It is told to fail hf_someone")
        )
        with pytest.raises(kind, match=rf"^Could not load {path} of {ID}: .*{sentence}.*\.$") as info:
            load()
        assert "hf_someone" not in str(info.value) and "\n" not in str(info.value)
        hub.faults.clear()
        assert same(load(), shared)

    def test_too_many_requests_are_asked_again(
        self, hub: HubServer, shared: TransferableVisualPrompt, waits: list[float]
    ) -> None:
        hub.faults.append(Fault("/resolve/", times=3, status=429, headers={"Retry-After": "7"}))
        assert same(load(), shared)
        assert waits and all(wait == 8 for wait in waits)

    def test_a_fault_after_all_is_there(
        self, hub: HubServer, shared: TransferableVisualPrompt, waits: list[float], caplog: pytest.LogCaptureFixture
    ) -> None:
        # By its branch it is asked for twice: before, for the commit, and after, for the cache to know it.
        hub.faults.append(Fault("/resolve/main/", after=1, times=99, status=503))
        assert same(load(), shared)
        assert "has a problem of its own (503)" in caplog.text and "will not find it by its revision" in caplog.text

    def test_a_gated_repository(self, hub: HubServer, shared: TransferableVisualPrompt) -> None:
        hub.repos["model", ID].gated = True
        with pytest.raises(
            PermissionError, match=rf"only for those whom its owner lets in; ask at {hub.url}/{ID} and log"
        ):
            load(token="hf_other")

    def test_what_was_cut_off_is_resumed(
        self, hub: HubServer, shared: TransferableVisualPrompt, waits: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Of its usual 10 MB, the client keeps no part.
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
        hub.faults.append(Fault("/storage/", "GET", times=2, cut_after=1000))
        assert same(load(), shared)
        ranges = [request.headers.get("range") for request in hub.requests if "/storage/" in request.path]
        assert ranges == [None, "bytes=1000-", "bytes=2000-"]

    def test_what_is_cut_off_always(
        self, hub: HubServer, shared: TransferableVisualPrompt, waits: list[float], tmp_path: Path
    ) -> None:
        hub.faults.append(Fault("/storage/", "GET", times=99, cut_after=0))
        with pytest.raises(ConnectionError, match=r"cannot be reached, or the connection broke \(\w+\); check the"):
            load()
        cache = tmp_path / "hf_home" / "hub"
        assert not [path for path in cache.rglob("*") if "incomplete" in path.name]
        assert not list(cache.rglob("model.safetensors"))

    def test_a_byte_that_is_wrong(self, hub: HubServer, shared: TransferableVisualPrompt) -> None:
        # Within the values nothing but the checksum could tell, which the client does not look at; in the header, we do.
        hub.faults.append(Fault("/storage/", "GET", flip=10))
        with pytest.raises(OSError, match=r"must be one tensor `delta`|is damaged"):
            load()
        assert same(load(force_download=True), shared)

    def test_not_a_hub_at_all(self, hub: HubServer, shared: TransferableVisualPrompt) -> None:
        hub.faults.append(
            Fault("/resolve/", times=99, headers={"X-Repo-Commit": None, "X-Linked-ETag": None, "ETag": None})
        )
        with pytest.raises(OSError, match=rf"Could not load config\.json of {ID}: .*Hugging Face Hub endpoint"):
            load()


def io_path(folder: Path, data: bytes) -> Path:
    path = folder / "of_the_hub.safetensors"
    path.write_bytes(data)
    return path
