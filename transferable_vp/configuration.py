"""What a prompt is, before any pixel is learned: its geometry and the values it may take."""

from __future__ import annotations

from typing import Any, Literal, get_args

from transformers import PretrainedConfig


Canvas = Literal["fixed", "native"]
Fit = Literal["crop", "contain", "stretch"]
Layout = Literal["border", "overlay", "both"]
ValueRange = Literal["displayable", "unbounded"]

# A canvas is allocated from a file that anyone may have written: 4096 x 4096 float32 RGB is 200 MB, and no model's
# image processor asks for more.
MAX_CANVAS_SIZE = 4096


class TransferableVisualPromptConfig(PretrainedConfig):
    r"""
    Configuration of a [`TransferableVisualPrompt`]. The defaults are the paper's geometry: a canvas of 224 pixels, the
    image shrunk to the 164 in its middle, and a border of 30 around it (TVP, section 4.1; 69,840 values to learn).

    Args:
        canvas_size (`int`, *optional*, defaults to 224):
            Height and width, in pixels, of the square RGB image that every model is given; with `canvas="native"`, of
            the square that the prompt is learned on.
        border_size (`int`, *optional*, defaults to 30):
            Width in pixels of the learned frame. Ignored by `layout="overlay"`, which has none.
        content_size (`int`, *optional*):
            Height and width of the shrunk image in the middle of the canvas. Defaults to what the border leaves.
        fit (`str`, *optional*, defaults to `"crop"`):
            How an image that is not square fills the content: `"crop"` (resize the shorter side, cut the centre: the
            paper), `"contain"` (resize the longer side, black bars) or `"stretch"`.
        canvas (`str`, *optional*, defaults to `"fixed"`):
            `"fixed"` makes every image a square of `canvas_size` (the paper). `"native"` leaves the image every pixel
            it has and puts the prompt around it, scaled to its height and width, so that models of dynamic resolution
            see it at its own; `fit` is not used then. A canvas stops growing at 4096 pixels: there the image shrinks.
        layout (`str`, *optional*, defaults to `"border"`):
            Where pixels are learned: `"border"` (the paper), `"overlay"` (added to the image, within `epsilon`), or
            `"both"`.
        epsilon (`float`, *optional*, defaults to 16/255):
            Largest change an overlay makes to a pixel value, values being in [0, 1].
        value_range (`str`, *optional*, defaults to `"displayable"`):
            `"displayable"` keeps the prompt inside what an 8-bit image can show. `"unbounded"` is the paper's own
            arithmetic, for loading and reproducing its checkpoint: 48 % of that border cannot be shown by any image.
        version (`str`, *optional*):
            Version of transferable_vp that wrote the configuration.

    Raises:
        ValueError: If a size or an option cannot be, naming it and what would do.

    Example:

    ```python
    >>> from transferable_vp import TransferableVisualPromptConfig

    >>> config = TransferableVisualPromptConfig(canvas_size=336, border_size=42)
    >>> config.content_size
    252
    ```
    """

    model_type = "transferable_visual_prompt"

    def __init__(
        self,
        canvas_size: int = 224,
        border_size: int = 30,
        content_size: int | None = None,
        fit: Fit = "crop",
        canvas: Canvas = "fixed",
        layout: Layout = "border",
        epsilon: float = 16 / 255,
        value_range: ValueRange = "displayable",
        version: str | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value, choices in (
            ("fit", fit, get_args(Fit)),
            ("canvas", canvas, get_args(Canvas)),
            ("layout", layout, get_args(Layout)),
            ("value_range", value_range, get_args(ValueRange)),
        ):
            if value not in choices:
                raise ValueError(f"`{name}` is {value!r}; it must be one of {', '.join(map(repr, choices))}.")
        for name, size in (("canvas_size", canvas_size), ("border_size", border_size), ("content_size", content_size)):
            if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
                raise ValueError(f"`{name}` is {size!r}; it must be a whole number of pixels.")
        if not 1 <= canvas_size <= MAX_CANVAS_SIZE:
            raise ValueError(f"`canvas_size` is {canvas_size}; it must be between 1 and {MAX_CANVAS_SIZE} pixels.")
        border_size = 0 if layout == "overlay" else border_size
        room = canvas_size - 2 * border_size
        if border_size < 0 or (border_size == 0 and layout != "overlay"):
            raise ValueError(f'`border_size` is {border_size}; it must be at least 1 (or use `layout="overlay"`).')
        if room < 1:
            raise ValueError(
                f"A border of {border_size} pixels on both sides leaves no content on a canvas of {canvas_size}: "
                f"use a `border_size` below {(canvas_size + 1) // 2}."
            )
        if content_size is not None and not 1 <= content_size <= room:
            raise ValueError(
                f"`content_size` is {content_size}, but a canvas of {canvas_size} with a border of {border_size} on "
                f"both sides has room for 1 to {room} pixels: shrink the content or the border."
            )
        if not 0 < epsilon <= 1:
            raise ValueError(
                f"`epsilon` is {epsilon}; it must be above 0 and at most 1, as pixel values are in [0, 1]."
            )
        self.canvas_size = canvas_size
        self.border_size = border_size
        self.content_size = room if content_size is None else content_size
        self.fit = fit
        self.canvas = canvas
        self.layout = layout
        self.epsilon = epsilon
        self.value_range = value_range
        self.version = version
        super().__init__(**kwargs)


__all__ = ["TransferableVisualPromptConfig"]
