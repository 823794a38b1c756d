"""The commands `push`, `card` and `search`, over HTTP, and the training command where it pushes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hub_cards import problems
from hub_prompts import OURS, SMALL, files_of, without_waiting
from hub_server import Fault, HubServer, hub_environment
from huggingface_hub import metadata_load
from test_report import make_report

from transferable_vp import TransferableVisualPrompt
from transferable_vp.cli import main
from transferable_vp.model_card import write_card
from transferable_vp.report import write_json


ID = "org/tvp-cli"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prompt as `save_pretrained` leaves it, and something that is nobody's business."""
    tiny.noise_prompt(**SMALL).save_pretrained(tmp_path / "prompt")
    (tmp_path / "prompt" / "training_args.bin").write_bytes(b"pickled")
    return tmp_path / "prompt"


@pytest.fixture
def report(tmp_path: Path) -> Path:
    write_json(make_report(), tmp_path / "report" / "transfer.json")
    return tmp_path / "report" / "transfer.json"


def run(*words: Any) -> int:
    return main([str(word) for word in words])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said of an error."""
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and "hf_" not in said
    return said


class TestPush:
    def test_to_a_new_repository(self, hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("push", folder, ID, "--license", "cc-by-4.0", "--commit_message", "Mine") == 0
        commit = hub.repos["model", ID].history()[0]
        assert f"Pushed: {hub.url}/{ID}/commit/{commit.sha}\n" in capsys.readouterr().out
        assert set(files_of(hub, name=ID)) == OURS and commit.title == "Mine" and not hub.repos["model", ID].private
        there = TransferableVisualPrompt.from_pretrained(ID)
        assert torch.equal(there.delta, TransferableVisualPrompt.from_pretrained(folder).delta)
        assert problems((folder / "README.md").read_text(encoding="utf-8")) == ([], [])
        assert metadata_load(folder / "README.md")["license"] == "cc-by-4.0"

    def test_to_a_private_branch(self, hub: HubServer, folder: Path) -> None:
        assert run("push", folder, ID, "--private", "--revision", "trial") == 0
        repo = hub.repos["model", ID]
        assert repo.private and set(repo.files("trial")) == OURS and set(repo.files()) == {".gitattributes"}

    def test_to_somebody_else(self, hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hub.add_repo("other/theirs", {"README.md": "# Theirs\n"})
        assert run("push", folder, "other/theirs") == 1
        said = one_line(capsys)
        assert "Could not push to other/theirs" in said and f"hf upload other/theirs {folder} ." in said
        assert run("push", folder, "other/theirs", "--create_pr") == 0
        (proposed,) = hub.repos["model", "other/theirs"].pull_requests
        url = re.search("Proposed: (.*)\n", capsys.readouterr().out)[1]
        assert url == f"{hub.url}/other/theirs/discussions/{proposed.num}"
        assert set(hub.repos["model", "other/theirs"].files(f"refs/pr/{proposed.num}")) == OURS

    def test_a_card_that_is_there_is_kept(self, hub: HubServer, folder: Path) -> None:
        write_card(TransferableVisualPrompt.from_pretrained(folder), folder, tags=["digits"])
        text = (folder / "README.md").read_text(encoding="utf-8") + "\nMy words.\n"
        (folder / "README.md").write_text(text, encoding="utf-8")
        assert run("push", folder, ID) == 0
        pushed = files_of(hub, name=ID)["README.md"].decode()
        assert pushed.endswith("\nMy words.\n") and "- digits\n" in pushed

    def test_what_is_no_prompt(self, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "empty").mkdir()
        assert run("push", tmp_path / "empty", ID) == 1
        assert "empty is a folder without config.json: give the folder that" in one_line(capsys)
        assert run("push", tmp_path / "nowhere", ID) == 1
        assert "nowhere is no folder" in one_line(capsys)
        assert not hub.requests

    def test_no_hub(
        self, hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        without_waiting(monkeypatch)
        hub.stop()
        assert run("push", folder, ID) == 1
        said = one_line(capsys)
        assert "cannot be reached" in said and f"To push it by hand: hf upload {ID} {folder} ." in said


class TestCard:
    def test_of_a_folder(self, folder: Path, report: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("card", folder, "--license", "mit", "--tag", "digits", "grün") == 0
        path = folder / "README.md"
        assert capsys.readouterr().out == f"{path}: written\n"
        data = metadata_load(path)
        assert data["license"] == "mit" and {"digits", "grün"} < set(data["tags"]) and "model-index" not in data
        assert run("card", folder, "--report", report) == 0
        assert capsys.readouterr().out == f"{path}: updated\n"
        data = metadata_load(path)
        assert data["license"] == "mit" and data["model-index"]
        text = path.read_text(encoding="utf-8")
        assert "### colour under green light" in text and problems(text) == ([], [])
        assert run("card", folder) == 0
        assert capsys.readouterr().out == f"{path}: as it was\n"
        assert path.read_text(encoding="utf-8") == text

    def test_of_a_training_keeps_what_the_run_knew(self, tmp_path: Path, report: Path) -> None:
        from tiny_training import make_trainer

        trainer = make_trainer(tmp_path / "run", max_steps=1)
        trainer.train()
        trainer.save_model()
        before = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
        assert run("card", tmp_path / "run", "--report", report) == 0
        after = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
        how = re.compile("begin training .*?end training", re.DOTALL)
        assert how.search(before)[0] == how.search(after)[0] and "colour under green light" in after

    def test_of_the_hub_is_a_pull_request(
        self, hub: HubServer, folder: Path, report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        card = write_card(TransferableVisualPrompt.from_pretrained(folder), folder)
        repo = hub.add_repo("other/theirs", {"README.md": card.read_text(encoding="utf-8")})
        second = tmp_path / "second.json"
        write_json(make_report() | {"task": "digits"}, second)
        assert run("card", "other/theirs", "--report", report, second) == 0
        urls = [f"{hub.url}/other/theirs/discussions/{proposed.num}" for proposed in repo.pull_requests]
        assert capsys.readouterr().out == f"{report}: {urls[0]}\n{second}: {urls[1]}\n"
        for proposed, task in zip(repo.pull_requests, ("colour under green light", "digits"), strict=True):
            assert f"### {task}" in repo.files(f"refs/pr/{proposed.num}")["README.md"].decode()
        assert "###" not in repo.files()["README.md"].decode()

    def test_of_the_hub_at_once(
        self, hub: HubServer, folder: Path, report: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("push", folder, ID) == 0
        capsys.readouterr()
        assert run("card", ID, "--report", report, "--no-create_pr") == 0
        repo = hub.repos["model", ID]
        assert "colour under green light" in repo.files()["README.md"].decode() and not repo.pull_requests
        assert capsys.readouterr().out == f"{report}: {hub.url}/{ID}/commit/{repo.revisions['main']}\n"

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["org/none"], "There is no folder org/none; if that is a repository on the Hub, say with --report"),
            (["org/none", "--report", "REPORT", "--tag", "a"], "--license and --tag are for a folder"),
            (["org/none", "--report", "REPORT"], "Could not read the card of org/none: "),
            (["FOLDER", "--create_pr"], "pull requests are the Hub's: leave out --create_pr"),
            (["FOLDER", "--report", "FOLDER/config.json"], "config.json is not a transfer report"),
        ],
    )
    def test_what_cannot_be(
        self, hub: HubServer, folder: Path, report: Path, capsys: pytest.CaptureFixture[str], words: list[str],
        said: str,
    ) -> None:  # fmt: skip
        assert run("card", *(w.replace("FOLDER", str(folder)).replace("REPORT", str(report)) for w in words)) == 1
        assert said in one_line(capsys)
        assert not (folder / "README.md").exists()


class TestSearch:
    @pytest.fixture
    def filled(self, hub: HubServer) -> HubServer:
        for name, task, base, downloads in (
            ("org/a", "digits", "x/llava", 30),
            ("other/b", "pets\x1b[2J", "x/blip", 4),
        ):
            index = [{"name": "p", "results": [{
                "task": {"type": "image-text-to-text"}, "dataset": {"name": task, "type": "d"},
                "metrics": [{"type": "accuracy", "value": 1}],
            }]}]  # fmt: skip
            data = {"tags": ["transferable-vp"], "base_model": base, "model-index": index}
            repo = hub.add_repo(name, {"README.md": f"---\n{json.dumps(data)}\n---\n"})
            repo.downloads = downloads
        hub.add_repo("org/another-thing", {"README.md": "---\ntags: [lora]\n---\n"})
        return hub

    def test_a_table(self, filled: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("search", "--json", tmp_path / "out" / "found.json") == 0
        head, *rows = capsys.readouterr().out.splitlines()
        assert head.split() == ["id", "task", "base", "models", "downloads", "updated"]
        day = r"\d{4}-\d\d-\d\d"
        assert re.fullmatch(rf"org/a    digits +x/llava      30         {day}", rows[0])
        assert re.fullmatch(rf"other/b  pets\S* ?\[2J +x/blip       4          {day}", rows[1]) and len(rows) == 2
        found = json.loads((tmp_path / "out" / "found.json").read_text(encoding="utf-8"))
        assert [row["id"] for row in found] == ["org/a", "other/b"] and found[0]["base_models"] == ["x/llava"]

    @pytest.mark.parametrize(
        ("words", "found"),
        [
            (["--base-model", "x/blip"], ["other/b"]),
            (["--base_model", "x/blip"], ["other/b"]),
            (["--task", "digits"], ["org/a"]),
            (["--author", "other"], ["other/b"]),
            (["--limit", "1"], ["org/a"]),
        ],
    )
    def test_filters(
        self, filled: HubServer, capsys: pytest.CaptureFixture[str], words: list[str], found: list[str]
    ) -> None:
        assert run("search", *words) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == found

    def test_nothing(self, filled: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("search", "--task", "chess", "--json", tmp_path / "found.json") == 0
        assert capsys.readouterr().out.startswith("No prompts found")
        assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8")) == []

    def test_no_hub(self, hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        without_waiting(monkeypatch)
        hub.faults.append(Fault("/api/models", status=503, times=99))
        assert run("search") == 1
        assert "Could not search the Hub for prompts: the Hub has a problem of its own (503)" in one_line(capsys)


def test_in_a_process_with_nothing_but_its_environment(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    env = os.environ | hub_environment(hub, tmp_path / "theirs")
    command = [sys.executable, "-m", "transferable_vp.cli", "push", str(folder), ID, "--private"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"Pushed: {hub.url}/{ID}/commit/" in done.stdout
    assert hub.repos["model", ID].private and set(files_of(hub, name=ID)) == OURS
