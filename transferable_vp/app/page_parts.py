"""What all tabs show things with: messages, pictures inside of a page, the style."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image


# No commas inside of brackets: gradio 6 splits selectors at every comma.
STYLE = """
.gradio-container { width: 100% !important; max-width: 1240px !important; margin: 0 auto !important; }
.tvp-error, .tvp-note { margin: .4rem 0; overflow-wrap: anywhere; }
.tvp-error { padding: .6rem .8rem; border-left: 4px solid #D55E00; background: var(--background-fill-secondary);
  font-weight: 600; }
.tvp-note { color: var(--body-text-color-subdued); font-size: .92em; }
.tvp-said:not(:has(p)):not(:has(figure)) { display: none; }
.tvp-fill img { width: 100%; height: 100%; object-fit: contain; box-sizing: border-box; padding: 28px 0 4px; }
.tvp-pixels img { image-rendering: pixelated; }
.tvp-pixel { image-rendering: pixelated; display: block; max-width: 100%; }
.tvp-scroll { overflow-x: auto; contain: inline-size; }
.tvp-table, .tvp-table tr { border-width: 0 !important; }
.tvp-table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.tvp-table th, .tvp-table td { padding: .35rem .5rem .35rem 0; border-width: 0 0 1px !important; text-align: left;
  vertical-align: bottom; border-style: solid; border-color: var(--border-color-primary) !important; }
.tvp-table.numbers th, .tvp-table.numbers td { white-space: nowrap; }
@media (max-width: 480px) { .tvp-table { font-size: .88em; } }
.tvp-table.numbers td:nth-child(n+3), .tvp-table.numbers th:nth-child(n+3) { text-align: right; }
.tvp-table th i { display: inline-block; width: .7em; height: .7em; margin-right: .4em; }
.tvp-table tr.source td { background: var(--background-fill-secondary); }
.tvp-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 1rem; margin-top: 1rem; }
.tvp-card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .7rem .9rem; min-width: 0; }
.tvp-card h3 { margin: 0 0 .4rem; font-weight: 600; overflow-wrap: anywhere; }
.tvp-card dl { display: grid; grid-template-columns: minmax(4em, auto) 1fr; gap: .45rem .6rem; margin: 0; }
.tvp-card dt { overflow-wrap: anywhere; }
.tvp-bars { display: grid; grid-template-columns: 1fr 3.2em; align-items: center; gap: 2px .4rem; margin: 0; }
.tvp-track { height: .55rem; background: var(--background-fill-secondary); }
.tvp-track i { display: block; height: 100%; min-width: 1px; }
.tvp-share { font-size: .8em; text-align: right; font-variant-numeric: tabular-nums; line-height: 1; }
.tvp-prompt { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; }
.tvp-prompt > div { min-width: 0; flex: 1 1 320px; }
.tvp-prompt > figure { margin: 0; flex: 0 0 224px; }
.tvp-frames { display: flex; flex-wrap: wrap; gap: .8rem; margin: .6rem 0; }
.tvp-said figure, .tvp-frames figure { margin: 0; }
.tvp-frames figcaption { font-size: .85em; color: var(--body-text-color-subdued); }
.tvp-bar { height: .7rem; background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.tvp-bar i { display: block; height: 100%; background: #0072B2; }
.tvp-charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 1rem; }
.tvp-charts figure { margin: 0; max-width: 26rem; }
.tvp-charts svg { width: 100%; height: auto; display: block; }
"""


def message(text: str) -> str:
    """An error, as the page shows it."""
    return f'<p class="tvp-error" role="alert">{escape(text)}</p>'


def note(text: str) -> str:
    """A remark, as the page shows it; nothing of nothing."""
    return f'<p class="tvp-note">{escape(text)}</p>' if text else ""


def picture_html(image: Image.Image, width: int, alt: str, caption: str = "", pixels: bool = True) -> str:
    """A picture inside of the page itself, `width` pixels wide where there is room."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    kind = ' class="tvp-pixel"' if pixels else ' style="max-width:100%;height:auto"'
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img{kind} width="{width}" alt="{escape(alt)}" src="data:image/png;base64,{data}">{text}</figure>'
