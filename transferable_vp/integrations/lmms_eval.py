"""Models of lmms-eval that are given prompted images."""

from __future__ import annotations

import copy
import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult  # type: ignore[import-not-found,unused-ignore]
from lmms_eval.api.model import lmms  # type: ignore[import-not-found,unused-ignore]
from PIL import Image
from tqdm.auto import tqdm

from ..data import decode
from ..generation import generate
from ..images import to_images, to_pil
from ..modeling import TransferableVisualPrompt
from ..scoring import score_candidates
from ..surrogate import Surrogate


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
# Where an answer is cut if its task does not say.
MAX_NEW_TOKENS = 1024


class PromptedHF(lmms):
    r"""
    `--model prompted_hf`: any Hugging Face image-text-to-text model, given prompted images.

    Every example must have one image, and answers are greedy; [`PromptedBackend`] has neither limit.

    Args:
        pretrained (`str`): Folder or Hub id of the model.
        prompt (`str`, *optional*): Folder or Hub id of the prompt. Without it the images are as they come.
        prompted (`bool`, *optional*, defaults to `True`): With `False`, the prompt's geometry with a black border.
        batch_size (`int`, *optional*, defaults to 1): Images per forward pass.
        device (`str`, *optional*): Defaults to the GPU where there is one. With several processes each takes its own.
        dtype (`str`, *optional*, defaults to `"auto"`): Precision of the model.
        prompt_template (`str`, *optional*): As in [`Surrogate`].
        max_batch_size (`int`, *optional*): Not used; lmms-eval passes it along.
        kwargs: Further arguments of [`Surrogate.from_pretrained`] (`revision`, `attn_implementation`, ...).

    Raises:
        ValueError: If `batch_size` is not a positive number.
        OSError: If there is no prompt or no model there.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        prompt: str | None = None,
        prompted: bool = True,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        prompt_template: str | None = None,
        max_batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(
                f"`batch_size` is {batch_size!r}; prompted_hf needs a positive number, as in `--batch_size 8`."
            )
        self.batch_size = int(batch_size)
        self.prompt = None if prompt is None else TransferableVisualPrompt.from_pretrained(prompt)
        self.prompted = prompted
        self.accelerator = Accelerator()
        self.surrogate = Surrogate.from_pretrained(
            str(pretrained), dtype=dtype, prompt_template=prompt_template, **kwargs
        )
        if "device_map" not in kwargs:
            alone = device or ("cuda" if torch.cuda.is_available() else "cpu")
            self.surrogate.to(alone if self.accelerator.num_processes == 1 else self.accelerator.device)

    @property
    def device(self) -> torch.device:
        """`torch.device`: Where the model is."""
        return self.surrogate.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The model's answers, each up to the first of its task's stop strings."""
        groups: dict[str, list[int]] = {}
        for row, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(row)
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc=self.surrogate.name, disable=self.rank != 0) as bar:
            for rows in groups.values():
                settings = _settings(requests[rows[0]].args[1] or {})
                for part in _chunks(rows, self.batch_size):
                    shown, questions, canvas = self._examples([requests[row] for row in part])
                    written = generate(self.surrogate, shown, questions, canvas, **settings)
                    for row, answer in zip(part, written, strict=True):
                        answers[row] = answer
                    bar.update(len(part))
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        r"""
        For every continuation its loss, and whether it is what the model finds most likely, token by token.

        A loss, the negative mean log-likelihood of its tokens, and not a likelihood: lmms-eval's multiple choice takes
        the candidate of the smallest value.
        """
        # All candidates of an example are scored together.
        examples: dict[Hashable, list[int]] = {}
        for row, request in enumerate(requests):
            context, _, _, *where = request.args
            examples.setdefault((context, *where), []).append(row)
        results: list[Any] = [None] * len(requests)
        with tqdm(total=len(examples), desc=self.surrogate.name, disable=self.rank != 0) as bar:
            for part in _chunks(list(examples.values()), self.batch_size):
                shown, questions, canvas = self._examples([requests[rows[0]] for rows in part])
                names = [[self._continuation(requests[row]) for row in rows] for rows in part]
                scores = score_candidates(self.surrogate, shown, questions, names, canvas)
                greedy = self._are_greedy(shown, questions, names, canvas)
                for rows, values, flags in zip(part, scores, greedy, strict=True):
                    for row, value, flag in zip(rows, values.tolist(), flags, strict=True):
                        results[row] = _scored((-value, flag))
                bar.update(len(part))
        return results

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not possible: each round may bring images of its own."""
        raise NotImplementedError("prompted_hf answers tasks of one round: leave tasks of several rounds out.")

    def _are_greedy(
        self, shown: Sequence[Image.Image], questions: Sequence[str], names: Sequence[Sequence[str]], canvas: Any
    ) -> list[list[bool]]:
        ids = [[self.surrogate.answer_ids(q, name) for name in row] for q, row in zip(questions, names, strict=True)]
        flags = [[False] * len(row) for row in names]

        @torch.no_grad()
        def check(pairs: Sequence[tuple[int, int]]) -> list[int]:
            """Looks at one candidate per pair; gives the most likely first tokens."""
            first = []
            for part in _chunks(pairs, self.batch_size):
                rows = [row for row, _ in part]
                given = None if canvas is None else [canvas[row] for row in rows]
                inputs = self.surrogate.encode([shown[row] for row in rows], [questions[row] for row in rows], given,
                                               unbounded=given is not None)  # fmt: skip
                inputs, start, labels = self.surrogate.append_ids(inputs, [ids[row][column] for row, column in part])
                likely = self.surrogate.answer_logits(inputs, start, labels.shape[1]).argmax(-1)
                for (row, column), best, label in zip(part, likely, labels, strict=True):
                    own = label != -100
                    first.append(int(best[own][0]))
                    flags[row][column] = bool((best[own] == label[own]).all())
            return first

        # Any candidate's pass tells the most likely first token, and only candidates that begin with it can be greedy.
        first = check([(row, 0) for row in range(len(names))])
        check([(row, column) for row, token in enumerate(first) for column in range(1, len(ids[row]))
               if ids[row][column][0] == token])  # fmt: skip
        return flags

    def _document(self, request: Any) -> Any:
        *_, number, task, split = request.args
        return self.task_dict[task][split][number]

    def _continuation(self, request: Any) -> str:
        target = request.args[1]
        # Surrogate puts the space between question and answer where the model's text wants one.
        return str(target(self._document(request)) if callable(target) else target).strip()

    def _examples(self, requests: Sequence[Any]) -> tuple[list[Image.Image], list[str], Any]:
        """The 8-bit images as the model is shown them, the questions and, of a prompt that no image can carry, the
        float canvases."""
        images = []
        for request in requests:
            visuals = request.args[2](self._document(request)) or []
            if len(visuals) != 1 or not _is_image(visuals[0]):
                *_, number, task, _ = request.args
                kinds = ", ".join(type(visual).__name__ for visual in visuals)
                raise ValueError(
                    f"Example {number} of {task} has {len(visuals)} visuals{f' ({kinds})' if kinds else ''}, and "
                    "prompted_hf asks about one image: use `--model prompted --model_args backend=...` for this task."
                )
            images.append(decode(visuals[0], request.args[-3]))
        questions = [request.args[0] for request in requests]
        if self.prompt is None:
            return [to_pil(to_images(image)[0]) for image in images], questions, None
        with torch.no_grad():
            canvas = self.prompt(images, prompted=self.prompted)
        unbounded = self.prompt.config.value_range == "unbounded"
        return [to_pil(c) for c in canvas], questions, canvas if unbounded else None


class PromptedBackend(lmms):
    r"""
    `--model prompted`: any other model of lmms-eval, an API's too, given prompted images.

    Args:
        backend (`str`): Name of the model in lmms-eval, for example `"qwen2_5_vl"` or `"openai"`.
        prompt (`str`): Folder or Hub id of the prompt.
        prompted (`bool`, *optional*, defaults to `True`): With `False`, the prompt's geometry with a black border.
        force_simple (`bool`, *optional*, defaults to `False`):
            Whether to take the backend's simple kind where it also comes in a chat kind, which ranks no candidates.
        kwargs: Arguments of the backend.

    Raises:
        ValueError: If lmms-eval has no such model, or a task shows a video, plays a sound or needs a simple model.
        OSError: If there is no prompt there.
    """

    # What the class is registered as; an instance is what its backend is.
    is_simple = True

    def __init__(
        self, backend: str, prompt: str, prompted: bool = True, force_simple: bool = False, **kwargs: Any
    ) -> None:
        from lmms_eval.models import get_model  # type: ignore[import-not-found,unused-ignore]

        super().__init__()
        self.prompt, self.prompted = TransferableVisualPrompt.from_pretrained(prompt), prompted
        self.backend = get_model(backend, force_simple)(**kwargs)
        self.is_simple = self.backend.is_simple
        # lmms-eval fills this dictionary with the tasks' examples.
        self.task_dict = self.backend.task_dict

    def __getattr__(self, name: str) -> Any:
        # Only for what is not found here, such as the device.
        if name == "backend":
            raise AttributeError(name)
        return getattr(self.backend, name)

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """The backend's answers."""
        return self._ask("generate_until", requests)

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """What the backend gives for every continuation, which is a loss for most."""
        results = self._ask("loglikelihood", requests)
        return [_scored(result) if isinstance(result, tuple) else result for result in results]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not possible: each round may bring images of its own."""
        raise NotImplementedError("prompted answers tasks of one round: leave tasks of several rounds out.")

    def clean(self) -> None:
        """Frees the backend's memory."""
        self.backend.clean()

    def _ask(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        # lmms-eval tells only the outer model which process this is.
        self.backend._rank, self.backend._world_size = self._rank, self._world_size
        return getattr(self.backend, kind)([self._with_prompt(request) for request in requests])

    def _with_prompt(self, request: Any) -> Any:
        """The same request, whose images are prompted when the backend asks for them."""
        arguments = list(request.args)
        position = 2 if self.is_simple else 1
        original = arguments[position]
        if not callable(original):
            raise ValueError(
                f"The task {arguments[-2]} is for models of lmms-eval's simple kind, and this backend is of the chat "
                "kind: give `force_simple=True` if it comes in both, or use another."
            )

        def prompted(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            return [self._show(visual) for visual in found or []] if self.is_simple else self._show_messages(found)

        arguments[position] = prompted
        request = copy.copy(request)
        request.arguments = tuple(arguments)
        return request

    def _show(self, visual: Any) -> Image.Image:
        if not _is_image(visual):
            raise ValueError(
                f"This task shows or plays a {type(visual).__name__}"
                f"{f' ({visual})' if isinstance(visual, str) else ''}, and a prompt can be put on images only: "
                "leave the task out."
            )
        return self.prompt.apply(decode(visual), prompted=self.prompted)

    def _show_messages(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        shown = []
        for message in messages:
            content = message["content"]
            if not isinstance(content, str):
                content = [part if part["type"] == "text" else {**part, "url": self._show(part["url"])}
                           for part in content]  # fmt: skip
            shown.append({**message, "content": content})
        return shown


class _Pair(tuple):
    """A loss and whether it is that of a greedy answer."""

    def strip(self) -> _Pair:
        """What lmms-eval's cache calls on everything that a model gives."""
        return self


def _scored(pair: tuple[float, bool]) -> Any:
    # lmms-eval 0.7.3 makes a string of a bare tuple, and its multiple choice then fails.
    return GenerationResult(text=_Pair(pair))


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate` from those of a task."""
    temperature, until = given.get("temperature"), given.get("until") or []
    if (given.get("do_sample", bool(temperature)) and temperature != 0) or (given.get("num_beams") or 1) > 1:
        raise ValueError(
            f"A task asks for answers that are drawn or searched for ({given}), and prompted_hf gives greedy ones: "
            "pass `--gen_kwargs do_sample=False,temperature=0,num_beams=1`."
        )
    longest = given.get("max_new_tokens") or given.get("max_gen_toks") or MAX_NEW_TOKENS
    stops = [until] if isinstance(until, str) else until
    return {"max_new_tokens": int(longest), "stop": [stop for stop in stops if stop]}


def _is_image(visual: Any) -> bool:
    named = isinstance(visual, str) and Path(visual).suffix.lower() in IMAGE_SUFFIXES
    return named or isinstance(visual, Image.Image)


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[begin : begin + size] for begin in range(0, len(items), size)]
