from __future__ import annotations

import logging

import pytest

from transferable_vp.credentials import find_key, normalise_url


KEY = "sk-this-is-a-secret"
LOCAL = "http://127.0.0.1:8000/v1"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("MY_KEY", raising=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        (" http://localhost:8000/v1/ ", "http://localhost:8000/v1"),
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1"),
        ("https://models.example.org/qwen", "https://models.example.org/qwen/v1"),
        ("https://models.example.org/v2x/", "https://models.example.org/v2x"),
        ("https://models.example.org/v1beta/openai/", "https://models.example.org/v1beta/openai"),
        ("https://models.example.org/chat/completions", "https://models.example.org"),
        ("http://localhost:8000/v1/chat/completions/", "http://localhost:8000/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_addresses_are_taken_as_people_write_them(given: str, expected: str) -> None:
    assert normalise_url(given) == expected


@pytest.mark.parametrize("given", ["", "localhost:8000", "ftp://host/v1", "http://", "/v1"])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="expected one such as 'http://localhost:8000/v1'"):
        normalise_url(given)


@pytest.mark.parametrize(
    "given", [f"https://user:{KEY}@host/v1", f"https://host/v1?key={KEY}", f"https://host/v1#{KEY}"]
)
def test_keys_in_addresses_are_refused_and_not_shown(given: str) -> None:
    with pytest.raises(ValueError, match="Put keys into the environment") as caught:
        normalise_url(given)
    assert KEY not in str(caught.value)


def test_the_key_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("MY_KEY", f" {KEY}-2\n")
    assert find_key(None, None, LOCAL) == (KEY, "the key in the environment variable OPENAI_API_KEY")
    assert find_key(None, "MY_KEY", LOCAL) == (f"{KEY}-2", "the key in the environment variable MY_KEY")
    assert find_key("given", "MY_KEY", LOCAL) == ("given", "the argument `api_key`")


def test_servers_without_authentication_get_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_key(None, None, LOCAL) == (
        "EMPTY",
        "the key in the environment variable OPENAI_API_KEY, which is not set",
    )
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert find_key(None, None, LOCAL)[0] == "EMPTY"


def test_a_variable_that_is_named_has_to_hold_a_key() -> None:
    with pytest.raises(ValueError, match="The environment variable MY_KEY holds no key"):
        find_key(None, "MY_KEY", LOCAL)


def test_a_key_in_place_of_a_variable_is_not_shown() -> None:
    for mistaken in (KEY, "hf_AbCd"):
        with pytest.raises(ValueError, match="names no environment variable") as caught:
            find_key(None, mistaken, LOCAL)
        assert mistaken not in str(caught.value)


@pytest.mark.parametrize("key", ["", "two words", "line\nend", "sk-café"])
def test_keys_that_no_header_can_carry_are_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="other characters no key has") as caught:
        find_key(key, None, LOCAL)
    assert not key or key not in str(caught.value)


def test_the_general_key_going_out_unencrypted_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("MY_KEY", KEY)
    with caplog.at_level(logging.WARNING):
        for url in (LOCAL, "http://localhost/v1", "http://[::1]:80/v1", "https://node3/v1"):
            find_key(None, None, url)
        find_key(None, "MY_KEY", "http://node3:8000/v1")
        assert not caplog.records
        find_key(None, None, "http://node3:8000/v1")
    assert "OPENAI_API_KEY goes to http://node3:8000/v1 unencrypted" in caplog.text
    assert KEY not in caplog.text
