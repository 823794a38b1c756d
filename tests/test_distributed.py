"""Several processes: DDP and sharded surrogates learn what one process learns, and a worker that dies ends the job.

Real processes over gloo, started by accelerate as a user starts them. This file is also what they run. Several devices in
one process are pretended ones (`pretended.py`), as a CPU is only one.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DeepSpeedPlugin
from pretended import FIRST, SECOND, Pretending, pretend
from tiny_training import dataset, delta, losses, make_args, make_trainer, new_prompt
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from transferable_vp import Surrogate, TransferableVisualPrompt, TransferableVisualPromptTrainer
from transferable_vp.sharding import shard_layers


ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "examples" / "accelerate_configs"
# The paper's arithmetic: neither 8-bit rounding nor Adam's signs to blow differences in the last bit up.
EXACT = {"update_rule": "paper", "learning_rate": 1.0, "fca_weight": 0.1, "block_size": 1}


class Killed(TrainerCallback):
    """Kills the second process, as the kernel does when memory runs out, in the middle of a step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.process_index == 1 and state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def learn(
    folder: Path, size: int, model: str = "llava", killed: bool = False, resume: bool = False, **more: Any
) -> Any:
    """One run of five steps over eight rows a step, whoever shares them; a checkpoint at every second."""
    trainer = make_trainer(
        folder, model=new_prompt(value_range="unbounded"), surrogates=Surrogate(*tiny.build(model), name=model),
        train_dataset=dataset(24), eval_dataset=dataset(5), per_device_train_batch_size=size, max_steps=5,
        save_strategy="steps", save_steps=2, callbacks=[Killed()] if killed else [], **EXACT, **more,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume or None)
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        # Of DeepSpeed's weights nothing is left in their place.
        sharded = sum(isinstance(p, DTensor) or not p.numel() for p in trainer.surrogates[0].model.parameters())
        (folder / "facts.json").write_text(
            json.dumps({"world": trainer.args.world_size, "sharded": sharded} | metrics)
        )
    return trainer


def launch(*runs: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Starts this file in two processes, which make one run after the other."""
    return in_processes(2, __file__, json.dumps(runs))


def in_processes(count: int, *words: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` of a script and its arguments."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "cpu.yaml"),
        "--num_processes", str(count), "--main_process_port", str(free_port()), *words,
    ]  # fmt: skip
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


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
def test_deepspeed_splits_a_surrogate_and_learns_the_same(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="splitting by ZeRO-3 needs `pip install deepspeed`")
    models = ("llava", "instructblip")
    more = {"size": 4, "shard_surrogates": True, "shard_backend": "deepspeed"}
    done = launch(*({"folder": str(tmp_path / f"{model}-zero3"), "model": model, **more} for model in models))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for model in models:
        learn(tmp_path / model, 8, model)
        expected, shared = learned(tmp_path / model), facts(tmp_path / f"{model}-zero3")
        assert (shared["world"], shared["sharded"] > 10) == (2, True) and expected.abs().max() > 0.05
        torch.testing.assert_close(learned(tmp_path / f"{model}-zero3"), expected, rtol=0, atol=1e-5)
        assert shared["eval_accuracy"] == facts(tmp_path / model)["eval_accuracy"]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("sharded", [True, False])
def test_the_script_learns_in_two_processes_what_it_learns_in_one(tmp_path: Path, sharded: bool) -> None:
    model, processor = tiny.build("llava")
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    dataset(24).to_parquet(tmp_path / "rows.parquet")
    flags = [
        str(ROOT / "examples" / "train.py"), "--model", str(tmp_path / "llava"), "--dataset", str(tmp_path / "rows.parquet"),
        "--canvas_size", "32", "--border_size", "6", "--value_range", "unbounded", "--tse_weight", "0",
        "--update_rule", "paper", "--learning_rate", "1", "--fca_weight", "0.1", "--block_size", "1", "--max_steps", "4",
        "--eval_share", "0.2", "--save_strategy", "no", "--logging_steps", "1", "--use_cpu", "--disable_tqdm", "true",
    ]  # fmt: skip
    for count in (1, 2):
        more = ["--per_device_train_batch_size", str(8 // count), "--output_dir", str(tmp_path / str(count))]
        done = in_processes(count, *flags, *more, *(["--shard_surrogates"] if sharded and count == 2 else []))
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    expected = learned(tmp_path / "1")
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(learned(tmp_path / "2"), expected, rtol=0, atol=1e-5)
    results = [json.loads((tmp_path / name / "eval_results.json").read_text(encoding="utf-8")) for name in "12"]
    assert results[0]["eval_accuracy"] == results[1]["eval_accuracy"]


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


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_launchers_learn_what_one_process_learns(tmp_path: Path) -> None:
    """As on two machines: each has a launcher of its own, and they meet at an address."""
    run = {"folder": str(tmp_path / "two"), "size": 4}
    address = [
        "--nnodes",
        "2",
        "--nproc_per_node",
        "1",
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        str(free_port()),
    ]
    launchers = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *address, "--node_rank", str(rank), __file__, json.dumps([run])],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [launcher.communicate(timeout=600)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], said[0][-3000:] + said[1][-3000:]
    learn(tmp_path / "one", 8)
    expected = learned(tmp_path / "one")
    assert facts(tmp_path / "two")["world"] == 2 and expected.abs().max() > 0.05
    torch.testing.assert_close(learned(tmp_path / "two"), expected, rtol=0, atol=1e-5)


def scattered(places: Sequence[torch.device | None]) -> list[Surrogate]:
    """A LLaVA and an Idefics, each on a device of its own; `None` is the CPU, where the prompt is."""
    found = []
    for family, place in zip(("llava", "idefics3"), places, strict=True):
        model, processor = tiny.build(family)
        model = copy.deepcopy(model)
        found.append(Surrogate(model if place is None else pretend(model, place), processor, name=family))
    return found


def test_surrogates_on_devices_of_their_own_learn_what_they_learn_on_one(tmp_path: Path) -> None:
    """Of two steps over the same rows: the second takes the clean features that the first has kept.

    Not evaluated there: an index that is a list becomes a tensor of the real meta device, behind the back of the mode.
    """
    arguments: dict[str, Any] = {"train_dataset": dataset(4), "max_steps": 2, "clean_features_cache": 1.0, **EXACT}
    prompts = [new_prompt(value_range="unbounded") for _ in range(2)]
    together = make_trainer(tmp_path, model=prompts[0], surrogates=scattered([None, None]), **arguments)
    together.train()
    with Pretending() as devices:
        apart = make_trainer(tmp_path, model=prompts[1], surrogates=scattered([FIRST, SECOND]), **arguments)
        apart.train()
        assert [surrogate.device for surrogate in apart.surrogates] == [FIRST, SECOND]
        assert all(devices.computed[place] > 100 for place in (FIRST, SECOND))
    assert delta(apart).device.type == "cpu" and delta(apart).abs().max() > 0.02
    torch.testing.assert_close(delta(apart), delta(together), rtol=0, atol=1e-5)
    found, expected = ([entry["loss"] for entry in losses(trainer)] for trainer in (apart, together))
    assert found == pytest.approx(expected, abs=1e-4)


def test_pretended_devices_refuse_each_other() -> None:
    """Or the test above could not fail."""
    with Pretending():
        first, second = torch.ones(2).to(FIRST), torch.ones(2, device=SECOND)
        assert (first + 1).device == FIRST and (first.to(SECOND) + second).tolist() == [2, 2]
        for other in (second, torch.ones(2)):
            with pytest.raises(RuntimeError, match="Expected all tensors of add on one device"):
                first + other


def test_sharding_needs_several_processes(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Got one process; splitting a model's layers needs several"):
        learn(tmp_path, 8, shard_surrogates=True)


@pytest.mark.parametrize("kind", ["DeepSpeed", "FSDP"])
def test_accelerates_own_splitting_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = make_args(tmp_path)
    if kind == "FSDP":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    else:
        # What the arguments make of `--deepspeed FILE` and of a launcher's DeepSpeed type, where DeepSpeed is installed.
        args.deepspeed_plugin = DeepSpeedPlugin(zero_stage=3)
    with pytest.raises(
        ValueError, match=f"^Got a configuration of {kind} for the model that is trained.*shard_surrogates"
    ):
        TransferableVisualPromptTrainer(model=new_prompt(), args=args, surrogates=[])


def test_a_backend_has_a_name_and_no_checkpointing_beside_deepspeed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`shard_backend` is 'zero'; it must be 'fsdp2' or 'deepspeed'"):
        make_args(tmp_path, shard_backend="zero")
    with pytest.raises(ValueError, match="The backend is 'zero'; it must be 'fsdp2' or 'deepspeed'"):
        shard_layers(torch.nn.Linear(2, 2), "cpu", "zero")
    with pytest.raises(ValueError, match="Got `surrogate_gradient_checkpointing` and `shard_backend='deepspeed'`"):
        make_args(tmp_path, shard_backend="deepspeed", surrogate_gradient_checkpointing=True)
    model, processor = tiny.build("llava")
    recomputed = Surrogate(copy.deepcopy(model), processor, name="llava", gradient_checkpointing=True)
    with pytest.raises(ValueError, match=r"The layers of llava are recomputed.*not been tried with DeepSpeed"):
        recomputed.shard("cpu", "deepspeed")


def test_splitting_by_a_deepspeed_that_is_not_there_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ImportError, match="no DeepSpeed: `pip install deepspeed`, or split with the backend 'fsdp2'"):
        shard_layers(torch.nn.Linear(2, 2), "cpu", "deepspeed")


def test_sharding_and_a_cache_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Got `clean_features_cache` and `shard_surrogates`"):
        make_trainer(tmp_path, shard_surrogates=True, clean_features_cache=1.0)


PROCESSES = {"single_gpu": (1, 1), "ddp": (4, 1), "ddp_multi_node": (16, 2), "fsdp2": (4, 1),
             "deepspeed_zero3": (4, 1), "cpu": (2, 1)}  # fmt: skip


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
    if "deepspeed" in sys.argv[1]:
        # Or it compiles an operator for CPUs first, for minutes; gloo does without.
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
    for run in json.loads(sys.argv[1]):
        learn(Path(run.pop("folder")), **run)
