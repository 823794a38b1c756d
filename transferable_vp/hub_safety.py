"""The files of a prompt, which anyone may have written: checked before anything of the size they claim is made."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .configuration import TransferableVisualPromptConfig, short


# As the Hub knows the files of this library: in the tags of a card, and in what the client says of itself.
LIBRARY = "transferable-vp"
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
# What other libraries save weights as: pickles run code, and of pieces an index says where they are.
REFUSED_WEIGHTS = ("pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json", "model.pt")

# A prompt's own are a few hundred bytes.
MAX_CONFIG_BYTES = 1_000_000
MAX_HEADER_BYTES = 100_000
# Values of these three survive on their way to float32, and their bytes per value.
DTYPES = {"F32": 4, "F16": 2, "BF16": 2}
AGAIN = "again; `force_download=True` replaces what is in the cache."
# Arguments of transformers' `from_pretrained` for files that a prompt does not have, and those that AutoModel adds or
# that change nothing here.
REFUSED_ARGUMENTS = ("variant", "gguf_file", "from_tf", "from_flax", "state_dict", "code_revision", "key_mapping")
IGNORED_ARGUMENTS = (
    "trust_remote_code", "use_safetensors", "adapter_kwargs", "weights_only", "proxies", "_from_auto",
    "_from_pipeline", "_commit_hash",
)  # fmt: skip


def keep_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    r"""
    The arguments of `from_pretrained` that mean something for a prompt.

    Args:
        kwargs (`Mapping`): All that were given.

    Raises:
        ValueError: If one asks for code to be run, or for another file than those of a prompt.
    """
    if kwargs.get("trust_remote_code"):
        raise ValueError(
            "`trust_remote_code=True` is refused: a prompt is two files of data, and code that comes with it is never "
            "run. Leave it out."
        )
    refused = [name for name in REFUSED_ARGUMENTS if kwargs.get(name)]
    refused += ["use_safetensors=False"] if kwargs.get("use_safetensors") is False else []
    if refused:
        raise ValueError(
            f"A prompt is read from {CONFIG_NAME} and {WEIGHTS_NAME} and nothing else: leave out {', '.join(refused)}."
        )
    return {name: value for name, value in kwargs.items() if name not in (*REFUSED_ARGUMENTS, *IGNORED_ARGUMENTS)}


def relative_folder(path: str, name: str) -> str:
    r"""
    A folder inside of another one, as given; with slashes.

    Args:
        path (`str`): Such as `"last-checkpoint"`, or `""` for the folder itself.
        name (`str`): What the argument is called, for the message.

    Raises:
        ValueError: If it leads, or might lead, out of the folder.
    """
    parts = path.removesuffix("/").split("/") if path else []
    if any(part in ("", ".", "..") or re.search(r"[\\:\0]", part) for part in parts):
        raise ValueError(
            f"`{name}` is {short(path)}; it must be a folder inside of the repository, such as 'checkpoint-10': no "
            "'..', no backslash, no drive, not from the root."
        )
    return "/".join(parts)


def plain(text: Any, length: int = 300) -> str:
    """A stranger's text as one line without control characters, which could rewrite what a terminal shows."""
    kept = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in str(text)[: 10 * length])
    line = " ".join(kept.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def read_config(path: Path) -> TransferableVisualPromptConfig:
    r"""
    Reads the `config.json` of a prompt.

    Args:
        path (`pathlib.Path`): The file.

    Raises:
        OSError: If there is none, or it is larger than 1 MB, or no JSON object.
        ValueError: If it is of another kind of model, of a later format, or has a value that cannot be.
    """
    values = _json_object(_start_of(path, MAX_CONFIG_BYTES + 1), path, MAX_CONFIG_BYTES)
    # A configuration made in Python need not say so; a file does.
    values.setdefault("model_type", None)
    try:
        return TransferableVisualPromptConfig.from_dict(values)
    except ValueError as error:
        raise ValueError(f"There is no prompt that can be used at {path.parent}: {error}") from error


def largest_weights(config: TransferableVisualPromptConfig) -> int:
    """Bytes that the `model.safetensors` of a prompt has at most."""
    return 8 + MAX_HEADER_BYTES + 3 * config.canvas_size**2 * max(DTYPES.values())


def check_size(size: int | None, most: int, filename: str, repo_id: str) -> None:
    r"""
    Checks a file on the Hub before it is downloaded.

    Args:
        size (`int`, *optional*): Its bytes, as the Hub says.
        most (`int`): How many it may have.
        filename (`str`): The file.
        repo_id (`str`): Its repository.

    Raises:
        OSError: If it has more, or nobody knows.
    """
    if size is None or size > most:
        raise OSError(
            f"{filename} of {repo_id} has {'an unknown number of' if size is None else f'{size:,}'} bytes; that of a "
            f"prompt has at most {most:,}. It is not downloaded."
        )


def read_delta(folder: Path, config: TransferableVisualPromptConfig) -> torch.Tensor:
    r"""
    Reads the learned pixels. The header says what the file holds, and is held against configuration and file size
    before anything is loaded.

    Args:
        folder (`pathlib.Path`): The folder that holds `model.safetensors`.
        config ([`TransferableVisualPromptConfig`]): What the prompt should be.

    Returns:
        `torch.Tensor`: float32 `(3, canvas_size, canvas_size)`, finite, on the CPU.

    Raises:
        OSError: If the file is missing, damaged, or holds anything but a prompt of this configuration.
    """
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise FileNotFoundError(no_weights(str(folder), os.listdir(folder) if folder.is_dir() else []))
    start = _start_of(path, 8 + MAX_HEADER_BYTES)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > MAX_HEADER_BYTES:
        raise OSError(f"The header of {path} is damaged: it claims {length} bytes. Copy or download the file {AGAIN}")
    header = _json_object(start[8 : 8 + length], path, MAX_HEADER_BYTES)
    header.pop("__metadata__", None)
    if list(header) != ["delta"]:
        raise OSError(
            f"The weights of {folder} are not those of a prompt: they must be one tensor `delta`, and are "
            f"{', '.join(map(short, sorted(header)[:5])) or 'none'}{', …' if len(header) > 5 else ''}."
        )
    shape = [3, config.canvas_size, config.canvas_size]
    found = header["delta"] if isinstance(header["delta"], dict) else {}
    if found.get("dtype") not in DTYPES or found.get("shape") != shape:
        raise OSError(
            f"The tensor `delta` of {path} has dtype {short(found.get('dtype'))} and shape {short(found.get('shape'))}; "
            f"a canvas of {config.canvas_size} pixels needs {shape} in one of {', '.join(DTYPES)}."
        )
    size, expected = path.stat().st_size, 8 + length + 3 * config.canvas_size**2 * DTYPES[found["dtype"]]
    if size != expected:
        raise OSError(
            f"The weights of {folder} are damaged or cut short (the file has {size} bytes and should have {expected}): "
            f"copy or download the file `model.safetensors` {AGAIN}"
        )
    try:
        delta = load_file(path)["delta"].float()
    except SafetensorError as error:
        raise OSError(
            f"The weights of {folder} are damaged ({plain(error)}): copy or download the file `model.safetensors` {AGAIN}"
        ) from error
    if not delta.isfinite().all():
        raise OSError(
            f"The weights of {folder} hold values that are no finite numbers: they are damaged, or of a run that diverged."
        )
    return delta


def no_weights(where: str, names: list[str]) -> str:
    """The sentence for a place that has no `model.safetensors`.

    Args:
        where (`str`): The folder or repository.
        names (`list[str]`): The files it has.
    """
    refused = [name for name in REFUSED_WEIGHTS if name in names]
    has = f" It has {refused[0]}, but only one safetensors file is read: a pickle can run code." if refused else ""
    return f"{where} has no file named {WEIGHTS_NAME}, so there is no prompt that can be read.{has}"


def _start_of(path: Path, size: int) -> bytes:
    # A pipe or a device would never end.
    if not path.is_file():
        raise FileNotFoundError(f"There is no prompt that can be read at {path.parent}: no file named {path.name}.")
    with path.open("rb") as file:
        return file.read(size)


def _json_object(data: bytes, path: Path, most: int) -> dict[str, Any]:
    if len(data) > most:
        raise OSError(f"{path} has more than {most:,} bytes; a prompt's has a few hundred, so this is not one.")
    try:
        values = json.loads(data, object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        raise OSError(
            f"{path} is damaged: it holds no JSON ({plain(error, 100)}). Copy or download it {AGAIN}"
        ) from error
    if not isinstance(values, dict):
        raise OSError(f"{path} holds {type(values).__name__} where a JSON object is expected: it is not of a prompt.")
    return values


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two, other readers might take the other one.
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)
