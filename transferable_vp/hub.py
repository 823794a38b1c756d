"""The Hub: prompts and reports pushed to it, and prompts looked for on it."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .hub_errors import CLIENT_ERRORS, explain
from .hub_safety import CONFIG_NAME, LIBRARY, WEIGHTS_NAME, check_size, plain, relative_folder


if TYPE_CHECKING:
    from .modeling import TransferableVisualPrompt

logger = logging.getLogger(__name__)

README_NAME = "README.md"
# All that is ever pushed.
SHARED_FILES = (CONFIG_NAME, WEIGHTS_NAME, "prompt.png", "preview.png", README_NAME)
MAX_README_BYTES = 4_000_000
TAG = LIBRARY
# A search that filters by task looks at so many prompts.
MAX_SEARCHED = 1000


def share_prompt(
    prompt: TransferableVisualPrompt,
    repo_id: str,
    folder: str | os.PathLike | None = None,
    *,
    tags: Sequence[str] | None = None,
    license: str | None = None,
    **kwargs: Any,
) -> CommitInfo:
    r"""
    Pushes a prompt with a card: the one in its folder, else the one it was loaded with, brought up to date; else one
    that says what a prompt by itself can say.

    Args:
        prompt ([`TransferableVisualPrompt`]): The prompt.
        repo_id (`str`): The repository to push to.
        folder (`str` or `os.PathLike`, *optional*): The folder it has just been saved to. Defaults to a temporary
            one, which stays if pushing fails.
        tags (`Sequence[str]`, *optional*): More tags for the card.
        license (`str`, *optional*): The licence, as the Hub calls it: `"apache-2.0"`.
        **kwargs: As in [`push_prompt`].

    Raises:
        OSError: If pushing fails, naming the folder and how to push by hand.
        ValueError: As in [`push_prompt`].
    """
    from .model_card import write_card

    _check_id(repo_id)
    staging = Path(tempfile.mkdtemp(prefix="transferable-vp-")) if folder is None else Path(folder)
    try:
        if folder is None:
            prompt.save_pretrained(staging)
        if (staging / README_NAME).is_file() or _write_card_it_came_with(prompt, staging, kwargs.get("token")):
            named = repo_id if "/" in repo_id else None
            write_card(prompt, staging, license=license, tags=tuple(tags or ()), repo_id=named)
    except BaseException:
        if folder is None:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    info = push_prompt(staging, repo_id, **kwargs)
    if folder is None:
        # Only now: of a push that failed, the message names the folder.
        shutil.rmtree(staging, ignore_errors=True)
    return info


def _check_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} is no id of a repository: give one such as 'org/tvp-cifar10', or 'tvp-cifar10' for your own, "
            "of letters, digits, '-', '_' and '.'."
        ) from error


def _write_card_it_came_with(prompt: TransferableVisualPrompt, folder: Path, token: bool | str | None) -> bool:
    """Whether all is written that is known: without it, a new card would take the place of the old one."""
    name, commit = prompt.config._name_or_path, getattr(prompt.config, "_commit_hash", None)
    try:
        if commit is not None:
            (folder / README_NAME).write_bytes(_read_card(name, README_NAME, commit, token).encode())
        elif name and (Path(name) / README_NAME).is_file():
            text = _text((Path(name) / README_NAME).read_bytes(), f"its {README_NAME}")
            (folder / README_NAME).write_bytes(text.encode())
    except CLIENT_ERRORS as error:
        if not isinstance(error, RemoteEntryNotFoundError):
            logger.warning("%s The prompt is pushed without it.", explain(error, name, "read the card of"))
            return False
    return True


def _read_card(repo_id: str, filename: str, commit: str, token: bool | str | None) -> str:
    place: dict[str, Any] = {"repo_id": repo_id, "filename": filename, "revision": commit, "token": token}
    size = huggingface_hub.hf_hub_download(dry_run=True, **place).file_size
    check_size(size, MAX_README_BYTES, filename, repo_id)
    return _text(Path(huggingface_hub.hf_hub_download(**place)).read_bytes(), f"its {filename}")


def _text(data: bytes, what: str) -> str:
    # Not `Path.read_text`, which loses the ends of lines.
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise OSError(f"{what} is not text in UTF-8, as which it must be saved") from error


def push_prompt(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    run_as_future: bool = False,
    path_in_repo: str = "",
) -> Any:
    r"""
    Pushes a saved prompt in one commit: `config.json`, `model.safetensors`, its pictures and `README.md`, and nothing
    else that the folder holds. All but the card is written anew from the prompt, so that no path, setting or metadata
    goes along; the card is merged with the one on the Hub. A repository or branch that is not there is made.

    Args:
        folder (`str` or `os.PathLike`): The folder that the prompt was saved to.
        repo_id (`str`): The repository, such as `"org/tvp-cifar10"`; without a name before it, your own.
        private (`bool`, *optional*):
            Whether a new repository is private. With `True`, nothing is pushed to one that exists and is public.
        token (`str` or `bool`, *optional*): A token, or `False` for none. Defaults to the one that is logged in.
        revision (`str`, *optional*): The branch. Defaults to `main`.
        create_pr (`bool`, *optional*, defaults to `False`): Opens a pull request, which anyone may who can read.
        commit_message (`str`, *optional*): Defaults to `"Upload a transferable visual prompt"`.
        commit_description (`str`, *optional*): More about the commit.
        run_as_future (`bool`, *optional*, defaults to `False`):
            Pushes in the background what the folder holds now, after what is being pushed already.
        path_in_repo (`str`, *optional*, defaults to `""`): A folder inside of the repository to push to.

    Returns:
        `huggingface_hub.CommitInfo`, or a `Future` of it: with `commit_url`, `oid` and `pr_url`.

    Raises:
        OSError: If the folder holds no whole prompt, or a card that is not UTF-8; if pushing fails, in one sentence, with
            the command to push by hand. The folder stays as it is.
        ValueError: If `repo_id` is none, the configuration is not of a prompt, the card holds the token, or
            `path_in_repo` leads out of the repository.
    """
    _check_id(repo_id)
    prefix = relative_folder(path_in_repo, "path_in_repo")
    files = _shared_files(Path(folder))
    _text(files.get(README_NAME, b""), str(Path(folder) / README_NAME))
    secret = token if isinstance(token, str) else huggingface_hub.get_token()
    if secret and len(secret) > 7 and any(secret.encode() in data for data in files.values()):
        raise ValueError(f"{Path(folder) / README_NAME} holds your token, which anyone could read there: take it out.")
    command = ["hf", "upload", repo_id, os.fspath(folder), prefix or "."]
    for name in files:
        command += ["--include", name]
    command += ["--revision", revision] if revision else []
    command += ["--private"] if private else []
    command += ["--create-pr"] if create_pr else []
    by_hand = (
        f"Nothing is lost: the prompt is in {folder}. By hand, a README.md on the Hub is replaced, so leave it out if "
        f"that one was edited. To push it by hand: {shlex.join(command)}"
    )
    message = commit_message or "Upload a transferable visual prompt"

    def push() -> CommitInfo:
        api = HfApi(token=token, library_name=TAG)
        try:
            full_id, info = _repository(api, repo_id, private, revision, create_pr)
        except CLIENT_ERRORS as error:
            told = explain(error, repo_id, "push to")
            raise type(told)(f"{told} {by_hand}") from error
        if private and not info.private:
            raise PermissionError(
                f"Nothing was pushed to {full_id}, which exists and is public, as `private=True` was asked for: make it "
                f"private at {api.endpoint}/{full_id}/settings, or take another name. The prompt is in {folder}."
            )
        try:
            operations = _operations(files | _named_card(files, full_id), full_id, info, prefix, token)
            return api.create_commit(
                full_id, operations, commit_message=message, commit_description=commit_description,
                revision=revision, create_pr=create_pr, parent_commit=info.sha,
            )  # fmt: skip
        except CLIENT_ERRORS as error:
            told = explain(error, full_id, "push to")
            raise type(told)(f"{told} {by_hand}") from error

    # One queue for all of them: two that run at once would each find the other's commit in its way.
    return huggingface_hub.run_as_future(push) if run_as_future else push()


def _shared_files(folder: Path) -> dict[str, bytes]:
    from .modeling import TransferableVisualPrompt

    with tempfile.TemporaryDirectory() as written_anew:
        TransferableVisualPrompt.from_pretrained(folder).save_pretrained(written_anew)
        paths = [Path(written_anew) / name for name in SHARED_FILES if name != README_NAME] + [folder / README_NAME]
        return {path.name: path.read_bytes() for path in paths if path.is_file()}


def _named_card(files: Mapping[str, bytes], repo_id: str) -> dict[str, bytes]:
    """The card with the name of its repository, if it was written before there was one."""
    from .model_card import PLACEHOLDER, write_card
    from .modeling import TransferableVisualPrompt

    if PLACEHOLDER.encode() not in files.get(README_NAME, b""):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        path = write_card(TransferableVisualPrompt.from_pretrained(folder), folder, repo_id=repo_id)
        return {README_NAME: path.read_bytes()}


def _repository(
    api: HfApi, repo_id: str, private: bool | None, revision: str | None, create_pr: bool
) -> tuple[str, ModelInfo]:
    if "/" not in repo_id:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    try:
        return repo_id, api.model_info(repo_id, revision=revision)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private, exist_ok=True)
    except RevisionNotFoundError:
        if create_pr or str(revision).startswith("refs/"):
            raise
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id, api.model_info(repo_id, revision=revision)


def _operations(
    files: Mapping[str, bytes], repo_id: str, info: ModelInfo, prefix: str, token: bool | str | None
) -> list[CommitOperationAdd | CommitOperationDelete]:
    from .model_card import merge_cards

    there = {file.rfilename for file in info.siblings or []}
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    for name in SHARED_FILES:
        path = f"{prefix}/{name}".lstrip("/")
        data = files.get(name)
        if data is None:
            # A picture of the prompt that was there before. What is written about it stays.
            operations += [CommitOperationDelete(path)] if path in there and name != README_NAME else []
            continue
        if name == README_NAME:
            remote = _read_card(repo_id, path, str(info.sha), token) if path in there else None
            text, warnings = merge_cards(data.decode(), remote)
            for warning in warnings:
                logger.warning("%s: %s", path, warning)
            data = text.encode()
        operations.append(CommitOperationAdd(path, data))
    return operations


def share_report(
    report: Mapping[str, Any] | str | os.PathLike,
    repo_id: str,
    *,
    create_pr: bool = True,
    token: bool | str | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    r"""
    Adds what was measured to the card of a prompt on the Hub, whoever it belongs to.

    Args:
        report (`Mapping` or `str` or `os.PathLike`): A transfer report, or the `transfer.json` that holds it.
        repo_id (`str`): The prompt's repository.
        create_pr (`bool`, *optional*, defaults to `True`): Opens a pull request; with `False`, commits.
        token (`str` or `bool`, *optional*): A token. Defaults to the one that is logged in.
        commit_message (`str`, *optional*): Defaults to `"Add a transfer report: TASK"`.

    Returns:
        `huggingface_hub.CommitInfo`: With `pr_url`, where the owner decides.

    Raises:
        OSError: If the repository has no card, or the Hub does not take the change; in one sentence.
        ValueError: If it is no transfer report.
    """
    from .model_card import add_report
    from .report import check_report, read_json

    values = report if isinstance(report, Mapping) else read_json(Path(report))
    check_report(values)
    api = HfApi(token=token, library_name=TAG)
    message = commit_message or f"Add a transfer report: {plain(values['task'], 60)}"
    try:
        info = api.model_info(repo_id)
        before = _read_card(repo_id, README_NAME, str(info.sha), token)
    except CLIENT_ERRORS as error:
        raise explain(error, repo_id, "read the card of") from error
    after = add_report(before, dict(values))
    try:
        return api.create_commit(
            repo_id, [CommitOperationAdd(README_NAME, after.encode())], commit_message=message,
            create_pr=create_pr, parent_commit=info.sha,
        )  # fmt: skip
    except CLIENT_ERRORS as error:
        raise explain(error, repo_id, "add a report to") from error


def search_prompts(
    task: str | None = None,
    base_model: str | None = None,
    author: str | None = None,
    limit: int = 20,
    token: bool | str | None = None,
) -> list[dict[str, Any]]:
    r"""
    Looks for prompts on the Hub.

    Args:
        task (`str`, *optional*): Part of the name of a task that they were measured on, or of a dataset; in any case.
        base_model (`str`, *optional*): The id of a model they were learned on.
        author (`str`, *optional*): The user or organisation they belong to.
        limit (`int`, *optional*, defaults to 20): How many at most.
        token (`str` or `bool`, *optional*): A token, which also finds private ones. Defaults to the one logged in.

    Returns:
        `list[dict]`: For each the keys `id`, `task`, `base_models`, `datasets`, `downloads`, `likes`, `last_modified`
        (`datetime`) and `private`. Text is what strangers wrote, without control characters.

    Raises:
        OSError: If the Hub cannot be asked; in one sentence.
        ValueError: If `limit` is less than 1.
    """
    if limit < 1:
        raise ValueError(f"`limit` is {limit}; it must be 1 or more.")
    filters = [TAG, *([f"base_model:{base_model}"] if base_model else [])]
    try:
        found = HfApi(token=token, library_name=TAG).list_models(
            filter=filters, author=author, sort="downloads", limit=limit if task is None else MAX_SEARCHED,
            expand=["downloads", "lastModified", "likes", "model-index", "private", "tags"],
        )  # fmt: skip
        rows = map(_row, found)
        fits = (
            row for row in rows if task is None or task.lower() in " ".join([row["task"], *row["datasets"]]).lower()
        )
        return list(islice(fits, limit))
    except CLIENT_ERRORS as error:
        raise explain(error, "prompts", "search the Hub for") from error


def _row(info: ModelInfo) -> dict[str, Any]:
    tags = [plain(tag) for tag in info.tags or []]
    tasks: list[str] = []
    for model in info.model_index or []:
        for result in model.get("results") or [] if isinstance(model, dict) else []:
            dataset = result.get("dataset") if isinstance(result, dict) else None
            if isinstance(dataset, dict) and dataset.get("name"):
                tasks.append(plain(dataset["name"], 100))
    return {
        "id": plain(info.id),
        "task": ", ".join(dict.fromkeys(tasks)),
        # The Hub has each a second time, with how it was used: `base_model:finetune:…`.
        "base_models": [tag.split(":", 1)[1] for tag in tags if re.fullmatch(r"base_model:[^:]+", tag)],
        "datasets": [tag.removeprefix("dataset:") for tag in tags if tag.startswith("dataset:")],
        "downloads": info.downloads or 0,
        "likes": info.likes or 0,
        "last_modified": info.last_modified,
        "private": bool(info.private),
    }
