"""What is said of the models: the measured table, its page, and the probe of any one model."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
import transformers
from transformers import PreTrainedModel, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as MAPPING

from transferable_vp import support
from transferable_vp.bundled import bundled
from transferable_vp.cli import main
from transferable_vp.support import STATUSES, SUPPORTED_MODELS, Finding, probe, supported_models
from transferable_vp.surrogate import FAMILIES, Surrogate


Pair = tuple[PreTrainedModel, ProcessorMixin]
ROOT = Path(__file__).resolve().parent.parent
PROMISES = ["attach", "pixels", "gradient", "image features", "ranking"]


@pytest.fixture
def document() -> dict[str, Any]:
    """What the conformance suite wrote."""
    return json.loads(SUPPORTED_MODELS.read_text(encoding="utf-8"))


@pytest.fixture
def script() -> ModuleType:
    """The script that writes the page, by its path: `docs` is no package."""
    spec = importlib.util.spec_from_file_location("make_supported_models", ROOT / "docs/make_supported_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def chameleon(monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A model that no gradient passes."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "conformance"))
    return tiny.build("chameleon", importlib.import_module("ocr_models").FAMILIES)


def install(monkeypatch: pytest.MonkeyPatch, **types: str) -> None:
    """Makes these the types that transformers knows."""
    monkeypatch.setattr(support, "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", types)


def save(pair: Pair, folder: Path) -> str:
    for part in pair:
        part.save_pretrained(folder)
    return str(folder)


class TestTable:
    def test_it_has_exactly_the_types_that_are_installed(self) -> None:
        models = supported_models()["models"]
        assert [row["model_type"] for row in models] == sorted(MAPPING)
        assert {row["model_type"]: row["model_class"] for row in models} == MAPPING

    def test_a_row_is_what_the_suite_found(self, document: dict[str, Any]) -> None:
        found = supported_models()
        assert found["transformers"] == document["transformers"]
        known = {row["model_type"]: row for row in document["models"]}
        for row in found["models"]:
            if row["model_type"] in known:
                assert row == {**known[row["model_type"]], "model_class": MAPPING[row["model_type"]]}

    def test_the_papers_models_are_rows_of_their_own(self, document: dict[str, Any]) -> None:
        found = supported_models()
        assert found["paper_models"] == document["paper_models"]
        rows = {row["model_type"]: row for row in found["models"] + found["paper_models"]}
        # All six.
        paper = [rows[name] for name in ("minigpt4", "instructblip", "blip-2", "vpgtrans", "bliva", "visualglm")]
        assert {row["status"] for row in paper} == {"supported"}
        assert {outcome for row in paper for outcome in row["checks"].values()} == {"passed"}

    def test_a_type_that_the_suite_has_not_seen(
        self, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        install(monkeypatch, **MAPPING, unheard_of="UnheardOfForConditionalGeneration")
        monkeypatch.setattr(support.transformers, "__version__", "77.7.7")
        models = {row["model_type"]: row for row in supported_models()["models"]}
        assert len(models) == len(MAPPING) + 1
        row = models["unheard_of"]
        assert row["status"] == "untested"
        assert row["model_class"] == "UnheardOfForConditionalGeneration"
        assert row["checks"] == {}
        # Both versions: that of the suite, and the one at hand.
        assert f"was run with transformers {document['transformers']}; this is 77.7.7" in row["reason"]
        assert "transferable-vp support MODEL" in row["reason"]
        # No other row changes by it.
        others = [key for key, row in models.items() if row["status"] == "untested"]
        assert set(others) == {"unheard_of"} | (set(MAPPING) - {row["model_type"] for row in document["models"]})

    def test_a_type_that_transformers_no_longer_has(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "llava" in {row["model_type"] for row in supported_models()["models"]}
        install(monkeypatch, qwen2_vl="Qwen2VLForConditionalGeneration", chameleon="Renamed")
        rows = supported_models()["models"]
        assert [(row["model_type"], row["model_class"], row["status"]) for row in rows] == [
            ("chameleon", "Renamed", "unsupported"),
            ("qwen2_vl", "Qwen2VLForConditionalGeneration", "supported"),
        ]

    def test_most_are_supported(self, document: dict[str, Any]) -> None:
        if transformers.__version__ != document["transformers"]:
            pytest.skip(f"the suite was run with transformers {document['transformers']}")
        counts = Counter(row["status"] for row in supported_models()["models"])
        assert counts["supported"] >= 88
        assert counts["untested"] == 0

    def test_every_row_says_why(self, document: dict[str, Any]) -> None:
        types = [row["model_type"] for row in document["models"]]
        assert types == sorted(set(types))
        columns = list(next(row["checks"] for row in document["models"] if row["status"] == "supported"))
        assert len(columns) == 10
        for row in document["models"]:
            assert row["status"] in STATUSES
            if row["status"] == "supported":
                # In any order: workers report when they are done.
                assert sorted(row["checks"]) == sorted(columns), row["model_type"]
                assert set(row["checks"].values()) <= {"passed", "not applicable"}
                # Nothing else may be left out.
                assert {name for name, outcome in row["checks"].items() if outcome != "passed"} <= {"placeholders"}
            else:
                assert len(row["reason"]) > 20, row["model_type"]

    def test_the_page_is_made_of_it(self, script: ModuleType, document: dict[str, Any]) -> None:
        assert script.FOUND == SUPPORTED_MODELS
        page = script.page(document)
        assert (ROOT / "docs/supported_models.md").read_text(encoding="utf-8") == page
        # And it is a page of all of it.
        counts = Counter(row["status"] for row in document["models"])
        assert f"{counts['supported']} of the {len(document['models'])} types" in page
        listed, unsupported = page.split("## Not supported")
        for row in document["models"]:
            place = listed if row["status"] == "supported" else unsupported
            assert place.count(f"\n| `{row['model_type']}` |") == 1
            assert page.count(f"\n| `{row['model_type']}` |") == 1
            assert row["reason"] in place

    def test_the_page_does_not_hide_a_failure(self, script: ModuleType, document: dict[str, Any]) -> None:
        row = {"model_type": "mine", "status": "supported", "reason": "so", "checks": {"a": "passed", "b": "failed"}}
        lost = {"model_type": "lost", "status": "untested", "reason": "nobody looked", "checks": {}}
        page = script.page({**document, "models": [row, lost]})
        assert "\n| `mine` | yes | **no** | so |" in page
        assert "\n| `lost` | nobody looked |" in page
        assert "1 of the 2 types" in page


class TestFamilies:
    @pytest.mark.parametrize("model_type", FAMILIES)
    def test_a_row_has_a_reason_and_is_a_type(self, model_type: str, document: dict[str, Any]) -> None:
        assert model_type in {*MAPPING, *(row["model_type"] for row in document["paper_models"])}
        row = FAMILIES[model_type]
        assert len(row.reason.split()) >= 5
        # It does something, besides giving reasons.
        assert row._replace(reason="") != type(row)("")

    def test_a_row_is_of_a_supported_type(self, document: dict[str, Any]) -> None:
        statuses = {row["model_type"]: row["status"] for row in document["models"] + document["paper_models"]}
        assert {statuses[model_type] for model_type in FAMILIES} == {"supported"}


class TestProbe:
    @pytest.mark.parametrize("family", ["llava", "qwen2_vl", "instructblip", "paligemma"])
    def test_a_model_that_works(self, family: str, pair: Callable[[str], Pair]) -> None:
        surrogate = Surrogate(*pair(family))
        findings = probe(surrogate)
        assert [finding.what for finding in findings] == PROMISES
        assert all(finding.works for finding in findings), findings
        width = surrogate.features(torch.rand(1, 3, 40, 40), ["What is it?"]).shape[1]
        assert findings[3].detail.endswith(f"features of width {width} for two pictures")

    def test_a_model_that_passes_no_gradient(self, chameleon: Pair) -> None:
        findings = {finding.what: finding for finding in probe(Surrogate(*chameleon))}
        assert not findings["gradient"].works
        assert findings["gradient"].detail.startswith("RuntimeError: No gradient passes from the answers")
        assert findings["attach"].works
        assert findings["ranking"].works

    def test_a_gradient_that_is_lost_on_a_side(
        self, pair: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        surrogate = Surrogate(*pair("llava"))
        plain = surrogate.forward

        def right_half_only(canvas: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            half = canvas.shape[-1] // 2
            return plain(torch.cat([canvas[..., :half].detach(), canvas[..., half:]], dim=-1), *args, **kwargs)

        monkeypatch.setattr(surrogate, "forward", right_half_only)
        (finding,) = [f for f in probe(surrogate) if not f.works]
        assert finding == Finding("gradient", False, "ValueError: no gradient on these sides of the border: left")

    def test_a_gradient_that_is_not_finite(self, pair: Callable[[str], Pair]) -> None:
        model, processor = pair("llava")
        projector = model.model.multi_modal_projector
        projector.register_full_backward_hook(lambda _, given, __: tuple(g * float("nan") for g in given))
        (finding,) = [f for f in probe(Surrogate(model, processor)) if not f.works]
        assert finding == Finding("gradient", False, "ValueError: the gradient is not finite")

    def test_pixels_that_differ_from_deployment(
        self, pair: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        surrogate = Surrogate(*pair("llava"))
        plain = surrogate.encode

        def brighter(images: Any, questions: Any, canvas: Any = None, unbounded: bool = False) -> dict[str, Any]:
            inputs = plain(images, questions, canvas, unbounded)
            return inputs if canvas is None else {**inputs, "pixel_values": inputs["pixel_values"] + 1e-6}

        monkeypatch.setattr(surrogate, "encode", brighter)
        (finding,) = [f for f in probe(surrogate) if not f.works]
        assert finding == Finding("pixels", False, "ValueError: `pixel_values` differs between the two")

    def test_a_likelihood_that_is_not_finite(self, pair: Callable[[str], Pair]) -> None:
        model, processor = pair("llava")
        with torch.no_grad():
            model.lm_head.weight.fill_(float("nan"))
        findings = {finding.what: finding for finding in probe(Surrogate(model, processor))}
        assert findings["ranking"] == Finding("ranking", False, "ValueError: a candidate's log-likelihood is not finite")  # fmt: skip
        assert not findings["gradient"].works
        assert findings["image features"].works


class TestCommand:
    def test_the_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["support"]) == 0
        types, paper, total = capsys.readouterr().out.rstrip().split("\n\n")
        models, rows = supported_models()["models"], types.splitlines()
        assert [line.split()[:2] for line in rows] == [[row["model_type"], row["status"]] for row in models]
        # Statuses and reasons stand below each other.
        width = max(len(row["model_type"]) for row in models) + 2
        assert [line[width:].split()[0] for line in rows] == [row["status"] for row in models]
        reasons = [(line[width + 13 :], row["reason"]) for line, row in zip(rows, models, strict=True)]
        assert [shown for shown, _ in reasons] == [reason for _, reason in reasons]
        assert any(reason for _, reason in reasons)
        title, *rows = paper.splitlines()
        assert title == "Made by `transferable-vp convert`:"
        assert [line.split(maxsplit=2) for line in rows] == [
            [row[key] for key in ("model_type", "status", "reason") if row[key]]
            for row in supported_models()["paper_models"]
        ]
        counts = Counter(row["status"] for row in models)
        assert total.startswith(f"{counts['supported']} of {len(models)} types are supported, "
                                f"{counts['unsupported']} are not, {counts['untested']} are untested")  # fmt: skip

    def test_the_table_as_json_in_a_new_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "not" / "yet" / "there.json"
        assert main(["support", "--json", str(path)]) == 0
        assert json.loads(path.read_text(encoding="utf-8")) == supported_models()
        assert "types are supported" in capsys.readouterr().out

    def test_an_untested_type_is_counted(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        install(monkeypatch, llava="L", chameleon="C", unheard_of="U")
        assert main(["support"]) == 0
        shown = capsys.readouterr().out
        assert "1 of 3 types are supported, 1 are not, 1 are untested" in shown
        assert "\nunheard_of  untested     not in the conformance suite" in shown

    def test_a_model_that_works(
        self, tmp_path: Path, pair: Callable[[str], Pair], capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = save(pair("llava"), tmp_path / "tiny-llava")
        path = tmp_path / "new" / "llava.json"
        assert main(["support", folder, "--json", str(path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("  ")[:2] for line in lines] == [["works", name] for name in PROMISES]
        assert json.loads(path.read_text(encoding="utf-8")) == {
            "transformers": transformers.__version__,
            "models": [{
                "model": folder, "model_type": "llava", "status": "supported",
                "reason": "one step with a noisy prompt", "checks": dict.fromkeys(PROMISES, "passed"),
            }],
        }  # fmt: skip

    @pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
    def test_a_model_of_the_zoo(self, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["support", str(bundled("zoo/llava")), "--dtype", dtype]) == 0
        assert capsys.readouterr().out.count("works  ") == len(PROMISES)

    def test_a_model_that_does_not(self, tmp_path: Path, chameleon: Pair, capsys: pytest.CaptureFixture[str]) -> None:
        folder = save(copy.deepcopy(chameleon), tmp_path / "tiny-chameleon")
        path = tmp_path / "chameleon.json"
        assert main(["support", folder, "--json", str(path)]) == 1
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        (line,) = [line for line in shown.out.splitlines() if line.startswith("FAILS  gradient")]
        assert "No gradient passes from the answers of tiny-chameleon (chameleon) to the image" in line
        (row,) = json.loads(path.read_text(encoding="utf-8"))["models"]
        assert (row["model_type"], row["status"]) == ("chameleon", "unsupported")
        assert "gradient: RuntimeError: No gradient passes" in row["reason"]
        failed = [name for name in PROMISES if row["checks"][name] == "failed"]
        assert failed == [line.split()[1] for line in shown.out.splitlines() if line.startswith("FAILS")]
        assert row["checks"]["ranking"] == "passed"

    def test_a_folder_that_does_not_exist(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "never.json"
        assert main(["support", str(tmp_path / "nowhere"), "--json", str(path)]) == 1
        shown = capsys.readouterr()
        assert shown.err.startswith("error: ")
        assert shown.err.count("error: ") == 1
        assert "nowhere" in shown.err
        assert "Traceback" not in shown.err
        assert shown.out == ""
        assert not path.exists()

    def test_a_folder_without_a_model(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["support", str(tmp_path)]) == 1
        assert capsys.readouterr().err.startswith("error: ")

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            main(["support", "--help"])
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        assert all(flag in shown for flag in ("--json PATH", "--dtype", "transferable-vp support"))
