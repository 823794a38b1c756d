"""Folders that the converters wrote of tiny checkpoints, made once a session."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import pytest
import tiny
import torch

from transferable_vp.models import lavis


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the authors published, tiny: nothing in it is changed by a test."""
    folder = tmp_path_factory.mktemp("published")
    checkpoints.save_vicuna(folder / "vicuna")
    bert = tiny.word_piece_tokenizer()
    bert.save_pretrained(folder / "bert")
    # What LAVIS does not build is in its file.
    torch.save(
        checkpoints.eva() | {"blocks.39.norm1.bias": torch.ones(3), "norm.bias": torch.ones(3)}, folder / "eva.pth"
    )
    checkpoints.save_checkpoint(checkpoints.minigpt4(), folder / "minigpt4.pth")
    t5 = checkpoints.projection("t5_proj", seed=9)
    checkpoints.save_checkpoint(checkpoints.qformer(None) | t5, folder / "blip2.pth")
    checkpoints.save_checkpoint(checkpoints.vpgtrans(), folder / "vpgtrans.pth")
    # With [DEC].
    checkpoints.save_checkpoint(checkpoints.bliva(len(bert) + 1), folder / "bliva.pth")
    return folder


@pytest.fixture(scope="session")
def converted(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the converters made of them: `minigpt4`, `vpgtrans` and `bliva`."""
    folder = tmp_path_factory.mktemp("converted")
    vicuna, vit = published / "vicuna", published / "eva.pth"
    lavis.convert_minigpt4(published / "minigpt4.pth", vicuna, published / "blip2.pth", folder / "minigpt4", vit)
    lavis.convert_vpgtrans(published / "vpgtrans.pth", vicuna, folder / "vpgtrans", vit, max_shard_size=400_000)
    lavis.convert_bliva(published / "bliva.pth", vicuna, folder / "bliva", qformer_tokenizer=published / "bert")
    return folder
