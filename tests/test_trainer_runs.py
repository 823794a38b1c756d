"""The trainer, where runs end: resumed, stopped by bad numbers, bad data or a full disk, and what they leave behind."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
import torch
from tiny_training import (
    BORDER,
    CANVAS,
    FEATURES,
    NAMES,
    TASK,
    dataset,
    delta,
    losses,
    make_trainer,
    new_prompt,
    rows,
    surrogate,
)
from transformers import AutoModel, Trainer, TrainerCallback

from transferable_vp import (
    Objective,
    Step,
    Task,
    TransferableVisualPrompt,
    evaluate,
)
from transferable_vp.data import BadImageError


class StopAt(TrainerCallback):
    """Interrupts a run, as a time limit would, without changing its schedule."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def assert_same_run(whole: Any, parts: Any) -> None:
    assert torch.equal(delta(whole), delta(parts))
    assert losses(whole) == losses(parts)
    assert len(losses(whole)) == whole.state.global_step == parts.state.global_step


class TestResume:
    # Ten rows in batches of three make four steps an epoch, the last of a single row.
    @pytest.mark.parametrize(
        ("stop", "more"),
        [
            pytest.param(3, {}, id="adam"),
            pytest.param(4, {}, id="between epochs"),
            pytest.param(3, {"update_rule": "paper", "max_steps": -1, "num_train_epochs": 2}, id="paper"),
            pytest.param(3, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, id="accumulation"),
        ],
    )
    def test_is_exact_to_the_bit(self, stop: int, more: dict[str, Any], tmp_path: Path) -> None:
        def make(folder: str, **args: Any) -> Any:
            return make_trainer(
                tmp_path / folder, train_dataset=dataset(10), task=Task(**(vars(TASK) | {"flip": True})),
                **({"max_steps": 6, "per_device_train_batch_size": 3} | more | args),
            )  # fmt: skip

        whole = make("whole")
        whole.train()
        make("parts", save_strategy="steps", save_steps=stop, callbacks=[StopAt(stop)]).train()
        torch.manual_seed(1234)
        resumed = make("parts", save_strategy="no")
        resumed.train(resume_from_checkpoint=True)
        assert_same_run(whole, resumed)

    @pytest.mark.parametrize(
        ("change", "shown"),
        [
            ({"canvas_size": 40}, "canvas_size=32 and the prompt to train has 40"),
            ({"border_size": 4}, "border_size=6 and the prompt to train has 4"),
            ({"layout": "both"}, "layout='border' and the prompt to train has 'both'"),
            ({"epsilon": 0.5}, r"epsilon=0.06\d+ and the prompt to train has 0.5"),
            ({"value_range": "unbounded"}, "value_range='displayable' and the prompt to train has 'unbounded'"),
        ],
    )
    def test_with_another_configuration(self, change: dict[str, Any], shown: str, tmp_path: Path) -> None:
        new_prompt().save_pretrained(tmp_path / "checkpoint-3")
        (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")
        trainer = make_trainer(tmp_path, model=new_prompt(**change))
        with pytest.raises(ValueError, match=f"checkpoint-3 has {shown}: resume with the same configuration"):
            trainer.train(resume_from_checkpoint=True)

    def test_from_a_truncated_file(self, tmp_path: Path) -> None:
        make_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
        weights = tmp_path / "checkpoint-1" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(OSError, match=r"weights of .*checkpoint-1.* are damaged or cut short"):
            make_trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=True)

    def test_training_twice_goes_on(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, model=tiny.noise_prompt(canvas_size=CANVAS, border_size=BORDER), max_steps=3,
                               logging_steps=2, learning_rate=0.5)  # fmt: skip
        trainer.train()
        first = delta(trainer)
        trainer.train()
        second = delta(trainer)
        assert not torch.equal(first, second)
        # Projected after every step of the second run as well.
        assert second.min() >= 0 and second.max() <= 1 and (second[:, ~trainer.model.border_mask[0]] == 0).all()
        # The step that the first run had not logged yet does not count in the second's means.
        (entry,) = losses(trainer)
        assert entry["loss"] == pytest.approx(entry["task_loss"] + 0.005 * entry["fca_loss"], rel=1e-5)


class TestNotFinite:
    @staticmethod
    def moody(step: int, value: float) -> Objective:
        calls = [0]

        def function(batch: Step) -> torch.Tensor:
            calls[0] += 1
            return batch.canvas.mean() * (value if calls[0] == step else 1.0)

        return Objective("moody", function)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_loss_stops_training_and_the_last_good_checkpoint_is_named(self, value: float, tmp_path: Path) -> None:
        trainer = make_trainer(
            tmp_path, max_steps=5, save_strategy="steps", save_steps=1, objectives=[self.moody(3, value)]
        )
        message = (
            rf"The moody loss is {value} at step 3; training stops and the last good checkpoint is .*checkpoint-2\."
        )
        with pytest.raises(FloatingPointError, match=message):
            trainer.train()
        kept = TransferableVisualPrompt.from_pretrained(tmp_path / "checkpoint-2")
        assert kept.delta.isfinite().all() and kept.delta.any()
        assert torch.equal(delta(trainer), kept.delta)
        assert not (tmp_path / "checkpoint-3").exists()

    def test_before_the_first_checkpoint(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path / "new", objectives=[self.moody(1, math.nan)])
        with pytest.raises(FloatingPointError, match="at step 1; training stops and no checkpoint had been saved yet"):
            trainer.train()

    @pytest.mark.parametrize("rule", ["adam", "paper"])
    def test_a_gradient_stops_training_before_it_reaches_the_prompt(self, rule: str, tmp_path: Path) -> None:
        # Zero, whose root has no finite slope. The model sees 8-bit images, so its loss would never tell.
        flat = Objective("flat", lambda step: step.outputs[0].logits.mean().mul(0).sqrt())
        trainer = make_trainer(tmp_path, update_rule=rule, objectives=[flat])
        with pytest.raises(FloatingPointError, match="The gradient is not finite, while every loss is, at step 1;"):
            trainer.train()
        assert delta(trainer).isfinite().all()


class TestBadData:
    @staticmethod
    def data(folder: Path, bad: tuple[int, ...] = (2, 7)) -> list[dict[str, Any]]:
        """Twelve rows with paths, of which some are no pictures."""
        table = []
        for i, row in enumerate(rows(12)):
            path = folder / f"{i}.png"
            row["image"].save(path)
            if i in bad:
                path.write_bytes(path.read_bytes()[:60])
            table.append({"image": str(path), "label": row["label"]})
        return table

    def test_an_image_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        data = datasets.Dataset.from_list(self.data(tmp_path, bad=(2,)), features=FEATURES)
        with pytest.raises(BadImageError, match=r"2\.png\) cannot be read.*`skip_bad_images=True`"):
            make_trainer(tmp_path / "run", train_dataset=data).train()

    @pytest.mark.parametrize("workers", [0, 2])
    def test_or_left_out_and_counted(self, workers: int, tmp_path: Path) -> None:
        data = datasets.Dataset.from_list(self.data(tmp_path), features=FEATURES)
        sizes: list[int] = []

        def note(step: Step) -> torch.Tensor:
            sizes.append(len(step.canvas))
            return step.canvas.mean()

        trainer = make_trainer(
            tmp_path / "run", train_dataset=data, train_sampling_strategy="sequential", skip_bad_images=True,
            objectives=[Objective("note", note)], dataloader_num_workers=workers,
        )  # fmt: skip
        trainer.train()
        assert sizes == [3, 3, 4]
        assert [entry["skipped_images"] for entry in losses(trainer)] == [1, 2, 2]

    def test_a_batch_with_none_left_is_the_last_image_before_it(self, tmp_path: Path) -> None:
        data = datasets.Dataset.from_list(self.data(tmp_path, bad=(4, 5, 6, 7)), features=FEATURES)
        seen: list[torch.Tensor] = []

        def note(step: Step) -> torch.Tensor:
            seen.append(step.canvas.detach().clone())
            return 0 * step.canvas.mean()

        trainer = make_trainer(
            tmp_path / "run", train_dataset=data, train_sampling_strategy="sequential", skip_bad_images=True,
            learning_rate=0.0, objectives=[Objective("note", note)], task=TASK,
        )  # fmt: skip
        trainer.train()
        assert [len(canvas) for canvas in seen] == [4, 1, 4]
        assert torch.equal(seen[1][0], seen[0][3])
        assert [entry["skipped_images"] for entry in losses(trainer)] == [0, 4, 4]

    def test_none_is_counted_where_none_may_be_skipped(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, max_steps=1)
        trainer.train()
        assert "skipped_images" not in losses(trainer)[0]

    def test_and_in_evaluation(self, tmp_path: Path) -> None:
        data = self.data(tmp_path)
        trainer = make_trainer(tmp_path / "run", eval_dataset=data, skip_bad_images=True, task=TASK)
        good = [row for i, row in enumerate(data) if i not in (2, 7)]
        expected = evaluate(surrogate("llava"), good, TASK, trainer.model, progress=False).mean
        assert trainer.evaluate()["eval_accuracy"] == pytest.approx(expected)

    def test_a_label_outside_the_list(self, tmp_path: Path) -> None:
        data = [*rows(3), {"image": tiny.picture(), "label": 7}]
        task = Task(answer_column="label", candidates=NAMES)
        with pytest.raises(
            ValueError, match=r"The label of .* is 7, outside the 3 classes \('one', 'cat', 'six', ...\)"
        ):
            make_trainer(tmp_path, train_dataset=data, task=task).train()


class TestFullDisk:
    @staticmethod
    def fill(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The disk is full from the second checkpoint on, when it comes to `stage`."""

        def at_second(original: Callable[..., Any], full: Callable[[], Any]) -> Callable[..., Any]:
            calls = [0]

            def saving(*args: Any, **kwargs: Any) -> Any:
                calls[0] += 1
                return full() if calls[0] > 1 else original(*args, **kwargs)

            return saving

        def no_space() -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        if stage == "prompt":
            original = TransferableVisualPrompt.save_pretrained
            monkeypatch.setattr(TransferableVisualPrompt, "save_pretrained", at_second(original, no_space))
        elif stage == "optimizer":
            # What torch raises here is its own, and no OSError.
            def full_device() -> None:
                torch.save({"state": torch.zeros(10_000)}, "/dev/full")

            saver = Trainer._save_optimizer_and_scheduler
            monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", at_second(saver, full_device))
        else:
            from transformers import TrainerState

            original, calls = TrainerState.save_to_json, [0]

            def half_written(self: TrainerState, json_path: str) -> None:
                calls[0] += 1
                original(self, json_path)
                if calls[0] > 1:
                    os.truncate(json_path, 20)
                    no_space()

            monkeypatch.setattr(TrainerState, "save_to_json", half_written)

    @pytest.mark.parametrize("stage", ["prompt", "optimizer", "state"])
    def test_leaves_the_checkpoint_before_and_no_half_one(
        self, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if stage == "optimizer" and not Path("/dev/full").exists():
            pytest.skip("no /dev/full on this system")
        trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=1)
        message = r"The disk is full: the checkpoint of step 2 could not be saved\. The previous one, .*checkpoint-1, is whole"
        with monkeypatch.context() as patch:
            self.fill(stage, patch)
            with pytest.raises(OSError, match=message) as caught:
                trainer.train()
        assert caught.value.errno == errno.ENOSPC
        assert os.listdir(tmp_path) == ["checkpoint-1"]
        assert TransferableVisualPrompt.from_pretrained(tmp_path / "checkpoint-1").delta.any()
        again = make_trainer(tmp_path)
        again.train(resume_from_checkpoint=True)
        assert again.state.global_step == 3

    def test_at_the_first_checkpoint(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*args: Any, **kwargs: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(TransferableVisualPrompt, "save_pretrained", full)
        trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=1)
        with pytest.raises(OSError, match=r"step 1 could not be saved\. Free some space and start again"):
            trainer.train()

    def test_another_error_is_not_taken_for_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*args: Any, **kwargs: Any) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", refused)
        trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=1)
        with pytest.raises(PermissionError, match="Permission denied"):
            trainer.train()
        # The half checkpoint is gone here too: resuming from it would fail.
        assert os.listdir(tmp_path) == []


PROMPT_FILES = ["config.json", "model.safetensors", "preview.png", "prompt.png"]


class TestSaving:
    def test_a_checkpoint_is_the_prompt_and_what_resuming_needs(self, tmp_path: Path) -> None:
        tokenizer = surrogate("llava").processor.tokenizer
        make_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1, processing_class=tokenizer).train()
        state = ["optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"]
        assert sorted(os.listdir(tmp_path / "checkpoint-1")) == sorted([*PROMPT_FILES, *state])
        size = sum(file.stat().st_size for file in (tmp_path / "checkpoint-1").iterdir())
        assert size < 200_000

    def test_a_saved_prompt_is_what_is_shared_and_loads_to_the_bit(self, tmp_path: Path) -> None:
        tokenizer = surrogate("llava").processor.tokenizer
        trainer = make_trainer(tmp_path, processing_class=tokenizer)
        trainer.train()
        trainer.save_model()
        assert sorted(os.listdir(tmp_path)) == ["README.md", *PROMPT_FILES]
        assert torch.equal(AutoModel.from_pretrained(tmp_path).delta, delta(trainer))
        assert "use_cache" not in (tmp_path / "config.json").read_text(encoding="utf-8")

    def test_old_checkpoints_are_removed_when_asked(self, tmp_path: Path) -> None:
        make_trainer(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=2).train()
        assert sorted(os.listdir(tmp_path)) == ["checkpoint-2", "checkpoint-3"]
