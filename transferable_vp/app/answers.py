"""What models answer to one picture without and with a prompt, and how a page shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import torch
from PIL import Image

from ..images import to_images, to_pil
from ..modeling import TransferableVisualPrompt
from ..scoring import score_candidates
from ..surrogate import Surrogate


# Every condition, what it is called, and its colour (Okabe-Ito, apart in grey too).
CONDITIONS = {
    "picture": ("before: as it is", "#999999"),
    "black": ("in a black border", "#E69F00"),
    "prompt": ("after: with the prompt", "#0072B2"),
}
SHOWN = 5


@torch.no_grad()
def ask(
    model: Surrogate, prompt: TransferableVisualPrompt, image: Image.Image, question: str, candidates: Sequence[str]
) -> dict[str, list[float]]:
    r"""
    Asks a model three times: about the picture through its own processing, shrunk into a black border, and prompted.

    Args:
        model ([`Surrogate`]): The model.
        prompt ([`TransferableVisualPrompt`]): The prompt.
        image (`PIL.Image.Image`): The picture.
        question (`str`): Without any model's template.
        candidates (`Sequence[str]`): The answers to choose from.

    Returns:
        `dict[str, list[float]]`: For `"picture"`, `"black"` and `"prompt"` a probability per candidate. They are the
        softmax of the mean log-likelihood per token, by which `evaluate` ranks, and so add up to 1 over the candidates.
    """
    found: dict[str, list[float]] = {}
    for condition in CONDITIONS:
        if condition == "picture":
            # Upright and 8-bit RGB, as the prompt would have it: both sides must show the same picture.
            canvas = to_images(image)[0]
        else:
            canvas = prompt([image], prompted=condition == "prompt")[0]
        unbounded = condition == "prompt" and prompt.config.value_range == "unbounded"
        scores = score_candidates(model, [to_pil(canvas)], [question], [candidates], [canvas] if unbounded else None)
        found[condition] = scores[0].softmax(0).tolist()
    return found


def best(probabilities: Sequence[float], candidates: Sequence[str]) -> tuple[str, float]:
    """The likeliest candidate and its probability."""
    top = max(range(len(candidates)), key=lambda column: probabilities[column])
    return candidates[top], probabilities[top]


def answers_html(found: Mapping[str, Mapping[str, Sequence[float]]], candidates: Sequence[str]) -> str:
    """A table of all models with their first answers, and for each model the bars behind them; everything escaped."""
    heads = "".join(
        f'<th scope="col"><i style="background:{color}"></i>{label}</th>' for label, color in CONDITIONS.values()
    )
    rows, details = [], []
    for name, conditions in found.items():
        cells = []
        for condition in CONDITIONS:
            answer, share = best(conditions[condition], candidates)
            cells.append(f"<td><b>{escape(answer)}</b> {_percent(share)}</td>")
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
        details.append(_bars(name, conditions, candidates))
    return (
        f'<div class="tvp-scroll"><table class="tvp-table"><thead><tr><th scope="col">model</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f'<div class="tvp-cards">{"".join(details)}</div>'
    )


def _bars(name: str, conditions: Mapping[str, Sequence[float]], candidates: Sequence[str]) -> str:
    """The likeliest candidates of one model, three bars each."""
    most = [max(conditions[c][column] for c in CONDITIONS) for column in range(len(candidates))]
    columns = sorted(range(len(candidates)), key=lambda column: -most[column])[:SHOWN]
    rows = []
    for column in columns:
        bars = "".join(
            f'<span class="tvp-track" title="{label}"><i style="width:{100 * conditions[key][column]:.1f}%;'
            f'background:{color}"></i></span><span class="tvp-share">{_percent(conditions[key][column])}</span>'
            for key, (label, color) in CONDITIONS.items()
        )
        rows.append(f'<dt>{escape(candidates[column])}</dt><dd class="tvp-bars">{bars}</dd>')
    left = len(candidates) - len(columns)
    more = f'<p class="tvp-note">and {left} less likely</p>' if left else ""
    return f'<section class="tvp-card"><h3>{escape(name)}</h3><dl>{"".join(rows)}</dl>{more}</section>'


def _percent(share: float) -> str:
    # 99.96 % is not all of it, and 0.04 % is not nothing.
    return "&lt;1 %" if 0 < share < 0.005 else "&gt;99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"
