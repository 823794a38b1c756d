"""examples/train.py: any data, flags or YAML, one process or several."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pytest
import tiny
import tiny_clip
import torch
import yaml
from hub_server import Fault, HubServer, hub_environment
from huggingface_hub import metadata_load
from tiny_training import NAMES, dataset, rows

from transferable_vp import TransferableVisualPrompt
from transferable_vp.cli import main as cli
from transferable_vp.hub import SHARED_FILES


ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "train.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_script"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data as a user has them: folders and files."""
    folder = tmp_path_factory.mktemp("files")
    for name, (model, processor) in {
        "llava": tiny.build("llava"), "idefics3": tiny.build("idefics3"), "clip": tiny_clip.build_clip(),
    }.items():  # fmt: skip
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    for split, count in (("train", 9), ("test", 5)):
        for i, row in enumerate(rows(count)):
            place = folder / "images" / split / NAMES[row["label"]]
            place.mkdir(parents=True, exist_ok=True)
            row["image"].save(place / f"{i}.png")
    dataset(16).rename_column("image", "img").to_parquet(folder / "labels.parquet")
    questions = datasets.Dataset.from_list(
        [{"image": row["image"], "question": f"What is {i}?", "answer": NAMES[row["label"]]} for i, row in enumerate(rows(8))],
        features=datasets.Features({
            "image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string"),
        }),
    )  # fmt: skip
    questions.to_parquet(folder / "questions.parquet")
    return folder


@pytest.fixture(autouse=True)
def _data_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def settings(files: Path, out: Path, **more: Any) -> dict[str, Any]:
    """Two steps on the tiny LLaVA."""
    return {
        "model": [str(files / "llava")], "dataset": str(files / "labels.parquet"), "output_dir": str(out),
        "canvas_size": 32, "border_size": 6, "max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1,
        "save_strategy": "no", "tse_weight": 0, "use_cpu": True, "disable_tqdm": True,
    } | more  # fmt: skip


def flags(values: dict[str, Any]) -> list[str]:
    words = []
    for key, value in values.items():
        words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return words


def state(out: Path) -> dict[str, Any]:
    return json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))


def learned(out: Path) -> torch.Tensor:
    return TransferableVisualPrompt.from_pretrained(out).delta.detach()


def test_is_short() -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 150


def test_a_folder_of_images_with_clip_and_a_target(script: ModuleType, files: Path, tmp_path: Path) -> None:
    values = settings(
        files, tmp_path / "run", dataset=str(files / "images"), eval_split="test", clip_model=str(files / "clip"),
        fca_weight=0.1, tse_weight=0.1, target_model=[str(files / "idefics3")], fit="contain",
    )  # fmt: skip
    script.main(flags(values))
    prompt = TransferableVisualPrompt.from_pretrained(tmp_path / "run")
    assert (prompt.config.canvas_size, prompt.config.border_size, prompt.config.fit) == (32, 6, "contain")
    assert prompt.delta.any() and (tmp_path / "run" / "prompt.png").exists()
    steps = [entry for entry in state(tmp_path / "run")["log_history"] if "loss" in entry]
    assert len(steps) == 2 and all({"task_loss", "fca_loss", "tse_loss"} <= entry.keys() for entry in steps)
    results = json.loads((tmp_path / "run" / "eval_results.json").read_text(encoding="utf-8"))
    assert results["eval_accuracy"] == results["eval_llava_accuracy"]
    assert results["eval_idefics3_accuracy"] in [i / 5 for i in range(6)]


def test_a_file_with_labels_and_two_models(script: ModuleType, files: Path, tmp_path: Path) -> None:
    both = [str(files / "llava"), str(files / "idefics3")]
    # No CLIP is looked for where TSE has no weight.
    script.main(flags(settings(files, tmp_path / "both", model=both, clip_model="/not/there")))
    script.main(flags(settings(files, tmp_path / "one", clip_model="/not/there")))
    assert learned(tmp_path / "both").any()
    assert not torch.equal(learned(tmp_path / "both"), learned(tmp_path / "one"))


def test_a_file_with_questions(script: ModuleType, files: Path, tmp_path: Path) -> None:
    data = str(files / "questions.parquet")
    script.main(flags(settings(files, tmp_path / "run", dataset=data, eval_split="train[:4]")))
    assert learned(tmp_path / "run").any()
    results = json.loads((tmp_path / "run" / "eval_results.json").read_text(encoding="utf-8"))
    assert results["eval_loss"] == results["eval_llava_loss"] > 0


def test_a_shuffled_share_to_validate_on(
    script: ModuleType, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    trainer = script.TransferableVisualPromptTrainer

    def spy(**kwargs: Any) -> Any:
        seen.update(kwargs)
        return trainer(**kwargs)

    monkeypatch.setattr(script, "TransferableVisualPromptTrainer", spy)
    script.main(flags(settings(files, tmp_path / "run", eval_share=0.25)))
    train, evaluation = ({image["bytes"] for image in seen[part]["img"]} for part in ("train_dataset", "eval_dataset"))
    assert (len(seen["train_dataset"]), len(seen["eval_dataset"])) == (12, 4)
    assert not train & evaluation


def test_streaming_has_no_share_to_take(script: ModuleType, files: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`eval_share` needs all rows.*give `eval_split`"):
        script.main([*flags(settings(files, tmp_path / "run", eval_share=0.25)), "--streaming"])


def test_streaming(script: ModuleType, files: Path, tmp_path: Path) -> None:
    script.main([*flags(settings(files, tmp_path / "run")), "--streaming"])
    assert state(tmp_path / "run")["global_step"] == 2 and learned(tmp_path / "run").any()


class TestYaml:
    @staticmethod
    def write(folder: Path, values: dict[str, Any]) -> str:
        file = folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        return str(file)

    def test_says_the_same_as_flags_which_override_it(self, script: ModuleType, files: Path, tmp_path: Path) -> None:
        values = settings(files, tmp_path / "flags", border_size=5, learning_rate=0.2)
        script.main(flags(values))
        # Empty lines and nested ones are as good in YAML as anything.
        more = {"output_dir": "overridden", "border_size": 7, "eval_split": None, "target_model": [],
                "accelerator_config": {"dispatch_batches": False, "split_batches": False}}  # fmt: skip
        recipe = self.write(tmp_path, values | more)
        script.main([recipe, "--output_dir", str(tmp_path / "yaml"), "--border_size", "5"])
        assert torch.equal(learned(tmp_path / "flags"), learned(tmp_path / "yaml"))
        assert TransferableVisualPrompt.from_pretrained(tmp_path / "yaml").config.border_size == 5
        assert not (tmp_path / "overridden").exists()

    def test_an_unknown_key_is_named(self, script: ModuleType, files: Path, tmp_path: Path) -> None:
        recipe = self.write(tmp_path, settings(files, tmp_path / "run", bordersize=5))
        with pytest.raises(ValueError, match=r"not used .*--bordersize"):
            script.main([recipe])


def test_goes_on_from_the_last_checkpoint(script: ModuleType, files: Path, tmp_path: Path) -> None:
    script.main(flags(settings(files, tmp_path / "whole", max_steps=3)))
    saving = settings(files, tmp_path / "parts", max_steps=3, save_strategy="steps", save_steps=2)
    script.main(flags(saving))
    # As if it had been interrupted after the second step.
    shutil.rmtree(tmp_path / "parts" / "checkpoint-3")
    (tmp_path / "parts" / "model.safetensors").unlink()
    script.main([*flags(saving), "--resume_from_checkpoint", "true"])
    assert torch.equal(learned(tmp_path / "whole"), learned(tmp_path / "parts"))
    assert [entry["step"] for entry in state(tmp_path / "parts")["log_history"] if "loss" in entry] == [1, 2, 3]


def test_starts_from_a_prompt(script: ModuleType, files: Path, tmp_path: Path) -> None:
    start = tiny.noise_prompt(canvas_size=40, border_size=4)
    start.save_pretrained(tmp_path / "start")
    values = settings(files, tmp_path / "run", prompt=str(tmp_path / "start"), learning_rate=0.0)
    script.main(flags(values))
    assert torch.equal(learned(tmp_path / "run"), start.delta)


class TestSharing:
    ID = "org/tvp-script"

    def test_the_card_names_data_by_no_path_and_the_end_says_how_to_share(
        self, script: ModuleType, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        script.main(flags(settings(files, tmp_path / "run", license="mit")))
        said = capsys.readouterr().out
        assert f"The prompt is in {tmp_path / 'run'}, with its card, README.md." in said
        assert f"To share it: transferable-vp push {tmp_path / 'run'} " in said
        card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
        assert metadata_load(tmp_path / "run" / "README.md")["license"] == "mit"
        assert "| `labels.parquet` | – | `train` | – |" in card and str(files) not in card

    def test_pushed_once_at_the_end(
        self, hub: HubServer, script: ModuleType, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        script.main(
            flags(settings(files, tmp_path / "run", push_to_hub="true", hub_model_id=self.ID, eval_share=0.25))
        )
        repo = hub.repos["model", self.ID]
        assert [commit.title for commit in repo.history()] == ["End of training", "initial commit"]
        assert set(repo.files()) == {".gitattributes", *SHARED_FILES}
        assert torch.equal(TransferableVisualPrompt.from_pretrained(self.ID).delta, learned(tmp_path / "run"))
        assert f"Shared as {self.ID}." in capsys.readouterr().out
        assert {"trainer_state.json", "eval_results.json"} <= set(os.listdir(tmp_path / "run"))

    def test_a_push_that_fails_is_one_sentence_after_everything_is_saved(
        self, hub: HubServer, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(sys, "argv", sys.argv)
        hub.faults.append(Fault("/commit/", status=403, times=9))
        more = {"push_to_hub": "true", "hub_model_id": self.ID, "eval_share": 0.25}
        assert cli(["train", *flags(settings(files, tmp_path / "run", **more))]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"error: Could not push to {self.ID}: ") and f"hf upload {self.ID} " in said
        assert {*SHARED_FILES, "trainer_state.json", "eval_results.json"} <= set(os.listdir(tmp_path / "run"))
        assert learned(tmp_path / "run").any()

    def test_a_token_that_is_none_ends_it_before_training(
        self, hub: HubServer, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(sys, "argv", sys.argv)
        more = {"push_to_hub": "true", "hub_model_id": self.ID, "hub_token": "hf_wrong"}
        assert cli(["train", *flags(settings(files, tmp_path / "run", **more))]) == 1
        captured = capsys.readouterr()
        said = captured.err.splitlines()[-1]
        assert said.startswith(f"error: Could not prepare to push to {self.ID}: ") and "hf_wrong" not in said
        assert "loss" not in captured.out and not (tmp_path / "run" / "model.safetensors").exists()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(processes: int, folder: Path, *runs: dict[str, Any], **variables: str) -> str:
    """Starts the script as many times as there are `runs`, in the same processes, as starting takes longest.

    Returns what they printed."""
    driver = folder / "driver.py"
    driver.write_text(
        "import runpy, sys\n"
        f"for sys.argv in {[[str(SCRIPT), *flags(values)] for values in runs]!r}:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n",
        encoding="utf-8",
    )
    # `--cpu` with several processes starts a single one (unless MPI does). `--multi_gpu` starts as many as are asked
    # for, GPUs or not; the script's own `--use_cpu` keeps them on the CPU.
    kind = "--cpu" if processes == 1 else "--multi_gpu"
    command = [
        sys.executable, "-m", "accelerate.commands.launch", kind, "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", str(free_port()), str(driver),
    ]  # fmt: skip
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {
        "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"),
    } | variables  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def distributed(files: Path, out: Path, size: int) -> dict[str, Any]:
    """A run that the number of processes must not matter to."""
    return settings(
        files, out, per_device_train_batch_size=size, max_steps=3, fca_weight=0.1, block_size=1,
        # The paper's arithmetic: neither 8-bit rounding nor Adam's signs to blow differences in the last bit up.
        update_rule="paper", value_range="unbounded", learning_rate=1.0,
        # An odd number of rows, so that the processes' shares are unequal.
        eval_split="train[:5]",
    )  # fmt: skip


def assert_same_run(one: Path, other: Path) -> None:
    assert learned(one).abs().max() > 0.05
    torch.testing.assert_close(learned(one), learned(other), rtol=0, atol=1e-5)
    logs = [state(out)["log_history"] for out in (one, other)]
    compared = 0
    for alone, shared in zip(*logs, strict=True):
        # An epoch of half as many steps would mean that every process had all of the data.
        assert alone["epoch"] == shared["epoch"]
        for key in {"loss", "task_loss", "fca_loss", "eval_accuracy", "eval_llava_accuracy"} & alone.keys():
            assert shared[key] == pytest.approx(alone[key], rel=1e-4)
            compared += 1
    assert compared == 3 * 3 + 2


@pytest.mark.multiprocess
def test_two_processes_learn_what_one_learns(script: ModuleType, files: Path, tmp_path: Path) -> None:
    runs = []
    for name, streaming in (("table", False), ("stream", True)):
        script.main(flags(distributed(files, tmp_path / name / "one", size=8) | {"streaming": streaming}))
        runs.append(distributed(files, tmp_path / name / "two", size=4) | {"streaming": streaming})
    launch(2, tmp_path, *runs)
    assert_same_run(tmp_path / "table" / "one", tmp_path / "table" / "two")
    assert_same_run(tmp_path / "stream" / "one", tmp_path / "stream" / "two")


@pytest.mark.multiprocess
def test_of_two_processes_one_pushes(hub: HubServer, files: Path, tmp_path: Path) -> None:
    values = settings(
        files, tmp_path / "run", save_strategy="steps", save_steps=1, push_to_hub="true", hub_model_id="org/tvp-two",
        hub_strategy="all_checkpoints", hub_always_push="true",
    )  # fmt: skip
    said = launch(2, tmp_path, values, **hub_environment(hub, tmp_path / "hf_home"))
    repo = hub.repos["model", "org/tvp-two"]
    pushed = [commit.title for commit in repo.history()][-2::-1]
    steps = [f"Training in progress, step {step}{what}" for step in (1, 2) for what in (", checkpoint", "")]
    assert pushed == steps
    assert torch.equal(TransferableVisualPrompt.from_pretrained("org/tvp-two").delta, learned(tmp_path / "run"))
    assert said.count("Shared as org/tvp-two.") == 1
    assert sum(request.route == "/api/repos/create" for request in hub.requests) == 1


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_launcher_changes_nothing(script: ModuleType, files: Path, tmp_path: Path) -> None:
    script.main(flags(distributed(files, tmp_path / "plain", size=8)))
    launch(1, tmp_path, distributed(files, tmp_path / "launched", size=8))
    assert_same_run(tmp_path / "plain", tmp_path / "launched")
