"""The card beside a shared prompt: true, readable by the Hub, and silent about the machine it was made on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from huggingface_hub import ModelCard, metadata_load
from tiny_training import NAMES, dataset, make_trainer, new_prompt, rig, rows, surrogate

from transferable_vp import Surrogate, TransferableVisualPromptTrainer


def write(trainer: TransferableVisualPromptTrainer) -> str:
    trainer.create_model_card()
    return (Path(trainer.args.output_dir) / "README.md").read_text(encoding="utf-8")


def measured(card: str) -> list[str]:
    return card.split("## Measured\n", 1)[1].strip().splitlines()


def named(path: str) -> Surrogate:
    """A surrogate that was loaded from `path`."""
    model, processor = tiny.build("llava")
    model.config._name_or_path = path
    return Surrogate(model, processor)


def test_is_written_when_asked_for(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    trainer.save_model()
    assert not (tmp_path / "README.md").exists()
    trainer.create_model_card()
    assert ModelCard.load(tmp_path / "README.md").content.startswith("---\n")


def test_what_the_user_wrote_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    assert write(make_trainer(tmp_path)) == "mine"


def test_the_hub_can_read_it(tmp_path: Path) -> None:
    write(make_trainer(tmp_path))
    data = metadata_load(tmp_path / "README.md")
    assert data == {
        "library_name": "transferable-vp",
        "tags": ["transferable-vp", "visual-prompt"],
        "pipeline_tag": "image-text-to-text",
    }
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "transferable-vp"
    assert card.text.strip().startswith("# A transferable visual prompt")


def test_models_of_the_hub_are_named_and_local_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "llava").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    # In turn: on the Hub, an absolute folder, a relative one that looks like a Hub id, one that is gone, in memory.
    paths = ["llava-hf/llava-1.5-7b-hf", str(tmp_path / "here" / "llava"), "here/llava", "/gone/from/here/other", ""]
    card = write(make_trainer(tmp_path / "run", surrogates=[named(path) for path in paths]))
    assert metadata_load(tmp_path / "run" / "README.md")["base_model"] == ["llava-hf/llava-1.5-7b-hf"]
    for private in (str(tmp_path), "here", "gone"):
        assert private not in card
    assert (
        "learned on `llava-1.5-7b-hf` (llava), `llava` (llava), `llava` (llava), `other` (llava), `model` (llava)"
        in card
    )


def test_says_how_the_prompt_was_made(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, update_rule="paper", learning_rate=2.5, max_steps=2, seed=7, task_weight=0.5, fca_weight=0.25,
        per_device_train_batch_size=3, gradient_accumulation_steps=2,
    )  # fmt: skip
    trainer.train()
    card = write(trainer)
    assert "A border of 6 pixels on a canvas of 32 x 32 pixels, learned on `llava` (llava)." in card
    assert "- question: This is a photo of a\n" in card
    assert "- weights: task 0.5, FCA 0.25, TSE 0.0\n" in card
    # The whole batch that one step is taken on.
    assert "- update rule: paper, learning rate 2.5, batch 6, seed 7,\n  2 steps\n" in card
    assert measured(card) == ["Nothing was measured during training."]


def test_an_overlay_and_questions_of_their_own(tmp_path: Path) -> None:
    data = [{"image": row["image"], "question": "What?", "answer": "one"} for row in rows(2)]
    card = write(make_trainer(tmp_path, model=new_prompt(layout="overlay"), train_dataset=data))
    assert "An overlay on a canvas" in card and "- question: one per image\n" in card


def test_lists_the_last_accuracy_of_every_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig(monkeypatch, llava=[0.25, 0.75], idefics3=[1.0, 0.5])
    trainer = make_trainer(tmp_path, eval_dataset=dataset(4), targets=[surrogate("idefics3")])
    trainer.evaluate()
    trainer.evaluate()
    title, _, *table = measured(write(trainer))
    assert title == "Accuracy on the validation data, as last measured:"
    assert table == ["| model | accuracy |", "|---|---|", "| `llava` | 75.0% |", "| `idefics3` | 50.0% |"]


def test_lists_every_validation_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig(monkeypatch, llava=[0.25, 0.75])
    trainer = make_trainer(tmp_path, eval_dataset={"seen": dataset(4), "unseen": dataset(4)})
    trainer.evaluate()
    table = measured(write(trainer))
    assert "| `seen_llava` | 25.0% |" in table and "| `unseen_llava` | 75.0% |" in table


def test_lists_losses_where_there_are_no_candidates(tmp_path: Path) -> None:
    data = [{"image": row["image"], "answer": NAMES[row["label"]]} for row in rows(3)]
    trainer = make_trainer(tmp_path, train_dataset=data, eval_dataset=data)
    metrics: dict[str, Any] = trainer.evaluate()
    title, _, *table = measured(write(trainer))
    assert title == "Loss on the validation data, as last measured:"
    assert table == ["| model | loss |", "|---|---|", f"| `llava` | {metrics['eval_loss']:.4g} |"]
