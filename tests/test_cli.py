from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny import noise_prompt

from transferable_vp.cli import main


@pytest.fixture
def prompt_folder(tmp_path):
    folder = tmp_path / "prompt"
    noise_prompt(canvas_size=32, border_size=4).save_pretrained(folder)
    return folder


def picture(path, color=(200, 30, 30), size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


@pytest.mark.parametrize("command", ["train", "evaluate", "apply", "demo", "env", "push", "card", "search"])
def test_help_of_every_command(command, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"transferable-vp {command}" in shown
    flags = {
        "train": "--tse_weight",
        "evaluate": "--candidates",
        "apply": "--overwrite",
        "demo": "--seeds",
        "env": "--json",
        "push": "--create_pr",
        "card": "--report",
        "search": "--base-model",
    }
    assert flags[command] in shown


def test_help_names_every_command(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(
        f"\n    {command}" in shown
        for command in ("train", "evaluate", "apply", "demo", "env", "push", "card", "search")
    )


def test_help_needs_no_import_of_the_trainer() -> None:
    code = "import sys; from transferable_vp.cli import make_parser; make_parser(); print('transformers.trainer' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class TestApply:
    def test_one_image(self, tmp_path, prompt_folder, capsys) -> None:
        from transferable_vp import TransferableVisualPrompt

        source = picture(tmp_path / "in" / "a.jpg")
        assert main(["apply", str(source), "--prompt", str(prompt_folder), "--output_dir", str(tmp_path / "out")]) == 0
        written = Image.open(tmp_path / "out" / "a.png")
        expected = TransferableVisualPrompt.from_pretrained(prompt_folder).apply(Image.open(source))
        assert np.array_equal(np.asarray(written), np.asarray(expected))
        assert "1 prompted images of 32 x 32 pixels" in capsys.readouterr().out

    def test_a_folder_keeps_its_structure(self, tmp_path, prompt_folder) -> None:
        picture(tmp_path / "in" / "cats" / "a.png")
        picture(tmp_path / "in" / "dogs" / "a.webp")
        (tmp_path / "in" / "notes.txt").write_text("no image")
        assert (
            main(["apply", str(tmp_path / "in"), "--prompt", str(prompt_folder), "--output_dir", str(tmp_path / "o")])
            == 0
        )
        files = sorted(str(f.relative_to(tmp_path / "o")) for f in (tmp_path / "o").rglob("*.*"))
        assert files == ["cats/a.png", "dogs/a.png"]

    def test_never_overwrites_its_input(self, tmp_path, prompt_folder, capsys) -> None:
        source = picture(tmp_path / "in" / "a.png")
        before = source.read_bytes()
        arguments = ["apply", str(source), "--prompt", str(prompt_folder), "--output_dir", str(tmp_path / "in")]
        assert main(arguments) == 1
        assert main([*arguments, "--overwrite"]) == 1
        assert source.read_bytes() == before
        assert "exists already and is left as it is: give another --output_dir" in capsys.readouterr().err

    def test_an_earlier_result_is_replaced_only_when_asked(self, tmp_path, prompt_folder, capsys) -> None:
        source = picture(tmp_path / "in" / "a.jpg")
        arguments = ["apply", str(source), "--prompt", str(prompt_folder), "--output_dir", str(tmp_path / "out")]
        assert main(arguments) == 0
        assert main(arguments) == 1
        assert "pass --overwrite" in capsys.readouterr().err
        assert main([*arguments, "--overwrite"]) == 0

    def test_results_within_the_folder_are_not_prompted_again(self, tmp_path, prompt_folder) -> None:
        picture(tmp_path / "in" / "a.png")
        arguments = [
            "apply",
            str(tmp_path / "in"),
            "--prompt",
            str(prompt_folder),
            "--output_dir",
            str(tmp_path / "in/o"),
        ]
        for more in ([], ["--overwrite"]):
            assert main([*arguments, *more]) == 0
            assert sorted((tmp_path / "in").rglob("*.png")) == [
                tmp_path / "in" / "a.png",
                tmp_path / "in" / "o" / "a.png",
            ]

    def test_two_inputs_of_one_name_are_refused_before_anything_is_written(
        self, tmp_path, prompt_folder, capsys
    ) -> None:
        a, b = picture(tmp_path / "x" / "a.jpg"), picture(tmp_path / "y" / "a.png")
        out = tmp_path / "out"
        assert main(["apply", str(a), str(b), "--prompt", str(prompt_folder), "--output_dir", str(out)]) == 1
        assert "would both become" in capsys.readouterr().err
        assert not out.exists()

    def test_an_image_that_cannot_be_read_is_named_or_skipped(self, tmp_path, prompt_folder, capsys) -> None:
        picture(tmp_path / "in" / "good.png")
        (tmp_path / "in" / "bad.png").write_bytes(b"not a picture")
        arguments = ["apply", str(tmp_path / "in"), "--prompt", str(prompt_folder), "--output_dir"]
        assert main([*arguments, str(tmp_path / "o1")]) == 1
        assert "bad.png" in capsys.readouterr().err
        assert main([*arguments, str(tmp_path / "o2"), "--skip_bad_images"]) == 0
        assert "1 prompted images" in (shown := capsys.readouterr().out)
        assert "skipped" in shown
        assert "bad.png" in shown

    def test_missing_input_and_empty_folder(self, tmp_path, prompt_folder, capsys) -> None:
        tail = ["--prompt", str(prompt_folder), "--output_dir", str(tmp_path / "o")]
        assert main(["apply", str(tmp_path / "nowhere"), *tail]) == 1
        assert "There is no image or folder" in capsys.readouterr().err
        (tmp_path / "empty").mkdir()
        assert main(["apply", str(tmp_path / "empty"), *tail]) == 1
        assert "No images in" in capsys.readouterr().err

    def test_missing_prompt(self, tmp_path, capsys) -> None:
        source = picture(tmp_path / "a.png")
        assert (
            main(["apply", str(source), "--prompt", str(tmp_path / "none"), "--output_dir", str(tmp_path / "o")]) == 1
        )
        assert capsys.readouterr().err.startswith("error: ")


def test_evaluate_writes_report_and_chart(tmp_path, prompt_folder, pair, capsys) -> None:
    model, processor = pair("llava")
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    for i in range(3):
        picture(tmp_path / "data" / "red" / f"{i}.png", (220, 20, 20))
        picture(tmp_path / "data" / "blue" / f"{i}.png", (20, 20, 220))
    arguments = ["evaluate", "--prompt", str(prompt_folder), "--model", str(tmp_path / "llava"), "--dataset",
                 str(tmp_path / "data"), "--split", "train", "--output_dir", str(tmp_path / "out")]  # fmt: skip
    assert main(arguments) == 0
    report = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert report["targets"][0]["n"] == 6
    assert report["targets"][0]["model"] == "llava"
    assert not report["targets"][0]["is_source"]
    assert Image.open(tmp_path / "out" / "transfer_chart.png").width > 100
    assert "llava" in capsys.readouterr().out


def test_evaluate_needs_candidates(tmp_path, prompt_folder, capsys) -> None:
    data = tmp_path / "qa.jsonl"
    data.write_text('{"image": "a.png", "question": "what?", "answer": "that"}\n')
    assert main(["evaluate", "--prompt", str(prompt_folder), "--model", "x", "--dataset", str(data)]) == 1
    assert "give `--candidates`" in capsys.readouterr().err


def test_env_prints_versions(capsys) -> None:
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    import torch

    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert main(["env"]) == 0
    assert f"- python: {found['python']}" in capsys.readouterr().out


def test_errors_are_one_sentence_and_a_traceback_on_request(tmp_path, prompt_folder, capsys, monkeypatch) -> None:
    arguments = [
        "apply",
        str(tmp_path / "nowhere"),
        "--prompt",
        str(prompt_folder),
        "--output_dir",
        str(tmp_path / "o"),
    ]
    assert main(arguments) == 1
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("TRANSFERABLE_VP_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main(arguments)
