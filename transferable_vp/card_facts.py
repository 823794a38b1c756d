"""What a training run knows of its prompt: the facts that a card is made of."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants

from .card_sections import is_hub_id, public_name
from .configuration import TransferableVisualPromptConfig
from .training_args import RECIPES


if TYPE_CHECKING:
    from .trainer import TransferableVisualPromptTrainer

# Arguments that say where, with what or how loudly a run was made, not what was learned.
NOT_OF_THE_RECIPE = (
    "output_dir", "hub_", "push_to_hub", "report_to", "run_name", "project", "trackio_", "log", "disable_tqdm", "save_",
    "dataloader_", "ddp_", "fsdp", "deepspeed", "local_rank", "use_cpu", "accelerator_config", "parallelism_config",
    "resume_from_checkpoint", "do_", "debug", "skip_memory_metrics", "include_", "remove_unused_columns",
)  # fmt: skip
# Said by the recipe.
IN_THE_RECIPE = ("task_weight", "fca_weight", "tse_weight", "update_rule", "learning_rate", "block_size", "seed")
# Where `datasets` (5.2) keeps what it made of files of the Hub: OWNER___NAME/CONFIG/VERSION/COMMIT. Its `info` has no
# revision; only older versions have checksums there, under the files' addresses.
CACHED = re.compile(r"/[^/]+/[^/]+/[^/]+/(?P<commit>[0-9a-f]{40})/[^/]+\.arrow$")
ADDRESS = re.compile(r"hf://datasets/(?P<id>[^@]+)@(?P<commit>[^/]+)/")


@dataclass
class CardFacts:
    r"""
    What a run knows of its prompt; all that a card is made of.

    Args:
        config ([`TransferableVisualPromptConfig`]): The geometry.
        task (`dict`, *optional*): `question` (`None`: one per image), `candidates` and `caption`.
        sources (`list[dict]`): Models it was learned on: `id` (a Hub id, or a name), `is_hub`, `revision`, `model_type`.
        datasets (`list[dict]`): What it was learned from: `id` (as above), `is_hub`, `config`, `split`, `revision`.
        recipe (`dict`): Weights, update rule, learning rate, block size, batch, steps, seed.
        changed (`dict`): Training arguments that differ from the defaults. No paths, names of the Hub or secrets.
        loss_curve (`list[dict]`): `step`, `loss` and, where they were logged, its terms.
        validation (`dict`): What was last measured during training, by model.
        metric (`str`, *optional*, defaults to `"accuracy"`): What that is: `"accuracy"` (0..1) or `"loss"`.
        versions (`dict`): Versions of packages.
        license (`str`, *optional*): An identifier of the Hub's list, as `apache-2.0`.
        reports (`list[dict]`): Transfer reports, see `transferable_vp.report`.
    """

    config: TransferableVisualPromptConfig = field(default_factory=TransferableVisualPromptConfig)
    task: dict[str, Any] | None = None
    sources: list[dict[str, Any]] = field(default_factory=list)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, Any] = field(default_factory=dict)
    loss_curve: list[dict[str, float]] = field(default_factory=list)
    validation: dict[str, float] = field(default_factory=dict)
    metric: str = "accuracy"
    versions: dict[str, str] = field(default_factory=dict)
    license: str | None = None
    reports: list[dict[str, Any]] = field(default_factory=list)

    @property
    def known(self) -> bool:
        """`bool`: Whether anything is known of how the prompt was made."""
        return bool(self.task or self.sources or self.recipe)


def facts_of_trainer(
    trainer: TransferableVisualPromptTrainer,
    datasets: str | Sequence[str | Mapping[str, Any]] = (),
    license: str | None = None,
) -> CardFacts:
    r"""
    What a trainer knows of its prompt.

    Args:
        trainer ([`TransferableVisualPromptTrainer`]): At any time; a card says how many steps were made.
        datasets (`str` or a sequence of `str` and `dict`, *optional*):
            What it learns from: Hub ids, paths, or `{"id": ..., "config": ..., "split": ..., "revision": ...}`. What
            they leave out is taken from the training dataset where it is of that name. Without them the training
            dataset says what it knows, which is nothing for lists and for datasets made in memory.
        license (`str`, *optional*): An identifier of the Hub's list.

    Returns:
        [`CardFacts`]: Without paths: a local model or dataset goes by the last part of its path.
    """
    from . import __version__

    args, state, task = trainer.args, trainer.state, trainer.task
    found = _training_data(trainer.train_dataset)
    given = [datasets] if isinstance(datasets, str) else list(datasets)
    metric = "accuracy" if task.candidates is not None else "loss"
    weights = {objective.name: objective.weight for objective in trainer.objectives}
    weights = {"task": args.task_weight, "fca": args.fca_weight, "tse": args.tse_weight} | weights
    return CardFacts(
        config=trainer.model.config,
        task={
            "question": None if task.question_column else task.question,
            "candidates": None if task.candidates is None else [str(name) for name in task.candidates],
            "caption": task.caption,
        },
        sources=[_source(surrogate) for surrogate in trainer.surrogates],
        datasets=[_dataset(item, found) for item in given] if given else [found] if found else [],
        recipe={
            "weights": ", ".join(f"{name} {value:g}" for name, value in weights.items()),
            "update rule": args.update_rule,
            "learning rate": args.learning_rate,
            "block size": args.block_size,
            "batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "steps": state.global_step,
            "epochs": round(state.epoch or 0, 2),
            "seed": args.seed,
        },
        changed=_changed(args),
        loss_curve=_loss_curve(state.log_history),
        validation=_validation(trainer, metric),
        metric=metric,
        versions={"transferable_vp": __version__} | {name: version(name) for name in ("torch", "transformers")},
        license=license,
    )


def _source(surrogate: Any) -> dict[str, Any]:
    path = str(getattr(surrogate.config, "_name_or_path", "") or "")
    is_hub = is_hub_id(path)
    return {
        "id": path if is_hub else public_name(surrogate.name),
        "is_hub": is_hub,
        "revision": getattr(surrogate.config, "_commit_hash", None) if is_hub else None,
        "model_type": getattr(surrogate.config, "model_type", None),
    }


def _training_data(dataset: Any) -> dict[str, Any] | None:
    info = getattr(dataset, "info", None)
    if info is None or not info.dataset_name:
        return None
    split = getattr(dataset, "split", None)
    found = {"id": public_name(info.dataset_name), "is_hub": False, "config": None,
             "split": None if split is None else str(split), "revision": None}  # fmt: skip
    for url in info.download_checksums or ():
        if match := ADDRESS.match(url):
            found |= {"id": match["id"], "is_hub": True}
            return found | {"config": info.config_name, "revision": match["commit"]}
    for file in getattr(dataset, "cache_files", ()):
        if match := CACHED.search(Path(file["filename"]).as_posix()):
            found |= {"config": info.config_name, "revision": match["commit"]}
            # The cache of `datasets` writes names in lower case; that of the Hub has them as they are.
            folders = list(Path(constants.HF_HUB_CACHE).glob(f"datasets--*--*/snapshots/{match['commit']}"))
            if len(folders) == 1:
                found |= {"id": "/".join(folders[0].parent.parent.name.split("--")[1:]), "is_hub": True}
            return found
    return found


def _dataset(item: str | Mapping[str, Any], found: dict[str, Any] | None) -> dict[str, Any]:
    given: dict[str, Any] = {"id": item} if isinstance(item, str) else {k: v for k, v in item.items() if v is not None}
    path = str(given["id"])
    given |= {"id": public_name(path), "is_hub": is_hub_id(path)}

    def bare(name: str) -> str:
        return name.rsplit("/", 1)[-1].replace("_", "").lower()

    known = found if found is not None and bare(found["id"]) == bare(given["id"]) else {}
    if known and known["is_hub"]:
        # The files say where they came from, whatever they were asked for by.
        given |= {"id": known["id"], "is_hub": True}
    return {"config": None, "split": None, "revision": None, **known, **given}


def _changed(args: Any) -> dict[str, Any]:
    """Training arguments that differ from the defaults; only values that cannot be a path or a secret."""
    changed = {}
    for argument in dataclasses.fields(args):
        name, default = argument.name, argument.default
        if name.startswith(NOT_OF_THE_RECIPE) or name in IN_THE_RECIPE or "token" in name:
            continue
        if argument.default_factory is not dataclasses.MISSING:
            default = argument.default_factory()
        # What the recipe sets has no default of its own.
        default = RECIPES["transfer"].get(name, default)
        value, default = (v.value if isinstance(v, Enum) else v for v in (getattr(args, name), default))
        if value != default and (default is not None or value is not False) and _is_harmless(value):
            changed[name] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return changed


def _is_harmless(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_harmless(key) and _is_harmless(v) for key, v in value.items())
    if isinstance(value, list | tuple):
        return all(_is_harmless(v) for v in value)
    if isinstance(value, str):
        return re.fullmatch(r"[\w.,=+ -]{0,80}", value) is not None and not value.startswith("hf_")
    return value is None or isinstance(value, bool | int | float)


def _loss_curve(history: Sequence[Mapping[str, Any]], most: int = 10) -> list[dict[str, float]]:
    """At most `most` entries about training steps, evenly spaced, the first and the last among them."""
    entries = {}
    for entry in history:
        terms = {k: v for k, v in entry.items() if k == "loss" or (k.endswith("_loss") and not k.startswith("eval_"))}
        if "loss" in terms and "step" in entry:
            # A resumed run logs some steps again.
            entries[entry["step"]] = {"step": entry["step"], **terms}
    rows = [entries[step] for step in sorted(entries)]
    last = len(rows) - 1
    return rows if last < most else [rows[round(i * last / (most - 1))] for i in range(most)]


def _validation(trainer: TransferableVisualPromptTrainer, metric: str) -> dict[str, float]:
    # The latest of every model: with several validation sets each has an entry of its own in the history.
    sets = list(trainer.eval_dataset) if isinstance(trainer.eval_dataset, dict) else []
    means = {f"eval_{metric}", *(f"eval_{name}_{metric}" for name in sets)}
    latest = {k: v for entry in trainer.state.log_history for k, v in entry.items() if k not in means}
    ends = ("eval_", f"_{metric}")
    return {
        public_name(k.removeprefix(ends[0]).removesuffix(ends[1])): v
        for k, v in latest.items()
        if k.startswith(ends[0]) and k.endswith(ends[1])
    }
