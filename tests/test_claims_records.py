"""examples/claims/records.py."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest


def cell(claims: Any, condition: str, *sources: str, **more: Any) -> Any:
    return claims.plan.Cell("0", "colors", claims.plan.CONDITIONS[condition], sources, **more)


class TestRecords:
    def test_what_is_written_is_read(self, claims, runner, tmp_path) -> None:
        cells = [cell(claims, "zero"), cell(claims, "transfer", "llava"), cell(claims, "transfer", "paligemma")]
        for one in cells[:2]:
            runner.run(one)
        records = claims.records.Records(tmp_path / "cells.jsonl")
        assert records.add(cells, runner) == 2 == len(records)
        records.write()
        again = claims.records.Records(tmp_path / "cells.jsonl")
        assert again.head == records.head and [one.key for one in again] == [one.key for one in records]
        (learned,) = [one for one in again if one.sources]
        kept = runner.read(cells[1])["correct"]
        assert {name: "".join(map(str, bits.astype(int))) for name, bits in learned.correct.items()} == kept
        before = again.path.read_text()
        again.add(cells, runner)
        again.write()
        assert again.path.read_text() == before

    def test_a_later_run_comes_beside(self, claims, runner, tmp_path) -> None:
        for condition in ("zero", "white"):
            runner.run(cell(claims, condition))
            records = claims.records.Records(tmp_path / "cells.jsonl")
            records.add([cell(claims, condition)], runner)
            records.add_run({"command": condition, "kept": 1})
            records.add_run({"command": condition, "kept": 2})
            records.write()
        records = claims.records.Records(tmp_path / "cells.jsonl")
        assert {one.condition for one in records} == {"zero", "white"}
        assert records.head["runs"] == [{"command": "zero", "kept": 2}, {"command": "white", "kept": 2}]

    def test_a_member_trained_anew_is_not_measured_yet(self, claims, runner, tmp_path, monkeypatch) -> None:
        one = cell(claims, "zero")
        runner.run(one)
        digest = runner.digest
        monkeypatch.setattr(
            runner, "digest", lambda cell, name: "another" if name == "paligemma" else digest(cell, name)
        )
        records = claims.records.Records(tmp_path / "cells.jsonl")
        assert records.add([one], runner) == 1
        assert [set(record.correct) for record in records] == [{"llava"}]

    def test_other_models_conditions_or_settings_are_refused(self, claims, runner, tmp_path) -> None:
        one = cell(claims, "transfer", "llava")
        runner.run(one)
        records = claims.records.Records(tmp_path / "cells.jsonl")
        records.add([one], runner)
        head = json.loads(json.dumps(records.head))
        for part, change, message in [
            (
                "models",
                {"0/llava": "another"},
                r"a model '0/llava' of another, and this is [0-9a-f]{16}: .*another --name",
            ),
            ("ways", {"transfer": "another"}, "a condition 'transfer' of another, and this is"),
            ("settings", {"steps": 5}, "was made with settings of .*'steps': 5"),
        ]:
            records.head = head | {part: head[part] | change}
            with pytest.raises(ValueError, match=message):
                records.add([one], runner)

    def test_the_way_of_a_condition(self, claims, runner) -> None:
        one = cell(claims, "transfer", "llava")
        assert runner.way(one) == runner.way(replace(one, seed=3, on="ink", sources=("paligemma",)))
        assert len({runner.way(cell(claims, name, "llava")) for name in ("transfer", "paper", "shuffled")}) == 3
        assert runner.way(cell(claims, "zero")) != runner.way(cell(claims, "white"))
