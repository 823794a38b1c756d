"""What a training run gives away: its card, pushes at every strategy over HTTP, and runs that no failed push can end."""

from __future__ import annotations

import os
import shlex
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hub_cards import problems
from hub_prompts import OURS, SMALL, files_of, without_waiting
from hub_server import Fault, HubServer
from huggingface_hub import constants, metadata_load
from tiny_training import dataset, delta, make_args, make_trainer, new_prompt, surrogate
from transformers import TrainerCallback

from transferable_vp import TransferableVisualPrompt, TransferableVisualPromptTrainer
from transferable_vp.hub import SHARED_FILES


ID = "org/tvp-run"
CARDLESS = [name for name in SHARED_FILES if name != "README.md"]
STATE = ["optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"]


def pushing(folder: Path, **more: Any) -> TransferableVisualPromptTrainer:
    """Two steps, each of them saved, and pushed if the strategy says so."""
    defaults = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "push_to_hub": True, "hub_model_id": ID}
    return make_trainer(folder, **(defaults | more))


def titles(hub: HubServer, revision: str = "main", name: str = ID) -> list[str]:
    """Of the commits since the repository was made, the first first."""
    return [commit.title for commit in hub.repos["model", name].history(revision)][-2::-1]


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def one_sentence(error: pytest.ExceptionInfo[OSError]) -> str:
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text and "hf_" not in text
    return text


class Gate(TrainerCallback):
    """Holds the queue of pushes up until training is over: it is the client's own, and takes one after the other."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        huggingface_hub.run_as_future(self.opened.wait, 60)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.opened.set()


class TestStrategies:
    @pytest.mark.parametrize(
        ("strategy", "folders", "while_training"),
        [
            ("end", [], []),
            ("every_save", [], ["step 1", "step 2"]),
            ("checkpoint", ["last-checkpoint"], ["step 1, checkpoint", "step 1", "step 2, checkpoint", "step 2"]),
            ("all_checkpoints", ["checkpoint-1", "checkpoint-2"],
             ["step 1, checkpoint", "step 1", "step 2, checkpoint", "step 2"]),
        ],
    )  # fmt: skip
    def test_what_is_on_the_hub(
        self, hub: HubServer, tmp_path: Path, strategy: str, folders: list[str], while_training: list[str]
    ) -> None:
        # Always, or a step would be left out where the one before it is still on its way.
        trainer = pushing(tmp_path / "run", hub_strategy=strategy, hub_always_push=True)
        trainer.train()
        expected = {".gitattributes"} if strategy == "end" else OURS
        expected = expected | {f"{folder}/{name}" for folder in folders for name in CARDLESS}
        assert set(files_of(hub, name=ID)) == expected
        assert titles(hub) == [f"Training in progress, {when}" for when in while_training]
        info = trainer.push_to_hub()
        assert info.oid == hub.repos["model", ID].revisions["main"]
        assert set(files_of(hub, name=ID)) == expected | OURS
        # Nothing has changed since the last checkpoint, and the client makes no commit of that.
        assert len(titles(hub)) == len(while_training) + (strategy == "end")
        assert torch.equal(TransferableVisualPrompt.from_pretrained(ID).delta, delta(trainer))
        steps = {"last-checkpoint": 2, "checkpoint-1": 1, "checkpoint-2": 2}
        for folder in folders:
            there = TransferableVisualPrompt.from_pretrained(ID, subfolder=folder)
            here = TransferableVisualPrompt.from_pretrained(tmp_path / "run" / f"checkpoint-{steps[folder]}")
            assert there.delta.any() and torch.equal(there.delta, here.delta)
        # What resuming needs is here, and stays here.
        assert {*STATE, *CARDLESS} <= set(os.listdir(tmp_path / "run" / "checkpoint-2"))

    def test_the_card_of_a_running_training_says_how_far_it_is(self, hub: HubServer, tmp_path: Path) -> None:
        trainer = pushing(tmp_path, max_steps=1, hub_strategy="every_save")
        trainer.card["license"] = "mit"
        trainer.train()
        card = files_of(hub, name=ID)["README.md"].decode()
        assert problems(card) == ([], [])
        assert "steps: 1" in card.replace("*", "") and f'from_pretrained("{ID}")' in card and "license: mit" in card
        # It came from the checkpoint. The folder of the run gets its own when the prompt is saved there.
        assert not (tmp_path / "README.md").exists()

    def test_by_epochs(self, hub: HubServer, tmp_path: Path) -> None:
        more = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 12, "save_strategy": "epoch"}
        pushing(tmp_path, hub_strategy="every_save", **more).train()
        assert titles(hub) == ["Training in progress, epoch 1"]

    def test_a_push_that_is_not_done_is_not_joined_by_another(self, hub: HubServer, tmp_path: Path) -> None:
        pushing(tmp_path, max_steps=3, hub_strategy="every_save", callbacks=[Gate()]).train()
        assert titles(hub) == ["Training in progress, step 1"]

    def test_unless_that_is_wanted_even_of_checkpoints_that_are_gone(self, hub: HubServer, tmp_path: Path) -> None:
        trainer = pushing(
            tmp_path, max_steps=3, hub_strategy="all_checkpoints", hub_always_push=True, save_total_limit=1,
            callbacks=[Gate()],
        )  # fmt: skip
        trainer.train()
        assert [name for name in os.listdir(tmp_path) if name.startswith("checkpoint")] == ["checkpoint-3"]
        for step in (1, 2, 3):
            prompt = TransferableVisualPrompt.from_pretrained(ID, subfolder=f"checkpoint-{step}")
            assert prompt.delta.any()
        assert torch.equal(prompt.delta, delta(trainer)) and len(titles(hub)) == 6

    def test_a_second_run_in_the_same_folder(self, hub: HubServer, tmp_path: Path) -> None:
        for seed in (1, 2):
            trainer = pushing(
                tmp_path, max_steps=1, hub_strategy="checkpoint", data_seed=seed, learning_rate=0.1 * seed
            )
            trainer.train()
        assert set(files_of(hub, name=ID)) == OURS | {f"last-checkpoint/{name}" for name in CARDLESS}
        assert torch.equal(TransferableVisualPrompt.from_pretrained(ID).delta, delta(trainer))
        assert "learning rate: 0.2" in files_of(hub, name=ID)["README.md"].decode()

    def test_resuming_goes_on_with_the_same_repository(self, hub: HubServer, tmp_path: Path) -> None:
        pushing(tmp_path, max_steps=1, hub_strategy="checkpoint").train()
        trainer = pushing(tmp_path, max_steps=2, hub_strategy="checkpoint")
        trainer.train(resume_from_checkpoint=True)
        assert titles(hub)[-1] == "Training in progress, step 2"
        assert torch.equal(TransferableVisualPrompt.from_pretrained(ID).delta, delta(trainer))


class TestPushing:
    def test_nothing_of_the_run_goes_along(self, hub: HubServer, tmp_path: Path) -> None:
        trainer = pushing(tmp_path / "secret-folder", hub_strategy="all_checkpoints", hub_always_push=True)
        (tmp_path / "secret-folder").mkdir(exist_ok=True)
        (tmp_path / "secret-folder" / "notes.txt").write_text("mine")
        trainer.train()
        trainer.save_state()
        trainer.push_to_hub()
        for path, content in files_of(hub, name=ID).items():
            assert not path.endswith((".bin", ".pt", ".pth", ".txt")) and "state" not in path
            for secret in (b"hf_someone", str(tmp_path).encode(), b"secret-folder", str(Path.home()).encode() + b"/"):
                assert secret not in content, path
        assert (tmp_path / "secret-folder" / "trainer_state.json").exists()

    def test_where_and_as_whom_the_arguments_say(self, hub: HubServer, tmp_path: Path) -> None:
        trainer = pushing(
            tmp_path, hub_model_id="other/mine", hub_token="hf_other", hub_private_repo=True, hub_revision="trial",
            hub_strategy="every_save",
        )  # fmt: skip
        trainer.train()
        trainer.push_to_hub()
        repo = hub.repos["model", "other/mine"]
        assert repo.private and set(repo.files("trial")) == OURS and set(repo.files()) == {".gitattributes"}
        assert {request.headers["authorization"] for request in hub.requests if request.route.startswith("/api")} == {
            "Bearer hf_other"
        }
        trainer.push_to_hub(revision="main")
        assert set(repo.files()) == OURS

    def test_without_a_name_the_folder_gives_it(self, hub: HubServer, tmp_path: Path) -> None:
        trainer = pushing(tmp_path / "tvp-digits", hub_model_id=None, max_steps=1)
        assert trainer.hub_model_id == "someone/tvp-digits"
        trainer.push_to_hub()
        assert set(files_of(hub, name="someone/tvp-digits")) == OURS

    def test_a_trainer_that_was_not_told_to_push(self, hub: HubServer, tmp_path: Path) -> None:
        trainer = pushing(tmp_path, push_to_hub=False, hub_strategy="every_save")
        trainer.train()
        trainer.save_model()
        assert not hub.requests
        trainer.push_to_hub(private=True, license="mit", tags=["digits"])
        assert hub.repos["model", ID].private
        card = files_of(hub, name=ID)["README.md"].decode()
        assert "license: mit\n" in card and "- digits\n" in card and f'from_pretrained("{ID}")' in card

    def test_saving_pushes(self, hub: HubServer, tmp_path: Path) -> None:
        trainer = pushing(tmp_path)
        trainer.save_model()
        assert titles(hub) == ["Model save"] and set(files_of(hub, name=ID)) == OURS

    def test_in_the_background(self, hub: HubServer, tmp_path: Path) -> None:
        job = pushing(tmp_path).push_to_hub(blocking=False)
        assert isinstance(job, Future) and job.result(60).oid == hub.repos["model", ID].revisions["main"]

    def test_text_on_the_hub_and_here_stays(self, hub: HubServer, tmp_path: Path) -> None:
        trainer = pushing(tmp_path, hub_strategy="every_save")
        trainer.train()
        trainer.push_to_hub()
        repo = hub.repos["model", ID]
        edited = (
            repo.files()["README.md"].decode().replace("license:", "language: en\nlicense:") + "\nWritten there.\n"
        )
        repo.add({"README.md": edited.encode()})
        trainer.push_to_hub()
        assert repo.files()["README.md"].decode().endswith("Written there.\n")

    def test_only_the_first_process_talks_to_the_hub(
        self, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(TransferableVisualPromptTrainer, "is_world_process_zero", lambda self: False)
        trainer = pushing(tmp_path, hub_strategy="checkpoint")
        trainer.train()
        assert trainer.push_to_hub() is None and trainer.save_model() is None
        assert not hub.requests and not (tmp_path / "README.md").exists()


class TestBeforeTraining:
    """What would fail after hours of training fails before it, in one sentence."""

    def test_a_token_that_is_none(self, hub: HubServer, tmp_path: Path) -> None:
        with pytest.raises(
            PermissionError, match=rf"Could not prepare to push to {ID}: .*401.*hf auth login"
        ) as error:
            pushing(tmp_path, hub_token="hf_wrong")
        assert "hf_wrong" not in str(error.value)

    def test_a_token_that_may_only_read(self, hub: HubServer, tmp_path: Path) -> None:
        hub.add_user("reader", "hf_reader", orgs=("org",), role="read")
        hub.add_repo(ID)
        with pytest.raises(PermissionError, match=f"Could not prepare to push to {ID}: .*403"):
            pushing(tmp_path, hub_token="hf_reader")

    def test_the_repository_of_somebody_else(self, hub: HubServer, tmp_path: Path) -> None:
        hub.add_repo("other/theirs")
        with pytest.raises(PermissionError, match=r"Could not prepare to push to other/theirs: .*403"):
            pushing(tmp_path, hub_model_id="other/theirs")

    def test_a_public_repository_where_a_private_one_is_wanted(self, hub: HubServer, tmp_path: Path) -> None:
        hub.add_repo(ID)
        with pytest.raises(PermissionError, match=f"{ID} exists and is public.*another `hub_model_id`"):
            pushing(tmp_path, hub_private_repo=True)

    def test_no_hub(self, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        without_waiting(monkeypatch)
        hub.stop()
        with pytest.raises(ConnectionError, match=f"Could not prepare to push to {ID}: .*cannot be reached") as error:
            pushing(tmp_path)
        one_sentence(error)

    def test_offline(self, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        huggingface_hub.close_session()
        with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE forbids") as error:
            pushing(tmp_path)
        one_sentence(error)

    def test_a_hub_that_does_not_know_the_question_is_no_reason_to_stop(self, hub: HubServer, tmp_path: Path) -> None:
        hub.faults.append(Fault(path="/auth-check/write", status=404))
        assert pushing(tmp_path).hub_model_id == ID


class TestFailures:
    @pytest.mark.parametrize(
        "fault",
        [Fault("/commit/", status=403, times=99), Fault("/commit/", status=500, times=99),
         Fault("/storage/", "PUT", cut_request_after=10, times=99)],
        ids=["403", "500", "cut"],
    )  # fmt: skip
    def test_training_goes_on(
        self, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
        fault: Fault,
    ) -> None:  # fmt: skip
        without_waiting(monkeypatch)
        trainer = pushing(tmp_path, hub_strategy="checkpoint", hub_always_push=True)
        hub.faults.append(fault)
        trainer.train()
        assert trainer.state.global_step == 2 and {"checkpoint-1", "checkpoint-2"} <= set(os.listdir(tmp_path))
        told = [record.getMessage() for record in caplog.records if "Training goes on" in record.getMessage()]
        assert [text.split(" failed")[0] for text in told] == [
            f"Training goes on, but the push of step {step}" for step in (1, 1, 2, 2)
        ]
        assert all(f"Could not push to {ID}" in text and f"hf upload {ID} " in text for text in told)
        assert not any("hf_someone" in text for text in told)
        hub.faults.clear()
        trainer.push_to_hub()
        assert set(files_of(hub, name=ID)) == OURS

    def test_a_hub_that_goes_away_and_comes_back(
        self, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        without_waiting(monkeypatch)

        class Outage(TrainerCallback):
            def on_push_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == 1:
                    hub.stop()

            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == 1:
                    trainer._finish_current_push()
                    hub.start()

        trainer = pushing(tmp_path, hub_strategy="every_save", callbacks=[Outage()])
        trainer.train()
        assert "the push of step 1 failed: Could not push to" in caplog.text and "cannot be reached" in caplog.text
        assert titles(hub) == ["Training in progress, step 2"]

    def test_a_card_that_holds_the_token_is_not_pushed(
        self, hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        trainer = pushing(tmp_path, hub_strategy="every_save", max_steps=1)
        trainer.create_model_card()
        (tmp_path / "README.md").write_text(card_of(tmp_path) + "\nlogin: hf_someone\n", encoding="utf-8")
        trainer.train()
        assert "Training goes on, but step 1 is not pushed:" in caplog.text
        with pytest.raises(ValueError, match="holds your token"):
            trainer.push_to_hub()
        assert titles(hub) == [] and torch.equal(
            TransferableVisualPrompt.from_pretrained(tmp_path).delta, delta(trainer)
        )

    def test_at_the_end_everything_is_here_and_the_error_says_how_to_push_it(
        self, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        without_waiting(monkeypatch)
        trainer = pushing(tmp_path / "my run")
        trainer.train()
        hub.stop()
        with pytest.raises(ConnectionError, match=f"Could not push to {ID}") as error:
            trainer.push_to_hub(license="mit")
        command = shlex.split(one_sentence(error).split("by hand: ")[1])
        assert command[:4] == ["hf", "upload", ID, str(tmp_path / "my run")]
        assert set(SHARED_FILES) <= set(os.listdir(tmp_path / "my run"))
        assert torch.equal(TransferableVisualPrompt.from_pretrained(tmp_path / "my run").delta, delta(trainer))
        assert "license: mit\n" in card_of(tmp_path / "my run")
        hub.start()
        trainer.push_to_hub()
        assert set(files_of(hub, name=ID)) == OURS

    def test_in_the_background_it_is_told_even_if_nobody_asks(
        self, hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        trainer = pushing(tmp_path)
        hub.faults.append(Fault("/commit/", status=403))
        job = trainer.push_to_hub(blocking=False)
        assert "403" in str(job.exception(60))
        # The client has one queue: what stood behind the push in it has been done.
        huggingface_hub.run_as_future(lambda: None).result(60)
        assert "The push failed: Could not push to" in caplog.text


class TestCard:
    def test_saving_writes_one_and_asks_nobody(self, hub: HubServer, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path / "run")
        trainer.train()
        trainer.save_model()
        assert problems(card_of(tmp_path / "run")) == ([], [])
        assert sorted(os.listdir(tmp_path / "run")) == sorted(SHARED_FILES)
        trainer.save_model(str(tmp_path / "elsewhere"))
        assert card_of(tmp_path / "elsewhere") == card_of(tmp_path / "run")
        assert not hub.requests

    def test_checkpoints_have_none_unless_they_are_pushed(self, tmp_path: Path) -> None:
        make_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
        assert sorted(os.listdir(tmp_path)) == ["checkpoint-1"]
        assert sorted(os.listdir(tmp_path / "checkpoint-1")) == sorted([*CARDLESS, *STATE])

    def test_what_a_user_wrote_stays(self, hub: HubServer, tmp_path: Path) -> None:
        trainer = pushing(tmp_path, max_steps=1, hub_strategy="every_save")
        trainer.create_model_card()
        text = card_of(tmp_path).replace("\n---\n", "\nlanguage: en\n---\n", 1) + "\n## Mine\n\nWhat I think of it.\n"
        (tmp_path / "README.md").write_text(text, encoding="utf-8")
        trainer.train()
        pushed = files_of(hub, name=ID)["README.md"].decode()
        trainer.save_model()
        for card in (pushed, card_of(tmp_path), files_of(hub, name=ID)["README.md"].decode()):
            assert card.endswith("\n## Mine\n\nWhat I think of it.\n") and "\nlanguage: en\n" in card
            assert "steps: 1" in card.replace("*", "")

    def test_what_it_is_told_goes_into_later_cards(self, tmp_path: Path) -> None:
        trainer = TransferableVisualPromptTrainer(
            model=new_prompt(), args=make_args(tmp_path / "run"), surrogates=surrogate("llava"),
            train_dataset=dataset(12), card={"license": "mit", "dataset_name": "me/pictures", "tags": None},
        )  # fmt: skip
        trainer.create_model_card(tags="digits", dataset_name=[{"id": "me/others", "revision": "abc"}])
        trainer.save_model(str(tmp_path / "elsewhere"))
        for folder in ("run", "elsewhere"):
            data = metadata_load(tmp_path / folder / "README.md")
            assert data["license"] == "mit" and data["datasets"] == ["me/others"] and data["tags"][-1] == "digits"

    @pytest.mark.parametrize("name", ["dataset", "dataset_tags", "dataset_name"])
    def test_names_of_transformers_for_the_data(self, tmp_path: Path, name: str) -> None:
        make_trainer(tmp_path).create_model_card(**{name: "me/pictures"})
        assert metadata_load(tmp_path / "README.md")["datasets"] == ["me/pictures"]

    def test_what_the_card_has_no_place_for(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        trainer = make_trainer(tmp_path)
        trainer.create_model_card(language="en", model_name=None)
        assert "The card is made without language:" in caplog.text
        with pytest.raises(TypeError, match="got licence; it takes license, dataset_name, tags"):
            trainer.create_model_card(licence="mit")

    @pytest.mark.parametrize("config", [{"layout": "overlay"}, {"value_range": "unbounded"}])
    def test_prompts_that_are_no_picture(self, hub: HubServer, tmp_path: Path, config: dict[str, Any]) -> None:
        trainer = pushing(tmp_path, model=new_prompt(**SMALL | config), hub_strategy="checkpoint", max_steps=1)
        trainer.train()
        trainer.push_to_hub()
        names = {name for name in CARDLESS if name != "prompt.png"}
        assert set(files_of(hub, name=ID)) == OURS - {"prompt.png"} | {f"last-checkpoint/{name}" for name in names}
