"""examples/claims/search.py and ideas.py: what chooses reads no test picture, and every idea does what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_training import new_prompt

from transferable_vp import Objective, Step
from transferable_vp.answers import SurrogateOutput
from transferable_vp.bundled import bundled


PAIR = ("llava", "paligemma")


def test_the_search_reads_no_test_picture(claims, runner, monkeypatch) -> None:
    asked = set()

    def load_rows(name: str, split: str, n: int) -> Any:
        asked.add(split)
        return claims.data.load_rows(name, split, n)

    monkeypatch.setattr(claims.experiment, "load_rows", load_rows)
    monkeypatch.setattr(claims.search, "AXES", {"block_size": (4,), "fca_share": (0.1,)})
    search = claims.search.Search(runner, tasks=("colors",), seeds=(0,), progress=False, members=PAIR)
    result = search.run()
    assert asked == {"train", "validation"}
    names = [one["name"] for one in result["candidates"]]
    assert names[:6] == ["plain", "vp_paper", "paper", "paper_lr10", "block_size=4", "fca_share=0.1"]
    assert result["chosen"] in names
    assert set(result["candidates"][0]["pairs"]) == {"colors: llava > paligemma", "colors: paligemma > llava"}
    assert result["candidates"][5]["weights"]["fca_weight of llava on colors"] > 0
    assert "<- chosen" in claims.search.format_search(result)
    # What it kept are validation cells, which no report reads.
    assert all("-validation-" in path.name for path in runner.output.rglob("*.json"))


def test_the_search_adds_what_helps(claims, runner, monkeypatch) -> None:
    gains = {"learning_rate": 1.0, "block_size": 3.0, "fca_share": -2.0, "diversity_shift": 0.1}
    search = claims.search.Search(runner)

    def judge(candidates: dict[str, dict[str, Any]]) -> list[Any]:
        found = []
        for name, some in candidates.items():
            changed = [axis for axis in gains if axis in some and some[axis] != claims.plan.PLAIN.get(axis, 0)]
            # Together, a lower rate adds nothing to blocks.
            total = max([gains[a] for a in changed], default=0.0) if "block_size" in changed else sum(
                gains[a] for a in changed)  # fmt: skip
            found.append(claims.search.Judged(name, some, total, 0.0, 0.0, {}, {}))
        search.judged += found
        return found

    monkeypatch.setattr(search, "judge", judge)
    monkeypatch.setattr(claims.search, "AXES", {"learning_rate": (0.1,), "block_size": (4,), "fca_share": (1.0,),
                                                "diversity_shift": (2,)})  # fmt: skip
    result = search.run()
    assert result["chosen"] == "block_size=4"
    # Only axes that helped by more than the margin are combined.
    assert [one["name"] for one in result["candidates"]][-1] == "block_size=4 learning_rate=0.1"


class TestIdeas:
    def test_jpeg_is_what_a_file_gives_and_passes_the_gradient(self, claims) -> None:
        canvas = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
        jpeg = claims.ideas.Jpeg(30)
        changed = jpeg(canvas, seed=5)
        assert torch.equal(changed, jpeg(canvas, seed=5)) and not torch.equal(changed, jpeg(canvas, seed=6))
        levels = changed.detach() * 255
        torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
        # Of grey noise: a JPEG file keeps colour at half the resolution, whatever its quality.
        grey = canvas[0].detach().mean(0, keepdim=True).expand(3, -1, -1)
        read = {quality: torch.from_numpy(claims.ideas.compressed(grey, quality)) for quality in (30, 95)}
        assert 2 * (read[95] - grey).abs().mean() < (read[30] - grey).abs().mean() < 0.2
        changed.sum().backward()
        assert torch.equal(canvas.grad, torch.ones_like(canvas))

    def test_layers_of_the_image_encoder(self, claims) -> None:
        zoo = claims.experiment.Zoo(bundled("zoo"))
        for name in claims.search.DEVELOPMENT:
            source = zoo.surrogate(name)
            config = source.config.vision_config
            assert len(claims.ideas.tower_layers(source)) == config.num_hidden_layers > 1

    def test_consistency_of_every_layer(self, claims, runner) -> None:
        source, prompt = runner.zoo("0").surrogate("llava"), new_prompt(canvas_size=64, border_size=8)
        row = claims.data.load_rows("ink", "train", 10)[0]
        consistency = claims.ideas.LayerConsistency([source])

        def value(prompt: Any) -> torch.Tensor:
            canvas, clean = prompt([row["image"]]), prompt([row["image"]], prompted=False)
            features = source.features(clean, [row["question"]])
            output = source.forward(canvas, [row["question"]], [row["answer"]], with_features=True)
            step = Step(canvas, [row["question"]], [row["answer"]], [""], [output], [features])
            return consistency(step)

        with consistency.listening():
            assert value(prompt).item() == 0
            torch.nn.init.uniform_(prompt.delta)
            with torch.no_grad():
                prompt.project_()
            pushed = value(prompt)
            assert 0.01 < pushed.item() < 10
            (gradient,) = torch.autograd.grad(pushed, prompt.delta)
            assert gradient.any()
        source.features(prompt([row["image"]]), [row["question"]])
        assert not any(consistency.seen.values())

    def test_noise_is_there_inside_and_gone_after(self, claims, runner) -> None:
        source, prompt = runner.zoo("0").surrogate("paligemma"), new_prompt(canvas_size=64, border_size=8)
        row = claims.data.load_rows("ink", "train", 10)[0]
        features = lambda: source.features(prompt([row["image"]]), [row["question"]])  # noqa: E731
        before = features()
        with claims.ideas.noisy([source], 0.1):
            inside = [features(), features()]
        assert not torch.allclose(inside[0], inside[1], atol=1e-3) and torch.equal(features(), before)

    def test_balanced_losses_pull_alike(self, claims) -> None:
        logits = torch.tensor([[[2.0, 0.0, 0.0]], [[-3.0, 1.0, 0.0]]], requires_grad=True)
        outputs = [SurrogateOutput(one[None], torch.tensor([[0]]), None) for one in logits]
        step = Step(torch.zeros(1, 3, 8, 8), [""], ["x"], [""], outputs, [])
        losses = torch.stack([claims.ideas.answer_loss(output) for output in outputs])
        loss = claims.ideas.balanced_loss(step)
        torch.testing.assert_close(loss, losses.mean())
        (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
        # Each source's part is the gradient of its logarithm.
        (expected,) = torch.autograd.grad(losses.log().sum() * losses.mean().detach() / 2, logits)
        torch.testing.assert_close(found, expected)

    def test_a_sharpness_aware_step_is_by_the_gradient_uphill(self, claims, runner, monkeypatch) -> None:
        seen: list[tuple[float, torch.Tensor, torch.Tensor]] = []
        plain_step = claims.ideas.TransferableVisualPromptTrainer.training_step

        def noted(trainer: Any, model: Any, *args: Any) -> torch.Tensor:
            before = model.delta.detach().clone()
            loss = plain_step(trainer, model, *args)
            seen.append((loss.item(), before, model.delta.grad.clone()))
            return loss

        monkeypatch.setattr(claims.ideas.TransferableVisualPromptTrainer, "training_step", noted)
        overrides = claims.plan.PLAIN | {"sharpness": 2.0, "learning_rate": 1e-9}
        made = claims.plan.Cell("0", "ink", claims.plan.Condition("s", "s", overrides=overrides), ("llava",))
        prompt, _ = claims.experiment.learn_prompt(made, runner.zoo("0"), runner.settings)
        (_, start, gradient), (_, above, _) = seen[:2]
        uphill = above - start
        assert len(seen) == 2 * runner.settings.steps and uphill.norm().item() == pytest.approx(2, abs=1e-4)
        learned = (gradient * prompt.trainable_mask).flatten()
        assert torch.nn.functional.cosine_similarity(uphill.flatten(), learned, dim=0) > 0.999
        # The way uphill and back is no part of the step.
        assert prompt.delta.abs().max() < 1e-6

    def test_the_proxy_chooses_among_prompts_on_the_way(self, claims, runner, monkeypatch) -> None:
        monkeypatch.setattr(claims.ideas, "SNAPSHOT_STEPS", 1)
        shown: list[list[Any]] = []

        def evaluate(source: Any, rows: Any, task: Any, **more: Any) -> Any:
            shown.append([row["image"].tobytes() for row in rows])
            return type("Score", (), {"mean": [0.4, 0.9, 0.9, 0.1][len(shown) - 1]})

        monkeypatch.setattr(claims.experiment, "evaluate", evaluate)
        runner.settings = claims.experiment.Settings(steps=4, batch_size=4, n_train=20, n_validation=20, n_test=20)
        condition = claims.plan.Condition("s", "s", overrides=claims.plan.PLAIN | {"stopped_by_proxy": True})
        made = claims.plan.Cell("0", "ink", condition, ("llava",))
        prompt, arguments = claims.experiment.learn_prompt(made, runner.zoo("0"), runner.settings)
        assert arguments["stopped_at_step"] == 3 and len(shown) == 4
        image = claims.data.load_rows("ink", "validation", 20)[7]["image"]
        assert claims.ideas.disturbed(prompt.apply(image), 7).tobytes() == shown[2][7] != shown[3][7]

    def test_every_idea_is_judged_on_every_base(self, claims, runner, monkeypatch) -> None:
        monkeypatch.setattr(claims.ideas, "SNAPSHOT_STEPS", 1)
        monkeypatch.setattr(claims.search, "BASES", {"transfer": {"recipe": "transfer"}})
        search = claims.search.Search(runner, tasks=("ink",), seeds=(0,), progress=False, members=PAIR)
        judged = claims.search.Search.judge
        # Two members leave nobody to hold out of a pair.
        monkeypatch.setattr(
            claims.search.Search, "judge", lambda self, some, size=1: judged(self, some) if size == 1 else []
        )
        result = search.run_ideas()
        names = ["transfer", *(f"transfer {idea}" for idea in claims.search.IDEAS)]
        assert [one["name"] for one in result["candidates"]] == names
        gains = {one["name"]: one["heldout"] for one in result["candidates"]}
        best = max(gains, key=lambda name: gains[name])
        assert result["chosen"] == (best if gains[best] > gains["transfer"] + claims.search.MARGIN else "transfer")
        text = claims.tables.page(a_result(claims), {"ideas": result | {"command": "python x"}})
        assert "## Ideas that the package does not have" in text and "| transfer jpeg=30 |" in text

    def test_pairs_of_sources_hold_the_third_out(self, claims, monkeypatch) -> None:
        search = claims.search.Search(object(), tasks=("ink",), seeds=(0,), members=("llava", "idefics3", "internvl"))
        run: list[Any] = []
        monkeypatch.setattr(claims.search, "run_cells", lambda cells, *args, **more: run.extend(cells))
        monkeypatch.setattr(
            search, "_accuracy", lambda cell: dict.fromkeys(search.members, 50.0 + 10 * len(cell.sources))
        )
        (one,) = search.judge({"balanced": {"balanced": True}}, size=2)
        assert [cell.sources for cell in run[1:]] == [
            ("llava", "idefics3"), ("llava", "internvl"), ("idefics3", "internvl")
        ]  # fmt: skip
        assert one.heldout == one.source == 20 and len(one.pairs) == 3
        assert "ink: llava+idefics3 > internvl" in one.pairs

    def test_ideas_are_no_training_arguments(self, claims, runner) -> None:
        overrides = {"jpeg": 30, "balanced": True, "layers_weight": 0.3, "learning_rate": 0.1}
        ideas = claims.ideas.Ideas(overrides, [runner.zoo("0").surrogate("llava")])
        assert overrides == {"learning_rate": 0.1, "task_weight": 0.0}
        assert [(objective.name, objective.weight) for objective in ideas.objectives] == [
            ("layers", 0.3),
            ("balanced", 1.0),
        ]
        assert all(isinstance(objective, Objective) for objective in ideas.objectives)


def a_result(claims: Any) -> dict[str, Any]:
    """What a page is made of where nothing was measured."""
    run = {"command": "python x", "cells": 0, "kept": 0, "machine": "", "versions": {}}
    return {
        "name": "claims", "runs": [run], "records": 0, "lines": [], "pairs": [], "claims": [],
        "settings": {"steps": 1, "batch_size": 1, "n_train": 1, "n_test": 1},
        "summary": claims.summary.summarize([]),
    }  # fmt: skip
