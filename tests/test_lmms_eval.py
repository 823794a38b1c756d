"""The plug-in in the real lmms-eval, which has an environment of its own: see docs/harnesses.md."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import pytest
import tiny
import yaml
from PIL import Image

from transferable_vp import Surrogate, Task, TransferableVisualPrompt, evaluate, score_candidates
from transferable_vp.generation import generate
from transferable_vp.images import to_pil
from transferable_vp.tasks import get_task, task_names


ROOT = Path(__file__).parents[1]
TASKS = ROOT / "transferable_vp" / "integrations" / "tasks"
sys.path.append(str(ROOT / "zoo"))
import world  # noqa: E402


COLORS = list(world.COLORS)
RANKED = Task(question_column="question", candidates=COLORS)
ROWS = world.color_examples(8, seed=5, light="white")
TINY = """
task: tiny_{name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_visual: image
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
metric_list:
  - {{metric: {metric}, aggregation: mean, higher_is_better: true}}
{more}
"""

needs_lmms_eval = pytest.mark.skipif(
    find_spec("lmms_eval") is None,
    reason="lmms-eval is not installed; docs/harnesses.md says how to make an environment",
)


def test_there_is_a_task_file_for_every_set_that_lmms_eval_lacks() -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    found = {file.stem: yaml.load(file.read_text(), Loader) for file in TASKS.glob("*.yaml")}
    group = found.pop("all")
    assert {name: config["paper_task"] for name, config in found.items()} == {name: name for name in found}
    # lmms-eval has POPE.
    assert sorted(found) == [name for name in sorted(task_names()) if not name.startswith("pope")]
    assert group == {"group": "tvp", "task": [config["task"] for _, config in sorted(found.items())]}
    assert {config["class"] for config in found.values()} == {"transferable_vp.integrations.paper_sets.PaperSet"}


def test_the_folder_of_the_task_files_is_printed(capsys) -> None:
    runpy.run_module("transferable_vp.integrations.tasks", run_name="__main__")
    assert Path(capsys.readouterr().out.strip()) == TASKS


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder of two tasks on eight pictures: a colour to be said, and one to be chosen."""
    folder = tmp_path_factory.mktemp("tasks")
    text = datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "question": text, "answer": text})
    datasets.Dataset.from_list(ROWS, features=features).to_parquet(folder / "data.parquet")
    said = "generation_kwargs: {max_new_tokens: 8, temperature: 0, do_sample: false, until: ['\\n']}"
    for name, kind, metric, more in (
        ("said", "generate_until", "exact_match", said),
        ("chosen", "multiple_choice", "acc", f"doc_to_choice: {json.dumps(COLORS)}"),
    ):
        config = TINY.format(name=name, kind=kind, metric=metric, more=more, data=folder / "data.parquet")
        (folder / f"{name}.yaml").write_text(config)
    return folder


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prompt") / "noise"
    tiny.noise_prompt(canvas_size=64, border_size=20).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours():
    """`transferable_vp.integrations.lmms_eval`."""
    return import_module("transferable_vp.integrations.lmms_eval")


@pytest.fixture
def seen(monkeypatch) -> list[tuple[list[Image.Image], bool]]:
    """The images that models are shown, and whether as floats."""
    calls = []
    original = Surrogate.encode

    def encode(self, images, questions, canvas=None, unbounded=False):
        calls.append((list(images), unbounded))
        return original(self, images, questions, canvas, unbounded)

    monkeypatch.setattr(Surrogate, "encode", encode)
    return calls


def run(model, folder: Path, *names: str, **more):
    """Results and samples of lmms-eval."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("ERROR", include_path=[str(folder)], include_defaults=False)
    more = {"bootstrap_iters": 0, "log_samples": True} | more
    found = simple_evaluate(model=model, tasks=list(names), task_manager=manager, **more)
    return found["results"], found["samples"]


def values(samples, metric: str) -> list[float]:
    return [sample[metric] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]


def same(image: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(image), np.asarray(other))


@needs_lmms_eval
@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_command(tmp_path, tasks, noise) -> None:
    command = [sys.executable, "-m", "lmms_eval", "--model", "prompted_hf", "--model_args",
               f"pretrained={ROOT / 'zoo/llava'},prompt={noise}", "--tasks", "tiny_said,tiny_chosen", "--include_path",
               str(tasks), "--limit", "4", "--batch_size", "3", "--device", "cpu", "--output_path", str(tmp_path / "out"),
               "--log_samples"]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("*_results.json")
    results = json.loads(file.read_text())["results"]
    prompt = TransferableVisualPrompt.from_pretrained(noise)
    expected = evaluate(Surrogate.from_pretrained(str(ROOT / "zoo/llava")), ROWS[:4], RANKED, prompt, progress=False)
    assert results["tiny_chosen"]["acc,none"] == expected.mean
    assert results["tiny_said"]["exact_match,none"] == expected.mean


@needs_lmms_eval
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "idefics3", "paligemma", "instructblip"])
class TestPromptedHF:
    def test_the_numbers_are_those_of_evaluate_and_depend_on_the_prompt(self, ours, tasks, noise, name) -> None:
        path = str(ROOT / "zoo" / name)
        surrogate, prompt = Surrogate.from_pretrained(path), TransferableVisualPrompt.from_pretrained(noise)
        accuracies = []
        for more, given, prompted in (({}, None, True), ({"prompt": noise}, prompt, True),
                                      ({"prompt": noise, "prompted": False}, prompt, False)):  # fmt: skip
            model = ours.PromptedHF(path, batch_size=3, device="cpu", **more)
            results, samples = run(model, tasks, "tiny_said", "tiny_chosen")
            expected = evaluate(surrogate, ROWS, RANKED, given, prompted, progress=False)
            assert values(samples["tiny_chosen"], "acc") == expected.values.tolist()
            assert results["tiny_chosen"]["acc,none"] == expected.mean
            # These models say what they find most likely of the ten colours, or nearly always.
            said = values(samples["tiny_said"], "exact_match")
            assert np.mean(np.equal(said, expected.values)) >= 7 / 8
            assert results["tiny_said"]["exact_match,none"] == np.mean(said)
            accuracies.append(expected.mean)
        assert accuracies[0] == 1
        assert accuracies[1] <= 0.5

    def test_the_model_is_shown_what_apply_gives(self, ours, tasks, noise, name, seen) -> None:
        prompt = TransferableVisualPrompt.from_pretrained(noise)
        cases = {True: lambda image: prompt.apply(image), False: lambda image: prompt.apply(image, prompted=False)}
        for prompted, make in cases.items():
            for task in ("tiny_said", "tiny_chosen"):
                seen.clear()
                model = ours.PromptedHF(str(ROOT / "zoo" / name), prompt=noise, prompted=prompted, device="cpu")
                run(model, tasks, task, limit=2)
                wanted = [make(row["image"]) for row in ROWS[:2]]
                shown = [image for images, _ in seen for image in images]
                assert all(any(same(image, one) for one in wanted) for image in shown)
                assert all(any(same(image, one) for image in shown) for one in wanted)
                assert not any(unbounded for _, unbounded in seen)

    def test_losses_and_greedy_answers(self, ours, tasks, noise, name) -> None:
        prompt = TransferableVisualPrompt.from_pretrained(noise)
        model = ours.PromptedHF(str(ROOT / "zoo" / name), prompt=noise, device="cpu", batch_size=4)
        surrogate = model.surrogate
        _, samples = run(model, tasks, "tiny_chosen", limit=4)
        greedy = 0
        for row, sample in zip(ROWS, samples["tiny_chosen"], strict=False):
            image, question = prompt.apply(row["image"]), row["question"]
            scores = score_candidates(surrogate, [image], [question], [COLORS])[0]
            losses = [pair[0] for pair in sample["filtered_resps"]]
            assert np.allclose(losses, -scores.numpy(), atol=1e-4)
            flags = [pair[1] for pair in sample["filtered_resps"]]
            for color, flag in zip(COLORS, flags, strict=True):
                inputs, start, labels = surrogate.append_answers(
                    surrogate.encode([image], [question]), [question], [color], end=False
                )
                best = surrogate.answer_logits(inputs, start, labels.shape[1]).argmax(-1)
                assert flag is bool((best == labels).all())
            greedy += sum(flags)
        assert greedy >= 2


@needs_lmms_eval
@pytest.mark.slow
class TestRequests:
    """What a task may ask of `prompted_hf`, without lmms-eval around it."""

    @pytest.fixture
    def model(self, ours, noise):
        model = ours.PromptedHF(str(ROOT / "zoo/llava"), prompt=noise, device="cpu", batch_size=2)
        model.task_dict = {"task": {"test": ROWS}}
        return model

    @staticmethod
    def ask(content, row=0, visuals=lambda doc: [doc["image"]], question="What color is it?"):
        from lmms_eval.api.instance import Instance

        arguments = (question, content, visuals, row, "task", "test")
        return Instance("generate_until", arguments, 0, {"task": "task", "doc_id": row, "repeats": 1})

    def test_answers_come_in_the_order_of_their_requests(self, model) -> None:
        settings = [{"max_new_tokens": 1 + row % 2, "until": []} for row in range(5)]
        answers = model.generate_until([self.ask(setting, row) for row, setting in enumerate(settings)])
        expected = []
        for row, setting in enumerate(settings):
            image = model.prompt.apply(ROWS[row]["image"])
            expected += generate(
                model.surrogate, [image], ["What color is it?"], max_new_tokens=setting["max_new_tokens"]
            )
        assert len(set(expected)) > 1
        assert answers == expected

    def test_candidates_of_several_examples_mixed_up(self, model) -> None:
        requests = [self.ask(f" {color}", row) for color in ("red", "blue", "green") for row in (1, 0)]
        losses = [result.text[0] for result in model.loglikelihood(requests)]
        for row in (0, 1):
            image = model.prompt.apply(ROWS[row]["image"])
            scores = score_candidates(model.surrogate, [image], ["What color is it?"], [["red", "blue", "green"]])[0]
            assert np.allclose(losses[1 - row :: 2], -scores.numpy(), atol=1e-4)

    def test_a_target_may_be_a_function(self, model) -> None:
        plain, made = (
            model.loglikelihood([self.ask(target)])[0].text for target in (" red", lambda doc: doc["answer"])
        )
        assert ROWS[0]["answer"] == "red"
        assert plain == made

    def test_an_answer_ends_before_the_stop_string(self, model) -> None:
        whole = model.generate_until([self.ask({"max_new_tokens": 8})])[0]
        assert len(whole) > 2
        for until in (whole[1], [whole[1], "?"]):
            assert model.generate_until([self.ask({"max_new_tokens": 8, "until": until})])[0] == whole[0]

    def test_an_image_may_be_a_path(self, model, tmp_path, seen) -> None:
        ROWS[3]["image"].save(tmp_path / "a.png")
        model.generate_until([self.ask({"max_new_tokens": 1}, 0, lambda doc: [str(tmp_path / "a.png")])])
        assert same(seen[0][0][0], model.prompt.apply(ROWS[3]["image"]))

    @pytest.mark.parametrize(
        ("visuals", "message"),
        [
            (lambda doc: [doc["image"]] * 2, "Example 0 of task has 2 visuals (Image, Image)"),
            (lambda doc: [], "Example 0 of task has 0 visuals,"),
            (lambda doc: None, "Example 0 of task has 0 visuals,"),
            (lambda doc: ["a.mp4"], "Example 0 of task has 1 visuals (str)"),
        ],
    )
    def test_other_than_one_image(self, model, visuals, message) -> None:
        for call, content in ((model.generate_until, {}), (model.loglikelihood, " red")):
            with pytest.raises(ValueError, match="--model prompted") as error:
                call([self.ask(content, visuals=visuals)])
            assert message in str(error.value)

    def test_settings(self, ours, model) -> None:
        assert ours._settings({"max_gen_toks": 7, "until": "x", "top_p": 1.0}) == {"max_new_tokens": 7, "stop": ["x"]}
        assert ours._settings({"until": ["", "a"], "temperature": 0, "do_sample": True}) == {
            "max_new_tokens": 1024, "stop": ["a"]
        }  # fmt: skip
        for drawn in ({"temperature": 0.7}, {"do_sample": True}, {"num_beams": 3}):
            with pytest.raises(ValueError, match="--gen_kwargs do_sample=False,temperature=0,num_beams=1"):
                model.generate_until([self.ask(drawn)])
        with pytest.raises(NotImplementedError, match="one round"):
            model.generate_until_multi_round([])

    @pytest.mark.parametrize("size", ["auto", 0, "auto:4"])
    def test_batch_sizes_that_are_no_number(self, ours, size) -> None:
        with pytest.raises(ValueError, match="prompted_hf needs a positive number"):
            ours.PromptedHF(str(ROOT / "zoo/llava"), batch_size=size)

    def test_no_prompt_there(self, ours, tmp_path) -> None:
        with pytest.raises(OSError, match="There is no prompt that can be read"):
            ours.PromptedHF(str(ROOT / "zoo/llava"), prompt=str(tmp_path))

    def test_floats_of_a_prompt_that_no_image_can_carry(self, ours, tmp_path, seen) -> None:
        prompt = tiny.noise_prompt(canvas_size=64, border_size=20, value_range="unbounded")
        prompt.save_pretrained(tmp_path)
        model = ours.PromptedHF(str(ROOT / "zoo/llava"), prompt=tmp_path, device="cpu")
        model.task_dict = {"task": {"test": ROWS}}
        (result,) = model.loglikelihood([self.ask(" red")])
        assert all(unbounded for _, unbounded in seen)
        canvas = prompt([ROWS[0]["image"]]).detach()
        shown = [to_pil(canvas[0])]
        question = ["What color is it?"]
        (as_floats,), (as_image,) = (
            score_candidates(model.surrogate, shown, question, [["red"]], c) for c in (canvas, None)
        )
        assert np.isclose(result.text[0], -as_floats.item(), atol=1e-4)
        assert not np.isclose(result.text[0], -as_image.item(), atol=1e-2)


@pytest.fixture
def recorder(ours, monkeypatch):
    """Two models of lmms-eval that answer with nothing and keep what they are shown."""
    from lmms_eval.api.model import lmms
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.models.registry_v2 import ModelManifest

    class Recorder(lmms):
        shown: list = []

        def __init__(self, batch_size=1, device=None, mark=""):
            super().__init__()
            self.mark = mark

        def generate_until(self, requests):
            for _, first, second, *where in (request.args for request in requests):
                get = second if self.is_simple else first
                number, task, split = where
                self.shown.append(get(self.task_dict[task][split][number]))
            return [f"{self.mark}{self.rank}"] * len(requests)

        def loglikelihood(self, requests):
            for _, _, visuals, number, task, split in (request.args for request in requests):
                self.shown.append(visuals(self.task_dict[task][split][number]))
            return [(float(i % len(COLORS)), False) for i in range(len(requests))]

        generate_until_multi_round = None

    class ChatRecorder(Recorder):
        is_simple = False

    monkeypatch.setattr(sys.modules[__name__], "Recorder", Recorder, raising=False)
    monkeypatch.setattr(sys.modules[__name__], "ChatRecorder", ChatRecorder, raising=False)
    simple, chat = f"{__name__}.Recorder", f"{__name__}.ChatRecorder"
    for name, paths in (
        ("recorder", (simple, None)),
        ("chat_recorder", (None, chat)),
        ("both_recorders", (simple, chat)),
    ):
        MODEL_REGISTRY_V2.register_manifest(ModelManifest(name, *paths), overwrite=True)
    return Recorder


@needs_lmms_eval
@pytest.mark.slow
class TestPromptedBackend:
    def test_simple_models_are_shown_prompted_images(self, ours, tasks, noise, recorder) -> None:
        prompt = TransferableVisualPrompt.from_pretrained(noise)
        for prompted in (True, False):
            recorder.shown.clear()
            model = ours.PromptedBackend("recorder", str(noise), prompted, batch_size=1, mark="answer")
            model._rank = 3
            _, samples = run(model, tasks, "tiny_said", limit=2)
            for row, visuals in zip(ROWS, recorder.shown, strict=False):
                assert len(visuals) == 1
                assert same(visuals[0], prompt.apply(row["image"], prompted=prompted))
            assert [sample["filtered_resps"] for sample in samples["tiny_said"]] == [["answer3"]] * 2

    def test_chat_models_are_shown_prompted_images(self, ours, tasks, noise, recorder) -> None:
        prompt = TransferableVisualPrompt.from_pretrained(noise)
        run(ours.PromptedBackend("chat_recorder", str(noise)), tasks, "tiny_said", limit=2)
        assert len(recorder.shown) == 2
        for row, messages in zip(ROWS, recorder.shown, strict=False):
            image, text = messages[0]["content"]
            assert (image["type"], text) == ("image", {"type": "text", "text": "What color is it?"})
            assert same(image["url"], prompt.apply(row["image"]))

    def test_multiple_choice(self, ours, tasks, noise, recorder) -> None:
        results, _ = run(ours.PromptedBackend("recorder", str(noise)), tasks, "tiny_chosen")
        # The smallest loss is that of the first colour.
        assert results["tiny_chosen"]["acc,none"] == np.mean([row["answer"] == COLORS[0] for row in ROWS])
        assert len(recorder.shown) == len(ROWS) * len(COLORS)

    def test_a_chat_model_ranks_nothing_unless_it_has_a_simple_kind(self, ours, noise, recorder) -> None:
        model = ours.PromptedBackend("chat_recorder", str(noise))
        with pytest.raises(ValueError, match="The task task is for models of lmms-eval's simple kind"):
            model.loglikelihood([TestRequests.ask(" red")])
        model = ours.PromptedBackend("both_recorders", str(noise), force_simple=True)
        model.task_dict.update({"task": {"test": ROWS}})
        assert model.loglikelihood([TestRequests.ask(" red")])[0].text == (0.0, False)

    def test_several_images_and_texts_without_any(self, ours, noise, recorder, tmp_path) -> None:
        prompt = TransferableVisualPrompt.from_pretrained(noise)
        ROWS[1]["image"].save(tmp_path / "a.png")
        model = ours.PromptedBackend("recorder", str(noise))
        model.task_dict.update({"task": {"test": ROWS}})
        images = [ROWS[0]["image"], str(tmp_path / "a.png")]
        model.generate_until([TestRequests.ask({}, visuals=lambda doc, f=found: f) for found in (images, [], None)])
        two, none, nothing = recorder.shown
        assert none == nothing == []
        assert all(same(image, prompt.apply(row["image"])) for image, row in zip(two, ROWS[:2], strict=True))

    def test_what_has_no_pixels_to_prompt(self, ours, noise, recorder) -> None:
        model = ours.PromptedBackend("recorder", str(noise))
        model.task_dict.update({"task": {"test": ROWS}})
        with pytest.raises(ValueError, match=r"a str \(film.mp4\), and a prompt can be put on images only"):
            model.generate_until([TestRequests.ask({}, visuals=lambda doc: ["film.mp4"])])
        with pytest.raises(NotImplementedError, match="one round"):
            model.generate_until_multi_round([])
        with pytest.raises(ValueError, match="'nonesuch' not found"):
            ours.PromptedBackend("nonesuch", str(noise))


@needs_lmms_eval
@pytest.mark.slow
class TestPaperSets:
    @pytest.fixture
    def make(self, tmp_path):
        """Writes the YAML file of a task on local data."""

        def write(name, features, rows, **more):
            data = tmp_path / "data" / name
            data.mkdir(parents=True)
            datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(data / "test.parquet")
            text = (TASKS / f"{name}.yaml").read_text()
            more = {"path": str(data), "split": "test", **more}
            (tmp_path / f"{name}.yaml").write_text(text + "".join(f"{key}: {value}\n" for key, value in more.items()))
            return get_task(name).load("test", path=str(data))

        return write

    def test_ranked(self, ours, tmp_path, noise, make) -> None:
        label = datasets.ClassLabel(names=list(get_task("cifar10").task.candidates))
        rows = [{"img": tiny.picture(32, 32, seed=i), "label": i} for i in range(10)]
        data = make("cifar10", {"img": datasets.Image(), "label": label}, rows, split="test[:8]").select(range(8))
        model = ours.PromptedHF(str(ROOT / "zoo/llava"), prompt=noise, device="cpu", batch_size=4)
        expected = evaluate(model.surrogate, data, get_task("cifar10").task, model.prompt, progress=False)
        results, samples = run(model, tmp_path, "tvp_cifar10")
        assert values(samples["tvp_cifar10"], "acc") == expected.values.tolist()
        assert results["tvp_cifar10"]["acc,none"] == expected.mean
        # Pictures are not written to the samples' file.
        assert samples["tvp_cifar10"][3]["doc"] == {"label": 3}

    def test_the_area_under_the_curve(self, ours, tmp_path, make) -> None:
        text, number = datasets.Value("string"), datasets.Value("int64")
        rows = [{"image": tiny.picture(seed=i), "label": i % 2, "text": f"text {i}", "id": "1", "split": "x"}
                for i in range(6)]  # fmt: skip
        features = {"id": text, "image": datasets.Image(), "label": number, "text": text, "split": text}
        data = make("hateful_memes", features, rows)
        model = ours.PromptedHF(str(ROOT / "zoo/llava"), device="cpu", batch_size=4)
        results, samples = run(model, tmp_path, "tvp_hateful_memes")
        assert (
            samples["tvp_hateful_memes"][2]["arguments"][0]
            == 'This is an image with: "text 2" written on it. Is it hateful?'
        )
        losses = [[pair[0] for pair in sample["filtered_resps"]] for sample in samples["tvp_hateful_memes"]]
        pairs = [(yes, no) for yes in losses[1::2] for no in losses[::2]]
        wins = [float((y[0] - y[1]) > (n[0] - n[1])) for y, n in pairs]
        assert results["tvp_hateful_memes"]["auroc,none"] == pytest.approx(np.mean(wins))
        expected = evaluate(model.surrogate, data, get_task("hateful_memes").task, progress=False)
        assert results["tvp_hateful_memes"]["acc,none"] == expected.mean

    def test_counts(self, tmp_path, make, monkeypatch, recorder) -> None:
        number, text = datasets.Value("int64"), datasets.Value("string")
        rows = [{"__key__": "a", "__url__": "b", "cls": i, "webp": tiny.picture(seed=i)} for i in range(4)]
        make("clevr", {"__key__": text, "__url__": text, "cls": number, "webp": datasets.Image()}, rows)
        answers = ["Three.", "14 objects", "5", "seven"]
        monkeypatch.setattr(recorder, "generate_until", lambda self, requests: answers)
        results, samples = run(recorder(), tmp_path, "tvp_clevr")
        assert [sample["target"] for sample in samples["tvp_clevr"]] == ["3", "4", "5", "6"]
        assert values(samples["tvp_clevr"], "acc") == [1, 0, 1, 0]
        # The paper's rule finds the 4 in 14.
        assert values(samples["tvp_clevr"], "acc_paper") == [1, 1, 1, 0]
        assert results["tvp_clevr"]["acc_paper,none"] == 0.75

    def test_again_from_the_cache(self, ours, tmp_path, make, monkeypatch) -> None:
        label = datasets.ClassLabel(names=list(get_task("svhn").task.candidates))
        rows = [{"image": tiny.picture(32, 32, seed=i), "label": i} for i in range(6)]
        make("svhn", {"image": datasets.Image(), "label": label}, rows)
        model = ours.PromptedHF(str(ROOT / "zoo/llava"), device="cpu", batch_size=4)
        first, _ = run(model, tmp_path, "tvp_svhn", use_cache=str(tmp_path / "cache"))
        monkeypatch.setattr(ours.PromptedHF, "loglikelihood", None)
        again, _ = run(model, tmp_path, "tvp_svhn", use_cache=str(tmp_path / "cache"))
        assert again["tvp_svhn"]["acc,none"] == first["tvp_svhn"]["acc,none"]
