"""Answers behind questions: the rows written out by hand, and what `generate` of the real classes begins with."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
import transformers
from by_hand import T5, t5_pair
from packaging.version import Version
from transformers import PreTrainedModel, ProcessorMixin

from transferable_vp.answers import PER_TOKEN, append, with_decoder_inputs, without_end


Pair = tuple[PreTrainedModel, ProcessorMixin]
ROWS = [[11, 12, 13], [21, 22, 23, 24, 25]]
ANSWERS = [[31, 32, 33], [41]]
# The longest row has 6 tokens, whichever it is.
GROWN = [[11, 12, 13, 31, 32, 33], [21, 22, 23, 24, 25, 41]]
LABELS = [[31, 32, 33], [-100, -100, 41]]
both_sides = pytest.mark.parametrize("left", [False, True], ids=["right", "left"])


def padded(rows: list[list[int]], left: bool = False, pad: int = 0) -> torch.Tensor:
    width = max(map(len, rows))
    filling = [[pad] * (width - len(row)) for row in rows]
    return torch.tensor([fill + row if left else row + fill for row, fill in zip(rows, filling, strict=True)])


def text(rows: list[list[int]] = ROWS, left: bool = False, pad: int = 9, **more: torch.Tensor) -> dict[str, Any]:
    """What a processor makes of texts of unequal lengths."""
    mask = padded([[1] * len(row) for row in rows], left)
    return {"input_ids": padded(rows, left, pad), "attention_mask": mask, **more}


def decoder_model(family: str, monkeypatch: pytest.MonkeyPatch) -> Pair:
    if family == T5:
        return copy.deepcopy(t5_pair())
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "conformance"))
    return tiny.build(family, importlib.import_module("decoder_models").FAMILIES)


class TestAppend:
    @both_sides
    def test_rows_are_padded_to_a_multiple(self, left: bool) -> None:
        more = {"image_attention_mask": torch.ones(2, 5, 3)}
        grown, start, labels = append(
            text(left=left, **more), ANSWERS, pad=9, repeated=("image_attention_mask",), multiple=4
        )
        assert grown["input_ids"].tolist() == [[*row, 9, 9] for row in GROWN]
        assert grown["attention_mask"].tolist() == [[1] * 6 + [0] * 2] * 2
        assert grown["image_attention_mask"].shape == (2, 8, 3) and not grown["image_attention_mask"][:, 6:].any()
        assert start == 0
        assert labels.tolist() == [[-100, -100, *row, -100, -100] for row in LABELS]

    @both_sides
    def test_the_rows_are_closed_up_and_the_answers_follow(self, left: bool) -> None:
        grown, start, labels = append(text(left=left), ANSWERS, pad=9)
        assert grown["input_ids"].tolist() == GROWN
        assert grown["attention_mask"].tolist() == [[1] * 6] * 2
        # The shorter row's last token predicts its answer's first.
        assert start == 2
        assert labels.tolist() == LABELS
        assert labels.dtype == grown["input_ids"].dtype == torch.int64

    @both_sides
    def test_padding_goes_to_the_right(self, left: bool) -> None:
        grown, start, labels = append(text(left=left), [[31], [41, 42]], pad=7)
        assert grown["input_ids"].tolist() == [[11, 12, 13, 31, 7, 7, 7], [21, 22, 23, 24, 25, 41, 42]]
        assert grown["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0, 0], [1] * 7]
        assert start == 2
        assert labels.tolist() == [[31, -100, -100, -100], [-100, -100, 41, 42]]

    def test_padding_within_the_batch_is_dropped(self) -> None:
        inputs = text([[11, 12], [21, 22, 23]])
        wide = {key: F.pad(value, (2, 1)) for key, value in inputs.items()}
        grown, start, labels = append(wide, [[31], [41]])
        assert grown["input_ids"].tolist() == [[11, 12, 31, 0], [21, 22, 23, 41]]
        assert (start, labels.tolist()) == (1, [[31, -100], [-100, 41]])

    @both_sides
    @pytest.mark.parametrize("lengths", [(3, 5, 4), (1, 1, 1), (6, 2, 2)])
    @pytest.mark.parametrize("answers", [(1, 1, 1), (4, 1, 2), (1, 5, 3)])
    def test_a_logit_predicts_the_label_at_its_place(
        self, left: bool, lengths: tuple[int, ...], answers: tuple[int, ...]
    ) -> None:
        rows = [[100 * row + i for i in range(1, length + 1)] for row, length in enumerate(lengths)]
        ids = [[1000 * (row + 1) + i for i in range(length)] for row, length in enumerate(answers)]
        grown, start, labels = append(text(rows, left), ids)
        # A model that knows what comes next: its "logits" are the next token itself.
        foreseen = F.pad(grown["input_ids"], (0, 1))[:, 1:][:, start:]
        assert foreseen.shape[1] == labels.shape[1] + 1
        kept = labels != -100
        assert torch.equal(foreseen[:, :-1][kept], labels[kept])
        assert [row[mask].tolist() for row, mask in zip(labels, kept, strict=True)] == ids
        # No logit before `start` is of any use.
        assert kept[:, 0].any()

    def test_every_input_per_token_grows(self) -> None:
        kinds = torch.tensor([[3, 3, 4, 0, 0], [3, 4, 4, 5, 5]])
        names = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
        assert set(PER_TOKEN) == {"input_ids", "attention_mask", *names}
        inputs = text(**dict.fromkeys(names, kinds))
        grown, _, _ = append(inputs, ANSWERS, token_type=1)
        assert grown["token_type_ids"].tolist() == [[3, 3, 4, 1, 1, 1], [3, 4, 4, 5, 5, 1]]
        # What these mark are images, and an answer has none.
        for name in names[1:]:
            assert grown[name].tolist() == [[3, 3, 4, 0, 0, 0], [3, 4, 4, 5, 5, 0]]
        assert {len(value[0]) for value in grown.values()} == {6}

    def test_the_padding_of_other_inputs_is_zero(self) -> None:
        inputs = text(token_type_ids=torch.full((2, 5), 3), mm_token_type_ids=torch.full((2, 5), 4))
        grown, _, _ = append(inputs, [[31], [41]], pad=9, token_type=1)
        assert grown["token_type_ids"].tolist() == [[3, 3, 3, 1, 0, 0], [3, 3, 3, 3, 3, 1]]
        assert grown["mm_token_type_ids"].tolist() == [[4, 4, 4, 0, 0, 0], [4, 4, 4, 4, 4, 0]]
        assert grown["input_ids"][0].tolist() == [11, 12, 13, 31, 9, 9]

    def test_types_are_kept(self) -> None:
        inputs = text(token_type_ids=torch.ones(2, 5, dtype=torch.int32))
        inputs["attention_mask"] = inputs["attention_mask"].float()
        grown, _, labels = append(inputs, ANSWERS)
        assert grown["token_type_ids"].dtype == torch.int32
        assert grown["attention_mask"].dtype == torch.float32
        assert grown["attention_mask"].tolist() == [[1.0] * 6] * 2
        assert labels.dtype == torch.int64

    @both_sides
    @pytest.mark.parametrize("shape", [(), (2,), (1, 3)])
    def test_an_answer_sees_what_the_last_token_sees(self, left: bool, shape: tuple[int, ...]) -> None:
        numbers = padded([[1, 2, 3], [4, 5, 6, 7, 8]], left)
        # Every entry differs from those beside it.
        offsets = torch.arange(torch.Size(shape).numel()).view(shape) * 10
        mask = numbers.view(2, 5, *[1] * len(shape)) + offsets
        grown, _, _ = append(text(left=left, seen=mask), ANSWERS, repeated=("seen",))
        expected = torch.tensor([[1, 2, 3, 3, 3, 3], [4, 5, 6, 7, 8, 8]])
        assert torch.equal(grown["seen"], expected.view(2, 6, *[1] * len(shape)) + offsets)

    def test_a_repeated_input_is_padded_with_zero(self) -> None:
        mask = torch.ones(2, 5, 1, 2, dtype=torch.bool)
        grown, _, _ = append(text(seen=mask), [[31], [41]], repeated=("seen", "absent"))
        assert grown["seen"].dtype == torch.bool
        assert grown["seen"].sum((2, 3)).tolist() == [[2, 2, 2, 2, 0, 0], [2] * 6]
        assert "absent" not in grown

    def test_everything_else_is_passed_on_and_nothing_is_changed(self) -> None:
        pixels = torch.rand(2, 3, 4, 4, requires_grad=True)
        inputs = text(pixel_values=pixels, sizes=[[1, 2], [3, 4]])
        before = {key: value.clone() for key, value in inputs.items() if isinstance(value, torch.Tensor)}
        grown, _, _ = append(inputs, ANSWERS)
        assert grown["pixel_values"] is pixels
        assert grown["sizes"] == [[1, 2], [3, 4]]
        assert grown.keys() == inputs.keys()
        assert all(torch.equal(inputs[key], value) for key, value in before.items())

    def test_a_decoder_of_its_own(self) -> None:
        encoder = {"input_ids": torch.tensor([[5, 6], [7, 8]]), "attention_mask": torch.ones(2, 2)}
        decoder = {f"decoder_{key}": value for key, value in text([[1], [1, 2]]).items()}
        grown, start, labels = append(encoder | decoder, ANSWERS, side="decoder_")
        assert grown["decoder_input_ids"].tolist() == [[1, 31, 32, 33], [1, 2, 41, 0]]
        assert grown["decoder_attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
        assert (start, labels.tolist()) == (0, [[31, 32, 33], [-100, 41, -100]])
        assert grown["input_ids"] is encoder["input_ids"]
        assert grown["attention_mask"] is encoder["attention_mask"]

    def test_an_answer_for_every_row(self) -> None:
        with pytest.raises(ValueError, match="shorter"):
            append(text(), ANSWERS[:1])


class TestDecoderInputs:
    QUESTION = {"input_ids": torch.tensor([[71, 72, 73], [74, 75, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}  # fmt: skip

    def test_the_question_stays_with_the_encoder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, _ = decoder_model(T5, monkeypatch)
        pixels = torch.rand(2, 3, 4, 4)
        inputs = with_decoder_inputs(model, {**self.QUESTION, "pixel_values": pixels}, 2, text_in_decoder=False)
        assert inputs["input_ids"] is self.QUESTION["input_ids"]
        assert inputs["attention_mask"] is self.QUESTION["attention_mask"]
        assert inputs["pixel_values"] is pixels
        # T5 begins with its padding.
        assert inputs["decoder_input_ids"].tolist() == [[0], [0]]
        assert inputs["decoder_attention_mask"].tolist() == [[1], [1]]

    @pytest.mark.parametrize(
        ("family", "start"),
        [(T5, [0]), ("florence2", [2]), ("pix2struct", [0]), ("vision-encoder-decoder (trocr)", [2])],
    )
    def test_it_is_the_start_token_where_there_is_no_text(
        self, family: str, start: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, _ = decoder_model(family, monkeypatch)
        inputs = with_decoder_inputs(model, {"pixel_values": torch.rand(3, 2)}, 3, text_in_decoder=False)
        assert inputs["decoder_input_ids"].tolist() == [start] * 3
        assert inputs["decoder_attention_mask"].tolist() == [[1]] * 3

    @pytest.mark.parametrize(
        ("family", "start"),
        # Donut's question begins with a token of the task, before which there is none.
        [(T5, [0]), ("florence2", [2]), ("vision-encoder-decoder (trocr)", [2]), ("vision-encoder-decoder", [])],
    )
    def test_the_question_goes_to_the_decoder(
        self, family: str, start: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, _ = decoder_model(family, monkeypatch)
        given = {**self.QUESTION, "token_type_ids": torch.zeros(2, 3), "pixel_values": torch.rand(2, 2)}
        inputs = with_decoder_inputs(model, given, 2, text_in_decoder=True)
        assert inputs["decoder_input_ids"].tolist() == [[*start, 71, 72, 73], [*start, 74, 75, 0]]
        begun = [1] * len(start)
        assert inputs["decoder_attention_mask"].tolist() == [[*begun, 1, 1, 1], [*begun, 1, 1, 0]]
        assert inputs.keys() == {"pixel_values", "decoder_input_ids", "decoder_attention_mask"}
        # The caller's own are left.
        assert given.keys() == {"input_ids", "attention_mask", "token_type_ids", "pixel_values"}

    def test_what_the_processor_has_for_the_decoder_comes_after_the_start(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, _ = decoder_model("pix2struct", monkeypatch)
        own = {f"decoder_{key}": value for key, value in self.QUESTION.items()}
        patches = torch.ones(2, 20)
        inputs = with_decoder_inputs(model, {**own, "attention_mask": patches}, 2, text_in_decoder=True)
        assert inputs["decoder_input_ids"].tolist() == [[0, 71, 72, 73], [0, 74, 75, 0]]
        assert inputs["decoder_attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
        # The mask of the patches is the encoder's, though no text is.
        assert inputs["attention_mask"] is patches

    def test_a_start_that_is_there_is_not_written_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, _ = decoder_model("florence2", monkeypatch)
        inputs = with_decoder_inputs(model, text([[2, 71], [2, 72]]), 2, text_in_decoder=True)
        assert inputs["decoder_input_ids"].tolist() == [[2, 71], [2, 72]]
        assert inputs["decoder_attention_mask"].tolist() == [[1, 1], [1, 1]]

    @pytest.mark.parametrize(
        ("generation", "own", "text_config", "expected"),
        [
            ({"decoder_start_token_id": 5, "bos_token_id": 6}, {"decoder_start_token_id": 7}, {}, 5),
            ({"bos_token_id": 6}, {"decoder_start_token_id": 7}, {"decoder_start_token_id": 8}, 6),
            ({"decoder_start_token_id": None}, {"decoder_start_token_id": 7}, {"decoder_start_token_id": 8}, 7),
            ({}, {"bos_token_id": 4}, {"decoder_start_token_id": 8}, 4),
            ({}, {}, {"decoder_start_token_id": 0, "bos_token_id": 3}, 0),
            ({}, {}, {"bos_token_id": 3}, 3),
        ],
    )
    def test_where_the_start_token_is_written(
        self, generation: dict[str, Any], own: dict[str, Any], text_config: dict[str, Any], expected: int
    ) -> None:
        prepare = t5_pair()[0]._prepare_decoder_input_ids_for_generation
        config = SimpleNamespace(**own, get_text_config=lambda decoder: SimpleNamespace(**text_config))
        model: Any = SimpleNamespace(generation_config=SimpleNamespace(**generation), config=config,
                                     device=torch.device("cpu"), _prepare_decoder_input_ids_for_generation=prepare)  # fmt: skip
        assert with_decoder_inputs(model, {}, 1, text_in_decoder=False)["decoder_input_ids"].tolist() == [[expected]]

    @pytest.mark.parametrize("family", [T5, "florence2", "pix2struct", "vision-encoder-decoder"])
    @torch.no_grad()
    def test_it_is_what_generate_begins_with(self, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model, processor = decoder_model(family, monkeypatch)
        if family == "pix2struct" and Version(transformers.__version__) < Version("5.23"):
            pytest.skip("what pix2struct wants of its inputs has changed since")
        images, question = [tiny.picture(seed=seed) for seed in (1, 2)], "What is it?"
        batch = processor(images=[[image] for image in images], text=[question] * 2, return_tensors="pt")
        batch.pop("labels", None)
        donut = family == "vision-encoder-decoder"
        inputs = with_decoder_inputs(model, dict(batch), 2, text_in_decoder=donut)
        logits = model(**inputs, use_cache=False).logits[:, -1]
        given = {"decoder_input_ids" if donut and key == "input_ids" else key: value for key, value in batch.items()}
        if donut:
            given["decoder_attention_mask"] = given.pop("attention_mask")
        written = model.generate(
            **given, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        torch.testing.assert_close(logits, written.logits[0], atol=1e-4, rtol=1e-4)
        assert torch.equal(written.sequences[:, : inputs["decoder_input_ids"].shape[1]], inputs["decoder_input_ids"])


class TestWithoutEnd:
    @both_sides
    def test_the_last_token_is_hidden(self, left: bool) -> None:
        inputs = text([[11, 12, 2], [21, 22, 23, 24, 2]], left, pixel_values=torch.zeros(1))
        before = inputs["attention_mask"].clone()
        hidden = without_end(inputs, 2)
        rows = [[0, 0, 1, 1, 0], [1, 1, 1, 1, 0]] if left else [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
        assert hidden["attention_mask"].tolist() == rows
        assert torch.equal(inputs["attention_mask"], before)
        for key in ("input_ids", "pixel_values"):
            assert hidden[key] is inputs[key]
        # So that an answer takes its place.
        grown, start, labels = append(hidden, ANSWERS)
        assert grown["input_ids"].tolist() == [[11, 12, 31, 32, 33], [21, 22, 23, 24, 41]]
        assert (start, labels.tolist()) == (1, [[31, 32, 33], [-100, -100, 41]])

    @both_sides
    def test_padding_that_looks_like_the_end_is_not_the_last_token(self, left: bool) -> None:
        inputs = text([[11, 12, 2], [21, 22, 23, 24, 2]], left, pad=2)
        assert without_end(inputs, 2)["attention_mask"].sum(1).tolist() == [2, 4]
        open_ended = text([[11, 12, 13], [21, 22, 23, 24, 25]], left, pad=2)
        assert without_end(open_ended, 2)["attention_mask"].sum(1).tolist() == [3, 5]

    @pytest.mark.parametrize(
        "end",
        # `None == tensor` is a bool: no surrogate asks with it, as `_closes_text` is false then.
        [None, 3, 9],
    )
    def test_nothing_is_hidden_where_no_text_is_closed(self, end: int | None) -> None:
        inputs = text([[2, 11, 12], [2, 21, 22, 23, 24]])
        assert torch.equal(without_end(inputs, end)["attention_mask"], inputs["attention_mask"])

    def test_one_row_that_ends_so_by_chance(self) -> None:
        # A tokenizer closes every text or none.
        inputs = text([[11, 12, 2], [21, 22, 23, 24, 25]])
        assert without_end(inputs, 2)["attention_mask"].sum(1).tolist() == [3, 5]

    def test_only_one_of_two(self) -> None:
        assert without_end(text([[11, 2, 2]]), 2)["attention_mask"].tolist() == [[1, 1, 0]]
