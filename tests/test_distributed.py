"""Several processes: DDP and sharded surrogates learn what one process learns, and a worker that dies ends the job.

Real processes over gloo, started by accelerate as a user starts them. This file is also what they run.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from tiny_training import dataset, make_trainer
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from transferable_vp import Surrogate, TransferableVisualPrompt


ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "examples" / "accelerate_configs"
# The paper's arithmetic: neither 8-bit rounding nor Adam's signs to blow differences in the last bit up.
EXACT = {"update_rule": "paper", "learning_rate": 1.0, "fca_weight": 0.1}


class Killed(TrainerCallback):
    """Kills the second process, as the kernel does when memory runs out, in the middle of a step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.process_index == 1 and state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def learn(
    folder: Path, size: int, model: str = "llava", killed: bool = False, resume: bool = False, **more: Any
) -> Any:
    """One run of five steps over eight rows a step, whoever shares them; a checkpoint at every second."""
    import tiny
    from tiny_training import new_prompt

    trainer = make_trainer(
        folder, model=new_prompt(value_range="unbounded"), surrogates=Surrogate(*tiny.build(model), name=model),
        train_dataset=dataset(24), eval_dataset=dataset(5), per_device_train_batch_size=size, max_steps=5,
        save_strategy="steps", save_steps=2, callbacks=[Killed()] if killed else [], **EXACT, **more,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume or None)
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        sharded = sum(isinstance(p, DTensor) for p in trainer.surrogates[0].model.parameters())
        (folder / "facts.json").write_text(
            json.dumps({"world": trainer.args.world_size, "sharded": sharded} | metrics)
        )
    return trainer


def launch(*runs: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Starts this file in two processes, which make one run after the other."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "cpu.yaml"),
        "--main_process_port", str(port), __file__, json.dumps(runs),
    ]  # fmt: skip
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def learned(folder: Path) -> torch.Tensor:
    return TransferableVisualPrompt.from_pretrained(folder).delta


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "facts.json").read_text())


@pytest.mark.multiprocess
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    models = ("llava", "instructblip")
    runs: list[dict[str, Any]] = [
        {"folder": str(tmp_path / f"{model}-{kind}"), "size": 4, "model": model, "shard_surrogates": kind == "sharded"}
        for model in models
        for kind in ("ddp", "sharded")
    ]
    done = launch(*runs)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for model in models:
        learn(tmp_path / model, 8, model)
        alone, expected = facts(tmp_path / model), learned(tmp_path / model)
        assert alone["world"] == 1 and expected.abs().max() > 0.05
        for kind in ("ddp", "sharded"):
            shared = facts(tmp_path / f"{model}-{kind}")
            assert shared["world"] == 2
            assert (shared["sharded"] > 0) == (kind == "sharded")
            torch.testing.assert_close(learned(tmp_path / f"{model}-{kind}"), expected, rtol=0, atol=1e-5)
            # Of five rows, so that the processes' shares are unequal.
            assert shared["eval_accuracy"] == alone["eval_accuracy"]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_killed_worker_ends_the_job_and_nothing_is_lost(tmp_path: Path) -> None:
    run = {"folder": str(tmp_path / "run"), "size": 4}
    broken = launch(run | {"killed": True})
    assert broken.returncode != 0
    assert "Signal 9 (SIGKILL) received by PID" in broken.stderr
    assert [folder.name for folder in (tmp_path / "run").iterdir() if folder.is_dir()] == ["checkpoint-2"]
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resumed = launch(run | {"resume": True}, {"folder": str(tmp_path / "unbroken"), "size": 4})
    assert resumed.returncode == 0, resumed.stdout[-2000:] + resumed.stderr[-4000:]
    assert torch.equal(learned(tmp_path / "run"), learned(tmp_path / "unbroken"))
    steps = [
        [entry["step"] for entry in json.loads((tmp_path / name / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]]
        for name in ("run", "unbroken")
    ]  # fmt: skip
    assert steps[0] == steps[1]


def test_sharding_needs_several_processes(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Got one process; splitting a model's layers needs several"):
        learn(tmp_path, 8, shard_surrogates=True)


def test_sharding_and_a_cache_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Got `clean_features_cache` and `shard_surrogates`"):
        make_trainer(tmp_path, shard_surrogates=True, clean_features_cache=1.0)


PROCESSES = {"single_gpu": (1, 1), "ddp": (4, 1), "ddp_multi_node": (16, 2), "fsdp2": (4, 1), "cpu": (2, 1)}


def test_every_configuration_is_known() -> None:
    assert {file.stem for file in CONFIGS.iterdir()} == set(PROCESSES)


@pytest.mark.parametrize("name", PROCESSES)
def test_accelerate_reads_the_configuration(name: str) -> None:
    # It raises for keys that it does not know.
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert (config.num_processes, config.num_machines) == PROCESSES[name]
    assert config.mixed_precision == "no"
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    # Of accelerate's own sharding, which would split the prompt and not the surrogates.
    assert not {key for key in written if key.startswith(("fsdp", "deepspeed"))}


if __name__ == "__main__":
    for run in json.loads(sys.argv[1]):
        learn(Path(run.pop("folder")), **run)
