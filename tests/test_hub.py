"""Pushing prompts and reports to the Hub, and looking for them: what arrives, and that nothing is lost if it does not."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hub_cards import problems
from hub_prompts import ID, OURS, SMALL, asked, files_of, load, same
from hub_server import Fault, HubServer, hub_environment
from huggingface_hub import HfApi, constants

from transferable_vp import TransferableVisualPrompt
from transferable_vp.hub import SHARED_FILES, push_prompt, search_prompts, share_report
from transferable_vp.model_card import write_card


REPORT = {
    "source": "llava", "task": "digits under green light", "seeds": [0], "settings": {},
    "targets": [
        {"model": "zoo/llava", "family": "llava", "is_source": True, "n": 600, "full_image": 0.41, "zero_border": 0.37,
         "random_border": 0.30, "vp": 0.60, "tvp": 0.62, "delta": 0.25, "delta_ci95": [0.21, 0.29]},
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a prompt stays that could not be pushed."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.fixture
def prompt() -> TransferableVisualPrompt:
    return tiny.noise_prompt(**SMALL)


class TestPushing:
    def test_without_a_name_it_is_ones_own(self, hub: HubServer, prompt: TransferableVisualPrompt) -> None:
        prompt.push_to_hub("tvp")
        files = files_of(hub, name="someone/tvp")
        assert set(files) == OURS and b'from_pretrained("someone/tvp")' in files["README.md"]

    def test_a_second_push_with_no_change_is_no_commit(
        self, hub: HubServer, shared: TransferableVisualPrompt, tmp_path: Path
    ) -> None:
        before = hub.repos["model", ID].revisions
        shared.save_pretrained(tmp_path)
        for info in (shared.push_to_hub(ID), load().push_to_hub(ID), push_prompt(tmp_path, ID)):
            assert info.oid == before["main"]
        assert hub.repos["model", ID].revisions == before

    def test_what_another_kind_of_prompt_leaves_behind(self, hub: HubServer, shared: TransferableVisualPrompt) -> None:
        hub.repos["model", ID].add({"notes.md": "mine", "checkpoints/prompt.png": b"mine"})
        tiny.noise_prompt(canvas_size=32, layout="overlay").push_to_hub(ID)
        assert set(files_of(hub)) == (OURS - {"prompt.png"}) | {"notes.md", "checkpoints/prompt.png"}

    def test_while_saving(self, hub: HubServer, prompt: TransferableVisualPrompt, tmp_path: Path) -> None:
        given = {
            "private": True,
            "commit_message": "first",
            "token": "hf_other",
            "revision": "dev",
            "tags": ["digits"],
        }
        prompt.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="other/prompt", **given)
        repo = hub.repos["model", "other/prompt"]
        assert repo.private and set(repo.revisions) == {"main", "dev"}
        assert [commit.title for commit in repo.history("dev")] == ["first", "initial commit"]
        assert repo.history("dev")[0].author == "other" and "- digits" in repo.files("dev")["README.md"].decode()
        prompt.save_pretrained(tmp_path / "mine", push_to_hub=True)
        assert set(files_of(hub, name="someone/mine")) == OURS
        assert {path.name for path in (tmp_path / "mine").iterdir()} == set(SHARED_FILES)
        prompt.save_pretrained(tmp_path / "third", push_to_hub=False)
        assert ("model", "someone/third") not in hub.repos

    def test_a_card_comes_with_its_prompt(
        self, hub: HubServer, tmp_path: Path, prompt: TransferableVisualPrompt
    ) -> None:
        prompt.save_pretrained(tmp_path)
        (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n\nWhat I found.\n")
        load(tmp_path).push_to_hub(ID)
        assert "What I found." in files_of(hub)["README.md"].decode()
        load().push_to_hub("someone/copy", token="hf_someone")
        card = files_of(hub, name="someone/copy")["README.md"].decode()
        assert "What I found." in card and "license: mit" in card

    def test_a_card_from_before_there_was_a_repository_gets_its_name(self, hub: HubServer, tmp_path: Path) -> None:
        prompt = tiny.noise_prompt(**SMALL)
        prompt.save_pretrained(tmp_path)
        write_card(prompt, tmp_path)
        here = (tmp_path / "README.md").read_bytes()
        assert b"THIS_REPO" in here
        first, second = push_prompt(tmp_path, ID), push_prompt(tmp_path, ID)
        card = files_of(hub)["README.md"]
        assert f'from_pretrained("{ID}")'.encode() in card and b"THIS_REPO" not in card
        assert first.oid == second.oid and (tmp_path / "README.md").read_bytes() == here

    def test_an_edit_on_the_hub_stays(self, hub: HubServer, shared: TransferableVisualPrompt) -> None:
        card = files_of(hub)["README.md"].decode()
        hub.repos["model", ID].add({"README.md": card + "\nA word of mine.\n"})
        tiny.noise_prompt(seed=1, **SMALL).push_to_hub(ID)
        assert files_of(hub)["README.md"].decode().rstrip().endswith("A word of mine.")

    def test_the_ends_of_lines_on_the_hub_stay(self, hub: HubServer, shared: TransferableVisualPrompt) -> None:
        card = files_of(hub)["README.md"].replace(b"\n", b"\r\n")
        hub.repos["model", ID].add({"README.md": card})
        tiny.noise_prompt(seed=1, **SMALL).push_to_hub(ID)
        after = files_of(hub)["README.md"]
        assert after != card and after.count(b"\n") == after.count(b"\r\n") > 50

    def test_private_is_not_pushed_to_a_public_one(
        self, hub: HubServer, shared: TransferableVisualPrompt, tmp_path: Path
    ) -> None:
        before = files_of(hub)
        secret = tiny.noise_prompt(seed=1, **SMALL)
        with pytest.raises(
            PermissionError, match=rf"pushed to {ID}, which exists and is public, .*: make it private at"
        ) as i:
            secret.push_to_hub(ID, private=True)
        assert "hf upload" not in str(i.value)
        assert files_of(hub) == before
        HfApi().update_repo_settings(ID, private=True)
        secret.push_to_hub(ID, private=True)
        assert same(load(), secret)

    def test_a_pull_request_to_somebody_else(self, hub: HubServer, shared: TransferableVisualPrompt) -> None:
        before = files_of(hub)
        proposed = tiny.noise_prompt(seed=1, **SMALL)
        with pytest.raises(
            PermissionError, match=r"does not allow it \(403\); .* propose the change with `create_pr=True`"
        ):
            proposed.push_to_hub(ID, token="hf_other")
        hub.requests.clear()
        info = proposed.push_to_hub(ID, token="hf_other", create_pr=True)
        assert info.pr_url == f"{hub.url}/{ID}/discussions/1" and info.pr_revision == "refs/pr/1"
        assert not [route for route in asked(hub, "POST") if "/repos/create" in route or "/branch/" in route]
        assert files_of(hub) == before
        assert same(load(revision="refs/pr/1"), proposed) and same(load(), shared)

    def test_a_pull_request_to_ones_own_new_repository(self, hub: HubServer, prompt: TransferableVisualPrompt) -> None:
        prompt.push_to_hub(ID, create_pr=True)
        assert set(files_of(hub)) == {".gitattributes"} and same(load(revision="refs/pr/1"), prompt)

    def test_in_the_background_it_pushes_what_the_folder_held(
        self, hub: HubServer, prompt: TransferableVisualPrompt, tmp_path: Path
    ) -> None:
        futures, prompts = [], [tiny.noise_prompt(seed=seed, **SMALL) for seed in range(3)]
        hub.faults.append(Fault("/commit/", delay=0.3))
        for number, each in enumerate(prompts):
            each.save_pretrained(tmp_path)
            futures.append(push_prompt(tmp_path, ID, run_as_future=True, commit_message=f"Push {number}"))
        assert not futures[-1].done()
        commits = [future.result(60).oid for future in futures]
        assert [c.sha for c in hub.repos["model", ID].history()][-2::-1] == commits
        for commit, each in zip(commits, prompts, strict=True):
            assert same(load(revision=commit), each)

    def test_a_failure_in_the_background_is_told(
        self, hub: HubServer, prompt: TransferableVisualPrompt, tmp_path: Path
    ) -> None:
        prompt.save_pretrained(tmp_path)
        future = push_prompt(tmp_path, ID, token="hf_wrong", run_as_future=True)
        with pytest.raises(PermissionError, match=rf"push to {ID}: the Hub does not accept the token.*hf upload {ID}"):
            future.result(60)

    @pytest.mark.parametrize("spoil", ["weights", "config", "path"])
    def test_what_is_no_prompt_is_not_pushed(
        self, hub: HubServer, prompt: TransferableVisualPrompt, tmp_path: Path, spoil: str
    ) -> None:
        prompt.save_pretrained(tmp_path)
        if spoil == "weights":
            (tmp_path / "model.safetensors").write_bytes(b"")
        elif spoil == "config":
            (tmp_path / "config.json").write_text('{"model_type": "llava"}')
        with pytest.raises((OSError, ValueError), match=r"damaged|of type 'llava'|must be a folder inside"):
            push_prompt(tmp_path, ID, path_in_repo="../up" if spoil == "path" else "")
        assert asked(hub) == []

    @pytest.mark.parametrize("repo_id", ["", "../up", "a/b/c", "org/ä", "https://huggingface.co/org/a"])
    def test_what_is_no_id_is_said_before_anything_is_made(
        self, hub: HubServer, prompt: TransferableVisualPrompt, tmp_path: Path, temporary: Path, repo_id: str
    ) -> None:
        prompt.save_pretrained(tmp_path / "prompt")
        for push in (lambda: prompt.push_to_hub(repo_id), lambda: push_prompt(tmp_path / "prompt", repo_id)):
            with pytest.raises(ValueError, match=r"^'.*' is no id of a repository: give one such as"):
                push()
        assert asked(hub) == [] and list(temporary.iterdir()) == []

    def test_a_card_that_is_no_text(
        self, hub: HubServer, prompt: TransferableVisualPrompt, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        prompt.save_pretrained(tmp_path)
        (tmp_path / "README.md").write_bytes("# Für Dich".encode("latin-1"))
        with pytest.raises(OSError, match=rf"^{tmp_path}/README\.md is not text in UTF-8, as which it must be saved$"):
            push_prompt(tmp_path, ID)
        assert asked(hub) == []
        load(tmp_path).push_to_hub(ID)
        assert "its README.md is not text in UTF-8" in caplog.text and "pushed without it" in caplog.text
        theirs = {"README.md": (tmp_path / "README.md").read_bytes()}
        hub.repos["model", ID].add(theirs)
        with pytest.raises(OSError, match=rf"Could not push to {ID}: its README\.md is not text in UTF-8, as "):
            prompt.push_to_hub(ID)
        with pytest.raises(OSError, match=rf"Could not read the card of {ID}: its README\.md is not text in UTF-8"):
            share_report(REPORT, ID)
        assert files_of(hub)["README.md"] == theirs["README.md"]


def by_hand(message: str) -> list[str]:
    """The command of a message."""
    return shlex.split(message.split("To push it by hand: ", 1)[1].splitlines()[0])


class TestFaultsOfPushing:
    @pytest.mark.parametrize(
        ("fault", "kind", "sentence"),
        [
            (Fault("/repos/create", status=403), PermissionError, r"the token does not allow it \(403\)"),
            (Fault("/api/models/", times=99, status=503), OSError, r"has a problem of its own \(503\)"),
            (Fault("/validate-yaml", status=500), OSError, r"has a problem of its own \(500\)"),
            (Fault("/validate-yaml", status=502, truncate=5), OSError, r"answers something that no Hub would"),
            (Fault("/preupload/", times=99, status=429), OSError, r"too many requests from here \(429\)"),
            (Fault("/objects/batch", times=99, status=502), OSError, r"has a problem of its own \(502\)"),
            (Fault("/storage/", "PUT", times=99, cut_request_after=100), ConnectionError, r"or the connection broke"),
            (Fault("/storage/", "PUT", times=99, status=500), OSError, r"has a problem of its own \(500\)"),
            (Fault("/commit/", "POST", times=99, status=503), OSError, r"has a problem of its own \(503\)"),
            (Fault("/commit/", "POST", times=99, status=409), OSError, r"somebody else has changed it meanwhile \(409\)"),
            (Fault("/commit/", "POST", times=99, cut_after=0), ConnectionError, r"or the connection broke"),
        ],
    )  # fmt: skip
    def test_the_prompt_stays_and_the_way_by_hand_is_told(
        self, hub: HubServer, prompt: TransferableVisualPrompt, waits: list[float], fault: Fault, kind: type[OSError],
        sentence: str,
    ) -> None:  # fmt: skip
        hub.faults.append(fault)
        with pytest.raises(kind, match=rf"^Could not push to {ID}: .*{sentence}") as info:
            prompt.push_to_hub(ID, revision="dev", private=True)
        message = str(info.value)
        assert "hf_someone" not in message and "\n" not in message and fault.used
        command = by_hand(message)
        assert command[:3] == ["hf", "upload", ID] and command[4] == "."
        assert command[-3:] == ["--revision", "dev", "--private"]
        assert command[5:-3] == [word for name in SHARED_FILES for word in ("--include", name)]
        folder = Path(command[3])
        assert {path.name for path in folder.iterdir()} == set(SHARED_FILES)
        assert same(load(folder), prompt)

    @pytest.mark.multiprocess
    def test_the_way_by_hand_leads_there(
        self, hub: HubServer, prompt: TransferableVisualPrompt, tmp_path: Path
    ) -> None:
        folder = tmp_path / "a prompt"
        prompt.save_pretrained(folder)
        (folder / "optimizer.pt").write_bytes(b"mine")
        hub.stop()
        with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:\d+ cannot be reached") as info:
            push_prompt(folder, ID)
        hub.start()
        command = [str(Path(sys.executable).with_name("hf")), *by_hand(str(info.value))[1:]]
        subprocess.run(
            command, env=os.environ | hub_environment(hub, tmp_path / "hf"), check=True, capture_output=True
        )
        assert set(files_of(hub)) == OURS - {"README.md"} and same(load(), prompt)

    def test_a_passing_fault_is_overcome(
        self, hub: HubServer, prompt: TransferableVisualPrompt, waits: list[float]
    ) -> None:
        for path in ("/preupload/", "/objects/batch", "/storage/"):
            hub.faults.append(Fault(path, times=2, status=503))
        prompt.push_to_hub(ID)
        assert same(load(), prompt) and len(waits) >= 6

    def test_somebody_was_faster(
        self, hub: HubServer, shared: TransferableVisualPrompt, prompt: TransferableVisualPrompt, tmp_path: Path
    ) -> None:
        tiny.noise_prompt(seed=1, **SMALL).save_pretrained(tmp_path / "prompt")
        hub.faults.append(Fault("/preupload/", delay=1))
        future = push_prompt(tmp_path / "prompt", ID, run_as_future=True)
        while not any("/preupload/" in route for route in asked(hub)) and not future.done():
            time.sleep(0.01)
        hub.repos["model", ID].add({"README.md": "theirs"})
        with pytest.raises(OSError, match=r"somebody else has changed it meanwhile \(412\); do it again"):
            future.result(60)
        assert files_of(hub)["README.md"] == b"theirs"

    def test_metadata_that_the_hub_refuses(
        self, hub: HubServer, prompt: TransferableVisualPrompt, tmp_path: Path
    ) -> None:
        prompt.save_pretrained(tmp_path)
        (tmp_path / "README.md").write_text("---\nlicense: my own\n---\n")
        with pytest.raises(
            OSError, match=r'Could not push to .*: the Hub refuses it \(400: .*"license" must be one of'
        ):
            push_prompt(tmp_path, ID)

    def test_offline(self, hub: HubServer, prompt: TransferableVisualPrompt, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(
            ConnectionError, match=rf"push to {ID}: HF_HUB_OFFLINE forbids to ask the Hub; unset it\. Noth"
        ):
            prompt.push_to_hub(ID)

    def test_no_folder_is_left_but_that_of_a_push_that_failed(
        self, hub: HubServer, prompt: TransferableVisualPrompt, temporary: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prompt.push_to_hub(ID)
        assert list(temporary.iterdir()) == []

        def full(*args: Any, **kwargs: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(TransferableVisualPrompt, "save_pretrained", full)
            with pytest.raises(OSError, match="No space left"):
                prompt.push_to_hub(ID)
        assert list(temporary.iterdir()) == []
        with pytest.raises(PermissionError, match=rf"the prompt is in {temporary}/transferable-vp-"):
            prompt.push_to_hub(ID, token="hf_other")
        assert len(list(temporary.iterdir())) == 1

    def test_a_card_that_cannot_be_read_is_not_replaced(
        self, hub: HubServer, shared: TransferableVisualPrompt, caplog: pytest.LogCaptureFixture
    ) -> None:
        before, later = files_of(hub), load()
        with torch.no_grad():
            later.delta.mul_(0.5)
        hub.faults.append(Fault("/resolve/.*README", times=99, status=401))
        later.push_to_hub(ID)
        assert f"Could not read the card of {ID}" in caplog.text and "pushed without it" in caplog.text
        assert files_of(hub)["README.md"] == before["README.md"] and same(load(), later)


class TestReports:
    @pytest.mark.parametrize("kind", ["dict", "file"])
    def test_anyone_may_propose_one(
        self, hub: HubServer, shared: TransferableVisualPrompt, kind: str, tmp_path: Path
    ) -> None:
        (tmp_path / "transfer.json").write_text(json.dumps(REPORT))
        given = REPORT if kind == "dict" else tmp_path / "transfer.json"
        before = files_of(hub)
        info = share_report(given, ID, token="hf_other")
        assert info.pr_url == f"{hub.url}/{ID}/discussions/1" and files_of(hub) == before
        assert hub.repos["model", ID].pull_requests[0].title == "Add a transfer report: digits under green light"
        assert hub.repos["model", ID].pull_requests[0].author == "other"
        proposed = files_of(hub, "refs/pr/1")
        assert {name for name in proposed if proposed[name] != before.get(name)} == {"README.md"}
        card = proposed["README.md"].decode()
        assert "digits under green light" in card and "model-index:" in card and problems(card) == ([], [])

    def test_by_the_owner(self, hub: HubServer, shared: TransferableVisualPrompt) -> None:
        info = share_report(REPORT, ID, create_pr=False, commit_message="Measured")
        assert info.pr_url is None and hub.repos["model", ID].history()[0].title == "Measured"
        assert share_report(REPORT, ID, create_pr=False).oid == info.oid
        (found,) = search_prompts(task="green light")
        assert found["id"] == ID and found["task"] == "digits under green light"

    def test_faults(self, hub: HubServer, shared: TransferableVisualPrompt) -> None:
        with pytest.raises(PermissionError, match=rf"Could not add a report to {ID}: the token does not allow it"):
            share_report(REPORT, ID, create_pr=False, token="hf_other")
        with pytest.raises(
            FileNotFoundError, match=r"Could not read the card of org/other: .* no repository of this name"
        ):
            share_report(REPORT, "org/other")
        with pytest.raises(ValueError, match=r"report"):
            share_report({"source": "llava"}, ID)
        hub.repos["model", ID].add({}, delete=["README.md"])
        with pytest.raises(FileNotFoundError, match=rf"Could not read the card of {ID}: it has no such file"):
            share_report(REPORT, ID)
        hub.repos["model", ID].add({"README.md": "x" * 4_000_001})
        with pytest.raises(OSError, match=r"README\.md of .* has 4,000,001 bytes; .* at most 4,000,000"):
            share_report(REPORT, ID)


class TestSearch:
    @pytest.fixture
    def filled(self, hub: HubServer) -> HubServer:
        cards = {
            "org/a": ("- org/llava", "mnist", "Digits under green light", 5),
            "someone/b": ("- org/llava\n- org/blip", "cifar10", "Colours", 9),
            "someone/evil": ("- org/llava", "mnist", "\\e[2J\\u202EDigits", 1),
        }
        for name, (models, data, task, downloads) in cards.items():
            card = f"""---
tags:
- transferable-vp
base_model:
{models}
datasets:
- {data}
model-index:
- name: prompt
  results:
  - task:
      type: image-text-to-text
    dataset:
      type: {data}
      name: "{task}"
    metrics:
    - type: accuracy
      value: 1
---
"""
            hub.add_repo(name, {"README.md": card}, private=name == "org/a").downloads = downloads
        hub.add_repo("someone/else", {"README.md": "---\ntags:\n- llava\n---\n"})
        return hub

    def test_rows(self, filled: HubServer) -> None:
        b, a, evil = search_prompts()
        assert (b["id"], a["id"], evil["id"]) == ("someone/b", "org/a", "someone/evil")
        assert b.pop("last_modified").year > 2000
        assert b == {
            "id": "someone/b", "task": "Colours", "base_models": ["org/llava", "org/blip"], "datasets": ["cifar10"],
            "downloads": 9, "likes": 0, "private": False,
        }  # fmt: skip
        assert a["private"] and evil["task"] == "[2J Digits"

    @pytest.mark.parametrize(
        ("wanted", "found"),
        [
            ({"task": "digits"}, ["org/a", "someone/evil"]),
            ({"task": "CIFAR"}, ["someone/b"]),
            ({"task": "pets"}, []),
            ({"base_model": "org/blip"}, ["someone/b"]),
            ({"author": "someone"}, ["someone/b", "someone/evil"]),
            ({"token": False}, ["someone/b", "someone/evil"]),
            ({"limit": 2}, ["someone/b", "org/a"]),
            ({"limit": 1, "task": "digits"}, ["org/a"]),
        ],
    )
    def test_filters(self, filled: HubServer, wanted: dict[str, Any], found: list[str]) -> None:
        filled.page_size = 1
        assert [row["id"] for row in search_prompts(**wanted)] == found

    @pytest.mark.parametrize("limit", [0, -1])
    def test_none_are_not_asked_for(self, hub: HubServer, limit: int) -> None:
        with pytest.raises(ValueError, match=rf"^`limit` is {limit}; it must be 1 or more\.$"):
            search_prompts(limit=limit)
        assert asked(hub) == []

    def test_the_hub_is_gone(self, hub: HubServer, waits: list[float]) -> None:
        hub.stop()
        with pytest.raises(ConnectionError, match=r"Could not search the Hub for prompts: .* cannot be reached"):
            search_prompts()
