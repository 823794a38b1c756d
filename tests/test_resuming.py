"""resuming.py: half a checkpoint is not taken for the last good one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_training import delta, make_trainer
from transformers.trainer_utils import get_last_checkpoint

from transferable_vp.resuming import last_whole_checkpoint


def make_checkpoint(folder: Path, step: int, state: str | None = "{}") -> None:
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    if state is not None:
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(state)


def test_the_newest_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        make_checkpoint(tmp_path, step)
    make_checkpoint(tmp_path / "checkpoint-other", 200)
    (tmp_path / "checkpoint-300").touch()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")


@pytest.mark.parametrize("state", [None, "", '{"global_step": 1'])
def test_one_that_was_cut_off_is_passed_over(
    tmp_path: Path, state: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 20, state)
    assert last_whole_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10")
    assert "checkpoint-20 is not whole" in caplog.text


def test_none(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 20, None)
    assert last_whole_checkpoint(tmp_path) is None
    assert last_whole_checkpoint(tmp_path / "nowhere") is None


def test_a_training_goes_on_from_the_last_whole_one(tmp_path: Path) -> None:
    arguments = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(tmp_path / "whole", **arguments)
    whole.train()
    # Killed while the third step was being saved.
    broken = make_trainer(tmp_path / "broken", **arguments)
    broken.train()
    for step in (3, 4):
        (tmp_path / "broken" / f"checkpoint-{step}" / "trainer_state.json").unlink()
    assert get_last_checkpoint(str(tmp_path / "broken")) == str(tmp_path / "broken" / "checkpoint-4")
    resumed = make_trainer(tmp_path / "broken", **arguments)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4 and (delta(resumed) == delta(whole)).all()


def test_a_training_without_a_whole_one(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 2, None)
    with pytest.raises(ValueError, match=r"no whole checkpoint .* without `resume_from_checkpoint`"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)
