"""Answers kept on disk: found again for the same question to the same model, and never for another."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import PreTrainedModel, ProcessorMixin

from transferable_vp import Surrogate
from transferable_vp.cache import AnswerCache, fingerprint, given


Pair = tuple[PreTrainedModel, ProcessorMixin]


class TestAnswerCache:
    def test_what_is_put_is_found_again(self, tmp_path: Path) -> None:
        cache = AnswerCache(tmp_path / "new", "model", {"by": "rank"})
        assert cache.get("a") is None
        cache.put({"a": [0.5, -1.25], "b": "a répondu\nça"})
        for found in (cache, AnswerCache(tmp_path / "new", "model", {"by": "rank"})):
            assert found.get("a") == [0.5, -1.25]
            assert found.get("b") == "a répondu\nça"

    @pytest.mark.parametrize(("model", "settings"), [("other", {"by": "rank"}), ("model", {"by": "generate"})])
    def test_not_for_another_model_or_setting(self, tmp_path: Path, model: str, settings: dict[str, Any]) -> None:
        AnswerCache(tmp_path, "model", {"by": "rank"}).put({"a": 1.0})
        assert AnswerCache(tmp_path, model, settings).get("a") is None

    def test_every_process_reads_all_and_writes_its_own(self, tmp_path: Path) -> None:
        caches = [AnswerCache(tmp_path, "model", {}, process) for process in (0, 1)]
        for process, cache in enumerate(caches):
            cache.put({f"key {process}": process})
        assert len({cache.path for cache in caches}) == 2
        after = AnswerCache(tmp_path, "model", {})
        assert [after.get("key 0"), after.get("key 1")] == [0, 1]

    @pytest.mark.parametrize("cut", [1, 3, 10])
    def test_a_process_killed_while_writing_loses_that_line_only(self, tmp_path: Path, cut: int) -> None:
        cache = AnswerCache(tmp_path, "model", {})
        cache.put({"first": "kept", "second": "cut short"})
        cache.path.write_bytes(cache.path.read_bytes()[:-cut])
        again = AnswerCache(tmp_path, "model", {})
        assert again.get("first") == "kept"
        assert again.get("second") is None or cut == 1
        again.put({"third": "new"})
        assert AnswerCache(tmp_path, "model", {}).get("third") == "new"

    def test_the_file_says_what_it_is_of(self, tmp_path: Path) -> None:
        cache = AnswerCache(tmp_path, "some model", {"by": "rank"})
        assert json.loads(cache.path.read_text().splitlines()[0]) == {
            "model": "some model", "settings": {"by": "rank"},
        }  # fmt: skip


class TestGiven:
    def test_everything_counts(self) -> None:
        image, other = tiny.picture(20, 10, seed=1), tiny.picture(20, 10, seed=2)
        same = given(image.copy(), "Is it?", ["yes", "no"])
        assert same == given(image, "Is it?", ["yes", "no"])
        others = [
            given(other, "Is it?", ["yes", "no"]),
            given(image, "Is it so?", ["yes", "no"]),
            given(image, "Is it?", ["no", "yes"]),
            given(image, "Is it?", ["yes"]),
            # The same bytes in another shape.
            given(image.transpose(5).resize((10, 20)), "Is it?", ["yes", "no"]),
            given(torch.zeros(3, 10, 20), "Is it?", ["yes", "no"]),
            given(torch.zeros(3, 20, 10), "Is it?", ["yes", "no"]),
        ]
        assert len({same, *others}) == len(others) + 1

    def test_one_grey_level_of_one_pixel(self) -> None:
        image = tiny.picture(20, 10)
        changed = image.copy()
        red, green, blue = changed.getpixel((3, 4))
        changed.putpixel((3, 4), (red ^ 1, green, blue))
        assert given(image, "", []) != given(changed, "", [])


class TestFingerprint:
    @pytest.fixture
    def make(self, pair: Callable[[str], Pair]) -> Callable[..., Surrogate]:
        return lambda **options: Surrogate(*pair("llava"), **{"name": "tiny", **options})

    def test_of_the_same_model_it_is_the_same(self, make: Callable[..., Surrogate]) -> None:
        assert fingerprint(make()) == fingerprint(make())
        assert fingerprint(make()).startswith("tiny ")

    def test_having_been_asked_changes_nothing(self, make: Callable[..., Surrogate]) -> None:
        asked = make()
        before = fingerprint(asked)
        asked.tokenizer(["one", "two of them"], padding=True, truncation=True, max_length=3)
        assert asked.tokenizer.backend_tokenizer.padding and asked.tokenizer.backend_tokenizer.truncation
        assert fingerprint(asked) == before

    def test_of_another_it_is_another(self, make: Callable[..., Surrogate], pair: Callable[[str], Pair]) -> None:
        class OtherInputs(Surrogate):
            """As the paper's: the same model and processor, used in another way."""

        changed_weight, changed_processor, changed_chat, half = make(), make(), make(), make()
        with torch.no_grad():
            next(iter(changed_weight.model.parameters())).flatten()[0] += 1e-3
        changed_processor.processor.image_processor.image_mean = [0.5, 0.5, 0.5]
        changed_chat.processor.chat_template += " "
        half.model.bfloat16()
        penalised, other_end, patches = make(), make(), make()
        penalised.model.generation_config.repetition_penalty = 1.3
        other_end.tokenizer.eos_token = "<s>"
        patches.processor.patch_size = 4
        surrogates = [make(), penalised, other_end, patches, changed_weight, changed_processor, changed_chat, half,
                      make(prompt_template="<image>{question}"), OtherInputs(*pair("llava"), name="tiny"), Surrogate(*tiny.build("idefics3"), name="tiny")]  # fmt: skip
        assert len({fingerprint(surrogate) for surrogate in surrogates}) == len(surrogates)

    def test_weights_that_are_not_in_memory(self, make: Callable[..., Surrogate]) -> None:
        surrogate = make()
        surrogate.model = copy.deepcopy(surrogate.model).to("meta")
        with pytest.raises(TypeError, match=r"not in memory.*without a cache"):
            fingerprint(surrogate)

    def test_weights_that_are_split(self, make: Callable[..., Surrogate]) -> None:
        surrogate = make()
        surrogate.is_sharded = True  # as `shard` leaves it, which needs several processes
        with pytest.raises(TypeError, match=r"weights of tiny are split over processes.*without a cache"):
            fingerprint(surrogate)
