"""What the Hub makes of a README: whether it takes the metadata, and which tags a repository gets from its files.

The rules are the published ones (hub-docs `modelcard.md`, the Hub's page of licences, its messages as quoted in
huggingface_hub#4218, autotrain-advanced#648 and MDEL#34) that can be checked with no network. An unknown
`pipeline_tag` may be no more than a warning on the Hub; here it is an error, so that no test passes with one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml
from hub_git import Blob, Refusal


LICENSES = [
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1",
    "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "h-research",
    "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0", "odc-by", "odbl", "openmdw-1.0",
    "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr",
    "deepfloyd-if-license", "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "llama4", "grok2-community", "gemma", "unknown", "other",
]  # fmt: skip
PIPELINE_TAGS = [
    "text-classification", "token-classification", "table-question-answering", "question-answering",
    "zero-shot-classification", "translation", "summarization", "feature-extraction", "text-generation", "fill-mask",
    "sentence-similarity", "text-to-speech", "text-to-audio", "automatic-speech-recognition", "audio-to-audio",
    "audio-classification", "audio-text-to-text", "voice-activity-detection", "depth-estimation",
    "image-classification", "object-detection", "image-segmentation", "text-to-image", "image-to-text",
    "image-to-image", "image-to-video", "unconditional-image-generation", "video-classification",
    "reinforcement-learning", "robotics", "tabular-classification", "tabular-regression", "tabular-to-text",
    "table-to-text", "multiple-choice", "text-ranking", "text-retrieval", "time-series-forecasting", "text-to-video",
    "image-text-to-text", "visual-question-answering", "document-question-answering",
    "zero-shot-image-classification", "graph-ml", "mask-generation", "zero-shot-object-detection", "text-to-3d",
    "image-to-3d", "image-feature-extraction", "video-text-to-text", "keypoint-detection",
    "visual-document-retrieval", "any-to-any", "other",
]  # fmt: skip
RELATIONS = ["adapter", "merge", "quantized", "finetune"]
REPO_ID = re.compile(r"(?!.*(--|\.\.))[\w][\w.-]*(/[\w][\w.-]*)?(?<![.-])", re.ASCII)
README_SIZE = 4 << 20
# Types of a model-index entry's values, and which of them must be there.
TASK = {"type!": str, "name": str}
DATASET = {"type!": str, "name!": str, "config": str, "split": str, "revision": str}
METRIC = {"type!": str, "value!": object, "name": str, "config": str, "verified": bool, "verifyToken": str}
WORDS = {str: "a string", bool: "a boolean", dict: "of type object", list: "an array"}


def front_matter(text: str) -> dict[str, Any] | None:
    """The metadata of a README; `None` if it has none."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", text, re.DOTALL)
    if match is None:
        return None
    metadata = yaml.safe_load(match[1])
    return {} if metadata is None else metadata


def problems(text: str) -> tuple[list[str], list[str]]:
    """What the Hub says against a README: errors, for which it refuses it, and warnings."""
    if len(text) > README_SIZE:
        return [f"README.md is too large: {len(text)} characters"], []
    try:
        metadata = front_matter(text)
    except (yaml.YAMLError, RecursionError) as error:
        return [f"YAML metadata is not valid: {error}"], []
    if metadata is None or metadata == {}:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(metadata, dict):
        return ['"value" must be of type object'], []
    return [*_plain(metadata), *_ids(metadata), *_model_index(metadata.get("model-index"))], []


def _strings(metadata: dict[str, Any], key: str, single: bool = True) -> tuple[list[tuple[str, str]], list[str]]:
    value = metadata.get(key)
    if value is None or (single and isinstance(value, str)):
        return ([] if value is None else [(key, value)]), []
    if not isinstance(value, list):
        return [], [f'"{key}" must be an array']
    named = [(f"{key}[{number}]", item) for number, item in enumerate(value)]
    wrong = [f'"{name}" must be a string' for name, item in named if not isinstance(item, str)]
    return [pair for pair in named if isinstance(pair[1], str)], wrong


def _plain(metadata: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for key in ("library_name", "license_name", "license_link", "thumbnail", "pipeline_tag", "base_model_relation"):
        if not isinstance(metadata.get(key), str | None):
            found.append(f'"{key}" must be a string')
    for key in ("tags", "metrics"):
        found += _strings(metadata, key, single=False)[1]
    for key, known in (("license", LICENSES), ("pipeline_tag", PIPELINE_TAGS), ("base_model_relation", RELATIONS)):
        values, wrong = _strings(metadata, key)
        found += wrong if key == "license" else []
        found += [f'"{name}" must be one of [{", ".join(known)}]' for name, value in values if value not in known]
    languages, wrong = _strings(metadata, "language")
    codes = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")
    found += wrong
    found += [
        f'"{name}" with value "{value}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code, or "code" or '
        '"multilingual".'
        for name, value in languages
        if not codes.fullmatch(value)
    ]
    return found


def _ids(metadata: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for key, hint in (
        ("base_model", "Use a model id from https://hf.co/models."),
        ("datasets", "If possible, use a dataset id from https://hf.co/datasets."),
    ):
        values, wrong = _strings(metadata, key)
        found += wrong
        found += [
            f'"{name}" with value "{value}" is not valid. {hint}'
            for name, value in values
            if len(value) > 96 or not REPO_ID.fullmatch(value)
        ]
    return found


def _shaped(value: Any, name: str, schema: Mapping[str, type]) -> list[str]:
    if not isinstance(value, dict):
        return [f'"{name}" is required' if value is None else f'"{name}" must be of type object']
    found = []
    for field, kind in schema.items():
        key = field.rstrip("!")
        if value.get(key) is None:
            found += [f'"{name}.{key}" is required'] if field.endswith("!") else []
        elif not isinstance(value[key], kind):
            found.append(f'"{name}.{key}" must be {WORDS[kind]}')
    return found


def _model_index(index: Any) -> list[str]:
    if index is None:
        return []
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    found: list[str] = []
    for i, model in enumerate(index):
        name = f"model-index[{i}]"
        found += _shaped(model, name, {"name!": str, "results!": list})
        results = model.get("results") if isinstance(model, dict) else None
        for j, result in enumerate(results if isinstance(results, list) else []):
            found += _result(result, f"{name}.results[{j}]")
    return found


def _result(result: Any, name: str) -> list[str]:
    if not isinstance(result, dict):
        return [f'"{name}" must be of type object']
    found = _shaped(result.get("task"), f"{name}.task", TASK)
    found += _shaped(result.get("dataset"), f"{name}.dataset", DATASET)
    dataset = result.get("dataset")
    kind = dataset.get("type") if isinstance(dataset, dict) else None
    if isinstance(kind, str) and not REPO_ID.fullmatch(kind):
        found.append(f'"{name}.dataset.type" with value "{kind}" is not valid. Use a dataset id.')
    metrics = result.get("metrics")
    if not isinstance(metrics, list):
        return [*found, f'"{name}.metrics" is required' if metrics is None else f'"{name}.metrics" must be an array']
    for number, metric in enumerate(metrics):
        found += _shaped(metric, f"{name}.metrics[{number}]", METRIC)
    if result.get("source") is not None:
        found += _shaped(result["source"], f"{name}.source", {"url!": str, "name": str})
    return found


def check(text: str) -> None:
    """Refuses a README whose metadata the Hub would not take."""
    errors, _ = problems(text)
    if errors:
        raise Refusal(400, "\n".join(errors))


def card_data(files: Mapping[str, Blob]) -> dict[str, Any]:
    """The metadata of a repository's README; nothing if there is none, or none that can be read."""
    readme = files.get("README.md")
    if readme is None or len(readme.data) > README_SIZE:
        return {}
    try:
        metadata = front_matter(readme.data.decode(errors="replace"))
    except yaml.YAMLError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def model_type(files: Mapping[str, Blob]) -> str | None:
    """The `model_type` of a repository's config.json."""
    if "config.json" not in files or len(files["config.json"].data) > README_SIZE:
        return None
    try:
        config = json.loads(files["config.json"].data)
    except (ValueError, RecursionError):
        return None
    kind = config.get("model_type") if isinstance(config, dict) else None
    return kind if isinstance(kind, str) else None


def tags(files: Mapping[str, Blob]) -> list[str]:
    """The tags of a repository, which searches filter by: from its README's metadata and its files."""
    data = card_data(files)

    def listed(key: str) -> list[str]:
        return [value for _, value in _strings(data, key)[0]]

    relation = data.get("base_model_relation") or "finetune"
    found = [*listed("library_name"), *(["safetensors"] if any(p.endswith(".safetensors") for p in files) else [])]
    found += [kind] if (kind := model_type(files)) else []
    found += [*listed("tags"), *listed("pipeline_tag"), *listed("language")]
    found += ["model-index"] if data.get("model-index") else []
    found += [f"dataset:{name}" for name in listed("datasets")]
    found += [f"base_model:{name}" for name in listed("base_model")]
    found += [f"base_model:{relation}:{name}" for name in listed("base_model")]
    found += [f"license:{name}" for name in listed("license")]
    return list(dict.fromkeys([*found, "region:us"]))
