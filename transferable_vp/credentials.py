"""Where a served model is and what opens it: the address and the key, which no log, report or message is to show."""

from __future__ import annotations

import logging
import os
import re
from urllib.parse import urlsplit


logger = logging.getLogger(__name__)

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
# What servers without authentication are given, as the client sends no request without a key.
NO_KEY = "EMPTY"


def normalise_url(url: str) -> str:
    r"""
    The address that the client is given: with the version, without the route and the closing slash.

    Args:
        url (`str`): As people write it: `http://localhost:8000`, `https://openrouter.ai/api/v1/`, or the address of
            `/chat/completions` itself, which is taken by its word.

    Raises:
        ValueError: If it is no http URL, or has a user, a password, a query or a fragment in it.
    """
    parts = urlsplit(url.strip())
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # Not shown, as these are where keys are put.
        raise ValueError(
            "The base URL has a user, password, query or fragment in it; expected only scheme, host and path. Put keys "
            "into the environment, where no log shows them."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"The base URL is {url!r}; expected one such as 'http://localhost:8000/v1'.")
    path = parts.path.rstrip("/")
    if path.endswith("/chat/completions"):
        path = path.removesuffix("/chat/completions")
    elif not re.search(r"/v\d\w*(/|$)", path):
        path += "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def find_key(api_key: str | None, variable: str | None, base_url: str) -> tuple[str, str]:
    r"""
    The key for a server.

    Args:
        api_key (`str`, *optional*): The key, if it is given and not looked for.
        variable (`str`, *optional*): The environment variable to look in; `OPENAI_API_KEY` may be empty, others not.
        base_url (`str`): The server's address.

    Returns:
        `tuple[str, str]`: The key, and how a message would say where it is from.

    Raises:
        ValueError: If the named variable holds none, or the key has characters that no key has.
    """
    source = "the argument `api_key`"
    if api_key is None:
        api_key = os.environ.get(variable or DEFAULT_KEY_VARIABLE, "").strip()
        source = f"the key in the environment variable {variable or DEFAULT_KEY_VARIABLE}"
        if not api_key and variable is not None:
            if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):
                # Not shown: it may well be the key itself.
                raise ValueError(
                    "`api_key_env` names no environment variable that is set; expected a name such as OPENAI_API_KEY, and "
                    "the key in that variable."
                )
            raise ValueError(f"The environment variable {variable} holds no key: set it, or name another one.")
        if not api_key:
            return NO_KEY, f"{source}, which is not set"
        host = urlsplit(base_url).hostname or ""
        if variable is None and base_url.startswith("http:") and not re.fullmatch(r"localhost|::1|127[.\d]*", host):
            logger.warning(
                "The key in %s goes to %s unencrypted; name another variable if it is not meant for it.",
                DEFAULT_KEY_VARIABLE, base_url,
            )  # fmt: skip
    if not re.fullmatch(r"[!-~]+", api_key):
        # What an HTTP library says of such a header quotes it.
        raise ValueError(f"The key ({source}) is empty or has spaces, line ends or other characters no key has.")
    return api_key, source
