"""The trainer: what it minimises, what it changes, and how it is measured. How runs end: test_trainer_runs.py."""

from __future__ import annotations

import io
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import ExifTags, Image
from tiny_training import (
    BORDER,
    CANVAS,
    NAMES,
    TASK,
    dataset,
    delta,
    losses,
    make_args,
    make_trainer,
    new_prompt,
    rig,
    rows,
    semantics,
    surrogate,
)
from transformers import EarlyStoppingCallback, TrainerCallback

from transferable_vp import (
    Evaluation,
    Objective,
    Step,
    Surrogate,
    Task,
    TransferableVisualPrompt,
    TransferableVisualPromptTrainer,
    evaluate,
)
from transferable_vp import trainer as trainer_module
from transferable_vp.answers import answer_loss


def batch(count: int = 4) -> dict[str, Any]:
    """The first rows as the collator gives them."""
    examples = [TASK.example(row) for row in rows(count)]
    return {
        "images": [e.image for e in examples],
        "questions": [e.question for e in examples],
        "answers": [e.answer for e in examples],
        "captions": [e.caption for e in examples],
        "skipped": 0,
    }


class TestObjectives:
    def test_each_is_logged_under_its_name_and_their_weighted_sum_is_the_loss(self, tmp_path: Path) -> None:
        seen: list[float] = []

        def brightness(step: Step) -> torch.Tensor:
            value = step.canvas.mean()
            seen.append(value.item())
            return value

        trainer = make_trainer(
            tmp_path, max_steps=4, logging_steps=2, task_weight=0.7, fca_weight=0.5, tse_weight=0.2,
            semantics=semantics(), objectives=[Objective("brightness", brightness, weight=3.0)],
        )  # fmt: skip
        trainer.train()
        entries = losses(trainer)
        assert [entry["step"] for entry in entries] == [2, 4]
        for index, entry in enumerate(entries):
            values = {key: entry[f"{key}_loss"] for key in ("task", "fca", "tse", "brightness")}
            expected = 0.7 * values["task"] + 0.5 * values["fca"] + 0.2 * values["tse"] + 3 * values["brightness"]
            assert entry["loss"] == pytest.approx(expected, rel=1e-5)
            assert values["brightness"] == pytest.approx(np.mean(seen[2 * index : 2 * index + 2]), rel=1e-6)
            assert values["fca"] > 0

    def test_the_logged_values_are_those_of_the_batch(self, tmp_path: Path) -> None:
        trainer = make_trainer(
            tmp_path, max_steps=1, train_sampling_strategy="sequential", tse_weight=0.1, semantics=semantics()
        )
        trainer.train()
        canvas, inputs = new_prompt()(batch()["images"], prompted=False), batch()
        output = surrogate("llava").forward(canvas, inputs["questions"], inputs["answers"])
        step = Step(canvas, inputs["questions"], inputs["answers"], inputs["captions"], [], [])
        (entry,) = losses(trainer)
        assert entry["task_loss"] == pytest.approx(answer_loss(output).item(), rel=1e-6)
        assert entry["tse_loss"] == pytest.approx(semantics()(step).item(), rel=1e-6)
        # The prompt starts as a black border, which is the clean image.
        assert entry["fca_loss"] == 0

    def test_what_has_no_weight_is_not_computed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def never(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError("called, though its weight is 0")

        monkeypatch.setattr(Surrogate, "features", never)
        monkeypatch.setattr(type(semantics()), "__call__", never)
        trainer = make_trainer(
            tmp_path, max_steps=1, fca_weight=0.0, semantics=semantics(), objectives=[Objective("own", never, 0.0)]
        )
        trainer.train()
        (entry,) = losses(trainer)
        assert [key for key in entry if key.endswith("_loss")] == ["task_loss"]

    def test_an_objective_of_the_users_is_followed(self, tmp_path: Path) -> None:
        # Negative weights maximise: with the task switched off, the whole border has to become white.
        white = Objective("brightness", lambda step: step.canvas.mean(), weight=-1.0)
        trainer = make_trainer(
            tmp_path, learning_rate=0.5, task_weight=0.0, fca_weight=0.0, max_steps=4, objectives=[white]
        )
        trainer.train()
        assert (delta(trainer)[:, trainer.model.border_mask[0]] == 1).all()

    def test_surrogates_train_together_each_through_its_own_processor(self, tmp_path: Path) -> None:
        def loss_and_gradient(*families: str) -> tuple[float, torch.Tensor]:
            prompt = tiny.noise_prompt(canvas_size=CANVAS, border_size=BORDER)
            trainer = make_trainer(
                tmp_path, model=prompt, fca_weight=0.0, surrogates=[surrogate(family) for family in families]
            )
            loss = trainer.compute_loss(prompt, batch())
            loss.backward()
            return loss.item(), prompt.delta.grad

        llava, llava_gradient = loss_and_gradient("llava")
        idefics, idefics_gradient = loss_and_gradient("idefics3")
        both, both_gradient = loss_and_gradient("llava", "idefics3")
        assert abs(llava - idefics) > 0.01
        assert both == pytest.approx((llava + idefics) / 2, rel=1e-6)
        torch.testing.assert_close(both_gradient, (llava_gradient + idefics_gradient) / 2, rtol=1e-4, atol=1e-7)

    def test_several_surrogates_learn(self, tmp_path: Path) -> None:
        trainer = make_trainer(
            tmp_path, max_steps=12, train_dataset=dataset(4), surrogates=[surrogate("llava"), surrogate("idefics3")],
            learning_rate=0.1,
        )  # fmt: skip
        trainer.train()
        entries = losses(trainer)
        assert entries[-1]["task_loss"] < entries[0]["task_loss"] - 0.05

    def test_tse_without_a_clip(self, tmp_path: Path) -> None:
        message = r"`tse_weight` is 0.001 but there is no CLIP.*TaskSemantics.from_pretrained.*or set `tse_weight=0`"
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, tse_weight=0.001)

    def test_no_surrogate(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="No surrogate was given"):
            make_trainer(tmp_path, surrogates=[])

    def test_a_missing_column(self, tmp_path: Path) -> None:
        renamed = [{"image": row["image"], "what": row["label"]} for row in rows(4)]
        with pytest.raises(ValueError, match=r"No answer or label column found: .*'image', 'what'.*`answer_column`"):
            make_trainer(tmp_path, train_dataset=renamed)

    def test_two_objectives_of_one_name(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="Every objective needs a name of its own; got 'task', 'fca', 'task'"):
            make_trainer(tmp_path, objectives=[Objective("task", lambda step: step.canvas.mean())])

    def test_nothing_to_learn_from(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="Every objective has the weight 0"):
            make_trainer(tmp_path, task_weight=0.0, fca_weight=0.0)

    @pytest.mark.parametrize(
        ("value", "shown"),
        [(lambda step: 0.5, "0.5"), (lambda step: step.canvas, r"a tensor of shape \(4, 3, 32, 32\)")],
    )
    def test_an_objective_that_gives_no_single_value(self, value: Any, shown: str, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, objectives=[Objective("own", value)])
        with pytest.raises(
            TypeError, match=f"The objective 'own' gave {shown}; expected a tensor with a single value"
        ):
            trainer.train()


class TestWhatIsLearned:
    @pytest.mark.parametrize("rule", ["adam", "paper"])
    @pytest.mark.parametrize("layout", ["border", "overlay", "both"])
    def test_only_pixels_of_the_layout_change_and_stay_displayable(
        self, layout: str, rule: str, tmp_path: Path
    ) -> None:
        # A content smaller than what the border leaves: between the two there is a margin that nothing may touch.
        prompt = new_prompt(layout=layout, content_size=16, epsilon=0.1)
        rate = 0.5 if rule == "adam" else 10.0
        trainer = make_trainer(tmp_path, model=prompt, update_rule=rule, learning_rate=rate)
        trainer.train()
        learned = delta(trainer)
        frame = torch.ones(CANVAS, CANVAS, dtype=torch.bool)
        frame[BORDER:-BORDER, BORDER:-BORDER] = False
        middle = torch.zeros(CANVAS, CANVAS, dtype=torch.bool)
        middle[8:24, 8:24] = True
        border = torch.zeros_like(frame) if layout == "overlay" else frame
        overlay = torch.zeros_like(middle) if layout == "border" else middle
        assert (learned[:, ~(border | overlay)] == 0).all()
        assert border.any() == (learned[:, border] != 0).any()
        assert overlay.any() == (learned[:, overlay] != 0).any()
        if border.any():
            assert 0 <= learned[:, border].min() < learned[:, border].max() <= 1
        if overlay.any():
            assert learned[:, overlay].min() == pytest.approx(-0.1) and learned[:, overlay].max() == pytest.approx(0.1)
        canvas = trainer.model(batch()["images"])
        assert canvas.min() >= 0 and canvas.max() <= 1

    def test_an_unbounded_border_leaves_what_can_be_shown_and_nothing_else_changes(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, model=new_prompt(value_range="unbounded"), update_rule="paper")
        trainer.train()
        learned = delta(trainer)
        assert learned.min() < 0
        assert (learned[:, ~trainer.model.border_mask[0]] == 0).all()

    def test_flips_mirror_some_images_and_not_others(self, tmp_path: Path) -> None:
        canvases: list[torch.Tensor] = []

        def note(step: Step) -> torch.Tensor:
            canvases.extend(step.canvas.detach())
            return step.canvas.mean()

        trainer = make_trainer(
            tmp_path, train_sampling_strategy="sequential", learning_rate=0.0, objectives=[Objective("note", note)],
            task=Task(**(vars(TASK) | {"flip": True})),
        )  # fmt: skip
        trainer.train()
        straight = trainer.model([row["image"] for row in rows(12)])
        same = [torch.equal(seen, expected) for seen, expected in zip(canvases, straight, strict=True)]
        # The border is black, so that the mirrored canvas is the canvas of the mirrored image, but for the resizing.
        mirrored = [
            (seen - expected.flip(-1)).abs().max() < 0.02 for seen, expected in zip(canvases, straight, strict=True)
        ]
        assert 0 < sum(same) < 12 and mirrored == [not each for each in same]

    def test_flips_are_of_the_upright_image(self, tmp_path: Path) -> None:
        upright = tiny.picture(32, 32, seed=1)
        sideways = upright.transpose(Image.Transpose.ROTATE_90)
        sideways.getexif()[ExifTags.Base.Orientation] = 6  # to be turned clockwise by a viewer
        file = io.BytesIO()
        sideways.save(file, "PNG", exif=sideways.getexif())
        stored = Image.open(file)
        canvases: list[torch.Tensor] = []

        def note(step: Step) -> torch.Tensor:
            canvases.extend(step.canvas.detach())
            return step.canvas.mean()

        data = [{"image": stored, "answer": NAMES[0]}] * 8
        trainer = make_trainer(
            tmp_path, learning_rate=0.0, objectives=[Objective("note", note)], train_dataset=data,
            task=Task(**(vars(TASK) | {"flip": True, "answer_column": "answer"})), max_steps=2,
        )  # fmt: skip
        trainer.train()
        (plain,) = trainer.model([upright])
        kinds = [
            [torch.allclose(seen, expected, atol=0.02) for expected in (plain, plain.flip(-1))] for seen in canvases
        ]
        assert [True, False] in kinds and [False, True] in kinds and [False, False] not in kinds

    def test_a_step_that_overflows_in_float16_is_left_out(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, update_rule="adam")
        optimizer = trainer.create_optimizer()
        assert optimizer.defaults["fused"]
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(torch.ones(()))
        prompt = trainer.model
        for gradient, moved, scale in ((float("inf"), False, 2.0), (-1.0, True, 2.0)):
            prompt.delta.grad = torch.full_like(prompt.delta, gradient)
            scaler.step(optimizer)
            scaler.update()
            assert bool(prompt.delta.any()) == moved and scaler.get_scale() == scale
        with pytest.raises(FloatingPointError, match="The gradient overflowed in 50 steps on end at step 1"):
            for _ in range(50):
                prompt.delta.grad = torch.full_like(prompt.delta, float("nan"))
                scaler.step(optimizer)
                scaler.update()

    def test_the_models_stay_as_they_are(self, tmp_path: Path) -> None:
        frozen = [surrogate("llava").model, surrogate("idefics3").model, semantics().model]
        before = [{key: value.clone() for key, value in model.state_dict().items()} for model in frozen]
        trainer = make_trainer(
            tmp_path, tse_weight=1.0, fca_weight=1.0, semantics=semantics(),
            surrogates=[surrogate("llava"), surrogate("idefics3")],
        )  # fmt: skip
        trainer.train()
        assert delta(trainer).any()
        for model, state in zip(frozen, before, strict=True):
            assert not model.training
            assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
            assert all(p.grad is None and not p.requires_grad for p in model.parameters())

    @pytest.mark.parametrize("recipe", ["transfer", "paper"])
    def test_arguments_serve_again_for_another_canvas(self, recipe: str, tmp_path: Path) -> None:
        args = make_args(tmp_path, recipe=recipe, block_size=None, learning_rate=None, tse_weight=0.0)
        found = {}
        for size in (32, 64):
            trainer = TransferableVisualPromptTrainer(
                new_prompt(canvas_size=size, border_size=4), args, surrogate("llava"), train_dataset=dataset(2)
            )
            found[size] = trainer.args.block_size, trainer.args.learning_rate
        assert found[32] != found[64]

    def test_only_the_prompt_is_the_trainers_model(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path)
        assert [name for name, _ in trainer.model.named_parameters()] == ["delta"]


class TestPaperRule:
    def test_equals_a_plain_restatement(self, tmp_path: Path) -> None:
        """Two epochs of three batches, all in the open: gradient over its norm on the whole canvas, mask, rate."""
        trainer = make_trainer(
            tmp_path, model=new_prompt(value_range="unbounded"), update_rule="paper", max_steps=-1,
            num_train_epochs=2, train_sampling_strategy="sequential", fca_weight=0.05, tse_weight=0.01,
            semantics=semantics(),
        )  # fmt: skip
        trainer.train()

        mask = np.ones((CANVAS, CANVAS), dtype=np.float32)
        mask[BORDER : CANVAS - BORDER, BORDER : CANVAS - BORDER] = 0
        mask = torch.from_numpy(mask)
        model, blank = surrogate("llava"), new_prompt()
        perturbation = torch.zeros(3, CANVAS, CANVAS)
        data = rows(12)
        for epoch in range(2):
            rate = 10 * (1 + math.cos(math.pi * epoch / 2)) / 2
            for begin in range(0, 12, 4):
                part = data[begin : begin + 4]
                questions = ["This is a photo of a"] * 4
                answers = [NAMES[row["label"]] for row in part]
                captions = [f"this is a photo of a {answer}" for answer in answers]
                with torch.no_grad():
                    clean = blank([row["image"] for row in part], prompted=False)
                leaf = perturbation.clone().requires_grad_()
                canvas = clean + leaf * 1
                output = model.forward(canvas, questions, answers, unbounded=True, with_features=True)
                features = model.features(clean, questions, unbounded=True)
                tokens = output.logits.log_softmax(-1)[output.labels != -100]
                task = -tokens.gather(1, output.labels[output.labels != -100][:, None]).mean()
                fca = (output.features - features).pow(2).sum(-1).add(1e-30).sqrt().mean()
                tse = semantics()(Step(canvas, questions, answers, captions, [], [], True))
                (gradient,) = torch.autograd.grad(task + 0.05 * fca + 0.01 * tse, leaf)
                perturbation -= rate * gradient / gradient.norm() * mask
        assert perturbation.abs().max() > 0.5
        torch.testing.assert_close(delta(trainer), perturbation, rtol=0, atol=1e-5)
        assert [entry["learning_rate"] for entry in losses(trainer)] == [10] * 3 + [pytest.approx(5)] * 3

    @staticmethod
    def rates(folder: Path, steps: int, **args: Any) -> list[float]:
        trainer = make_trainer(folder, update_rule="paper", **args)
        trainer.create_optimizer()
        scheduler = trainer.create_scheduler(steps)
        values = []
        for _ in range(steps):
            values.append(scheduler.get_last_lr()[0])
            trainer.optimizer.step()
            scheduler.step()
        return values

    def test_the_rate_follows_a_cosine_over_epochs_and_is_constant_within(self, tmp_path: Path) -> None:
        rates = self.rates(tmp_path, 20, max_steps=-1, num_train_epochs=10)
        expected = [10, 9.755283, 9.045085, 7.938926, 6.545085, 5, 3.454915, 2.061074, 0.954915, 0.244717]
        assert rates[::2] == pytest.approx(expected, abs=1e-6)
        assert rates[1::2] == rates[::2]

    def test_half_an_epoch_is_half_as_long(self, tmp_path: Path) -> None:
        # 2.5 epochs of 4 steps, on a cosine over three.
        rates = self.rates(tmp_path, 10, max_steps=-1, num_train_epochs=2.5)
        assert rates == pytest.approx([10.0] * 4 + [7.5] * 4 + [2.5] * 2)

    def test_a_number_of_steps_is_one_epoch(self, tmp_path: Path) -> None:
        assert self.rates(tmp_path, 4, max_steps=4) == [10.0] * 4


class TestScale:
    def test_accumulated_batches_equal_one_large_batch(self, tmp_path: Path) -> None:
        runs = []
        for size, accumulation in ((8, 1), (4, 2)):
            trainer = make_trainer(
                tmp_path, model=new_prompt(value_range="unbounded"), update_rule="paper", learning_rate=1.0,
                train_dataset=dataset(16), max_steps=2, fca_weight=0.1, per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulation,
            )  # fmt: skip
            trainer.train()
            runs.append((delta(trainer), [entry["loss"] for entry in losses(trainer)]))
        assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-4)
        torch.testing.assert_close(runs[0][0], runs[1][0], rtol=0, atol=1e-4)
        assert runs[0][0].abs().max() > 0.05

    def test_a_surrogate_in_half_precision(self, pair: Callable[[str], Any], tmp_path: Path) -> None:
        model, processor = pair("llava")
        gradients = []
        for dtype in (torch.float32, torch.bfloat16):
            trainer = make_trainer(tmp_path, surrogates=Surrogate(model.to(dtype), processor), max_steps=2)
            trainer.compute_loss(trainer.model, batch()).backward()
            gradients.append(trainer.model.delta.grad.flatten().clone())
            trainer.model.zero_grad()
            trainer.train()
            assert trainer.model.delta.dtype == torch.float32 and delta(trainer).isfinite().all()
            assert all(type(entry["task_loss"]) is float for entry in losses(trainer))
        assert gradients[1].dtype == torch.float32
        assert torch.cosine_similarity(*gradients, dim=0) > 0.95

    def test_gradient_checkpointing_computes_twice_and_gives_the_same(
        self, pair: Callable[[str], Any], tmp_path: Path
    ) -> None:
        runs, calls = [], []
        for checkpointing in (False, True):
            model, processor = pair("llava")
            count = [0]
            for layer in model.model.language_model.layers:
                layer.mlp.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
            trainer = make_trainer(
                tmp_path, surrogates=Surrogate(model, processor), max_steps=2, fca_weight=0.0,
                surrogate_gradient_checkpointing=checkpointing,
            )  # fmt: skip
            trainer.train()
            runs.append(delta(trainer))
            calls.append(count[0])
        assert calls == [2 * tiny.LAYERS, 4 * tiny.LAYERS]
        torch.testing.assert_close(*runs)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_streaming(self, workers: int, tmp_path: Path) -> None:
        seen: list[str] = []

        def note(step: Step) -> torch.Tensor:
            seen.extend(step.answers)
            return step.canvas.mean()

        stream = dataset(16).to_iterable_dataset(num_shards=2)
        trainer = make_trainer(
            tmp_path,
            max_steps=4,
            train_dataset=stream,
            dataloader_num_workers=workers,
            objectives=[Objective("note", note)],
        )
        trainer.train()
        # Every row once, whichever worker read it.
        assert sorted(seen) == sorted(NAMES[i % 3] for i in range(16))
        assert trainer.state.global_step == 4 and delta(trainer).any()

    def test_streaming_reads_what_the_table_holds(self, tmp_path: Path) -> None:
        runs = []
        for data in (dataset(12), dataset(12).to_iterable_dataset()):
            trainer = make_trainer(tmp_path, train_dataset=data, train_sampling_strategy="sequential")
            trainer.train()
            runs.append(delta(trainer))
        assert torch.equal(*runs)

    def test_worker_processes_change_nothing(self, tmp_path: Path) -> None:
        runs = []
        for workers in (0, 1):
            trainer = make_trainer(tmp_path, max_steps=2, dataloader_num_workers=workers)
            trainer.train()
            runs.append(delta(trainer))
        assert torch.equal(*runs)

    def test_several_gpus_without_a_launcher_are_not_split_over(self, tmp_path: Path) -> None:
        args = make_args(tmp_path)
        args._n_gpu = 2
        assert args.train_batch_size == 8
        trainer = TransferableVisualPromptTrainer(new_prompt(), args, surrogate("llava"), train_dataset=dataset(12))
        assert trainer.args.n_gpu == 1 and trainer.args.train_batch_size == 4
        trainer.train()
        assert trainer.model_wrapped is trainer.model

    def test_callbacks_are_called_and_see_the_objectives(self, tmp_path: Path) -> None:
        events: list[str] = []

        class Recorder(TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                events.append("begin")

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                assert isinstance(kwargs["model"], TransferableVisualPrompt)
                events.append(f"step {state.global_step}")

            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
                events.append("log " + " ".join(key for key in logs if key in ("loss", "task_loss", "fca_loss")))

        make_trainer(tmp_path, max_steps=2, logging_steps=2, callbacks=[Recorder()]).train()
        assert events[:4] == ["begin", "step 1", "step 2", "log loss task_loss fca_loss"]

    def test_tensorboard_shows_every_objective(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
        trainer = make_trainer(
            tmp_path, max_steps=2, report_to="tensorboard",
            objectives=[Objective("own", lambda step: step.canvas.mean(), weight=0.1)],
        )  # fmt: skip
        trainer.train()
        (file,) = (tmp_path / "logs").rglob("events.*")
        events = EventAccumulator(str(file)).Reload()
        for name in ("task_loss", "fca_loss", "own_loss"):
            shown = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
            expected = [(entry["step"], pytest.approx(entry[name], rel=1e-6)) for entry in losses(trainer)]
            assert shown == expected


class TestEvaluation:
    def test_sources_and_targets_are_measured_during_training(self, tmp_path: Path) -> None:
        data = dataset(6, seed=50)
        trainer = make_trainer(
            tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, eval_dataset=data,
            surrogates=[surrogate("llava"), surrogate("smolvlm")], targets=[surrogate("idefics3")],
        )  # fmt: skip
        trainer.train()
        first, last = (entry for entry in trainer.state.log_history if "eval_accuracy" in entry)
        assert (first["step"], last["step"]) == (1, 2)
        names = ("llava", "smolvlm", "idefics3")
        assert [key for key in last if key.startswith("eval_")] == [f"eval_{n}_accuracy" for n in names] + [
            "eval_accuracy"
        ]
        for name in names:
            expected = evaluate(surrogate(name), data, TASK, trainer.model, progress=False).mean
            assert last[f"eval_{name}_accuracy"] == pytest.approx(expected)
        assert last["eval_accuracy"] == pytest.approx(
            (last["eval_llava_accuracy"] + last["eval_smolvlm_accuracy"]) / 2
        )

    def test_targets_are_not_learned_on(self, tmp_path: Path) -> None:
        runs = []
        for targets in ([], [surrogate("idefics3")]):
            trainer = make_trainer(
                tmp_path, max_steps=2, targets=targets, eval_strategy="steps", eval_dataset=dataset(3)
            )
            trainer.train()
            runs.append(delta(trainer))
        assert torch.equal(*runs)

    def test_a_best_that_is_gone_loses_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        rig(monkeypatch, llava=[0.75, 0.25, 0.5])

        class Remove(TrainerCallback):
            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == 3:
                    shutil.rmtree(tmp_path / "checkpoint-1")

        trainer = make_trainer(
            tmp_path, eval_strategy="steps", eval_steps=1, eval_dataset=dataset(4), save_strategy="steps", save_steps=1,
            save_total_limit=1, load_best_model_at_end=True, callbacks=[Remove()],
        )  # fmt: skip
        with caplog.at_level(logging.WARNING):
            trainer.train()
        assert "checkpoint-1, is not there any more" in caplog.text and delta(trainer).any()

    def test_the_best_is_the_sources(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rig(monkeypatch, llava=[0.25, 0.75, 0.5], idefics3=[0.5, 0.0, 1.0])
        trainer = make_trainer(
            tmp_path, eval_strategy="steps", eval_steps=1, eval_dataset=dataset(4), targets=[surrogate("idefics3")],
            save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        )  # fmt: skip
        trainer.train()
        assert trainer.state.best_metric == 0.75
        assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-2"
        at = {step: TransferableVisualPrompt.from_pretrained(tmp_path / f"checkpoint-{step}").delta for step in (2, 3)}
        assert torch.equal(delta(trainer), at[2]) and not torch.equal(at[2], at[3])

    def test_early_stopping(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rig(monkeypatch, llava=[0.5, 0.25, 0.25, 1.0])
        trainer = make_trainer(
            tmp_path, max_steps=4, eval_strategy="steps", eval_steps=1, eval_dataset=dataset(4), save_strategy="steps",
            save_steps=1, load_best_model_at_end=True, callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        )  # fmt: skip
        trainer.train()
        assert trainer.state.global_step == 3 and trainer.state.best_metric == 0.5

    def test_several_validation_sets(self, tmp_path: Path) -> None:
        sets = {"seen": dataset(3), "unseen": dataset(6, seed=90)}
        trainer = make_trainer(tmp_path, eval_dataset=sets)
        metrics = trainer.evaluate()
        assert set(metrics) >= {"eval_seen_accuracy", "eval_unseen_accuracy", "eval_unseen_llava_accuracy"}
        for name, data in sets.items():
            expected = evaluate(surrogate("llava"), data, TASK, trainer.model, progress=False).mean
            assert metrics[f"eval_{name}_llava_accuracy"] == pytest.approx(expected)

    def test_without_candidates_the_loss_is_measured_and_chooses(self, tmp_path: Path) -> None:
        data = [{"image": row["image"], "answer": NAMES[row["label"]]} for row in rows(6)]
        trainer = make_trainer(
            tmp_path, train_dataset=data, eval_dataset=data, targets=[surrogate("idefics3")], learning_rate=0.3,
            eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        )  # fmt: skip
        trainer.train()
        entries = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        assert len(entries) == 3 and all(entry["eval_loss"] == entry["eval_llava_loss"] for entry in entries)
        assert all(entry["eval_idefics3_loss"] != entry["eval_loss"] for entry in entries)
        assert trainer.state.best_metric == min(entry["eval_loss"] for entry in entries)
        again = trainer.evaluate(data, metric_key_prefix="test")
        assert again["test_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)
        images = [row["image"] for row in data]
        output = surrogate("llava").forward(trainer.model(images), ["This is a photo of a"] * 6, NAMES * 2)
        # Every answer has as many tokens, so the mean over rows is the mean over tokens.
        assert again["test_loss"] == pytest.approx(answer_loss(output).item(), rel=1e-4)

    def test_two_models_of_one_name_are_both_shown(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rig(monkeypatch, llava=[0.25, 0.75])
        twin = Surrogate(surrogate("llava").model, surrogate("llava").processor, name="llava")
        metrics = make_trainer(tmp_path, eval_dataset=dataset(4), targets=[twin]).evaluate()
        assert metrics["eval_llava_accuracy"] == metrics["eval_accuracy"] == 0.25
        assert metrics["eval_llava_2_accuracy"] == 0.75

    def test_every_process_measures_its_share(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        trainer = make_trainer(tmp_path, eval_dataset=dataset(5))
        shards: list[tuple[int, int]] = []

        def measured(*args: Any, shard: tuple[int, int] = (0, 1), **kwargs: Any) -> Evaluation:
            shards.append(shard)
            return Evaluation(np.ones(2))

        def reduce(sums: torch.Tensor, reduction: str) -> torch.Tensor:
            assert reduction == "sum"
            # The other process had three rows, all wrong.
            return sums + torch.tensor([0.0, 3.0])

        monkeypatch.setattr(trainer_module, "evaluate", measured)
        monkeypatch.setattr(type(trainer.args), "process_index", property(lambda self: 1))
        monkeypatch.setattr(type(trainer.args), "world_size", property(lambda self: 2))
        monkeypatch.setattr(trainer.accelerator, "reduce", reduce)
        assert trainer.evaluate()["eval_accuracy"] == pytest.approx(0.4)
        assert shards == [(1, 2)]

    def test_without_data(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="There is no `eval_dataset` to evaluate on"):
            make_trainer(tmp_path).evaluate()
