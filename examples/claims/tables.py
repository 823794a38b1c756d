"""The page of the claims; its figures come from `claims.json` (and `claims_search.json`) and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .data import TASKS
from .plan import CONDITIONS, CONTROL, FAMILIES, TASKS_OF_THE_MEAN
from .search import ZOO as SEARCHED_ZOO


NOTHING = "-"
# Of what has no records, see `earlier.py`.
EARLIER = "†"
IDEAS_TEXT = (
    "Each is tried at one strength on top of `plain` (the search's own) and of the transfer recipe "
    "(`examples/claims/ideas.py`): every canvas through a JPEG file of quality 30 to 95; noise in every layer of the image "
    "encoder, a tenth as strong as what it is added to; Adam without its momentum; steps by the gradient at a point 2 "
    "uphill (sharpness-aware); FCA in every layer of the image encoder, relative to its states; the prompt of every tenth "
    "step, chosen by how well the source reads validation pictures that are moved and compressed. Two sources, their losses "
    "as they are or made equally large, are tried on `plain` only."
)


def points(value: float | None, ends: Sequence[float] | None = None) -> str:
    """`"+5.1"`, or with an interval `"+5.1 [+1.0, +9.2]"`."""
    if value is None:
        return NOTHING
    return f"{value:+.1f}" + (f" [{ends[0]:+.1f}, {ends[1]:+.1f}]" if ends else "")


def percent(share: float | None) -> str:
    """A share of 1 as `"12 %"`."""
    return NOTHING if share is None else f"{100 * share:.0f} %"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(
        [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(r)} |" for r in rows)]
    )


def find(lines: Sequence[Mapping[str, Any]], **what: Any) -> Mapping[str, Any]:
    """The one line with these values; empty where there is none."""
    wanted = {"sources": 1, "role": "held-out", "control": False} | what
    wanted.setdefault("on", wanted["task"])
    return next((line for line in lines if all(line[key] == value for key, value in wanted.items())), {})


def mark(earlier: bool) -> str:
    """A sign on what is of an earlier result."""
    return f" {EARLIER}" if earlier else ""


def cells(line: Mapping[str, Any]) -> list[str]:
    """What a table shows of a line."""
    ends = line["bootstrap95"]
    return [
        points(line["gain"], line["ci95"]), f"[{ends[0]:+.1f}, {ends[1]:+.1f}]" if ends else NOTHING, f"{line['worst']:+.1f}",
        percent(line["harmed"]), percent(line["below_zero"]), f"{line['pairs']}", f"{line['runs']}",
    ]  # fmt: skip


def conditions_table(lines: Sequence[Mapping[str, Any]], task: str, control: bool = False) -> str:
    """A row per condition of one task: what it does for models that learned it, and for those that did not."""
    rows = []
    for name, condition in CONDITIONS.items():
        if condition.kind != "prompt":
            one = find(lines, condition=name, task=task, role="", sources=0, control=control)
            if name != "zero" and one:
                rows.append([condition.label + mark("earlier" in one), NOTHING, *cells(one)])
            source = find(lines, condition=name, task=task, role="source", control=control)
            if source:
                own = points(source["gain"], source["ci95"])
                rows.append(
                    [condition.label + mark("earlier" in source), own, "cannot", *[NOTHING] * 4, *cells(source)[-2:]]
                )
            continue
        for size in (1, 2, 3):
            sizes: dict[str, Any] = {"condition": name, "task": task, "sources": size, "control": control}
            held_out, source = find(lines, **sizes), find(lines, **sizes, role="source")
            if held_out:
                label = condition.label + (f", {size} sources" if size > 1 else "") + mark("earlier" in held_out)
                rows.append([label, points(source.get("gain"), source.get("ci95")), *cells(held_out)])
    header = [
        "",
        "source",
        "held-out [95 % over zoos]",
        "bootstrap",
        "worst pair",
        "harmed",
        "below zero",
        "pairs",
        "runs",
    ]
    return table(header, rows) if rows else "*Not measured.*"


def elsewhere_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Prompts measured on other pictures than those of the task they were learned on."""
    rows = []
    for one in lines:
        if one["on"] != one["task"] and one["role"] == "held-out" and not one["control"]:
            source = find(lines, **{key: one[key] for key in ("condition", "task", "on", "sources")}, role="source")
            label = CONDITIONS[one["condition"]].label + mark("earlier" in one)
            rows.append([one["task"], one["on"], label, points(source.get("gain"), source.get("ci95")), *cells(one)])
    header = ["learned on", "measured on", "", "source", "held-out [95 % over zoos]", "bootstrap", "worst pair", "harmed",
              "below zero", "pairs", "runs"]  # fmt: skip
    return table(header, sorted(rows)) if rows else "*Not measured.*"


def mean_gains(pairs: Sequence[Mapping[str, Any]], condition: str, task: str) -> dict[str, dict[str, float]]:
    """Mean gain by source and then by target, over zoos and seeds; not a number where nobody measured."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in pairs:
        ours = (row["condition"], row["task"], row["on"]) == (condition, task, task) and len(row["sources"]) == 1
        if ours and not row["zoo"].startswith(CONTROL):
            found.setdefault((row["sources"][0], row["target"]), []).append(row["gain"])
    return {
        source: {target: float(np.mean(found.get((source, target), [np.nan]))) for target in FAMILIES}
        for source in FAMILIES
    }


def pairs_table(pairs: Sequence[Mapping[str, Any]], condition: str, task: str) -> str:
    """Mean gain of every target (column) from every source (row), over zoos and seeds."""
    gains = mean_gains(pairs, condition, task)
    members = [name for name in FAMILIES if not np.isnan(list(gains[name].values())).all()]
    rows = []
    for source in members:
        texts = {
            target: points(None if np.isnan(gains[source][target]) else gains[source][target]) for target in members
        }
        own = {source: f"*{texts[source]}*"}
        rows.append([f"`{source}`", *(texts | own).values()])
    return table(["learned on", *(f"`{name}`" for name in members)], rows) if rows else "*Not measured.*"


def zoos_table(lines: Sequence[Mapping[str, Any]], task: str) -> str:
    """Held-out gains zoo by zoo."""
    found = [(name, find(lines, condition=name, task=task)) for name in CONDITIONS]
    found = [(name, one) for name, one in found if one]
    zoos = sorted({zoo for _, one in found for zoo in one["by_zoo"]})
    rows = [
        [CONDITIONS[name].label + mark("earlier" in one), *(points(one["by_zoo"].get(zoo)) for zoo in zoos)]
        for name, one in found
    ]
    return table(["", *(f"zoo {zoo}" for zoo in zoos)], rows) if rows else "*Not measured.*"


def extent(number: Mapping[str, Any]) -> str:
    """Of how many zoos and seeds a number is, in brackets, and of which tasks where it is not of all."""
    counts = [f"{len(number[key])} {key if len(number[key]) > 1 else key[:-1]}" for key in ("zoos", "seeds")]
    return f" ({', '.join(counts)}){only(number['tasks'])}"


def only(tasks: Sequence[str]) -> str:
    """`" (`ink` only)"` where something was not measured on all tasks of the mean; empty where it was, or on none."""
    missing = tasks and not set(tasks) >= set(TASKS_OF_THE_MEAN)
    return f" ({', '.join(f'`{task}`' for task in tasks)} only)" if missing else ""


def claims_table(claims: Sequence[Mapping[str, Any]]) -> str:
    """The paper's claims with verdicts."""
    rows = []
    for one in claims:
        numbers = [f"{name}: " + (f"{number['gain']:.0f} %" if number.get("share")
                   else points(number['gain'], number['ci95'])) + extent(number) + mark("earlier" in number)
                   for name, number in one["numbers"].items() if number]  # fmt: skip
        rows.append([one["claim"], f"**{one['verdict']}**", "<br>".join(numbers) or NOTHING])
    return table(["claim", "here", "measured, points [95 % over zoos]"], rows)


def search_table(search: Mapping[str, Any]) -> str:
    """What the search judged, the best first."""
    rows = []
    for one in sorted(search["candidates"], key=lambda candidate: -candidate["heldout"]):
        name = f"**{one['name']}** (chosen)" if one["name"] == search["chosen"] else one["name"]
        rows.append([name, points(one["heldout"]), points(one["worst"]), points(one["source"])])
    return table(["candidate", "held-out", "worst pair", "source"], rows)


def _made_by(runs: Sequence[Mapping[str, Any]]) -> str:
    some = (f"`{run['command']}` ({run['kept']:,} of its {run['cells']:,} cells have been run)" for run in runs)
    return " and ".join(some)


def _judged_by(search: Mapping[str, Any]) -> str:
    return (
        f"`{search['command']}`: {', '.join(f'`{name}`' for name in search['development'])} of zoo {search['zoo']} only, on "
        f"validation pictures of {' and '.join(search['tasks'])}; seeds {', '.join(map(str, search['seeds']))}. Held-out is "
        "what chose: the mean gain of the members that were not learned on. "
    )


def headline(summary: Mapping[str, Any]) -> str:
    """The summary in sentences that end where numbers are missing."""
    lines, earlier = [], summary["earlier"]
    for short, label in (("paper", "TVP, the paper's recipe"), ("paper_lr10", "the same at learning rate 10"),
                         ("vp", "VP, the paper's rule"), ("transfer", "the transfer recipe")):  # fmt: skip
        gain = summary[f"heldout_gain_{short}"]
        if gain is not None:
            key = f"heldout_gain_{short}"
            lines.append([
                label + only(summary[f"tasks_{short}"]) + mark(key in earlier), points(summary[f"source_gain_{short}"]), points(gain, summary[f"{key}_ci95"]),
                points(summary[f"{key}_without_shared_tower"]), points(summary[f"{key}_untouched"]),
                percent(summary[f"harmed_fraction_{short}"]), percent(summary[f"below_zero_fraction_{short}"]),
                points(summary[f"nocue_{key}"]) + only(summary[f"nocue_tasks_{short}"]) + mark(f"nocue_{key}" in earlier),
            ])  # fmt: skip
    header = ["", "source", "held-out [95 % over zoos]", "without pairs of one tower", "not seen by the search", "harmed",
              "below zero", "zoo without the cue"]  # fmt: skip
    return table(header, lines) if lines else "*Not measured.*"


def page(result: Mapping[str, Any], searches: Mapping[str, Mapping[str, Any]]) -> str:
    """`docs/results_claims.md`, or that of another name."""
    summary, lines, settings, name = result["summary"], result["lines"], result["settings"], result["name"]
    zoos = ", ".join(f"{zoo} ({len(some)} members)" for zoo, some in summary["members"].items()) or NOTHING
    seeds = ", ".join(map(str, summary["seeds"])) or NOTHING
    parts = [
        "# The paper's claims, measured\n",
        f"Measured by {_made_by(result['runs'])}. What every model answered to every picture is in "
        f"`docs/results/{name}_cells.jsonl`, {result['records']:,} cells; this page and `docs/results/{name}.json` are made of "
        f"it. Zoos {zoos}; seeds of training {seeds}; {settings['steps']} steps of {settings['batch_size']} pictures out of {settings['n_train']}; n = "
        f"{settings['n_test']} test pictures, used for no choice. Those of zoo 0 were also looked at, with `llava` as "
        "source, while the tasks were being made. Gains are in points over the zero border on the same pictures.\n",
        "*Held-out*: models that a prompt was not learned on, a mean over ordered pairs, seeds and then zoos. The interval "
        "over zoos is Student's on the means of the zoos. *Bootstrap* draws zoos, sources, seeds and test pictures; with "
        "so few zoos it is too narrow. *Harmed*: pairs below the zero border by more than their 95 % interval over test "
        "pictures; *below zero*: all pairs with a mean below it, by however little. *Runs*: pairs, each as often as seeds "
        "were trained for it. A difference is of the zoos, tasks and seeds that both sides have.\n",
        *([f"{EARLIER} {result['earlier']}\n"] if "earlier" in result else []),
        "**What is built in.** The zoo's world has a cue that a border can use: a neutral mat around a picture shows the "
        "colour of the light. Colour tasks are asked under a light that no picture was taken under in training. "
        f"The zoo `{CONTROL}` learned from a world without that cue. In `ink` the handwriting is real (scikit-learn's scans; "
        "no writer is known, so one may be in training and in test), while ink, ground and light are drawn. In `digits` the "
        "pictures are real and no light is changed; the world has a cue for them too, as a coloured plate mostly carries a "
        "digit. Pairs of `blip2` and `instructblip` share a frozen vision tower.\n",
        "## In short\n", f"Mean over {' and '.join(f'`{task}`' for task in summary['tasks'])}:\n", headline(summary) + "\n",
        f"`{summary['real_task']}` with the transfer recipe: held-out "
        f"{points(summary['real_task_heldout_gain'], summary['real_task_ci95'])}; by family "
        + (", ".join(f"`{name}` {points(gain)}" for name, gain in summary["real_task_by_family"].items()) or NOTHING) + ".\n",
        "## The claims\n",
        "*Holds*: every number has its interval on the claim's side of 0; *in part*: some have. Where none has: *does not hold "
        "at this scale* if every number is at 0 or on the other side, *not shown* if not.\n", claims_table(result["claims"]) + "\n",
        f"![Held-out gains](images/{name}_conditions.png)\n", f"![Pairs](images/{name}_pairs.png)\n",
    ]  # fmt: skip
    for task, about in TASKS.items():
        if any(one["task"] == task and one["on"] == task for one in lines):
            parts += [
                f"## {about.title[0].upper()}{about.title[1:]} (`{task}`)\n",
                conditions_table(lines, task) + "\n",
            ]
        if task in TASKS_OF_THE_MEAN:
            for condition in ("transfer", "paper"):
                parts += [f"{CONDITIONS[condition].label}, pair by pair (*source itself*):\n",
                          pairs_table(result["pairs"], condition, task) + "\n"]  # fmt: skip
            parts += ["Held-out gains zoo by zoo:\n", zoos_table(lines, task) + "\n"]
            if any(one["control"] and one["task"] == task for one in lines):
                parts += ["The zoo without the cue:\n", conditions_table(lines, task, control=True) + "\n"]
    parts += ["## On other pictures than those learned from\n", elsewhere_table(lines) + "\n"]
    if "search" in searches:
        parts += ["## The search\n", _judged_by(searches["search"]) + "`plain` is the task loss by "
                  "Adam at 0.05, pixel by pixel; a name with `=` says what differs from that. A `share` is a weight at which the "
                  "term is that share of the task loss.\n", search_table(searches["search"]) + "\n"]  # fmt: skip
    if "ideas" in searches:
        parts += ["## Ideas that the package does not have\n", _judged_by(searches["ideas"]) + IDEAS_TEXT + "\n",
                  search_table(searches["ideas"]) + "\n"]  # fmt: skip
    others = [zoo for zoo in summary["zoos"] if zoo != SEARCHED_ZOO]
    control = summary["control_members"]
    parts += [
        "## Make it again\n", "<!-- not run: it takes hours -->\n```bash",
        *(f"python zoo/train.py --zoo_seed {zoo} --output_dir runs/zoos/{zoo}" for zoo in others),
        *([f"python zoo/train.py --no_cues --members {' '.join(control)} --output_dir runs/zoos/{CONTROL}"] if control else []),
        *(run["command"] for run in result["runs"]), "```\n",
        *(f"Machine: {run['machine']}. Versions: "
          + ", ".join(f"{name} {version}" for name, version in run["versions"].items()) + ".\n" for run in result["runs"][-1:]),
    ]  # fmt: skip
    return "\n".join(parts)
