"""From records to numbers: gains of pairs, means with intervals over zoos, and the summary of all.

A gain is the accuracy in a border minus that in the zero border, of the same model on the same pictures, in points. An
interval over zoos is Student's, on the means of the zoos: zoos are what is independent. The hierarchical bootstrap
draws zoos, in them trainings' sources, their seeds, and test pictures; with three zoos it is too narrow, and it is given
for what it says about the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from transferable_vp.report import paired_bootstrap

from .data import REAL_TASK
from .plan import CONTROL, SHARED_TOWERS, TASKS_OF_THE_MEAN
from .records import Record
from .search import DEVELOPMENT
from .search import ZOO as SEARCHED_ZOO


Row = dict[str, Any]
RESAMPLES = 1000
# What makes a line the one that it is.
LINE = ("condition", "task", "on", "sources", "role", "control")


def read_rows(records: Iterable[Record]) -> list[Row]:
    r"""
    One row for every condition, sources and measured model.

    Returns:
        `list` of `dict`: `zoo`, `task` (learned), `on` (measured), `condition`, `sources`, `target`, `role`
        (`"source"`, `"held-out"`, or empty where nothing is learned), `shared_tower`, `seeds`, `n`, `zero` (accuracy in the
        zero border, %), `gains` (points, one per seed), `gain` (their mean), `ci95` (paired bootstrap over test
        pictures) and, for what follows only, `differences` (`(seeds, n)`).
    """
    found: dict[tuple[Any, ...], dict[int, np.ndarray]] = defaultdict(dict)
    for one in records:
        for member, correct in one.correct.items():
            found[one.zoo, one.task, one.on, one.condition, one.sources, member][one.seed] = correct
    rows = []
    for (zoo, task, on, condition, sources, target), runs in found.items():
        bare = found.get((zoo, on, on, "zero", (), target), {}).get(0)
        if bare is None:
            continue  # a run that was stopped early: without the zero border there is no gain
        zero = bare.astype(float)
        after = np.stack([runs[seed] for seed in sorted(runs)]).astype(float)
        differences = after - zero
        rows.append({
            "zoo": zoo, "task": task, "on": on, "condition": condition, "sources": list(sources), "target": target,
            "role": "" if not sources else "source" if target in sources else "held-out",
            "shared_tower": target not in sources and target in SHARED_TOWERS and bool(SHARED_TOWERS & set(sources)),
            "seeds": sorted(runs), "n": len(zero), "zero": 100 * float(zero.mean()),
            "gains": [100 * float(row.mean()) for row in differences], "gain": 100 * float(differences.mean()),
            "ci95": [100 * end for end in paired_bootstrap(zero, after)], "differences": differences,
        })  # fmt: skip
    return rows


def select(
    rows: Iterable[Row], condition: str, tasks: Sequence[str], role: str = "held-out", size: int | None = 1,
    on: str | None = None, control: bool = False, shared: bool = True,
) -> list[Row]:  # fmt: skip
    """Rows of one condition: measured on the task that was learned unless `on` says otherwise, of `size` sources (any
    with `None`), of ordinary or of control zoos, with or without pairs that share a tower."""
    return [
        row for row in rows
        if row["condition"] == condition and row["task"] in tasks and row["role"] == role
        and (size is None or len(row["sources"]) == size) and row["on"] == (on or row["task"])
        and row["zoo"].startswith(CONTROL) == control and (shared or not row["shared_tower"])
    ]  # fmt: skip


def zoo_means(rows: Sequence[Row]) -> dict[str, float]:
    """The mean gain in each zoo."""
    names = sorted({row["zoo"] for row in rows})
    return {name: float(np.mean([row["gain"] for row in rows if row["zoo"] == name])) for name in names}


def t_interval(values: Sequence[float]) -> list[float] | None:
    """Student's 95 % interval of the mean of a few values; none of fewer than two."""
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return [float(np.mean(values) - half), float(np.mean(values) + half)]


def hierarchical_interval(rows: Sequence[Row], resamples: int = RESAMPLES, seed: int = 0) -> list[float] | None:
    r"""
    95 % percentile interval of the mean gain, drawing zoos, then sources (with all that was measured of them), then
    seeds of their trainings, then test pictures.

    Args:
        rows (`Sequence[dict]`): With `differences`, but for rows of an earlier result.
        resamples (`int`, *optional*, defaults to 1000): How many times all is drawn.
        seed (`int`, *optional*, defaults to 0): Of the draws.

    Returns:
        `list[float]`, *optional*: In points; none without rows, or where one has no `differences`.
    """
    if not rows or any(is_earlier(row) for row in rows):
        return None
    rng = np.random.default_rng(seed)
    # The same pictures for all models, as they were measured on the same.
    draws = {n: rng.multinomial(n, np.full(n, 1 / n), size=resamples).T / n for n in {row["n"] for row in rows}}
    units: dict[str, dict[tuple[Any, ...], list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        unit = (row["task"], row["on"], *row["sources"])
        units[row["zoo"]][unit].append(100 * row["differences"] @ draws[row["n"]])
    # For every zoo, of each of its units the gain by seed and resample, a mean over targets.
    values = [[np.mean(targets, axis=0) for targets in some.values()] for some in units.values()]
    total, every = np.zeros(resamples), np.arange(resamples)
    for _ in values:
        choices = np.stack([_draw_zoo(some, rng, every) for some in values])
        total += choices[rng.integers(len(values), size=resamples), every]
    low, high = np.quantile(total / len(values), [0.025, 0.975])
    return [float(low), float(high)]


def _draw_zoo(units: Sequence[np.ndarray], rng: np.random.Generator, every: np.ndarray) -> np.ndarray:
    seeds = np.array([len(unit) for unit in units])
    padded = np.stack([np.pad(unit, ((0, seeds.max() - len(unit)), (0, 0))) for unit in units])
    total = np.zeros(len(every))
    for _ in units:
        unit = rng.integers(len(units), size=len(every))
        for _ in range(seeds.max()):
            total += padded[unit, (rng.random(len(every)) * seeds[unit]).astype(int), every] / seeds.max()
    return total / len(units)


def is_earlier(row: Row) -> bool:
    """Whether a row is of a result without records, see `earlier.py`."""
    return bool(row.get("earlier"))


def _marked(rows: Sequence[Row]) -> dict[str, bool]:
    return {"earlier": True} if any(map(is_earlier, rows)) else {}


def harmed(row: Row) -> bool:
    """Whether a pair is below the zero border by more than its interval over test pictures."""
    return row["ci95"][1] < 0


def line(rows: Sequence[Row], **what: Any) -> dict[str, Any]:
    """Mean, intervals and counts of some rows: what a table shows of them. Empty without rows."""
    if not rows:
        return {}
    means = zoo_means(rows)
    return {
        **what, "gain": float(np.mean(list(means.values()))), "ci95": t_interval(list(means.values())),
        "bootstrap95": hierarchical_interval(rows), "by_zoo": means, "pairs": len(rows),
        "runs": sum(len(row["gains"]) for row in rows), "zero": float(np.mean([row["zero"] for row in rows])),
        "harmed": float(np.mean([harmed(row) for row in rows])),
        "below_zero": float(np.mean([row["gain"] < 0 for row in rows])), "worst": min(row["gain"] for row in rows),
        **_marked(rows),
    }  # fmt: skip


def all_lines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for every condition, task, number of sources, measured task, role and kind of zoo that is there."""

    def key(row: Row) -> tuple[Any, ...]:
        control = row["zoo"].startswith(CONTROL)
        return row["condition"], row["task"], row["on"], len(row["sources"]), row["role"], control

    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return [line(some, **dict(zip(LINE, what, strict=True))) for what, some in groups.items()]


def difference(better: Sequence[Row], worse: Sequence[Row]) -> dict[str, Any] | None:
    """Mean over zoos of the difference of two zoo means, with Student's interval, from the zoos, tasks and seeds that
    both have; none where there are none."""
    runs = [{(row["zoo"], row["task"], seed) for row in rows for seed in row["seeds"]} for rows in (better, worse)]
    both = runs[0] & runs[1]
    used = [_only(rows, both) for rows in (better, worse)]
    one, other = map(zoo_means, used)
    gaps = [one[zoo] - other[zoo] for zoo in one]
    if not gaps:
        return None
    return {"gain": float(np.mean(gaps)), "ci95": t_interval(gaps), **_extent(both), **_marked([*used[0], *used[1]])}


def _only(rows: Sequence[Row], runs: Collection[tuple[str, str, int]]) -> list[Row]:
    found = []
    for row in rows:
        gains = [
            g for g, seed in zip(row["gains"], row["seeds"], strict=True) if (row["zoo"], row["task"], seed) in runs
        ]
        found += [row | {"gain": float(np.mean(gains))}] if gains else []
    return found


def _extent(runs: Iterable[tuple[str, str, int]]) -> dict[str, Any]:
    zoos, tasks, seeds = (sorted(set(some)) for some in zip(*runs, strict=True))
    return {"zoos": zoos, "tasks": tasks, "seeds": seeds}


def untouched(row: Row) -> bool:
    """Whether the search has seen neither this zoo's validation pictures nor this pair's target."""
    return row["zoo"] != SEARCHED_ZOO or row["target"] not in DEVELOPMENT


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    r"""
    The numbers that everything else quotes, in points; those that were not measured are `None`.

    Means are over the tasks of the mean (`colors`, `ink`), all ordered pairs of members, seeds, and then zoos.
    """
    tasks = TASKS_OF_THE_MEAN
    found: dict[str, Any] = {"tasks": list(tasks), "earlier": []}

    def put(name: str, some: Sequence[Row]) -> None:
        means = list(zoo_means(some).values())
        found[name] = float(np.mean(means)) if means else None
        found[f"{name}_ci95"] = t_interval(means)
        found["earlier"] += [name] if any(map(is_earlier, some)) else []

    for short, condition in {
        "paper": "paper",
        "paper_lr10": "paper_lr10",
        "vp": "vp_paper",
        "transfer": "transfer",
    }.items():
        some = select(rows, condition, tasks)
        put(f"heldout_gain_{short}", some)
        found[f"heldout_gain_{short}_bootstrap95"] = hierarchical_interval(some)
        put(f"heldout_gain_{short}_without_shared_tower", select(rows, condition, tasks, shared=False))
        put(f"heldout_gain_{short}_untouched", [row for row in some if untouched(row)])
        put(f"source_gain_{short}", select(rows, condition, tasks, role="source"))
        found[f"harmed_fraction_{short}"] = float(np.mean([harmed(row) for row in some])) if some else None
        found[f"below_zero_fraction_{short}"] = float(np.mean([row["gain"] < 0 for row in some])) if some else None
        control = select(rows, condition, tasks, control=True)
        put(f"nocue_heldout_gain_{short}", control)
        found[f"tasks_{short}"], found[f"nocue_tasks_{short}"] = (
            sorted({row["task"] for row in measured}) for measured in (some, control)
        )
    put("heldout_gain_shuffled", select(rows, "shuffled", tasks))
    paper, transfer = found["heldout_gain_paper"], found["heldout_gain_transfer"]
    found["transfer_over_paper"] = transfer / paper if paper and transfer is not None and paper > 0 else None
    real = select(rows, "transfer", (REAL_TASK,))
    put("real_task_heldout_gain", real)
    families = {family: [row for row in real if row["target"] == family] for family in {row["target"] for row in real}}
    used = select(rows, "transfer", tasks)
    return found | {
        "real_task": REAL_TASK, "real_task_ci95": found.pop("real_task_heldout_gain_ci95"),
        "real_task_bootstrap95": hierarchical_interval(real),
        "real_task_by_family": {name: line(some)["gain"] for name, some in sorted(families.items())},
        "zoos": sorted({row["zoo"] for row in used}),
        "members": {zoo: sorted({row["target"] for row in used if row["zoo"] == zoo})
                    for zoo in sorted({row["zoo"] for row in used})},
        "control_members": sorted({row["target"] for row in rows if row["zoo"].startswith(CONTROL)}),
        "pairs": len(used), "seeds": sorted({s for row in used for s in row["seeds"]}),
        "n_test": max((row["n"] for row in used), default=None),
    }  # fmt: skip


def claims(rows: Sequence[Row]) -> list[dict[str, Any]]:
    r"""
    The paper's claims, each with what was measured of it and a verdict.

    *holds* where every number that belongs to a claim has an interval on the claim's side of 0, *holds in part* where some
    have; where none has, *does not hold* if every one is at 0 or on the other side, *not shown* if not; *not measured*
    where a number is missing.
    """
    tasks = TASKS_OF_THE_MEAN

    def mean(*some: Any, **more: Any) -> dict[str, Any]:
        used = select(rows, *some, **more)
        runs = {(row["zoo"], row["task"], seed) for row in used for seed in row["seeds"]}
        found = line(used)
        kept = ("gain", "ci95", "pairs", "earlier")
        return {key: found[key] for key in kept if key in found} | _extent(runs) if found else {}

    def there(numbers: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        # Of several that say the same, those that were measured speak for the claim.
        return {name: number for name, number in numbers.items() if number}

    def gap(better: Mapping[str, Any], worse: Mapping[str, Any]) -> dict[str, Any]:
        return difference(select(rows, tasks=tasks, **better), select(rows, tasks=tasks, **worse)) or {}

    vp = select(rows, "vp_paper", tasks)
    share = mean("vp_paper", tasks)
    if vp:
        share |= {"gain": 100 * float(np.mean([harmed(row) for row in vp])), "ci95": None, "share": True}
    made: list[tuple[str, dict[str, dict[str, Any]]]] = [
        ("A plain visual prompt helps its source", {"source, VP": mean("vp_paper", tasks, role="source")}),
        ("A plain visual prompt can hurt other models", {"% of held-out pairs harmed, VP": share}),
        ("FCA makes a prompt transfer better", {"VP + FCA minus VP": gap({"condition": "paper_fca"}, {"condition": "vp_paper"})}),
        ("TSE makes a prompt transfer better", {"VP + TSE minus VP": gap({"condition": "paper_tse"}, {"condition": "vp_paper"})}),
        ("FCA and TSE together make a prompt transfer better", {"TVP minus VP": gap({"condition": "paper"}, {"condition": "vp_paper"})}),
        ("One prompt lifts models it never saw", {
            "held-out, TVP": mean("paper", tasks), "held-out, transfer recipe": mean("transfer", tasks)}),
        ("More sources transfer better", there({
            f"{size} sources minus 1, {name}": gap({"condition": name, "size": size}, {"condition": name})
            for name in ("paper", "transfer") for size in (2, 3)})),
        ("Little data is enough", there({
            f"held-out with {part} of the data, {name}": mean(f"{name}_{part}", tasks)
            for name in ("paper", "transfer") for part in ("1%", "10%")})),
        ("A prompt helps on a related dataset", there({
            f"{task} > {on}, transfer recipe": mean("transfer", (task,), on=on)
            for task in tasks for on in ("colors", "ink", "water") if on != task})),
        ("A prompt helps on corrupted pictures", {
            f"{name.partition('+')[2]}, transfer recipe": mean("transfer", (name.partition("+")[0],), on=name)
            for name in dict.fromkeys(row["on"] for row in rows if "+" in row["on"] and row["task"] in tasks)}),
    ]  # fmt: skip
    return [{"claim": claim, "numbers": numbers, "verdict": verdict(numbers.values())} for claim, numbers in made]


def verdict(numbers: Iterable[Mapping[str, Any]]) -> str:
    """See `claims`."""
    sides: list[Callable[[Mapping[str, Any]], bool]] = [
        lambda number: bool(
            number["gain"] > 0 and (number.get("share") or (number["ci95"] and number["ci95"][0] > 0))
        ),
        lambda number: bool(number["gain"] <= 0 or (number["ci95"] and number["ci95"][1] < 0)),
    ]
    numbers = list(numbers)
    if not numbers or not all(numbers):
        return "not measured"
    for_it, against = ([side(number) for number in numbers] for side in sides)
    if any(for_it):
        return "holds" if all(for_it) else "holds in part"
    return "does not hold at this scale" if all(against) else "not shown"
