"""The paper's protocol, against its released code restated in plain torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_clip
import tiny_paper
import torch
import torchvision
import yaml
from tiny_paper import Released, standardised
from tiny_training import BORDER, CANVAS, new_prompt
from torchvision.transforms.functional import to_tensor
from transformers import TrainerCallback

from transferable_vp import (
    Surrogate,
    Task,
    TaskSemantics,
    TransferableVisualPrompt,
    TransferableVisualPromptConfig,
    TransferableVisualPromptTrainer,
    score_candidates,
)
from transferable_vp.answers import answer_loss
from transferable_vp.paper import (
    PAPER_RECIPE,
    PaperSurrogate,
    flags,
    load_rows,
    paper_arguments,
    paper_form,
    paper_surrogate,
)
from transferable_vp.training_args import RECIPES


CONTENT = CANVAS - 2 * BORDER
NAMES = ["cat", "seven", "blue square", "red"]
QUESTION = "This is a photo of a"
FORMS = ["minigpt4", "vpgtrans", "instructblip", "blip2", "bliva"]

pair = functools.cache(tiny_paper.build)


def rows(count: int) -> list[dict[str, Any]]:
    """Pictures as large as the content, so that nothing is resized: resizing is not what is compared here."""
    return [{"image": tiny.picture(CONTENT, CONTENT, seed=i), "label": i % len(NAMES)} for i in range(count)]


class SeedEveryStep(TrainerCallback):
    """So that both loops mirror the same images."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.manual_seed(state.global_step)


def released_loop(
    model: Released, clip: Any, tokenizer: Any, data: Sequence[dict[str, Any]], epochs: int, batch: int, lr: float
) -> torch.Tensor:
    """`train_with_prompt` of transfer_cls.py: three image encodes a step, a prompt repeated for every sample, no clamp;
    the gradient over its norm on the whole canvas, then the mask, then the rate; the rate a cosine over epochs."""
    dtype = model.model.dtype
    mean, std = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    mask = torch.ones(3, CANVAS, CANVAS, dtype=dtype)
    mask[:, BORDER : CANVAS - BORDER, BORDER : CANVAS - BORDER] = 0
    perturbation = torch.nn.Parameter(torch.zeros(3, CANVAS, CANVAS, dtype=dtype))
    optimizer = torch.optim.SGD([perturbation], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    flip = torchvision.transforms.RandomHorizontalFlip()
    step = 0
    for _ in range(epochs):
        rate = optimizer.param_groups[0]["lr"]
        for begin in range(0, len(data), batch):
            part = data[begin : begin + batch]
            torch.manual_seed(step)
            images = torch.stack([to_tensor(flip(row["image"])) for row in part]).to(dtype)
            names, questions = [NAMES[row["label"]] for row in part], [QUESTION] * len(part)
            padded = torch.nn.functional.pad(images, (BORDER,) * 4)
            clean = model.encode_img(standardised(padded, mean, std), questions)
            noise = perturbation.repeat(len(part), 1, 1, 1)
            noise.retain_grad()
            pixels = standardised(padded + noise, mean, std)
            main = model.loss(model.encode_img(pixels, questions), questions, names)
            fca = torch.norm(model.encode_img(pixels, questions) - clean, dim=-1).mean()
            captions = tokenizer([f"this is a photo of a {name}" for name in names], padding=True, return_tensors="pt")
            image, text = (
                clip.get_image_features(pixels).pooler_output,
                clip.get_text_features(**captions).pooler_output,
            )
            image, text = image / image.norm(dim=-1, keepdim=True), text / text.norm(dim=-1, keepdim=True)
            tse = torch.diag(clip.logit_scale.exp() * image @ text.T).mean()
            (main + 0.005 * fca - 0.001 * tse).backward()
            gradient = noise.grad.mean(0)
            gradient = gradient / (torch.norm(gradient.view(-1)) + 1e-10)
            perturbation.data = perturbation.data - gradient * mask * rate
            optimizer.zero_grad()
            step += 1
        # There is no gradient left: it only tells the schedule that its optimizer has run.
        optimizer.step()
        schedule.step()
    return perturbation.data


@functools.cache
def surrogate(form: str) -> PaperSurrogate:
    """The same for all tests, as nothing may change it."""
    return PaperSurrogate(*pair(form), name=form)


class TestTraining:
    def test_fifty_steps_of_the_released_loop(self, tmp_path: Path) -> None:
        """Five epochs of ten batches at the paper's rate and weights, mirrored images included.

        The models are in float64: in float32 the loops add up in another order, and fifty steps of rate 10 end 2e-5
        apart. The prompt itself and the losses are in float32 here, as always, and in float64 there.
        """
        model, processor = tiny_paper.build("minigpt4")
        clip, clip_processor = tiny_clip.build_clip()
        model, clip = model.double(), clip.double()
        data = rows(40)
        trainer = TransferableVisualPromptTrainer(
            model=new_prompt(value_range=PAPER_RECIPE["value_range"]),
            args=paper_arguments(
                # Left out, it would be less on this canvas, which is smaller than the paper's.
                str(tmp_path), learning_rate=10.0,
                num_train_epochs=5, per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True,
                train_sampling_strategy="sequential", save_strategy="no", logging_steps=1,
            ),
            surrogates=paper_surrogate(Surrogate(model, processor)), train_dataset=data,
            task=Task(answer_column="label", candidates=NAMES, flip=True),
            semantics=TaskSemantics(clip, clip_processor), callbacks=[SeedEveryStep()],
        )  # fmt: skip
        trainer.train()
        released = released_loop(
            Released("minigpt4", model, processor), clip, clip_processor.tokenizer, data, epochs=5, batch=4, lr=10.0
        )
        learned = trainer.model.delta.detach()
        assert released.abs().max() > 1 and ((released < 0) | (released > 1)).float().mean() > 0.2
        torch.testing.assert_close(learned.double(), released, rtol=0, atol=1e-5)
        rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
        assert rates[::10] == pytest.approx([5 * (1 + math.cos(math.pi * epoch / 5)) for epoch in range(5)])


QUESTIONS = [QUESTION, "Is there a cat in the picture?", "How many?"]


def canvases() -> torch.Tensor:
    """Canvases as large as the models' images, with values that no image has."""
    return 3 * torch.rand(3, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, generator=torch.Generator().manual_seed(0)) - 1


def pixels_of(form: str, canvas: torch.Tensor) -> torch.Tensor:
    image_processor = pair(form)[1].image_processor
    return standardised(canvas, image_processor.image_mean, image_processor.image_std)


@pytest.mark.parametrize("form", FORMS)
class TestInputs:
    def test_the_loss_is_the_released_one(self, form: str) -> None:
        released, canvas = Released(form, *pair(form)), canvases().requires_grad_()
        names = ["red", "a blue square", "cat"]
        output = surrogate(form).forward(canvas, QUESTIONS, names, unbounded=True, with_features=True)
        (gradient,) = torch.autograd.grad(answer_loss(output), canvas)
        again = canvases().requires_grad_()
        image = released.encode_img(pixels_of(form, again), QUESTIONS)
        loss = released.loss(image, QUESTIONS, names)
        (expected,) = torch.autograd.grad(loss, again, retain_graph=True)
        torch.testing.assert_close(answer_loss(output), loss, rtol=0, atol=1e-5)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
        # FCA compares what the language model reads: behind the projection.
        torch.testing.assert_close(output.features, image.flatten(0, 1), rtol=0, atol=1e-4)

    def test_features_of_the_clean_side(self, form: str) -> None:
        features = surrogate(form).features(canvases(), QUESTIONS, unbounded=True)
        expected = Released(form, *pair(form)).encode_img(pixels_of(form, canvases()), QUESTIONS)
        torch.testing.assert_close(features, expected.detach().flatten(0, 1), rtol=0, atol=1e-4)

    @torch.no_grad()
    def test_scores_are_the_released_ones(self, form: str) -> None:
        released, canvas = Released(form, *pair(form)), canvases()
        images = [tiny.picture(seed=0)] * 3  # not looked at
        scores = score_candidates(surrogate(form), images, QUESTIONS, [NAMES] * 3, canvas)
        expected = released.scores(released.encode_img(pixels_of(form, canvas), QUESTIONS), QUESTIONS, NAMES)
        torch.testing.assert_close(torch.stack(scores), expected, rtol=0, atol=1e-4)

    @torch.no_grad()
    def test_scores_of_8_bit_images(self, form: str) -> None:
        released = Released(form, *pair(form))
        images = [tiny.picture(tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, seed=i) for i in range(3)]
        scores = score_candidates(surrogate(form), images, QUESTIONS, [NAMES] * 3)
        pixels = pixels_of(form, torch.stack([to_tensor(image) for image in images]))
        expected = released.scores(released.encode_img(pixels, QUESTIONS), QUESTIONS, NAMES)
        torch.testing.assert_close(torch.stack(scores), expected, rtol=0, atol=1e-4)


class TestTokens:
    """The inputs themselves, for what numbers alone would not show."""

    @pytest.mark.parametrize("form", FORMS)
    def test_what_goes_before_an_answer(self, form: str) -> None:
        model, processor = pair(form)
        own, ids = surrogate(form), functools.partial(processor.tokenizer, add_special_tokens=False)
        image, question = [model.config.image_token_id] * tiny.QUERIES, ids(QUESTION).input_ids
        begin, end = processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id
        patches = [model.config.image_token_id] * tiny.IMAGE_TOKENS
        wrapped = [begin, *ids("<Img>").input_ids, *image, *ids("</Img>").input_ids, *question]
        ranking = wrapped if form in ("minigpt4", "vpgtrans") else [*image, *question]
        loss = {
            "instructblip": [*image, end, *question],
            "bliva": [*image, *patches, end, *question],
            "blip2": [*image, *question, end],
        }.get(form, wrapped)
        assert own.question_ids(QUESTION) == ranking
        with own._learning():
            assert own.question_ids(QUESTION) == loss
        assert own.question_ids(QUESTION) == ranking

    @pytest.mark.parametrize("form", FORMS)
    def test_what_closes_an_answer(self, form: str) -> None:
        own, tokenizer = surrogate(form), pair(form)[1].tokenizer
        inputs = own.encode([tiny.picture()], [QUESTION])
        labels = own.append_answers(inputs, [QUESTION], ["cat"])[2]
        closing = {"minigpt4": "\n", "vpgtrans": "###"}.get(form, "</s>")
        assert tokenizer.decode(labels[labels != -100]) == f"cat{closing}"
        labels = own.append_answers(inputs, [QUESTION], ["cat"], end=False)[2]
        assert tokenizer.decode(labels[labels != -100]) == "cat"

    def test_visualglm(self) -> None:
        pytest.importorskip("sentencepiece")
        from models.tiny_visualglm import build_visualglm

        model, processor = build_visualglm()
        own, tokenizer = PaperSurrogate(model, processor), processor.tokenizer
        assert own.form == "visualglm"

        def ids(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False)

        image = [tokenizer.unk_token_id] * tiny.QUERIES
        context = [*ids("<img>"), *image, *ids(f"</img> {QUESTION}"), tokenizer.gmask_token_id, tokenizer.bos_token_id]
        inputs = own.encode([tiny.picture()], [QUESTION])
        assert inputs["input_ids"][0].tolist() == context
        # Nothing closes an answer.
        longer, _, labels = own.append_answers(inputs, [QUESTION], ["cat"])
        assert longer["input_ids"][0].tolist() == [*context, *ids("cat")]
        assert labels[labels != -100].tolist() == ids("cat")
        scores = score_candidates(own, [tiny.picture()], [QUESTION], [NAMES])[0]
        pixels = processor.image_processor(tiny.picture(), return_tensors="pt").pixel_values
        for score, name in zip(scores, NAMES, strict=True):
            answer = ids(name)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([context + answer]), pixel_values=pixels).logits[0]
            expected = logits[len(context) - 1 : -1].log_softmax(-1)[torch.arange(len(answer)), answer].mean()
            torch.testing.assert_close(score, expected, rtol=0, atol=1e-4)

    def test_long_questions_are_cut_in_the_loss_only(self) -> None:
        long = " ".join(["square"] * 200)
        for form, longest in (("instructblip", 128), ("blip2", 32)):
            own, ids = surrogate(form), pair(form)[1].tokenizer(long, add_special_tokens=False).input_ids
            end = pair(form)[1].tokenizer.eos_token_id
            assert own.question_ids(long)[tiny.QUERIES :] == ids
            with own._learning():
                cut = own.question_ids(long)[tiny.QUERIES :]
            expected = [end, *ids[-longest + 1 :]] if form == "instructblip" else [*ids[: longest - 1], end]
            assert cut == expected and len(cut) == longest

    def test_an_empty_answer(self) -> None:
        own = surrogate("minigpt4")
        with pytest.raises(ValueError, match="at least one visible character"):
            own.append_answers(own.encode([tiny.picture()], [QUESTION]), [QUESTION], [" "])


class TestForms:
    @pytest.mark.parametrize("form", FORMS)
    def test_is_found(self, form: str) -> None:
        assert paper_form(pair(form)[0]) == form
        made = paper_surrogate(Surrogate(*pair(form), name="mine"))
        assert isinstance(made, PaperSurrogate) and (made.form, made.name) == (form, "mine")

    def test_minigpt4_and_vpgtrans_cannot_be_told_apart(self) -> None:
        model, processor = tiny_paper.build("minigpt4")
        del model.config.paper_model
        with pytest.raises(
            ValueError, match=r'may be MiniGPT-4 or VPGTrans.*"paper_model": "minigpt4".*or give `form`'
        ):
            PaperSurrogate(model, processor)
        assert PaperSurrogate(model, processor, form="vpgtrans").form == "vpgtrans"

    def test_the_mark_is_kept_with_the_model(self, tmp_path: Path) -> None:
        model, processor = pair("vpgtrans")
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        assert PaperSurrogate.from_pretrained(str(tmp_path)).form == "vpgtrans"

    @pytest.mark.parametrize("family", ["llava", "blip-2"])
    def test_other_models_keep_their_template(self, family: str, caplog: pytest.LogCaptureFixture) -> None:
        plain = Surrogate(*tiny.build(family), name="other")
        assert paper_surrogate(plain) is plain
        assert f"other ({family}) is none of the paper's six models" in caplog.text
        with pytest.raises(ValueError, match=f"A {family} model is none of the paper's"):
            PaperSurrogate(plain.model, plain.processor)

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match="`form` is 'gpt5'; expected one of minigpt4, vpgtrans"):
            PaperSurrogate(*pair("minigpt4"), form="gpt5")
        with pytest.raises(ValueError, match="`prompt_template` is given"):
            PaperSurrogate(*pair("minigpt4"), prompt_template="{question}")
        model, _ = tiny_paper.build("minigpt4")
        model.config.paper_model = "gpt5"
        with pytest.raises(ValueError, match="`paper_model` is 'gpt5' in the configuration"):
            paper_form(model)


class TestRecipe:
    def test_the_readme_line(self, tmp_path: Path) -> None:
        args = paper_arguments(str(tmp_path))
        assert (args.recipe, args.update_rule) == ("paper", "paper")
        assert (args.task_weight, args.fca_weight, args.tse_weight) == (1, 0.005, 0.001)
        assert (args.num_train_epochs, args.per_device_train_batch_size, args.seed) == (1, 16, 42)
        # No CLIP is needed to see the rate.
        args = paper_arguments(str(tmp_path), tse_weight=0.0, use_cpu=True)
        trainer = TransferableVisualPromptTrainer(
            model=new_prompt(canvas_size=PAPER_RECIPE["canvas_size"]), args=args, surrogates=surrogate("minigpt4"),
            train_dataset=rows(1), task=Task(answer_column="label", candidates=NAMES),
        )  # fmt: skip
        assert trainer.args.learning_rate == 10
        assert paper_arguments(str(tmp_path), learning_rate=200.0, seed=0).learning_rate == 200
        # Another rule has a rate of its own.
        assert paper_arguments(str(tmp_path), update_rule="adam").learning_rate == 0.1

    def test_nothing_is_said_twice(self) -> None:
        assert not PAPER_RECIPE.keys() & RECIPES["paper"].keys()

    def test_settings_as_flags(self) -> None:
        words = flags({"model": ["a", "b c"], "none": None, "empty": [], "lr": 10.0, "flip": True, "more": {"x": 1}})
        assert words == ["--model", "a", "b c", "--lr", "10.0", "--flip", "True", "--more", '{"x": 1}']

    def test_yes_and_no_without_quotes(self) -> None:
        with pytest.raises(ValueError, match=r"`candidates` is \[True, False\]: .* quotes"):
            flags(yaml.safe_load("candidates: [yes, no]"))

    def test_the_canvas(self) -> None:
        names = ("canvas_size", "border_size", "layout", "fit", "value_range")
        config = TransferableVisualPromptConfig(**{name: PAPER_RECIPE[name] for name in names})
        prompt = TransferableVisualPrompt(config)
        assert (config.content_size, config.value_range) == (164, "unbounded")
        assert int(prompt.trainable_mask.sum()) * 3 == 69840

    def test_rows_of_a_task_and_of_a_dataset(self, tmp_path: Path) -> None:
        import hub_schemas

        hub_schemas.made("cifar10").to_parquet(tmp_path / "rows.parquet")
        data, task = load_rows("cifar10", str(tmp_path / "rows.parquet"), "train", flip=False, question=None)
        assert len(data) == 4 and task.flip and task.question == QUESTION and len(task.candidates) == 10
        data, task = load_rows("cifar10", str(tmp_path / "rows.parquet"), "train[:2]", question="What is it?")
        assert len(data) == 2 and task.question == "What is it?"
        data, task = load_rows(None, str(tmp_path / "rows.parquet"), "train", question_column=None)
        assert not task.flip and task.image_column == "img"
        with pytest.raises(ValueError, match="give `dataset`, or a `task` of the paper"):
            load_rows(None, None, "train")
        with pytest.raises(ValueError, match="`dataset_name` is 'plain', but the task cifar10 knows its own"):
            load_rows("cifar10", None, "train", "plain")
