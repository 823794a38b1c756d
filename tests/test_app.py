"""The app without a browser: what is given, prompts, answers, the gallery. Learning is in test_app_training.py."""

from __future__ import annotations

import io
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hub_prompts import ID, SMALL
from hub_server import HubServer
from PIL import Image
from test_report import make_report
from transformers import PreTrainedModel


pytest.importorskip("gradio", reason='the app is an extra: pip install "transferable-vp[app]"')

from transferable_vp import Surrogate, Task, TransferableVisualPrompt, evaluate
from transferable_vp.app import given, prompts
from transferable_vp.app.answers import CONDITIONS, answers_html, ask, best
from transferable_vp.app.gallery_tab import find_reports, gallery_html, prompt_picture
from transferable_vp.app.given import known_names, read_candidates, read_picture, read_question, sentence
from transferable_vp.app.models import Models, zoo_models
from transferable_vp.app.page import make_app
from transferable_vp.app.prompts import card_of, choices, describe, find_prompts, load_prompt, task_of
from transferable_vp.bundled import bundled
from transferable_vp.card_facts import CardFacts
from transferable_vp.cli import main
from transferable_vp.model_card import write_card
from transferable_vp.report import write_json
from transferable_vp.transfer import weights_digest


@pytest.fixture
def prompt() -> TransferableVisualPrompt:
    return tiny.noise_prompt(**SMALL)


@pytest.fixture
def folder(prompt: TransferableVisualPrompt, tmp_path: Path) -> Path:
    prompt.save_pretrained(tmp_path / "prompt")
    return tmp_path / "prompt"


@pytest.fixture(scope="module")
def llava() -> Surrogate:
    return Surrogate.from_pretrained(str(bundled("zoo/llava")))


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind)
    return file.getvalue()


class TestPicture:
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
    def test_is_read_as_it_is(self, tmp_path: Path, kind: str) -> None:
        (tmp_path / "a").write_bytes(encoded(tiny.picture(40, 30), kind))
        image, shrunk = read_picture(tmp_path / "a")
        assert image.size == (40, 30) and shrunk == ""
        with Image.open(tmp_path / "a") as plain:
            assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(plain.convert("RGB")))

    @pytest.mark.parametrize(
        "data", [b"not a picture", b"", b"<svg></svg>", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
    )
    def test_that_is_none(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(ValueError, match=r"^a\.png is (not an image: give a PNG|damaged or cut off).*\.$") as info:
            read_picture(tmp_path / "a.png")
        # Where uploads lie is not the visitor's business.
        assert str(tmp_path) not in str(info.value)

    def test_that_is_kept_no_longer(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"^a\.png is kept no longer: give it again\.$"):
            read_picture(tmp_path / "a.png")

    def test_of_a_format_that_starts_a_program(self, tmp_path: Path) -> None:
        # Pillow itself would open it, and start Ghostscript to draw it.
        (tmp_path / "a.png").write_bytes(encoded(tiny.picture(8, 8), "EPS"))
        with pytest.raises(ValueError, match=r"^a\.png is not an image: give a PNG"):
            read_picture(tmp_path / "a.png")

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
    def test_that_is_cut_off(self, tmp_path: Path, kind: str) -> None:
        data = encoded(tiny.picture(300, 200), kind)
        (tmp_path / "half").write_bytes(data[: len(data) // 2])
        with pytest.raises(
            ValueError, match=r"^half is damaged or cut off, so it cannot be read as an image: save it"
        ):
            read_picture(tmp_path / "half")

    @pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("P", "PNG"), ("1", "PNG"), ("I;16", "PNG")])
    def test_of_forty_megapixels_is_shrunk(self, tmp_path: Path, mode: str, kind: str) -> None:
        (tmp_path / "large").write_bytes(encoded(Image.new(mode, (8000, 5000)), kind))
        image, shrunk = read_picture(tmp_path / "large")
        assert image.size == (2048, 1280)
        assert shrunk == "The picture was shrunk from 8000 × 5000 to 2048 × 1280 pixels."

    @pytest.mark.parametrize("size", [(8000, 6400), (100_000, 100_000)])
    def test_of_more_is_refused_before_its_pixels_are_read(
        self, tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A header that claims this size and no pixels behind it: reading them would say "cut off".
        header = bytearray(encoded(Image.new("1", (8, 8)), "BMP")[:62])
        header[18:22], header[22:26] = size[0].to_bytes(4, "little"), size[1].to_bytes(4, "little")
        (tmp_path / "huge.bmp").write_bytes(header)
        with pytest.raises(
            ValueError, match=r"^huge\.bmp has more than 50 million pixels: shrink it and give it again"
        ):
            read_picture(tmp_path / "huge.bmp")

    def test_stays_upright(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("L", (4000, 1000)).save(tmp_path / "a.jpg", exif=exif)
        image, _ = read_picture(tmp_path / "a.jpg")
        # Turned by whoever makes a tensor of it, as everywhere else.
        assert image.getexif()[0x0112] == 6


class TestText:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("red, green ,blue", ("red", "green", "blue")),
            ("a, b\nc", ("a, b", "c")),
            ("yes\n\nno\nyes\n", ("yes", "no")),
        ],
    )
    def test_candidates(self, text: str, names: tuple[str, ...]) -> None:
        assert read_candidates(text) == names

    @pytest.mark.parametrize("text", [None, "", " \n ", "one", ",,", "one\n one"])
    def test_fewer_than_two(self, text: str | None) -> None:
        with pytest.raises(ValueError, match=r"^There are fewer than two answers to choose from: write one per line"):
            read_candidates(text)

    @pytest.mark.parametrize("text", [",".join(map(str, range(201))), f"a,{'b' * 2000}"])
    def test_too_much(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"at most 200 can be, of 2000 characters together\.$"):
            read_candidates(text)

    def test_question(self) -> None:
        assert read_question(" what? ") == "what?"
        with pytest.raises(ValueError, match="There is no question"):
            read_question("  ")
        with pytest.raises(ValueError, match="has 2001 characters; at most 2000"):
            read_question("w" * 2001)

    def test_names(self) -> None:
        assert known_names(["c", "a"], ["a", "b", "c"], "model") == ["a", "c"]
        with pytest.raises(ValueError, match=r"^No model is chosen"):
            known_names([], ["a"], "model")
        with pytest.raises(ValueError, match=r"^There is no model z; there are a\.$"):
            known_names(["z"], ["a"], "model")

    def test_errors_are_one_sentence_and_ours_go_to_the_log(self, caplog: pytest.LogCaptureFixture) -> None:
        assert sentence(ValueError("It is\nso.")) == "It is so."
        assert caplog.records == []
        assert sentence(KeyError("secret")) == (
            "Something went wrong that should not have (KeyError); the app's log says what."
        )
        assert caplog.records[0].exc_info


class TestPrompts:
    def test_found_in_runs(self, prompt: TransferableVisualPrompt, tmp_path: Path) -> None:
        for name in ("b", "a/prompt", "a/deep/deeper"):
            prompt.save_pretrained(tmp_path / name)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "config.json").write_text('{"model_type": "llava"}')
        (tmp_path / "other" / "model.safetensors").write_bytes(b"")
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "config.json").write_bytes((tmp_path / "b" / "config.json").read_bytes())
        found = find_prompts(["org/x", str(tmp_path / "b")], tmp_path)
        assert found == ["org/x", str(tmp_path / "b"), str(tmp_path / "a" / "prompt")]
        assert find_prompts([], tmp_path / "none") == find_prompts([], None) == []

    def test_choices_put_own_ones_first(self) -> None:
        assert choices(["a"], ["/tmp/1", "/tmp/2"]) == [
            ("learned here, 2", "/tmp/2"), ("learned here, 1", "/tmp/1"), ("a", "a")
        ]  # fmt: skip

    def test_only_folders_that_are_listed_are_read(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert load_prompt(str(folder), [str(folder)]).config.canvas_size == 32
        monkeypatch.chdir(folder.parent.parent)
        for name in (str(folder), f"{folder.parent.name}/prompt", "../x", "x y"):
            with pytest.raises(ValueError, match="is neither one of the prompts listed nor a Hub id such as"):
                load_prompt(name, [])
        with pytest.raises(ValueError, match="No prompt is chosen"):
            load_prompt(" ", [])

    def test_a_hub_id_offline_is_one_sentence(self) -> None:
        with pytest.raises(FileNotFoundError, match=r"^Could not load config\.json of org/none: .*\.$"):
            load_prompt("org/none", [])

    def test_a_typed_hub_id_is_asked_for_without_a_token(
        self, hub: HubServer, shared: TransferableVisualPrompt
    ) -> None:
        loaded = load_prompt(ID, [])
        assert "transferable-vp" in card_of(loaded, token=False)
        assert hub.requests and not any("authorization" in request.headers for request in hub.requests)
        # One that whoever runs the app has given may be theirs alone.
        hub.requests.clear()
        load_prompt(ID, [ID])
        assert any("authorization" in request.headers for request in hub.requests)

    def test_a_private_one_of_the_cache_is_not_given_to_whoever_types_its_id(
        self, hub: HubServer, prompt: TransferableVisualPrompt
    ) -> None:
        prompt.push_to_hub("org/secret", private=True)
        # Now it lies in the cache of whoever runs the app.
        load_prompt("org/secret", ["org/secret"])
        with pytest.raises(OSError, match=r"^Could not load config\.json of org/secret"):
            load_prompt("org/secret", [])

    def test_are_loaded_by_many_at_once(self, folder: Path) -> None:
        tie_weights, linspace, failed = PreTrainedModel.tie_weights, torch.linspace, []

        def load() -> None:
            try:
                for _ in range(20):
                    load_prompt(str(folder), [str(folder)])
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=load) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        # transformers replaces both while it makes a model.
        assert PreTrainedModel.tie_weights is tie_weights and torch.linspace is linspace

    def test_unknown_and_unreachable(self, hub: HubServer, waits: list[float]) -> None:
        with pytest.raises(
            OSError, match=r"^Could not load config\.json of org/unknown: .*no repository of this name"
        ):
            load_prompt("org/unknown", [])
        hub.stop()
        with pytest.raises(ConnectionError, match="cannot be reached"):
            load_prompt("org/unknown", [])

    def test_task_of_a_card(self, folder: Path) -> None:
        names = ["a, b", "red", "`tick`", "<b>", "x|y"]
        task = {"question": "What is *it*?", "candidates": names, "caption": "a {answer}"}
        write_card(CardFacts(task=task), folder)
        found = task_of(card_of(load_prompt(str(folder), [str(folder)])))
        assert found == prompts.CardTask("What is *it*?", tuple(names), 5)

    def test_task_of_many_answers_and_a_question_per_image(self, folder: Path) -> None:
        task = {"question": None, "candidates": [f"n{i}" for i in range(36)], "caption": "{answer}"}
        write_card(CardFacts(task=task), folder)
        found = task_of(card_of(load_prompt(str(folder), [str(folder)])))
        assert found == prompts.CardTask(None, tuple(f"n{i}" for i in range(20)), 36)

    @pytest.mark.parametrize("card", ["", "# Mine\n", "- question: `x`"])
    def test_a_card_that_says_nothing(self, card: str) -> None:
        assert task_of(card) is None

    def test_a_card_of_a_prompt_alone(self, folder: Path, prompt: TransferableVisualPrompt) -> None:
        assert card_of(load_prompt(str(folder), [str(folder)])) == ""
        write_card(prompt, folder)
        assert task_of(card_of(load_prompt(str(folder), [str(folder)]))) is None

    @pytest.mark.parametrize("more", [{}, {"layout": "overlay"}, {"canvas": "native"}])
    def test_is_described(self, more: dict[str, Any]) -> None:
        assert "32 × 32 pixels" in describe(tiny.noise_prompt(**SMALL | more))


class TestAnswers:
    COLORS = ("red", "green", "blue", "brown")

    def test_are_those_of_evaluate(self, llava: Surrogate) -> None:
        prompt = tiny.noise_prompt(canvas_size=64, border_size=8)
        image = tiny.picture(48, 40)
        found = ask(llava, prompt, image, "What color is it?", self.COLORS)
        assert list(found) == list(CONDITIONS)
        rows = [{"image": image, "answer": "red"}]
        task = Task(question="What color is it?", candidates=self.COLORS)
        for condition, how in {
            "picture": {},
            "black": {"prompt": prompt, "prompted": False},
            "prompt": {"prompt": prompt},
        }.items():
            assert sum(found[condition]) == pytest.approx(1)
            (scores,) = evaluate(llava, rows, task, progress=False, **how).scores
            odds = np.exp(np.array(scores) - max(scores))
            assert found[condition] == pytest.approx((odds / odds.sum()).tolist(), rel=1e-4)
        assert found["black"] != found["prompt"]

    def test_of_an_unbounded_prompt_are_of_its_floats(self, llava: Surrogate) -> None:
        unbounded = tiny.noise_prompt(canvas_size=64, border_size=8, value_range="unbounded")
        image = tiny.picture(48, 40)
        seen = ask(llava, unbounded, image, "What color is it?", self.COLORS)["prompt"]
        rows, task = [{"image": image, "answer": "red"}], Task(question="What color is it?", candidates=self.COLORS)
        (scores,) = evaluate(llava, rows, task, unbounded, progress=False).scores
        assert int(np.argmax(scores)) == int(np.argmax(seen))
        assert np.log(seen[0]) - np.log(seen[1]) == pytest.approx(scores[0] - scores[1], abs=1e-3)

    def test_page_shows_text_as_text(self) -> None:
        names = ("<script>alert(1)</script>", "${1+1}")
        shown = answers_html({"a<b": {key: [0.999, 0.001] for key in CONDITIONS}}, names)
        assert "<script" not in shown and "a<b" not in shown and "&lt;script&gt;" in shown
        assert "&gt;99 %" in shown and "&lt;1 %" in shown

    def test_best(self) -> None:
        assert best([0.1, 0.7, 0.2], "abc") == ("b", 0.7)


class TestModels:
    def test_zoo_without_its_judge(self) -> None:
        names = [Path(path).name for path in zoo_models()]
        assert names[:4] == ["llava", "idefics3", "paligemma", "instructblip"] and "clip" not in names

    def test_two_of_one_name(self) -> None:
        with pytest.raises(ValueError, match=r"^Two models are called llava"):
            Models(["zoo/llava", "other/llava/"])

    def test_are_loaded_once_and_lent_to_one_at_a_time(
        self, monkeypatch: pytest.MonkeyPatch, llava: Surrogate
    ) -> None:
        models, loads, inside, most = Models(["zoo/llava"]), [], [], []
        monkeypatch.setattr(models, "load", lambda name: loads.append(name) or llava)
        start = threading.Barrier(4)

        def use() -> None:
            start.wait()
            for _ in range(50):
                with models.use("llava") as model:
                    inside.append(model)
                    most.append(len(inside))
                    inside.pop()

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert loads == ["llava"] and set(most) == {1} and len(most) == 200


class TestGallery:
    @pytest.mark.parametrize("place", ["prompt/transfer.json", "prompt/report/transfer.json", "report/transfer.json"])
    def test_finds_the_report_beside(self, folder: Path, place: str) -> None:
        write_json(make_report(), folder.parent / place)
        loaded = TransferableVisualPrompt.from_pretrained(folder)
        assert find_reports(loaded) == [json.loads(json.dumps(make_report()))]

    def test_finds_the_demo_s_second_prompt(self, folder: Path) -> None:
        folder = folder.rename(folder.with_name("prompt_digits"))
        write_json(make_report(), folder.parent / "report" / "transfer.json")
        assert find_reports(TransferableVisualPrompt.from_pretrained(folder)) == []
        write_json(make_report(), folder.parent / "report" / "transfer_digits.json")
        assert len(find_reports(TransferableVisualPrompt.from_pretrained(folder))) == 1

    def test_falls_back_on_the_card(self, folder: Path, prompt: TransferableVisualPrompt) -> None:
        write_card(prompt, folder, reports=[make_report()])
        (report,) = find_reports(TransferableVisualPrompt.from_pretrained(folder))
        assert [target["tvp"] for target in report["targets"]] == [t["tvp"] for t in make_report()["targets"]]

    def test_shows_chart_and_numbers(self, folder: Path) -> None:
        write_json(make_report(), folder / "transfer.json")
        shown = gallery_html([("my <prompt>", str(folder))])
        assert shown.count("<img") == 2 and "my &lt;prompt&gt;" in shown and "+25.0" in shown
        assert "other weights" not in shown

    def test_says_when_other_weights_were_measured(self, folder: Path, prompt: TransferableVisualPrompt) -> None:
        report = make_report()
        for weights, told in ((weights_digest(prompt), False), ("01234567", True)):
            report["targets"][0]["weights"] = weights
            write_json(report, folder / "transfer.json")
            assert ("measured with other weights" in gallery_html([("p", str(folder))])) is told

    def test_one_that_is_damaged_does_not_hide_the_others(self, folder: Path, tmp_path: Path) -> None:
        (folder / "transfer.json").write_text("{")
        tiny.noise_prompt(**SMALL).save_pretrained(tmp_path / "good")
        shown = gallery_html(
            [("bad", str(folder)), ("gone", str(tmp_path / "none")), ("good", str(tmp_path / "good"))]
        )
        assert shown.count('role="alert"') == 2 and "is not a transfer report" in shown
        assert "Nothing was measured with it" in shown

    def test_without_prompts_says_what_to_do(self) -> None:
        assert "learn one in the tab" in gallery_html([])

    @pytest.mark.parametrize("more", [{}, {"layout": "overlay"}, {"value_range": "unbounded"}])
    def test_picture_of_every_kind(self, more: dict[str, Any]) -> None:
        assert prompt_picture(tiny.noise_prompt(**SMALL | more)).width >= 448


class TestPage:
    def test_asks_nobody_and_tells_nobody(self) -> None:
        app = make_app(runs=None, n_train=8, n_test=2)
        assert app.analytics_enabled is False
        # Nothing can be called by name from outside, but for what happens when a page is closed.
        public = {function.fn.__name__ for function in app.fns.values() if function.api_visibility == "public"}
        assert public <= {"end"}

    def test_two_models_of_one_name(self) -> None:
        with pytest.raises(ValueError, match=r"^Two models are called llava"):
            make_app(models=["somewhere/llava"], runs=None)

    def test_command_says_what_is_missing(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in [name for name in sys.modules if name.startswith("transferable_vp.app")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "gradio", None)
        assert main(["app"]) == 1
        assert capsys.readouterr().err == 'error: The app needs gradio: pip install "transferable-vp[app]".\n'

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["app", "--help"])
        shown = capsys.readouterr().out
        assert all(flag in shown for flag in ("--prompt", "--model", "--port", "--share"))


def test_limits_fit_together() -> None:
    assert given.MAX_SIDE**2 < given.MAX_PIXELS
