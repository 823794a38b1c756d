"""Models behind an OpenAI-compatible server: prompted images out as PNG, answers back, nothing lost on the way."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import random
import string
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm.auto import tqdm

from .completions import (
    NoLogProbs,
    UnusableCompletion,
    error_message,
    first_choice,
    letter_logprobs,
    text_of,
    why_empty,
)
from .credentials import NO_KEY, find_key, normalise_url
from .images import to_images, to_pil


if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.getLogger(__name__)

# The most that OpenAI's API and, by default, vLLM give for one position.
TOP_LOGPROBS = 20
# The longest `Retry-After` that the client waits for; it gives up on longer ones.
LONGEST_WAIT = 120.0
REFUSAL = '{"choices": [{"finish_reason": "content_filter"}]}'
OPTIONS = "{question}\nOptions:\n{options}\nAnswer with one of the options, exactly as it is written."
LETTERS = "{question}\nOptions:\n{options}\nAnswer with the letter of the right option, and nothing else."


class EndpointError(OSError):
    r"""
    A served model could not answer everything.

    Attributes:
        answers (`list`): What was finished before, one entry per image; `None` where there is no answer.
    """

    def __init__(self, message: str, answers: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.answers = list(answers)


class NoLogProbsError(EndpointError):
    """The server gives no log-probabilities, so candidates cannot be ranked on it; it can still answer in words."""


@dataclass
class _Job:
    """One question for every image, what has come back, and what went wrong first."""

    images: Sequence[Image.Image]
    texts: Sequence[str]
    body: dict[str, Any]
    read: Callable[[int, dict[str, Any]], Any]
    on_result: Callable[[int, Any], None] | None
    bar: Any
    results: list[Any]
    finished: int = 0
    retries: int = 0
    # Reasons why there was nothing to read, and how often.
    notes: Counter[str] = field(default_factory=Counter)
    failure: tuple[int, Exception] | None = None


class Endpoint:
    r"""
    A model behind an OpenAI-compatible server, to be evaluated on prompted images.

    Images are sent as PNG, so that the pixels that arrive are, to the bit, those of the prompted image. What is sent is
    described in `docs/api_models.md`. Needs the extra `api`.

    Args:
        model (`str`): The model's name, as the server knows it.
        base_url (`str`): The server's address, with or without `/v1`.
        api_key (`str`, *optional*): The key. Better left to the environment; it is in no log, report or message.
        api_key_env (`str`, *optional*):
            Environment variable that holds the key. Defaults to `OPENAI_API_KEY`; if that is not set either, the key
            is `"EMPTY"`, which servers without authentication accept.
        name (`str`, *optional*): Name in reports. Defaults to the last part of `model`.
        max_concurrency (`int`, *optional*, defaults to 8): Requests in flight at a time.
        timeout (`float`, *optional*, defaults to 60.0): Seconds that a request may take.
        max_retries (`int`, *optional*, defaults to 5):
            How many times one question is asked again after a lost connection, a timeout, the status 408, 409, 429 or
            5xx, or an answer that is no chat completion. Waits double from half a second to eight, less up to a quarter
            by chance; a `Retry-After` of up to two minutes is honoured.
        max_tokens (`int`, *optional*, defaults to 16): The longest answer, in tokens.
        extra_body (`dict`, *optional*):
            Fields added to every request, in place of those of the same name; a value of `None` leaves a field out.

    Raises:
        ImportError: If the package `openai` is not installed.
        ValueError: If an argument is out of its range, the URL is none, or the named variable holds no key.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        api_key: str | None = None,
        api_key_env: str | None = None,
        name: str | None = None,
        max_concurrency: int = 8,
        timeout: float = 60.0,
        max_retries: int = 5,
        max_tokens: int = 16,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise ImportError(
                'Models behind an API need the package openai: pip install "transferable-vp[api]" (or: pip install openai).'
            ) from error
        if not model:
            raise ValueError("The model's name is empty: give the one that the server knows it by.")
        for argument, value, least in (
            ("max_concurrency", max_concurrency, 1), ("max_retries", max_retries, 0), ("max_tokens", max_tokens, 1),
        ):  # fmt: skip
            if not isinstance(value, int) or value < least:
                raise ValueError(f"`{argument}` is {value!r}; expected a whole number, at least {least}.")
        if not timeout > 0:
            raise ValueError(f"`timeout` is {timeout!r}; expected a number of seconds above 0.")
        self.model = model
        self.base_url = normalise_url(base_url)
        self.name = name or model.rstrip("/").rsplit("/", 1)[-1]
        self.max_concurrency = max_concurrency
        self.timeout = timeout
        self.max_retries = max_retries
        self.max_tokens = max_tokens
        self.extra_body = dict(extra_body or {})
        key, self._key_source = find_key(api_key, api_key_env, self.base_url)
        # A closure, so that neither `vars`, nor a pickle, nor a dump of this object's state has it.
        self._key = lambda: key

    def __repr__(self) -> str:
        return f"Endpoint(model={self.model!r}, base_url={self.base_url!r}, name={self.name!r})"

    @property
    def settings(self) -> dict[str, Any]:
        """`dict`: All of ours that answers depend on, for caches: model, address, fields and wording. No key."""
        return {"model": self.model, "base_url": self.base_url, "wording": [OPTIONS, LETTERS], **self._fields({})}

    def answer(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        candidates: Sequence[Sequence[str]] | None = None,
        *,
        on_answer: Callable[[int, str], None] | None = None,
        progress: bool = True,
        description: str | None = None,
    ) -> list[str]:
        r"""
        The model's own words about every image, at temperature 0.

        Args:
            images (`Sequence[PIL.Image.Image]`): Prompted or not; read one by one, so that a lazy sequence stays lazy.
            questions (`Sequence[str]`): One per image.
            candidates (`Sequence[Sequence[str]]`, *optional*):
                For every image the answers to choose from. They are listed after the question.
            on_answer (`Callable[[int, str], None]`, *optional*):
                Called with the index of an image and its answer as soon as there is one, in the order in which they
                come. What it was given is safe, whatever happens later.
            progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.
            description (`str`, *optional*): Text of the bar. Defaults to `name`.

        Returns:
            `list[str]`: The answers as they came; the empty text where the model refused or said nothing.

        Raises:
            EndpointError: If the server refuses the requests, or one fails after all retries. No more are sent then,
                those in flight are waited for, and `answers` of the error has all that were finished.
            ValueError: If the arguments differ in length.
        """
        _check_lengths(images, questions, candidates)
        texts = list(questions)
        if candidates is not None:
            texts = [offer(question, names) for question, names in zip(texts, candidates, strict=True)]
        return self._ask(images, texts, {}, lambda index, choice: text_of(choice), on_answer, progress, description)

    def rank(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        candidates: Sequence[Sequence[str]],
        *,
        on_scores: Callable[[int, list[float]], None] | None = None,
        progress: bool = True,
        description: str | None = None,
    ) -> list[list[float]]:
        r"""
        Log-probabilities of every image's candidates, offered as A, B, C and so on: those of the letters as first token.

        Args:
            images (`Sequence[PIL.Image.Image]`): Prompted or not.
            questions (`Sequence[str]`): One per image.
            candidates (`Sequence[Sequence[str]]`): For every image its answers to choose from, 26 at most.
            on_scores (`Callable[[int, list[float]], None]`, *optional*): As `on_answer` of [`~Endpoint.answer`].
            progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.
            description (`str`, *optional*): Text of the bar. Defaults to `name`.

        Returns:
            `list[list[float]]`: For every image one value per candidate, 0 at most. It is `-inf` where the letter was
            not among the tokens that the server names (20 where it allows that many), so a row of nothing but `-inf` is
            no choice at all, and not one of the first.

        Raises:
            NoLogProbsError: If the server gives no log-probabilities; [`~Endpoint.answer`] needs none.
            EndpointError: As [`~Endpoint.answer`].
            ValueError: If the arguments differ in length, or an image has none or more than 26 candidates.
        """
        _check_lengths(images, questions, candidates)
        for index, names in enumerate(candidates):
            if not 0 < len(names) <= len(string.ascii_uppercase):
                raise ValueError(
                    f"Row {index} has {len(names)} candidates; expected 1 to 26, one for every letter. Use `answer`."
                )
        texts = [
            _with_options(LETTERS, q, [f"{x}. {c}" for x, c in zip(string.ascii_uppercase, names, strict=False)])
            for q, names in zip(questions, candidates, strict=True)
        ]
        body = {"logprobs": True, "top_logprobs": TOP_LOGPROBS, "max_tokens": 1}
        return self._ask(
            images, texts, body, lambda index, choice: letter_logprobs(choice, len(candidates[index])), on_scores,
            progress, description,
        )  # fmt: skip

    def _fields(self, body: dict[str, Any]) -> dict[str, Any]:
        fields = {"temperature": 0, "max_tokens": self.max_tokens} | body | self.extra_body
        return {key: value for key, value in fields.items() if value is not None}

    def _ask(
        self,
        images: Sequence[Image.Image],
        texts: Sequence[str],
        body: dict[str, Any],
        read: Callable[[int, dict[str, Any]], Any],
        on_result: Callable[[int, Any], None] | None,
        progress: bool,
        description: str | None,
    ) -> list[Any]:
        if not texts:
            return []
        with tqdm(total=len(texts), desc=description or self.name, disable=not progress) as bar:
            job = _Job(images, texts, body, read, on_result, bar, [None] * len(texts))
            _run(self._work_through(job))
        for note, count in job.notes.items():
            logger.warning("%s: %d of %d answers are empty: %s.", self.name, count, len(texts), note)
        if job.failure is not None:
            index, error = job.failure
            reason = self._reason(error)
            if reason is None:
                raise error
            kind = NoLogProbsError if isinstance(error, NoLogProbs) else EndpointError
            done = f"{job.finished} of {len(texts)} answers of {self.name} were finished"
            # Not from the client's own error, in which a server may have quoted the key.
            raise kind(f"Row {index} failed when {done}: {reason}", job.results)
        return job.results

    async def _work_through(self, job: _Job) -> None:
        from openai import AsyncOpenAI

        pending = iter(range(len(job.texts)))
        # Compressing a large image takes seconds: not in the loop, where it would look like a slow server, and one at
        # a time, as two rows may share an image that Pillow has yet to read.
        encoding = asyncio.Lock()
        async with AsyncOpenAI(
            api_key=self._key(), base_url=self.base_url, timeout=self.timeout, max_retries=self.max_retries
        ) as client:
            workers = [
                asyncio.create_task(self._work(job, pending, encoding, client))
                for _ in range(min(self.max_concurrency, len(job.texts)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, job: _Job, pending: Any, encoding: asyncio.Lock, client: AsyncOpenAI) -> None:
        for index in pending:
            try:
                async with encoding:
                    url = await asyncio.to_thread(_data_url_of, job.images, index)
                choice = await self._choice(job, url, job.texts[index], client)
                result = job.read(index, choice)
                if job.on_result is not None:
                    job.on_result(index, result)
            except Exception as error:
                # Others in flight go on: what they bring is paid for. The first failure is the one to report.
                job.failure = job.failure or (index, error)
            else:
                job.results[index] = result
                job.finished += 1
                if (note := why_empty(choice, result)) is not None:
                    job.notes[note] += 1
                if job.retries:
                    job.bar.set_postfix(retries=job.retries, refresh=False)
                job.bar.update()
            if job.failure is not None:
                return

    async def _choice(self, job: _Job, url: str, text: str, client: AsyncOpenAI) -> dict[str, Any]:
        """Asks until there is a chat completion, and gives its first choice."""
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        left = self.max_retries
        # The client's timeout is for every wait of its own: a server that sends a byte now and then never meets it.
        limit = (left + 1) * self.timeout + left * LONGEST_WAIT
        try:
            async with asyncio.timeout(limit):
                while True:
                    body, retries = await self._response(client.with_options(max_retries=left), content, job.body)
                    job.retries += retries
                    left -= retries + 1
                    try:
                        return first_choice(body)
                    except UnusableCompletion:
                        if left < 0:
                            raise
                    job.retries += 1
                    await asyncio.sleep(backoff(self.max_retries - left - 1))
        except TimeoutError:
            raise UnusableCompletion(f"it was not complete after {limit:g} s") from None

    async def _response(self, client: AsyncOpenAI, content: Any, fields: dict[str, Any]) -> tuple[str, int]:
        """The body of a response, and how many retries it took the client."""
        import openai

        try:
            response = await client.chat.completions.with_raw_response.create(
                model=self.model, messages=[{"role": "user", "content": content}], extra_body=self._fields(fields)
            )
        except openai.APIStatusError as error:
            message = error_message(error.body)
            if error.code == "content_filter":
                # How Azure refuses.
                return REFUSAL, 0
            if "logprobs" in fields and "logprob" in message and error.status_code < 500:
                raise NoLogProbs(f"the server refuses to give log-probabilities ({message})") from None
            raise
        return response.http_response.text, response.retries_taken

    def _reason(self, error: Exception) -> str | None:
        """One sentence about what a server did and what to check; `None` if `error` has nothing to do with a server."""
        import openai

        tries = f"{self.max_retries + 1} requests" if self.max_retries else "one request"
        if isinstance(error, openai.APITimeoutError):
            text = f"no answer within {self.timeout:g} s in {tries}; raise `timeout`, or lower `max_concurrency`."
        elif isinstance(error, openai.APIConnectionError):
            cause = error.__cause__
            text = (
                f"no answer over the connection to {self.base_url} in {tries} ({type(cause).__name__}: {cause}); check "
                "that the server is running and that the base URL is right."
            )
        elif isinstance(error, openai.APIStatusError):
            text = self._status_reason(error.status_code, error_message(error.body), tries)
        elif isinstance(error, UnusableCompletion):
            text = f"what came from {self.base_url} in {tries} is no chat completion: {error}; check the base URL."
        elif isinstance(error, NoLogProbs):
            text = f"{error}; use `answer`, which compares words, or, if there can be fewer, `top_logprobs` in `extra_body`."
        else:
            return None
        key = self._key()
        return text if key == NO_KEY else text.replace(key, "<key>")

    def _status_reason(self, status: int, message: str, tries: str) -> str:
        said = f"{status}: {message}" if message else str(status)
        if status == 401:
            return f"{self.base_url} does not accept the key ({said}); check {self._key_source}."
        if status == 403:
            return (
                f"{self.base_url} does not allow this ({said}); check that the key may use the model {self.model!r}, and "
                f"{self._key_source}."
            )
        if status == 404:
            return (
                f"{self.base_url} has no model {self.model!r}, or no chat completions ({said}); check the model's name "
                "and the base URL."
            )
        if status == 429:
            return (
                f"{self.base_url} has too many requests ({said}), still or for more than {LONGEST_WAIT:g} s; lower "
                "`max_concurrency`, raise `max_retries`, or check the account's quota."
            )
        if status >= 500:
            return f"{self.base_url} fails ({said}) in {tries}; check the server's log."
        return f"{self.base_url} refuses the request ({said}); `extra_body` changes or leaves out fields of it."


def data_url(image: Image.Image) -> str:
    """The image as `data:image/png;base64,...`, made 8-bit RGB as local models are given it; RGB pixels stay as they are."""
    file = io.BytesIO()
    # A copy without profile, transparency and comments, which a server might apply or refuse.
    to_pil(to_images(image)[0]).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _data_url_of(images: Sequence[Image.Image], index: int) -> str:
    return data_url(images[index])


def backoff(retry: int) -> float:
    """Seconds to wait before the retry of that number (from 0): the client's own rule, for what it does not retry."""
    return min(0.5 * 2.0 ** min(retry, 10), 8.0) * random.uniform(0.75, 1.0)


def _check_lengths(
    images: Sequence[Any], questions: Sequence[str], candidates: Sequence[Sequence[str]] | None
) -> None:
    if isinstance(questions, str) or len(images) != len(questions):
        raise ValueError(
            f"Got {len(images)} images and {len(questions)} questions; expected a question for every image."
        )
    if candidates is None:
        return
    if any(isinstance(names, str) for names in candidates) or len(candidates) != len(questions):
        raise ValueError(
            f"Got {len(candidates)} lists of candidates for {len(questions)} questions; expected a list of texts for "
            "every question."
        )


def offer(question: str, candidates: Sequence[str]) -> str:
    """`question` with the answers to choose from."""
    return _with_options(OPTIONS, question, [f"- {candidate}" for candidate in candidates])


def _with_options(template: str, question: str, options: Sequence[str]) -> str:
    # Not `format`, as a question may have braces in it.
    return template.replace("{options}", "\n".join(options), 1).replace("{question}", question, 1)


def _run(main: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine to its end, also where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(main)
        return
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def noted() -> None:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        await main

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(asyncio.run, noted())
        try:
            future.result()
        except KeyboardInterrupt:
            # It comes to this thread, and the requests are in the other.
            for loop, task in running:
                if task is not None and not future.done():
                    loop.call_soon_threadsafe(task.cancel)
            raise
