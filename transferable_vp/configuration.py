"""What a prompt is, before any pixel is learned: its geometry and the values it may take."""

from __future__ import annotations

import functools
import logging
import re
from typing import Any, Literal, get_args

import torch
from transformers import PretrainedConfig


logger = logging.getLogger(__name__)

Canvas = Literal["fixed", "native"]
Fit = Literal["crop", "contain", "stretch"]
Layout = Literal["border", "overlay", "both"]
ValueRange = Literal["displayable", "unbounded"]

# A canvas is allocated from a file that anyone may have written: 4096 x 4096 float32 RGB is 200 MB, and no model's
# image processor asks for more.
MAX_CANVAS_SIZE = 4096
# Raised when a file of a new version would be misread by an old one, and not when a key is added.
FORMAT_VERSION = 1
# All that is taken from a file. What else transformers lets a file set is not for strangers to set: `num_labels` alone
# makes it allocate as many names.
FILE_KEYS = (
    "canvas_size", "border_size", "content_size", "fit", "canvas", "layout", "epsilon", "value_range", "version",
    "format_version", "architectures", "dtype",
)  # fmt: skip
DTYPES = ("float32", "float16", "bfloat16")


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
        format_version (`int`, *optional*, defaults to 1):
            Which keys there are and what they mean. A file that says more than 1 was written by a later version.

    Raises:
        ValueError: If a size or an option cannot be, naming it and what would do; if the format is a later one.

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
        format_version: int = FORMAT_VERSION,
        **kwargs: Any,
    ) -> None:
        # Before everything else, which another format may have other values for.
        if isinstance(format_version, bool) or not isinstance(format_version, int) or format_version < 1:
            raise ValueError(f"`format_version` is {short(format_version)}; it must be a whole number from 1 on.")
        if format_version > FORMAT_VERSION:
            raise ValueError(
                f"This prompt has format {short(format_version)}, written by {_writer(version)}, and this version reads "
                f"formats up to {FORMAT_VERSION}: upgrade with `pip install -U transferable-vp`."
            )
        if not isinstance(version, str | None):
            raise ValueError(f"`version` is {short(version)}; it must be a text such as '0.1.0'.")
        for name, value, choices in (
            ("fit", fit, get_args(Fit)),
            ("canvas", canvas, get_args(Canvas)),
            ("layout", layout, get_args(Layout)),
            ("value_range", value_range, get_args(ValueRange)),
        ):
            if value not in choices:
                raise ValueError(f"`{name}` is {short(value)}; it must be one of {', '.join(map(repr, choices))}.")
        for name, size in (("canvas_size", canvas_size), ("border_size", border_size), ("content_size", content_size)):
            left_open = size is None and name == "content_size"
            if not left_open and (isinstance(size, bool) or not isinstance(size, int)):
                raise ValueError(f"`{name}` is {short(size)}; it must be a whole number of pixels.")
        if not 1 <= canvas_size <= MAX_CANVAS_SIZE:
            raise ValueError(
                f"`canvas_size` is {short(canvas_size)}; it must be between 1 and {MAX_CANVAS_SIZE} pixels."
            )
        border_size = 0 if layout == "overlay" else border_size
        room = canvas_size - 2 * border_size
        if border_size < 0 or (border_size == 0 and layout != "overlay"):
            raise ValueError(
                f'`border_size` is {short(border_size)}; it must be at least 1 (or use `layout="overlay"`).'
            )
        if room < 1:
            raise ValueError(
                f"A border of {short(border_size)} pixels on both sides leaves no content on a canvas of {canvas_size}: "
                f"use a `border_size` below {(canvas_size + 1) // 2}."
            )
        if content_size is not None and not 1 <= content_size <= room:
            raise ValueError(
                f"`content_size` is {short(content_size)}, but a canvas of {canvas_size} with a border of {border_size} on "
                f"both sides has room for 1 to {room} pixels: shrink the content or the border."
            )
        if isinstance(epsilon, bool) or not isinstance(epsilon, int | float):
            raise ValueError(f"`epsilon` is {short(epsilon)}; it must be a number.")
        if not 0 < epsilon <= 1:
            raise ValueError(
                f"`epsilon` is {short(epsilon)}; it must be above 0 and at most 1, as pixel values are in [0, 1]."
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
        self.format_version = format_version
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        r"""
        Makes a configuration of what a `config.json` holds, which anyone may have written: keys that a prompt has are
        checked, those that every configuration of transformers has are left out, others are too and are named.

        Args:
            config_dict (`dict`): What the file holds.
            **kwargs: As in [`~transformers.PretrainedConfig.from_dict`].

        Raises:
            ValueError: If it is of another kind of model, of a later format, or has a value that cannot be.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"This is the configuration of a model of type {short(model_type)}; a prompt has {cls.model_type!r}."
            )
        architectures, dtype = config_dict.get("architectures"), config_dict.get("dtype")
        if architectures is not None and not (
            isinstance(architectures, list)
            and all(isinstance(name, str) and re.fullmatch(r"\w{1,100}", name) for name in architectures)
        ):
            raise ValueError(f"`architectures` is {short(architectures)}; it must be a list of names of classes.")
        if dtype is not None and not isinstance(dtype, torch.dtype) and dtype not in DTYPES:
            raise ValueError(f"`dtype` is {short(dtype)}; it must be one of {', '.join(map(repr, DTYPES))}.")
        # First, as a later format comes with unknown keys.
        config = super().from_dict({key: config_dict[key] for key in FILE_KEYS if key in config_dict}, **kwargs)
        # The last is added on reading, up to transformers 5.22.
        known = {*FILE_KEYS, *PretrainedConfig().to_dict(), "_commit_hash"}
        if unknown := sorted(str(key) for key in config_dict if key not in known):
            _warn_of_unknown(tuple(unknown), _writer(config_dict.get("version")))
        return config


# Once: a configuration is read by AutoConfig, before a download and on loading.
@functools.cache
def _warn_of_unknown(keys: tuple[str, ...], writer: str) -> None:
    code = " Code from a repository (`auto_map`) is never run." if "auto_map" in keys else ""
    logger.warning(
        "Ignored in the configuration of this prompt, which was written by %s: %s.%s If it was meant to be used, upgrade "
        "with `pip install -U transferable-vp`.", writer, ", ".join(map(short, keys[:10])), code,
    )  # fmt: skip


def short(value: Any) -> str:
    # A stranger's text: `repr` shows what would move the cursor of a terminal, and none needs to be long.
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _writer(version: Any) -> str:
    return f"version {short(version)}" if version is not None else "an unknown version"


__all__ = ["TransferableVisualPromptConfig"]
