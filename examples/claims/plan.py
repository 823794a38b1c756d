"""What is run: conditions, the cells that measure them, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .data import CORRUPTIONS, TASKS, corrupted_name


FAMILIES = ("llava", "idefics3", "paligemma", "instructblip", "blip2", "internvl")
# Members that read pictures through one frozen tower, as most of the paper's models do.
SHARED_TOWERS = frozenset({"blip2", "instructblip"})
# Zoos without the shared cue are a control, and in no mean.
CONTROL = "nocue"
TASKS_OF_THE_MEAN = ("colors", "ink")
WRONG_LIGHT = "sodium"

# The plainest training: the task loss by Adam.
PLAIN: dict[str, Any] = {
    "update_rule": "adam", "learning_rate": 0.05, "fca_weight": 0.0, "tse_weight": 0.0, "block_size": 1,
    "diversity_shift": 0, "diversity_noise": 0.0, "diversity_scale": 0.0, "diversity_brightness": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    r"""
    What pictures are shown in, or what is learned.

    Attributes:
        name, label (`str`): In files and in tables.
        kind (`str`): `"image"` (as it is), `"border"` (not learned), `"prompt"` (learned), `"lora"` (weights instead).
        overrides (`dict`): Training arguments. `fca_share` and `tse_share` stand for weights at which the term is that
            share of the task loss, see `experiment.scaled_weights`.
        seeded (`bool`): Whether a seed plays a part.
        mirrors (`bool`): Whether training pictures are mirrored at random.
        shuffled (`bool`): Whether training pictures have each other's answers.
        fraction (`float`): Share of the training rows.
    """

    name: str
    label: str
    kind: str = "prompt"
    overrides: dict[str, Any] = field(default_factory=dict, hash=False)
    seeded: bool = True
    mirrors: bool = False
    shuffled: bool = False
    fraction: float = 1.0


def _paper(name: str, label: str, **more: Any) -> Condition:
    overrides = {"recipe": "paper"} | more.pop("overrides", {})
    return Condition(name, label, overrides=overrides, **more)


def _transfer(name: str, label: str, **more: Any) -> Condition:
    overrides = {"recipe": "transfer"} | more.pop("overrides", {})
    return Condition(name, label, overrides=overrides, **more)


_LIST = [
    Condition("zero", "zero border", "border", seeded=False),
    Condition("full", "full image", "image", seeded=False),
    Condition("white", "white border", "border", seeded=False),
    Condition("random", "random border", "border"),
    Condition("light_right", "border in the light's colour, by hand", "border", seeded=False),
    Condition("light_wrong", "border in another light's colour, by hand", "border", seeded=False),
    _paper("paper", "TVP (the paper's recipe)"),
    _paper("vp_paper", "VP (the paper's rule, task loss)", overrides={"fca_weight": 0.0, "tse_weight": 0.0}),
    _transfer("transfer", "transfer recipe"),
    # On this canvas the paper's 10 without the canvas's factor is the better rate: the baseline is not to be a weak one.
    _paper("paper_lr10", "TVP, learning rate 10", overrides={"learning_rate": 10.0}),
    _paper("evp", "EVP-style (mirrored)", overrides={"fca_weight": 0.0, "tse_weight": 0.0}, mirrors=True),
    _paper("paper_fca", "the paper's rule + FCA", overrides={"tse_weight": 0.0}),
    _paper("paper_tse", "the paper's rule + TSE", overrides={"fca_weight": 0.0}),
    Condition("vp_adam", "VP by Adam", overrides=PLAIN),
    _transfer("transfer_fca", "transfer recipe + FCA at 0.1 of the task loss", overrides={"fca_share": 0.1}),
    _transfer("transfer_tse", "transfer recipe + TSE at 0.1 of the task loss", overrides={"tse_share": 0.1}),
    _paper("paper_1%", "TVP, 1 % of the data", fraction=0.01),
    _paper("paper_10%", "TVP, 10 % of the data", fraction=0.1),
    _transfer("transfer_1%", "transfer recipe, 1 % of the data", fraction=0.01),
    _transfer("transfer_10%", "transfer recipe, 10 % of the data", fraction=0.1),
    _transfer("shuffled", "transfer recipe, answers shuffled", shuffled=True),
    Condition("lora", "LoRA on the source", "lora"),
]
CONDITIONS = {condition.name: condition for condition in _LIST}
CORE_TRAININGS = ("transfer", "paper", "vp_paper")
CORE = (*CORE_TRAININGS, *(name for name, condition in CONDITIONS.items() if condition.kind in ("image", "border")))


@dataclass(frozen=True)
class Cell:
    r"""
    One training, or one border, and one measurement of it on all members of a zoo.

    Attributes:
        zoo (`str`): Name of the zoo.
        task (`str`): What is learned.
        condition ([`Condition`]): How.
        sources (`tuple[str, ...]`): The members that are learned on; none where nothing is learned.
        seed (`int`): Of the training, or of the random border.
        on (`str`): What is measured; of a training its own task unless said otherwise.
        split (`str`): `"test"`, or `"validation"` in a search, which reads no test picture.
        targets (`tuple[str, ...]`): The members that are measured; all of the zoo if empty.
    """

    zoo: str
    task: str
    condition: Condition
    sources: tuple[str, ...] = ()
    seed: int = 0
    on: str = ""
    split: str = "test"
    targets: tuple[str, ...] = ()

    @property
    def measured(self) -> str:
        """Name of the task whose pictures are measured on."""
        return self.on or self.task

    @property
    def learned(self) -> bool:
        """Whether there is anything to train."""
        return self.condition.kind in ("prompt", "lora")


def make_plan(
    kind: str,
    zoos: dict[str, Sequence[str]],
    tasks: Sequence[str] = TASKS_OF_THE_MEAN,
    seeds: Sequence[int] = (0, 1, 2),
    conditions: Sequence[str] | None = None,
) -> list[Cell]:
    r"""
    All cells, the most important first.

    Args:
        kind (`str`): `"core"` (borders, the paper's TVP and VP, the transfer recipe) or `"full"` (everything else too).
        zoos (`dict`): The members of every zoo, by its name.
        tasks (`Sequence[str]`, *optional*): The tasks that are learned; `"full"` adds digits and what is only measured.
        seeds (`Sequence[int]`, *optional*): Seeds of the trainings. All zoos come first with the first of them.
        conditions (`Sequence[str]`, *optional*): Names of those to keep, beside the zero border, which all are compared
            with. All by default.

    Returns:
        `list[Cell]`: Each once.
    """
    evidence = {name: members for name, members in zoos.items() if not name.startswith(CONTROL)}
    control = {name: members for name, members in zoos.items() if name.startswith(CONTROL)}
    cells: list[Cell] = []
    for task in tasks:
        for zoo in zoos:
            cells += borders(zoo, task, seeds)
    for seed in seeds:
        for zoo, members in evidence.items():
            for task in tasks:
                cells += trainings(zoo, task, members, CORE_TRAININGS, seed)
    if kind == "full":
        for zoo, members in control.items():
            for task in tasks:
                cells += trainings(zoo, task, members, ("transfer", "paper"), seeds[0])
        for seed in seeds:
            for part in PARTS:
                for zoo, members in evidence.items():
                    cells += part(zoo, members, tasks, seed)
    if conditions is None:
        return list(dict.fromkeys(cells))
    asked = [cell for cell in cells if cell.condition.name in conditions]
    compared = {(cell.zoo, cell.measured) for cell in asked}
    zeros = [cell for cell in cells if cell.condition.name == "zero" and (cell.zoo, cell.measured) in compared]
    return list(dict.fromkeys([*zeros, *asked]))


def borders(zoo: str, task: str, seeds: Sequence[int]) -> Iterator[Cell]:
    """The conditions that learn nothing."""
    for condition in CONDITIONS.values():
        if condition.kind in ("image", "border") and (TASKS[task].light or not condition.name.startswith("light")):
            for seed in seeds if condition.seeded else (0,):
                yield Cell(zoo, task, condition, seed=seed)


def trainings(
    zoo: str, task: str, members: Sequence[str], names: Sequence[str], seed: int, size: int = 1, on: str = ""
) -> Iterator[Cell]:
    """A training from every member, or from groups of `size` members that follow each other; of members that make no
    whole number of groups, the last are in none."""
    if size >= len(members):
        return  # no member would be held out
    for name in names:
        for start in range(0, len(members) - size + 1, size):
            yield Cell(zoo, task, CONDITIONS[name], tuple(members[start : start + size]), seed, on)


def terms(zoo: str, members: Sequence[str], tasks: Sequence[str], seed: int) -> Iterator[Cell]:
    """FCA and TSE one by one, and the paper's recipe at its better rate."""
    for task in tasks:
        yield from trainings(zoo, task, members, ("paper_lr10", "paper_fca", "paper_tse"), seed)


def ensembles(zoo: str, members: Sequence[str], tasks: Sequence[str], seed: int) -> Iterator[Cell]:
    """Two and three sources; none of the groups of two shares a frozen tower."""
    for task in tasks:
        for size in (2, 3):
            yield from trainings(zoo, task, members, ("transfer", "paper"), seed, size)


def elsewhere(
    zoo: str, members: Sequence[str], tasks: Sequence[str], seed: int, name: str = "transfer"
) -> Iterator[Cell]:
    """The prompts of the core on related tasks and on corrupted pictures: nothing is trained again."""
    for task in tasks:
        others = [other for other in ("colors", "ink", "water") if other != task]
        for on in [*others, *(corrupted_name(task, corruption) for corruption in CORRUPTIONS)]:
            yield Cell(zoo, on, CONDITIONS["zero"])
            yield from trainings(zoo, task, members, (name,), seed, on=on)


def hundredth(zoo: str, members: Sequence[str], tasks: Sequence[str], seed: int) -> Iterator[Cell]:
    """A hundredth of the data, and the control whose answers are shuffled."""
    for task in tasks:
        yield from trainings(zoo, task, members, ("transfer_1%", "paper_1%", "shuffled"), seed)


def tenth(zoo: str, members: Sequence[str], tasks: Sequence[str], seed: int) -> Iterator[Cell]:
    """A tenth of the data."""
    for task in tasks:
        yield from trainings(zoo, task, members, ("transfer_10%", "paper_10%"), seed)


def variants(zoo: str, members: Sequence[str], tasks: Sequence[str], seed: int) -> Iterator[Cell]:
    """Other ways to train on the same task."""
    for task in tasks:
        yield from trainings(zoo, task, members, ("vp_adam", "transfer_fca", "transfer_tse", "evp"), seed)


def other_tasks(zoo: str, members: Sequence[str], tasks: Sequence[str], seed: int) -> Iterator[Cell]:
    """Digits, where no light is changed, and the borders of the task that is only measured."""
    for task in ("digits", "water"):
        yield from borders(zoo, task, (seed,))
    yield from trainings(zoo, "digits", members, CORE_TRAININGS, seed)


def adapters(zoo: str, members: Sequence[str], tasks: Sequence[str], seed: int) -> Iterator[Cell]:
    """LoRA: what the source alone could reach."""
    for task in tasks:
        yield from trainings(zoo, task, members, ("lora",), seed)


# What the plan "full" adds, the most important first.
PARTS = (
    terms, ensembles, elsewhere, hundredth, tenth, partial(elsewhere, name="paper"), adapters, other_tasks, variants,
)  # fmt: skip
