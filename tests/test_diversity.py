"""Input diversity: what each change does, that both sides of a comparison get the same, and that training can resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import CANVAS, delta, make_trainer, semantics

from transferable_vp.diversity import InputDiversity


def canvases(count: int = 6, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_nothing_is_changed_by_default() -> None:
    assert not InputDiversity()
    assert torch.equal(InputDiversity()(canvases(), seed=0), canvases())


@pytest.mark.parametrize("strength", [{"shift": 1}, {"noise": 0.1}, {"scale": 0.2}, {"brightness": 0.3}])
def test_a_seed_decides_everything_and_every_canvas_gets_its_own(strength: dict[str, Any]) -> None:
    diversity = InputDiversity(**strength)
    assert diversity
    same = canvases(1).expand(8, -1, -1, -1)
    first, again, other = (diversity(same, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({tuple(picture.flatten().tolist()) for picture in first}) > 1
    assert first.shape == same.shape and first.min() >= 0 and first.max() <= 1


@pytest.mark.parametrize("strength", [{"shift": 1}, {"noise": 0.1}, {"scale": 0.2}, {"brightness": 0.3}])
def test_a_list_is_changed_like_a_batch(strength: dict[str, Any]) -> None:
    diversity = InputDiversity(**strength)
    changed = diversity(list(canvases()), seed=1)
    assert isinstance(changed, list)
    assert torch.equal(torch.stack(changed), diversity(canvases(), seed=1))


def test_a_shift_moves_the_whole_canvas_and_repeats_its_edge() -> None:
    canvas = canvases(1, 9).expand(40, -1, -1, -1)
    seen = set()
    for moved in InputDiversity(shift=2)(canvas, seed=0):
        offsets = [
            (top, left)
            for top in range(-2, 3)
            for left in range(-2, 3)
            if torch.equal(
                moved,
                canvas[0][:, (torch.arange(9) + top).clamp(0, 8)][:, :, (torch.arange(9) + left).clamp(0, 8)],
            )
        ]
        assert len(offsets) == 1
        seen.add(offsets[0])
    # Both ends and both axes: 25 offsets, 40 draws.
    assert {top for top, _ in seen} == {left for _, left in seen} == {-2, -1, 0, 1, 2}


def test_noise_is_between_nothing_and_its_strength() -> None:
    grey = torch.full((200, 3, 32, 32), 0.5)
    spread = (InputDiversity(noise=0.1)(grey, seed=0) - grey).flatten(1).std(1)
    assert spread.max() < 0.105 and spread.min() < 0.01 and 0.04 < spread.mean() < 0.06


def test_brightness_is_one_factor_for_a_canvas() -> None:
    canvas = 0.1 + 0.5 * canvases(100, 4)
    factors = (InputDiversity(brightness=0.3)(canvas, seed=0) / canvas).flatten(1)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors))
    assert 0.7 <= factors.min() < 0.75 and 1.25 < factors.max() <= 1.3 + 1e-6


def test_scale_keeps_the_geometry_and_loses_detail() -> None:
    flat = torch.zeros(20, 3, 16, 16)
    flat[:, :, :, 8:] = 1
    changed = InputDiversity(scale=0.5)(flat, seed=0)
    torch.testing.assert_close(changed[..., :5], flat[..., :5])
    torch.testing.assert_close(changed[..., 11:], flat[..., 11:])
    assert not torch.equal(changed[..., 7], flat[..., 7])


def test_the_gradient_passes_even_where_values_are_clamped() -> None:
    # A border starts black: noise takes half of its pixels below 0, and they must be learned all the same.
    canvas = torch.zeros(2, 3, 8, 8, requires_grad=True)
    InputDiversity(noise=0.2)(canvas, seed=0).sum().backward()
    assert torch.equal(canvas.grad, torch.ones_like(canvas))
    everything = InputDiversity(shift=1, noise=0.1, scale=0.2, brightness=0.3)
    canvas.grad = None
    everything(canvas, seed=0).sum().backward()
    # Moved and scaled, but no more than by what was drawn.
    assert 0.5 < canvas.grad.mean() < 1.5


def test_what_is_unbounded_stays_so() -> None:
    canvas = 3 * canvases() - 1
    changed = InputDiversity(brightness=0.5)(canvas, seed=0, unbounded=True)
    assert changed.min() < 0 and changed.max() > 1


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        ({"noise": -0.1}, "`diversity_noise` is -0.1; it cannot be negative"),
        ({"shift": 1.5}, r"`diversity_shift` is 1\.5; it must be a whole number of pixels"),
        ({"scale": 1.0}, r"`diversity_scale` is 1\.0 and .* shares"),
        ({"brightness": 1.2}, r"`diversity_brightness` is 1\.2; they are shares"),
    ],
)
def test_refused(strength: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InputDiversity(**strength)


class TestInTraining:
    STRENGTHS = {"diversity_shift": 2, "diversity_noise": 0.1, "diversity_scale": 0.1, "diversity_brightness": 0.3}

    def test_every_strength_reaches_the_prompt(self, tmp_path: Path) -> None:
        found = []
        for more in ({}, *({name: value} for name, value in self.STRENGTHS.items())):
            trainer = make_trainer(tmp_path, max_steps=2, **more)
            trainer.train()
            found.append(delta(trainer))
        assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])

    def test_the_clean_side_is_changed_alike(self, tmp_path: Path) -> None:
        """FCA compares a prompted with a clean picture: with a black prompt, the same picture."""
        for strengths, weight in (({}, 1.0), (self.STRENGTHS, 1.0)):
            trainer = make_trainer(
                tmp_path, max_steps=1, fca_weight=weight, task_weight=0.0, learning_rate=0.0, **strengths
            )
            trainer.train()
            assert trainer.state.log_history[0]["fca_loss"] == 0

    def test_all_objectives_see_the_changed_canvas(self, tmp_path: Path) -> None:
        found = {}
        for name, more in {"plain": {}, "diverse": self.STRENGTHS}.items():
            trainer = make_trainer(
                tmp_path, max_steps=1, learning_rate=0.0, tse_weight=0.1, semantics=semantics(), **more
            )
            trainer.train()
            found[name] = trainer.state.log_history[0]["tse_loss"]
        assert found["plain"] != found["diverse"]

    def test_resuming_is_exact_to_the_bit(self, tmp_path: Path) -> None:
        def make(folder: str, **more: Any) -> Any:
            return make_trainer(tmp_path / folder, max_steps=5, **self.STRENGTHS, **more)

        whole = make("whole")
        whole.train()
        make("parts", save_strategy="steps", save_steps=3).train()
        resumed = make("parts")
        resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
        assert torch.equal(delta(whole), delta(resumed))
        other = make("other", seed=7)
        other.train()
        assert not torch.equal(delta(whole), delta(other))


def test_the_papers_rate_goes_with_the_canvas(tmp_path: Path) -> None:
    assert make_trainer(tmp_path, recipe="paper").args.learning_rate == pytest.approx(10 * CANVAS / 224)
    assert make_trainer(tmp_path, recipe="paper", learning_rate=3.0).args.learning_rate == 3
    assert make_trainer(tmp_path, update_rule="paper").args.learning_rate == 10
