"""What is wrong between here and the Hub, in one sentence that says what helps."""

from __future__ import annotations

import errno
import json
import re
from typing import Any

from huggingface_hub import constants

# `HTTPError` is that of the HTTP library which the installed client uses, httpx or httpx2.
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .hub_safety import plain


# What the client raises: its own errors, those of connection and disk, and what it makes of answers that no Hub gives.
CLIENT_ERRORS = (HTTPError, OSError, ValueError, RuntimeError, EntryNotFoundError)


def explain(error: BaseException, repo_id: str, what: str) -> OSError:
    r"""
    Says in one sentence what is wrong between here and the Hub, and what helps.

    Args:
        error (`BaseException`): What huggingface_hub raised.
        repo_id (`str`): The repository.
        what (`str`): What was being done, as it reads before the repository's id: `"load"`, `"push to"`.

    Returns:
        `OSError`: To be raised; `PermissionError`, `FileNotFoundError` or `ConnectionError` where that is what it is.
    """
    cause = error
    # What it was that made a file impossible to find, or to send, is one deeper.
    while isinstance(cause, LocalEntryNotFoundError | RuntimeError | ValueError) and cause.__cause__ is not None:
        if isinstance(cause, HfHubHTTPError):
            break
        cause = cause.__cause__
    response = getattr(cause, "response", None)
    status = 0 if response is None else response.status_code
    hub = constants.ENDPOINT
    kind: type[OSError] = OSError
    if isinstance(error, LocalEntryNotFoundError) and (cause is error or isinstance(cause, OfflineModeIsEnabled)):
        kind = FileNotFoundError
        why = (
            "it is not (or not all of it) in the cache, and HF_HUB_OFFLINE or `local_files_only` forbid to ask the Hub"
        )
        mend = "load it once while online, or give a folder"
    elif isinstance(cause, OfflineModeIsEnabled):
        kind, why, mend = ConnectionError, "HF_HUB_OFFLINE forbids to ask the Hub", "unset it"
    elif isinstance(cause, GatedRepoError):
        kind, why = PermissionError, "it is only for those whom its owner lets in"
        mend = f"ask at {hub}/{repo_id} and log in with `hf auth login`"
    elif isinstance(cause, RevisionNotFoundError):
        kind, why, mend = FileNotFoundError, "it has no such revision", "give one of its branches, tags or commits"
    elif isinstance(cause, EntryNotFoundError):
        kind, why, mend = (
            FileNotFoundError,
            "it has no such file, so no prompt is there",
            "check id, revision and folder",
        )
    elif isinstance(cause, RepositoryNotFoundError):
        kind, why = (
            FileNotFoundError,
            f"{hub} has no repository of this name, or not for this token, nor is it a folder",
        )
        mend = "check the name; if it is private, log in with `hf auth login` or pass `token`"
    elif status == 401:
        kind, why = PermissionError, "the Hub does not accept the token, or wants one (401)"
        mend = "log in with `hf auth login` or pass another `token`"
    elif status == 403:
        kind, why = PermissionError, "the token does not allow it (403)"
        mend = "use one that may write there, or propose the change with `create_pr=True`"
    elif status in (409, 412):
        why, mend = f"somebody else has changed it meanwhile ({status})", "do it again"
    elif status == 429:
        why, mend = "the Hub gets too many requests from here (429)", "wait some minutes and do it again"
    elif status >= 500:
        why, mend = f"the Hub has a problem of its own ({status})", "do it again later"
    elif status:
        told = getattr(cause, "server_message", None) or "no reason given"
        why, mend = f"the Hub refuses it ({status}: {_without_tokens(told)})", "mend that and do it again"
    elif isinstance(cause, HTTPError | ConnectionError | TimeoutError):
        kind, why = ConnectionError, f"{hub} cannot be reached, or the connection broke ({type(cause).__name__})"
        mend = "check the connection and do it again"
    elif isinstance(cause, json.JSONDecodeError):
        why, mend = f"{hub} answers something that no Hub would", "check HF_ENDPOINT and proxy, and do it again"
    elif getattr(cause, "errno", None) == errno.ENOSPC:
        why, mend = "the disk is full", "free some space and do it again"
    else:
        why, mend = _without_tokens(cause) or type(cause).__name__, "mend that and do it again"
    return kind(f"Could not {what} {repo_id}: {why}; {mend}.")


def _without_tokens(text: Any) -> str:
    return re.sub(r"hf_\w+", "hf_…", plain(text)).rstrip(".")
