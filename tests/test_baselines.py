"""examples/baselines: the same rows for all, choices on validation rows only, one table."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny_training import BORDER, CANVAS, NAMES, TASK, dataset, rows, semantics, surrogate

from transferable_vp import (
    Evaluation,
    ExampleCollator,
    Surrogate,
    Task,
    TransferableVisualPromptConfig,
    TransferableVisualPromptTrainer,
    evaluate,
)


ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "baselines"
STEPS, BATCH = 3, 4


@pytest.fixture(scope="module")
def baselines() -> Iterator[SimpleNamespace]:
    """The modules of the folder, imported as `run.py` imports them."""
    names = [path.stem for path in FOLDER.glob("*.py")]
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


def fresh(family: str) -> Surrogate:
    """One that a test may change."""
    return Surrogate(*tiny.build(family), name=family)


def make_comparison(baselines: SimpleNamespace, *targets: Surrogate, **more: Any) -> Any:
    """Three steps of four rows on the tiny Idefics3, from ten rows, so that a second pass over them begins."""
    parts = {"task": TASK, "train": rows(10), "validation": rows(6, seed=50), "test": rows(9, seed=80)}
    given = {"text_prefixes": ["Look.", "Hm?"], "lora_learning_rates": [1e-3], "seeds": [0, 1]}
    settings = {
        "geometry": TransferableVisualPromptConfig(canvas_size=CANVAS, border_size=BORDER), "max_steps": STEPS,
        "batch_size": BATCH, "learning_rate": 0.05, "fca_weight": 0.005, "tse_weight": 0.001, "lora_rank": 4,
    } | given  # fmt: skip
    settings |= {key: more.pop(key) for key in list(more) if key in settings}
    source = more.pop("source", None) or fresh("idefics3")
    return baselines.comparison.Comparison(
        baselines.comparison.Settings(**settings), baselines.rows.Rows("tiny", **(parts | more)), source, targets,
        semantics(), progress=False,
    )  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob("*")) if f.is_file()}


class TestRows:
    def test_the_order_is_the_seeds_and_passes_over_all_rows(self, baselines) -> None:
        order = [baselines.rows.training_order(list(range(10)), 5, 4, seed) for seed in (0, 0, 1)]
        assert order[0] == order[1] != order[2]
        assert len(order[0]) == 20
        assert sorted(order[0][:10]) == sorted(order[0][10:]) == list(range(10))
        assert order[0][:10] != order[0][10:]

    def test_a_dataset_gives_rows_in_the_same_order_as_a_list(self, baselines) -> None:
        numbered = dataset(12).add_column("number", list(range(12)))
        found = baselines.rows.training_order(numbered, 4, 5, seed=3)
        assert list(found["number"]) == baselines.rows.training_order(list(range(12)), 4, 5, seed=3)

    def test_validation_is_held_out_of_training(self, baselines) -> None:
        parts = baselines.rows.split_rows("x", TASK, list(range(20)), list(range(100, 130)), 12, 5, 7)
        assert (len(parts.train), len(parts.validation), len(parts.test)) == (12, 5, 7)
        assert len({*parts.train, *parts.validation}) == 17 and max(*parts.train, *parts.validation) < 20
        assert min(parts.test) >= 100 and len(set(parts.test)) == 7

    @pytest.mark.parametrize(
        ("task", "sizes", "message"),
        [
            (TASK, (12, 9, 5), "--n_train plus --n_validation is 21 but there are 20 rows"),
            (TASK, (12, 5, 31), "--n_test is 31 but there are 30 rows"),
            (TASK, (12, 0, 5), "each must be 1 or more"),
            (replace(TASK, candidates=None), (12, 5, 5), "give `--candidates`"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused(self, baselines, task, sizes, message) -> None:
        with pytest.raises(ValueError, match=message):
            baselines.rows.split_rows("x", task, list(range(20)), list(range(30)), *sizes)

    def test_the_zoos_task_is_the_demos(self, baselines) -> None:
        from transferable_vp.demo import load_world

        found = baselines.rows.zoo_rows(30, 10, 20)
        world = load_world()

        def pictures(some: Any) -> list[bytes]:
            return sorted(row["image"].tobytes() for row in some)

        assert pictures([*found.train, *found.validation]) == pictures(world.color_examples(40, seed=1))
        assert pictures(found.test) == pictures(world.color_examples(20, seed=3))
        assert found.task.candidates == world.CANDIDATES["color"] and found.hints


class TestLora:
    @pytest.mark.parametrize("family", ["llava", "paligemma", "instructblip"])
    def test_lowers_its_loss_and_leaves_the_model_as_it_was(self, baselines, family) -> None:
        model, few = fresh(family), rows(8)
        loss_task = replace(TASK, candidates=None, question=TASK.question)
        order = baselines.rows.training_order([{**r, "label": NAMES[r["label"]]} for r in few], 12, 4, seed=0)
        before = {name: value.clone() for name, value in model.model.state_dict().items()}
        cached = vars(model.config).get("use_cache")
        plain = evaluate(model, order[:8], loss_task, progress=False)
        with baselines.lora.adapter(model, seed=0, rank=4) as adapted:
            start = evaluate(adapted, order[:8], loss_task, progress=False)
            baselines.lora.learn_lora(adapted, order, loss_task, 0, 4, 1e-2, progress=False)
            end = evaluate(adapted, order[:8], loss_task, progress=False)
            frozen = {n: p for n, p in adapted.model.named_parameters() if not p.requires_grad}
            own = {name.replace(".base_layer", "").removeprefix("base_model.model."): p for name, p in frozen.items()}
            assert own and all(torch.equal(p, before[name]) for name, p in own.items())
            assert baselines.lora.trainable_parameters(adapted) > 0
        # An adapter starts as no change at all; what it then learned is more than rounding.
        assert np.allclose(start.values, plain.values, atol=1e-6)
        assert end.mean < 0.8 * start.mean
        after = model.model.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        assert not any(p.requires_grad for p in model.model.parameters())
        assert vars(model.config).get("use_cache") == cached
        assert np.array_equal(evaluate(model, order[:8], loss_task, progress=False).values, plain.values)

    def test_is_taken_away_after_an_error_too(self, baselines) -> None:
        model = fresh("llava")
        names = set(model.model.state_dict())
        with pytest.raises(KeyboardInterrupt), baselines.lora.adapter(model, seed=0):
            raise KeyboardInterrupt
        assert set(model.model.state_dict()) == names

    def test_the_seed_decides_where_it_starts(self, baselines) -> None:
        def start(seed: int) -> torch.Tensor:
            with baselines.lora.adapter(fresh("llava"), seed=seed) as adapted:
                return torch.cat([p.detach().flatten() for p in adapted.model.parameters() if p.requires_grad])

        assert torch.equal(start(0), start(0)) and not torch.equal(start(0), start(1))

    @pytest.mark.parametrize(
        ("accuracies", "best"), [({1e-3: 0.2, 1e-2: 0.9, 1e-1: 0.4}, 1e-2), ({1e-2: 0.5, 1e-3: 0.5}, 1e-3)]
    )
    def test_the_rate_is_the_best_on_validation_and_of_equals_the_smallest(
        self, baselines, monkeypatch, accuracies, best
    ) -> None:
        validation, trained = rows(4, seed=50), []
        monkeypatch.setattr(baselines.lora, "learn_lora", lambda *args: trained.append(args[5]))

        def rigged(model: Surrogate, data: Any, *args: Any, **kwargs: Any) -> Evaluation:
            assert data is validation
            return Evaluation(np.array([accuracies[trained[-1]]]))

        monkeypatch.setattr(baselines.lora, "evaluate", rigged)
        found = baselines.lora.choose_learning_rate(fresh("llava"), [], validation, TASK, 0, 4, list(accuracies))
        assert found == (best, accuracies)


class TestTextPrompt:
    @pytest.mark.parametrize("task", [TASK, replace(TASK, question_column="asked")])
    def test_goes_before_the_question_and_changes_nothing_else(self, baselines, task) -> None:
        row = {**rows(1)[0], "asked": "Which one?"}
        plain, prefixed = task.example(row), baselines.text_prompt.PrefixedTask.of(task, "Look.").example(row)
        assert prefixed.question == f"Look. {plain.question}"
        assert replace(prefixed, question=plain.question) == plain

    def test_is_the_best_on_validation_and_not_on_test(self, baselines) -> None:
        # Labels are what the model itself answers: on validation rows after one prefix, on test rows after the other.
        source, target, prefixes = fresh("idefics3"), fresh("llava"), ["Look.", "Hm?"]
        tasks = {prefix: baselines.text_prompt.PrefixedTask.of(TASK, prefix) for prefix in prefixes}

        def labelled(seed: int, prefix: str) -> list[dict[str, Any]]:
            some = rows(12, seed=seed)
            answers = evaluate(source, some, tasks[prefix], progress=False).answers
            return [{**row, "label": NAMES.index(answer)} for row, answer in zip(some, answers, strict=True)]

        for own, other in (prefixes, reversed(prefixes)):
            validation, test = labelled(0, own), labelled(20, other)
            assert evaluate(source, test, tasks[other], progress=False).mean == 1
            assert evaluate(source, validation, tasks[other], progress=False).mean < 1
            comparison = make_comparison(
                baselines, target, source=source, validation=validation, test=test, text_prefixes=prefixes
            )
            on_source, on_target = comparison.measure("text_prompt", seed=0)
            choice = comparison.choices["text_prompt"]
            assert choice["prefix"] == own and choice["validation"][own] == 1 > choice["validation"][other]
            # The same words for a model that had no say in them.
            assert on_source.answers == evaluate(source, test, tasks[own], progress=False).answers
            assert on_target.answers == evaluate(target, test, tasks[own], progress=False).answers

    @pytest.mark.parametrize("prefixes", [[], ["Look.", " "]])
    def test_no_words_are_no_text_prompt(self, baselines, prefixes) -> None:
        with pytest.raises(ValueError, match="none that is empty"):
            baselines.text_prompt.choose_prefix(surrogate("llava"), rows(2), TASK, prefixes)


class TestVisualPrompts:
    def test_every_method_sees_the_same_rows_in_the_same_order(self, baselines, monkeypatch) -> None:
        seen: list[list[tuple[bytes, str]]] = []
        collate = ExampleCollator.__call__

        def spy(self: ExampleCollator, some: Any) -> dict[str, Any]:
            batch = collate(self, some)
            pairs = zip(batch["images"], batch["answers"], strict=True)
            seen.append([(image.tobytes(), answer) for image, answer in pairs])
            return batch

        monkeypatch.setattr(ExampleCollator, "__call__", spy)
        # With mirroring, which draws random numbers, allowed.
        comparison = make_comparison(baselines, task=replace(TASK, flip=True))
        found: dict[int, list[Any]] = {0: [], 1: []}
        for seed, methods in {0: (*baselines.visual_prompt.VISUAL_PROMPTS, "lora"), 1: ("evp", "lora")}.items():
            for method in methods:
                comparison.measure(method, seed)
                # The first of LoRA's measurements trains once more, to choose its rate.
                assert len(seen) == (2 * STEPS if (method, seed) == ("lora", 0) else STEPS)
                found[seed] += [seen[i : i + STEPS] for i in range(0, len(seen), STEPS)]
                seen.clear()
        expected = baselines.rows.training_order(comparison.rows.train, STEPS, BATCH, seed=0)
        assert [pair for batch in found[0][0] for pair in batch] == [
            (row["image"].tobytes(), NAMES[row["label"]]) for row in expected
        ]
        for order in found.values():
            assert all(other == order[0] for other in order)
        assert found[0][0] != found[1][0]

    @pytest.mark.parametrize("flip", [True, False])
    def test_methods_differ_in_what_they_are_named_after(self, baselines, monkeypatch, flip) -> None:
        made: dict[str, Any] = {}

        class Spy(TransferableVisualPromptTrainer):
            def __init__(self, prompt: Any, args: Any, *rest: Any, **kwargs: Any) -> None:
                super().__init__(prompt, args, *rest, **kwargs)
                weights = {o.name: o.weight for o in self.objectives if o.weight}
                how = (self.args.update_rule, self.args.learning_rate, self.args.block_size)
                made[method] = (weights, *how, self.task.flip, args.max_steps)

            def train(self) -> None:
                """How it would train is all that is asked."""

        monkeypatch.setattr(baselines.visual_prompt, "TransferableVisualPromptTrainer", Spy)
        comparison = make_comparison(baselines, task=replace(TASK, flip=flip))
        for method in baselines.visual_prompt.VISUAL_PROMPTS:
            comparison.measure(method, seed=0)
        task, fca, tse = {"task": 1.0}, {"fca": 0.005}, {"tse": 0.001}
        assert made == {
            "vp": (task, "adam", 0.05, 1, False, STEPS),
            "evp": (task, "paper", 10.0, 1, flip, STEPS),
            "fca_only": (task | fca, "adam", 0.05, 1, False, STEPS),
            "tse_only": (task | tse, "adam", 0.05, 1, False, STEPS),
            "tvp": (task | fca | tse, "adam", 0.05, 1, False, STEPS),
            "transfer": (task, "adam", 0.1, CANVAS // 8, False, STEPS),
        }

    def test_borders_are_measured_where_they_are_said_to_be(self, baselines, monkeypatch) -> None:
        given: dict[str, Any] = {}

        def spy(model: Surrogate, data: Any, task: Task, **kwargs: Any) -> Evaluation:
            assert data is comparison.rows.test
            given[current] = kwargs
            return Evaluation(np.ones(len(data)))

        comparison = make_comparison(baselines)
        monkeypatch.setattr(baselines.comparison, "evaluate", spy)
        for current, seed in (("full_image", 0), ("zero_border", 0), ("random_border", 1), ("vp", 0)):
            comparison.measure(current, seed)
        assert "prompt" not in given["full_image"]
        assert given["zero_border"]["prompted"] is False and not given["zero_border"]["prompt"].delta.any()
        border = given["random_border"]["prompt"].border_mask.expand(3, -1, -1)
        assert given["random_border"]["prompt"].delta[border].std() > 0.2
        assert given["vp"]["prompt"].delta.any() and "prompted" not in given["vp"]


class TestReport:
    def test_of_a_run(self, baselines) -> None:
        target = fresh("llava")
        report = make_comparison(baselines, target).run(["lora", "random_border", "text_prompt"])
        assert [m["method"] for m in report["methods"]] == ["full_image", "random_border", "text_prompt", "lora"]
        assert [(m["name"], m["is_source"]) for m in report["models"]] == [("idefics3", True), ("llava", False)]
        full, border, words, lora = (method["results"] for method in report["methods"])
        assert [len(results[0]["runs"]) for results in (full, border, words, lora)] == [1, 2, 1, 2]
        assert full[1]["mean"] == evaluate(target, rows(9, seed=80), TASK, progress=False).mean
        assert full[0]["delta"] == 0 and full[0]["std"] is None
        assert lora[1] is None and lora[0] is not None
        assert report["border_parameters"] == 3 * (CANVAS**2 - (CANVAS - 2 * BORDER) ** 2)
        assert [len(m["train_seconds"]) for m in report["methods"]] == [0, 0, 0, 2]

    def test_a_summary_is_over_seeds_and_paired_by_example(self, baselines) -> None:
        reference = Evaluation(np.array([1.0, 0, 0, 0] * 25))
        runs = [Evaluation(np.array([1.0, 1, 0, 0] * 25)), Evaluation(np.array([1.0, 1, 1, 0] * 25))]
        found = baselines.comparison.summary(runs, reference)
        assert found["runs"] == [0.5, 0.75] and found["mean"] == 0.625 and found["delta"] == 0.375
        assert found["std"] == pytest.approx(np.std([0.5, 0.75], ddof=1))
        low, high = found["delta_ci95"]
        assert 0.25 < low < 0.375 < high < 0.5
        assert baselines.comparison.summary([None, None], reference) is None

    def test_its_tables(self, baselines) -> None:
        report = make_comparison(baselines, fresh("llava")).run(["lora", "text_prompt"])
        shown = baselines.table.format_table(report | {"settings": SETTINGS})
        lines = shown.splitlines()
        assert "source idefics3; seeds 0, 1; 3 steps of 4 rows; n = 9 test rows" in lines[0]
        (lora,) = (line.split() for line in lines if line.startswith("LoRA on the source "))
        result = report["methods"][-1]["results"][0]
        assert lora[4:] == [f"{100 * result['mean']:.1f}", "±", f"{100 * result['std']:.1f}", "-"]
        assert "Other models have other weights, so it cannot be given to them: '-'." in shown
        assert f"'{report['choices']['text_prompt']['prefix']}', the best of 2 on 6 validation rows" in shown
        page = "<!-- table:baselines -->\nold\n<!-- end -->\nkept\n<!-- table:baselines_gains -->\n<!-- end -->\n"
        filled = baselines.table.fill_page(page, {**report, "settings": SETTINGS, "machine": "x", "seconds": 60})
        first, second = filled.split("kept")
        assert (
            "old" not in filled
            and first.count("| LoRA on the source |") == second.count("| LoRA on the source |") == 1
        )
        assert "| full image |" in first and "| full image |" not in second
        low, high = report["methods"][1]["results"][1]["delta_ci95"]
        assert f"[{100 * low + 0.0:+.1f}, {100 * high + 0.0:+.1f}]" in second


SETTINGS = {"max_steps": STEPS, "batch_size": BATCH, "flip": False, "n_validation": 6}


class TestCommand:
    def test_one_command_makes_one_table(self, baselines, tmp_path, capsys) -> None:
        before = digests(ROOT / "zoo")
        code = baselines.run.main(
            ["--model", str(ROOT / "zoo/llava"), "--target_model", str(ROOT / "zoo/idefics3"), "--max_steps", "2",
             "--batch_size", "4", "--n_train", "8", "--n_validation", "10", "--n_test", "20", "--seeds", "3",
             "--lora_learning_rates", "0.003", "--disable_tqdm", "--output_dir", str(tmp_path / "run")]
        )  # fmt: skip
        assert code == 0
        assert digests(ROOT / "zoo") == before
        report = json.loads((tmp_path / "run" / "baselines.json").read_text(encoding="utf-8"))
        assert {m["method"] for m in report["methods"]} == set(baselines.comparison.METHODS)
        for method in report["methods"]:
            on_source, on_target = method["results"]
            assert len(on_source["runs"]) == 1 and on_source["mean"] in [i / 20 for i in range(21)]
            assert (on_target is None) == (method["method"] == "lora")
        assert (report["seeds"], report["n"], report["settings"]["max_steps"]) == ([3], 20, 2)
        assert report["choices"]["lora"]["validation"].keys() == {"0.003"}
        assert set(report["choices"]["text_prompt"]["validation"]) > set(baselines.text_prompt.PREFIXES)
        assert report["versions"]["torch"] == version("torch") and report["seconds"] > 0
        printed = capsys.readouterr().out
        assert baselines.table.format_table(report) in printed
        assert all(f"\n{label} " in printed for label in baselines.comparison.METHODS.values())
        with Image.open(tmp_path / "run" / "baselines.png") as chart:
            assert min(chart.size) > 300

    def test_rows_and_models_of_ones_own(self, baselines, tmp_path, monkeypatch) -> None:
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        surrogate("llava").model.save_pretrained(tmp_path / "mine")
        surrogate("llava").processor.save_pretrained(tmp_path / "mine")
        dataset(16).rename_column("image", "img").to_parquet(tmp_path / "labels.parquet")
        code = baselines.run.main(
            ["--model", str(tmp_path / "mine"), "--dataset", str(tmp_path / "labels.parquet"), "--canvas_size", "32",
             "--border_size", "6", "--methods", "vp", "lora", "--max_steps", "2", "--batch_size", "2", "--n_train", "8",
             "--n_validation", "4", "--n_test", "16", "--seeds", "0", "--test_split", "train", "--disable_tqdm",
             "--text_prefixes", "Look.", "--lora_learning_rates", "0.01", "--output_dir", str(tmp_path / "run")]
        )  # fmt: skip
        assert code == 0
        report = json.loads((tmp_path / "run" / "baselines.json").read_text(encoding="utf-8"))
        # Without targets in sight none are measured, and without words to try none are chosen.
        assert [m["name"] for m in report["models"]] == ["mine"] and set(report["choices"]) == {"lora"}
        assert [m["method"] for m in report["methods"]] == ["full_image", "vp", "lora"] and report["n"] == 16

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--model", "./not/there"], "There is no model at ./not/there: no such folder."),
            (["--target_model", "zoo/not_there"], "The model zoo/not_there cannot be loaded"),
            (["--clip_model", "/not/there"], "There is no model at /not/there: no such folder."),
            (["--methods", "vpp"], "--methods has vpp; choose among full_image,"),
            (["--seeds", "1", "1"], "give at least one, and none twice"),
            (["--max_steps", "0"], "each must be 1 or more"),
        ],
    )
    def test_a_mistake_is_one_sentence(self, baselines, arguments, message, tmp_path, capsys, monkeypatch) -> None:
        monkeypatch.setattr(baselines.run, "load_rows", lambda args: pytest.fail("rows were drawn first"))
        assert baselines.run.main([*arguments, "--output_dir", str(tmp_path)]) == 1
        shown = capsys.readouterr().err.strip().splitlines()
        assert len(shown) == 1 and shown[0].startswith("error: ") and message in shown[0]
        assert not list(tmp_path.iterdir())


def test_the_page_shows_the_results_file_and_nothing_else(baselines) -> None:
    page = (ROOT / "docs" / "baselines.md").read_text(encoding="utf-8")
    report = json.loads((ROOT / "docs" / "results" / "baselines.json").read_text(encoding="utf-8"))
    for name, table in baselines.table.page_tables(report).items():
        assert f"<!-- table:{name} -->\n{table}\n<!-- end -->" in page
