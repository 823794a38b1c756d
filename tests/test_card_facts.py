"""What a card is told about a run: all that made the prompt, and nothing of the machine it was made on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
from huggingface_hub import constants
from tiny_training import NAMES, dataset, make_args, make_trainer, new_prompt, rig, rows, semantics, surrogate

from transferable_vp import Objective, Surrogate, TransferableVisualPromptTrainingArguments, __version__
from transferable_vp.card_facts import facts_of_trainer


COMMIT = "0b2714987fa478483af9968de7c934580d0bb9a2"


def named(path: str, commit: str | None = None) -> Surrogate:
    """A surrogate that was loaded from `path`."""
    model, processor = tiny.build("llava")
    model.config._name_or_path, model.config._commit_hash = path, commit
    return Surrogate(model, processor)


def test_a_short_run(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, update_rule="paper", learning_rate=2.5, max_steps=2, seed=7, task_weight=0.5, fca_weight=0.25,
        tse_weight=0.125, semantics=semantics(), per_device_train_batch_size=3, gradient_accumulation_steps=2,
    )  # fmt: skip
    trainer.train()
    facts = facts_of_trainer(trainer, license="mit")
    assert facts.config is trainer.model.config and facts.license == "mit" and facts.known
    assert facts.task == {
        "question": "This is a photo of a", "candidates": NAMES, "caption": "this is a photo of a {answer}",
    }  # fmt: skip
    assert facts.sources == [{"id": "llava", "is_hub": False, "revision": None, "model_type": "llava"}]
    assert facts.datasets == []
    assert facts.recipe == {
        "weights": "task 0.5, fca 0.25, tse 0.125", "update rule": "paper", "learning rate": 2.5, "block size": 1, "batch": 6,
        "steps": 2, "epochs": 1.0, "seed": 7,
    }  # fmt: skip
    assert facts.changed == {"per_device_train_batch_size": 3, "max_steps": 2, "gradient_accumulation_steps": 2}
    assert [list(row) for row in facts.loss_curve] == [["step", "loss", "task_loss", "fca_loss", "tse_loss"]] * 2
    assert [row["step"] for row in facts.loss_curve] == [1, 2]
    assert facts.validation == {} and facts.metric == "accuracy"
    assert facts.versions == {"transferable_vp": __version__} | {n: version(n) for n in ("torch", "transformers")}


def test_before_training(tmp_path: Path) -> None:
    facts = facts_of_trainer(make_trainer(tmp_path))
    assert facts.recipe["steps"] == 0 and facts.loss_curve == []


def test_models_of_the_hub_have_ids_and_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "llava").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    # In turn: on the Hub, an absolute folder, a relative one that looks like a Hub id, one that is gone, in memory.
    paths = ["llava-hf/llava-1.5-7b-hf", str(tmp_path / "here" / "llava"), "here/llava", "/gone/from/here/other", ""]
    surrogates = [named(path, COMMIT) for path in paths]
    sources = facts_of_trainer(make_trainer(tmp_path / "run", surrogates=surrogates)).sources
    assert [source["id"] for source in sources] == ["llava-hf/llava-1.5-7b-hf", "llava", "llava", "other", "model"]
    assert [source["is_hub"] for source in sources] == [True, False, False, False, False]
    assert [source["revision"] for source in sources] == [COMMIT, None, None, None, None]


def test_questions_and_objectives_of_their_own(tmp_path: Path) -> None:
    data = [{"image": row["image"], "question": "What?", "answer": "one"} for row in rows(2)]
    smooth = Objective("smooth", lambda step: step.canvas.diff(dim=-1).abs().mean(), weight=0.1)
    facts = facts_of_trainer(make_trainer(tmp_path, train_dataset=data, objectives=[smooth]))
    assert facts.task is not None and facts.task["question"] is None and facts.task["candidates"] is None
    assert facts.recipe["weights"] == "task 1, fca 0.005, tse 0, smooth 0.1"
    assert facts.metric == "loss" and facts.datasets == []


# Datasets


def cached(folder: Path, name: str = "my_data", commit: str = COMMIT) -> datasets.Dataset:
    """A dataset as `load_dataset` leaves it in its cache when it comes from the Hub."""
    kept = folder / f"uoft-cs___{name}" / "plain_text" / "0.0.0" / commit
    kept.mkdir(parents=True)
    part = folder / "part"
    dataset(4).save_to_disk(part)
    (part / "data-00000-of-00001.arrow").rename(kept / f"{name}-train.arrow")
    info = datasets.DatasetInfo(features=dataset(4).features, dataset_name=name, config_name="plain_text")
    return datasets.Dataset.from_file(str(kept / f"{name}-train.arrow"), info=info, split=datasets.Split.TRAIN)


def test_a_dataset_of_the_hub_says_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = cached(tmp_path)
    trainer = make_trainer(tmp_path / "run", train_dataset=found)
    # The cache of `datasets` has no exact name, so that this is no id.
    expected = {"id": "my_data", "is_hub": False, "config": "plain_text", "split": "train", "revision": COMMIT}
    assert facts_of_trainer(trainer).datasets == [expected]
    (tmp_path / "hub" / "datasets--uoft-cs--MyData" / "snapshots" / COMMIT).mkdir(parents=True)
    expected |= {"id": "uoft-cs/MyData", "is_hub": True}
    assert facts_of_trainer(trainer).datasets == [expected]
    # What was asked for has the same name, or a name of its own.
    assert facts_of_trainer(trainer, datasets="uoft-cs/MyData").datasets == [expected]
    assert facts_of_trainer(trainer, datasets=[{"id": "uoft-cs/MyData", "split": "train[:9]"}]).datasets == [
        expected | {"split": "train[:9]"}
    ]
    other = {"id": "org/other", "is_hub": True, "config": None, "split": None, "revision": None}
    assert facts_of_trainer(trainer, datasets=["org/other"]).datasets == [other]
    # Still so when rows were chosen and shuffled.
    trainer.train_dataset = found.shuffle(seed=0).select(range(2))
    assert facts_of_trainer(trainer).datasets == [expected]


def test_addresses_of_files_say_it_too(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(rows(3), features=dataset(3).features)
    data.info.dataset_name, data.info.config_name = "cifar10", "plain_text"
    data.info.download_checksums = {f"hf://datasets/uoft-cs/CIFAR10@{COMMIT}/plain_text/train.parquet": {}}
    assert facts_of_trainer(make_trainer(tmp_path, train_dataset=data)).datasets == [
        {"id": "uoft-cs/CIFAR10", "is_hub": True, "config": "plain_text", "split": None, "revision": COMMIT}
    ]


def test_local_data_goes_by_the_last_part_of_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in ("red", "blue"):
        (folder / name).mkdir(parents=True)
        tiny.picture().save(folder / name / "1.png")
    data = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    trainer = make_trainer(tmp_path / "run", train_dataset=data)
    expected = {"id": "photos", "is_hub": False, "config": None, "split": "train", "revision": None}
    assert facts_of_trainer(trainer).datasets == [expected] == facts_of_trainer(trainer, datasets=str(folder)).datasets
    found = facts_of_trainer(make_trainer(tmp_path / "list", train_dataset=rows(3)), datasets=[str(folder)]).datasets
    assert found == [expected | {"split": None}]


def test_a_stream_is_not_touched(tmp_path: Path) -> None:
    def refuse() -> Iterator[dict[str, Any]]:
        raise AssertionError("the stream was read")
        yield {}

    stream = datasets.IterableDataset.from_generator(refuse, features=dataset(3).features)
    trainer = make_trainer(tmp_path, train_dataset=stream)
    found = facts_of_trainer(trainer, datasets=[{"id": "org/data", "revision": "main"}]).datasets
    assert found == [{"id": "org/data", "is_hub": True, "config": None, "split": None, "revision": "main"}]
    facts_of_trainer(trainer)


# Training arguments


def test_changed_arguments_are_those_of_learning(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, lr_scheduler_type="constant", warmup_steps=3, optim_args="rank=8", adam_beta1=0.5, data_seed=1,
        lr_scheduler_kwargs={"a": 1}, full_determinism=False, dataloader_num_workers=2, seed=9, learning_rate=0.01,
    )  # fmt: skip
    assert facts_of_trainer(trainer).changed == {
        "per_device_train_batch_size": 4, "max_steps": 3, "lr_scheduler_type": "constant", "warmup_steps": 3,
        "optim_args": "rank=8", "adam_beta1": 0.5, "data_seed": 1, "lr_scheduler_kwargs": '{"a": 1}',
    }  # fmt: skip


def test_defaults_are_not_changed_arguments(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.args = TransferableVisualPromptTrainingArguments(str(tmp_path), use_cpu=True)
    assert facts_of_trainer(trainer).changed == {}


@pytest.mark.parametrize("secret", ["hf_abcdefgh", "/home/me/x", "C:\\me", "org/private", "http://10.0.0.1"])
def test_no_argument_gives_a_secret_away(tmp_path: Path, secret: str) -> None:
    trainer = make_trainer(tmp_path)
    for name, value in vars(make_args(tmp_path)).items():
        # Whatever holds text, whatever may hold it, and what a later version adds.
        if isinstance(value, str | None) and not name.startswith("_"):
            setattr(trainer.args, name, secret)
    trainer.args.lr_scheduler_kwargs, trainer.args.optim_target_modules = {"x": {"y": secret}}, [secret]
    facts = facts_of_trainer(trainer)
    assert secret not in str(facts.changed)


def test_plain_words_of_where_and_who_stay_here(tmp_path: Path) -> None:
    given = dict.fromkeys(
        ("run_name", "project", "hub_model_id", "hub_revision", "hub_token", "trackio_space_id"), "secret"
    )
    trainer = make_trainer(tmp_path, **given)
    assert "secret" not in str(facts_of_trainer(trainer).changed)


@dataclass
class LaterArguments(TransferableVisualPromptTrainingArguments):
    """As they may be in another version."""

    tracker_token: str | None = None
    strength: float = 0.5


def test_arguments_of_a_later_version_are_told_but_for_tokens(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.args = LaterArguments(str(tmp_path), use_cpu=True, tracker_token="abc", strength=1.0)
    assert facts_of_trainer(trainer).changed == {"strength": 1.0}


# Curves and validation


def test_a_long_curve_is_thinned_evenly(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.state.log_history = [
        *(
            {"step": step, "loss": 1.0 / step, "task_loss": 2.0, "grad_norm": 1.0, "epoch": 0.1}
            for step in range(1, 101)
        ),
        # Again, after resuming from step 99, and what else is logged.
        {"step": 100, "loss": 7.0, "task_loss": 2.0},
        {"step": 100, "eval_loss": 5.0, "eval_llava_loss": 5.0},
        {"step": 100, "train_loss": 5.0},
    ]
    curve = facts_of_trainer(trainer).loss_curve
    assert [row["step"] for row in curve] == [1, 12, 23, 34, 45, 56, 67, 78, 89, 100]
    assert curve[-1] == {"step": 100, "loss": 7.0, "task_loss": 2.0}
    trainer.state.log_history = trainer.state.log_history[:10]
    assert [row["step"] for row in facts_of_trainer(trainer).loss_curve] == list(range(1, 11))


def test_a_resumed_run_knows_all_its_steps(tmp_path: Path) -> None:
    make_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=1).train()
    resumed = make_trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    facts = facts_of_trainer(resumed)
    assert [row["step"] for row in facts.loss_curve] == [1, 2, 3] and facts.recipe["steps"] == 3
    assert "resume_from_checkpoint" not in facts.changed


def test_the_last_accuracy_of_every_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig(monkeypatch, llava=[0.25, 0.75], idefics3=[1.0, 0.5])
    trainer = make_trainer(tmp_path, eval_dataset=dataset(4), targets=[surrogate("idefics3")])
    trainer.evaluate()
    trainer.evaluate()
    assert facts_of_trainer(trainer).validation == {"llava": 0.75, "idefics3": 0.5}


def test_every_validation_set_and_no_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig(monkeypatch, llava=[0.25, 0.75])
    trainer = make_trainer(tmp_path, eval_dataset={"seen": dataset(4), "unseen": dataset(4)})
    trainer.evaluate()
    assert facts_of_trainer(trainer).validation == {"seen_llava": 0.25, "unseen_llava": 0.75}


def test_losses_where_there_are_no_candidates(tmp_path: Path) -> None:
    data = [{"image": row["image"], "answer": NAMES[row["label"]]} for row in rows(3)]
    trainer = make_trainer(tmp_path, train_dataset=data, eval_dataset=data, model=new_prompt())
    metrics = trainer.evaluate()
    facts = facts_of_trainer(trainer)
    assert facts.metric == "loss" and facts.validation == {"llava": metrics["eval_loss"]}
