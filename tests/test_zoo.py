from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPModel

from transferable_vp import Surrogate, evaluate
from transferable_vp.bundled import bundled
from transferable_vp.data import Task


MEMBERS = ("llava", "idefics3", "paligemma", "instructblip", "blip2", "internvl")


def vision_weights(folder):
    weights = load_file(folder / "model.safetensors")
    return {key: value for key, value in weights.items() if key.startswith("vision_model.")}


@pytest.fixture(scope="module")
def zoo():
    """The zoo's own modules, imported as its scripts import each other."""
    sys.path.insert(0, str(bundled("zoo")))
    try:
        import families
        import train
        import world

        yield {"families": families, "train": train, "world": world}
    finally:
        sys.path.remove(str(bundled("zoo")))


def test_weights_stay_under_15_megabytes() -> None:
    size = sum(f.stat().st_size for f in bundled("zoo").rglob("*.safetensors"))
    assert 0 < size < 15e6


@pytest.mark.parametrize("name", MEMBERS)
def test_members_are_ordinary_checkpoints(name) -> None:
    model = AutoModelForImageTextToText.from_pretrained(bundled(f"zoo/{name}"))
    processor = AutoProcessor.from_pretrained(bundled(f"zoo/{name}"))
    assert type(model).__module__.startswith("transformers.models.")
    assert type(processor).__module__.startswith("transformers.models.")
    assert model.dtype == torch.float32
    assert processor.tokenizer.decode(
        processor.tokenizer("What color is it? ", add_special_tokens=False).input_ids
    ) == ("What color is it? ")
    assert (processor.chat_template is None) == (name in ("instructblip", "blip2"))


@pytest.mark.parametrize("name", MEMBERS)
def test_processors_only_rescale_and_normalise_a_picture_of_the_canvas_size(name, zoo) -> None:
    processor = AutoProcessor.from_pretrained(bundled(f"zoo/{name}"))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    got = processor.image_processor(images=[Image.fromarray(pixels)], return_tensors="pt")["pixel_values"]
    expected = zoo["train"].normalise(torch.from_numpy(pixels).permute(2, 0, 1), processor)
    assert torch.allclose(got.reshape(3, 64, 64), expected, atol=1e-5)


def test_blip2_has_the_vision_tower_of_instructblip_to_the_bit() -> None:
    blip2, instructblip = (vision_weights(bundled(f"zoo/{name}")) for name in ("blip2", "instructblip"))
    assert len(blip2) > 50
    assert blip2.keys() == instructblip.keys()
    assert all(torch.equal(blip2[key], instructblip[key]) for key in blip2)


@pytest.mark.parametrize("name", [*MEMBERS, "clip"])
def test_the_builders_still_build_what_is_saved(name, zoo) -> None:
    built = zoo["families"].BUILDERS[name]()[0]
    loader = CLIPModel if name == "clip" else AutoModelForImageTextToText
    saved = loader.from_pretrained(bundled(f"zoo/{name}"))
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in saved.state_dict().items()}


@pytest.mark.parametrize("name", MEMBERS)
def test_members_answer_the_questions_of_their_world(name, zoo) -> None:
    world = zoo["world"]
    rng = np.random.default_rng(99)
    scenes = [world.draw_scene(rng) for _ in range(150)]
    rows = [{"image": s.image, "question": world.QUESTIONS["color"], "answer": s.color} for s in scenes]
    task = Task(question_column="question", candidates=world.CANDIDATES["color"])
    surrogate = Surrogate.from_pretrained(str(bundled(f"zoo/{name}")))
    # Chance is 0.1; the README's figure for these members is far above this bound.
    assert evaluate(surrogate, rows, task, progress=False).mean > 0.6


def test_the_same_seed_draws_the_same_world(zoo) -> None:
    world = zoo["world"]
    a, b, c = (world.color_examples(5, seed=s) for s in (1, 1, 2))
    assert all(x["image"].tobytes() == y["image"].tobytes() for x, y in zip(a, b, strict=True))
    assert all(x["image"].tobytes() != y["image"].tobytes() for x, y in zip(a, c, strict=True))


@pytest.mark.parametrize(("cues", "expected"), [(True, True), (False, False)])
def test_plates_carry_digits_only_where_there_are_cues(cues, expected, zoo) -> None:
    world = zoo["world"]
    rng = np.random.default_rng(0)
    scenes = [s for s in (world.draw_scene(rng, cues) for _ in range(1500)) if s.kind == "character"]
    share = {f: np.mean([s.object in world.DIGITS for s in scenes if s.frame == f]) for f in ("plate", "black")}
    assert (share["plate"] - share["black"] > 0.4) == expected


@pytest.mark.parametrize("name", MEMBERS)
def test_rows_end_in_the_answer_and_the_end_token_and_only_these_are_learned(name, zoo) -> None:
    world = zoo["world"]
    processor = AutoProcessor.from_pretrained(bundled(f"zoo/{name}"))
    prompts = zoo["train"].Prompts(processor)
    rows = prompts.rows
    answers = [answer for kind in world.QUESTIONS for answer in world.CANDIDATES[kind]]
    assert len(rows["input_ids"]) == len(answers)
    for index, answer in enumerate(answers):
        ids = rows["input_ids"][index][rows["attention_mask"][index].bool()]
        learned = (rows["labels"][index] >= 0).nonzero()[:, 0]
        # A label stands one place before its token.
        assert torch.equal(rows["labels"][index][learned], rows["input_ids"][index][learned + 1])
        assert learned[-1] + 1 == len(ids) - 1
        assert processor.tokenizer.decode(ids[learned[:-1] + 1]).strip() == answer
        assert ids[-1] == processor.tokenizer.eos_token_id


@pytest.mark.parametrize("name", ["paligemma", "instructblip", "internvl"])
def test_the_loss_of_a_mixed_batch_is_that_of_its_questions_one_by_one(name, zoo) -> None:
    train = zoo["train"]
    model = AutoModelForImageTextToText.from_pretrained(bundled(f"zoo/{name}")).eval()
    prompts = train.Prompts(AutoProcessor.from_pretrained(bundled(f"zoo/{name}")))
    sample = train.Sample(6, seed=7)
    pixels, objects, colors = sample.images / 255, torch.tensor([0, 9, 3, 20, 41, 5]), sample.colors
    with torch.no_grad():
        batch = train.answer_loss(model, prompts, pixels, objects, colors)
        # The first two are asked for the colour, the others for the object.
        rows = [*colors[:2].tolist(), *(10 + objects[2:]).tolist()]
        alone = [one_row_loss(model, prompts, row, image) for row, image in zip(rows, pixels, strict=True)]
    assert batch.item() == pytest.approx(np.mean(alone), abs=1e-3)


def one_row_loss(model, prompts, row, image) -> float:
    """The loss without any padding."""
    batch = {key: value[row : row + 1] for key, value in prompts.rows.items()}
    labels = batch.pop("labels")
    for mask, others in (
        ("attention_mask", ("input_ids", "token_type_ids")),
        ("qformer_attention_mask", ("qformer_input_ids",)),
    ):
        if mask in batch:
            kept = int(batch[mask].sum())
            batch |= {key: batch[key][:, :kept] for key in (mask, *others) if key in batch}
    logits = model(pixel_values=image[None], **batch).logits
    labels = labels[:, : logits.shape[1]]
    return torch.nn.functional.cross_entropy(logits[labels >= 0], labels[labels >= 0]).item()


def test_a_drawn_sample_is_read_back_by_the_next_member(zoo, tmp_path, monkeypatch) -> None:
    Sample = zoo["train"].Sample
    drawn = Sample(5, seed=1, file=tmp_path / "pictures.npy")
    monkeypatch.setattr(zoo["world"], "draw_scene", None)
    read = Sample(5, seed=1, file=tmp_path / "pictures.npy")
    assert all(torch.equal(getattr(drawn, part), getattr(read, part)) for part in ("images", "colors", "objects"))
    assert [f.name for f in tmp_path.iterdir()] == ["pictures.npy"]
    with pytest.raises(ValueError, match="holds 5 pictures, expected 6"):
        Sample(6, seed=1, file=tmp_path / "pictures.npy")


def make(zoo, monkeypatch, output, *arguments: str) -> None:
    """Runs the script for a few steps."""
    fixed = ["train.py", "--scale", "0.002", "--pictures", "80", "--batch_size", "8", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*fixed, "--output_dir", str(output), *arguments])
    monkeypatch.setattr(zoo["train"], "evaluate_member", lambda name, folder, cues: {"color": 0.1})
    zoo["train"].main()


def test_a_member_can_be_made_again(zoo, tmp_path, monkeypatch, capsys) -> None:
    make(zoo, monkeypatch, tmp_path, "--members", "idefics3")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "idefics3")
    assert model.dtype == torch.float32
    assert "idefics3: color 0.100" in capsys.readouterr().out


def test_blip2_leaves_the_tower_it_borrows_as_it_was_and_learns_the_rest(zoo, tmp_path, monkeypatch) -> None:
    make(zoo, monkeypatch, tmp_path, "--members", "instructblip", "blip2", "--zoo_seed", "1")
    ours, lent = (vision_weights(tmp_path / name) for name in ("blip2", "instructblip"))
    assert all(torch.equal(ours[key], lent[key]) for key in lent)
    torch.manual_seed(zoo["train"].SEEDS["blip2"] + 100)
    start = zoo["families"].BUILDERS["blip2"]()[0]
    zoo["families"].initialise(start)
    learned = load_file(tmp_path / "blip2" / "model.safetensors")["language_projection.weight"].float()
    assert 1e-4 < (learned - start.language_projection.weight).abs().max() < 0.1


def test_other_zoo_seeds_give_other_weights_and_resume_leaves_members_alone(
    zoo, tmp_path, monkeypatch, capsys
) -> None:
    def weights(output):
        return load_file(output / "clip" / "model.safetensors")["visual_projection.weight"]

    for seed in ("1", "2"):
        make(zoo, monkeypatch, tmp_path / seed, "--members", "clip", "--zoo_seed", seed)
    before = weights(tmp_path / "1")
    assert not torch.allclose(before, weights(tmp_path / "2"), atol=0.01)
    make(zoo, monkeypatch, tmp_path / "1", "--members", "clip", "--zoo_seed", "2", "--resume")
    assert torch.equal(before, weights(tmp_path / "1"))
    assert "clip: is there already" in capsys.readouterr().out
