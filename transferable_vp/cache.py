"""What models answered, on disk, by what they were given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .surrogate import Surrogate


class AnswerCache:
    r"""
    Answers of one model under fixed settings, found again by what it was given: the pixels, the question and the
    candidates.

    As everything that an answer depends on is in its key or in the file's, an entry is never stale: another prompt makes
    other pixels, other weights make another file. A run that was killed goes on from the last batch written. Every
    process writes a file of its own, and reads those of all.

    Args:
        folder (`str` or `Path`): Where files are; it is made if need be.
        model (`str`): [`fingerprint`] of the model, or any text that is another for another model.
        settings (`Mapping[str, Any]`): Whatever else answers depend on, as JSON can hold it.
        process (`int`, *optional*, defaults to 0): Index of this process.
    """

    def __init__(self, folder: str | Path, model: str, settings: Mapping[str, Any], process: int = 0) -> None:
        head = {"model": model, "settings": dict(settings)}
        name = hashlib.blake2b(json.dumps(head, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / f"{name}-{process}.jsonl"
        self._known: dict[str, Any] = {}
        for path in sorted(self.folder.glob(f"{name}-*.jsonl")):
            self._known |= dict(_entries(path))
        if not self.path.exists():
            self.path.write_text(json.dumps(head) + "\n", encoding="utf-8")
        elif not self.path.read_bytes().endswith(b"\n"):
            # A process was killed while writing: what comes next must not go on its line.
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def get(self, key: str) -> Any:
        """The answer to what `key` stands for, or `None`."""
        return self._known.get(key)

    def put(self, answers: Mapping[str, Any]) -> None:
        """Writes answers by their keys, at once."""
        self._known |= answers
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps([key, value]) + "\n" for key, value in answers.items())


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        try:
            key, value = json.loads(line)
        except ValueError:
            # The last line of a process that was killed while writing it.
            continue
        yield key, value


def given(image: Image.Image | torch.Tensor, question: str, rest: Sequence[str]) -> str:
    """A key for what a model is given: an image (float canvas `(3, h, w)` of an unbounded prompt), a question, and
    whatever texts go with it."""
    if isinstance(image, torch.Tensor):
        shape, data = tuple(image.shape), image.detach().cpu().contiguous().numpy().tobytes()
    else:
        shape, data = image.size, image.tobytes()
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([list(shape), question, list(rest)]).encode())
    digest.update(data)
    return digest.hexdigest()


def fingerprint(surrogate: Surrogate) -> str:
    """A text that is another for another model, other weights or another processor.

    Raises:
        TypeError: If the weights are not in memory, as when a `device_map` puts some on disk, or are split over processes.
    """
    if surrogate.is_sharded:
        # Each process has another part, or none: DeepSpeed leaves nothing in a weight's place, whatever it was.
        raise TypeError(
            f"The weights of {surrogate.name} are split over processes, so answers cannot be kept for them: evaluate "
            "without a cache, or before the model is split."
        )
    digest = hashlib.blake2b(digest_size=16)
    processor = surrogate.processor
    tokenizer = getattr(surrogate.tokenizer, "backend_tokenizer", None)
    for part in (
        # The paper's inputs are other ones than the model's own.
        type(surrogate).__name__,
        str(getattr(surrogate, "form", None)),
        type(surrogate.model).__name__,
        surrogate.config.to_json_string(use_diff=False),
        processor.image_processor.to_json_string(),
        # Patch sizes and the like; tokens are below.
        str(
            sorted(
                (name, value) for name, value in vars(processor).items() if isinstance(value, (str, int, float, bool))
            )
        ),
        str(getattr(processor, "chat_template", None)),
        str(surrogate.prompt_template),
        str(surrogate.tokenizer.special_tokens_map),
        surrogate.base_model.generation_config.to_json_string(use_diff=False),
        # Not in the weights: the scale of an adapter.
        str(
            sorted((name, str(value)) for name, value in (getattr(surrogate.model, "peft_config", None) or {}).items())
        ),
        f"{surrogate.base_model.config._attn_implementation} {surrogate.device.type} {torch.__version__}",
        _tokenizer_text(tokenizer) if tokenizer is not None else str(surrogate.tokenizer.get_vocab()),
    ):
        digest.update(part.encode())
    for name, tensor in sorted(
        {**dict(surrogate.model.named_parameters()), **dict(surrogate.model.named_buffers())}.items()
    ):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for plain in _plain(tensor.detach(), name):
            digest.update(plain.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"{surrogate.name} {digest.hexdigest()}"


def _tokenizer_text(tokenizer: Any) -> str:
    # A call leaves its padding and truncation behind; a model that was asked before is no other model.
    kept = json.loads(tokenizer.to_str()) | {"padding": None, "truncation": None}
    return json.dumps(kept, sort_keys=True)


def _plain(tensor: torch.Tensor, name: str) -> Iterator[torch.Tensor]:
    if tensor.is_meta:
        raise TypeError(
            f"The weights {name} are not in memory, so answers cannot be kept for them: evaluate without a cache."
        )
    if (
        hasattr(tensor, "__tensor_flatten__")
        and type(tensor) is not torch.Tensor
        and type(tensor) is not torch.nn.Parameter
    ):
        # Quantised weights are made of several tensors.
        for part in tensor.__tensor_flatten__()[0]:
            yield from _plain(getattr(tensor, part), name)
    else:
        yield tensor
