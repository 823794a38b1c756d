"""examples/reproduce_claims.py: cells that are kept, parts that share nothing, and numbers with known answers."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from transferable_vp.bundled import bundled


PAIR = ("llava", "paligemma")


def cell(claims: SimpleNamespace, condition: str, *sources: str, task: str = "colors", **more: Any) -> Any:
    return claims.plan.Cell("0", task, claims.plan.CONDITIONS[condition], sources, **more)


def never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("This was not to be called.")


class TestData:
    @pytest.mark.parametrize("task", ["colors", "ink", "water", "digits"])
    def test_parts_share_no_picture(self, claims, task: str) -> None:
        parts = {
            s: {row["image"].tobytes() for row in claims.data.load_rows(task, s, 300)} for s in claims.data.SPLITS
        }
        assert all(len(part) > 290 for part in parts.values())
        assert not parts["train"] & parts["validation"]
        assert not parts["train"] & parts["test"]
        assert not parts["validation"] & parts["test"]

    def test_parts_share_no_scan(self, claims) -> None:
        spans = sorted(claims.data.SCAN_SPANS.values())
        assert spans[0][0] == 0 and spans[-1][1] == claims.data.SCANS
        assert all(one[1] == other[0] for one, other in pairwise(spans))

    def test_tests_are_not_the_demos(self, claims) -> None:
        from transferable_vp.demo import load_world

        demo = {row["image"].tobytes() for row in load_world().color_examples(100, seed=3)}
        assert not demo & {row["image"].tobytes() for row in claims.data.load_rows("colors", "test", 100)}

    def test_ink_is_handwriting_in_ten_colours(self, claims) -> None:
        from sklearn.datasets import load_digits

        rows = claims.data.ink_examples([5, 5], seed=0, light="white")
        again = claims.data.ink_examples([5, 5], seed=0, light="white")
        assert [row["image"].tobytes() for row in rows] == [row["image"].tobytes() for row in again]
        # The strokes are the scan's: where it has ink the picture has paint, here red.
        pixels = np.asarray(rows[0]["image"].resize((10, 10), Image.Resampling.BOX), float)
        ink = np.pad(load_digits().data[5].reshape(8, 8), 1) / 16
        assert np.corrcoef((pixels[..., 0] - pixels[..., 1]).ravel(), ink.ravel())[0, 1] > 0.8
        answers = [row["answer"] for row in claims.data.load_rows("ink", "test", 40)]
        assert {answers.count(answer) for answer in set(answers)} == {4} and len(set(answers)) == 10

    def test_shuffled_answers_keep_their_shares(self, claims) -> None:
        rows = list(claims.data.load_rows("colors", "train", 60))
        mixed = claims.data.shuffled(rows, seed=0)
        assert sorted(r["answer"] for r in mixed) == sorted(r["answer"] for r in rows)
        assert 0.02 < np.mean([a["answer"] == b["answer"] for a, b in zip(mixed, rows, strict=True)]) < 0.3
        assert all(a["image"] is b["image"] for a, b in zip(mixed, rows, strict=True))

    def test_a_corrupted_task_reads_the_same_rows(self, claims) -> None:
        plain, foggy = (claims.data.make_task(name) for name in ("ink", "ink+contrast"))
        row = claims.data.load_rows("ink+contrast", "test", 20)[0]
        assert row is claims.data.load_rows("ink", "test", 20)[0]
        assert np.ptp(np.asarray(foggy.example(row).image)) < np.ptp(np.asarray(plain.example(row).image))

    def test_refused(self, claims) -> None:
        with pytest.raises(ValueError, match="There is no split 'dev'; expected one of train, validation, test"):
            claims.data.load_rows("ink", "dev", 3)
        with pytest.raises(
            ValueError, match="301 rows of 'ink' were asked for, but its validation part has 300 scans"
        ):
            claims.data.load_rows("ink", "validation", 301)


class TestPlan:
    ZOOS = {"0": ("a", "b", "c"), "1": ("a", "b", "c"), "nocue": ("a", "b", "c")}

    def test_core(self, claims) -> None:
        cells = claims.plan.make_plan("core", self.ZOOS, seeds=(0, 1))
        trainings = [one for one in cells if one.learned]
        # two zoos, two tasks, three conditions, three sources, two seeds
        assert len(trainings) == 2 * 2 * 3 * 3 * 2 == len(set(trainings))
        assert {one.condition.name for one in trainings} == {"paper", "vp_paper", "transfer"}
        # Every zoo has its first seed before any has its second, and borders are there before what is compared to them.
        assert [one.seed for one in trainings] == sorted(one.seed for one in trainings)
        assert not any(one.learned for one in cells[: len(cells) - len(trainings)])
        borders = {one.condition.name for one in cells if not one.learned and one.zoo == "nocue"}
        assert borders == {"zero", "full", "white", "random", "light_right", "light_wrong"}

    def test_full_has_everything_and_the_core_first(self, claims) -> None:
        core, full = (claims.plan.make_plan(kind, self.ZOOS, seeds=(0, 1)) for kind in ("core", "full"))
        assert full[: len(core)] == core and len(set(full)) == len(full)
        assert {one.condition.name for one in full} == set(claims.plan.CONDITIONS)
        assert {one.measured for one in full} >= {"ink+contrast", "colors+gaussian_noise", "water", "digits"}
        control = [one for one in full if one.zoo == "nocue" and one.learned]
        assert {one.condition.name for one in control} == {"paper", "transfer"}

    def test_conditions_by_name(self, claims) -> None:
        members = {"0": ("llava", "idefics3")}
        cells = claims.plan.make_plan("full", members, ("ink",), (0,), ["evp", "lora"])
        assert {cell.condition.name for cell in cells if cell.learned} == {"evp", "lora"}
        # And the one zero border that they are compared with, first.
        assert [(cell.condition.name, cell.measured) for cell in cells if not cell.learned] == [("zero", "ink")]
        assert not cells[0].learned

    def test_what_is_measured_has_its_zero_border(self, claims) -> None:
        full = claims.plan.make_plan("full", self.ZOOS, seeds=(0,))
        zero = {(one.zoo, one.measured) for one in full if one.condition.name == "zero"}
        assert {(one.zoo, one.measured) for one in full} == zero

    def test_ensembles_are_groups_that_hold_somebody_out(self, claims) -> None:
        full = claims.plan.make_plan("full", {"0": ("a", "b", "c", "d", "e")}, tasks=("ink",), seeds=(0,))
        sources = {one.sources for one in full if len(one.sources) > 1}
        assert sources == {("a", "b"), ("c", "d"), ("a", "b", "c")}
        small = claims.plan.make_plan("full", {"0": ("a", "b")}, tasks=("ink",), seeds=(0,))
        assert max(len(one.sources) for one in small) == 1


class TestCells:
    def test_a_cell_is_run_once(self, claims, runner, monkeypatch) -> None:
        cells = [cell(claims, "zero"), cell(claims, "paper", "llava")]
        assert claims.experiment.run_cells(cells, runner, progress=False) == 2
        kept = runner.read(cells[1])
        assert set(kept["correct"]) == set(PAIR) and set(kept["validation"]) == {"llava"}
        assert all(len(bits) == 20 and set(bits) <= {"0", "1"} for bits in kept["correct"].values())
        # The paper's rate on a canvas of 64.
        assert kept["arguments"]["learning_rate"] == pytest.approx(10 * 64 / 224)
        assert kept["arguments"]["update_rule"] == "paper"
        monkeypatch.setattr(claims.experiment, "learn_prompt", never)
        monkeypatch.setattr(claims.experiment, "evaluate", never)
        again = claims.experiment.Runner(runner.folders, runner.output, runner.settings)
        assert claims.experiment.run_cells(cells, again, progress=False) == 0
        assert len(list(runner.output.rglob("*"))) == 2 + 3  # two files; no partial one

    def test_a_new_member_is_measured_without_a_training(
        self, claims, runner, zoo_folder, tmp_path, monkeypatch
    ) -> None:
        one = cell(claims, "transfer", "llava")
        runner.run(one)
        before = runner.read(one)
        larger = tmp_path / "larger"
        larger.mkdir()
        for name in (*PAIR, "clip", "idefics3"):
            (larger / name).symlink_to(bundled(f"zoo/{name}"), target_is_directory=True)
        monkeypatch.setattr(claims.experiment, "learn_prompt", never)
        again = claims.experiment.Runner({"0": larger}, runner.output, runner.settings)
        assert again.missing(one, again.read(one)) == ["idefics3"]
        assert again.run(one)
        after = again.read(one)
        assert set(after["correct"]) == {*PAIR, "idefics3"} and after["prompt"] == before["prompt"]
        assert all(after["correct"][name] == before["correct"][name] for name in PAIR)

    def test_other_pictures_use_the_same_prompt(self, claims, runner, monkeypatch) -> None:
        one = cell(claims, "transfer", "llava")
        runner.run(one)
        monkeypatch.setattr(claims.experiment, "learn_prompt", never)
        for on in ("ink", "colors+contrast"):
            other = replace(one, on=on)
            assert runner.run(other) and runner.path(other) != runner.path(one)
            assert runner.read(other)["prompt"] == runner.read(one)["prompt"]

    def test_a_file_is_named_by_all_that_made_it(self, claims, runner, monkeypatch) -> None:
        one = cell(claims, "transfer", "llava")
        name = runner.path(one)
        others = [replace(one, seed=1), replace(one, sources=("paligemma",)), replace(one, task="ink"),
                  replace(one, split="validation"), cell(claims, "paper", "llava"), cell(claims, "shuffled", "llava")]  # fmt: skip
        assert len({name, *map(runner.path, others)}) == 1 + len(others)
        longer = claims.experiment.Runner(runner.folders, runner.output, replace(runner.settings, steps=3))
        assert longer.path(one) != name
        # The recipe's constants, which the name of a recipe does not show.
        recipes = claims.experiment.RECIPES
        monkeypatch.setitem(recipes, "transfer", recipes["transfer"] | {"block_size": 4})
        assert runner.path(one) != name and runner.path(others[4]) == runner.path(cell(claims, "paper", "llava"))

    @pytest.mark.multiprocess
    def test_two_processes_find_what_one_does(self, claims, runner, tmp_path) -> None:
        cells = [cell(claims, "light_right"), cell(claims, "transfer", "llava"), cell(claims, "transfer", "paligemma")]
        assert claims.experiment.run_cells(cells[:1], runner, progress=False) == 1
        assert claims.experiment.run_cells(cells, runner, processes=2, progress=False) == 2
        alone = claims.experiment.Runner(runner.folders, tmp_path / "alone", runner.settings)
        claims.experiment.run_cells(cells, alone, progress=False)
        for one in cells:
            found, expected = runner.read(one), alone.read(one)
            assert (found["correct"], found["prompt"]) == (expected["correct"], expected["prompt"])

    def test_a_failure_does_not_stop_the_others(self, claims, runner, monkeypatch) -> None:
        def fails(one: Any, *args: Any) -> Any:
            raise FloatingPointError("The task loss is nan.")

        monkeypatch.setattr(claims.experiment, "learn_prompt", fails)
        cells = [cell(claims, "transfer", "llava"), cell(claims, "zero")]
        with pytest.raises(
            RuntimeError, match=r"1 cells failed.*\n0 colors transfer llava seed 0: FloatingPointError"
        ):
            claims.experiment.run_cells(cells, runner, progress=False)
        assert runner.read(cells[0]) is None and runner.read(cells[1]) is not None

    def test_no_time_begins_no_cell(self, claims, runner) -> None:
        claims.experiment.run_cells([cell(claims, "zero")], runner, minutes=-1, progress=False)
        assert runner.read(cell(claims, "zero")) is None

    def test_a_zoo_of_one_member(self, claims, tmp_path) -> None:
        (tmp_path / "llava").symlink_to(bundled("zoo/llava"), target_is_directory=True)
        with pytest.raises(FileNotFoundError, match=r"has 1 of the members llava, .* at least two are needed"):
            claims.experiment.Zoo(tmp_path)


class TestTraining:
    def test_a_prompt_kept_as_text_is_the_same_picture(self, claims, runner) -> None:
        from transferable_vp import random_prompt

        prompt = random_prompt(runner.settings.blank(), seed=3)
        again = claims.experiment.from_text(claims.experiment.to_text(prompt), runner.settings)
        image = claims.data.load_rows("colors", "train", 1)[0]["image"]
        assert prompt.apply(image).tobytes() == again.apply(image).tobytes()

    def test_borders_by_hand(self, claims, runner) -> None:
        for name, light in (("light_right", (0.45, 1.0, 0.5)), ("light_wrong", (1.0, 0.62, 0.35)), ("white", None)):
            border = claims.experiment.make_border(cell(claims, name), runner.settings).delta
            expected = torch.tensor([1.0] * 3 if light is None else [0.85 * part for part in light])
            torch.testing.assert_close(border[:, 0, 0].detach(), expected)
            assert border[:, 32, 32].abs().max() == 0

    def test_shares_are_on_the_scale_of_the_task_loss(self, claims, runner) -> None:
        zoo, rows = runner.zoo("0"), claims.data.load_rows("colors", "train", 20)[:4]
        task, blank = claims.data.make_task("colors"), runner.settings.blank()
        one, ten = (
            claims.experiment.scaled_weights([zoo.surrogate("llava")], zoo.clip(), rows, task, blank, share, share)
            for share in (0.1, 1.0)
        )
        assert set(one) == {"fca_weight", "tse_weight"} and min(one.values()) > 0
        for name in one:
            assert ten[name] == pytest.approx(10 * one[name])
        assert claims.experiment.scaled_weights([zoo.surrogate("llava")], None, rows, task, blank) == {}

    def test_rows_of_a_training(self, claims, runner) -> None:
        settings = replace(runner.settings, steps=10, n_train=100)

        def rows(condition: str, seed: int = 0) -> Any:
            return claims.experiment.training_rows(cell(claims, condition, "llava", seed=seed), settings)

        few = rows("transfer_10%")
        assert len(few) == 40 and len({id(row["image"]) for row in few}) == 10
        # Conditions of one seed see the same rows in the same order.
        assert [id(row) for row in rows("transfer")] == [id(row) for row in rows("paper")]
        assert [id(row) for row in rows("transfer", 1)] != [id(row) for row in rows("transfer")]
        mixed, plain = rows("shuffled"), rows("transfer")
        assert [id(row["image"]) for row in mixed] == [id(row["image"]) for row in plain]
        assert [row["answer"] for row in mixed] != [row["answer"] for row in plain]

    def test_lora_is_measured_on_its_source_alone(self, claims, runner, monkeypatch) -> None:
        monkeypatch.setattr(claims.experiment, "LORA_RATES", (1e-3,))
        one = cell(claims, "lora", "llava")
        before = {name: value.clone() for name, value in runner.zoo("0").surrogate("llava").model.state_dict().items()}
        assert runner.run(one) and not runner.run(one)
        assert set(runner.read(one)["correct"]) == {"llava"}
        after = runner.zoo("0").surrogate("llava").model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())


def bits(accuracy: float, n: int = 100) -> np.ndarray:
    """The first are right."""
    return np.arange(n) < round(accuracy * n)


def records(claims: SimpleNamespace, accuracies: dict[tuple[Any, ...], dict[str, float]]) -> list[Any]:
    """Of accuracies by hand: `(zoo, task, condition, sources, seed): {member: accuracy}`."""
    return [
        claims.records.Record(
            zoo, task, condition, sources, task, seed, {name: bits(of) for name, of in found.items()}
        )
        for (zoo, task, condition, sources, seed), found in accuracies.items()
    ]


def by_hand(claims: SimpleNamespace) -> list[Any]:
    """Three zoos of two members; on both tasks the transfer recipe adds 10, 20 and 30 points to the model held out, the
    paper's adds 10 in each zoo and takes 20 from `b` in zoo 2."""
    kept = {}
    for index, zoo in enumerate(("0", "1", "2")):
        for task in ("colors", "ink"):
            kept[(zoo, task, "zero", (), 0)] = {"a": 0.5, "b": 0.4}
            for seed in (0, 1):
                gain, wobble = 0.1 * (index + 1), 0.02 if seed else -0.02
                kept[(zoo, task, "transfer", ("a",), seed)] = {"a": 0.9, "b": 0.4 + gain + wobble}
                kept[(zoo, task, "transfer", ("b",), seed)] = {"a": 0.5 + gain - wobble, "b": 0.9}
                lost = -0.2 if index == 2 else 0.1
                kept[(zoo, task, "paper", ("a",), seed)] = {"a": 0.8, "b": 0.4 + lost}
                kept[(zoo, task, "paper", ("b",), seed)] = {"a": 0.6, "b": 0.8}
    return records(claims, kept)


class TestSummary:
    def test_of_cells_by_hand(self, claims) -> None:
        rows = claims.summary.read_rows(by_hand(claims))
        summary = claims.summary.summarize(rows)
        assert summary["heldout_gain_transfer"] == pytest.approx(20)
        half = stats.t.ppf(0.975, 2) * 10 / 3**0.5
        assert summary["heldout_gain_transfer_ci95"] == pytest.approx([20 - half, 20 + half])
        # Zoo means 10, 10 and (10 - 20) / 2.
        assert summary["heldout_gain_paper"] == pytest.approx(5)
        assert summary["transfer_over_paper"] == pytest.approx(4)
        assert summary["harmed_fraction_paper"] == summary["below_zero_fraction_paper"] == pytest.approx(1 / 6)
        assert summary["harmed_fraction_transfer"] == 0
        assert summary["source_gain_transfer"] == pytest.approx(45)
        assert summary["real_task"] == "ink" and summary["real_task_heldout_gain"] == pytest.approx(20)
        assert summary["real_task_ci95"] == pytest.approx([20 - half, 20 + half])
        assert summary["real_task_by_family"] == pytest.approx({"a": 20, "b": 20})
        assert (summary["zoos"], summary["pairs"], summary["seeds"], summary["n_test"]) == (
            ["0", "1", "2"],
            12,
            [0, 1],
            100,
        )
        assert summary["heldout_gain_vp"] is None
        low, high = summary["heldout_gain_transfer_bootstrap95"]
        assert 5 < low < 15 and 25 < high < 35

    def test_pairs(self, claims) -> None:
        rows = claims.summary.read_rows(by_hand(claims))
        (row,) = claims.summary.select(
            [row for row in rows if row["zoo"] == "1" and row["target"] == "b"], "transfer", ["ink"]
        )
        assert row["gains"] == pytest.approx([18, 22]) and row["gain"] == pytest.approx(20) and row["zero"] == 40
        assert row["ci95"][0] < 20 < row["ci95"][1]
        (hurt,) = [row for row in rows if claims.summary.harmed(row) and row["task"] == "ink"]
        assert (hurt["zoo"], hurt["target"], hurt["sources"]) == ("2", "b", ["a"])

    def test_control_zoos_and_shared_towers_are_apart(self, claims) -> None:
        kept = records(claims, {
            ("0", "ink", "zero", (), 0): {"blip2": 0.5, "instructblip": 0.5, "llava": 0.5},
            ("0", "ink", "transfer", ("blip2",), 0): {"blip2": 0.9, "instructblip": 0.9, "llava": 0.6},
            ("nocue", "ink", "zero", (), 0): {"blip2": 0.5, "llava": 0.5},
            ("nocue", "ink", "transfer", ("blip2",), 0): {"blip2": 0.6, "llava": 0.4},
        })  # fmt: skip
        summary = claims.summary.summarize(claims.summary.read_rows(kept))
        assert summary["heldout_gain_transfer"] == pytest.approx(25)
        assert summary["heldout_gain_transfer_without_shared_tower"] == pytest.approx(10)
        # Zoo 0's instructblip chose the recipe; its llava too.
        assert summary["heldout_gain_transfer_untouched"] is None
        assert summary["nocue_heldout_gain_transfer"] == pytest.approx(-10)
        assert summary["heldout_gain_transfer_ci95"] is None  # one zoo

    def test_the_bootstrap_covers_every_level(self, claims) -> None:
        def rows(zoos: list[float], n: int = 400) -> list[dict[str, Any]]:
            difference = np.zeros((1, n))
            return [{"zoo": str(i), "task": "ink", "on": "ink", "sources": ["a"], "n": n, "differences": difference + gain}
                    for i, gain in enumerate(zoos)]  # fmt: skip

        interval = claims.summary.hierarchical_interval
        assert interval(rows([0.1, 0.1])) == pytest.approx([10, 10])
        assert interval(rows([0.0, 0.2])) == pytest.approx([0, 20])
        # Pictures alone: a mean of 400 that are 0 or 1.
        some = rows([0.0])
        some[0]["differences"][0, :200] = 1
        low, high = interval(some)
        assert low == pytest.approx(50 - 4.9, abs=0.7) and high == pytest.approx(50 + 4.9, abs=0.7)
        assert interval([]) is None
        # A seed that one source lacks is not taken for a gain of zero.
        two = [*rows([0.1]), rows([0.1])[0] | {"sources": ["b"], "differences": np.full((3, 400), 0.1)}]
        assert interval(two) == pytest.approx([10, 10])

    def test_a_difference_is_of_what_both_have(self, claims) -> None:
        def row(zoo: str, task: str, gains: dict[int, float]) -> dict[str, Any]:
            mean = sum(gains.values()) / len(gains)
            return {"zoo": zoo, "task": task, "seeds": list(gains), "gains": list(gains.values()), "gain": mean}

        better = [
            row("0", "ink", {0: 5.0}),
            row("1", "ink", {0: 7.0}),
            row("1", "colors", {0: 90.0}),
            row("2", "ink", {2: 9.0}),
        ]
        worse = [row("0", "ink", {0: 4.0, 1: 50.0}), row("1", "ink", {0: 4.0, 1: 50.0}), row("2", "ink", {0: 1.0})]
        found = claims.summary.difference(better, worse)
        assert found["gain"] == pytest.approx(2.0)
        assert (found["zoos"], found["tasks"], found["seeds"]) == (["0", "1"], ["ink"], [0])
        assert claims.summary.difference(better, worse[2:]) is None

    def test_intervals_of_few_zoos(self, claims) -> None:
        assert claims.summary.t_interval([1.0]) is None
        assert claims.summary.t_interval([1.0, 3.0]) == pytest.approx([2 - 12.7062, 2 + 12.7062], abs=1e-3)

    @pytest.mark.parametrize(
        ("numbers", "expected"),
        [
            ([{"gain": 5.0, "ci95": [1.0, 9.0]}], "holds"),
            ([{"gain": 5.0, "ci95": [-1.0, 11.0]}], "not shown"),
            ([{"gain": 5.0, "ci95": None}, {"gain": -1.0, "ci95": None}], "not shown"),
            ([{"gain": -1.0, "ci95": [-3.0, 1.0]}], "does not hold at this scale"),
            ([{"gain": 5.0, "ci95": [1.0, 9.0]}, {"gain": -1.0, "ci95": [-3.0, 1.0]}], "holds in part"),
            ([{"gain": 5.0, "ci95": [1.0, 9.0]}, {}], "not measured"),
            ([], "not measured"),
            ([{"gain": 12.0, "ci95": None, "share": True}], "holds"),
            ([{"gain": 0.0, "ci95": None, "share": True}], "does not hold at this scale"),
        ],
    )
    def test_verdicts(self, claims, numbers, expected) -> None:
        assert claims.summary.verdict(numbers) == expected


class TestReport:
    def test_all_is_made_from_the_records(self, claims, tmp_path) -> None:
        kept = claims.records.Records(tmp_path / "results" / "claims_cells.jsonl")
        kept.take(by_hand(claims))
        kept.head["settings"] = asdict(claims.experiment.Settings())
        kept.add_run({"command": "python x", "cells": 90, "kept": 54, "machine": "this", "versions": {"torch": "2"}})
        kept.write()
        assert claims.script.main(["--page_only", "--docs_dir", str(tmp_path)]) == 0
        result = json.loads((tmp_path / "results" / "claims.json").read_text())
        assert result["summary"]["heldout_gain_transfer"] == pytest.approx(20)
        assert len(result["pairs"]) == 3 * 2 * (2 + 2 * 4) and "differences" not in result["pairs"][0]
        text = (tmp_path / "results_claims.md").read_text()
        assert text == claims.tables.page(result, {})
        assert "| transfer recipe | +45.0 [+45.0, +45.0] | +20.0 [-4.8, +44.8] |" in text
        assert "Measured by `python x` (54 of its 90 cells have been run)." in text and "54 cells; this page" in text
        assert "not measured" in text and "built in" in text and "†" not in text
        pictures = sorted(path.name for path in (tmp_path / "images").iterdir())
        assert pictures == ["claims_conditions.png", "claims_pairs.png"]

    def test_a_part_of_a_plan(self, claims, zoo_folder, tmp_path, capsys) -> None:
        words = ["--zoo", str(zoo_folder), "--docs_dir", str(tmp_path), "--output_dir", str(tmp_path), "--conditions"]
        assert claims.script.main([*words, "evp", "transfer"]) == 1
        assert "The plan 'core' has no evp: try --plan full." in capsys.readouterr().err
        assert claims.script.main([*words, "transfer", "--report_only"]) == 1
        assert "No cell of this plan is kept" in capsys.readouterr().err

    def test_a_page_of_nothing(self, claims, tmp_path, capsys) -> None:
        assert claims.script.main(["--page_only", "--docs_dir", str(tmp_path)]) == 1
        assert "is not there: run the plan first, without --page_only" in capsys.readouterr().err

    def test_the_script(self, claims, zoo_folder, tmp_path, capsys) -> None:
        small = ["--steps", "2", "--batch_size", "4", "--n_train", "20", "--n_validation", "20", "--n_test", "20"]
        words = ["--zoo", str(zoo_folder), "--tasks", "ink", "--seeds", "0", "--output_dir", str(tmp_path / "runs"),
                 "--docs_dir", str(tmp_path / "docs"), "--disable_tqdm", *small]  # fmt: skip
        assert claims.script.main([*words, "--dry_run"]) == 0
        assert "12 cells, 6 of them trainings; 0 are kept." in capsys.readouterr().out
        assert claims.script.main([*words, "--report_only"]) == 1
        assert "No cell of this plan is kept" in capsys.readouterr().err
        assert claims.script.main(words) == 0
        result = json.loads((tmp_path / "docs" / "results" / "claims.json").read_text())
        assert result["summary"]["pairs"] == 2 and result["settings"]["steps"] == 2
        claims.script.main([*words, "--dry_run"])
        assert "12 are kept." in capsys.readouterr().out
        # More of the plan comes beside what there is.
        page = tmp_path / "docs" / "results_claims.md"
        assert "EVP" not in page.read_text()
        assert claims.script.main([*words, "--plan", "full", "--conditions", "evp"]) == 0
        assert "EVP" in page.read_text() and "| transfer recipe |" in page.read_text()
        assert len(json.loads((tmp_path / "docs" / "results" / "claims.json").read_text())["runs"]) == 2

    def test_zoos_have_names_of_their_own(self, claims, zoo_folder, tmp_path) -> None:
        assert list(claims.script.zoo_folders(None)) == ["0"]
        with pytest.raises(ValueError, match="have one name; rename a folder"):
            claims.script.zoo_folders([bundled("zoo"), zoo_folder])
