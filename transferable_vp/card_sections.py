"""The parts of a card that are updated one by one: sections between markers, metadata, tables of transfer reports."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import eval_results_to_model_index
from huggingface_hub.utils import validate_repo_id, yaml_dump

from .report import CONDITIONS, cells, check_report, ordered_targets, quantity, role, verdict


PIPELINE_TAG = "image-text-to-text"
# Of the model-index, which wants a name; the Hub shows the repository's.
MODEL_NAME = "transferable visual prompt"
UNITED = ("tags", "base_model", "datasets")
MARKER = re.compile(
    r"^<!-- transferable_vp:(?:begin (?P<begin>[a-z]+) (?P<sum>[0-9a-f]{8})|end (?P<end>[a-z]+)) -->$", re.MULTILINE
)
BLANKS = re.compile(r"\n{3,}")
DATA = re.compile(r"^<!-- transferable_vp:data (.*) -->$", re.MULTILINE)
# A path that nobody would mistake for words: it starts at a root, a home, a drive or a dot.
PATH = re.compile(r"(?<![\w/\\:.<])(?:~|\.{1,2}|[A-Za-z]:)?[\\/][^\s,;()\"'`]+")
# What Markdown may read something into; an underscore within a word is one.
SPECIAL = re.compile(r"[\\`*{}\[\]<>()#+!|~$&@^:]|(?<![^\W_])_|_(?![^\W_])")
NOT_IN_CODE = re.compile(r"[`|<>\\]|^$")


# Names and texts of others


def printable(text: Any) -> str:
    """One line without control characters and the like (a newline breaks a table, a bidi mark turns it round)."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def plain(text: Any) -> str:
    """Any text, as Markdown that shows it letter by letter."""
    return SPECIAL.sub(lambda found: f"&#{ord(found[0])};", printable(text))


def code(text: Any) -> str:
    """A name in code type, or as plain text where code type cannot hold it."""
    name = printable(text)
    return plain(name) if NOT_IN_CODE.search(name) else f"`{name}`"


def literal(text: Any) -> str:
    """A Python literal of a text, in which no marker can stand."""
    quoted = json.dumps(str(text), ensure_ascii=False)
    return "".join(c if c.isprintable() and c not in "<`" else f"\\U{ord(c):08x}" for c in quoted)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a Hub id (`owner/name`) and is no path here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not Path(name).exists()


def public_name(name: str) -> str:
    """A Hub id as it is, and of everything else the last part: where a file lies on one machine is no one's business."""
    name = printable(name)
    return name if is_hub_id(name) else re.split(r"[\\/]", name.rstrip("\\/"))[-1] or "model"


def without_paths(text: str) -> str:
    """A text in which every path is but its last part."""
    return PATH.sub(lambda found: public_name(found[0]), printable(text).replace(str(Path.home()), "~"))


# Sections


@dataclass
class Section:
    """A section between its markers.

    Args:
        name (`str`): Lower-case letters.
        body (`str`): What lies between the markers, ending with a newline.
        sum (`str`): Checksum that its begin marker has.
    """

    name: str
    body: str
    sum: str

    @property
    def edited(self) -> bool:
        """`bool`: Whether somebody has changed it since it was generated."""
        return checksum(self.body) != self.sum

    def __str__(self) -> str:
        return f"<!-- transferable_vp:begin {self.name} {self.sum} -->\n{self.body}<!-- transferable_vp:end {self.name} -->"


def checksum(body: str) -> str:
    """Eight digits of the SHA-256 of a section's text; spaces at the ends of lines do not count."""
    lines = "\n".join(line.rstrip() for line in body.strip().splitlines())
    return hashlib.sha256(lines.encode()).hexdigest()[:8]


def generated(name: str, body: str) -> Section:
    """A section as it is first written."""
    # Whatever a template left out has left blank lines behind.
    body = BLANKS.sub("\n\n", f"{body.strip()}\n\n")
    return Section(name, body, checksum(body))


def split_card(text: str) -> list[str | Section]:
    """A card as the user's texts and the managed sections, in order; metadata is part of the first text."""
    parts: list[str | Section] = []
    end = 0
    markers = list(MARKER.finditer(text))
    for first, last in pairwise(markers):
        # A begin without its end, or with another section within, is none of ours.
        if first["begin"] and first["begin"] == last["end"]:
            body = text[first.end() + 1 : last.start()]
            parts += [text[end : first.start()], Section(first["begin"], body, first["sum"])]
            end = last.end()
    return [*parts, text[end:]]


def sections_of(parts: Sequence[str | Section]) -> dict[str, Section]:
    """The managed sections by name."""
    return {part.name: part for part in parts if isinstance(part, Section)}


# Metadata


def read_metadata(text: str) -> dict[str, Any]:
    """The metadata of a card, `{}` if it has none.

    Raises:
        ValueError: If the metadata is no YAML mapping.
    """
    match = REGEX_YAML_BLOCK.search(text)
    try:
        data = yaml.safe_load(match[2]) if match else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"The metadata at the top of README.md is not YAML ({printable(error)}): mend it.") from error
    if not isinstance(data, dict | None):
        raise ValueError(f"The metadata at the top of README.md is a {type(data).__name__}; expected `key: value`.")
    return data or {}


def without_metadata(text: str) -> str:
    """The card below its metadata."""
    match = REGEX_YAML_BLOCK.search(text)
    return text[match.end() :] if match else text


def replace_metadata(text: str, data: dict[str, Any]) -> str:
    """The card with other metadata. Keys whose value does not change keep their lines, comments included."""
    match = REGEX_YAML_BLOCK.search(text)
    if match is None:
        return f"---\n{yaml_dump(data, sort_keys=False)}---\n\n{text}" if data else text
    old, block = read_metadata(text), match[2]
    for key in [*(key for key in old if key not in data), *data]:
        if key in old and key in data and old[key] == data[key]:
            continue
        new = yaml_dump({key: data[key]}, sort_keys=False).rstrip("\n") if key in data else ""
        lines = re.compile(rf"^{re.escape(str(key))}:.*(?:\n[ \t-].*)*", re.MULTILINE)
        block, found = lines.subn(lambda _, new=new: new, block, count=1)
        block = block if found else f"{block}\n{new}".lstrip("\n")
    try:
        changed = yaml.safe_load(block)
    except yaml.YAMLError:
        changed = None
    if changed != data:
        # A way of writing YAML that is not read line by line.
        block = yaml_dump(data, sort_keys=False).rstrip("\n")
    return text[: match.start(2)] + block + text[match.end(2) :]


def merge_metadata(ours: dict[str, Any], theirs: dict[str, Any], weights: str | None) -> dict[str, Any]:
    """What they have wins; lists of ids and tags are united, results are replaced one by one."""
    merged = dict(theirs)
    for key, value in ours.items():
        there = theirs.get(key)
        if key in UNITED and isinstance(there, str | list) and value:
            listed = [there] if isinstance(there, str) else there
            new = [item for item in value if item not in listed]
            merged[key] = [*listed, *new] if new else there
        elif key != "model-index" and there is None:
            merged[key] = value
    results = [result for model in ours.get("model-index") or () for result in model["results"]]
    index = _merge_index(theirs.get("model-index"), results, weights)
    return {**merged, "model-index": index} if index else {k: v for k, v in merged.items() if k != "model-index"}


def _merge_index(there: Any, results: list[dict[str, Any]], weights: str | None) -> Any:
    if there is not None and not _is_index(there):
        # Not ours to mend: the Hub says what is wrong with it.
        return there
    new = {_entry_key(result, metric) for result in results for metric in result["metrics"]}
    models = []
    for model in there or ():
        kept = []
        for result in model["results"]:
            metrics = [
                metric
                for metric in result["metrics"]
                if _entry_key(result, metric) not in new and same_weights(_args(metric).get("weights"), weights)
            ]
            if metrics or not result["metrics"]:
                kept.append({**result, "metrics": metrics})
        if kept or not model["results"]:
            models.append({**model, "results": kept})
    if results and not models:
        models = [{"name": MODEL_NAME, "results": []}]
    for result in results:
        # One entry for a task and a dataset: a second would be lost on the way through `ModelCardData`.
        same = next((r for r in models[0]["results"] if _place(r) == _place(result)), None)
        if same is None:
            models[0]["results"].append(dict(result))
        else:
            same["metrics"] = [*same["metrics"], *result["metrics"]]
    return models


def _is_index(index: Any) -> bool:
    return isinstance(index, list) and all(
        isinstance(model, dict)
        and isinstance(model.get("results"), list)
        and all(
            isinstance(result, dict)
            and isinstance(result.get("task"), dict)
            and isinstance(result.get("dataset"), dict)
            and isinstance(result.get("metrics"), list)
            and all(isinstance(metric, dict) for metric in result["metrics"])
            for result in model["results"]
        )
        for model in index
    )


def _args(metric: dict[str, Any]) -> dict[str, Any]:
    args = metric.get("args")
    return args if isinstance(args, dict) and "zero_border" in args else {}


def _entry_key(result: dict[str, Any], metric: dict[str, Any]) -> str | None:
    """Of an entry of ours: the model, the task, the dataset and the metric."""
    args = _args(metric)
    words = [args.get("model"), args.get("task"), result["dataset"].get("type"), args.get("metric")]
    return json.dumps(words, default=str) if args else None


def _place(result: dict[str, Any]) -> list[Any]:
    # `EvalResult.unique_identifier`
    dataset = result["dataset"]
    return [result["task"].get("type"), *(dataset.get(key) for key in ("type", "config", "split", "revision"))]


# Transfer reports


def same_weights(one: Any, other: Any) -> bool:
    """Whether two results may be of the same prompt: what is not known counts as the same."""
    return one is None or other is None or one == other


def card_report(report: Mapping[str, Any], weights: str | None = None) -> dict[str, Any]:
    """What a card keeps of a transfer report: a report again, whose settings are no more than the dataset, and whose
    rows also know seeds, how answers were read, and the weights that were measured.

    Raises:
        ValueError: If it is not a transfer report.
    """
    try:
        check_report(report)
        return _card_report(report, weights)
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"This is not a transfer report: {error!r}.") from error


def _card_report(report: Mapping[str, Any], weights: str | None) -> dict[str, Any]:
    settings = report["settings"] or {}
    title, dataset, split = str(report["task"]), str(settings.get("dataset") or ""), settings.get("split")
    if dataset and not is_hub_id(dataset):
        title, dataset = title.replace(dataset, public_name(dataset)), ""
    ids = [name for name in settings.get("model") or () if is_hub_id(str(name))]
    names = [name.rsplit("/", 1)[-1] for name in ids]
    full = {name: whole for name, whole in zip(names, ids, strict=True) if names.count(name) == 1}
    targets: dict[str, dict[str, Any]] = {}
    for target in report["targets"]:
        name = public_name(full.get(str(target["model"]), str(target["model"])))
        count = sum(known == name or known.startswith(f"{name} (") for known in targets)
        # Two checkpoints of one name.
        name = f"{name} ({count + 1})" if name in targets else name
        numbers = {key: round(float(target[key]), 6) for key in CONDITIONS if target.get(key) is not None}
        targets[name] = {
            "model": name,
            "family": printable(target["family"]),
            "is_source": bool(target["is_source"]),
            "n": int(target["n"]),
            **numbers,
            "delta": round(float(target["delta"]), 6),
            "delta_ci95": [round(float(end), 6) for end in target["delta_ci95"]],
            "by": target.get("by") if target.get("by") in ("rank", "generate") else None,
            "seeds": [int(seed) for seed in target.get("seeds", report["seeds"])],
            "weights": printable(target["weights"]) if target.get("weights") else weights,
        }
    return {
        "source": " + ".join(public_name(full.get(s, s)) for s in str(report["source"]).split(" + ") if s),
        "task": without_paths(title),
        "metric": printable(report.get("metric") or "candidate_accuracy"),
        "seeds": [],
        "settings": {"dataset": dataset or None, "split": printable(split) if dataset and split else None},
        "targets": list(targets.values()),
    }


def add_rows(reports: Sequence[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Reports of a card and one more. The rows of the same models on the same task, source and metric are replaced."""
    key = ("task", "source", "metric")
    for index, old in enumerate(reports):
        if all(old[k] == new[k] for k in key):
            rows = {target["model"]: target for target in [*old["targets"], *new["targets"]]}
            return [*reports[:index], {**new, "targets": list(rows.values())}, *reports[index + 1 :]]
    return [*reports, new]


def read_transfer(body: str) -> tuple[list[dict[str, Any]], str | None]:
    """The reports of a card's section and the weights it is about, from the data that the section carries.

    Raises:
        ValueError: If there is no such data, or it is damaged.
    """
    match = DATA.search(body)
    try:
        data = json.loads(match[1]) if match else {}
        return [card_report(report) for report in data["reports"]], data["weights"] and printable(data["weights"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"The section `transfer` of README.md carries no data that can be read: {error!r}."
        ) from error


def transfer_section(reports: Sequence[dict[str, Any]], weights: str | None) -> Section:
    """The section of all transfer tables."""
    lines = ["## Transfer", ""]
    if not reports:
        lines += [
            "Nothing was measured, so nothing is known of what this prompt does to any model. `transferable-vp evaluate` "
            "makes a report, `transferable-vp card` adds it here."
        ]
    for report in reports:
        lines += [*_table(report, weights), ""]
    data = json.dumps({"weights": weights, "reports": list(reports)}, separators=(",", ":"))
    # Nothing in the data may end the comment that it stands in.
    data = data.replace("--", "-\\u002d")
    return generated("transfer", "\n".join([*lines, "", f"<!-- transferable_vp:data {data} -->"]))


def _table(report: dict[str, Any], weights: str | None) -> list[str]:
    headers = ["model", "role", "n", *CONDITIONS.values(), "Δ [95 % CI]", "answers", "seeds", "weights"]
    headers[headers.index("prompt")] = "prompted"
    current = [target for target in report["targets"] if same_weights(target["weights"], weights)]
    rows = []
    for target in ordered_targets(report):
        row = cells(target)
        rows.append([
            code(row[0]), *row[1:-2], f"{row[-2]} {row[-1]}",
            {"rank": "ranked", "generate": "written"}.get(target["by"], "–"),
            ", ".join(map(str, target["seeds"])) or "–",
            "these" if same_weights(target["weights"], weights) else f"earlier ({code(target['weights'])})",
        ])  # fmt: skip
    shown = [i for i, name in enumerate(headers) if name not in ("full image", "random border", "VP", "answers", "seeds",
             "weights") or any(row[i] not in ("–", "these") for row in rows)]  # fmt: skip
    table = [
        "| " + " | ".join(row[i] for i in shown) + " |"
        for row in (headers, ["---" if i < 2 else "---:" for i in range(len(headers))], *rows)
    ]
    names = [headers[i] for i in shown]
    what = quantity(report)
    source = " + ".join(code(name) for name in report["source"].split(" + ") if name)
    notes = [
        f"Source: {source}." if source else "No source was named, so every model counts as held-out.",
        f"{what[0].upper()}{what[1:]} ({code(report['metric'])}) in %, mean over the seeds of training.",
        "*Zero border*: the image shrunk into a black frame. *Prompted*: with this prompt.",
        "Δ: prompted − zero border, in points, with a 95 % interval (paired bootstrap over the images).",
        *(["*Full image*: the model's own processing."] if "full image" in names else []),
        *(["*Random border*: noise in its place."] if "random border" in names else []),
        *(["*VP*: a plain visual prompt, learned with the task loss, pixel by pixel."] if "VP" in names else []),
        *(["*Ranked*: the likeliest candidate; *written*: the model's words."] if "answers" in names else []),
        *(["*Earlier*: measured on an earlier version of this prompt."] if "weights" in names else []),
    ]
    summary = verdict({**report, "targets": current}) if current else "no row is of the present weights"
    return [f"### {plain(report['task'])}", "", *notes, "", *table, "", f"{summary[0].upper()}{summary[1:]}."]


def results_of(reports: Sequence[dict[str, Any]], weights: str | None) -> list[dict[str, Any]]:
    """The model-index of reports: one entry per target and task.

    A value is the metric with the prompt, in percent, rounded to 2 decimals, AUROC included; so are all others under
    `args`, where differences are in points. The target stands in the name and in `args`, which survive when the Hub's
    client puts all results on one dataset together.
    """
    results = []
    for report in reports:
        what, settings = quantity(report), report["settings"]
        slug = re.sub(r"[^a-z0-9]+", "-", report["task"].lower())[:80].strip("-") or "custom"
        for target in report["targets"]:
            if not same_weights(target["weights"], weights):
                continue
            numbers = {key: round(100 * target[key], 2) for key in CONDITIONS if key in target and key != "tvp"}
            args = {
                "model": target["model"], "role": role(target), "source": report["source"], "task": report["task"],
                "metric": report["metric"], "n": target["n"], **numbers, "delta": round(100 * target["delta"], 2),
                "delta_ci95": [round(100 * end, 2) for end in target["delta_ci95"]], "by": target["by"],
                "seeds": target["seeds"], "weights": target["weights"],
            }  # fmt: skip
            results.append(
                EvalResult(
                    task_type=PIPELINE_TAG,
                    task_name=report["task"],
                    dataset_type=settings["dataset"] or slug,
                    dataset_name=report["task"],
                    dataset_split=settings["split"],
                    metric_type="roc_auc" if what == "AUROC" else "accuracy",
                    metric_name=f"{what} in %, {target['model']} ({role(target)}) with the prompt",
                    metric_value=round(100 * target["tvp"], 2),
                    metric_args=args,
                )
            )
    return eval_results_to_model_index(MODEL_NAME, results) if results else []
