"""What a chat completion says: answers, log-probabilities, refusals and errors, in the dialects that servers speak."""

from __future__ import annotations

import json
import math
import string
from typing import Any

import numpy as np


# How vocabularies write the space before a word; some servers name tokens that way.
SPACES = " \n\t\u2581\u0120"


class UnusableCompletion(Exception):
    """What a server sent is no chat completion."""


class NoLogProbs(Exception):
    """A chat completion without the log-probabilities that were asked for."""


def first_choice(text: str) -> dict[str, Any]:
    r"""
    The first choice of a chat completion.

    Args:
        text (`str`): The body of the response.

    Raises:
        UnusableCompletion: If it is not JSON, or there are no choices; with what the server says of it, if anything.
    """
    try:
        body = json.loads(text)
    except ValueError:
        raise UnusableCompletion(f"it is not JSON but {_short(text)!r}") from None
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        # Routers in front of other servers pass an error on like this, with the status 200.
        said = error_message(body) if isinstance(body, dict) and "error" in body else ""
        raise UnusableCompletion("it has no choices" + (f" but says {said!r}" if said else ""))
    return choices[0]


def text_of(choice: dict[str, Any]) -> str:
    """The answer as it came; the empty text if there is none, as after a refusal."""
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        # Parts, of which those of a reasoning model's thought have no "text".
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def letter_logprobs(choice: dict[str, Any], count: int) -> list[float]:
    r"""
    Log-probabilities of the letters A, B, C and so on as the first token of an answer.

    Tokens that differ in nothing but the space before the letter add up.

    Args:
        choice (`dict`): The choice, asked for with `logprobs` and `top_logprobs`.
        count (`int`): How many letters, 1 to 26.

    Returns:
        `list[float]`: One for every letter, 0 at most; `-inf` for a letter that is not among the tokens named.

    Raises:
        NoLogProbs: If there are none.
    """
    scores = [-math.inf] * count
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict) or not isinstance(logprobs.get("content"), list):
        if refused(choice):
            return scores
        raise NoLogProbs("the answer has no log-probabilities")
    for first in logprobs["content"][:1]:
        # The token that was chosen is not on the list of every server.
        named = {entry.get("token"): entry.get("logprob") for entry in (first, *(first.get("top_logprobs") or ()))}
        for token, value in named.items():
            letter = str(token).strip(SPACES)
            if len(letter) == 1 and letter in string.ascii_uppercase[:count] and value is not None:
                index = string.ascii_uppercase.index(letter)
                scores[index] = float(np.logaddexp(scores[index], value))
    # Rounding on the server's side may add up to a little more than certainty.
    return [min(score, 0.0) for score in scores]


def refused(choice: dict[str, Any]) -> bool:
    """Whether the model or a filter in front of it refused to answer."""
    message = choice.get("message")
    return choice.get("finish_reason") == "content_filter" or (
        isinstance(message, dict) and bool(message.get("refusal"))
    )


def why_empty(choice: dict[str, Any], result: str | list[float]) -> str | None:
    """Why nothing can be read from `result`, the text or the scores of `choice`; `None` if something can."""
    if max(result) > -math.inf if isinstance(result, list) else result.strip():
        return None
    if refused(choice):
        return "the model or its filter refused"
    if isinstance(result, list):
        return "no letter is among the likeliest first tokens; use `answer` instead"
    if choice.get("finish_reason") == "length":
        return "`max_tokens` was used up before the answer, as by models that think first; raise it"
    return "the model said nothing"


def error_message(body: Any) -> str:
    """What a server says is wrong, in a line: OpenAI's form, FastAPI's, or the text of a page."""
    for key in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(key):
            return error_message(body[key])
    return _short(str(body)) if body else ""


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:300] + "..."
