"""examples/claims/earlier.py: what was measured before there were records."""

from __future__ import annotations

from typing import Any

import numpy as np


class TestRows:
    def row(self, **more: Any) -> dict[str, Any]:
        one = {
            "zoo": "0",
            "task": "ink",
            "on": "ink",
            "condition": "transfer",
            "sources": ["a"],
            "target": "b",
            "n": 400,
        }
        return one | {"role": "held-out", "shared_tower": False, "seeds": [0], "zero": 40.0, "gains": [5.0], "gain": 5.0,
                      "ci95": [4.0, 6.0]} | more  # fmt: skip

    def test_only_of_what_there_is_none(self, claims) -> None:
        before = [
            self.row(),
            self.row(zoo="9"),
            self.row(condition="paper"),
            self.row(on="water"),
            self.row(zoo="nocue"),
        ]
        found = claims.earlier.earlier_rows([self.row(gain=7.0)], {"pairs": before})
        assert found == [row | {"earlier": True} for row in before[2:]]

    def test_means_of_them_are_marked(self, claims) -> None:
        new = self.row(differences=np.full((1, 400), 0.05))
        old = self.row(zoo="1", earlier=True, gains=[15.0], gain=15.0)
        assert "earlier" not in claims.summary.line([new])
        line = claims.summary.line([new, old])
        assert line["earlier"] and line["gain"] == 10.0 and line["bootstrap95"] is None
        summary = claims.summary.summarize([new, old])
        assert summary["heldout_gain_transfer"] == 10.0 and "heldout_gain_transfer" in summary["earlier"]
        text = claims.tables.conditions_table(claims.summary.all_lines([new, old]), "ink")
        assert "| transfer recipe † | - | +10.0 [-53.5, +73.5] | - |" in text
        better = [self.row(), self.row(condition="paper", gains=[1.0], gain=1.0, earlier=True)]
        assert claims.summary.difference(better[:1], better[1:])["earlier"]
        assert "earlier" not in claims.summary.difference(better[:1], better[:1])


class TestMeans:
    LINE = {
        "condition": "evp",
        "task": "ink",
        "on": "ink",
        "sources": 1,
        "role": "held-out",
        "control": False,
        "runs": 6,
    }

    def with_earlier(self, claims: Any, now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
        nothing: dict[str, Any] = {"lines": [], "claims": [], "summary": {"earlier": []}, "note": "Measured before."}
        return claims.earlier.with_earlier(nothing | now, nothing | before)

    def test_lines_of_fewer_trainings_give_way(self, claims) -> None:
        fewer, more = self.LINE | {"runs": 2, "gain": 1.0}, self.LINE | {"gain": 2.0}
        assert self.with_earlier(claims, {"lines": [more]}, {"lines": [fewer]})["lines"] == [more]
        assert self.with_earlier(claims, {"lines": [more]}, {"lines": [more | {"gain": 3.0}]})["lines"] == [more]
        marked = [more | {"earlier": True}]
        assert self.with_earlier(claims, {"lines": [fewer]}, {"lines": [more]})["lines"] == marked
        assert self.with_earlier(claims, {}, {"lines": [more]})["lines"] == marked

    def test_claims_take_missing_numbers(self, claims) -> None:
        extent = {"zoos": ["0", "1"], "tasks": ["ink"], "seeds": [0], "ci95": [1.0, 3.0], "gain": 2.0}
        less = extent | {"seeds": [0], "zoos": ["0"], "gain": -2.0}
        now = {"claims": [{"claim": "It helps", "numbers": {"a": {}, "b": less}, "verdict": "not measured"}]}
        before = {"claims": [{"claim": "It helps", "numbers": {"a": extent, "b": extent}, "verdict": "holds"}]}
        (found,) = self.with_earlier(claims, now, before)["claims"]
        assert found["numbers"] == {name: extent | {"earlier": True} for name in "ab"} and found["verdict"] == "holds"
        assert "a: +2.0 [+1.0, +3.0] (2 zoos, 1 seed) (`ink` only) †<br>b:" in claims.tables.claims_table([found])
        (found,) = self.with_earlier(claims, before, now)["claims"]
        assert found == before["claims"][0]

    def test_the_summary_is_filled(self, claims) -> None:
        now = {"summary": {"a": None, "b": 1.0, "tasks_a": [], "earlier": ["c"]}}
        found = self.with_earlier(claims, now, {"summary": {"a": 0.0, "b": 2.0, "tasks_a": ["ink"]}})
        assert found["summary"] == {"a": 0.0, "b": 1.0, "tasks_a": ["ink"], "earlier": ["c", "a", "tasks_a"]}
        assert found["earlier"] == "Measured before."
        now = {"summary": {"a": 1.0, "a_bootstrap95": None, "earlier": []}}
        found = self.with_earlier(claims, now, {"summary": {"a": 2.0, "a_bootstrap95": [0.0, 3.0]}})
        assert found["summary"] == now["summary"]
