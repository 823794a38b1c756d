"""A frozen model seen as answer logits and image features: against what its own processor and forward pass give."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from by_hand import T5, answer_losses
from tiny import make_canvas
from transformers import PreTrainedModel, ProcessorMixin

from transferable_vp import surrogate as surrogate_module
from transferable_vp.answers import SurrogateOutput, answer_loss
from transferable_vp.images import to_pil
from transferable_vp.surrogate import Surrogate


Pair = tuple[PreTrainedModel, ProcessorMixin]
QUESTIONS = ["What is it?", "Which colour is the square in the picture, and why is it so?", "Is there a cat?"]
ANSWERS = ["red", "a blue square", "yes"]
all_families = pytest.mark.parametrize("family", [*tiny.FAMILIES, T5])
decoders = pytest.mark.parametrize("family", tiny.FAMILIES)


def token_losses(output: SurrogateOutput, row: int = 0) -> torch.Tensor:
    """Cross-entropy of every answer token of a row."""
    kept = output.labels[row] != -100
    return F.cross_entropy(output.logits[row][kept].float(), output.labels[row][kept], reduction="none")


class TestAnswers:
    @all_families
    @pytest.mark.parametrize("answer", ["red", "a blue square"])
    def test_the_loss_is_that_of_the_text_written_out(
        self, family: str, surrogate: Surrogate, own_pair: Callable[[str], Pair], answer: str
    ) -> None:
        canvas = make_canvas()
        expected = answer_losses(family, own_pair(family), to_pil(canvas[0]), QUESTIONS[0], answer)
        with torch.no_grad():
            output = surrogate.forward(canvas, [QUESTIONS[0]], [answer])
        actual = token_losses(output)
        assert len(actual) == len(expected) >= 3
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(answer_loss(output), expected.mean(), atol=2e-5, rtol=1e-4)
        end = surrogate.processor.tokenizer.eos_token_id
        assert output.labels[output.labels != -100].tolist() == [*surrogate.answer_ids(QUESTIONS[0], answer), end]

    @all_families
    @torch.no_grad()
    def test_a_batch_is_its_rows(self, surrogate: Surrogate) -> None:
        canvas = make_canvas(3)
        batch = surrogate.forward(canvas, QUESTIONS, ANSWERS)
        assert batch.logits.shape[:2] == batch.labels.shape
        assert batch.labels.dtype == torch.int64
        alone = []
        for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
            alone.append(token_losses(surrogate.forward(canvas[row : row + 1], [question], [answer])))
            torch.testing.assert_close(token_losses(batch, row), alone[-1], atol=5e-5, rtol=1e-4)
        # A mean over the tokens of the batch, so that long answers weigh more.
        assert len({len(losses) for losses in alone}) > 1
        torch.testing.assert_close(answer_loss(batch), torch.cat(alone).mean(), atol=5e-5, rtol=1e-4)

    @all_families
    @torch.no_grad()
    def test_padding_to_a_multiple_makes_one_shape_and_changes_nothing(
        self, surrogate: Surrogate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        canvas = make_canvas(3)
        expected = surrogate.forward(canvas, QUESTIONS, ANSWERS, with_features=True)
        clean = surrogate.features(canvas, QUESTIONS)
        # The tiny Q-Former has no more places, and the other texts are longer.
        multiple = 64 if surrogate.config.model_type == "instructblip" else 128
        monkeypatch.setattr(surrogate, "pad_to_multiple_of", multiple)
        found = surrogate.forward(canvas, QUESTIONS, ANSWERS, with_features=True)
        for row in range(3):
            torch.testing.assert_close(token_losses(found, row), token_losses(expected, row), atol=5e-5, rtol=1e-4)
        torch.testing.assert_close(found.features, expected.features, atol=5e-5, rtol=1e-4)
        torch.testing.assert_close(surrogate.features(canvas, QUESTIONS), clean, atol=5e-5, rtol=1e-4)
        shapes: list[dict[str, torch.Size]] = []
        handle = surrogate.model.register_forward_pre_hook(
            lambda _, args, given: shapes.append(
                {k: v.shape for k, v in given.items() if isinstance(v, torch.Tensor)}
            ),
            with_kwargs=True,
        )
        try:
            for row in range(3):
                one = slice(row, row + 1)
                surrogate.forward(canvas[one], QUESTIONS[one], ANSWERS[one])
                surrogate.features(canvas[one], QUESTIONS[one])
        finally:
            handle.remove()
        assert shapes[0::2] == shapes[:1] * 3 and shapes[1::2] == shapes[1:2] * 3

    @all_families
    @torch.no_grad()
    def test_the_answer_cannot_be_seen_before_it_is_given(self, surrogate: Surrogate) -> None:
        canvas = make_canvas()
        one, other = (surrogate.forward(canvas, [QUESTIONS[0]], [answer]) for answer in ("xy", "zw"))
        assert one.logits.shape == other.logits.shape
        places = (one.labels[0] != -100).nonzero().flatten().tolist()
        torch.testing.assert_close(one.logits[0, places[0]], other.logits[0, places[0]], atol=1e-5, rtol=1e-5)
        # While what follows the answer does see it.
        assert (one.logits[0, places[-1]] - other.logits[0, places[-1]]).abs().max() > 0.1

    @torch.no_grad()
    def test_paligemma_would_leak_without_its_row_in_the_table(
        self, surrogates: Callable[[str], Surrogate], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        surrogate = surrogates("paligemma")
        monkeypatch.setattr(surrogate, "family", surrogate.family._replace(answer_token_type=0))
        one, other = (surrogate.forward(make_canvas(), [QUESTIONS[0]], [answer]).logits for answer in ("xy", "zw"))
        assert (one[0, 0] - other[0, 0]).abs().max() > 0.01

    @decoders
    @torch.no_grad()
    def test_the_head_runs_where_answers_are(self, surrogate: Surrogate) -> None:
        lengths = []
        head = surrogate.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
        try:
            output = surrogate.forward(make_canvas(2), [QUESTIONS[0]] * 2, ["red", "a blue square"])
        finally:
            handle.remove()
        # The last position predicts what follows the end token, which nobody asks for, but is computed.
        tokens = output.logits.shape[1]
        assert tokens == max(len(surrogate.answer_ids(QUESTIONS[0], a)) for a in ("red", "a blue square")) + 1
        # Of the tiny ones: BLIP-2's and InstructBLIP's OPT has it, behind a forward that does not name it.
        named = "logits_to_keep" in inspect.signature(surrogate.model.forward).parameters
        if named or (surrogate.config.model_type in ("blip-2", "instructblip") and not surrogate.is_encoder_decoder):
            assert lengths == [tokens + 1]
        else:
            assert lengths[0] > tokens + 1

    @torch.no_grad()
    def test_a_model_that_ignores_logits_to_keep(
        self, own_pair: Callable[[str], Pair], surrogates: Callable[[str], Surrogate], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, processor = own_pair("llava")
        plain = model.forward

        def forward(logits_to_keep: int = 0, **kwargs: Any) -> Any:
            return plain(**kwargs)

        monkeypatch.setattr(model, "forward", forward)
        ignoring = Surrogate(model, processor).forward(make_canvas(2), QUESTIONS[:2], ANSWERS[:2])
        expected = surrogates("llava").forward(make_canvas(2), QUESTIONS[:2], ANSWERS[:2])
        assert torch.equal(ignoring.labels, expected.labels)
        torch.testing.assert_close(ignoring.logits, expected.logits)

    def test_the_loss_is_taken_in_float32(self) -> None:
        logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
        labels = torch.tensor([[4, 7, -100], [1, -100, -100]])
        expected = -logits.float().log_softmax(-1)[[0, 0, 1], [0, 1, 0], [4, 7, 1]].mean()
        loss = answer_loss(SurrogateOutput(logits, labels, None))
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected)


class TestAnswerIds:
    @pytest.mark.parametrize(
        ("family", "expected"),
        [
            ("llava", " red"),  # after "ASSISTANT:"
            ("gemma3", " red"),
            ("idefics3", " red"),
            ("blip-2", " red"),  # after the question itself
            ("qwen2_vl", "red"),  # after a line break
            ("paligemma", "red"),  # its processor ends the text with a line break
            (T5, "red"),  # begins what a decoder of its own reads
        ],
    )
    def test_the_space_before_an_answer(self, surrogate: Surrogate, expected: str) -> None:
        ids = surrogate.answer_ids("What is it?", "red")
        assert surrogate.processor.tokenizer.decode(ids) == expected

    @decoders
    def test_they_are_how_the_whole_text_is_tokenised(self, surrogate: Surrogate) -> None:
        tokenizer = surrogate.processor.tokenizer
        text = tiny.question_text(surrogate.processor, "What is it?")
        if surrogate.config.model_type == "paligemma":
            text += "\n"
        for answer in ("red", "a blue square", "ASSISTANT"):
            ids = surrogate.answer_ids("What is it?", answer)
            whole = text + ("" if text.endswith("\n") else " ") + answer
            assert tokenizer(whole, add_special_tokens=False).input_ids[-len(ids) :] == ids

    def test_questions_that_differ_in_the_line_break_only(self, surrogates: Callable[[str], Surrogate]) -> None:
        surrogate = surrogates("blip-2")
        decode = surrogate.processor.tokenizer.decode
        assert decode(surrogate.answer_ids("Which one", "red")) == " red"
        assert decode(surrogate.answer_ids("Which one\n", "red")) == "red"
        assert decode(surrogate.answer_ids("Which one", "red")) == " red"

    @all_families
    @pytest.mark.parametrize("answer", ["", "  "])
    def test_an_answer_without_a_character(self, surrogate: Surrogate, answer: str) -> None:
        with pytest.raises(ValueError, match="at least one visible character"):
            surrogate.answer_ids("What is it?", answer)

    def test_a_tokenizer_that_merges_across_the_boundary(self, own_pair: Callable[[str], Pair]) -> None:
        model, processor = own_pair("llava")
        words: list[str] = []

        def one_token_a_text(text: str, add_special_tokens: bool) -> SimpleNamespace:
            assert not add_special_tokens
            words.append(text)
            return SimpleNamespace(input_ids=[words.index(text)])

        one_token_a_text.all_special_tokens = []  # type: ignore[attr-defined]
        surrogate = Surrogate(model, processor)
        surrogate.processor = SimpleNamespace(tokenizer=one_token_a_text, apply_chat_template=lambda *_, **__: "Q:",
                                              chat_template="any")  # fmt: skip
        assert [words[i] for i in surrogate.answer_ids("What is it?", "red")] == ["red"]

    def test_no_space_goes_between_a_special_token_and_the_answer(self, own_pair: Callable[[str], Pair]) -> None:
        model, processor = own_pair("llava")
        bare = processor.tokenizer("red", add_special_tokens=False).input_ids
        assert Surrogate(model, processor, prompt_template="<image>{question}</s>").answer_ids("Is it?", "red") == bare
        spaced = Surrogate(model, processor, prompt_template="<image>{question} A:").answer_ids("Is it?", "red")
        assert processor.tokenizer.decode(spaced) == " red"

    def test_an_answer_of_no_token(self, own_pair: Callable[[str], Pair]) -> None:
        surrogate = Surrogate(*own_pair("llava"), name="some-model")

        def nothing(*_: Any, **__: Any) -> SimpleNamespace:
            return SimpleNamespace(input_ids=[])

        nothing.all_special_tokens = []  # type: ignore[attr-defined]
        surrogate.processor = SimpleNamespace(tokenizer=nothing, chat_template="x",
                                              apply_chat_template=lambda *_, **__: "Q:")  # fmt: skip
        with pytest.raises(ValueError, match="some-model makes no token of the answer 'red'"):
            surrogate.answer_ids("What is it?", "red")


class TestFeatures:
    def test_they_are_recorded_only_when_asked_for(self, surrogates: Callable[[str], Surrogate]) -> None:
        assert surrogates("llava").forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1]).features is None

    def test_a_model_without_them(self, own_pair: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch) -> None:
        model, processor = own_pair("llava")
        surrogate = Surrogate(model, processor, name="some-model")

        def forward(input_ids: torch.Tensor, pixel_values: torch.Tensor, **_: Any) -> SimpleNamespace:
            logits = pixel_values.mean() * torch.ones(*input_ids.shape, 5)
            return SimpleNamespace(logits=logits)

        monkeypatch.setattr(model, "forward", forward)
        with pytest.raises(
            ValueError, match=r"some-model \(llava\) gives its image features in no way that is known.*fca_weight=0"
        ):
            surrogate.forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1], with_features=True)
        with pytest.raises(
            ValueError, match=r"some-model \(llava\) gives its image features in no way that is known.*fca_weight=0"
        ):
            surrogate.features(make_canvas(), QUESTIONS[:1])


class TestGradient:
    @all_families
    def test_it_reaches_every_pixel(self, surrogate: Surrogate) -> None:
        canvas = make_canvas(2)
        answer_loss(surrogate.forward(canvas, QUESTIONS[:2], ANSWERS[:2])).backward()
        assert canvas.grad is not None
        assert torch.isfinite(canvas.grad).all()
        assert (canvas.grad != 0).all()
        assert all(parameter.grad is None for parameter in surrogate.model.parameters())

    @decoders
    def test_it_points_downhill(self, surrogate: Surrogate) -> None:
        # The straight path rounds pixel values and has no slope; that of an unbounded prompt has.
        canvas, step = make_canvas(), 1e-3

        def loss(at: torch.Tensor) -> torch.Tensor:
            return answer_loss(surrogate.forward(at, QUESTIONS[:1], ANSWERS[:1], unbounded=True))

        (gradient,) = torch.autograd.grad(loss(canvas), canvas)
        direction = gradient.sign()
        with torch.no_grad():
            measured = (loss(canvas + step * direction) - loss(canvas - step * direction)) / (2 * step)
        torch.testing.assert_close(measured, gradient.abs().sum(), rtol=0.05, atol=0)

    @all_families
    def test_values_are_those_of_the_deployed_image(self, surrogate: Surrogate) -> None:
        canvas = make_canvas(2)
        images = [to_pil(c) for c in canvas]
        deployed = surrogate.encode(images, QUESTIONS[:2])
        trained = surrogate.encode(images, QUESTIONS[:2], canvas)
        assert trained["pixel_values"].requires_grad
        assert deployed.keys() == trained.keys()
        for key, value in deployed.items():
            assert torch.equal(trained[key], value), key
        floats = surrogate.encode(images, QUESTIONS[:2], canvas, unbounded=True)["pixel_values"]
        assert floats.requires_grad
        assert not torch.equal(floats, deployed["pixel_values"])

    @pytest.mark.parametrize("family", ["llava", "qwen2_vl", "instructblip"])
    @pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
    def test_ten_steps_lower_the_loss(self, surrogate: Surrogate, optimizer: type[torch.optim.Optimizer]) -> None:
        canvas = (0.25 + make_canvas(2).detach() / 2).requires_grad_()
        rule = optimizer([canvas], lr=0.02 if optimizer is torch.optim.Adam else 1.0)
        losses = []
        for _ in range(10):
            rule.zero_grad()
            loss = answer_loss(surrogate.forward(canvas, QUESTIONS[:2], ANSWERS[:2]))
            loss.backward()
            losses.append(loss.item())
            rule.step()
            with torch.no_grad():
                canvas.clamp_(0, 1)
        assert losses[-1] < losses[0] - 0.05

    @all_families
    def test_bfloat16(self, own_pair: Callable[[str], Pair], surrogate: Surrogate) -> None:
        model, processor = own_pair(surrogate.name)
        half = Surrogate(model.to(torch.bfloat16), processor)
        canvas = make_canvas()
        output = half.forward(canvas, QUESTIONS[:1], ANSWERS[:1], with_features=True)
        loss = answer_loss(output)
        assert output.features is not None
        (loss + output.features.square().mean()).backward()
        assert output.logits.dtype == torch.bfloat16
        assert loss.dtype == output.features.dtype == torch.float32
        assert canvas.grad is not None
        assert canvas.grad.dtype == torch.float32
        assert torch.isfinite(canvas.grad).all()
        assert (canvas.grad != 0).float().mean() > 0.99
        with torch.no_grad():
            full = answer_loss(surrogate.forward(canvas, QUESTIONS[:1], ANSWERS[:1]))
        torch.testing.assert_close(loss.detach(), full, rtol=0.05, atol=0.05)

    def test_a_model_that_passes_none(self, own_pair: Callable[[str], Pair]) -> None:
        model, processor = own_pair("llava")
        model.model.multi_modal_projector.register_forward_hook(lambda _, __, output: output.detach())
        surrogate = Surrogate(model, processor, name="some-model")
        with pytest.raises(RuntimeError, match=r"No gradient passes.*some-model \(llava\)"):
            surrogate.forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1])
        # It is a target all the same: nobody asks it for a gradient.
        surrogate.forward(make_canvas().detach(), QUESTIONS[:1], ANSWERS[:1])


class TestText:
    @all_families
    def test_inputs_are_those_of_the_plain_processor(
        self, family: str, surrogate: Surrogate, own_pair: Callable[[str], Pair]
    ) -> None:
        images = [tiny.picture(seed=1), tiny.picture(30, 50, seed=2)]
        expected = tiny.question_inputs(own_pair(family)[1], images, QUESTIONS[:2])
        expected.pop("labels", None)
        actual = surrogate.encode(images, QUESTIONS[:2])
        decoder = {"decoder_input_ids", "decoder_attention_mask"} if surrogate.is_encoder_decoder else set()
        assert actual.keys() == dict(expected).keys() | decoder
        for key, value in expected.items():
            assert torch.equal(actual[key], value), key

    @pytest.mark.parametrize("family", ["llava", "blip-2", "instructblip", "paligemma", "gemma3"])
    def test_there_is_one_beginning_token(self, surrogate: Surrogate) -> None:
        tokenizer = surrogate.processor.tokenizer
        begin = {"blip-2": "</s>", "instructblip": "</s>"}.get(surrogate.name, tokenizer.bos_token)
        ids = surrogate.encode([tiny.picture()], QUESTIONS[:1])["input_ids"][0].tolist()
        assert ids.count(tokenizer.convert_tokens_to_ids(begin)) == 1

    def test_a_template_of_ones_own(self, own_pair: Callable[[str], Pair]) -> None:
        model, processor = own_pair("llava")
        surrogate = Surrogate(model, processor, prompt_template="<image>\nQ: {question} {0} A:")
        # Not `str.format`: questions and templates have braces of their own.
        assert surrogate.text("Is it {red}?") == "<image>\nQ: Is it {red}? {0} A:"
        image = tiny.picture()
        expected = processor(images=[image], text=["<image>\nQ: Is it {red}? {0} A:"], return_tensors="pt")
        assert torch.equal(surrogate.encode([image], ["Is it {red}?"])["input_ids"], expected["input_ids"])

    def test_a_template_without_a_question(self, own_pair: Callable[[str], Pair]) -> None:
        with pytest.raises(ValueError, match=r"'USER: <image>'; it must contain '\{question\}'"):
            Surrogate(*own_pair("llava"), prompt_template="USER: <image>")

    def test_a_template_that_begins_with_the_beginning_token(self, own_pair: Callable[[str], Pair]) -> None:
        model, processor = own_pair("llava")
        surrogate = Surrogate(model, processor, prompt_template="<s><image>\n{question}")
        ids = surrogate.encode([tiny.picture()], ["What is it?"])["input_ids"][0].tolist()
        assert ids.count(processor.tokenizer.bos_token_id) == 1

    def test_a_processor_without_a_template(self, own_pair: Callable[[str], Pair]) -> None:
        model, processor = own_pair("llava")
        processor.chat_template = None
        surrogate = Surrogate(model, processor)
        assert surrogate.text("What is it?") == "<image>What is it?"
        canvas = make_canvas()
        answer_loss(surrogate.forward(canvas, ["What is it?"], ["red"])).backward()
        assert canvas.grad is not None
        assert (canvas.grad != 0).all()

    def test_a_processor_with_neither_template_nor_placeholder(self, own_pair: Callable[[str], Pair]) -> None:
        model, processor = own_pair("llava")
        processor.chat_template = None
        del processor.image_token
        with pytest.raises(ValueError, match=r"some-model has neither a chat template nor .*give `prompt_template`"):
            Surrogate(model, processor, name="some-model").text("What is it?")

    @pytest.mark.parametrize("family", ["blip-2", "instructblip", T5])
    def test_blips_place_the_image_themselves(self, surrogate: Surrogate) -> None:
        assert surrogate.text("What is it?") == "What is it?"


class TestConstruction:
    @all_families
    def test_the_model_is_frozen_and_in_evaluation_mode(self, family: str, own_pair: Callable[[str], Pair]) -> None:
        model, processor = own_pair(family)
        model.train().requires_grad_(True)
        surrogate = Surrogate(model, processor)
        assert surrogate.model is model
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())

    @all_families
    def test_the_processor_is_left_as_it_is(self, family: str, own_pair: Callable[[str], Pair]) -> None:
        model, processor = own_pair(family)
        part = processor.image_processor
        kind, before = type(part), copy.deepcopy(vars(part))
        surrogate = Surrogate(model, processor)

        def assert_unchanged() -> None:
            assert surrogate.processor is processor
            assert processor.image_processor is part
            assert type(part) is kind
            assert vars(part) == before

        surrogate.forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1], with_features=True)
        surrogate.features(make_canvas(), QUESTIONS[:1])
        assert_unchanged()
        with pytest.raises(ValueError):
            # An empty batch of texts, or one too few, is the processor's to refuse.
            surrogate.forward(make_canvas(2), QUESTIONS[:2], ANSWERS[:1])
        assert_unchanged()
        # Nothing of that batch is left to be taken for the next.
        image = tiny.picture()
        expected = tiny.question_inputs(own_pair(family)[1], [image])["pixel_values"]
        differentiable = surrogate._differentiable
        assert differentiable is not None
        assert torch.equal(tiny.question_inputs(differentiable, [image])["pixel_values"], expected)

    def test_its_name(self, own_pair: Callable[[str], Pair]) -> None:
        model, processor = own_pair("llava")
        assert Surrogate(model, processor).name == "model"
        model.config._name_or_path = "some-lab/some-model-7b/"
        assert Surrogate(model, processor).name == "some-model-7b"
        assert Surrogate(model, processor, name="mine").name == "mine"

    @pytest.mark.parametrize("family", ["llava", "paligemma"])
    def test_from_a_folder(
        self, surrogate: Surrogate, own_pair: Callable[[str], Pair], tmp_path: Path, family: str
    ) -> None:
        for part in own_pair(family):
            part.save_pretrained(tmp_path / "some-model")
        loaded = Surrogate.from_pretrained(f"{tmp_path}/some-model/", dtype=torch.float32, local_files_only=True)
        assert loaded.name == "some-model"
        assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
        assert not loaded.model.training
        canvas = make_canvas(2)
        with torch.no_grad():
            outputs = [s.forward(canvas, QUESTIONS[:2], ANSWERS[:2]) for s in (surrogate, loaded)]
        torch.testing.assert_close(outputs[0].logits, outputs[1].logits)
        other = Surrogate.from_pretrained(str(tmp_path / "some-model"), name="other", dtype=torch.bfloat16,
                                          prompt_template="<image>{question}")  # fmt: skip
        assert (other.name, other.model.dtype) == ("other", torch.bfloat16)
        assert other.text("Why?") == "<image>Why?"

    def test_trust_in_remote_code_reaches_the_processor(
        self, monkeypatch: pytest.MonkeyPatch, shared_pair: Any
    ) -> None:
        model, processor = copy.deepcopy(shared_pair("llava"))
        given: dict[str, dict[str, Any]] = {}

        def loader(what: str, result: Any) -> SimpleNamespace:
            return SimpleNamespace(from_pretrained=lambda path, **kwargs: given.update({what: kwargs}) or result)

        monkeypatch.setattr(surrogate_module, "AutoModelForImageTextToText", loader("model", model))
        monkeypatch.setattr(surrogate_module, "AutoProcessor", loader("processor", processor))
        Surrogate.from_pretrained("lab/model", trust_remote_code=True, revision="abc", dtype="auto")
        assert given["model"] == {"trust_remote_code": True, "revision": "abc", "dtype": "auto"}
        assert given["processor"] == {"trust_remote_code": True, "revision": "abc"}

    def test_a_model_to_a_device(self, own_pair: Callable[[str], Pair]) -> None:
        surrogate = Surrogate(*own_pair("llava"))
        assert surrogate.to("meta") is surrogate
        assert surrogate.device == torch.device("meta")

    def test_a_processor_that_passes_no_gradient(self, own_pair: Callable[[str], Pair]) -> None:
        model, processor = own_pair("llava")
        processor.image_processor.__class__ = type("Slow", (type(processor.image_processor),), {"backend": "pil"})
        surrogate = Surrogate(model, processor)
        with pytest.raises(TypeError, match="has the pil backend, which passes no gradient"):
            surrogate.forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1])

    def test_one_that_is_read_by_a_decoder_of_its_own(self, surrogates: Callable[[str], Surrogate]) -> None:
        assert surrogates(T5).is_encoder_decoder
        assert not any(surrogates(family).is_encoder_decoder for family in tiny.FAMILIES)
