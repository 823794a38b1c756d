"""The tab where a prompt is tried: a picture, a question, and what models answer before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from ..images import to_images, to_pil
from .answers import answers_html, ask
from .given import known_names, read_candidates, read_picture, read_question, sentence
from .models import Models
from .page_parts import message, note, picture_html
from .prompts import card_of, describe, load_prompt, task_of


NOTHING_YET = note("Here the answers will stand, before and after, side by side.")


class TryTab(NamedTuple):
    """What other tabs and events need of this one."""

    prompt: Any
    choose: Any
    outputs: list[Any]


def build_try_tab(
    models: Models,
    prompts: Sequence[str],
    learned: Any,
    examples: Sequence[Path],
    question: str,
    candidates: Sequence[str],
) -> TryTab:
    r"""
    Adds the tab's components and events to the page that is being built.

    Args:
        models ([`Models`]): The models to choose from.
        prompts (`Sequence[str]`): The prompts to choose from; a Hub id can be typed.
        learned (`gr.State`): Folders of prompts that this visitor has learned.
        examples (`Sequence[Path]`): Pictures that are one click away.
        question (`str`), candidates (`Sequence[str]`): What stands there until a prompt's card says other.
    """
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            prompt = gr.Dropdown(
                list(prompts), value=prompts[0] if prompts else None, label="Prompt", allow_custom_value=True,
                info="choose one, or type a Hub id such as org/tvp-cifar10 and press Enter", elem_id="try-prompt",
            )  # fmt: skip
            about = gr.HTML(elem_id="try-about", elem_classes="tvp-said")
            # Not gr.Image: gradio 6 opens what it is given before our code sees it, and a bad file ends in a traceback.
            picture = gr.File(label="Picture", file_types=["image"], height=140, elem_id="try-picture")
            taken = gr.State(None)
            preview = gr.HTML(elem_id="try-preview", elem_classes="tvp-said")
            samples = gr.Dataset(
                components=[gr.Image(render=False)], samples=[[str(path)] for path in examples], type="index",
                label="or one of the zoo's world, under a green light", elem_id="try-examples",
            )  # fmt: skip
            asked = gr.Textbox(question, label="Question", elem_id="try-question")
            choice = gr.Textbox("\n".join(candidates), label="Answers to choose from", lines=3, max_lines=4,
                                info="one per line, or commas between them", elem_id="try-candidates")  # fmt: skip
            chosen = gr.CheckboxGroup(models.names, value=models.names[:3], label="Models", elem_id="try-models")
            run = gr.Button("Ask the models", variant="primary", elem_id="try-run")
            said = gr.HTML(elem_id="try-message", elem_classes="tvp-said")
        with gr.Column(scale=3, min_width=300):
            prompted = gr.Image(
                type="pil", format="png", label="What the models see: the prompted picture", height=320, interactive=False,
                elem_id="try-prompted", elem_classes="tvp-pixels tvp-fill", buttons=["download"],
            )  # fmt: skip
            answers = gr.HTML(NOTHING_YET, elem_id="try-answers")

    def choose(name: str | None, mine: list[str]) -> tuple[Any, ...]:
        # Answers to the prompt before would be taken for those to this one.
        try:
            return *_choose(name, [*prompts, *mine]), None, NOTHING_YET
        except Exception as error:
            return message(sentence(error)), gr.skip(), gr.skip(), None, NOTHING_YET

    def take(path: str | None) -> tuple[None, str | None, str]:
        # The place to drop files is empty again for the next one.
        try:
            return None, path, "" if path is None else _preview(path)
        except Exception as error:
            return None, None, message(sentence(error))

    def answer(
        name: str | None, mine: list[str], path: str | None, question: str, candidates: str, names: list[str]
    ) -> Iterator[tuple[Any, ...]]:
        try:
            yield from _answer(models, name, [*prompts, *mine], path, question, candidates, names)
        except Exception as error:
            yield message(sentence(error)), None, ""

    described = [about, asked, choice, prompted, answers]
    # Several at once: one visitor's Hub id may take long to answer.
    prompt.change(choose, [prompt, learned], described, concurrency_limit=4, api_visibility="private",
                  show_progress="minimal")  # fmt: skip
    shown = [picture, taken, preview]
    picture.upload(take, picture, shown, api_visibility="private", show_progress="minimal")
    samples.click(lambda index: take(str(examples[index])), samples, shown, api_visibility="private")
    run.click(answer, [prompt, learned, taken, asked, choice, chosen], [said, prompted, answers],
              concurrency_limit=4, api_visibility="private")  # fmt: skip
    return TryTab(prompt, choose, described)


def _choose(name: str | None, listed: Sequence[str]) -> tuple[Any, ...]:
    """Description, question and candidates for a prompt that was chosen."""
    if not (name or "").strip():
        return (
            note("There is no prompt here yet: learn one in the tab “Learn one”, or type a Hub id."),
            gr.skip(),
            gr.skip(),
        )
    prompt = load_prompt(name, listed)
    about, told = describe(prompt), ""
    try:
        task = task_of(card_of(prompt, token=None if name in listed else False))
    except OSError as error:
        # The prompt works without its card.
        task, told = None, message(sentence(error))
    if task is None:
        return note(f"{about}. Its card says nothing of the task.") + told, gr.skip(), gr.skip()
    if task.of > len(task.candidates):
        told = note(f"The card names {len(task.candidates)} of {task.of} answers: add those that are missing.")
    question = gr.skip() if task.question is None else task.question
    candidates = "\n".join(task.candidates) if task.candidates else gr.skip()
    return note(f"{about}. Question and answers are those of its card.") + told, question, candidates


def _preview(path: str) -> str:
    """A picture that was given, small, and what was done to it."""
    image, shrunk = read_picture(path)
    small = to_pil(to_images(image)[0])
    small.thumbnail((320, 320))
    return picture_html(small, max(160, small.width), "the picture", pixels=small.width < 160) + note(shrunk)


def _answer(
    models: Models,
    name: str | None,
    listed: Sequence[str],
    path: str | None,
    question: str,
    candidates: str,
    names: list[str],
) -> Iterator[tuple[Any, ...]]:
    """Message, prompted picture and answers, once for every model."""
    if path is None:
        raise ValueError("There is no picture: drop one, or click one of the examples.")
    asked, choice = read_question(question), read_candidates(candidates)
    chosen = known_names(names, models.names, "model")
    image, _ = read_picture(path)
    prompt = load_prompt(name, listed)
    shown = prompt.apply(image)
    found: dict[str, dict[str, list[float]]] = {}
    for model in chosen:
        yield (
            note(f"Asking {model}, {len(found) + 1} of {len(chosen)} …"),
            shown,
            answers_html(found, choice) if found else "",
        )
        with models.use(model) as surrogate:
            found[model] = ask(surrogate, prompt, image, asked, choice)
    yield "", shown, answers_html(found, choice)
