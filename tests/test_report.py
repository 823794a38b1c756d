from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transferable_vp.report import check_report, format_table, gains_of, paired_bootstrap, read_json, write_json


def make_target(model: str, is_source: bool, accuracies: list[float], interval: list[float]) -> dict[str, Any]:
    full_image, zero_border, random_border, vp, tvp = accuracies
    return {
        "model": model,
        "family": model.split("/")[-1],
        "is_source": is_source,
        "n": 600,
        "full_image": full_image,
        "zero_border": zero_border,
        "random_border": random_border,
        "vp": vp,
        "tvp": tvp,
        "delta": tvp - zero_border,
        "delta_ci95": interval,
    }


def make_report() -> dict[str, Any]:
    """Some report, for the tests of all that shows one."""
    return {
        "source": "llava",
        "task": "colour under green light",
        "seeds": [0, 1],
        "settings": {"learning_rate": 10, "note": "grün"},
        "targets": [
            make_target("zoo/blip-2", False, [0.44, 0.39, 0.33, 0.47, 0.53], [0.10, 0.18]),
            make_target("zoo/llava", True, [0.41, 0.37, 0.30, 0.60, 0.62], [0.21, 0.29]),
            make_target("zoo/qwen2-vl", False, [0.50, 0.45, 0.41, 0.44, 0.46], [-0.02, 0.04]),
        ],
    }


@pytest.fixture
def report() -> dict[str, Any]:
    return make_report()


# Table


def test_table_lines(report: dict[str, Any]) -> None:
    assert format_table(report).splitlines() == [
        "Task: colour under green light · source: llava · seeds: 0, 1",
        "Accuracy in %; Δ = prompt − zero border, in points.",
        "",
        "                              full    zero  random                                  95%",
        "model         role        n  image  border  border    VP  prompt      Δ              CI",
        "─" * 87,
        "zoo/llava     source    600   41.0    37.0    30.0  60.0    62.0  +25.0  [+21.0, +29.0]",
        "zoo/blip-2    held-out  600   44.0    39.0    33.0  47.0    53.0  +14.0  [+10.0, +18.0]",
        "zoo/qwen2-vl  held-out  600   50.0    45.0    41.0  44.0    46.0   +1.0    [-2.0, +4.0]",
        "─" * 87,
        "held-out models improved: 2 of 2 (interval above zero: 1 of 2)",
    ]


def test_table_shows_a_loss(report: dict[str, Any]) -> None:
    report["targets"].append(make_target("zoo/idefics3", False, [0.48, 0.46, 0.45, 0.40, 0.405], [-0.09, -0.02]))
    lines = format_table(report).splitlines()
    assert lines[-3] == "zoo/idefics3  held-out  600   48.0    46.0    45.0  40.0    40.5   -5.5    [-9.0, -2.0]"
    assert lines[-1] == (
        "held-out models improved: 2 of 3 (interval above zero: 1 of 3); "
        "worsened: 1 of 3 (interval below zero: 1 of 3)"
    )


@pytest.mark.parametrize("absent", [True, False])
def test_table_shows_a_dash_for_what_nobody_measured(report: dict[str, Any], absent: bool) -> None:
    target = report["targets"][1]
    for key in ("full_image", "random_border", "vp"):
        if absent:
            del target[key]
        else:
            target[key] = None
    assert "zoo/llava     source    600      –    37.0       –     –    62.0  +25.0  [+21.0, +29.0]" in format_table(
        report
    )


def test_table_without_held_out_models(report: dict[str, Any]) -> None:
    report["targets"] = report["targets"][1:2]
    assert format_table(report).endswith("no held-out models in this report")


def test_table_has_no_negative_zero(report: dict[str, Any]) -> None:
    report["targets"][0].update(delta=-0.0001, delta_ci95=[-0.0004, 0.0004])
    row = next(line for line in format_table(report).splitlines() if line.startswith("zoo/blip-2"))
    assert row.endswith("+0.0    [+0.0, +0.0]")


# JSON


def test_json_round_trip(report: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "new" / "transfer.json"
    write_json(report, path)
    assert read_json(path) == report
    assert "grün" in path.read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8").startswith('{\n  "source"')
    assert [entry.name for entry in path.parent.iterdir()] == ["transfer.json"]


@pytest.mark.parametrize("key", ["source", "task", "seeds", "settings", "targets"])
def test_json_names_the_missing_key(report: dict[str, Any], tmp_path: Path, key: str) -> None:
    del report[key]
    with pytest.raises(ValueError, match=f'The transfer report lacks the key "{key}"'):
        write_json(report, tmp_path / "transfer.json")


@pytest.mark.parametrize("key", ["model", "family", "is_source", "n", "zero_border", "tvp", "delta", "delta_ci95"])
def test_json_names_the_missing_key_of_a_target(report: dict[str, Any], tmp_path: Path, key: str) -> None:
    del report["targets"][2][key]
    with pytest.raises(ValueError, match=rf'targets\[2\] lacks the key "{key}"'):
        write_json(report, tmp_path / "transfer.json")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tvp": 62.0}, r'targets\[0\]\["tvp"\] must be a number between 0 and 1, got 62.0'),
        ({"vp": float("nan")}, r'targets\[0\]\["vp"\] must be a number between 0 and 1, got nan'),
        ({"zero_border": None}, r'targets\[0\]\["zero_border"\] must be a number between 0 and 1, got None'),
        ({"delta": -1.5}, r'targets\[0\]\["delta"\] and its interval must be a number between -1 and 1, got -1.5'),
        ({"delta_ci95": [0.1, "x"]}, "between -1 and 1, got 'x'"),
        ({"delta_ci95": [0.1]}, "not enough values"),
    ],
)
def test_json_refuses_values_out_of_range(report: dict[str, Any], change: dict[str, Any], message: str) -> None:
    report["targets"][0].update(change)
    with pytest.raises(ValueError, match=message):
        check_report(report)


def test_json_refuses_a_report_without_targets(report: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has no targets"):
        check_report({**report, "targets": []})


@pytest.mark.parametrize(
    "value, error, message", [(float("inf"), ValueError, "not JSON compliant"), ({1}, TypeError, "set")]
)
def test_json_that_cannot_be_written_leaves_the_old_file(
    report: dict[str, Any], tmp_path: Path, value: Any, error: type[Exception], message: str
) -> None:
    path = tmp_path / "transfer.json"
    write_json(report, path)
    broken = copy.deepcopy(report)
    broken["settings"]["learning_rate"] = value
    with pytest.raises(error, match=message):
        write_json(broken, path)
    assert read_json(path) == report
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", [b'{"source": "lla', b"\xff\xfe"])
def test_corrupt_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "transfer.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"transfer\.json is not a transfer report"):
        read_json(path)


def test_json_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "transfer.json"
    path.write_text(json.dumps([1, 2]))
    with pytest.raises(ValueError, match=r'transfer\.json is not a transfer report: .* lacks the key "source"'):
        read_json(path)


# Several reports


def test_gains_of_reports_are_points_by_source_and_target(report: dict[str, Any]) -> None:
    gains, intervals = gains_of([report, report | {"source": "llava + blip-2", "targets": report["targets"][:1]}])
    assert gains == {
        "llava": pytest.approx({"zoo/blip-2": 14.0, "zoo/llava": 25.0, "zoo/qwen2-vl": 1.0}),
        "llava + blip-2": pytest.approx({"zoo/blip-2": 14.0}),
    }
    assert intervals["llava"]["zoo/qwen2-vl"] == pytest.approx((-2.0, 4.0))
    assert list(intervals["llava + blip-2"]) == ["zoo/blip-2"]


def test_gains_of_reports_that_do_not_belong_together(report: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="A heat map is of one task; got \\['colour under green light', 'digits'\\]"):
        gains_of([report, report | {"task": "digits"}])
    with pytest.raises(ValueError, match="Several reports have the source 'llava'"):
        gains_of([report, report])
    with pytest.raises(ValueError, match="A heat map is of one task; got \\[\\]"):
        gains_of([])


# Bootstrap


def test_bootstrap_of_equal_answers_is_zero() -> None:
    correct = np.random.default_rng(0).integers(0, 2, 50)
    assert paired_bootstrap(correct, correct) == (0.0, 0.0)


def test_bootstrap_of_all_better_and_all_worse() -> None:
    assert paired_bootstrap(np.zeros(50), np.ones(50)) == (1.0, 1.0)
    assert paired_bootstrap(np.ones(50), np.zeros(50)) == (-1.0, -1.0)


def test_bootstrap_agrees_with_the_normal_approximation() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.random(2000) < 0.4).astype(int), (rng.random(2000) < 0.55).astype(int)
    difference = b - a
    half = 1.96 * difference.std() / np.sqrt(len(difference))
    low, high = paired_bootstrap(a, b, n_resamples=20000)
    assert low == pytest.approx(difference.mean() - half, abs=0.002)
    assert high == pytest.approx(difference.mean() + half, abs=0.002)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(300):
        a, b = rng.random(200) < 0.4, rng.random(200) < 0.5
        low, high = paired_bootstrap(a, b, n_resamples=500, seed=trial)
        hits += low <= 0.1 <= high
    assert 0.90 <= hits / 300 <= 0.99


def test_bootstrap_is_paired() -> None:
    rng = np.random.default_rng(3)
    a = rng.integers(0, 2, 400)
    b = a.copy()
    b[np.flatnonzero(a == 0)[:20]] = 1
    paired = np.ptp(paired_bootstrap(a, b))
    unpaired = np.ptp(paired_bootstrap(a, rng.permutation(b)))
    assert paired < unpaired / 2


def test_bootstrap_averages_seeds_per_example() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 2, 300), rng.integers(0, 2, (3, 300))
    assert paired_bootstrap(a, b) == paired_bootstrap(np.stack([a, a]), b)
    # Repeating a seed adds no example, so it must not narrow the interval.
    assert paired_bootstrap(a, b[0]) == paired_bootstrap(a, np.stack([b[0]] * 4))


def test_bootstrap_is_reproducible() -> None:
    a, b = np.random.default_rng(5).integers(0, 2, (2, 300))
    assert paired_bootstrap(a, b, seed=7) == paired_bootstrap(a, b, seed=7)


@pytest.mark.parametrize(
    "b, message",
    [
        ([0, 1, 1, 0], "same shape"),
        ([1], "same shape"),
        ([0.3, 2.5, 1.1], "not losses"),
        ([0, 1, np.nan], "not losses"),
    ],
)
def test_bootstrap_errors(b: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(np.zeros(3), np.array(b))
