"""The run behind `transferable-vp evaluate`: models one after another, answers kept on disk."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .cache import AnswerCache, fingerprint
from .data import Task, load_data
from .endpoints import OPTIONS, Endpoint
from .evaluation import By
from .modeling import TransferableVisualPrompt
from .surrogate import Surrogate, model_name
from .tasks import get_task
from .transfer import transfer_report


def measure(
    args: argparse.Namespace, device: torch.device | str, shard: tuple[int, int] = (0, 1), progress: bool = True
) -> dict[str, Any]:
    """The report of `transferable-vp evaluate`, whose arguments these are; one model in memory at a time."""
    if not args.model and not args.api_model:
        raise ValueError("There is no model to measure: give `--model`, or `--api_base` with `--api_model`.")
    if bool(args.api_model) != bool(args.api_base):
        raise ValueError("A model behind an API needs both `--api_base` and `--api_model`.")
    names = [model_name(path) for path in args.model]
    if unknown := [name for name in args.source if name not in names]:
        raise ValueError(
            f"`--source` has {', '.join(unknown)}, but the models are {', '.join(names) or 'all behind an API'}: name those "
            "of them that the prompt was learned on."
        )
    prompt = TransferableVisualPrompt.from_pretrained(args.prompt)
    dataset, task, metric, title = _read_task(args)
    loaders: list[Callable[[], Surrogate | Endpoint]] = [
        partial(_load_surrogate, path, args.dtype, args.device or device) for path in args.model
    ]
    loaders += [partial(_load_endpoint, name, args) for name in args.api_model]
    settings = {name: getattr(args, name) for name in ("prompt", "dataset", "split", "model", "api_base", "api_model",
                                                       "dtype", "by", "length", "max_new_tokens")}  # fmt: skip
    if args.task is not None and args.dataset is None:
        # What a card names as the dataset.
        settings["dataset"] = get_task(args.task).dataset
    report: dict[str, Any] = {}
    for load in loaders:
        model = load()
        by: By = args.by or ("rank" if isinstance(model, Surrogate) and task.candidates is not None else "generate")
        cache = None if args.no_cache else partial(_open_cache, args, by, shard[0])
        part = transfer_report(
            [model], dataset, task, [prompt], source=args.source, title=title, settings=settings,
            batch_size=args.batch_size, skip_bad_images=args.skip_bad_images, metric=metric, by=by, length=args.length,
            max_new_tokens=args.max_new_tokens, cache=cache, shard=shard, progress=progress and shard[0] == 0,
        )  # fmt: skip
        report = {**part, "targets": [*report.get("targets", []), *part.get("targets", [])]}
    return report


def _read_task(args: argparse.Namespace) -> tuple[Any, Task, str, str]:
    """Rows, how to read them, the metric and the title."""
    columns = ("image_column", "answer_column", "question_column", "question", "candidates")
    given = {name: value for name in columns if (value := getattr(args, name)) is not None}
    if args.task is None:
        if args.dataset is None:
            raise ValueError("There is nothing to measure on: give `--dataset`, or `--task`.")
        dataset = load_data(args.dataset, args.split, args.dataset_name)
        task = Task.infer(dataset, **given)
        if task.candidates is None and args.by != "generate":
            raise ValueError(
                "There are no answers to choose from: the dataset has no class labels, so give `--candidates`, or let "
                "models write with `--by generate`."
            )
        title = args.title or f"{args.dataset} ({args.split})"
        return dataset, task, args.metric or "candidate_accuracy", title
    paper = get_task(args.task)
    if args.dataset_name is not None:
        raise ValueError("`--dataset_name` goes with `--dataset`; a task knows the configuration of its own.")
    if "question" in given and paper.task.question_column is not None:
        raise ValueError(f"The task {args.task} has a question for every image: leave out `--question`.")
    dataset = paper.load(args.split, path=args.dataset)
    return dataset, replace(paper.task, **given), args.metric or paper.metric, args.title or paper.title


def _load_surrogate(path: str, dtype: str, device: torch.device | str) -> Surrogate:
    surrogate = Surrogate.from_pretrained(path, dtype=dtype)
    # A quantised checkpoint is where it belongs already, and may refuse to be moved.
    return surrogate if getattr(surrogate.model, "is_quantized", False) else surrogate.to(device)


def _load_endpoint(name: str, args: argparse.Namespace) -> Endpoint:
    body = None if args.api_extra_body is None else json.loads(args.api_extra_body)
    return Endpoint(name, args.api_base, api_key_env=args.api_key_env, max_concurrency=args.api_concurrency,
                    timeout=args.api_timeout, max_tokens=args.max_new_tokens, extra_body=body,
                    # A model may be measured here as well.
                    name=f"{name.rstrip('/').rsplit('/', 1)[-1]} (API)")  # fmt: skip


def _open_cache(args: argparse.Namespace, by: By, process: int, model: Surrogate | Endpoint) -> AnswerCache:
    name = fingerprint(model) if isinstance(model, Surrogate) else json.dumps(model.settings, sort_keys=True)
    settings = {"by": by, "wording": OPTIONS, "length": args.length, "max_new_tokens": args.max_new_tokens,
                "transformers": version("transformers"), "transferable_vp": version("transferable-vp")}  # fmt: skip
    return AnswerCache(Path(args.output_dir) / "answers", name, settings, process)
