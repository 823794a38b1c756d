"""Frames and losses of a training, kept by the callback and read from checkpoints, on real training steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_training import losses, make_trainer, new_prompt, rig, rows

from transferable_vp.history import PromptHistory


def same(left: Image.Image, right: Image.Image) -> bool:
    return left.mode == right.mode and np.array_equal(np.asarray(left), np.asarray(right))


def test_the_callback_keeps_first_last_and_every_so_many_steps(tmp_path: Path) -> None:
    history, prompt = PromptHistory(every=2), new_prompt()
    begin = prompt.to_image()
    trainer = make_trainer(tmp_path, model=prompt, callbacks=[history])
    trainer.train()
    assert list(history.frames) == [0, 2, 3]
    assert same(history.frames[0], begin)
    assert same(history.frames[3], prompt.to_image())
    assert not same(history.frames[2], history.frames[3])
    assert history.losses == {entry["step"]: entry["loss"] for entry in losses(trainer)}
    assert list(history.losses) == [1, 2, 3]


def test_a_second_training_begins_anew(tmp_path: Path) -> None:
    history, prompt = PromptHistory(every=1), new_prompt()
    make_trainer(tmp_path, model=prompt, callbacks=[history]).train()
    learned = prompt.to_image()
    make_trainer(tmp_path, model=prompt, callbacks=[history], max_steps=1).train()
    assert list(history.frames) == [0, 1]
    assert same(history.frames[0], learned)
    assert list(history.losses) == [1]


def test_checkpoints_hold_the_same_frames_and_losses(tmp_path: Path) -> None:
    kept = PromptHistory(every=1)
    make_trainer(tmp_path, callbacks=[kept], save_strategy="steps", save_steps=1).train()
    (tmp_path / "checkpoint-9").mkdir()  # as a process leaves it that was killed while it saved
    read = PromptHistory.from_checkpoints(tmp_path)
    assert list(read.frames) == [1, 2, 3]
    assert all(same(frame, kept.frames[step]) for step, frame in read.frames.items())
    assert read.losses == kept.losses


def test_the_last_frame_is_not_the_best_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig(monkeypatch, llava=[0.9, 0.1, 0.1])
    history, prompt = PromptHistory(every=1), new_prompt()
    make_trainer(
        tmp_path, model=prompt, callbacks=[history], eval_dataset=rows(4), save_strategy="steps", save_steps=1,
        eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
    ).train()  # fmt: skip
    assert same(history.frames[1], prompt.to_image())
    assert not same(history.frames[3], prompt.to_image())


def test_frames_show_the_prompt_around_a_picture(tmp_path: Path) -> None:
    picture, prompt = Image.new("RGB", (30, 20), (200, 10, 10)), new_prompt()
    history = PromptHistory(image=picture)
    make_trainer(tmp_path, model=prompt, callbacks=[history], max_steps=1).train()
    assert same(history.frames[1], prompt.apply(picture))


def test_an_overlay_is_shown_on_grey(tmp_path: Path) -> None:
    history = PromptHistory()
    make_trainer(tmp_path, model=new_prompt(layout="overlay"), callbacks=[history], max_steps=1).train()
    assert history.frames[0].mode == "RGB"
    assert history.frames[0].getpixel((16, 16)) == (128, 128, 128)


def test_nothing_to_read_and_nothing_to_keep_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*callbacks=\[PromptHistory\(\)\]"):
        PromptHistory.from_checkpoints(tmp_path)
    with pytest.raises(ValueError, match="`every` is 0; a frame can be kept every step at most"):
        PromptHistory(every=0)
