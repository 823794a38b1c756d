"""benchmarks/step.py: every contender computes what it says, at toy size; and profile_step.py, what it charges to whom."""

from __future__ import annotations

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_training import delta
from transformers import TrainerCallback

from transferable_vp import (
    Task,
    TransferableVisualPrompt,
    TransferableVisualPromptTrainer,
    TransferableVisualPromptTrainingArguments,
)


FOLDER = Path(__file__).parent.parent / "benchmarks"
shapes = pytest.mark.parametrize("shape", ["llava", "instructblip"])


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"benchmark_{name}"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def step() -> ModuleType:
    return load("step")


@pytest.fixture(scope="module")
def profiled(step: ModuleType) -> ModuleType:
    return load("profile_step")


@pytest.fixture
def batch(step: ModuleType, shape: str) -> Any:
    return step.make_batch(shape, "toy", 3)


@shapes
def test_the_floor_is_the_gradient_to_the_pixels_and_no_other(step: ModuleType, batch: Any) -> None:
    gradients = [step.floor(batch, whole_head).step() for whole_head in (False, True)]
    assert gradients[0].shape == (3, 3, 28, 28) and gradients[0].any()
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)
    assert all(parameter.grad is None for parameter in batch.surrogate.model.parameters())


@shapes
def test_our_step_is_the_trainers(step: ModuleType, batch: Any, tmp_path: Path) -> None:
    rows = [dict(zip(("image", "answer", "question"), row, strict=True))
            for row in zip(*(batch.inputs[key] for key in ("images", "answers", "questions")), strict=True)]  # fmt: skip
    # The captions of the batch are drawn, and a task makes them of the answers.
    batch.inputs["captions"] = [f"w4 {answer}" for answer in batch.inputs["answers"]]
    contender = step.ours(batch, str(tmp_path), seed=1)
    losses = [contender.step() for _ in range(3)]
    trainer = TransferableVisualPromptTrainer(
        model=TransferableVisualPrompt(batch.geometry),
        args=TransferableVisualPromptTrainingArguments(
            str(tmp_path), max_steps=100, per_device_train_batch_size=3, use_cpu=True, disable_tqdm=True,
            save_strategy="no", logging_steps=1, train_sampling_strategy="sequential", fca_weight=0.005,
            tse_weight=0.001,
        ),
        surrogates=batch.surrogate, semantics=batch.semantics, train_dataset=rows,
        task=Task(question_column="question", caption="w4 {answer}"), callbacks=[Stop()],
    )  # fmt: skip
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [float(loss) for loss in losses] == pytest.approx(logged, abs=1e-4)
    (found,) = [parameter for parameter in contender.kept() if parameter.shape == delta(trainer).shape][:1]
    assert found.any()
    torch.testing.assert_close(found, delta(trainer))


class Stop(TrainerCallback):
    """Ends training after three steps of a schedule for a hundred."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == 3


@shapes
def test_the_papers_loop_is_its_update_rule(step: ModuleType, batch: Any) -> None:
    """Two steps, against the loss written with nothing of the loop's but the models."""
    loop = step.PaperLoop(batch)
    parts = dict(batch.surrogate.model.named_modules())
    encodes: list[int] = []
    encoder = next(part for name, part in parts.items() if name.endswith(("vision_tower", "vision_model")))
    encoder.register_forward_pre_hook(lambda _, args: encodes.append(1))
    perturbation = torch.zeros(3, 28, 28)
    for _ in range(2):
        encodes.clear()
        loss = loop.step()
        assert len(encodes) == 3
        expected, move = restated(batch, loop, perturbation)
        perturbation = perturbation - move
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loop.perturbation, perturbation, rtol=1e-3, atol=1e-5)
    assert not perturbation[:, 4:-4, 4:-4].any() and perturbation[:, :4].abs().max() > 0.01


@shapes
def test_the_papers_loop_does_the_work_that_it_is_charged_for(step: ModuleType, batch: Any) -> None:
    loop = step.PaperLoop(batch)
    texts, seen = count_calls(loop.clip, "get_text_features"), []
    matrix = loop.clip.text_model.encoder.layers[0].mlp.fc1.weight
    matrix.register_hook(lambda gradient: seen.append(gradient.abs().max().item()))
    loop.step()
    assert texts == [1] and len(seen) == 1 and seen[0] > 0
    assert not any(parameter.requires_grad for parameter in batch.semantics.model.parameters())
    assert loop.perturbation.device.type == "cpu"


@shapes
@pytest.mark.parametrize("targets", ["all-linear", r".*language_model.*\.(q_proj|v_proj)"])
def test_lora_learns_its_matrices_and_leaves_the_model_alone(step: ModuleType, batch: Any, targets: str) -> None:
    before = {name: parameter.clone() for name, parameter in batch.surrogate.model.named_parameters()}
    contender = step.lora(batch, targets)
    losses = [contender.step().item() for _ in range(8)]
    assert losses[-1] < losses[0]
    after = dict(batch.surrogate.model.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_memory_is_what_a_step_allocates(step: ModuleType) -> None:
    kept = torch.zeros(1000)

    def allocate() -> None:
        first = torch.zeros(250_000)
        del first
        second, third = torch.zeros(500_000), torch.zeros(250_000)
        del second, third

    found = step.peak_memory(step.Contender(allocate, lambda: [kept, kept[:10]]), "cpu")
    assert found == (4000, 3_000_000)


@shapes
def test_all_is_measured(step: ModuleType, batch: Any) -> None:
    found = step.measure(batch, 2, "cpu")
    names = {"floor", "floor_whole_head", *step.SUFFIXES, "paper_loop", "lora", "lora_qv"}
    assert names == found["contenders"].keys()
    assert all(len(row["cpu_seconds"]) == 2 and row["gflop"] > 0 for row in found["contenders"].values())
    for key in ("time_vs_floor", "speedup_vs_paper_loop", "time_vs_lora", "memory_vs_floor"):
        assert all(found[f"{key}{suffix}"] > 0 for suffix in step.SUFFIXES.values())
    flops = {name: row["gflop"] for name, row in found["contenders"].items()}
    costs = ("ours_default", "ours_cached", "ours_half", "ours", "paper_loop")
    assert flops["floor"] <= flops[costs[0]] and all(flops[one] < flops[other] for one, other in pairwise(costs))


@shapes
def test_variants_compute_the_same(step: ModuleType, batch: Any, tmp_path: Path) -> None:
    found = step.variants(batch, str(tmp_path))  # nothing is compiled before it is run
    assert found.keys() == {"floor_eager", "floor_compiled", "ours_compiled", "ours_recomputed"}
    compiled = step.with_model(batch, torch.compile(step.twin(batch))).surrogate
    assert compiled.last_logits(2) == batch.surrogate.last_logits(2) == {"logits_to_keep": 2}
    expected = step.floor(batch).step()
    torch.testing.assert_close(found["floor_eager"].step(), expected, rtol=1e-4, atol=1e-7)
    loss = step.ours(batch, str(tmp_path)).step()
    assert found["ours_recomputed"].step().item() == pytest.approx(loss.item(), abs=1e-5)


def test_a_clock_charges_the_part_that_runs(profiled: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(profiled.time, "process_time", lambda: now[0])
    clock = profiled.Clock()

    def wait(seconds: float) -> None:
        now[0] += seconds

    inner = clock.timed("inner", wait, {"clean": "inner of clean"})
    outer = clock.timed("outer", lambda: (wait(1), inner(2), wait(4)))
    clean = clock.timed("clean", lambda: (wait(8), inner(16)))
    wait(32)
    outer(), clean()
    x = torch.ones(1, requires_grad=True)
    marked = clock.at_gradient(x * 2, "to the mark")
    after = x.register_hook(lambda gradient: wait(128))
    backward = clock.timed("after the mark", (marked * 3).backward)
    wait(64)
    backward(), after.remove()
    assert clock.spent == {
        "trainer": 96, "outer": 5, "inner": 2, "clean": 8, "inner of clean": 16, "to the mark": 0, "after the mark": 128,
    }  # fmt: skip


@shapes
def test_every_part_of_a_step_is_charged_and_the_step_stays_the_same(
    profiled: ModuleType, step: ModuleType, batch: Any, shape: str, tmp_path: Path
) -> None:
    plain = step.new_trainer(batch, str(tmp_path / "plain"), seed=1)
    expected = [step.take_step(plain, batch).item() for _ in range(2)]
    for cache in (0.0, 1.0):
        # A model of its own, as the clock stays in it.
        own = step.make_batch(shape, "toy", 3)
        trainer, clock = (
            step.new_trainer(own, str(tmp_path / str(cache)), seed=1, clean_features_cache=cache),
            profiled.Clock(),
        )
        profiled.watched(trainer, clock)
        losses = [step.take_step(trainer, own).item()]
        clock.spent.clear()
        losses.append(step.take_step(trainer, own).item())
        clock.charge()
        assert losses == pytest.approx(expected, abs=1e-5)
        # The features that are kept need no encoder.
        assert set(profiled.PARTS) - set(clock.spent) == ({"clean_encode"} if cache else set())
        assert set(clock.spent) <= set(profiled.PARTS)
    found = {"shapes": {shape: {"batch": 3, "loader_seconds": 0.3, "seconds": {
        epoch: dict.fromkeys(profiled.PARTS, 0.5) for epoch in ("first_epoch", "later_epochs")}}},
        "settings": {"size": "toy", "threads": 1, "rounds": 1}, "versions": {"torch": "1", "transformers": "2"}}  # fmt: skip
    assert "| CLIP, forward | 500.0 | 0.500 | 500.0 | 0.500 |" in profiled.table(found)
    assert "| **all of it** | 7000.0 | 7.000 | 7000.0 | 7.000 |" in profiled.table(found)
    assert "takes 100.0 ms of a core" in profiled.table(found)


def count_calls(model: Any, name: str) -> list[int]:
    """Fills with the number of calls of a method."""
    calls, plain = [0], getattr(model, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return plain(*args, **kwargs)

    setattr(model, name, counted)
    return calls


def restated(batch: Any, loop: Any, perturbation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and update of one step: fca 0.005, tse 0.001, lr 10, CLIP's temperature, the norm before the mask."""
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    mean, std = mean.view(3, 1, 1), std.view(3, 1, 1)
    # Resized by the prompt, which is tested elsewhere.
    content = TransferableVisualPrompt(batch.geometry)(batch.inputs["images"], prompted=False)[:, :, 4:-4, 4:-4]
    clean = torch.zeros(3, 3, 28, 28)
    clean[:, :, 4:-4, 4:-4] = content
    canvas = (clean + perturbation).requires_grad_()
    pixels = (canvas - mean) / std
    # One encode for the task and the features: the values are the same.
    inputs = dict(loop.inputs)
    labels = inputs["input_ids"].clone()
    for row, answer in zip(labels, batch.inputs["answers"], strict=True):
        ids = [int(word[1:]) for word in answer.split()] + [2]
        begin = next(i for i in range(len(row)) if row[i : i + len(ids)].tolist() == ids)
        row[:begin] = -100
        row[begin + len(ids) :] = -100
    shifted = F.log_softmax(batch.surrogate.model(pixel_values=pixels, **inputs).logits, dim=-1)[:, :-1]
    chosen = labels[:, 1:]
    task = -shifted.gather(-1, chosen.clamp_min(0).unsqueeze(-1)).squeeze(-1)[chosen != -100].mean()
    with torch.no_grad():
        reference = loop.encode((clean - mean) / std)
    features = batch.surrogate.model.get_image_features
    own = {key: value for key, value in inputs.items() if key.startswith("qformer")}
    prompted = features(pixels, **own).pooler_output
    distance = (torch.cat(list(prompted)) - torch.cat(list(reference))).square().sum(-1)
    # At the first step nothing has moved, and the root has no slope there: a distance's gradient is 0, as `norm` has it.
    distance = distance.clamp_min(1e-24).sqrt().mean()
    clip = batch.semantics.model
    image = clip.get_image_features(pixel_values=F.interpolate(pixels, 224, mode="bicubic")).pooler_output
    text = clip.get_text_features(**loop.captions).pooler_output
    cosine = F.cosine_similarity(image, text).mean()
    loss = task + 0.005 * distance - 0.001 * clip.logit_scale.exp() * cosine
    (gradient,) = torch.autograd.grad(loss, canvas)
    gradient = gradient.mean(0)
    mask = torch.ones(28, 28)
    mask[4:-4, 4:-4] = 0
    return loss.detach(), 10 * mask * gradient / gradient.norm()
