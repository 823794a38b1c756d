"""Results that were measured before there were records: they stand in the tables, marked, until they are measured again.

`docs/results/NAME_earlier.json` has `pairs`, `lines`, `claims` and `summary` as such a file had them, and a `note` on where
they come from. Nothing is ever added to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .plan import CONTROL
from .summary import LINE, Row, verdict


def earlier_rows(rows: Sequence[Row], earlier: Mapping[str, Any]) -> list[Row]:
    """Those pairs of an earlier result of whose condition, tasks and kind of zoo there are no rows."""

    def kind(row: Row) -> tuple[Any, ...]:
        return row["condition"], row["task"], row["on"], row["zoo"].startswith(CONTROL)

    there = set(map(kind, rows))
    return [row | {"earlier": True} for row in earlier["pairs"] if kind(row) not in there]


def with_earlier(result: dict[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    r"""
    A result with the means that only an earlier one has, marked as `"earlier"`.

    Args:
        result (`dict`): Of all rows.
        earlier (`Mapping`): The earlier one. A line or a number of it is taken where the result has none, or one of fewer
            trainings.
    """

    def key(line: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(line[name] for name in LINE)

    def runs(number: Mapping[str, Any]) -> int:
        return len(number["zoos"]) * len(number["tasks"]) * len(number["seeds"]) if number else 0

    lines = {key(line): line for line in result["lines"]}
    for line in earlier["lines"]:
        if key(line) not in lines or lines[key(line)]["runs"] < line["runs"]:
            lines[key(line)] = line | {"earlier": True}
    before = {claim["claim"]: claim["numbers"] for claim in earlier["claims"]}
    claims = []
    for claim in result["claims"]:
        numbers = dict(claim["numbers"])
        for name, number in before.get(claim["claim"], {}).items():
            if runs(number) > runs(numbers.get(name, {})):
                numbers[name] = number | {"earlier": True}
        claims.append(claim | {"numbers": numbers, "verdict": verdict(numbers.values())})
    summary, nothing = dict(result["summary"]), (None, [])
    for name, value in earlier["summary"].items():
        # Of a gain that was measured again there may be no bootstrap; one of other runs would not be its.
        measured = result["summary"].get(name.removesuffix("_bootstrap95"))
        if measured in nothing and value not in nothing:
            summary[name] = value
            summary["earlier"] = [*summary["earlier"], name]
    return {**result, "lines": list(lines.values()), "claims": claims, "summary": summary, "earlier": earlier["note"]}
