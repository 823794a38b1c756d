"""The page: its tabs, and how it is served."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from ..demo import load_world
from .gallery_tab import build_gallery_tab
from .given import MAX_PIXELS
from .models import Models, zoo_models
from .page_parts import STYLE
from .prompts import find_prompts
from .train_tab import build_train_tab, forget
from .try_tab import build_try_tab


# A picture of MAX_PIXELS that hardly compresses.
MAX_FILE_SIZE = 3 * MAX_PIXELS
SECONDS_KEPT = 24 * 3600


def make_app(
    prompts: Sequence[str] = (),
    models: Sequence[str] = (),
    runs: str | Path | None = "runs",
    n_train: int = 640,
    n_test: int = 100,
) -> gr.Blocks:
    r"""
    Makes the app: a tab to try prompts on models, a gallery of prompts, and a tab to learn one while watching.

    Args:
        prompts (`Sequence[str]`, *optional*): Prompts to offer: folders or Hub ids.
        models (`Sequence[str]`, *optional*): Models to ask beside the zoo's: folders or Hub ids.
        runs (`str` or `Path`, *optional*, defaults to `"runs"`): A folder in which prompts are looked for, or `None`.
        n_train (`int`, *optional*, defaults to 640): Pictures that the third tab learns from.
        n_test (`int`, *optional*, defaults to 100): Pictures that it measures on.

    Returns:
        `gradio.Blocks`: To be given to [`launch`].

    Raises:
        ImportError: If matplotlib or scikit-learn, which draw the zoo's world, are missing.
        ValueError: If two models end in the same name.
    """
    world = load_world()
    root = Path(tempfile.mkdtemp(prefix="transferable-vp-app-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    examples = []
    for number, row in enumerate(world.color_examples(5, seed=5)):
        examples.append(root / f"example-{number}.png")
        row["image"].save(examples[-1])
    zoo = Models(zoo_models())
    asked = Models([*models, *zoo_models()]) if models else zoo
    if not models:
        # Models this small gain nothing from a second thread, and wait for it many times longer where cores are busy.
        torch.set_num_threads(1)
    found = find_prompts(prompts, None if runs is None else Path(runs))
    with gr.Blocks(analytics_enabled=False, title="Transferable visual prompts",
                   delete_cache=(3600, SECONDS_KEPT)) as app:  # fmt: skip
        learned = gr.State([], delete_callback=forget)
        gr.Markdown(
            "# Transferable visual prompts\nOne learned border of pixels that helps models which never saw it."
        )
        with gr.Tab("Try"):
            tried = build_try_tab(asked, found, learned, examples, world.QUESTIONS["color"], world.CANDIDATES["color"])
        with gr.Tab("Gallery") as gallery:
            build_gallery_tab(gallery, found, learned)
        with gr.Tab("Learn one"):
            end = build_train_tab(zoo, found, learned, tried.prompt, n_train, n_test, root)
        app.unload(end)
        # What is chosen at first is described as if it had been clicked.
        app.load(tried.choose, [tried.prompt, learned], tried.outputs, concurrency_limit=4, api_visibility="private",
                 show_progress="hidden")  # fmt: skip
    return app


def launch(app: gr.Blocks, **kwargs: Any) -> tuple[Any, str, str]:
    r"""
    Serves the app. Nothing is fetched from elsewhere, and nothing is reported to anybody.

    Args:
        app (`gradio.Blocks`): Of [`make_app`].
        kwargs: Arguments of `gradio.Blocks.launch`, such as `server_port`, `server_name` and `share`.

    Returns:
        `tuple`: The server, its address here, and the public one if there is one.
    """
    system = ("system-ui", "sans-serif")
    theme = gr.themes.Base(
        primary_hue="blue", neutral_hue="zinc", font=system, font_mono=("ui-monospace", "monospace")
    )
    # The theme's own grey of remarks is too light to read.
    remarks = ("body_text_color_subdued", "block_info_text_color")
    theme.set(**dict.fromkeys(remarks, "*neutral_600"), **{f"{name}_dark": "*neutral_300" for name in remarks})
    given: dict[str, Any] = {"share": False, "max_file_size": MAX_FILE_SIZE, "footer_links": [], "ssr_mode": False,
                             "enable_monitoring": False} | kwargs  # fmt: skip
    return app.launch(theme=theme, css=STYLE, **given)
