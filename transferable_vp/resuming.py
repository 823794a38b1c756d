"""Which checkpoint a training goes on from."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


logger = logging.getLogger(__name__)


def last_whole_checkpoint(folder: str | Path) -> str | None:
    r"""
    The newest `checkpoint-N` whose state is there, which the first process writes last. One that is left without it, as
    by a kill while it was saved, is passed over with a warning:
    [`~transformers.trainer_utils.get_last_checkpoint`] would take it.

    Args:
        folder (`str` or `Path`): A training's `output_dir`; it need not be there.

    Returns:
        `str`, *optional*: The checkpoint's folder; none where none is whole.
    """
    name = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    steps = {int(m[1]): path for path in Path(folder).glob("*") if (m := name.fullmatch(path.name)) and path.is_dir()}
    for _, path in sorted(steps.items(), reverse=True):
        if _is_whole(path):
            return str(path)
        logger.warning("%s is not whole, as its saving was cut off: it is passed over.", path)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
