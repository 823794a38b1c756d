"""Files that anyone may have written: nothing of the size they claim is allocated, and no code of theirs is run."""

from __future__ import annotations

import json
import logging
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hub_prompts import ID, SMALL, asked, load, put_there, same
from hub_server import Fault, HubServer
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

from transferable_vp import TransferableVisualPrompt, TransferableVisualPromptConfig
from transferable_vp.configuration import _warn_of_unknown
from transferable_vp.hub_safety import MAX_CONFIG_BYTES, MAX_HEADER_BYTES, plain, relative_folder


GOOD = {**TransferableVisualPromptConfig(**SMALL).to_dict(), "model_type": "transferable_visual_prompt"}
DATA = bytes(3 * 32 * 32 * 4)
TENSOR = {"dtype": "F32", "shape": [3, 32, 32], "data_offsets": [0, len(DATA)]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prompt in a folder, for a test to spoil."""
    tiny.noise_prompt(**SMALL).save_pretrained(tmp_path / "prompt")
    return tmp_path / "prompt"


@pytest.fixture
def nothing_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no prompt may be made: what is wrong has to be seen before."""

    def made(*args: Any) -> None:
        raise AssertionError("a prompt was made of it")

    monkeypatch.setattr(TransferableVisualPrompt, "__init__", made)


@pytest.fixture(autouse=True)
def warned_of_nothing() -> None:
    _warn_of_unknown.cache_clear()


def safetensors(header: Any, data: bytes = DATA, length: int | None = None) -> bytes:
    """A file by hand: no library would write what some of these hold."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


CONFIGS = {
    "too large": (b" " * MAX_CONFIG_BYTES + b"{}", r"config\.json has more than 1,000,000 bytes"),
    "empty": (b"", r"config\.json is damaged: it holds no JSON"),
    "no JSON": (b"\x80\x04pickled", r"config\.json is damaged: it holds no JSON"),
    "a list": (b"[]", r"config\.json holds list where a JSON object is expected"),
    "deep": (b"[" * 500_000, r"config\.json is damaged: it holds no JSON"),
    "a number of many digits": (b'{"canvas_size": ' + b"9" * 5000 + b"}", r"config\.json is damaged: it holds no JSON"),
    "twice": (b'{"canvas_size": 32, "canvas_size": 9}', r"holds no JSON \(a key is there twice\)"),
    "another model": ({"model_type": "llava"}, r"of a model of type 'llava'; a prompt has 'transferable_visual_prompt'"),
    "no model": ({}, r"of a model of type None; a prompt has 'transferable_visual_prompt'"),
    "100 GB": ({**GOOD, "canvas_size": 100_000}, r"`canvas_size` is 100000; it must be between 1 and 4096"),
    "more than there is": ({**GOOD, "canvas_size": 10**4000}, r"`canvas_size` is 1000000\d*…; it must be between 1 and"),
    "less than nothing": ({**GOOD, "canvas_size": -32}, r"`canvas_size` is -32; it must be between 1 and 4096"),
    "infinite": (json.dumps({**GOOD, "canvas_size": 0}).replace("0", "1e999", 1).encode(), r"must be"),
    "text for a number": ({**GOOD, "canvas_size": "32"}, r"`canvas_size` is '32'; it must be a whole number"),
    "null for a number": ({**GOOD, "canvas_size": None}, r"`canvas_size` is None; it must be a whole number"),
    "border of a list": ({**GOOD, "border_size": [6]}, r"`border_size` is \[6\]; it must be a whole number"),
    "epsilon of text": ({**GOOD, "epsilon": "0.1"}, r"`epsilon` is '0\.1'; it must be a number"),
    "epsilon of nothing": ({**GOOD, "epsilon": float("nan")}, r"`epsilon` is nan; it must be above 0"),
    "a long option": ({**GOOD, "layout": "x" * 9000}, r"`layout` is 'x{58}…; it must be one of 'border'"),
    "an option of a list": ({**GOOD, "fit": ["crop"]}, r"`fit` is \['crop'\]; it must be one of"),
    "a module for a dtype": ({**GOOD, "dtype": "os"}, r"`dtype` is 'os'; it must be one of 'float32', 'float16'"),
    "a path for a class": ({**GOOD, "architectures": ["/etc/passwd"]}, r"`architectures` is .*; it must be a list of"),
    "version of a list": ({**GOOD, "version": [1]}, r"`version` is \[1\]; it must be a text"),
    "later format": (
        {**GOOD, "format_version": 2, "version": "9.1", "layout": "spiral"},
        r"has format 2, written by version '9\.1', and this version reads formats up to 1: upgrade with `pip install -U",
    ),
    "format of text": ({**GOOD, "format_version": "1"}, r"`format_version` is '1'; it must be a whole number from 1"),
}  # fmt: skip
WEIGHTS = {
    "empty": (b"", r"The header of .*model\.safetensors is damaged"),
    "three bytes": (b"abc", r"The header of .*model\.safetensors is damaged"),
    "a long header": (safetensors({"delta": TENSOR}, length=2**62), r"is damaged: it claims 4611686018427387904 bytes"),
    "more header than file": (safetensors(b'{"delta"', b"", length=50_000), r"damaged: it holds no JSON"),
    "no JSON": (safetensors(b"\x80\x04pickled"), r"damaged: it holds no JSON"),
    "deep": (safetensors(b"[" * (MAX_HEADER_BYTES - 1)), r"damaged: it holds no JSON"),
    "twice": (safetensors(b'{"delta": 1, "delta": 2}'), r"holds no JSON \(a key is there twice\)"),
    "a list": (safetensors([TENSOR]), r"holds list where a JSON object is expected"),
    "nothing": (safetensors({}), r"must be one tensor `delta`, and are none"),
    "another tensor": (safetensors({"weight": TENSOR}), r"must be one tensor `delta`, and are 'weight'"),
    "one more": (safetensors({"delta": TENSOR, "extra": TENSOR}), r"must be one tensor `delta`, and are 'delta', 'extra'"),
    "many more": (
        safetensors({"delta": TENSOR} | {f"x{n}": TENSOR for n in range(99)}), r"are 'delta', 'x0', 'x1', 'x10', 'x11', …"
    ),
    "no tensor": (safetensors({"delta": 1}), r"`delta` .* has dtype None and shape None"),
    "double": (safetensors({"delta": {**TENSOR, "dtype": "F64"}}, DATA * 2), r"has dtype 'F64' .* in one of F32, F16, BF16"),
    "a list for a dtype": (safetensors({"delta": {**TENSOR, "dtype": "x" * 999}}), r"has dtype 'x{58}… and"),
    "100 GB": (safetensors({"delta": {**TENSOR, "shape": [3, 91_000, 91_000]}}), r"shape \[3, 91000, 91000\]; a canvas of 32"),
    "another canvas": (safetensors({"delta": {**TENSOR, "shape": [3, 31, 32]}}), r"shape \[3, 31, 32\]; .* needs \[3, 32, 32\]"),
    "shape of text": (safetensors({"delta": {**TENSOR, "shape": "3"}}), r"shape '3'; .* needs \[3, 32, 32\]"),
    "cut short": (safetensors({"delta": TENSOR}, DATA[:-1]), r"damaged or cut short \(the file has \d+ bytes and should have"),
    "more than said": (safetensors({"delta": TENSOR}, DATA + b"!"), r"damaged or cut short \(the file has"),
    "bytes from elsewhere": (
        safetensors({"delta": {**TENSOR, "data_offsets": [8, len(DATA) + 8]}}), r"The weights of .* are damaged \("
    ),
    "not a number": (
        safetensors({"delta": TENSOR}, struct.pack("<f", float("nan")) + DATA[4:]), r"hold values that are no finite numbers"
    ),
    "infinite": (
        safetensors({"delta": TENSOR}, DATA[4:] + struct.pack("<f", float("inf"))), r"hold values that are no finite numbers"
    ),
}  # fmt: skip


def spoil(folder: Path, file: str, content: Any) -> None:
    (folder / file).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


class TestHostileFiles:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_config(self, folder: Path, name: str, nothing_made: None) -> None:
        content, message = CONFIGS[name]
        spoil(folder, "config.json", content)
        with pytest.raises((OSError, ValueError), match=message) as info:
            load(folder)
        assert len(str(info.value)) < 500

    @pytest.mark.parametrize("name", WEIGHTS)
    def test_weights(self, folder: Path, name: str, nothing_made: None) -> None:
        content, message = WEIGHTS[name]
        spoil(folder, "model.safetensors", content)
        with pytest.raises(OSError, match=message) as info:
            load(folder)
        assert len(str(info.value)) < 500

    @pytest.mark.parametrize("loader", [TransferableVisualPrompt, AutoModel])
    @pytest.mark.parametrize("name", ["100 GB", "later format", "too large"])
    def test_config_on_the_hub(self, hub: HubServer, loader: Any, name: str, nothing_made: None) -> None:
        content, message = CONFIGS[name]
        content = content if isinstance(content, bytes) else json.dumps(content)
        if name == "too large":
            # AutoModel reads and believes it; the prompt does not.
            content, message = json.dumps(GOOD) + " " * MAX_CONFIG_BYTES, r"config\.json of .* has 1,000,\d+ bytes"
        put_there(hub, {"config.json": content, "model.safetensors": safetensors({"delta": TENSOR})})
        with pytest.raises((OSError, ValueError), match=message):
            loader.from_pretrained(ID)
        assert not any("/storage/" in route or "model.safetensors" in route for route in asked(hub))
        if loader is TransferableVisualPrompt and name == "too large":
            assert asked(hub, "GET") == []

    @pytest.mark.parametrize("loader", [TransferableVisualPrompt, AutoModel])
    def test_weights_on_the_hub(self, hub: HubServer, loader: Any, nothing_made: None) -> None:
        put_there(hub, {"config.json": json.dumps(GOOD), "model.safetensors": WEIGHTS["100 GB"][0]})
        with pytest.raises(OSError, match=WEIGHTS["100 GB"][1]):
            loader.from_pretrained(ID)

    def test_weights_of_100_gb_are_not_downloaded(self, hub: HubServer, nothing_made: None) -> None:
        put_there(hub, {"config.json": json.dumps(GOOD), "model.safetensors": safetensors({"delta": TENSOR})})
        hub.faults.append(Fault("/resolve/.*safetensors", "HEAD", times=9, headers={"X-Linked-Size": str(100 << 30)}))
        with pytest.raises(
            OSError, match=rf"model\.safetensors of {ID} has 107,374,182,400 bytes; .* is not downloaded"
        ):
            load()
        assert not any("/storage/" in route for route in asked(hub))

    def test_a_file_that_is_100_gb(self, folder: Path, nothing_made: None) -> None:
        # Sparse: it takes no room on the disk, and would in memory.
        os.truncate(folder / "model.safetensors", 100 << 30)
        with pytest.raises(OSError, match=r"the file has 107374182400 bytes and should have"):
            load(folder)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_a_pipe_is_not_waited_for(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(FileNotFoundError, match=rf"no file named {name}"):
            load(folder)

    @pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "F16"), (torch.bfloat16, "BF16")])
    def test_half_precision_becomes_single(self, folder: Path, dtype: torch.dtype, name: str) -> None:
        half = load(folder).delta.detach().to(dtype)
        save_file({"delta": half}, folder / "model.safetensors", metadata={"format": "pt"})
        again = load(folder)
        assert again.delta.dtype == torch.float32 and torch.equal(again.delta, half.float())


class TestUnknownKeys:
    HOSTILE = {
        "num_labels": 100_000, "auto_map": {"AutoModel": "evil.Evil"}, "transformers_weights": "../../evil.safetensors",
        "quantization_config": {"quant_method": "bitsandbytes"}, "per_layer_config": {"0": {}}, "to_dict": 1,
        "\x1b[2J\u202espiral": 1, "__class__": "evil", "attn_implementation": "someone/evil-kernel",
    }  # fmt: skip

    @pytest.mark.parametrize("loader", [TransferableVisualPrompt, AutoModel])
    def test_are_ignored_and_named_once(self, folder: Path, loader: Any, caplog: pytest.LogCaptureFixture) -> None:
        spoil(folder, "config.json", {**GOOD, "version": "7.0", **self.HOSTILE})
        (folder / "evil.py").write_text("raise SystemExit('it was run')")
        with caplog.at_level(logging.WARNING, "transferable_vp"):
            prompt = loader.from_pretrained(folder)
        assert type(prompt) is TransferableVisualPrompt
        for key in self.HOSTILE:
            assert key == "__class__" or getattr(prompt.config, key, None) != self.HOSTILE[key]
        assert len(prompt.config.id2label) == 2
        told = [r.getMessage() for r in caplog.records if r.name == "transferable_vp.configuration"]
        assert len(told) == 1
        assert "written by version '7.0': " in told[0] and "upgrade with `pip install -U transferable-vp`" in told[0]
        assert "Code from a repository (`auto_map`) is never run." in told[0]
        for key in self.HOSTILE:
            assert repr(key) in told[0]
        assert told[0].isprintable()

    def test_of_every_configuration_are_not_named(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        load(folder)
        TransferableVisualPromptConfig.from_dict(GOOD)
        AutoConfig.from_pretrained(folder)
        assert "Ignored" not in caplog.text

    def test_files_from_before_the_format_had_a_number(self, folder: Path) -> None:
        before = {key: value for key, value in GOOD.items() if key not in ("format_version", "version")}
        spoil(folder, "config.json", before)
        assert load(folder).config.format_version == 1


class TestValues:
    @pytest.mark.parametrize(
        "config", [SMALL, {"canvas_size": 32, "layout": "overlay"}, {**SMALL, "value_range": "unbounded"}]
    )
    def test_are_put_back_into_what_the_configuration_allows(
        self, config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        prompt = tiny.noise_prompt(**config)
        with torch.no_grad():
            prompt.delta.add_(3)
        prompt.save_pretrained(tmp_path)
        again = load(tmp_path)
        assert f"The prompt at {tmp_path} holds values that its configuration does not allow" in caplog.text
        assert same(again, prompt.project_())
        caplog.clear()
        again.save_pretrained(tmp_path)
        assert same(load(tmp_path), again) and "does not allow" not in caplog.text


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class TestNothingElseIsRead:
    def test_pickles_shards_and_adapters(self, folder: Path, tmp_path: Path) -> None:
        expected = load(folder)
        for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin"):
            (folder / name).write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol=2))
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"delta": "../../evil.safetensors"}}')
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/evil", "peft_type": "LORA"}')
        assert same(load(folder), expected)
        (folder / "model.safetensors").unlink()
        with pytest.raises(
            FileNotFoundError, match=r"no file named model\.safetensors.* It has pytorch_model\.bin, but"
        ):
            load(folder)
        assert not (tmp_path / "ran").exists()

    def test_code_of_a_repository(self, hub: HubServer, tmp_path: Path) -> None:
        config = {**GOOD, "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
        code = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()"
        put_there(hub, {"config.json": json.dumps(config), "evil.py": code,
                          "model.safetensors": safetensors({"delta": TENSOR})})  # fmt: skip
        for loader in (TransferableVisualPrompt, AutoModel):
            assert not loader.from_pretrained(ID).delta.any()
            assert not loader.from_pretrained(ID, trust_remote_code=False).delta.any()
            with pytest.raises(ValueError, match=r"`trust_remote_code=True` is refused: .* code .* is never run"):
                loader.from_pretrained(ID, trust_remote_code=True)
        assert not any("evil" in route for route in asked(hub)) and not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        "arguments",
        [{"variant": "fp16"}, {"gguf_file": "a.gguf"}, {"use_safetensors": False}, {"state_dict": {"a": 1}}],
    )
    def test_other_files_are_not_to_be_had(self, folder: Path, arguments: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=rf"and nothing else: leave out {next(iter(arguments))}"):
            load(folder, **arguments)
        assert load(folder, use_safetensors=True, weights_only=True, variant=None).delta.any()

    def test_arguments_that_still_count(self, folder: Path) -> None:
        prompt, info = load(folder, output_loading_info=True, fit="contain", device_map="cpu", dtype=torch.float32)
        assert prompt.config.fit == "contain" and info["missing_keys"] == set()
        given = TransferableVisualPromptConfig(**SMALL, fit="stretch")
        assert load(folder, config=given).config.fit == "stretch"
        assert load(
            "prompt" if False else folder.parent, subfolder="prompt", config=folder / "config.json"
        ).delta.any()
        with pytest.raises(ValueError, match=r"`fit` is 'squash'"):
            load(folder, fit="squash")
        with pytest.raises(OSError, match=r"a canvas of 64 pixels needs \[3, 64, 64\]"):
            load(folder, config=TransferableVisualPromptConfig(canvas_size=64))


ESCAPES = ["..", "../other", "a/../../b", "/etc", "a//b", "./a", "a\\..\\b", "C:/a", "a\0b", "/"]


class TestFolders:
    @pytest.mark.parametrize("path", ESCAPES)
    def test_none_leads_out(self, path: str, folder: Path) -> None:
        for name in (folder, ID):
            with pytest.raises(ValueError, match=r"`subfolder` is .*; it must be a folder inside of the repository"):
                load(name, subfolder=path)

    @pytest.mark.parametrize(("path", "expected"), [("", ""), ("a", "a"), ("a/b.c/", "a/b.c"), ("..a", "..a")])
    def test_others_are_kept(self, path: str, expected: str) -> None:
        assert relative_folder(path, "subfolder") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("as it is", "as it is"),
        ("\x1b[2Jred\x07 \r\n\t two", "[2Jred two"),
        ("right\u202eleft\u200b", "right left"),
        (12, "12"),
        ("x" * 999, "x" * 299 + "…"),
    ],
)
def test_text_of_strangers_is_one_plain_line(text: Any, expected: str) -> None:
    assert plain(text) == expected
