"""A real `transformers serve` process with a model of the zoo, directly and behind a proxy that makes faults."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from serving import LoopbackServer, Reply, Request, Respond, forward, transformers_serve
from transformers import AutoModelForImageTextToText, AutoProcessor

from transferable_vp import TransferableVisualPrompt, TransferableVisualPromptConfig
from transferable_vp.bundled import bundled
from transferable_vp.endpoints import Endpoint, EndpointError, NoLogProbsError


for package in ("openai", "fastapi", "uvicorn"):
    pytest.importorskip(package)

# Loading the server takes some fifteen seconds.
pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

ZOO = "llava"
QUESTION = "What color is it?"
FAULTS = [
    Reply(drop=True),
    Reply({"error": "wait"}, 429, {"Retry-After": "1"}),
    Reply(b"out of memory", 500),
    Reply(delay=4),
    Reply(b'{"choices": [{"mess'),
    Reply({"choices": []}),
]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def start() -> Iterator[Callable[[Respond], LoopbackServer]]:
    with ExitStack() as stack:
        yield lambda respond: stack.enter_context(LoopbackServer(respond))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with transformers_serve(bundled(f"zoo/{ZOO}"), tmp_path_factory.mktemp("serve") / "log.txt") as url:
        yield url


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Prompted pictures of the zoo's world that a tiny model has different answers to."""
    prompt = TransferableVisualPrompt(TransferableVisualPromptConfig(canvas_size=64, border_size=8))
    sys.path.insert(0, str(bundled("zoo")))
    try:
        import world
    finally:
        sys.path.remove(str(bundled("zoo")))
    with torch.no_grad():
        prompt.delta.copy_(torch.rand(prompt.delta.shape, generator=torch.Generator().manual_seed(0)))
    rng = np.random.default_rng(5)
    return prompt.project_().apply([world.draw_scene(rng).image for _ in range(8)])


@pytest.fixture(scope="module")
def local_answers(pictures: list[Image.Image]) -> list[str]:
    """Greedy generation with the same chat template, here."""
    model = AutoModelForImageTextToText.from_pretrained(bundled(f"zoo/{ZOO}"))
    processor = AutoProcessor.from_pretrained(bundled(f"zoo/{ZOO}"))
    answers = []
    for image in pictures:
        content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        output = model.generate(**inputs, do_sample=False, max_new_tokens=16)
        answers.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


def zoo_endpoint(url: str, **more: Any) -> Endpoint:
    return Endpoint(str(bundled(f"zoo/{ZOO}")), url, **more)


def test_a_served_model_answers_what_it_answers_here(
    served: str, pictures: list[Image.Image], local_answers: list[str], start: Callable[[Respond], LoopbackServer]
) -> None:
    assert len(set(local_answers)) > 2
    proxy = start(forward(served))
    endpoint = zoo_endpoint(proxy.url, max_concurrency=3)
    assert endpoint.name == ZOO
    assert endpoint.answer(pictures, [QUESTION] * len(pictures), progress=False) == local_answers
    sent = {request.pixels.tobytes() for request in proxy.requests}
    assert sent == {np.asarray(image).tobytes() for image in pictures}


def test_a_served_model_behind_a_bad_line(
    served: str, pictures: list[Image.Image], local_answers: list[str], start: Callable[[Respond], LoopbackServer]
) -> None:
    order = itertools.count()

    def respond(request: Request) -> Reply:
        # Every other request goes wrong, each in its own way.
        turn, good = divmod(next(order), 2)
        return FAULTS[turn] if not good and turn < len(FAULTS) else forward(served)(request)

    proxy = start(respond)
    came: dict[int, str] = {}
    answers = zoo_endpoint(proxy.url, timeout=3, max_concurrency=2, max_retries=9).answer(
        pictures, [QUESTION] * len(pictures), on_answer=came.__setitem__, progress=False
    )
    assert answers == local_answers
    assert came == dict(enumerate(local_answers))
    assert len(proxy.requests) == len(pictures) + len(FAULTS)


def test_a_served_model_that_goes_away_leaves_what_it_said(
    served: str, pictures: list[Image.Image], local_answers: list[str], start: Callable[[Respond], LoopbackServer]
) -> None:
    order = itertools.count()
    proxy = start(lambda request: forward(served)(request) if next(order) < 4 else Reply(drop=True))
    came: dict[int, str] = {}
    with pytest.raises(EndpointError, match="4 of 8 answers of llava were finished: no answer over the connection"):
        zoo_endpoint(proxy.url, max_concurrency=1, max_retries=1).answer(
            pictures, [QUESTION] * len(pictures), on_answer=came.__setitem__, progress=False
        )
    assert came == dict(enumerate(local_answers[:4]))


def test_transformers_serve_gives_no_log_probabilities_and_knows_its_model(
    served: str, pictures: list[Image.Image]
) -> None:
    with pytest.raises(NoLogProbsError, match="use `answer`"):
        zoo_endpoint(served).rank(pictures[:1], [QUESTION], [["red", "green"]], progress=False)
    with pytest.raises(
        EndpointError, match=r"refuses the request \(400: Server is pinned to '.*llava'; requested 'no"
    ):
        Endpoint("no/such-model", served).answer(pictures[:1], [QUESTION], progress=False)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_transformers_serve_is_found_by_any_form_of_its_address(
    suffix: str, served: str, pictures: list[Image.Image], local_answers: list[str]
) -> None:
    assert zoo_endpoint(served + suffix).answer(pictures[:1], [QUESTION], progress=False) == local_answers[:1]
