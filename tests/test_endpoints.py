"""The real client over HTTP, against a server that answers as a test says. A real server: test_endpoints_served.py."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from serving import LoopbackServer, Reply, Request, Respond, completion, decoded, faulty

from transferable_vp import TransferableVisualPrompt, TransferableVisualPromptConfig
from transferable_vp.endpoints import Endpoint, EndpointError, NoLogProbsError, backoff, data_url


pytest.importorskip("openai")

KEY = "sk-this-is-a-secret"
IMAGE = Image.new("RGB", (4, 4), (1, 2, 3))
BUSY = Reply({"error": {"message": "too many requests"}}, 429, {"retry-after-ms": "1"})
BROKEN = Reply({"error": {"message": "out of memory"}}, 500, {"retry-after-ms": "1"})
# Everything that is asked again, and what is said when it does not pass.
FAULTS = {
    "dropped": (Reply(drop=True), r"no answer over the connection to http://127.*RemoteProtocolError"),
    "busy": (BUSY, "429: too many requests.*lower `max_concurrency`"),
    "broken": (BROKEN, "500: out of memory.*check the server's log"),
    "gateway": (Reply(b"<html>Bad Gateway</html>", 502, {"retry-after-ms": "1"}), "502: <html>Bad Gateway"),
    "slow": (Reply({"choices": []}, delay=3), "no answer within 0.4 s in 2 requests"),
    "malformed": (Reply(b'{"choices": [{"mess'), "no chat completion: it is not JSON"),
    "page": (Reply(b"<html>Log in</html>", headers={"Content-Type": "text/html"}), "not JSON but '<html>Log in"),
    "no choices": (Reply({"choices": []}), "it has no choices; check the base URL"),
    "error inside": (Reply({"error": {"message": "upstream is busy"}}), "says 'upstream is busy'"),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def start() -> Iterator[Callable[[Respond], LoopbackServer]]:
    with ExitStack() as stack:
        yield lambda respond: stack.enter_context(LoopbackServer(respond))


def echo(request: Request) -> Reply:
    return completion(f"to {request.text}")


def ask(endpoint: Endpoint, questions: Sequence[str], **more: Any) -> list[str]:
    return endpoint.answer([IMAGE] * len(questions), questions, progress=False, **more)


def test_pixels_arrive_to_the_bit(start: Callable[[Respond], LoopbackServer]) -> None:
    prompt = TransferableVisualPrompt(TransferableVisualPromptConfig(canvas_size=48, border_size=9))
    with torch.no_grad():
        prompt.delta.uniform_(0, 1)
    images = prompt.project_().apply([tiny.picture(50, 40, seed=seed) for seed in range(3)])
    server = start(echo)
    Endpoint("m", server.url, max_concurrency=1).answer(images, ["?"] * 3, progress=False)
    for request, image in zip(server.requests, images, strict=True):
        assert request.url.startswith("data:image/png;base64,")
        np.testing.assert_array_equal(request.pixels, np.asarray(image))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_images_of_any_mode_become_what_local_models_are_given(mode: str) -> None:
    image = tiny.picture(20, 16).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    sent = decoded(data_url(image))
    expected = tiny.picture(20, 16).convert("L") if mode == "I;16" else image
    np.testing.assert_array_equal(sent, np.asarray(expected.convert("RGB")))


def test_what_is_sent(start: Callable[[Respond], LoopbackServer]) -> None:
    server = start(echo)
    endpoint = Endpoint("org/model", server.url, api_key=KEY, max_tokens=7)
    assert ask(endpoint, ["What {is} it?"]) == ["to What {is} it?"]
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    (message,) = request.body["messages"]
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert {k: v for k, v in request.body.items() if k != "messages"} == {
        "model": "org/model", "temperature": 0, "max_tokens": 7,
    }  # fmt: skip


def test_candidates_follow_the_question(start: Callable[[Respond], LoopbackServer]) -> None:
    server = start(lambda request: completion("whatever"))
    answers = Endpoint("m", server.url).answer([IMAGE], ["Is it {options}?"], [["a, b", "{question}"]], progress=False)
    assert answers == ["whatever"]
    assert server.requests[0].text == (
        "Is it {options}?\nOptions:\n- a, b\n- {question}\nAnswer with one of the options, exactly as it is written."
    )


def test_fields_can_be_added_changed_and_left_out(start: Callable[[Respond], LoopbackServer]) -> None:
    server = start(echo)
    extra = {"max_tokens": None, "max_completion_tokens": 99, "temperature": 1}
    endpoint = Endpoint("m", server.url, extra_body=extra)
    ask(endpoint, ["?"])
    sent = {k: v for k, v in server.requests[0].body.items() if k != "messages"}
    assert sent == {"model": "m", "temperature": 1, "max_completion_tokens": 99}
    settings = endpoint.settings
    assert "Answer with one of the options" in str(settings.pop("wording"))
    assert settings == sent | {"base_url": f"{server.url}/v1"}


def test_answers_are_in_order_and_come_as_they_are_ready(start: Callable[[Respond], LoopbackServer]) -> None:
    server = start(lambda request: completion(request.text, index=0) if request.text != "0" else slow_completion())

    came: list[tuple[int, str]] = []
    answers = ask(Endpoint("m", server.url), list("0123"), on_answer=lambda index, text: came.append((index, text)))
    assert answers == list("0123")
    assert sorted(came) == list(enumerate("0123"))
    assert came[-1] == (0, "0")


def slow_completion() -> Reply:
    reply = completion("0")
    reply.delay = 0.4
    return reply


@pytest.mark.parametrize("limit", [1, 3])
def test_requests_in_flight_are_bounded(limit: int, start: Callable[[Respond], LoopbackServer]) -> None:
    server = start(lambda request: Reply(completion("x").body, delay=0.05))
    ask(Endpoint("m", server.url, max_concurrency=limit), ["?"] * 8)
    assert server.most == limit


def test_images_are_read_when_they_are_needed(start: Callable[[Respond], LoopbackServer]) -> None:
    read: list[int] = []

    class Lazy(list[Image.Image]):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            # One in flight, one being made ready.
            assert len(read) <= len(server.requests) + 2
            return super().__getitem__(index)

    server = start(echo)
    Endpoint("m", server.url, max_concurrency=2).answer(Lazy([IMAGE] * 6), ["?"] * 6, progress=False)
    assert read == list(range(6))


def test_every_fault_is_asked_again(start: Callable[[Respond], LoopbackServer]) -> None:
    server = start(faulty({name: [reply] for name, (reply, _) in FAULTS.items()}, echo))
    answers = ask(Endpoint("m", server.url, timeout=0.8, max_concurrency=16), list(FAULTS))
    assert answers == [f"to {name}" for name in FAULTS]
    assert len(server.requests) == 2 * len(FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_is_reported(name: str, start: Callable[[Respond], LoopbackServer]) -> None:
    reply, message = FAULTS[name]
    server = start(lambda request: reply)
    with pytest.raises(EndpointError, match=f"Row 0 failed when 0 of 1 answers of m were finished: .*{message}"):
        ask(Endpoint("m", server.url, timeout=0.4, max_retries=1), ["?"])
    assert len(server.requests) == 2


def test_retries_of_all_kinds_share_one_budget(start: Callable[[Respond], LoopbackServer]) -> None:
    malformed, empty = FAULTS["malformed"][0], FAULTS["no choices"][0]
    server = start(faulty({"?": [BROKEN, malformed, BUSY, empty]}, echo))
    with pytest.raises(EndpointError, match="has no choices"):
        ask(Endpoint("m", server.url, max_retries=3), ["?"])
    assert len(server.requests) == 4


def test_waits_grow_and_servers_are_given_the_time_they_ask_for(start: Callable[[Respond], LoopbackServer]) -> None:
    faults = {
        "status": [Reply(status=500)] * 2,
        "body": [Reply({})] * 2,
        "asked": [Reply({"error": "wait"}, 429, {"Retry-After": "1"})] * 2,
    }
    server = start(faulty(faults, echo))
    ask(Endpoint("m", server.url), list(faults))
    for name in ("status", "body"):
        times = [request.time for request in server.requests if request.text == name]
        first, second = np.diff(times)
        assert 0.37 < first < 0.75 < second < 1.3
    assert min(np.diff([request.time for request in server.requests if request.text == "asked"])) >= 1


def test_our_own_waits_are_those_of_the_client() -> None:
    for retry, longest in enumerate([0.5, 1, 2, 4, 8, 8]):
        waits = {backoff(retry) for _ in range(50)}
        assert len(waits) > 1
        assert 0.75 * longest <= min(waits) <= max(waits) <= longest
    assert backoff(10_000) <= 8


def test_a_server_that_asks_for_too_long_a_wait_is_reported(start: Callable[[Respond], LoopbackServer]) -> None:
    server = start(lambda request: Reply({"error": "quota"}, 429, {"Retry-After": "3600"}))
    with pytest.raises(EndpointError, match="429: quota"):
        ask(Endpoint("m", server.url), ["?"])
    assert len(server.requests) == 1


def test_a_server_that_trickles_is_given_up(start: Callable[[Respond], LoopbackServer]) -> None:
    server = start(lambda request: Reply(completion("x").body, trickle=0.05))
    begin = time.monotonic()
    with pytest.raises(EndpointError, match=r"it was not complete after 0\.3 s"):
        ask(Endpoint("m", server.url, timeout=0.3, max_retries=0), ["?"])
    assert time.monotonic() - begin < 3


def test_nothing_that_was_finished_or_under_way_is_lost(start: Callable[[Respond], LoopbackServer]) -> None:
    def respond(request: Request) -> Reply:
        if request.text == "bad":
            return BROKEN
        return Reply(echo(request).body, delay=0.5 if request.text == "slow" else 0.0)

    server = start(respond)
    kept: dict[int, str] = {}
    endpoint = Endpoint("org/m", server.url, max_retries=1, max_concurrency=2)
    with pytest.raises(EndpointError, match=r"Row 2 failed when 2 of 6 answers of m were finished: .*500") as caught:
        ask(endpoint, ["a", "slow", "bad", "never", "never", "never"], on_answer=kept.__setitem__)
    # The slow one came half a second after the failure.
    assert kept == {0: "to a", 1: "to slow"}
    assert caught.value.answers == ["to a", "to slow", None, None, None, None]
    assert "never" not in {request.text for request in server.requests}


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"does not accept the key \(401: who are you\); check the key in the environment variable MY_KEY\."),
        (403, r"\(403: who are you\); check that the key may use the model 'org/m', and the key in .* MY_KEY"),
        (404, r"has no model 'org/m'.*\(404: who are you\); check the model's name and the base URL"),
        (400, r"refuses the request \(400: who are you\); `extra_body`"),
    ],
)
def test_what_no_retry_mends_stops_at_once(
    status: int, message: str, start: Callable[[Respond], LoopbackServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server = start(lambda request: Reply({"detail": "who are you"}, status))
    with pytest.raises(EndpointError, match=message):
        ask(Endpoint("org/m", server.url, api_key_env="MY_KEY", max_concurrency=2), ["?"] * 50)
    assert len(server.requests) <= 2


def test_no_server_at_all_is_reported() -> None:
    with LoopbackServer(echo) as server:
        url = server.url
    with pytest.raises(EndpointError, match="check that the server is running"):
        ask(Endpoint("m", url, max_retries=0), ["?"])


def test_refusals_and_silence_are_empty_answers_that_are_said(
    start: Callable[[Respond], LoopbackServer], caplog: pytest.LogCaptureFixture
) -> None:
    azure = Reply({"error": {"message": "filtered", "code": "content_filter"}}, 400)
    replies = {
        "none": completion(None, message={"role": "assistant", "content": None, "refusal": "no"}),
        "filter": completion("", finish_reason="content_filter"),
        "azure": azure,
        "thinks": completion("", finish_reason="length"),
        "answers": completion("red"),
    }
    server = start(lambda request: replies[request.text])
    with caplog.at_level(logging.WARNING):
        assert ask(Endpoint("m", server.url), list(replies)) == ["", "", "", "", "red"]
    assert "m: 3 of 5 answers are empty: the model or its filter refused" in caplog.text
    assert "m: 1 of 5 answers are empty: `max_tokens` was used up" in caplog.text


def test_a_running_loop_is_no_obstacle(start: Callable[[Respond], LoopbackServer]) -> None:
    server = start(echo)

    async def notebook() -> list[str]:
        return ask(Endpoint("m", server.url), ["a", "b"])

    assert asyncio.run(notebook()) == ["to a", "to b"]


# Slow for what it is: a signal to its own process, which the workers of a parallel run do not always hand on in time.
@pytest.mark.slow
def test_an_interrupt_stops_the_requests_of_a_running_loop(start: Callable[[Respond], LoopbackServer]) -> None:
    asked = threading.Event()

    def respond(request: Request) -> Reply:
        asked.set()
        return Reply(delay=30)

    server = start(respond)

    def interrupt() -> None:
        if asked.wait(20):
            os.kill(os.getpid(), signal.SIGINT)

    async def notebook() -> None:
        ask(Endpoint("m", server.url), ["?"])

    threading.Thread(target=interrupt, daemon=True).start()
    loop = asyncio.new_event_loop()
    begin = time.monotonic()
    # Not `asyncio.run`, which handles the signal itself, as a notebook's loop does not.
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(notebook())
    loop.close()
    assert time.monotonic() - begin < 20


def test_an_interrupt_keeps_what_is_finished(start: Callable[[Respond], LoopbackServer]) -> None:
    kept: dict[int, str] = {}

    def keep(index: int, text: str) -> None:
        kept[index] = text
        if len(kept) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(Endpoint("m", start(echo).url, max_concurrency=1), list("abcdef"), on_answer=keep)
    assert kept == {0: "to a", 1: "to b", 2: "to c"}


def test_errors_that_are_not_the_servers_stay_what_they_are(start: Callable[[Respond], LoopbackServer]) -> None:
    server = start(echo)

    def full(index: int, text: str) -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match=r"^No space left on device$"):
        ask(Endpoint("m", server.url, max_concurrency=1), ["?"] * 5, on_answer=full)
    assert len(server.requests) == 1
    with pytest.raises(TypeError, match="Got str where an image is needed"):
        Endpoint("m", server.url).answer(["photo.jpg"], ["?"], progress=False)  # type: ignore[list-item]


def test_a_key_shows_nowhere(
    start: Callable[[Respond], LoopbackServer], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2", "asyncio", "transferable_vp"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    said = f"Incorrect API key provided: {KEY}"
    replies = {
        "401": Reply({"error": {"message": said}}, 401),
        "400": Reply({"detail": said}, 400),
        "404": Reply(said.encode(), 404),
        "500": Reply({"error": said}, 500, {"retry-after-ms": "1"}),
        "malformed": Reply(said.encode()),
        "error": Reply({"error": {"message": said}}),
        "dropped": Reply(drop=True),
        "fine": completion("red"),
    }
    server = start(lambda request: replies[request.text])
    endpoint = Endpoint("m", server.url, max_retries=1)
    shown = [
        repr(endpoint),
        str(endpoint),
        repr(vars(endpoint)),
        repr(endpoint.settings),
        repr(copy.deepcopy(endpoint)),
    ]
    with caplog.at_level(logging.DEBUG):
        for question in replies:
            try:
                endpoint.answer([IMAGE], [question], description="bar")
            except EndpointError as error:
                shown += [*traceback.format_exception(error), repr(error), repr(error.__context__), str(vars(error))]
    assert len(shown) > 5 + 7 * 3
    assert any("<key>" in text for text in shown)
    assert all(request.headers["authorization"] == f"Bearer {KEY}" for request in server.requests)
    # The logs are those of every layer, so that there was something to find.
    assert {"openai", "httpcore"} <= {record.name.split(".")[0].rstrip("2") for record in caplog.records}
    out, err = capfd.readouterr()
    assert "bar" in err
    for text in (*shown, caplog.text, *(str(record.__dict__) for record in caplog.records), out, err):
        assert KEY not in text
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(endpoint)


def test_a_missing_client_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r'pip install "transferable-vp\[api\]"'):
        Endpoint("m", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": ""}, "name is empty"),
        ({"base_url": "localhost"}, "The base URL is 'localhost'"),
        ({"max_concurrency": 0}, "`max_concurrency` is 0; expected a whole number, at least 1"),
        ({"max_retries": -1}, "`max_retries` is -1"),
        ({"max_tokens": 1.5}, "`max_tokens` is 1.5"),
        ({"timeout": 0}, "`timeout` is 0"),
        ({"api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY holds no key"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Endpoint(**({"model": "m", "base_url": "http://127.0.0.1:1"} | arguments))


def test_rows_that_do_not_belong_together_are_refused() -> None:
    endpoint = Endpoint("m", "http://127.0.0.1:1")
    with pytest.raises(ValueError, match="Got 1 images and 2 questions"):
        endpoint.answer([IMAGE], ["a", "b"])
    with pytest.raises(ValueError, match="Got 2 lists of candidates for 1 questions"):
        endpoint.answer([IMAGE], ["a"], [["x"], ["y"]])
    with pytest.raises(ValueError, match="expected a list of texts for every question"):
        endpoint.answer([IMAGE], ["a"], ["x"])
    with pytest.raises(ValueError, match="Row 0 has 27 candidates; expected 1 to 26"):
        endpoint.rank([IMAGE], ["a"], [["x"] * 27])
    assert endpoint.answer([], []) == []


def test_the_name_is_the_last_part_of_the_model() -> None:
    assert Endpoint("org/model/", "http://127.0.0.1:1").name == "model"
    assert Endpoint("org/model", "http://127.0.0.1:1", name="other").name == "other"


def test_the_bar_counts_answers_and_retries(
    start: Callable[[Respond], LoopbackServer], capsys: pytest.CaptureFixture[str]
) -> None:
    server = start(faulty({"?": [BUSY, BUSY]}, echo))
    endpoint = Endpoint("m", server.url)
    endpoint.answer([IMAGE], ["?"], progress=False)
    assert capsys.readouterr().err == ""
    server.respond = faulty({"?": [BUSY, BUSY]}, echo)
    endpoint.answer([IMAGE], ["?"], description="cats")
    shown = capsys.readouterr().err
    assert "cats: 100%" in shown
    assert "1/1" in shown
    assert "retries=2" in shown


def scored(**logprobs: float) -> Reply:
    top = [{"token": token, "logprob": value, "bytes": None} for token, value in logprobs.items()]
    return completion(top[0]["token"], logprobs={"content": [{**top[0], "top_logprobs": top}]})


def test_candidates_are_ranked_by_their_letters(
    start: Callable[[Respond], LoopbackServer], caplog: pytest.LogCaptureFixture
) -> None:
    replies = {"one": scored(B=-0.1, A=-3.0), "two": scored(C=-0.2, B=-2.0), "three": scored(The=-0.1)}
    server = start(lambda request: replies[request.text.split("\n")[0]])
    came: dict[int, list[float]] = {}
    scores = Endpoint("m", server.url, max_concurrency=1).rank(
        [IMAGE] * 3, list(replies), [["cat", "dog"], ["red", "green", "blue"], ["yes", "no"]], progress=False,
        on_scores=came.__setitem__,
    )  # fmt: skip
    assert scores == [[-3.0, -0.1], [-math.inf, -2.0, -0.2], [-math.inf, -math.inf]]
    assert came == dict(enumerate(scores))
    assert server.requests[1].text == (
        "two\nOptions:\nA. red\nB. green\nC. blue\nAnswer with the letter of the right option, and nothing else."
    )
    body = server.requests[0].body
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)
    assert "1 of 3 answers are empty: no letter is among the likeliest first tokens" in caplog.text


@pytest.mark.parametrize(
    "reply",
    [
        completion("A", logprobs=None),
        Reply({"error": {"message": "logprobs are not supported with this model"}}, 400),
        Reply({"detail": "Requested top_logprobs of 20, max is 5"}, 422),
    ],
)
def test_a_server_without_log_probabilities_is_told_from_others(
    reply: Reply, start: Callable[[Respond], LoopbackServer]
) -> None:
    server = start(lambda request: reply)
    with pytest.raises(NoLogProbsError, match=r"log-probabilities.*use `answer`"):
        Endpoint("m", server.url, max_concurrency=1).rank([IMAGE] * 4, ["?"] * 4, [["x", "y"]] * 4, progress=False)
    assert len(server.requests) == 1
