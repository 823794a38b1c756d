"""Prompts fetched from the Hub: into the cache, from the cache, and nothing more than is needed."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .hub_errors import CLIENT_ERRORS, explain
from .hub_safety import (
    CONFIG_NAME,
    LIBRARY,
    MAX_CONFIG_BYTES,
    WEIGHTS_NAME,
    check_size,
    largest_weights,
    no_weights,
    read_config,
    relative_folder,
)


logger = logging.getLogger(__name__)


def find_prompt(name: str | os.PathLike, *, subfolder: str = "", **kwargs: Any) -> tuple[Path, str | None]:
    r"""
    Finds a prompt: the folder of that name, else the repository on the Hub.

    Args:
        name (`str` or `os.PathLike`): A folder, or the id of a repository such as `"org/tvp-cifar10"`.
        subfolder (`str`, *optional*, defaults to `""`): A folder inside of it.
        **kwargs: As in [`fetch_prompt`], for the Hub.

    Returns:
        `tuple[pathlib.Path, str | None]`: The folder with its files, and the commit if it is of the Hub.

    Raises:
        OSError: If there is no prompt, or it cannot be fetched; in one sentence.
        ValueError: If it is no prompt that can be used.
    """
    inside = relative_folder(subfolder or "", "subfolder")
    if os.path.isdir(name):
        return Path(name) / inside, None
    try:
        validate_repo_id(str(name))
    except HFValidationError as error:
        raise FileNotFoundError(
            f"There is no prompt that can be read at {name}, which must be a folder or the id of a repository on the "
            "Hub such as 'org/tvp-cifar10'."
        ) from error
    folder = fetch_prompt(str(name), subfolder=inside, **kwargs)
    return folder, (folder, *folder.parents)[len(Path(inside).parts)].name


def fetch_prompt(
    repo_id: str,
    *,
    revision: str | None = None,
    subfolder: str = "",
    token: bool | str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    r"""
    Downloads `config.json` and `model.safetensors` of a prompt into the cache of huggingface_hub, and nothing else of
    its repository. The first is checked before the second is asked for, and the size of each before its content.

    Args:
        repo_id (`str`): The repository, such as `"org/tvp-cifar10"`.
        revision (`str`, *optional*): A branch, a tag or a commit. Defaults to `main`.
        subfolder (`str`, *optional*, defaults to `""`): A folder inside of the repository.
        token (`str` or `bool`, *optional*): A token, or `False` for none. Defaults to the one that is logged in.
        cache_dir (`str` or `pathlib.Path`, *optional*): The cache, if it is not the usual one.
        local_files_only (`bool`, *optional*, defaults to `False`): Takes what the cache has and asks nobody.
        force_download (`bool`, *optional*, defaults to `False`): Downloads again what the cache has.

    Returns:
        `pathlib.Path`: The folder in the cache that holds both files, of one and the same commit.

    Raises:
        OSError: If the prompt cannot be fetched; in one sentence that says what helps.
        ValueError: If it is no prompt that can be used.
    """
    inside = relative_folder(subfolder, "subfolder")
    config_name, weights_name = (f"{inside}/{name}".lstrip("/") for name in (CONFIG_NAME, WEIGHTS_NAME))
    # AutoModel hands on a revision that it has resolved to a commit.
    revision = getattr(revision, "resolved", revision)
    place: dict[str, Any] = {
        "repo_id": repo_id, "revision": revision, "token": token, "cache_dir": cache_dir,
        "local_files_only": local_files_only, "library_name": LIBRARY,
    }  # fmt: skip
    cached = huggingface_hub.try_to_load_from_cache(repo_id, config_name, cache_dir, revision)
    asked, is_commit = None, re.fullmatch(r"[0-9a-f]{40}", revision or "") is not None
    if isinstance(cached, str) and not (force_download or local_files_only or is_commit):
        asked = _ask_or_warn(repo_id, config_name, revision, token)
        place["local_files_only"] = asked is None
    if asked is None:
        found = _download(config_name, place, revision, dry_run=True)
        asked = (found.commit_hash, found.file_size)
    commit, size = asked
    check_size(size, MAX_CONFIG_BYTES, config_name, repo_id)
    # From here on by commit: both files are of the same, and no branch in the cache moves to half a prompt.
    exact = place | {"revision": commit, "force_download": force_download}
    path = Path(_download(config_name, exact, revision))
    config = read_config(path)
    try:
        size = _download(weights_name, exact, revision, dry_run=True).file_size
    except FileNotFoundError as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            raise
        raise FileNotFoundError(no_weights(repo_id, _names(repo_id, commit, inside, token))) from error
    check_size(size, largest_weights(config), weights_name, repo_id)
    _download(weights_name, exact, revision)
    if cached != str(path) and not place["local_files_only"]:
        try:
            _download(config_name, place, revision)
        except OSError as error:
            logger.warning("%s The prompt is there, but the cache will not find it by its revision.", error)
    return path.parent


def _download(filename: str, place: dict[str, Any], revision: str | None, dry_run: bool = False) -> Any:
    try:
        return huggingface_hub.hf_hub_download(filename=filename, dry_run=dry_run, **place)
    except CLIENT_ERRORS as error:
        at = f" (revision {revision!r})" if revision else ""
        raise explain(error, place["repo_id"], f"load {filename}{at} of") from error


def _ask_or_warn(
    repo_id: str, filename: str, revision: str | None, token: bool | str | None
) -> tuple[str, int | None] | None:
    """Commit and size of a file that the cache has; `None`, and a word about it, if the Hub does not say."""
    try:
        found = huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(repo_id, filename, revision=revision), token=token
        )
        if found.commit_hash is None:
            raise FileMetadataError("the answer names no commit, as a Hub's does")
    except OfflineModeIsEnabled:
        return None
    except CLIENT_ERRORS as error:
        told = explain(error, repo_id, f"look for a newer {filename} of")
        if isinstance(error, RevisionNotFoundError | EntryNotFoundError):
            raise told from error
        logger.warning("%s The prompt is taken from the cache, as it was loaded last.", told)
        return None
    return found.commit_hash, found.size


def _names(repo_id: str, commit: str, inside: str, token: bool | str | None) -> list[str]:
    try:
        siblings = HfApi(token=token).model_info(repo_id, revision=commit).siblings or []
    except CLIENT_ERRORS as error:
        raise explain(error, repo_id, "list the files of") from error
    return [file.rfilename.removeprefix(f"{inside}/" if inside else "") for file in siblings]
