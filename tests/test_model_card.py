"""The card beside a shared prompt: true, readable by the Hub, silent about the machine it was made on, and usable."""

from __future__ import annotations

import contextlib
import io
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hub_cards import problems
from hub_server import HubServer
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard import metadata_save
from PIL import Image
from serving import LoopbackServer, completion
from test_card_sections import HOSTILE
from test_report import make_report
from tiny_training import dataset, make_trainer, new_prompt, rows, surrogate
from transformers import pipeline

from transferable_vp import TransferableVisualPrompt, __version__
from transferable_vp.card_sections import sections_of, split_card
from transferable_vp.model_card import CardFacts, facts_of_trainer, write_card


SECTIONS = ["prompt", "task", "training", "transfer", "use", "limits", "licence", "citation"]
GEOMETRIES: dict[str, dict[str, Any]] = {
    "crop": {},
    "contain": {"fit": "contain"},
    "stretch": {"fit": "stretch"},
    "gap": {"content_size": 17},
    "native": {"canvas": "native"},
    "native-gap": {"canvas": "native", "content_size": 14},
    "overlay": {"layout": "overlay"},
    "both": {"layout": "both", "canvas": "native"},
    "unbounded": {"value_range": "unbounded"},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no folder `zoo/llava`."""
    monkeypatch.chdir(tmp_path)


def noisy_prompt(**config: Any) -> TransferableVisualPrompt:
    prompt = new_prompt(**config)
    with torch.no_grad():
        noise = torch.rand(prompt.delta.shape, generator=torch.Generator().manual_seed(0))
        prompt.delta.copy_(torch.where(prompt.border_mask, noise, noise / 8 - 1 / 16))
    return prompt.project_()


def body(path: Path, name: str) -> str:
    return sections_of(split_card(path.read_text(encoding="utf-8")))[name].body


def blocks(path: Path, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", body(path, "use"), re.DOTALL)


# What it says


def test_the_card_of_a_short_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=2, eval_dataset=dataset(4), fca_weight=0.25)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    facts = facts_of_trainer(trainer, datasets=[{"id": "uoft-cs/cifar10", "split": "train", "revision": "0b27149"}])
    path = write_card(facts, tmp_path, license="apache-2.0", tags=["colours"], reports=[make_report()])
    assert path == tmp_path / "README.md"
    text = path.read_text(encoding="utf-8")
    parts = split_card(text)
    assert list(sections_of(parts)) == SECTIONS
    assert not any(section.edited for section in sections_of(parts).values())
    assert "\n# A transferable visual prompt\n" in text and "\n\n\n" not in text
    assert "a border of 6 pixels, on a canvas of 32 x 32 pixels" in body(path, "prompt").replace("\n", " ")
    assert "\n![the prompt](preview.png)\n" in body(path, "prompt")
    assert body(path, "task").splitlines()[2:5] == [
        "- question: `This is a photo of a`",
        "- answers to choose from (3): `one`, `cat`, `six`",
        "- caption, for Task Semantics Enrichment: `this is a photo of a {answer}`",
    ]
    made = body(path, "training").splitlines()
    loss = trainer.state.log_history[1]
    for line in (
        "| `llava` | `llava` | – |",
        "| `uoft-cs/cifar10` | – | `train` | `0b27149` |",
        "- weights: task 1, fca 0.25, tse 0",
        "- learning rate: 0.1",
        "- steps: 2",
        "- `per_device_train_batch_size`: `4`",
        "| step | loss | task_loss | fca_loss |",
        f"| 2 | {loss['loss']:.4g} | {loss['task_loss']:.4g} | {loss['fca_loss']:.4g} |",
        "Accuracy on the validation data, as last measured during training:",
        f"| `llava` | {100 * metrics['eval_accuracy']:.1f} % |",
    ):
        assert line in made
    assert f"Made with transferable_vp {__version__}, torch " in made[-2]
    assert "| `zoo/blip-2` | held-out | 600 | 44.0 | 39.0 | 33.0 | 47.0 | 53.0 | +14.0 [+10.0, +18.0] | 0, 1 |" in text
    assert "`apache-2.0`, as given." in body(path, "licence")
    assert "arXiv:2404.11207" in body(path, "citation")
    for private in (str(tmp_path), str(Path.home()), socket.gethostname()):
        assert private not in text


def test_the_metadata_is_what_the_hub_reads(tmp_path: Path) -> None:
    sources = [{"id": "org/one", "is_hub": True}, {"id": "two", "is_hub": False}, {"id": "org/one", "is_hub": True}]
    facts = CardFacts(sources=sources, datasets=[{"id": "org/data", "is_hub": True}, {"id": "photos"}], license="mit")
    path = write_card(facts, tmp_path, tags=["colours", "visual-prompt"], reports=[make_report()])
    data = metadata_load(path)
    index = data.pop("model-index")
    assert data == {
        "base_model": ["org/one"],
        "datasets": ["org/data"],
        "library_name": "transferable-vp",
        "license": "mit",
        "pipeline_tag": "image-text-to-text",
        "tags": ["transferable-vp", "visual-prompt", "colours"],
    }
    assert len(index) == 1 and len(index[0]["results"]) == 1 and len(index[0]["results"][0]["metrics"]) == 3
    card = ModelCard.load(path)
    assert len(card.data.eval_results) == 3
    assert card.data.to_dict() == data | {"model-index": index}
    before = path.read_text(encoding="utf-8")
    metadata_save(path, metadata_load(path))
    assert path.read_text(encoding="utf-8") == before


def test_a_prompt_alone_says_that_nothing_is_known(tmp_path: Path) -> None:
    noisy_prompt().save_pretrained(tmp_path)
    path = write_card(TransferableVisualPrompt.from_pretrained(tmp_path), tmp_path)
    assert "Nothing is known of how it was made" in body(path, "training")
    assert f"Made with transferable_vp {__version__}." in body(path, "training")
    assert "Nothing is known of the task" in body(path, "task")
    assert "Nothing was measured" in body(path, "transfer")
    assert "where nothing was measured, nothing is known" in body(path, "limits")
    assert "None was chosen" in body(path, "licence")
    assert metadata_load(path) == {
        "library_name": "transferable-vp",
        "pipeline_tag": "image-text-to-text",
        "tags": ["transferable-vp", "visual-prompt"],
    }


def test_facts_of_someone_else_lose_their_paths(tmp_path: Path) -> None:
    facts = CardFacts(sources=[{"id": "/home/me/llava"}], datasets=[{"id": "~/x/photos"}, {"id": "org/data"}])
    path = write_card(facts, tmp_path)
    assert "| `llava` | – | – |" in body(path, "training") and "| `photos` | – | – | – |" in body(path, "training")
    assert "home/me" not in path.read_text(encoding="utf-8") and "base_model" not in metadata_load(path)
    assert metadata_load(path)["datasets"] == ["org/data"]


def test_questions_of_their_own_losses_and_several_models(tmp_path: Path) -> None:
    data = [{"image": row["image"], "question": "What?", "answer": "one"} for row in rows(2)]
    trainer = make_trainer(
        tmp_path, train_dataset=data, eval_dataset=data, surrogates=[surrogate("llava"), surrogate("idefics3")]
    )
    metrics = trainer.evaluate()
    path = write_card(facts_of_trainer(trainer), tmp_path)
    assert "- question: one per image" in body(path, "task") and "- answers: free text" in body(path, "task")
    made = body(path, "training")
    assert "| `llava` | `llava` | – |\n| `idefics3` | `idefics3` | – |" in made
    assert "The dataset that it was learned from was not recorded." in made and "No loss was logged." in made
    assert f"| model | loss |\n|---|---:|\n| `llava` | {metrics['eval_llava_loss']:.4g} |" in made


def test_twenty_answers_are_shown(tmp_path: Path) -> None:
    task = {"question": "Which?", "candidates": [f"c{i}" for i in range(100)], "caption": "a {answer}"}
    text = body(write_card(CardFacts(task=task), tmp_path), "task")
    assert "(100): `c0`, " in text and "`c19`, …" in text and "`c20`" not in text


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_others_breaks_the_card(tmp_path: Path, text: str) -> None:
    report = make_report() | {"task": f"x{text}", "source": text}
    for target in report["targets"]:
        target["model"] += text
    facts = CardFacts(
        task={"question": f"x{text}", "candidates": [f"x{text}", "y"], "caption": f"x{text}"},
        sources=[{"id": f"x{text}", "model_type": text}], datasets=[{"id": f"x{text}", "config": text, "split": text}],
        recipe={f"x{text}": f"x{text}"}, changed={"optim_args": f"x{text}"}, loss_curve=[{"step": 1, f"x{text}": 0.5}],
        validation={f"x{text}": 0.5}, versions={"torch": f"x{text}"}, reports=[report],
    )  # fmt: skip
    path = write_card(facts, tmp_path, tags=[f"x{text}"])
    card = path.read_text(encoding="utf-8")
    sections = sections_of(split_card(card))
    assert list(sections) == SECTIONS and not any(section.edited for section in sections.values())
    tables = re.findall(r"(?:^\|.*\n)+", "".join(section.body for section in sections.values()), re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert problems(card) == ([], [])
    assert ModelCard(card).data.eval_results[0].task_name == " ".join(
        "".join(c if c.isprintable() else " " for c in f"x{text}").split()
    )
    for block in blocks(path):
        compile(block, "card", "exec")
    # Written again it is the same, so nothing was read as something else.
    assert write_card(facts, tmp_path, tags=[f"x{text}"]).read_text(encoding="utf-8") == card


def test_the_hub_takes_every_card(tmp_path: Path, hub: HubServer) -> None:
    trainer = make_trainer(tmp_path / "run", max_steps=1)
    trainer.train()
    facts = facts_of_trainer(trainer, datasets=["uoft-cs/cifar10"], license="cc-by-4.0")
    report = make_report() | {"settings": {"dataset": "uoft-cs/cifar10", "split": "test"}}
    cards = [write_card(facts, tmp_path / "0", reports=[report, report | {"metric": "auroc"}])]
    cards += [write_card(noisy_prompt(**config), tmp_path / name) for name, config in GEOMETRIES.items()]
    for path in cards:
        ModelCard.load(path).validate()
        assert problems(path.read_text(encoding="utf-8")) == ([], [])
    asked = [request for request in hub.requests if request.path == "/api/validate-yaml"]
    assert [request.status for request in asked] == [200] * len(cards)
    with pytest.raises(ValueError, match="license"):
        ModelCard.load(write_card(facts, tmp_path / "1", license="none of these")).validate()


def test_a_hub_id_is_put_into_the_examples(tmp_path: Path) -> None:
    path = write_card(new_prompt(layout="overlay"), tmp_path, repo_id="org/tvp")
    assert body(path, "use").count("org/tvp") == 3 and "THIS_REPO" not in body(path, "use")
    # It stays when nobody says another, and whatever else is known.
    for facts in (new_prompt(layout="overlay"), new_prompt(), CardFacts(recipe={"steps": 1})):
        assert '("org/tvp")' in body(write_card(facts, tmp_path), "use")
    assert '("org/new")' in body(write_card(new_prompt(), tmp_path, repo_id="org/new"), "use")
    with pytest.raises(ValueError, match="Repo id"):
        write_card(new_prompt(), tmp_path, repo_id='x"); import os')


# How to use it


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model, processor = tiny.build("llava")
    model.generation_config.max_new_tokens = 4
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def run(block: str, **names: Any) -> str:
    """What a block of a card prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(block, "card", "exec"), dict(names))
    return printed.getvalue().strip()


@pytest.mark.parametrize("config", GEOMETRIES.values(), ids=GEOMETRIES)
def test_the_examples_in_python_run(tmp_path: Path, model_folder: Path, config: dict[str, Any]) -> None:
    prompt = noisy_prompt(**config)
    prompt.save_pretrained(tmp_path / "prompt")
    task = {"question": 'What "is" it?', "candidates": None, "caption": "a {answer}"}
    path = write_card(CardFacts(config=prompt.config, task=task), tmp_path / "prompt")
    photo = tiny.picture(40, 28)
    photo.save(tmp_path / "photo.jpg", format="PNG")
    here, api = blocks(path)
    assert all(len(block.splitlines()) <= 8 for block in (here, api))
    names = {"THIS_REPO": str(tmp_path / "prompt"), "YOUR_MODEL": str(model_folder)}
    for old, new in names.items():
        here = here.replace(old, new)
    pipe = pipeline("image-text-to-text", model=str(model_folder))

    def answer(picture: Image.Image, processor: Any = pipe.processor) -> str:
        pipe.processor = processor
        return pipe(text=tiny.conversation('What "is" it?', picture), return_full_text=False)[0]["generated_text"]

    attached = prompt.attach(pipe.processor)
    assert run(here) == answer(photo, attached).strip()
    if prompt.config.value_range == "displayable":
        assert run(here) == answer(prompt.apply(photo)).strip()

    with LoopbackServer(lambda request: completion("seen")) as server:
        api = api.replace("THIS_REPO", names["THIS_REPO"]).replace("http://localhost:8000", server.url)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPENAI_API_KEY", "none")
            assert run(api) == "['seen']"
    assert np.array_equal(server.requests[0].pixels, np.asarray(prompt.apply(photo)))
    assert server.requests[0].text == 'What "is" it?'


def composed(path: Path, photo: Image.Image, resize: bool = True) -> Image.Image:
    """What the ImageMagick command of a card does, by Pillow, with the numbers that stand in the command."""
    (command,) = blocks(path, "sh")
    overlay = Image.open(path.parent / "prompt.png")
    scaled = re.search(r"-resize '(\d+)x\d+([!^]?)'", command)
    extents = [[int(n) for n in found] for found in re.findall(r"-extent (\d+)x(\d+)-(\d+)-(\d+)", command)]
    assert len(extents) == 1 and scaled is not None
    width, height, left, top = extents[0]
    if overlay.size != (width, height):
        overlay = overlay.resize((width, height), Image.Resampling.BILINEAR)
    elif resize:
        size, how = int(scaled[1]), scaled[2]
        ratio = {"^": max, "": min}.get(how, min)(size / photo.width, size / photo.height)
        new = (size, size) if how == "!" else (int(photo.width * ratio + 0.5), int(photo.height * ratio + 0.5))
        photo = photo.resize(new, Image.Resampling.BICUBIC)
        square = Image.new("RGB", (size, size))
        square.paste(photo, ((size - new[0]) // 2, (size - new[1]) // 2))
        photo = square
    canvas = Image.new("RGB", (width, height))
    canvas.paste(photo, (left, top))
    canvas.paste(overlay, (0, 0), overlay)
    return canvas


def saved(folder: Path, **config: Any) -> tuple[TransferableVisualPrompt, Path]:
    prompt = noisy_prompt(**config)
    prompt.save_pretrained(folder)
    return prompt, write_card(prompt, folder)


@pytest.mark.parametrize("name", ["crop", "contain", "stretch", "gap"])
def test_pasting_the_png_is_what_apply_does(tmp_path: Path, name: str) -> None:
    prompt, path = saved(tmp_path, **GEOMETRIES[name])
    size = prompt.config.content_size
    exact = tiny.picture(size, size)
    assert np.array_equal(np.asarray(composed(path, exact, resize=False)), np.asarray(prompt.apply(exact)))
    photo = Image.effect_mandelbrot((60, 44), (-2, -1, 1, 1), 50).convert("RGB")
    ours, theirs = (np.asarray(image).astype(int) for image in (prompt.apply(photo), composed(path, photo)))
    mask = prompt.border_mask[0].numpy()
    assert np.array_equal(ours[mask], theirs[mask])
    # Two programs round and resize alike, not equally.
    assert np.abs(ours - theirs).mean() < 1


@pytest.mark.parametrize("name", ["native", "native-gap"])
def test_the_example_of_a_native_canvas_is_exact_but_for_the_inner_edge(tmp_path: Path, name: str) -> None:
    prompt, path = saved(tmp_path, **GEOMETRIES[name])
    photo = tiny.picture(640, 480)
    ours, theirs = (np.asarray(image).astype(int) for image in (prompt.apply(photo), composed(path, photo)))
    assert ours.shape == theirs.shape
    outer = np.ones(ours.shape[:2], bool)
    frame = [round(side * prompt.config.border_size / prompt.config.content_size) for side in (480, 640)]
    # One learned pixel is stretched over this many.
    edge = 2 * ours.shape[1] // prompt.config.canvas_size
    outer[frame[0] - edge : -frame[0] + edge, frame[1] - edge : -frame[1] + edge] = False
    assert np.abs(ours - theirs)[outer].max() <= 1
    inner = np.ones(ours.shape[:2], bool)
    margin = [(ours.shape[0] - 480) // 2 + edge, (ours.shape[1] - 640) // 2 + edge]
    inner[:] = False
    inner[margin[0] : -margin[0], margin[1] : -margin[1]] = True
    assert np.array_equal(ours[inner], theirs[inner])


@pytest.mark.parametrize(
    ("name", "why"), [("overlay", "cannot be pasted"), ("both", "cannot be pasted"), ("unbounded", "can hold")]
)
def test_what_no_png_can_hold_is_said(tmp_path: Path, name: str, why: str) -> None:
    _, path = saved(tmp_path, **GEOMETRIES[name])
    assert not (tmp_path / "prompt.png").exists()
    assert blocks(path, "sh") == [] and why in body(path, "use").split("Without Python: not possible", 1)[1]
    assert ("values that no image can show" in body(path, "limits")) == (name == "unbounded")
    assert ("column *zero border*" in body(path, "limits")) == (name == "unbounded")
