"""Clean image features: those of the surrogate, kept within bounds, and never those of another image."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
import tiny
import torch
from by_hand import T5
from PIL import ImageOps
from tiny_training import dataset, delta, make_trainer, new_prompt, surrogate

from transferable_vp import FeatureConsistency, Objective, Step, Surrogate, Task, random_prompt
from transferable_vp.clean_features import CleanFeatures


QUESTIONS = ["What is it?", "Which colour is the square?", "What is it?"]
PICTURES = [tiny.picture(24, 20, seed=seed) for seed in range(3)]


def encodes(model: Surrogate, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fills with the number of images of every call of `features`."""
    calls: list[int] = []
    plain = model.features

    def counted(canvas: torch.Tensor, *args: object) -> torch.Tensor:
        calls.append(len(canvas))
        return plain(canvas, *args)

    monkeypatch.setattr(model, "features", counted)
    return calls


@pytest.mark.parametrize("family", [*tiny.FAMILIES, T5])
@pytest.mark.parametrize("canvas", ["fixed", "native"])
def test_kept_features_are_those_of_each_image(
    family: str, surrogates: Callable[[str], Surrogate], canvas: str
) -> None:
    model, prompt = surrogates(family), new_prompt(canvas=canvas)
    fitted = prompt.fitted(PICTURES)
    (expected,) = CleanFeatures([model])(prompt, fitted, QUESTIONS)
    torch.testing.assert_close(model.features(prompt(PICTURES, prompted=False), QUESTIONS), expected)
    kept = CleanFeatures([model], limit=1e9)
    # Others beside each image than at the end: whose features are whose must not depend on it.
    for rows in ([1], [2, 0]):
        kept(prompt, [fitted[row] for row in rows], [QUESTIONS[row] for row in rows])
    (found,) = kept(prompt, fitted, QUESTIONS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_image_is_encoded_once_with_each_question_and_each_mirroring(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = surrogate("instructblip"), new_prompt()
    calls, kept = encodes(model, monkeypatch), CleanFeatures([model], limit=1e9)
    fitted = prompt.fitted(PICTURES)
    kept(prompt, fitted, QUESTIONS)
    (first,) = kept(prompt, fitted[:1], QUESTIONS[:1])
    assert calls == [3]
    (other,) = kept(prompt, fitted[:1], QUESTIONS[1:2])
    (mirrored,) = kept(prompt, prompt.fitted([ImageOps.mirror(PICTURES[0])]), QUESTIONS[:1])
    assert calls == [3, 1, 1]
    assert not torch.allclose(other, first) and not torch.allclose(mirrored, first)


def test_memory_is_bounded_and_what_is_kept_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = surrogate("llava"), new_prompt()
    fitted = prompt.fitted(PICTURES)
    (one,) = CleanFeatures([model])(prompt, fitted[:1], QUESTIONS[:1])
    calls, kept = encodes(model, monkeypatch), CleanFeatures([model], limit=2.5 * one.nbytes)
    for _ in range(2):
        for image, question in zip(fitted, QUESTIONS, strict=True):
            kept(prompt, [image], [question])
    assert calls == [1, 1, 1, 1]
    assert kept.nbytes == 2 * one.nbytes
    assert sum(part.untyped_storage().nbytes() for part in kept._kept.values()) == kept.nbytes


def test_half_precision_is_kept_in_half_precision() -> None:
    model = Surrogate(*tiny.build("llava"))
    model.model.to(torch.bfloat16)
    prompt, kept = new_prompt(), CleanFeatures([model], limit=1e9)
    fitted = prompt.fitted(PICTURES[:1])
    (first,) = kept(prompt, fitted, QUESTIONS[:1])
    (second,) = kept(prompt, fitted, QUESTIONS[:1])
    assert first.dtype == second.dtype == torch.float32 and torch.equal(first, second)
    assert kept.nbytes == first.nbytes // 2


def test_a_run_with_a_cache_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "train_dataset": dataset(4),
        "max_steps": 4,
        "fca_weight": 1.0,
        "task": Task.infer(dataset(4), flip=True),
    }
    deltas = []
    for cache in (0.0, 1.0):
        trainer = make_trainer(tmp_path, clean_features_cache=cache, **settings)
        calls = encodes(trainer.surrogates[0], monkeypatch)
        trainer.train()
        deltas.append(delta(trainer))
    assert sum(calls) <= 8  # four images and their mirror images, of 16
    torch.testing.assert_close(deltas[1], deltas[0], rtol=1e-4, atol=1e-4)


def test_a_limit_below_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`clean_features_cache` is -1 GB; it cannot be negative"):
        make_trainer(tmp_path, clean_features_cache=-1)


@pytest.mark.parametrize("config", [{}, {"fit": "contain"}, {"fit": "stretch"}, {"canvas": "native"}])
def test_fitted_pictures_make_the_same_canvases(config: dict[str, str]) -> None:
    prompt = new_prompt(**config)
    pictures = [tiny.picture(50, 31, seed=3), tiny.picture(20, 20, seed=4)]
    fitted = prompt.fitted(pictures)
    for prompted in (True, False):
        pairs = zip(prompt(fitted, prompted=prompted), prompt(pictures, prompted=prompted), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


class Compared:
    """An objective that notes what FCA would be, and asks for nothing."""

    needs_features = True

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, step: Step) -> torch.Tensor:
        self.seen.append(FeatureConsistency()(step).item())
        return 0 * step.canvas[0].mean()


@pytest.mark.parametrize("more", [{}, {"diversity_brightness": 1e-9}, {"clean_features_cache": 1.0}])
def test_a_fraction_is_of_images_that_are_drawn_anew_in_each_step(
    more: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, compared = random_prompt(new_prompt(), seed=0), Compared()
    trainer = make_trainer(
        tmp_path, model=prompt, train_dataset=dataset(4), max_steps=12, fca_weight=0.0, fca_fraction=0.5,
        learning_rate=0.0, objectives=[Objective("compared", compared)], **more,
    )  # fmt: skip
    calls = encodes(trainer.surrogates[0], monkeypatch)
    trainer.train()
    if "clean_features_cache" in more:
        assert sum(calls) == 4
    else:
        assert calls == [2] * 12
    # The distance of every image by itself: what is seen is the mean of some two of them.
    model, question = trainer.surrogates[0], [trainer.task.question]
    distances = []
    for picture in dataset(4)["image"]:
        output = model.forward(prompt([picture]), question, ["one"], with_features=True)
        clean = model.features(prompt([picture], prompted=False), question)
        distances.append((output.features - clean).norm(dim=-1).mean().item())
    pairs = torch.tensor([(one + other) / 2 for one, other in combinations(distances, 2)])
    nearest = (torch.tensor(compared.seen)[:, None] - pairs).abs().min(1)
    torch.testing.assert_close(nearest.values, torch.zeros(12), rtol=0, atol=1e-5)
    assert len(set(nearest.indices.tolist())) > 2


def test_evaluation_compares_all(tmp_path: Path) -> None:
    compared = Compared()
    trainer = make_trainer(tmp_path, fca_fraction=0.25, objectives=[Objective("compared", compared)])
    trainer.model.eval()
    batch = trainer.data_collator([dataset(4)[row] for row in range(4)])
    _, step = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    (clean,), (output,) = step.clean_features, step.outputs
    assert clean.shape == output.features.shape
    trainer.model.train()
    _, step = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert len(step.clean_features[0]) == len(step.outputs[0].features) == len(clean) // 4


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5])
def test_a_fraction_that_is_none_is_refused(fraction: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`fca_fraction` is {fraction}; it must be above 0 and at most 1"):
        make_trainer(tmp_path, fca_fraction=fraction)


def test_a_fraction_of_native_canvases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`fca_fraction` is 0\.5 and the canvas is native"):
        make_trainer(tmp_path, model=new_prompt(canvas="native"), fca_fraction=0.5)
