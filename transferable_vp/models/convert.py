"""Published checkpoints read without being loaded, their keys renamed one by one, and written as a folder for the Hub."""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin


Weights = dict[str, torch.Tensor]

# What a model folder names its weights, those that need no unpickling first.
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
# What trainers put the weights under: LAVIS and its children, Lightning, SwissArmyTransformer.
NESTED = ("model", "state_dict", "module")
# What a key gives away, from the rarest to the commonest, and what a file with such a key is.
SIGNS = {
    r"vision_project\..*": "a BLIVA checkpoint (bliva_vicuna7b.pth)",
    r"(image_encoder\.)?glm_proj\..*|image_encoder\..*": "a VisualGLM-6B checkpoint",
    r"transformer\.layers\.\d+\.attention\.query_key_value\..*": "a ChatGLM checkpoint",
    r"llm_proj\..*": "an InstructBLIP checkpoint of LAVIS, which transformers has as Salesforce/instructblip-vicuna-7b",
    r"(t5|opt)_proj\..*": "a BLIP-2 checkpoint of LAVIS",
    r"language_projection\..*": "a BLIP-2 or InstructBLIP folder of transformers",
    r"Qformer\..*": "a VPGTrans checkpoint (vl-vicuna.pth), or another of LAVIS with a Q-Former",
    r"llama_proj\..*": "MiniGPT-4's projection (prerained_minigpt4_7b.pth)",
    r"blocks\.\d+\.attn\.q_bias": "an EVA image encoder (eva_vit_g.pth)",
    r"model\.layers\.\d+\.self_attn\..*": "a language model of the LLaMA kind",
}


class Rules(NamedTuple):
    r"""
    What becomes of every key of a checkpoint. Patterns must match a whole key. What is left out goes before what is
    renamed, and the first pattern that matches counts.

    Attributes:
        rename (`dict[str, str]`): Pattern of a key, and what it becomes, with `\1` and so on.
        drop (`dict[str, str]`): Pattern of a key that is left out, and the reason.
        need (`tuple[str, ...]`, *optional*): Keys without which it is another checkpoint.
    """

    rename: dict[str, str]
    drop: dict[str, str]
    need: tuple[str, ...] = ()


def read_weights(path: str | Path) -> Weights:
    r"""
    The weights of a file or of a model folder. They are mapped, not loaded: memory is used for those that are looked at.

    Args:
        path (`str` or `Path`):
            A `.safetensors` file, a file that `torch.save` wrote, or a folder with either, in one part or in several.
            Nothing is unpickled but tensors and plain values.

    Returns:
        `dict[str, torch.Tensor]`: Tensors by key, as they are in the file.

    Raises:
        FileNotFoundError: If there is no such file, or a part is missing.
        ValueError: If a file holds no weights, or more than tensors and plain values.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}: give a file or a folder on this machine, downloaded before.")
    if not path.is_dir():
        return _read_file(path)
    name = next((name for name in WEIGHT_FILES if (path / name).exists()), None)
    if name is None:
        raise FileNotFoundError(f"The folder {path} has no weights: one of {', '.join(WEIGHT_FILES)} should be there.")
    if not name.endswith(".json"):
        return _read_file(path / name)
    places: dict[str, str] = json.loads((path / name).read_text(encoding="utf-8"))["weight_map"]
    parts = sorted(set(places.values()))
    if missing := [part for part in parts if not (path / part).exists()]:
        raise FileNotFoundError(f"{path / name} names {', '.join(missing)}, which is not there: download it as well.")
    weights: Weights = {}
    for part in parts:
        weights |= _read_file(path / part)
    if lost := sorted(set(places) - set(weights)):
        raise ValueError(f"{path / name} promises {_some(lost)}, which no part has: download the folder again.")
    return weights


def _read_file(path: Path) -> Weights:
    if path.suffix == ".safetensors":
        try:
            # Its tensors are views of the mapped file.
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}): download it again.") from error
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is no checkpoint, or half of one: download it again, as what is there may be cut off, an error page "
            "or a pointer of git LFS. One written by a torch before 1.6 must be loaded and saved with the installed one."
        )
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and plain values, and nothing else is unpickled, as it could run any "
            f"program: save its weights alone where you trust it. ({str(error).splitlines()[0]})"
        ) from error
    for name in NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__} and not weights by name: it is no checkpoint.")
    if strange := [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]:
        raise ValueError(f"{path} holds {_some(strange)}, which is no tensor: it is no checkpoint of a model.")
    return content


def looks_like(keys: Iterable[str]) -> str:
    """Which checkpoint has such keys, in words."""
    names = list(keys)
    found = (what for sign, what in SIGNS.items() if any(re.fullmatch(sign, name) for name in names))
    return next(found, "no checkpoint that is known here")


def rename(weights: Weights, rules: Rules, source: str | Path) -> Weights:
    r"""
    Gives every key its new name.

    Args:
        weights (`dict[str, torch.Tensor]`): From [`read_weights`].
        rules ([`Rules`]): What becomes of each key.
        source (`str` or `Path`): Where the weights are from, for the message.

    Returns:
        `dict[str, torch.Tensor]`: The same tensors by their new names, those left out by a rule being absent.

    Raises:
        ValueError: If a key has no rule, two become one, or a needed one is not there.
    """
    if lacks := [key for key in rules.need if key not in weights]:
        raise ValueError(f"{source} lacks {_some(lacks)}. By its keys it is {looks_like(weights)}.")
    result: Weights = {}
    unexpected = []
    for key, tensor in weights.items():
        if any(re.fullmatch(pattern, key) for pattern in rules.drop):
            continue
        matches = ((re.fullmatch(pattern, key), to) for pattern, to in rules.rename.items())
        new = next((match.expand(to) for match, to in matches if match), None)
        if new is None:
            unexpected.append(key)
        elif new in result:
            raise ValueError(f"{source} has {new} twice, the second time as {key}: it is two checkpoints in one.")
        else:
            result[new] = tensor
    if unexpected:
        raise ValueError(
            f"{source} has keys that do not belong there: {_some(unexpected)}. By its keys it is {looks_like(weights)}."
        )
    return result


def write_model(
    folder: str | Path,
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    weights: Weights,
    processor: ProcessorMixin,
    max_shard_size: int = 2 * 10**9,
) -> None:
    r"""
    Writes a model folder as `save_pretrained` would, one part after the other, so that no more than one is in memory.
    Before anything is written, the weights are compared with the model, key by key. The configuration is written last:
    a folder without one is not finished.

    Args:
        folder (`str` or `Path`): Where to write. It must be empty, or not be there.
        model_class (`type[PreTrainedModel]`): The model.
        config (`PreTrainedConfig`): Its configuration.
        weights (`dict[str, torch.Tensor]`):
            By the model's own keys, in any dtype, which is kept. One with more axes than the model's has its first ones
            joined: rows that stand apart in a file are joined by no view, only by a copy, and that is made here.
        processor (`ProcessorMixin`): The model's processor.
        max_shard_size (`int`, *optional*, defaults to 2 * 10**9): Bytes of one part; a larger tensor has one for itself.

    Raises:
        FileExistsError: If the folder is not empty.
        ValueError: If a key of the model has no tensor, a tensor no key, or a shape is another.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty: give a folder that is, as old parts would be read with new ones."
        )
    with torch.device("meta"):
        model = model_class(config)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    _compare(
        expected, {key: _joined(value, expected.get(key, ())) for key, value in weights.items()}, model_class.__name__
    )
    folder.mkdir(parents=True, exist_ok=True)
    parts = _split(weights, max_shard_size)
    places: dict[str, str] = {}
    for number, keys in enumerate(parts, 1):
        name = f"model-{number:05d}-of-{len(parts):05d}.safetensors" if len(parts) > 1 else "model.safetensors"
        # Tensors whose rows stand apart in the checkpoint are copied here, and freed with the part.
        part = {key: weights[key].reshape(expected[key]).contiguous() for key in keys}
        save_file(part, folder / name, metadata={"format": "pt"})
        del part
        places |= dict.fromkeys(keys, name)
    if len(parts) > 1:
        index = {"metadata": {"total_size": sum(map(_bytes, weights.values()))}, "weight_map": places}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    processor.save_pretrained(folder)
    config.architectures = [model_class.__name__]
    sizes: Counter[torch.dtype] = Counter()
    for tensor in weights.values():
        sizes[tensor.dtype] += _bytes(tensor)
    config.dtype = sizes.most_common(1)[0][0]
    config.save_pretrained(folder)


def _joined(tensor: torch.Tensor, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of `tensor` with its first axes joined, where it has more of them than `wanted`."""
    first = max(tensor.ndim - len(wanted), 0) + 1 if wanted else 0
    return (math.prod(tensor.shape[:first]), *tensor.shape[first:]) if first > 1 else tuple(tensor.shape)


def _compare(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], name: str) -> None:
    if missing := sorted(set(expected) - set(found)):
        raise ValueError(f"{name} needs {_some(missing)}, which none of the given files has.")
    if unexpected := sorted(set(found) - set(expected)):
        raise ValueError(f"{name} has no {_some(unexpected)}: these weights are of another model.")
    if wrong := [key for key, shape in expected.items() if found[key] != shape]:
        key = wrong[0]
        raise ValueError(
            f"{name} needs {key} as {expected[key]}, and the given file has it as {found[key]}"
            + (f"; {len(wrong) - 1} more differ" if len(wrong) > 1 else "")
            + ": the files are of models of different sizes."
        )


def _split(weights: Weights, max_shard_size: int) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    room = max_shard_size
    for key, tensor in weights.items():
        if parts[-1] and _bytes(tensor) > room:
            parts.append([])
            room = max_shard_size
        parts[-1].append(key)
        room -= _bytes(tensor)
    return parts


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _some(names: list[Any]) -> str:
    """A few of `names`, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
