"""The training arguments: what they default to, refuse, and keep through a command line and a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import HubStrategy, SchedulerType

from transferable_vp import TransferableVisualPromptTrainingArguments as Arguments
from transferable_vp.training_args import RECIPES


def make(folder: Path, **more: object) -> Arguments:
    return Arguments(str(folder), use_cpu=True, **more)


def test_are_training_arguments(tmp_path: Path) -> None:
    assert issubclass(Arguments, TrainingArguments)
    # What is not ours is transformers', under its own name and with its own default.
    assert make(tmp_path).per_device_train_batch_size == TrainingArguments(str(tmp_path)).per_device_train_batch_size
    assert make(tmp_path, num_train_epochs=7).num_train_epochs == 7


def test_defaults(tmp_path: Path) -> None:
    args = make(tmp_path)
    assert (args.update_rule, args.learning_rate) == ("adam", 0.1)
    assert (args.task_weight, args.fca_weight, args.tse_weight) == (1.0, 0.0, 0.0)
    assert args.block_size is None  # until the trainer sets it, see test_trainer.py
    assert args.lr_scheduler_type == SchedulerType.COSINE
    assert (args.max_grad_norm, args.weight_decay) == (0.0, 0.0)
    assert args.report_to == []
    assert args.remove_unused_columns is False and args.dataloader_pin_memory is False
    assert args.skip_bad_images is False and args.surrogate_gradient_checkpointing is False
    assert args.accelerator_config.dispatch_batches is False
    assert args.hub_strategy == "end"


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ({}, 0.1),
        ({"update_rule": "adam"}, 0.1),
        ({"update_rule": "paper"}, 10.0),
        ({"update_rule": "paper", "learning_rate": 0.5}, 0.5),
        ({"learning_rate": 0.0}, 0.0),
    ],
)
def test_the_learning_rate_goes_with_the_rule(given: dict[str, object], rate: float, tmp_path: Path) -> None:
    assert make(tmp_path, **given).learning_rate == rate


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_fills_what_was_not_given(recipe: str, tmp_path: Path) -> None:
    args = make(tmp_path, recipe=recipe)
    assert {name: getattr(args, name) for name in RECIPES[recipe]} == RECIPES[recipe]
    mine = {"fca_weight": 0.0, "block_size": 2, "diversity_noise": 0.3, "learning_rate": 0.7}
    given = make(tmp_path, recipe=recipe, **mine)
    assert {name: getattr(given, name) for name in RECIPES[recipe]} == RECIPES[recipe] | mine


def test_the_default_recipe(tmp_path: Path) -> None:
    assert make(tmp_path).recipe == "transfer"
    assert set(RECIPES["paper"]) == set(RECIPES["transfer"])
    # As in the released code.
    paper = make(tmp_path, recipe="paper")
    assert (paper.update_rule, paper.fca_weight, paper.tse_weight) == ("paper", 0.005, 0.001)
    assert (paper.block_size, paper.diversity_shift, paper.diversity_noise) == (1, 0, 0.0)


def test_a_recipes_rate_belongs_to_its_rule(tmp_path: Path) -> None:
    # The trainer, which knows the canvas, sets the paper's.
    assert make(tmp_path, recipe="paper").learning_rate is None
    assert make(tmp_path, recipe="paper", update_rule="adam").learning_rate == 0.1
    again = Arguments(**make(tmp_path, recipe="paper").to_dict())
    assert again.learning_rate is None and again.recipe == "paper"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recipe": "best"}, "`recipe` is 'best'; it must be 'transfer' or 'paper'"),
        ({"block_size": 0}, "`block_size` is 0; it must be 1 .every pixel by itself. or more"),
        ({"update_rule": "sgd"}, "`update_rule` is 'sgd'; it must be 'adam' or 'paper'"),
        ({"remove_unused_columns": True}, "`remove_unused_columns=True` would drop the images; leave it false"),
        ({"task_weight": -1.0}, "`task_weight` is -1.0; a weight cannot be negative, 0 turns it off"),
        ({"fca_weight": -0.1}, "`fca_weight` is -0.1; a weight cannot be negative"),
        ({"tse_weight": -0.1}, "`tse_weight` is -0.1; a weight cannot be negative"),
    ],
)
def test_refused(given: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **given)


def test_the_best_is_the_most_accurate(tmp_path: Path) -> None:
    both = {"eval_strategy": "steps", "save_strategy": "steps"}
    args = make(tmp_path, load_best_model_at_end=True, **both)
    assert (args.metric_for_best_model, args.greater_is_better) == ("accuracy", True)
    chosen = make(tmp_path, load_best_model_at_end=True, metric_for_best_model="idefics3_loss", **both)
    assert (chosen.metric_for_best_model, chosen.greater_is_better) == ("idefics3_loss", False)
    assert make(tmp_path).metric_for_best_model is None


def test_a_given_accelerator_config_is_kept(tmp_path: Path) -> None:
    args = make(tmp_path, accelerator_config={"dispatch_batches": False, "even_batches": False})
    assert args.accelerator_config.even_batches is False


def test_from_the_command_line(tmp_path: Path) -> None:
    words = ["--output_dir", str(tmp_path), "--update_rule", "paper", "--tse_weight", "0", "--fca_weight", "0.25",
             "--skip_bad_images", "--surrogate_gradient_checkpointing", "true", "--use_cpu", "--seed", "3"]  # fmt: skip
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(words)
    assert (args.update_rule, args.learning_rate) == ("paper", 10.0)
    assert (args.task_weight, args.tse_weight, args.fca_weight) == (1.0, 0.0, 0.25)
    assert args.skip_bad_images is True and args.surrogate_gradient_checkpointing is True and args.seed == 3


@pytest.mark.parametrize(
    ("flag", "wrong", "right"), [("--update_rule", "sgd", "adam"), ("--hub_strategy", "never", "all_checkpoints")]
)
def test_the_command_line_names_the_choices(
    flag: str, wrong: str, right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        HfArgumentParser(Arguments).parse_args_into_dataclasses([flag, wrong])
    message = capsys.readouterr().err
    assert flag in message and f"invalid choice: '{wrong}'" in message and right in message


def test_the_help_says_that_no_strategy_pushes_pickles(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        HfArgumentParser(Arguments).parse_args_into_dataclasses(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "none pushes the optimizer's state or other pickles: resume from the checkpoints in --output_dir" in shown


@pytest.mark.parametrize("strategy", list(HubStrategy))
def test_every_strategy_by_its_name(strategy: HubStrategy, tmp_path: Path) -> None:
    words = ["--output_dir", str(tmp_path), "--use_cpu", "--hub_strategy", strategy.value]
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(words)
    assert args.hub_strategy is strategy is make(tmp_path, hub_strategy=strategy).hub_strategy


def test_through_a_file(tmp_path: Path) -> None:
    args = make(tmp_path, update_rule="paper", fca_weight=0.25, skip_bad_images=True, save_strategy="no")
    written = json.loads(args.to_json_string())
    assert written["learning_rate"] == 10.0 and written["fca_weight"] == 0.25 and written["update_rule"] == "paper"
    file = tmp_path / "args.json"
    file.write_text(args.to_json_string(), encoding="utf-8")
    (again,) = HfArgumentParser(Arguments).parse_json_file(file, allow_extra_keys=True)
    assert again.to_dict() == args.to_dict()


def test_a_dict_makes_the_same_arguments(tmp_path: Path) -> None:
    args = make(tmp_path, task_weight=0.5, lr_scheduler_type="linear")
    again = Arguments(**args.to_dict())
    assert again.to_dict() == args.to_dict()
    assert again.task_weight == 0.5 and again.lr_scheduler_type == SchedulerType.LINEAR


def test_trackers_are_given_plain_values(tmp_path: Path) -> None:
    sanitized = make(tmp_path).to_sanitized_dict()
    assert sanitized["learning_rate"] == 0.1
    assert all(isinstance(value, (bool, int, float, str)) for value in sanitized.values())
