"""Image features of the clean side of Feature Consistency Alignment, kept from one epoch to the next if asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from .modeling import TransferableVisualPrompt
from .surrogate import Surrogate


Key = tuple[int, bytes, str]


class CleanFeatures:
    r"""
    The features that surrogates give to images in a black border.

    Nothing is thrown out when memory is full: in passes over a dataset larger than that, what was used longest ago is
    what comes next, and a cache that made room for the newest would never have what is asked for.

    Args:
        surrogates (`Sequence[Surrogate]`): Whose features.
        limit (`float`, *optional*, defaults to 0.0): Bytes of features to keep, on the CPU, in the precision of the model.
    """

    def __init__(self, surrogates: Sequence[Surrogate], limit: float = 0.0) -> None:
        self.surrogates, self.limit, self.nbytes = surrogates, limit, 0
        self._kept: dict[Key, torch.Tensor] = {}
        # Of a model spread over devices, the features need not lie where its inputs go.
        self._places: dict[int, torch.device] = {}

    @torch.no_grad()
    def __call__(
        self, prompt: TransferableVisualPrompt, images: Sequence[torch.Tensor], questions: Sequence[str]
    ) -> list[torch.Tensor]:
        r"""
        Args:
            prompt ([`TransferableVisualPrompt`]): Whose geometry the clean canvases have; always the same one.
            images (`Sequence[torch.Tensor]`): From its `fitted`, mirrored or not as they are in this batch.
            questions (`Sequence[str]`): One per image, as some image encoders read it.

        Returns:
            `list[torch.Tensor]`: One per surrogate, float32 `(tokens of the whole batch, width)`.
        """
        if not self.limit:
            rows = list(range(len(images)))
            return [self._made(s, prompt, images, questions, rows) for s in self.surrogates]
        # By the pixels: a mirrored image is another one, and so is one of another dataset.
        digests = [hashlib.blake2b(f"{tuple(i.shape)}".encode() + i.numpy().tobytes()).digest() for i in images]
        found = []
        for index, surrogate in enumerate(self.surrogates):
            keys = [(index, digest, question) for digest, question in zip(digests, questions, strict=True)]
            new = [row for row, key in enumerate(keys) if key not in self._kept]
            # Native canvases have as many features as their size says: alone, it is known whose is whose.
            groups = [[row] for row in new] if prompt.config.canvas == "native" else [new] if new else []
            made: dict[int, torch.Tensor] = {}
            for group in groups:
                features = self._made(surrogate, prompt, images, questions, group)
                self._places[index] = features.device
                made |= dict(zip(group, features.chunk(len(group)), strict=True))
            for row, part in made.items():
                self._keep(keys[row], part, surrogate.model.dtype)
            parts = [made[row] if row in made else self._kept[key] for row, key in enumerate(keys)]
            found.append(torch.cat([part.to(self._places[index], torch.float32) for part in parts]))
        return found

    def _made(
        self,
        surrogate: Surrogate,
        prompt: TransferableVisualPrompt,
        images: Sequence[torch.Tensor],
        questions: Sequence[str],
        rows: Sequence[int],
    ) -> torch.Tensor:
        clean = prompt([images[row] for row in rows], prompted=False)
        unbounded = prompt.config.value_range == "unbounded"
        return surrogate.features(clean, [questions[row] for row in rows], unbounded)

    def _keep(self, key: Key, features: torch.Tensor, dtype: torch.dtype) -> None:
        narrow = features.to(dtype)
        # Some models in half precision end their image encoder in float32.
        part = narrow if torch.equal(narrow.float(), features) else features
        if key not in self._kept and self.nbytes + part.nbytes <= self.limit:
            # A copy, or a slice would keep the features of its whole batch.
            self._kept[key] = part.cpu().clone()
            self.nbytes += part.nbytes
