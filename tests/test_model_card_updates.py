"""Cards that are written again, added to by others, and merged with the one on the Hub: what people wrote stays."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_cards import problems
from huggingface_hub import ModelCard, metadata_load
from test_report import make_report, make_target
from tiny_training import make_trainer, new_prompt

from transferable_vp.card_sections import generated, read_metadata, sections_of, split_card
from transferable_vp.model_card import CardFacts, add_report, facts_of_trainer, merge_cards, write_card


TASK = {"question": "Which colour?", "candidates": ["red", "green"], "caption": "a {answer}"}
FACTS = CardFacts(task=TASK, sources=[{"id": "org/one"}], recipe={"steps": 1}, changed={"max_steps": 1})
MORE = CardFacts(task=TASK, sources=[{"id": "org/two"}], recipe={"steps": 2}, changed={"max_steps": 2})
Edit = Callable[[str], str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no folder `zoo/llava`."""
    monkeypatch.chdir(tmp_path)


def card(facts: CardFacts = FACTS, **given: Any) -> str:
    """The text of a new card."""
    path = write_card(facts, Path("fresh"), **given)
    text = path.read_text(encoding="utf-8")
    path.unlink()
    return text


def rewritten(text: str, facts: CardFacts = MORE, **given: Any) -> str:
    """What writing a card makes of a README that is there."""
    Path("there").mkdir(exist_ok=True)
    Path("there/README.md").write_bytes(text.encode())
    return write_card(facts, "there", **given).read_bytes().decode()


def section(text: str, name: str) -> str:
    return sections_of(split_card(text.replace("\r\n", "\n")))[name].body


def without(text: str, name: str) -> str:
    return "".join(str(part) for part in split_card(text) if getattr(part, "name", "") != name)


def report_of(*targets: tuple[str, float], **more: Any) -> dict[str, Any]:
    rows = [make_target(name, False, [0.4, 0.4, 0.4, 0.4, value], [0.0, 0.2]) for name, value in targets]
    return make_report() | {"targets": rows} | more


def rows_of(text: str) -> list[str]:
    return [
        row.split(" | ")[0].strip("| `") for row in section(text, "transfer").splitlines() if row.startswith("| `")
    ]


def values_of(text: str) -> dict[tuple[str, str], float]:
    results = ModelCard(text).data.eval_results or []
    return {(r.metric_args["task"], r.metric_args["model"]): r.metric_value for r in results}


# Written again


def test_written_again_it_is_the_same() -> None:
    report = make_report()
    text = card(reports=[report], tags=["x"], license="mit")
    assert rewritten(text, FACTS, reports=[report], tags=["x"], license="mit") == text
    assert rewritten(text, FACTS) == text


def test_sections_follow_the_run() -> None:
    text = rewritten(card())
    assert "`org/two`" in section(text, "training") and "`org/one`" not in section(text, "training")
    assert "- steps: 2" in section(text, "training")
    assert read_metadata(text)["base_model"] == ["org/one", "org/two"]


def test_a_real_run_that_goes_on(tmp_path: Path) -> None:
    make_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    trainer = make_trainer(tmp_path, max_steps=2)
    write_card(facts_of_trainer(trainer), tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    text = write_card(facts_of_trainer(trainer), tmp_path).read_text(encoding="utf-8")
    assert "- steps: 2" in section(text, "training") and text.count("## How it was made") == 1


def test_an_edited_section_stays_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    text = card().replace("## How it was made\n", "## How I made it\n")
    with caplog.at_level(logging.WARNING):
        again = rewritten(text)
    assert section(again, "training") == section(text, "training")
    assert "'training' was edited by hand" in caplog.text and len(caplog.records) == 1


def test_all_else_is_the_users() -> None:
    text = card().replace("# A transferable visual prompt", "# Mine\n\nHello {{ x }} | `y`")
    text = (
        text.replace("<!-- transferable_vp:begin use", "Before use.\n\n<!-- transferable_vp:begin use") + "\nAfter.\n"
    )
    text = without(text, "limits")
    again = rewritten(text)
    for words in ("# Mine\n\nHello {{ x }} | `y`\n", "\nBefore use.\n\n<!-- transferable_vp:begin use", "\nAfter.\n"):
        assert words in again
    assert "A transferable visual prompt" not in again and "## Limits" not in again

    def strip(whole: str) -> str:
        words = "".join(part for part in split_card(whole) if isinstance(part, str))
        return re.sub(r"\A---.*?---\n", "", words, flags=re.DOTALL)

    assert strip(again) == strip(text)


def test_a_readme_of_the_users_own_gets_metadata_only() -> None:
    again = rewritten("# My prompt\n\nText.\n", reports=[make_report()])
    assert again.endswith("---\n\n# My prompt\n\nText.\n") and "transferable_vp:begin" not in again
    data = read_metadata(again)
    assert (
        data["library_name"] == "transferable-vp" and data["base_model"] == ["org/two"] and len(values_of(again)) == 3
    )


def test_metadata_of_the_user_wins() -> None:
    text = card(license="mit").replace("license: mit", "license: apache-2.0 # really\nlanguage: en")
    text = text.replace("- visual-prompt", "- mine").replace(
        "pipeline_tag: image-text-to-text", "pipeline_tag: image-to-text"
    )
    again = rewritten(text, tags=["more"])
    assert "license: apache-2.0 # really\nlanguage: en\npipeline_tag: image-to-text\n" in again
    assert read_metadata(again)["tags"] == ["transferable-vp", "mine", "visual-prompt", "more"]


def test_a_license_that_is_there_stays_and_is_what_the_card_says(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        text = rewritten(card(license="mit"), license="apache-2.0")
    assert read_metadata(text)["license"] == "mit" and "`mit`, as given" in section(text, "licence")
    assert "license is 'mit' there and stays so" in caplog.text
    assert "`apache-2.0`, as given" in section(rewritten(card(), license="apache-2.0"), "licence")
    written_by_hand = card().replace("library_name:", "license: gpl-3.0\nlibrary_name:")
    assert "`gpl-3.0`, as given" in section(rewritten(written_by_hand), "licence")


@pytest.mark.parametrize("front", ["---\nx: [\n---\n", "---\n- a\n---\n"])
def test_metadata_that_cannot_be_read_leaves_the_file_as_it_is(front: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert rewritten(front + "text") == front + "text"
    assert "README.md is left as it is: The metadata" in caplog.text
    Path("there/README.md").write_bytes(b"\xff\xfe")
    write_card(FACTS, "there")
    assert Path("there/README.md").read_bytes() == b"\xff\xfe"


def test_ends_of_lines_stay() -> None:
    text = card(reports=[make_report()]).replace("\n", "\r\n")
    again = rewritten(text)
    assert again.count("\n") == again.count("\r\n") and "- steps: 2" in section(again, "training")
    assert rewritten(text, FACTS) == text
    added = add_report(text, report_of(("new", 0.5)))
    assert added.count("\n") == added.count("\r\n") and "new" in rows_of(added)


def test_a_prompt_alone_forgets_nothing() -> None:
    text = card(CardFacts(config=new_prompt().config, task=TASK, sources=[{"id": "org/one"}]), repo_id="org/tvp")
    again = rewritten(text, new_prompt(), reports=[make_report()], license="mit")
    assert [section(again, n) for n in ("task", "training", "use")] == [
        section(text, n) for n in ("task", "training", "use")
    ]
    assert len(rows_of(again)) == 3 and "`mit`" in section(again, "licence")
    # Another geometry is used otherwise, and the question is not known.
    other = rewritten(text, new_prompt(fit="stretch"))
    assert "stretch the image" in section(other, "use") and '("org/tvp")' in section(other, "use")


def test_tables_of_earlier_reports_stay_and_say_so_when_the_prompt_changed() -> None:
    Path("there").mkdir()
    Path("there/model.safetensors").write_bytes(b"one")
    text = rewritten(card(), reports=[make_report()])
    assert "earlier" not in section(text, "transfer") and len(values_of(text)) == 3
    Path("there/model.safetensors").write_bytes(b"two")
    again = rewritten(text, reports=[report_of(("zoo/blip-2", 0.5))])
    assert section(again, "transfer").count("earlier (`7692c3ad`) |") == 2
    assert values_of(again) == {("colour under green light", "zoo/blip-2"): 50.0}
    assert "model-index" not in read_metadata(rewritten(text))


def test_a_half_written_card_replaces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = rewritten(card())

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_card(MORE, "there", tags=["new"])
    assert Path("there/README.md").read_text(encoding="utf-8") == text


# Reports of others


def test_reports_accumulate() -> None:
    text = card()
    assert "Nothing was measured" in section(text, "transfer")
    text = add_report(text, report_of(("a", 0.5)))
    text = add_report(text, report_of(("b", 0.6)))
    text = add_report(text, report_of(("a", 0.7), task="digits"))
    assert rows_of(text) == ["a", "b", "a"] and section(text, "transfer").count("### ") == 2
    colour = "colour under green light"
    assert values_of(text) == {(colour, "a"): 50.0, (colour, "b"): 60.0, ("digits", "a"): 70.0}
    again = add_report(text, report_of(("a", 0.8)))
    assert rows_of(again) == rows_of(text) and values_of(again)[(colour, "a")] == 80.0
    assert add_report(again, report_of(("a", 0.8))) == again
    assert not any(s.edited for s in sections_of(split_card(again)).values()) and problems(again) == ([], [])


def test_a_report_changes_nothing_else() -> None:
    text = card(license="mit").replace("# A transferable", "Words.\n\n# A transferable")
    added = add_report(text, make_report())
    rest = [name for name in sections_of(split_card(text)) if name != "transfer"]
    assert [section(added, name) for name in rest] == [section(text, name) for name in rest]
    old, new = read_metadata(text), read_metadata(added)
    assert new.pop("model-index") and new == old and "Words.\n\n# A transferable" in added


def test_added_by_hand_or_by_the_owner_it_is_the_same() -> None:
    assert add_report(card(), make_report()) == card(reports=[make_report()])


@pytest.mark.parametrize("how", ["edited", "deleted", "damaged"])
def test_a_table_that_was_touched_is_left(how: str, caplog: pytest.LogCaptureFixture) -> None:
    text = card(reports=[make_report()])
    if how == "edited":
        text = text.replace("## Transfer\n", "## Transfer, as I see it\n")
    elif how == "deleted":
        text = without(text, "transfer")
    else:
        found = sections_of(split_card(text))["transfer"]
        text = text.replace(str(found), str(generated("transfer", "<!-- transferable_vp:data {} -->")))
    new = report_of(("new", 0.5))
    with caplog.at_level(logging.WARNING):
        added = add_report(text, new)
    assert "transfer" in caplog.text
    for after in (added, rewritten(text, FACTS, reports=[new])):
        assert split_card(after)[1:] == split_card(text)[1:]
        assert len(values_of(after)) == 4


def test_a_card_of_another_hand_gets_the_table_at_its_end() -> None:
    for text in ("# Theirs\n", "---\nlicense: mit\n---\n# Theirs"):
        added = add_report(text, make_report())
        assert "# Theirs" in added and len(rows_of(added)) == 3 and len(values_of(added)) == 3
        assert len(rows_of(add_report(added, report_of(("new", 0.5))))) == 4


def test_a_report_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the key"):
        add_report(card(), {"task": "x"})
    with pytest.raises(ValueError, match="not YAML"):
        add_report("---\nx: [\n---\n", make_report())


# Merged with the card on the Hub


def test_the_first_push_is_the_local_card() -> None:
    assert merge_cards(card(), None) == (card(), [])
    assert merge_cards(card(), card()) == (card(), [])


def test_generated_sections_are_the_local_ones() -> None:
    text, warnings = merge_cards(card(MORE), card(FACTS))
    assert section(text, "training") == section(card(MORE), "training") and warnings == []
    assert read_metadata(text)["base_model"] == ["org/one", "org/two"]


def edit_title(text: str) -> str:
    return text.replace("# A transferable visual prompt\n", "# Mine\n\nWords.\n")


def edit_limits(text: str) -> str:
    return text.replace("## Limits\n", "## What it cannot do\n")


def drop_use(text: str) -> str:
    return without(text, "use")


@pytest.mark.parametrize("edit", [edit_title, edit_limits, drop_use])
def test_what_one_side_changed_stays_changed(edit: Edit) -> None:
    for local, remote in ((edit(card(MORE)), card(FACTS)), (card(MORE), edit(card(FACTS)))):
        text, warnings = merge_cards(local, remote)
        assert ("# Mine\n\nWords.\n" in text) == (edit is edit_title)
        assert ("## What it cannot do" in text) == (edit is edit_limits)
        assert ("## How to use it" not in text) == (edit is drop_use)
        assert "- steps: 2" in section(text, "training")
        assert warnings == (
            ["The section 'limits' was edited on the Hub and stays as it is there."]
            if edit is edit_limits and local == card(MORE)
            else []
        )


def test_where_both_sides_were_changed_the_hubs_stays() -> None:
    text, warnings = merge_cards(
        card(MORE).replace("# A trans", "# My trans"), card(FACTS).replace("# A trans", "# Their trans")
    )
    assert "# Their trans" in text and "# My trans" not in text and "- steps: 2" in text
    assert warnings == ["Both cards have text of their own outside the generated sections: the Hub's is kept."]
    text, warnings = merge_cards(edit_limits(card()), card().replace("## Limits\n", "## Bounds\n"))
    assert "## Bounds" in text and len(warnings) == 1
    # The same words on both sides are no conflict.
    assert merge_cards(edit_title(card()), edit_title(card())) == (edit_title(card()), [])


def test_an_edit_on_the_hub_is_not_lost_with_its_section() -> None:
    text, warnings = merge_cards(without(card(), "limits"), edit_limits(card()))
    assert "## What it cannot do" in text and len(warnings) == 1


def test_results_of_others_stay() -> None:
    remote = add_report(add_report(card(), report_of(("a", 0.5), ("b", 0.5))), report_of(("c", 0.5), task="digits"))
    local = card(reports=[report_of(("a", 0.9))])
    text, warnings = merge_cards(local, remote)
    assert rows_of(text) == ["a", "b", "c"] and warnings == []
    colour = "colour under green light"
    assert values_of(text) == {(colour, "b"): 50.0, ("digits", "c"): 50.0, (colour, "a"): 90.0}
    assert merge_cards(text, text) == (text, [])


def test_results_of_earlier_weights_are_marked() -> None:
    Path("there").mkdir()
    Path("there/model.safetensors").write_bytes(b"one")
    remote = add_report(rewritten(card()), report_of(("a", 0.5)))
    Path("there/model.safetensors").write_bytes(b"two")
    text, _ = merge_cards(rewritten(card(), reports=[report_of(("b", 0.6))]), remote)
    assert section(text, "transfer").count("earlier (`7692c3ad`)") == 1 and rows_of(text) == ["a", "b"]
    assert [model for _, model in values_of(text)] == ["b"]


def test_metadata_of_the_hub_wins_and_keeps_its_lines() -> None:
    remote = card(license="mit", tags=["theirs"]).replace("license: mit", "license: gpl-3.0 # yes\nmine: 1")
    text, warnings = merge_cards(card(MORE, license="mit", tags=["ours"]), remote)
    assert "license: gpl-3.0 # yes\nmine: 1\n" in text
    assert read_metadata(text)["tags"] == ["transferable-vp", "visual-prompt", "theirs", "ours"]
    assert warnings == ["The metadata `license` is 'gpl-3.0' on the Hub and stays so."]
    assert "`gpl-3.0`" in section(text, "licence")
    text, warnings = merge_cards(card(license="mit"), card())
    assert read_metadata(text) == read_metadata(card(license="mit")) and warnings == []
    assert section(text, "licence") == section(card(license="mit"), "licence")


def test_readmes_that_are_not_ours() -> None:
    # What the Hub makes of a new repository with a licence, and an empty one.
    for empty in ("---\nlicense: mit\n---\n", "", "\n"):
        text, warnings = merge_cards(card(), empty)
        assert sections_of(split_card(text)).keys() == sections_of(split_card(card())).keys() and warnings == []
        assert ("`mit`" in section(text, "licence")) == ("mit" in empty)
    text, warnings = merge_cards(card(), "# By hand\n")
    assert text.endswith("# By hand\n") and "transferable_vp:begin" not in text and "metadata" in warnings[0]
    text, warnings = merge_cards("# By hand\n", card())
    assert "# By hand" in text and "transferable_vp:begin" not in text and warnings == []
    for broken in (("---\nx: [\n---\n", card()), (card(), "---\nx: [\n---\n")):
        with pytest.raises(ValueError, match="not YAML"):
            merge_cards(*broken)


def test_the_ends_of_lines_are_the_hubs() -> None:
    text, warnings = merge_cards(card(MORE), "\ufeff" + card().replace("\n", "\r\n"))
    assert text.count("\n") == text.count("\r\n") and "- steps: 2" in section(text, "training")
    assert text.replace("\r\n", "\n") == merge_cards(card(MORE), card())[0] and warnings == []


def test_a_section_that_was_edited_here_is_pushed_as_it_is() -> None:
    local = card(license="mit").replace("## Licence\n", "## My licence\n")
    local = local.replace("## Transfer\n", "## My transfer\n")
    text, _ = merge_cards(local, add_report(card(), make_report()))
    assert "## My licence\n" in text and "## My transfer\n" in text
    assert all(sections_of(split_card(text))[name].edited for name in ("licence", "transfer"))


def test_every_update_is_a_card_of_the_hub(tmp_path: Path) -> None:
    text, _ = merge_cards(add_report(card(), make_report()), edit_title(add_report(card(), report_of(("new", 0.5)))))
    assert problems(text) == ([], [])
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    assert len(metadata_load(tmp_path / "README.md")["model-index"][0]["results"][0]["metrics"]) == 4
