"""The tab where a prompt is learned while one watches."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..demo import RECIPE
from ..report import points, verdict
from .gallery_tab import report_chart, report_table
from .given import known_names, sentence
from .models import Models
from .page_parts import message, note, picture_html
from .prompts import choices
from .training import MAX_STEPS, Progress, Recipe, learn_live


TERMS = {
    "task_loss": "task loss",
    "fca_loss": "FCA: distance of features",
    "tse_loss": "TSE: minus likeness to the caption",
}
# Seen on white and on black.
LINE = "#3D85C6"


def build_train_tab(
    zoo: Models, prompts: Sequence[str], learned: Any, try_prompt: Any, n_train: int, n_test: int, root: Path
) -> Callable[[gr.Request], None]:
    r"""
    Adds the tab's components and events to the page that is being built.

    Args:
        zoo ([`Models`]): Members of the zoo.
        prompts (`Sequence[str]`): The prompts of the other tabs, which a new one joins.
        learned (`gr.State`): Folders of prompts that this visitor has learned.
        try_prompt (`gr.Dropdown`): Where the new one can be chosen.
        n_train (`int`), n_test (`int`): Pictures to learn from, and to measure on.
        root (`Path`): Where folders of learned prompts are made.

    Returns:
        `Callable`: Ends the training of a visitor, to be called when the page is closed.
    """
    gr.Markdown(
        "Learn a border on one or several tiny models of the zoo: what colour is it, under a green light that shows nowhere "
        "but on the picture? Models that are not chosen never see it; at the end all of them are asked. In this small world "
        "a border can say what light a picture is lit by, and all models know that: a prompt transfers where models share "
        "such a cue, and this is no evidence that it does where they share none."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            sources = gr.CheckboxGroup(zoo.names, value=zoo.names[:1], label="Learn on", elem_id="train-sources")
            steps = gr.Slider(1, MAX_STEPS, value=60, step=1, label="Steps of 32 pictures", elem_id="train-steps")
            with gr.Row():
                fca = gr.Number(RECIPE["fca_weight"], label="Weight of FCA (0: off)", minimum=0, maximum=1, step=0.001,
                                min_width=120, elem_id="train-fca")  # fmt: skip
                tse = gr.Number(RECIPE["tse_weight"], label="Weight of TSE (0: off)", minimum=0, maximum=1, step=0.001,
                                min_width=120, elem_id="train-tse")  # fmt: skip
            with gr.Row():
                start = gr.Button("Learn", variant="primary", min_width=120, elem_id="train-start")
                stop = gr.Button("Stop", variant="stop", min_width=120, interactive=False, elem_id="train-stop")
            said = gr.HTML(elem_id="train-message", elem_classes="tvp-said")
            download = gr.DownloadButton("Save the prompt (zip)", visible=False, elem_id="train-download")
        with gr.Column(scale=3, min_width=300):
            live = gr.HTML(note("Here the border will form."), elem_id="train-live")
            result = gr.HTML(elem_id="train-result")
    # One event per visitor, by the hash that gradio gives a page; nothing else is shared.
    stops: dict[str, threading.Event] = {}

    def learn(
        names: list[str], n_steps: float, fca_weight: float | None, tse_weight: float | None, mine: list[str],
        request: gr.Request,
    ) -> Iterator[dict[Any, Any]]:  # fmt: skip
        event = stops[str(request.session_hash)] = threading.Event()
        folder, kept = Path(tempfile.mkdtemp(prefix="learned-", dir=root)), False
        ended: dict[Any, Any] = {start: gr.Button(interactive=True), stop: gr.Button(interactive=False)}
        try:
            yield {said: "", result: "", start: gr.Button(interactive=False), stop: gr.Button(interactive=True),
                   download: gr.DownloadButton(visible=False)}  # fmt: skip
            recipe = Recipe(tuple(known_names(names, zoo.names, "model")), int(n_steps or 0),
                            _weight(fca_weight), _weight(tse_weight))  # fmt: skip
            for progress in learn_live(recipe, zoo, folder, event, n_train, n_test):
                # Set by a visitor, or because the training is over: there is nothing left to stop.
                yield {live: progress_html(progress), stop: gr.Button(interactive=not event.is_set())}
            ended |= {result: result_html(progress), download: gr.DownloadButton(value=str(progress.archive), visible=True),
                      learned: [*mine, str(progress.folder)],
                      try_prompt: gr.Dropdown(choices=choices(prompts, [*mine, str(progress.folder)]), value=str(progress.folder))}  # fmt: skip
            kept = True
        except Exception as error:
            ended |= {said: message(sentence(error))}
        finally:
            event.set()
            stops.pop(str(request.session_hash), None)
            if not kept:
                # Also when the page was closed meanwhile: nobody will ask for it.
                shutil.rmtree(folder, ignore_errors=True)
        yield ended

    def end(request: gr.Request) -> None:
        if event := stops.get(str(request.session_hash)):
            event.set()

    outputs = [said, live, result, start, stop, download, learned, try_prompt]
    # One training at a time: torch's random numbers are one sequence for the whole process, and so are the cores.
    start.click(learn, [sources, steps, fca, tse, learned], outputs, concurrency_limit=1, api_visibility="private",
                show_progress="hidden")  # fmt: skip
    # Not through the queue, where it would wait behind the training that it is to stop.
    stop.click(end, queue=False, api_visibility="private")
    return end


def forget(folders: Sequence[str]) -> None:
    """Removes the prompts of a visitor who is gone."""
    for folder in folders:
        shutil.rmtree(Path(folder).parent, ignore_errors=True)


def _weight(value: float | None) -> float:
    if value is None:
        raise ValueError("A weight is missing: write a number, 0 to turn a loss off.")
    return float(value)


def progress_html(progress: Progress) -> str:
    """The stage, the border as it is and as it was, and the terms of the loss."""
    step = int(progress.history[-1]["step"]) if progress.history else 0
    share = 100 * step / progress.steps
    bar = (
        f'<p aria-live="polite">{escape(progress.stage)}</p><div class="tvp-bar" role="progressbar" aria-valuemin="0" '
        f'aria-valuemax="{progress.steps}" aria-valuenow="{step}"><i style="width:{share:.0f}%"></i></div>'
    )
    if progress.picture is None:
        return bar
    frames = picture_html(progress.picture, 224, f"an example in the border after step {step}", f"now: step {step}")
    frames += "".join(picture_html(image, 96, f"after step {at}", f"step {at}") for at, image in progress.frames)
    charts = "".join(
        chart_svg(label, [(entry["step"], entry[term]) for entry in progress.history])
        for term, label in TERMS.items()
        if term in progress.history[-1]
    )
    return f'{bar}<div class="tvp-frames">{frames}</div><div class="tvp-charts">{charts}</div>'


def chart_svg(label: str, values: Sequence[tuple[float, float]], width: int = 240, height: int = 110) -> str:
    """A line of values over steps, with its ends in numbers. One chart per term: their sizes have nothing in common."""
    low, high = min(v for _, v in values), max(v for _, v in values)
    span, last = (high - low) or 1.0, max(values[-1][0], 2)
    dots = [(34 + (width - 42) * (s - 1) / (last - 1), 8 + (height - 28) * (high - v) / span) for s, v in values]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
    x, y = dots[-1]
    text = 'font-size="10" fill="currentColor"'
    return (
        f'<figure><figcaption>{escape(label)}: <b>{values[-1][1]:.3g}</b></figcaption><svg viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(label)}, now {values[-1][1]:.3g}"><path d="M34 4V{height - 18}H{width - 4}" '
        f'fill="none" stroke="currentColor" opacity="0.4"/><text x="30" y="12" text-anchor="end" {text}>{high:.2g}</text>'
        f'<text x="30" y="{height - 20}" text-anchor="end" {text}>{low:.2g}</text><text x="34" y="{height - 5}" {text}>1</text>'
        f'<text x="{width - 4}" y="{height - 5}" text-anchor="end" {text}>step {values[-1][0]:.0f}</text>'
        f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="1.8"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{LINE}"/></svg></figure>'
    )


def result_html(progress: Progress) -> str:
    """What the prompt adds on every model, the held-out ones first in words."""
    assert progress.report is not None
    held_out = [target for target in progress.report["targets"] if not target["is_source"]]
    gains = ", ".join(f"{target['model']} {points(target['delta'])}" for target in held_out)
    says = f"Gain on models that it was not learned on, in points over the black border: {gains}." if held_out else (
        "It was learned on all models, so there is none left to say whether it transfers."
    )  # fmt: skip
    n = progress.report["targets"][0]["n"]
    chart = report_chart(progress.report)
    return (
        f"<h3>What it does</h3><p>{escape(says)} {n} pictures that it was not learned from.</p>"
        + picture_html(chart, round(chart.width * 96 / 150), verdict(progress.report), pixels=False)
        + report_table(progress.report)
        + f"<p>→ {escape(verdict(progress.report))}</p>"
        + note("It is chosen in the tab “Try” now, for as long as this page is open. Save it to keep it.")
    )
