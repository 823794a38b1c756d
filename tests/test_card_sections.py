"""Sections, metadata and tables of a card: what is read is what was written, and nothing of others breaks out of it."""

from __future__ import annotations

import ast
import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard import metadata_save
from test_report import make_report, make_target

from transferable_vp.card_sections import (
    Section,
    add_rows,
    card_report,
    code,
    generated,
    literal,
    merge_metadata,
    plain,
    public_name,
    read_metadata,
    read_transfer,
    replace_metadata,
    results_of,
    sections_of,
    split_card,
    transfer_section,
    without_paths,
)


HOSTILE = [
    "a|b", "a\nb", "a\r\n| b |", "-->", "<!-- transferable_vp:end transfer -->", "x\n<!-- transferable_vp:end use -->\n",
    "{{ 7 * 7 }}", "{% raw %}", "`code`", "a\\", "<script>alert(1)</script>", "[x](https://evil.example)", "---",
    "key: value", "'\"", "& * ! % @", "*b* __b__ _b_", "\u202egnp.exe", "\x00\x1b[31m", "名前 ß", "#1", "",
]  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no folder `zoo/llava`."""
    monkeypatch.chdir(tmp_path)


# Names and texts


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_breaks_out(text: str) -> None:
    for shown in (plain(text), code(text)):
        assert "\n" not in shown and "|" not in shown and "<" not in shown and ">" not in shown
        assert all(c.isprintable() for c in shown)
    literally = literal(text)
    assert ast.literal_eval(literally) == text
    assert "\n" not in literally and "<" not in literally and "`" not in literally


def test_plain_words_stay_readable() -> None:
    assert plain("candidate_accuracy, 5.3 %") == "candidate_accuracy, 5.3 %"
    assert plain("_x_ *y*") == "&#95;x&#95; &#42;y&#42;"
    assert code("org/model-7b v1.5 (API)") == "`org/model-7b v1.5 (API)`"
    assert code("a|b") == "a&#124;b" and plain("a\\b") == "a&#92;b"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
        ("/home/me/models/llava", "llava"),
        ("models/", "models"),
        ("../llava", "llava"),
        ("a/b/llava", "llava"),
        ("C:\\Users\\me\\llava", "llava"),
        ("here/llava", "llava"),
        ("x" * 300 + "/y", "y"),
        ("", "model"),
        ("/", "model"),
    ],
)
def test_a_path_is_called_by_its_last_part(
    path: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "llava").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name(path) == name


def test_texts_lose_their_paths_and_keep_their_slashes() -> None:
    assert without_paths("colours (/home/me/photos) and ~/x/y.csv") == "colours (photos) and y.csv"
    assert without_paths(f"from {Path.home()}/secret/data") == "from data"
    assert without_paths(r"C:\Users\me\photos (test)") == "photos (test)"
    for text in ("uoft-cs/cifar10 (test)", "yes/no, and/or", "https://hf.co/a/b"):
        assert without_paths(text) == text


# Sections


def test_sections_are_read_as_they_were_written() -> None:
    use, limits = generated("use", "## Use\n\nthis"), generated("limits", "none")
    text = f"mine\n\n{use}\n\nalso mine\n{limits}\nend"
    parts = split_card(text)
    assert parts == ["mine\n\n", use, "\n\nalso mine\n", limits, "\nend"]
    assert "".join(map(str, parts)) == text
    assert not use.edited and not limits.edited


def test_an_edit_shows_and_spaces_at_the_ends_of_lines_do_not() -> None:
    section = generated("use", "one\ntwo")
    assert Section("use", section.body.replace("two", "2"), section.sum).edited
    assert not Section("use", section.body.replace("one\n", "one  \n") + "\n", section.sum).edited


@pytest.mark.parametrize(
    "text",
    [
        "<!-- transferable_vp:begin use 01234567 -->\nno end",
        "<!-- transferable_vp:end use -->\n<!-- transferable_vp:begin use 01234567 -->",
        "<!-- transferable_vp:begin use 01234567 -->\n<!-- transferable_vp:end limits -->",
        " <!-- transferable_vp:begin use 01234567 -->\n <!-- transferable_vp:end use -->",
        "<!-- transferable_vp:begin use xyz -->\n<!-- transferable_vp:end use -->",
    ],
)
def test_broken_markers_are_text(text: str) -> None:
    assert split_card(text) == [text]


def test_a_begin_without_its_end_hides_nothing_after_it() -> None:
    limits = generated("limits", "none")
    text = f"<!-- transferable_vp:begin use 01234567 -->\nhalf\n{limits}\n"
    assert sections_of(split_card(text)) == {"limits": limits}


# Metadata


def test_metadata_that_is_none() -> None:
    assert read_metadata("# only text") == {} == read_metadata("---\n# a comment\n---\n")
    for block in ("- a list", "a: [", "date: 2024-99-99", "[" * 5000):
        with pytest.raises(ValueError, match=r"metadata at the top of README\.md"):
            read_metadata(f"---\n{block}\n---\n")


def test_keys_that_stay_keep_their_lines() -> None:
    text = '---\n# mine\nlicense:   "mit"   # because\ntags: [a,\n  b]\nbase_model:\n- org/x\n---\n\nbody\n---\nrest\n'
    data = read_metadata(text)
    assert replace_metadata(text, data) == text
    changed = replace_metadata(text, {**data, "base_model": ["org/x", "org/y"], "new": 1})
    assert changed == text.replace("- org/x\n", "- org/x\n- org/y\nnew: 1\n")
    assert read_metadata(replace_metadata(text, {"license": "mit"})) == {"license": "mit"}


def test_yaml_of_any_form_is_replaced() -> None:
    for block in (
        "{tags: [a], license: mit}",
        'tags:\n\n  - "a\n\n    b"\nlicense: mit',
        "? tags\n: [a]\nlicense: mit",
    ):
        data = {"tags": ["x"], "license": "mit"}
        assert read_metadata(replace_metadata(f"---\n{block}\n---\nbody", data)) == data
    assert replace_metadata("body", {"tags": ["x"]}) == "---\ntags:\n- x\n---\n\nbody"


def test_what_the_user_wrote_wins_and_lists_are_united() -> None:
    ours = {"license": "mit", "tags": ["a", "b"], "base_model": ["org/x"], "datasets": ["org/d"], "pipeline_tag": "p"}
    theirs = {"license": "apache-2.0", "tags": ["b", "c"], "base_model": "org/y", "mine": {"x": 1}, "datasets": None}
    assert merge_metadata(ours, theirs, None) == {
        "license": "apache-2.0", "tags": ["b", "c", "a"], "base_model": ["org/y", "org/x"], "mine": {"x": 1},
        "datasets": ["org/d"], "pipeline_tag": "p",
    }  # fmt: skip
    # Nothing to add: as it was, and not as a list.
    assert merge_metadata({"base_model": ["org/y"]}, {"base_model": "org/y"}, None) == {"base_model": "org/y"}


def index_of(report: dict[str, Any], weights: str | None = None) -> dict[str, Any]:
    results = results_of([card_report(report, weights)], weights)
    return {"model-index": results} if results else {}


def metrics_of(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    return [m for model in metadata["model-index"] for result in model["results"] for m in result["metrics"]]


def test_results_are_replaced_one_by_one() -> None:
    report = make_report()
    foreign = {"task": {"type": "x"}, "dataset": {"type": "d", "name": "D"}, "metrics": [{"type": "f1", "value": 1}]}
    there = {"model-index": [{"name": "mine", "results": [foreign]}]}
    first = merge_metadata(index_of(report), there, None)
    assert [m["value"] for m in metrics_of(first)] == [1, 53.0, 62.0, 46.0]
    report["targets"] = [make_target("zoo/llava", True, [0.4, 0.4, 0.4, 0.4, 0.75], [0.2, 0.3])]
    second = merge_metadata(index_of(report), first, None)
    assert [m["value"] for m in metrics_of(second)] == [1, 53.0, 46.0, 75.0]
    assert second["model-index"][0]["name"] == "mine" and second["model-index"][0]["results"][0] == foreign
    # Not a second entry for the same dataset.
    assert len(second["model-index"][0]["results"]) == 2
    assert merge_metadata(index_of(report), second, None) == second
    # Another task has entries of its own.
    report["task"] = "digits"
    assert len(metrics_of(merge_metadata(index_of(report), second, None))) == 5


def test_results_of_other_weights_go() -> None:
    old = index_of(make_report(), "aaaaaaaa")
    assert merge_metadata({}, old, "bbbbbbbb") == {}
    assert merge_metadata({}, old, "aaaaaaaa") == old


@pytest.mark.parametrize("index", ["x", [1], [{"name": "a"}], [{"results": [{"metrics": 1}]}], {"a": 1}])
def test_a_model_index_that_is_none_is_left_alone(index: Any) -> None:
    assert merge_metadata(index_of(make_report()), {"model-index": index}, None) == {"model-index": index}


# Reports


def test_a_card_keeps_no_path_of_a_report() -> None:
    report = make_report()
    report["task"] = "/home/me/photos (test)"
    report["source"] = "/data/llava + other"
    report["settings"] = {"prompt": "/home/me/run", "dataset": "/home/me/photos", "split": "test",
                          "model": ["/data/llava", "Qwen/qwen2-vl"], "api_base": "http://10.0.0.1:8000"}  # fmt: skip
    report["targets"][1]["model"], report["targets"][2]["model"] = "/data/llava", "qwen2-vl"
    kept = card_report(report)
    assert kept["task"] == "photos (test)" and kept["source"] == "llava + other"
    assert [t["model"] for t in kept["targets"]] == ["zoo/blip-2", "llava", "Qwen/qwen2-vl"]
    assert kept["settings"] == {"dataset": None, "split": None}
    assert not any(word in json.dumps(kept) for word in ("home", "/data", "10.0.0.1"))


def test_a_title_with_a_path_loses_it_whoever_wrote_it() -> None:
    assert (
        card_report(make_report() | {"task": "photos of /home/me/photos", "settings": {}})["task"]
        == "photos of photos"
    )


def test_a_dataset_of_the_hub_is_named() -> None:
    report = make_report() | {"settings": {"dataset": "uoft-cs/cifar10", "split": "test[:500]"}}
    dataset = results_of([card_report(report)], None)[0]["results"][0]["dataset"]
    assert dataset == {"name": "colour under green light", "type": "uoft-cs/cifar10", "split": "test[:500]"}


def test_two_models_of_one_name_are_two_rows() -> None:
    report = make_report()
    for target in report["targets"]:
        target["model"] = "llava"
    kept = card_report(report)
    assert [t["model"] for t in kept["targets"]] == ["llava", "llava (2)", "llava (3)"]
    assert card_report(kept) == kept


@pytest.mark.parametrize(
    "break_it",
    [
        lambda r: r.pop("task"),
        lambda r: r.update(targets=[]),
        lambda r: r.update(targets=["x"]),
        lambda r: r.update(settings=["x"]),
        lambda r: r["targets"][0].update(tvp=math.nan),
        lambda r: r["targets"][0].update(n=math.inf),
        lambda r: r["targets"][0].update(n="many"),
        lambda r: r["targets"][0].update(delta_ci95=[0.1]),
        lambda r: r["targets"][0].update(delta_ci95=None),
        lambda r: r.update(seeds=7),
    ],
)
def test_what_is_no_report_is_refused(break_it: Any) -> None:
    report = copy.deepcopy(make_report())
    break_it(report)
    with pytest.raises(ValueError):
        card_report(report)


def test_rows_of_one_table_are_replaced_by_model() -> None:
    first = card_report(make_report())
    other = make_report()
    other["targets"] = [make_target("zoo/llava", True, [0.4, 0.4, 0.4, 0.4, 0.75], [0.2, 0.3]),
                        make_target("new", False, [0.4, 0.4, 0.4, 0.4, 0.5], [0.0, 0.2])]  # fmt: skip
    (merged,) = add_rows([first], card_report(other))
    assert [t["model"] for t in merged["targets"]] == ["zoo/blip-2", "zoo/llava", "zoo/qwen2-vl", "new"]
    assert merged["targets"][1]["tvp"] == 0.75
    for key, value in (("task", "digits"), ("source", "other"), ("metric", "auroc")):
        assert len(add_rows([first], card_report(make_report() | {key: value}))) == 2


def test_a_section_gives_its_reports_back() -> None:
    reports = [card_report(make_report(), "01234567")]
    for text in HOSTILE:
        report = make_report() | {"task": text, "source": text, "metric": text}
        for target in report["targets"]:
            target |= {"model": f"{target['model']}{text}", "family": text, "by": text}
        reports.append(card_report(report, "01234567"))
    section = transfer_section(reports, "01234567")
    assert split_card(f"x\n{section}\ny")[1] == section
    assert read_transfer(section.body) == (reports, "01234567")
    assert section.body.count("-->") == 1
    # Every row has as many cells as its header.
    rows = [line for line in section.body.splitlines() if line.startswith("| ")]
    assert {row.count("|") for row in rows} == {11} and len(rows) == 5 * len(reports)


@pytest.mark.parametrize(
    "data",
    ["", "{", "[]", '{"reports":[]}', '{"weights":null,"reports":[{}]}', '{"weights":1,"reports":"x"}', "[" * 9999],
)
def test_damaged_data_is_refused(data: str) -> None:
    with pytest.raises(ValueError, match="section `transfer`"):
        read_transfer(f"## Transfer\n\n<!-- transferable_vp:data {data} -->\n")
    with pytest.raises(ValueError, match="section `transfer`"):
        read_transfer("## Transfer\n")


def table(report: dict[str, Any], weights: str | None = None) -> list[str]:
    return transfer_section([card_report(report, weights)], weights).body.splitlines()


def test_the_table_says_all_that_a_row_knows() -> None:
    report = make_report()
    report["targets"][0]["by"], report["targets"][1]["by"] = "generate", "rank"
    lines = table(report)
    assert "### colour under green light" in lines
    assert "Source: `llava`." in lines
    assert (
        "| model | role | n | full image | zero border | random border | VP | prompted | Δ [95 % CI] | answers | seeds |"
        in lines
    )
    assert (
        "| `zoo/llava` | source | 600 | 41.0 | 37.0 | 30.0 | 60.0 | 62.0 | +25.0 [+21.0, +29.0] | ranked | 0, 1 |"
        in lines
    )
    assert (
        "| `zoo/blip-2` | held-out | 600 | 44.0 | 39.0 | 33.0 | 47.0 | 53.0 | +14.0 [+10.0, +18.0] | written | 0, 1 |"
        in lines
    )
    assert "Held-out models improved: 2 of 2 (interval above zero: 1 of 2)." in lines


def test_columns_that_nobody_measured_are_left_out() -> None:
    report = make_report() | {"source": "", "metric": "auroc"}
    for target in report["targets"]:
        target |= {"vp": None, "random_border": None, "is_source": False}
        del target["full_image"]
    lines = table(report)
    assert "| model | role | n | zero border | prompted | Δ [95 % CI] | seeds |" in lines
    assert "No source was named, so every model counts as held-out." in lines
    assert "AUROC (`auroc`) in %, mean over the seeds of training." in lines
    assert not any("*VP*" in line or "*Full image*" in line for line in lines)


def test_rows_of_earlier_weights_are_marked_and_not_counted() -> None:
    reports = [card_report(make_report(), "aaaaaaaa")]
    new = make_report()
    new["targets"] = new["targets"][2:]
    (merged,) = add_rows(reports, card_report(new, "bbbbbbbb"))
    lines = transfer_section([merged], "bbbbbbbb").body.splitlines()
    assert [line.rsplit(" | ", 1)[1] for line in lines if line.startswith("| `")] == [
        "earlier (`aaaaaaaa`) |", "earlier (`aaaaaaaa`) |", "these |",
    ]  # fmt: skip
    assert "Held-out models improved: 1 of 1 (interval above zero: 0 of 1)." in lines
    assert len(metrics_of({"model-index": results_of([merged], "bbbbbbbb")})) == 1
    assert "No row is of the present weights." in transfer_section([merged], "cccccccc").body


def test_two_targets_and_two_tasks_on_one_dataset_survive_the_hub_client(tmp_path: Path) -> None:
    settings = {"settings": {"dataset": "org/data", "split": "test"}}
    reports = [card_report(make_report() | settings | {"task": task}) for task in ("colour", "shape")]
    index = results_of(reports, None)
    path = tmp_path / "README.md"
    path.write_text(replace_metadata("# x\n", {"model-index": index}), encoding="utf-8")
    card = ModelCard.load(path)
    assert card.data.to_dict()["model-index"] == index == metadata_load(path)["model-index"]
    metadata_save(path, metadata_load(path))
    assert metadata_load(path)["model-index"] == index
    results = card.data.eval_results
    assert [(r.metric_args["model"], r.metric_args["task"], r.metric_value) for r in results] == [
        (model, task, value)
        for task in ("colour", "shape")
        for model, value in (("zoo/blip-2", 53.0), ("zoo/llava", 62.0), ("zoo/qwen2-vl", 46.0))
    ]
    first = results[0]
    assert first.metric_type == "accuracy" and first.dataset_type == "org/data" and first.dataset_split == "test"
    assert first.metric_name == "accuracy in %, zoo/blip-2 (held-out) with the prompt"
    assert (
        first.metric_args | {"n": 600, "zero_border": 39.0, "delta": 14.0, "delta_ci95": [10.0, 18.0]}
        == first.metric_args
    )
