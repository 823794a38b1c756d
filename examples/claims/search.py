"""The search for the transfer recipe: on three members of one zoo, judged on validation pictures of the other two.

Nothing else chooses. No test picture is read, and no model of another zoo, so that other zoos and other families say
whether the choice holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from .experiment import Runner, run_cells, write_whole
from .plan import CONDITIONS, PLAIN, TASKS_OF_THE_MEAN, Cell, Condition


DEVELOPMENT = ("llava", "idefics3", "instructblip")
ZOO = "0"
AXES: dict[str, tuple[Any, ...]] = {
    "learning_rate": (0.02, 0.1),
    "block_size": (4, 8, 16, 64),
    "diversity_shift": (2,),
    "diversity_noise": (0.1,),
    "diversity_scale": (0.25,),
    "diversity_brightness": (0.3,),
    "fca_share": (0.1, 1.0),
    "tse_share": (0.1, 1.0),
}
# Beyond the axes: what `ideas.py` has, and Adam without momentum, each at one strength.
IDEAS: dict[str, dict[str, Any]] = {
    "jpeg=30": {"jpeg": 30},
    "model_noise=0.1": {"model_noise": 0.1},
    "adam_beta1=0": {"adam_beta1": 0.0},
    "sharpness=2": {"sharpness": 2.0},
    "layers_weight=0.3": {"layers_weight": 0.3},
    "stopped_by_proxy": {"stopped_by_proxy": True},
}
BASES: dict[str, dict[str, Any]] = {"plain": PLAIN, "transfer": {"recipe": "transfer"}}
# In points. Less is not told from the choice of pictures and seeds.
MARGIN = 0.3


@dataclass
class Judged:
    r"""
    A candidate and what it was found to do on validation pictures, in points over the zero border.

    Attributes:
        name (`str`), overrides (`dict`): What it is.
        heldout (`float`): Mean gain of development members that were not learned on; this alone chooses.
        worst (`float`): The least gain of such a pair, a mean over seeds.
        source (`float`): Mean gain of the members that were learned on.
        pairs (`dict[str, float]`): Gain of every pair, by `"task: source > target"`.
        weights (`dict[str, float]`): Mean weights of FCA and TSE, where a share gave them.
    """

    name: str
    overrides: dict[str, Any]
    heldout: float
    worst: float
    source: float
    pairs: dict[str, float]
    weights: dict[str, float]


class Search:
    r"""
    Runs and judges candidates.

    Args:
        runner ([`Runner`]): With a zoo of the name `"0"`.
        tasks (`Sequence[str]`, *optional*): The tasks; the score is a mean over them.
        seeds (`Sequence[int]`, *optional*, defaults to `(0, 1)`): Seeds of the trainings.
        processes (`int`, *optional*, defaults to 1): How many cells at a time.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.
        members (`Sequence[str]`, *optional*): The development families.
    """

    def __init__(
        self, runner: Runner, tasks: Sequence[str] = TASKS_OF_THE_MEAN, seeds: Sequence[int] = (0, 1),
        processes: int = 1, progress: bool = True, members: Sequence[str] = DEVELOPMENT,
    ) -> None:  # fmt: skip
        self.runner, self.tasks, self.seeds, self.members = runner, tuple(tasks), tuple(seeds), tuple(members)
        self.processes, self.progress = processes, progress
        self.judged: list[Judged] = []

    def _cell(self, task: str, condition: Condition, sources: tuple[str, ...] = (), seed: int = 0) -> Cell:
        return Cell(ZOO, task, condition, sources, seed, split="validation", targets=self.members)

    def judge(self, candidates: dict[str, dict[str, Any]], size: int = 1) -> list[Judged]:
        """Runs candidates, training arguments by name, on all groups of `size` members, and judges each."""
        conditions = {name: Condition(f"search-{name}", name, overrides=some) for name, some in candidates.items()}
        cells = [self._cell(task, CONDITIONS["zero"]) for task in self.tasks]
        cells += [self._cell(task, condition, sources, seed) for condition in conditions.values()
                  for seed in self.seeds for task in self.tasks for sources in combinations(self.members, size)]  # fmt: skip
        run_cells(cells, self.runner, self.processes, progress=self.progress)
        found = [self._judge(name, condition, size) for name, condition in conditions.items()]
        self.judged += found
        return found

    def _accuracy(self, cell: Cell) -> dict[str, float]:
        kept = self.runner.read(cell)
        assert kept is not None  # it has just been run
        return {member: 100 * np.mean([int(bit) for bit in kept["correct"][member]]) for member in self.members}

    def _judge(self, name: str, condition: Condition, size: int) -> Judged:
        own, pairs, weights = [], {}, {}
        for task in self.tasks:
            zero = self._accuracy(self._cell(task, CONDITIONS["zero"]))
            for sources in combinations(self.members, size):
                cells, shown = [self._cell(task, condition, sources, seed) for seed in self.seeds], "+".join(sources)
                runs = [self._accuracy(cell) for cell in cells]
                gains = {member: float(np.mean([run[member] - zero[member] for run in runs])) for member in zero}
                own += [gains.pop(source) for source in sources]
                pairs |= {f"{task}: {shown} > {target}": gain for target, gain in gains.items()}
                for weight in ("fca_weight", "tse_weight"):
                    if weight.replace("weight", "share") in condition.overrides:
                        kept = [(self.runner.read(cell) or {})["arguments"][weight] for cell in cells]
                        weights[f"{weight} of {shown} on {task}"] = float(np.mean(kept))
        gains_of_pairs = list(pairs.values())
        return Judged(name, condition.overrides, float(np.mean(gains_of_pairs)), min(gains_of_pairs),
                      float(np.mean(own)), pairs, weights)  # fmt: skip

    def run(self) -> dict[str, Any]:
        r"""
        One axis at a time, then what helped together: axes are added one after the other, the best first, and kept if
        they help what is there already.

        Returns:
            `dict`: `chosen` (training arguments), `candidates` (all that was judged, in order) and how it was judged.
        """
        references = {name: CONDITIONS[name].overrides for name in ("vp_paper", "paper", "paper_lr10")}
        singles = {f"{axis}={value:g}": (axis, value) for axis, values in AXES.items() for value in values}
        found = self.judge(
            {"plain": PLAIN} | references | {name: PLAIN | {axis: value} for name, (axis, value) in singles.items()}
        )
        best = plain = next(one for one in found if one.name == "plain")
        helpful: dict[str, Judged] = {}
        for one in found:
            if one.name in singles and one.heldout > plain.heldout + MARGIN:
                axis = singles[one.name][0]
                helpful[axis] = max(helpful.get(axis, one), one, key=lambda judged: judged.heldout)
        for index, (axis, one) in enumerate(sorted(helpful.items(), key=lambda item: -item[1].heldout)):
            if index == 0:
                best = one
                continue
            name = f"{best.name} {one.name}"
            (tried,) = self.judge({name: best.overrides | {axis: one.overrides[axis]}})
            if tried.heldout > best.heldout + MARGIN:
                best = tried
        chosen = {"chosen": best.name, "chosen_arguments": best.overrides, "chosen_weights": best.weights}
        return self._described() | chosen | {"candidates": [vars(one) for one in self.judged]}

    def run_ideas(self) -> dict[str, Any]:
        """Every idea on top of every base, on single sources; and `plain` on two, their losses as they are and balanced.

        Returns:
            `dict`: As of [`~Search.run`] without the arguments; `chosen` is the transfer recipe, or what is better than it
                by more than the margin.
        """
        names = {f"{base} {idea}": some | more for base, some in BASES.items() for idea, more in IDEAS.items()}
        found = {one.name: one for one in self.judge(BASES | names)}
        best = max(found.values(), key=lambda one: one.heldout)
        chosen = found["transfer"] if best.heldout <= found["transfer"].heldout + MARGIN else best
        # Not of the transfer recipe, to which a second source adds next to nothing.
        self.judge({"plain, 2 sources": PLAIN, "plain balanced, 2 sources": PLAIN | {"balanced": True}}, size=2)
        return self._described() | {"chosen": chosen.name, "candidates": [vars(one) for one in self.judged]}

    def _described(self) -> dict[str, Any]:
        return {
            "zoo": ZOO, "development": list(self.members), "tasks": list(self.tasks), "seeds": list(self.seeds),
            "judged_by": "mean gain over the zero border on validation pictures, of members not learned on, points",
            "margin": MARGIN,
        }  # fmt: skip


def format_search(result: dict[str, Any]) -> str:
    """The table of a search, the best candidate first."""
    lines = [f"{'held-out':>9} {'worst':>7} {'source':>7}   candidate"]
    for one in sorted(result["candidates"], key=lambda candidate: -candidate["heldout"]):
        mark = "  <- chosen" if one["name"] == result["chosen"] else ""
        lines.append(f"{one['heldout']:>+9.1f} {one['worst']:>+7.1f} {one['source']:>+7.1f}   {one['name']}{mark}")
    return "\n".join(lines)


def save_search(result: dict[str, Any], path: Any) -> None:
    """Writes what `Search.run` gave."""
    write_whole(path, json.dumps(result, indent=1) + "\n")
