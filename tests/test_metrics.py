"""The metrics as `evaluate` modules: values by hand and against scikit-learn, the page, offline, several processes."""

from __future__ import annotations

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import sklearn.metrics

from transferable_vp.metrics import METRICS, load_metric
from transferable_vp.metrics.auroc.auroc import area_under_roc
from transferable_vp.metrics.candidate_accuracy.candidate_accuracy import ranks
from transferable_vp.metrics.counting.counting import correct
from transferable_vp.metrics.intervals import bootstrap_interval, wilson_interval
from transferable_vp.metrics.pope.pope import f1


ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "transferable_vp" / "metrics"
# One example of every metric, with its headline number.
EXAMPLES: dict[str, tuple[dict[str, Any], str, float]] = {
    "auroc": ({"predictions": [0.1, 0.4, 0.35, 0.8], "references": [0, 0, 1, 1]}, "auroc", 0.75),
    "candidate_accuracy": ({"predictions": [[0.1, 0.2], [2.0, 1.0]], "references": [1, 1]}, "accuracy", 0.5),
    "counting": ({"predictions": ["three", "13"], "references": ["3", "3"]}, "accuracy", 0.5),
    "pope": ({"predictions": ["Yes.", "No."], "references": ["yes", "yes"]}, "accuracy", 0.5),
}


# Loading


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_loads_and_computes(name: str) -> None:
    metric = load_metric(name)
    assert isinstance(metric, evaluate.Metric)
    assert metric.name == name
    inputs, key, expected = EXAMPLES[name]
    result = metric.compute(**inputs)
    assert result[key] == expected
    assert result["n"] == len(inputs["references"])
    # What a report is made of must be plain numbers.
    assert json.loads(json.dumps(result)) == result


def test_metrics_are_the_folders() -> None:
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(METRICS) == folders == set(EXAMPLES)


def test_unknown_metric_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no metric 'accuracy'.*auroc, candidate_accuracy, counting, pope"):
        load_metric("accuracy")


@pytest.fixture
def evaluate_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of `evaluate` of the test's own, and no memory of what was loaded from another."""
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", METRICS)
def test_evaluate_load_takes_the_folder_too(name: str, evaluate_cache: Path) -> None:
    inputs, _, _ = EXAMPLES[name]
    assert evaluate.load(str(FOLDER / name)).compute(**inputs) == load_metric(name).compute(**inputs)
    assert (evaluate_cache / "modules" / "evaluate_modules" / "metrics" / name).is_dir()


def test_load_metric_leaves_nothing_on_disk(evaluate_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = evaluate_cache / "tmp"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    for name, (inputs, _, _) in EXAMPLES.items():
        load_metric(name).compute(**inputs)
    assert list(evaluate_cache.rglob("*")) == [scratch]


def test_batches_add_up_and_instances_are_apart() -> None:
    one, other = load_metric("counting"), load_metric("counting")
    one.add_batch(predictions=["3", "4"], references=["3", "3"])
    other.add(prediction="5", reference="5")
    one.add_batch(predictions=["3"], references=["3"])
    assert one.compute()["accuracy"] == pytest.approx(2 / 3)
    assert other.compute()["n"] == 1
    assert one.compute(predictions=["3"], references=["3"])["n"] == 1


@pytest.mark.parametrize("name", METRICS)
def test_nothing_to_measure(name: str) -> None:
    metric = load_metric(name)
    with pytest.raises(ValueError, match="no examples"):
        metric.compute(predictions=[], references=[])
    inputs, key, expected = EXAMPLES[name]
    assert metric.compute(**inputs)[key] == expected, "an error must not spoil the metric"


def test_different_numbers_of_predictions_and_references() -> None:
    with pytest.raises(ValueError, match="Mismatch in the number"):
        load_metric("pope").compute(predictions=["yes"], references=["yes", "no"])


# Candidate accuracy


def test_candidate_accuracy_by_hand() -> None:
    scores = [[0.0, -1.0, -2.0], [-3.0, -1.0, -2.0], [-3.0, -2.0, -1.0], [-np.inf, -1.0, -2.0]]
    result = load_metric("candidate_accuracy").compute(predictions=scores, references=[0, 1, 0, 1])
    low, high = wilson_interval(3, 4)
    assert result == {"accuracy": 0.75, "top5": None, "n": 4, "accuracy_ci95": [low, high], "top5_ci95": None}


def test_candidate_accuracy_equals_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(500, 12)), generator.integers(0, 12, size=500)
    result = load_metric("candidate_accuracy").compute(predictions=scores, references=labels)
    expected = [sklearn.metrics.top_k_accuracy_score(labels, scores, k=k, labels=range(12)) for k in (1, 5)]
    assert [result["accuracy"], result["top5"]] == pytest.approx(expected)


def test_ties_fall_as_with_argmax() -> None:
    scores = [[1.0, 2.0, 2.0, 0.0]] * 4
    assert ranks(scores, [0, 1, 2, 3]).tolist() == [2, 0, 1, 3]
    assert load_metric("candidate_accuracy").compute(predictions=[[0.5] * 7] * 7, references=range(7)) == {
        "accuracy": 1 / 7,
        "top5": 5 / 7,
        "n": 7,
        "accuracy_ci95": list(wilson_interval(1, 7)),
        "top5_ci95": list(wilson_interval(5, 7)),
    }


def test_top5_needs_more_than_five_candidates_everywhere() -> None:
    metric = load_metric("candidate_accuracy")
    five, six = [5.0, 4.0, 3.0, 2.0, 1.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    assert metric.compute(predictions=[five, five], references=[4, 0])["top5"] is None
    assert metric.compute(predictions=[six, five], references=[4, 0])["top5"] is None
    assert metric.compute(predictions=[six, six], references=[4, 5])["top5"] == 0.5


def test_scores_are_not_rounded_to_float32() -> None:
    scores = [[-1.0, -1.0 + 1e-12]]
    assert load_metric("candidate_accuracy").compute(predictions=scores, references=[1])["accuracy"] == 1


@pytest.mark.parametrize(
    ("scores", "reference", "message"),
    [
        ([0.1, 0.2], 2, "reference of example 1 is 2; expected the index of one of its 2"),
        ([0.1, 0.2], -1, "reference of example 1 is -1"),
        ([], 0, "one of its 0 candidates"),
        ([0.1, float("nan")], 0, "Example 1 has a score that is NaN"),
        ([0.1, None], 0, "Example 1 has a score that is NaN or missing"),
    ],
)
def test_candidate_accuracy_refuses(scores: list[Any], reference: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_metric("candidate_accuracy").compute(predictions=[[1.0, 0.0], scores], references=[0, reference])


# POPE


def test_pope_by_hand() -> None:
    # Two hits, one miss, one false alarm, one right no, and one answer to each reference that says neither.
    answers = ["Yes, there is.", "yes", "No.", "Yes", "There is no dog.", "A kitchen.", ""]
    truth = ["yes", "Yes", "yes", "no", "no ", "no", "yes"]
    result = load_metric("pope").compute(predictions=answers, references=truth)
    assert result.pop("f1_ci95") == list(
        bootstrap_interval(f1, np.array([1, 1, 0, 1, 0, 0, 0]), np.array([1, 1, 1, 0, 0, 0, 1]))
    )
    assert result == {
        "accuracy": 3 / 7,
        "precision": 2 / 3,
        "recall": 2 / 4,
        "f1": pytest.approx(4 / 7),
        "yes_ratio": 3 / 7,
        "unparsed": 2 / 7,
        "n": 7,
        "accuracy_ci95": list(wilson_interval(3, 7)),
        "precision_ci95": list(wilson_interval(2, 3)),
        "recall_ci95": list(wilson_interval(2, 4)),
        "yes_ratio_ci95": list(wilson_interval(3, 7)),
        "unparsed_ci95": list(wilson_interval(2, 7)),
    }


def test_pope_equals_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    truth = generator.choice(["yes", "no"], size=400)
    answers = generator.choice(["yes", "no", "perhaps"], size=400, p=[0.5, 0.3, 0.2])
    result = load_metric("pope").compute(predictions=answers.tolist(), references=truth.tolist(), n_resamples=200)
    is_yes, said_yes = truth == "yes", answers == "yes"
    precision, recall, score, _ = sklearn.metrics.precision_recall_fscore_support(is_yes, said_yes, average="binary")
    assert [result["precision"], result["recall"], result["f1"]] == pytest.approx([precision, recall, score])
    assert result["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, answers))
    low, high = result["f1_ci95"]
    assert low < result["f1"] < high


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ("No", "no", {"accuracy": 1, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}),
        ("Yes", "no", {"accuracy": 0, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 1}),
        ("No", "yes", {"accuracy": 0, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}),
    ],
)
def test_pope_without_a_hit(answer: str, truth: str, expected: dict[str, float]) -> None:
    result = load_metric("pope").compute(predictions=[answer] * 3, references=[truth] * 3)
    assert {key: result[key] for key in expected} == expected
    assert (result["precision_ci95"] is None) == (answer == "No")
    assert (result["recall_ci95"] is None) == (truth == "no")


def test_pope_interval_takes_seed_and_resamples() -> None:
    metric = load_metric("pope")
    inputs = {"predictions": ["yes", "no", "yes", "no"] * 20, "references": ["yes", "yes", "no", "no"] * 20}
    first = metric.compute(**inputs, n_resamples=100, seed=1)["f1_ci95"]
    assert first == metric.compute(**inputs, n_resamples=100, seed=1)["f1_ci95"]
    assert first != metric.compute(**inputs, n_resamples=100, seed=2)["f1_ci95"]


@pytest.mark.parametrize("reference", ["", "1", "maybe", "yes, it is"])
def test_pope_refuses_other_references(reference: str) -> None:
    with pytest.raises(ValueError, match=r'reference of example 1 is .* expected "yes" or "no"'):
        load_metric("pope").compute(predictions=["yes", "yes"], references=["no", reference])


# AUROC


def test_auroc_by_hand() -> None:
    # Pairs (positive, negative): 3 > 1, 3 > 2, 2 > 1, 2 = 2 are three wins and a half of four.
    assert area_under_roc(np.array([1.0, 2.0, 2.0, 3.0]), np.array([0, 0, 1, 1])) == 3.5 / 4
    assert area_under_roc(np.array([5.0, 5.0, 5.0]), np.array([False, True, True])) == 0.5


@pytest.mark.parametrize("levels", [3, 20, 10_000])
def test_auroc_equals_scikit_learn(levels: int) -> None:
    generator = np.random.default_rng(levels)
    labels = generator.integers(0, 2, size=300)
    scores = generator.integers(0, levels, size=300) + levels // 5 * labels
    result = load_metric("auroc").compute(predictions=scores.astype(float), references=labels, n_resamples=200)
    assert result["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores), abs=1e-12)
    low, high = result["auroc_ci95"]
    assert low < result["auroc"] < high
    assert result["n"] == 300


def test_auroc_turns_with_its_scores() -> None:
    metric = load_metric("auroc")
    scores, labels = [-np.inf, 0.0, 1.0, np.inf, 2.0], [0, 1, 0, 1, 1]
    value = metric.compute(predictions=scores, references=labels)["auroc"]
    assert value == pytest.approx(5 / 6)
    assert metric.compute(predictions=[-s for s in scores], references=labels)["auroc"] == pytest.approx(1 - value)
    assert metric.compute(predictions=scores, references=[1 - x for x in labels])["auroc"] == pytest.approx(1 - value)


def test_auroc_with_one_positive_has_an_interval() -> None:
    result = load_metric("auroc").compute(predictions=list(range(20)), references=[int(i == 12) for i in range(20)])
    low, high = result["auroc_ci95"]
    assert 0 < low < result["auroc"] == 12 / 19 < high < 1


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [1, 1], "compares two classes, but all 2 references are 1"),
        ([0.1, 0.2], [0, 0], "compares two classes, but all 2 references are 0"),
        ([0.1, 0.2], [0, 2], "reference of example 1 is 2; expected 0 or 1"),
        ([0.1, float("nan")], [0, 1], "score of example 1 is NaN"),
    ],
)
def test_auroc_refuses(scores: list[float], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_metric("auroc").compute(predictions=scores, references=labels)


# Counting


@pytest.mark.parametrize(
    ("answer", "exact", "paper"),
    [
        ("3", 1, 1),
        ("3 objects", 1, 1),
        ("There are 3.", 1, 1),
        ("three", 1, 1),
        ("Three!", 1, 1),
        ("13", 0, 1),
        ("30 objects", 0, 1),
        ("thirteen", 0, 0),
        ("two or three", 0, 1),
        ("three hundred", 0, 1),
        ("3.5", 0, 1),
        ("3-4", 0, 1),
        ("4", 0, 0),
        ("many", 0, 0),
        ("", 0, 0),
        # The paper's rule cuts words at spaces only, so that a glued number word is none of its own.
        ("a three-sided one", 0, 0),
    ],
)
def test_counting_of_three(answer: str, exact: int, paper: int) -> None:
    metric = load_metric("counting")
    assert metric.compute(predictions=[answer], references=["3"])["accuracy"] == exact
    assert metric.compute(predictions=[answer], references=["3"], mode="paper")["accuracy"] == paper


def test_counting_by_hand() -> None:
    answers, truth = ["There are ten.", "nine", "None", "twenty-one"], ["10", "8", "0", "21"]
    result = load_metric("counting").compute(predictions=answers, references=truth)
    assert result == {"accuracy": 0.75, "n": 4, "accuracy_ci95": list(wilson_interval(3, 4))}
    assert correct(answers, truth).tolist() == [1, 0, 1, 1]
    # The released code knows words up to ten.
    assert correct(answers, truth, mode="paper").tolist() == [1, 0, 1, 0]


def test_counting_refuses() -> None:
    metric = load_metric("counting")
    with pytest.raises(ValueError, match="no mode 'vqa'; expected one of exact, paper"):
        metric.compute(predictions=["3"], references=["3"], mode="vqa")
    for mode in ("exact", "paper"):
        with pytest.raises(ValueError, match="reference of example 1 is 'many'; expected one number"):
            metric.compute(predictions=["3", "3"], references=["3", "many"], mode=mode)


# What is written about them


@pytest.mark.parametrize(
    "page", ["docs/metrics.md", *(f"transferable_vp/metrics/{name}/README.md" for name in METRICS)]
)
def test_examples_on_the_page(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        run_examples(block, page)


@pytest.mark.parametrize("name", METRICS)
def test_examples_in_the_metrics_own_help(name: str) -> None:
    run_examples(load_metric(name).inputs_description, name)


def run_examples(text: str, name: str) -> None:
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    assert test.examples, f"{name} has no example"
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not report, "".join(report)


# Installed elsewhere, offline, read-only, at once


WORKER = """
import json, socket, sys
from pathlib import Path

def refuse(*args, **kwargs):
    raise AssertionError("the network was used")

socket.socket.connect = socket.getaddrinfo = refuse

import evaluate
import transferable_vp
from transferable_vp.metrics import load_metric

installed, cache, examples = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
assert Path(transferable_vp.__file__).is_relative_to(installed), transferable_vp.__file__
assert evaluate.config.HF_EVALUATE_OFFLINE
print("ready", flush=True)
sys.stdin.readline()
for name, (inputs, key, expected) in examples.items():
    for _ in range(20):
        assert load_metric(name).compute(**inputs)[key] == expected
# What HF_MODULES_CACHE and HF_METRICS_CACHE would have set: a place for `evaluate.load`, which needs one.
evaluate.config.HF_MODULES_CACHE, evaluate.config.HF_METRICS_CACHE = cache / "modules", cache / "metrics"
for name, (inputs, key, expected) in examples.items():
    for _ in range(20):
        metric = evaluate.load(str(installed / "transferable_vp" / "metrics" / name))
        assert metric.compute(**inputs)[key] == expected
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_at_once_in_an_installed_copy_without_network_or_home(tmp_path: Path) -> None:
    installed, home = tmp_path / "site-packages", tmp_path / "home"
    shutil.copytree(
        ROOT / "transferable_vp", installed / "transferable_vp", ignore=shutil.ignore_patterns("__pycache__")
    )
    # A file in the way stops root too, which permissions do not.
    home.write_text("")
    environment = os.environ | {
        "HOME": str(home),
        "HF_HOME": str(home / "huggingface"),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_METRICS_CACHE": str(home / "metrics"),
        "HF_EVALUATE_OFFLINE": "1",
        "PYTHONPATH": str(installed),
    }
    command = [sys.executable, "-c", WORKER, str(installed), str(tmp_path / "cache"), json.dumps(EXAMPLES)]
    # Not in the checkout, whose package Python would prefer.
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    workers = [subprocess.Popen(command, env=environment, cwd=tmp_path, text=True, **pipes) for _ in range(2)]
    try:
        # They set off together, once both have imported what they need.
        for worker in workers:
            assert worker.stdout.readline() == "ready\n", worker.communicate(timeout=60)[1]
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        for worker in workers:
            _, errors = worker.communicate(timeout=300)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
