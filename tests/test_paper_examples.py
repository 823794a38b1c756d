"""examples/paper: every recipe, the README line and the check of the released prompt, on tiny models and data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import hub_schemas
import pytest
import tiny_clip
import tiny_paper
import torch
import yaml
from tiny import IMAGE_SIZE

from transferable_vp import Surrogate, TransferableVisualPrompt, evaluate
from transferable_vp.bundled import bundled, import_bundled
from transferable_vp.paper import load_rows, paper_surrogate
from transferable_vp.report import read_json
from transferable_vp.tasks import task_names


FOLDER = bundled("examples/paper")
RECIPES = sorted(FOLDER.glob("*.yaml"))
MODELS = ("minigpt4", "instructblip", "blip2")


@pytest.fixture(scope="module")
def train() -> ModuleType:
    return import_bundled("examples/train.py")


@pytest.fixture(scope="module")
def verify() -> ModuleType:
    return import_bundled("examples/paper/verify_released_prompt.py")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models in folders, four rows of every task, and a checkpoint of the released layout."""
    folder = tmp_path_factory.mktemp("files")
    for name, (model, processor) in {
        **{form: tiny_paper.build(form) for form in MODELS}, "clip": tiny_clip.build_clip(),
    }.items():  # fmt: skip
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    for recipe in RECIPES:
        hub_schemas.made(recipe.stem).to_parquet(folder / f"{recipe.stem}.parquet")
    noise = torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    noise[:, 6:-6, 6:-6] = 0
    torch.save({"perturbation": noise}, folder / "checkpoint_best.pth")
    return folder


@pytest.fixture(autouse=True)
def _data_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def small(files: Path, out: Path, task: str) -> list[str]:
    """What makes a recipe one of tiny models: places, sizes and two steps."""
    settings = {
        "model": files / "minigpt4", "clip_model": files / "clip", "dataset": files / f"{task}.parquet",
        "output_dir": out, "canvas_size": IMAGE_SIZE, "border_size": 6, "max_steps": 2, "dtype": "float32",
        "per_device_train_batch_size": 2, "logging_steps": 1, "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [*flags, "--target_model", str(files / "instructblip"), str(files / "blip2")]


def test_every_task_of_the_paper_has_a_recipe() -> None:
    own_splits = {"pope_adversarial", "pope_popular", "pope_random"}
    assert {recipe.stem for recipe in RECIPES} == set(task_names()) - own_splits
    for recipe in RECIPES:
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        assert (values["recipe"], values["task"]) == ("paper", recipe.stem)
        assert f"examples/paper/{recipe.name}" in recipe.read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_learns(recipe: Path, train: ModuleType, files: Path, tmp_path: Path) -> None:
    train.main([str(recipe), *small(files, tmp_path / "run", recipe.stem)])
    prompt = TransferableVisualPrompt.from_pretrained(tmp_path / "run")
    assert prompt.config.value_range == "unbounded" and (prompt.delta < 0).any()
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text(encoding="utf-8"))
    steps = [entry for entry in state["log_history"] if "loss" in entry]
    # 10 on the paper's canvas.
    assert [entry["learning_rate"] for entry in steps] == pytest.approx([10 * IMAGE_SIZE / 224] * 2)
    terms = {"task": 1.0, "fca": 0.005, "tse": 0.0 if recipe.stem == "pope" else 0.001}
    for entry in steps:
        assert entry["loss"] == pytest.approx(sum(w * entry.get(f"{n}_loss", 0) for n, w in terms.items()), abs=1e-3)
    if recipe.stem != "pope":
        measured = json.loads((tmp_path / "run" / "eval_results.json").read_text(encoding="utf-8"))
        assert {f"eval_{name}_accuracy" for name in MODELS} <= measured.keys()


def test_what_is_given_overrides_the_recipe(train: ModuleType, files: Path, tmp_path: Path) -> None:
    words = [*small(files, tmp_path / "run", "cifar10"), "--learning_rate", "200", "--value_range", "displayable"]
    train.main(["--recipe", "paper", "--task", "cifar10", *words])
    prompt = TransferableVisualPrompt.from_pretrained(tmp_path / "run")
    assert prompt.config.value_range == "displayable" and 0 <= prompt.delta.min() < prompt.delta.max() <= 1
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["log_history"][0]["learning_rate"] == 200


class TestReleasedPrompt:
    @staticmethod
    def words(files: Path, out: Path, **more: Any) -> list[str]:
        settings = {"prompt": files / "checkpoint_best.pth", "content_size": IMAGE_SIZE - 12, "dtype": "float32",
                    "dataset": files / "cifar10.parquet", "output_dir": out, "device": "cpu", "batch_size": 2} | more  # fmt: skip
        flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        return [*flags, "--model", *(str(files / name) for name in MODELS)]

    def test_both_arithmetics(
        self, verify: ModuleType, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert verify.main(self.words(files, tmp_path)) == 0
        printed = capsys.readouterr().out
        assert "NOT the released file" in printed and " % of the border's values are outside [0, 1]" in printed
        for name, value_range in (("unbounded", "unbounded"), ("8bit", "displayable")):
            report = read_json(tmp_path / f"transfer_{name}.json")
            assert report["settings"]["value_range"] == value_range and report["task"] == f"CIFAR-10 (test), {name}"
            assert [t["is_source"] for t in report["targets"]] == [True, False, False]
            prompt = TransferableVisualPrompt.from_paper_checkpoint(
                files / "checkpoint_best.pth", value_range, content_size=IMAGE_SIZE - 12
            )
            rows, task = load_rows("cifar10", str(files / "cifar10.parquet"), "test")
            for target, form in zip(report["targets"], MODELS, strict=True):
                model = paper_surrogate(Surrogate.from_pretrained(str(files / form)))
                expected = evaluate(model, rows, task, prompt, progress=False)
                assert (target["model"], target["n"], target["tvp"]) == (form, 4, expected.mean)
                assert target["full_image"] == evaluate(model, rows, task, progress=False).mean

    def test_goes_on_where_it_stopped(self, verify: ModuleType, files: Path, tmp_path: Path) -> None:
        assert verify.main(self.words(files, tmp_path, limit=2)) == 0
        kept = {path: path.read_bytes() for path in (tmp_path / "answers").iterdir()}
        assert len(kept) == 3
        assert verify.main(self.words(files, tmp_path, limit=2)) == 0
        assert {path: path.read_bytes() for path in (tmp_path / "answers").iterdir()} == kept
        assert read_json(tmp_path / "transfer_8bit.json")["targets"][0]["n"] == 2

    def test_a_prompt_of_ours(self, verify: ModuleType, files: Path, tmp_path: Path) -> None:
        prompt = TransferableVisualPrompt.from_paper_checkpoint(
            files / "checkpoint_best.pth", content_size=IMAGE_SIZE - 12
        )
        prompt.save_pretrained(tmp_path / "prompt")
        found = verify.read_prompts(str(tmp_path / "prompt"), 164)
        assert torch.equal(found["unbounded"].delta, prompt.delta)
        assert torch.equal(found["8bit"].delta, prompt.delta.clamp(0, 1))
        found["8bit"].save_pretrained(tmp_path / "shown")
        assert list(verify.read_prompts(str(tmp_path / "shown"), 164)) == ["8bit"]

    def test_an_error_is_one_sentence(
        self, verify: ModuleType, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "other.pth").write_bytes(b"no checkpoint")
        assert verify.main(self.words(files, tmp_path, prompt=tmp_path / "other.pth")) == 1
        assert "other.pth is not a checkpoint that can be read" in capsys.readouterr().err


@pytest.mark.multiprocess
class TestReproduce:
    """reproduce.sh on the zoo, whose InstructBLIP has a form of the paper and whose others have none."""

    @staticmethod
    def run(arguments: list[str], **settings: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DTYPE": "float32",
            "PYTHONPATH": os.pathsep.join([str(FOLDER.parent.parent), os.environ.get("PYTHONPATH", "")]),
        } | settings  # fmt: skip
        command = ["bash", str(FOLDER / "reproduce.sh"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    @pytest.mark.slow
    def test_two_steps(self, files: Path, tmp_path: Path) -> None:
        zoo = {"MINIGPT4": "instructblip", "INSTRUCTBLIP": "llava", "BLIP2": "idefics3", "CLIP": "clip"}
        done = self.run(
            ["--max_steps", "2", "--canvas_size", "64", "--border_size", "8", "--per_device_train_batch_size", "2",
             "--use_cpu", "--disable_tqdm", "true"],
            DATA=str(files / "cifar10.parquet"), OUT=str(tmp_path / "run"), LIMIT="3",
            HF_DATASETS_CACHE=str(tmp_path / "cache"), **{key: str(bundled(f"zoo/{name}")) for key, name in zoo.items()},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert "llava (llava) is none of the paper's six models" in done.stderr
        assert TransferableVisualPrompt.from_pretrained(tmp_path / "run").config.value_range == "unbounded"
        report = read_json(tmp_path / "run" / "report" / "transfer_unbounded.json")
        assert [(t["model"], t["is_source"], t["n"]) for t in report["targets"]] == [
            ("instructblip", True, 3), ("llava", False, 3), ("idefics3", False, 3)
        ]  # fmt: skip

    def test_without_weights(self, tmp_path: Path) -> None:
        done = self.run([], MINIGPT4=str(tmp_path / "nowhere"))
        assert done.returncode == 1
        assert (
            f"there is no model at {tmp_path}/nowhere: make it with `transferable-vp convert minigpt4`" in done.stderr
        )
