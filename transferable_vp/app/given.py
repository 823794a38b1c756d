"""What a visitor gives, checked: a picture and answers to choose from; and what went wrong, as one sentence."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..data import DAMAGE
from ..hub_safety import plain


# Decoded, this many pixels take 200 MB at most. A phone's largest pictures are just below.
MAX_PIXELS = 50_000_000
# No image processor asks for more, and a prompt's arithmetic is in floats, four times the size.
MAX_SIDE = 2048
MAX_CANDIDATES = 200
MAX_TEXT = 2000
# Errors whose text is written for users. Any other is ours, and its text is for the log.
TOLD = (ValueError, OSError, ImportError, FloatingPointError)

# Pillow opens more; some of them start other programs (EPS: Ghostscript), which a stranger's file must not.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")

logger = logging.getLogger(__name__)

# One large picture at a time, so that memory does not grow with the number of visitors.
_decoding = threading.Lock()


def read_picture(path: str | Path) -> tuple[Image.Image, str]:
    r"""
    Reads an uploaded picture. Its size is checked before any of its pixels is, and a large one is shrunk at once.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        `tuple[PIL.Image.Image, str]`: The picture, at most 2048 pixels wide and high, and a sentence that says so if it
        was larger, else an empty text.

    Raises:
        ValueError: If it is not an image of a usual format, is damaged, has more than 50 million pixels, or is gone.
    """
    name = plain(Path(path).name, 80)
    too_large = f"{name} has more than {MAX_PIXELS // 1_000_000} million pixels: shrink it and give it again."
    with _decoding:
        try:
            image: Image.Image = Image.open(path, formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(too_large)
            if max(width, height) > MAX_SIDE:
                # A palette cannot be mixed, so it would be thinned out instead.
                image = image.convert("RGBA") if image.mode in ("P", "PA") else image
                filtered = not image.mode.startswith("I;16")
                image.thumbnail((MAX_SIDE,) * 2, Image.Resampling.BICUBIC if filtered else Image.Resampling.NEAREST)
            image.load()
        except FileNotFoundError as error:
            # Uploads are deleted after a day, and a page may be open for longer.
            raise ValueError(f"{name} is kept no longer: give it again.") from error
        except Image.DecompressionBombError as error:
            raise ValueError(too_large) from error
        except UnidentifiedImageError as error:
            raise ValueError(
                f"{name} is not an image: give a PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF file."
            ) from error
        except ValueError as error:
            if str(error) == too_large:
                raise
            raise ValueError(_damaged(name)) from error
        except DAMAGE as error:
            raise ValueError(_damaged(name)) from error
    if image.size == (width, height):
        return image, ""
    return image, f"The picture was shrunk from {width} × {height} to {image.width} × {image.height} pixels."


def _damaged(name: str) -> str:
    return f"{name} is damaged or cut off, so it cannot be read as an image: save it anew and give it again."


def read_question(text: str | None) -> str:
    """The question, without space around it. Raises `ValueError` if there is none, or too much of one."""
    question = (text or "").strip()
    if not question:
        raise ValueError("There is no question: write what the models are to be asked.")
    if len(question) > MAX_TEXT:
        raise ValueError(f"The question has {len(question)} characters; at most {MAX_TEXT} can be asked.")
    return question


def read_candidates(text: str | None) -> tuple[str, ...]:
    r"""
    The answers to choose from, one per line or, on a single line, between commas.

    Args:
        text (`str`, *optional*): As written.

    Returns:
        `tuple[str, ...]`: Without doubles, in the order written.

    Raises:
        ValueError: If there are fewer than two, more than 200, or more than 2000 characters.
    """
    lines = (text or "").strip().splitlines()
    names = dict.fromkeys(name.strip() for name in (lines if len(lines) > 1 else "".join(lines).split(",")))
    names.pop("", None)
    if len(names) < 2:
        raise ValueError(
            "There are fewer than two answers to choose from: write one per line, or commas between them."
        )
    if len(names) > MAX_CANDIDATES or sum(map(len, names)) > MAX_TEXT:
        raise ValueError(
            f"There are {len(names)} answers to choose from; at most {MAX_CANDIDATES} can be, of {MAX_TEXT} characters "
            "together."
        )
    return tuple(names)


def known_names(given: Sequence[str] | None, known: Sequence[str], what: str) -> list[str]:
    """The names given, in the order known. Raises `ValueError` if there is none, or one that is not known."""
    names = list(given or ())
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"There is no {what} {plain(unknown[0], 60)}; there are {', '.join(known)}.")
    if not names:
        raise ValueError(f"No {what} is chosen: choose one or more.")
    return [name for name in known if name in names]


def sentence(error: Exception) -> str:
    """What a page says of an error. One that is not meant for users goes to the log, and the page says so."""
    if isinstance(error, TOLD) and str(error):
        return plain(error, 600)
    logger.error("An error in the app", exc_info=error)
    return f"Something went wrong that should not have ({type(error).__name__}); the app's log says what."
