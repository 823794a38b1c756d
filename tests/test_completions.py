from __future__ import annotations

import json
import math
from typing import Any

import pytest

from transferable_vp.completions import (
    NoLogProbs,
    UnusableCompletion,
    error_message,
    first_choice,
    letter_logprobs,
    refused,
    text_of,
    why_empty,
)


NOTHING = [-math.inf, -math.inf]


def choice_of(*named: tuple[str, float | None], chosen: tuple[str, float] = ("A", -0.1)) -> dict[str, Any]:
    top = [{"token": token, "logprob": value} for token, value in named]
    return {"logprobs": {"content": [{"token": chosen[0], "logprob": chosen[1], "top_logprobs": top}]}}


def test_the_first_choice_is_given() -> None:
    assert first_choice('{"choices": [{"index": 0}, {"index": 1}]}') == {"index": 0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<html>Log in</html>", "not JSON but '<html>Log in</html>'"),
        ('{"choices": [{"mess', "not JSON"),
        ("", "not JSON"),
        ('{"choices": []}', "no choices"),
        ('{"choices": null}', "no choices"),
        ('{"choices": ["yes"]}', "no choices"),
        ("[]", "no choices"),
        ("null", "no choices"),
        ('{"error": {"message": "upstream is busy", "code": 503}}', "says 'upstream is busy'"),
    ],
)
def test_what_is_no_completion_is_said_to_be_none(text: str, said: str) -> None:
    with pytest.raises(UnusableCompletion, match=said):
        first_choice(text)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": " red\n"}, " red\n"),
        ({"content": None}, ""),
        ({"content": None, "refusal": "I cannot help"}, ""),
        ({}, ""),
        (None, ""),
        ({"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "red"}]}, "red"),
    ],
)
def test_the_text_is_the_answer_as_it_came(message: Any, text: str) -> None:
    assert text_of({"message": message}) == text


def test_every_letter_gets_the_probability_of_its_tokens() -> None:
    choice = choice_of(("A", math.log(0.5)), (" A", math.log(0.2)), ("\u0120B", math.log(0.1)), ("a", -1), ("Ab", -1))
    assert letter_logprobs(choice, 3) == pytest.approx([math.log(0.7), math.log(0.1), -math.inf])


def test_letters_beyond_the_candidates_are_not_counted() -> None:
    assert letter_logprobs(choice_of(("C", -0.1), ("B", -3.0), chosen=("C", -0.1)), 2) == [-math.inf, -3.0]


def test_the_chosen_token_counts_once() -> None:
    assert letter_logprobs(choice_of(("A", -0.1), ("B", -3.0)), 2) == pytest.approx([-0.1, -3.0])
    assert letter_logprobs(choice_of(), 2) == pytest.approx([-0.1, -math.inf])


def test_no_letter_is_likelier_than_certain() -> None:
    assert letter_logprobs(choice_of(("A", 0.0), (" A", -9.0), chosen=("A", 0.0)), 1) == [0.0]


def test_very_unlikely_letters_are_still_ranked() -> None:
    assert letter_logprobs(choice_of(("B", -900.0), ("C", -950.0)), 3)[1:] == [-900.0, -950.0]


def test_tokens_without_a_value_are_left_out() -> None:
    assert letter_logprobs(choice_of(("B", None)), 2) == pytest.approx([-0.1, -math.inf])


@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}, "none"])
def test_a_server_without_log_probabilities_is_no_ranking(logprobs: Any) -> None:
    with pytest.raises(NoLogProbs, match="no log-probabilities"):
        letter_logprobs({"logprobs": logprobs, "message": {"content": "A"}}, 2)


def test_a_refusal_and_an_empty_answer_choose_nothing() -> None:
    assert letter_logprobs({"finish_reason": "content_filter"}, 2) == NOTHING
    assert letter_logprobs({"logprobs": {"content": []}}, 2) == NOTHING


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"finish_reason": "content_filter", "message": {"content": ""}}, True),
        ({"finish_reason": "stop", "message": {"content": None, "refusal": "no"}}, True),
        ({"finish_reason": "stop", "message": {"content": None, "refusal": None}}, False),
        ({"finish_reason": "stop"}, False),
    ],
)
def test_refusals_are_told_from_silence(choice: dict[str, Any], expected: bool) -> None:
    assert refused(choice) is expected


@pytest.mark.parametrize(
    ("choice", "result", "why"),
    [
        ({}, "red", None),
        ({}, [-math.inf, -2.0], None),
        ({"finish_reason": "content_filter"}, "", "refused"),
        ({"finish_reason": "length"}, " ", "max_tokens"),
        ({"finish_reason": "stop"}, "", "said nothing"),
        ({"finish_reason": "length"}, NOTHING, "no letter"),
        ({"finish_reason": "content_filter"}, NOTHING, "refused"),
    ],
)
def test_the_reason_of_an_empty_answer_is_named(choice: dict[str, Any], result: Any, why: str | None) -> None:
    found = why_empty(choice, result)
    assert found is None if why is None else why in str(found)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "bad key", "code": "invalid"}}, "bad key"),
        ({"error": "bad key"}, "bad key"),
        ({"message": "bad key", "type": "x"}, "bad key"),
        ({"detail": "Not Found"}, "Not Found"),
        ("<html>\n <b>502</b>", "<html> <b>502</b>"),
        ("x" * 1000, "x" * 300 + "..."),
        ({}, ""),
        (None, ""),
    ],
)
def test_messages_are_found_in_every_dialect(body: Any, message: str) -> None:
    assert error_message(body) == message


def test_detail_lists_are_shown() -> None:
    body = json.loads('{"detail": [{"loc": ["body", "top_logprobs"], "msg": "too large"}]}')
    assert "too large" in error_message(body)
