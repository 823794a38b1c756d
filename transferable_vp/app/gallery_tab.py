"""The tab of prompts: each with its picture and, where one was measured, its transfer chart and table."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..card_sections import read_transfer, sections_of, split_card
from ..modeling import TransferableVisualPrompt
from ..pictures import save_prompt_picture, save_transfer_chart
from ..report import HEADERS, cells, heading, ordered_targets, read_json, role, verdict
from ..transfer import weights_digest
from .given import sentence
from .page_parts import message, note, picture_html
from .prompts import card_of, choices, describe, load_named


def build_gallery_tab(tab: Any, prompts: Sequence[str], learned: Any) -> None:
    r"""
    Adds the tab's components and events to the page that is being built.

    Args:
        tab (`gr.Tab`): The tab; its prompts are drawn when it is opened.
        prompts (`Sequence[str]`): The prompts to show.
        learned (`gr.State`): Folders of prompts that this visitor has learned.
    """
    gr.Markdown(
        "Prompts found here. In each chart, left: how often each model is right under every condition; right: Δ, what the "
        "prompt adds to the same picture in a black border, in points, with its 95 % interval. An interval that crosses 0 "
        "may be chance."
    )
    shown = gr.HTML(note("The prompts are being read …"), elem_id="gallery")
    tab.select(lambda mine: gallery_html(choices(prompts, mine)), learned, shown, api_visibility="private",
               show_progress="minimal")  # fmt: skip


def gallery_html(names: Sequence[tuple[str, str]]) -> str:
    """Prompts, by label and folder or Hub id, as HTML, one below the other."""
    if not names:
        return note("There is no prompt here yet: learn one in the tab “Learn one”, or start the app with --prompt.")
    return "".join(
        f'<section class="tvp-card" style="margin-bottom:1rem">{_prompt_html(*name)}</section>' for name in names
    )


def _prompt_html(label: str, name: str) -> str:
    head = f"<h3>{escape(label)}</h3>"
    try:
        prompt = load_named(name)
        reports = find_reports(prompt)
        parts = "".join(_report_html(report, weights_digest(prompt)) for report in reports)
    except Exception as error:
        # One that cannot be shown must not hide the others.
        return head + message(sentence(error))
    if not reports:
        parts = note("Nothing was measured with it: `transferable-vp evaluate` makes a report.")
    figure = picture_html(prompt_picture(prompt), 224, f"the prompt {label}", pixels=False)
    return f'{head}{note(describe(prompt))}<div class="tvp-prompt">{figure}<div>{parts}</div></div>'


def find_reports(prompt: TransferableVisualPrompt) -> list[dict[str, Any]]:
    r"""
    The transfer reports of a prompt: `transfer.json` in its folder or in `report` below it, what the demo wrote beside
    it, else the tables of its card.

    Raises:
        ValueError: If a file or the card holds no report that can be read.
        OSError: If the Hub does not give the card; in one sentence.
    """
    folder = Path(prompt.config.name_or_path)
    if prompt.config._commit_hash is None:
        files = [folder / "transfer.json", folder / "report" / "transfer.json"]
        if folder.name.startswith("prompt"):
            # The demo: prompt_digits and report/transfer_digits.json.
            files.append(folder.parent / "report" / f"transfer{folder.name.removeprefix('prompt')}.json")
        if reports := [read_json(file) for file in files if file.is_file()]:
            return reports
    section = sections_of(split_card(card_of(prompt))).get("transfer")
    return [] if section is None else read_transfer(section.body)[0]


def prompt_picture(prompt: TransferableVisualPrompt) -> Image.Image:
    """The prompt alone, its middle a checkerboard; one that is no image of its own, on grey."""
    config = prompt.config
    bare = config.layout == "border" and config.value_range == "displayable"
    image = prompt.to_image() if bare else prompt.apply(Image.new("RGB", (config.content_size,) * 2, (128, 128, 128)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompt.png"
        save_prompt_picture(image, path)
        with Image.open(path) as picture:
            return picture.copy()


def report_chart(report: Mapping[str, Any]) -> Image.Image:
    """The chart of a transfer report."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chart.png"
        save_transfer_chart(report, path)
        with Image.open(path) as picture:
            return picture.copy()


def _report_html(report: Mapping[str, Any], digest: str) -> str:
    measured = {str(target["weights"]) for target in report["targets"] if target.get("weights")}
    other = note("Some of it was measured with other weights than the prompt has now.") if measured - {digest} else ""
    chart = report_chart(report)
    # 150 dots per inch, where a page has 96: so letters in both are about as large.
    picture = picture_html(chart, round(chart.width * 96 / 150), f"{heading(report)}; {verdict(report)}", pixels=False)
    return f"{picture}{other}{report_table(report)}<p>→ {escape(verdict(report))}</p>"


def report_table(report: Mapping[str, Any]) -> str:
    """The numbers of a transfer report, in a fold that opens."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in HEADERS)
    rows = "".join(
        f'<tr class="{role(target)}">{"".join(f"<td>{escape(cell)}</td>" for cell in cells(target))}</tr>'
        for target in ordered_targets(report)
    )
    return (
        f'<details><summary>the numbers</summary><div class="tvp-scroll"><table class="tvp-table numbers">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )
