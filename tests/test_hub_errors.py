"""What is wrong between here and the Hub, where no server can show it: disks, ids, and errors within errors."""

from __future__ import annotations

import errno
import json
from itertools import pairwise

import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from transferable_vp.hub_errors import explain


def chained(*errors: BaseException) -> BaseException:
    """The first, raised from the second, and so on."""
    for error, cause in pairwise(errors):
        error.__cause__ = cause
    return errors[0]


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            OSError,
            "the disk is full; free some space and do it again",
        ),
        (TimeoutError("took long"), ConnectionError, "cannot be reached, or the connection broke (TimeoutError)"),
        (
            chained(RuntimeError("Error while uploading 'a' to the Hub."), ConnectionResetError("reset")),
            ConnectionError,
            "the connection broke (ConnectionResetError)",
        ),
        (chained(ValueError("Force download failed"), TimeoutError("x")), ConnectionError, "broke (TimeoutError)"),
        (LocalEntryNotFoundError("not there"), FileNotFoundError, "load it once while online, or give a folder."),
        (
            chained(LocalEntryNotFoundError("not there"), OfflineModeIsEnabled("offline")),
            FileNotFoundError,
            "load it once while online, or give a folder.",
        ),
        (chained(LocalEntryNotFoundError("not there"), ConnectionError("x")), ConnectionError, "cannot be reached"),
        (OfflineModeIsEnabled("offline"), ConnectionError, "HF_HUB_OFFLINE forbids to ask the Hub; unset it."),
        (
            HFValidationError("Repo id must be one name."),
            OSError,
            ": Repo id must be one name; mend that and do it again.",
        ),
        (json.JSONDecodeError("Expecting value", "<html>", 0), OSError, "answers something that no Hub would"),
        (RuntimeError("sent with hf_secretToken1"), OSError, ": sent with hf_…; mend that"),
        (RuntimeError("one\nline\x1b[2J"), OSError, ": one line [2J; mend that"),
        (RuntimeError(), OSError, ": RuntimeError; mend that"),
    ],
)
def test_one_sentence(error: BaseException, kind: type[OSError], sentence: str) -> None:
    told = explain(error, "org/prompt", "load config.json of")
    assert type(told) is kind
    assert str(told).startswith("Could not load config.json of org/prompt: ") and sentence in str(told)
    assert str(told).endswith(".") and str(told).isprintable()
