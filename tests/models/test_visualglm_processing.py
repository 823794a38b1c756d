"""VisualGLM's processor: where the placeholders go, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import tiny_visualglm
import torch
from transformers import AutoProcessor, BlipImageProcessor

from transferable_vp.models.visualglm import VisualGLMProcessor


@pytest.fixture(scope="module")
def processor() -> VisualGLMProcessor:
    return tiny_visualglm.processor()


@pytest.mark.parametrize("before", ["", "Look: ", "two  blanks "])
def test_placeholders_stand_in_the_wrapper(processor: VisualGLMProcessor, before: str) -> None:
    """What is before the image ends with `<img>`, what is behind it begins with `</img>`, each tokenized by itself."""
    tokens = processor.tokenizer
    batch = processor(tiny.picture(), f"{before}<img></img> This is a photo of a")
    first, second = (tokens(part, add_special_tokens=False).input_ids for part in (
        f"{before}<img>", "</img> This is a photo of a"))  # fmt: skip
    assert batch.input_ids == [[*first, *[0] * tiny.QUERIES, *second, tokens.gmask_token_id, tokens.bos_token_id]]


def test_pixels_are_clips(processor: VisualGLMProcessor) -> None:
    """Resized without cropping, bicubic, and normalised with CLIP's mean and deviation."""
    images = BlipImageProcessor()
    assert (images.size["height"], images.size["width"]) != (224, 224)  # what the converter has to say
    assert list(images.image_mean) == [0.48145466, 0.4578275, 0.40821073]
    assert list(images.image_std) == [0.26862954, 0.26130258, 0.27577711]
    assert int(images.resample) == 3
    picture = tiny.picture()
    pixels = processor(picture, return_tensors="pt").pixel_values
    assert torch.equal(pixels, processor.image_processor(picture, return_tensors="pt").pixel_values)
    assert pixels.shape == (1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)


def test_a_batch_is_padded_on_the_left(processor: VisualGLMProcessor) -> None:
    texts = ["<img></img> a", "<img></img>Q: Is there a cat?\nA:"]
    batch = processor([[tiny.picture()], [tiny.picture(seed=1)]], texts, padding=True, return_tensors="pt")
    assert batch.pixel_values.shape[0] == len(batch.input_ids) == 2
    assert (batch.input_ids == 0).sum(1).tolist() == [tiny.QUERIES] * 2
    assert batch.attention_mask[0, 0] == 0 and batch.attention_mask[:, -1].all()
    assert not torch.equal(batch.pixel_values[0], batch.pixel_values[1])


def test_an_answer_is_the_second_text(processor: VisualGLMProcessor) -> None:
    tokens = processor.tokenizer
    context = processor(tiny.picture(), "<img></img>Q: what?\nA:").input_ids[0]
    whole = processor(tiny.picture(), "<img></img>Q: what?\nA:", text_pair=["a cat"]).input_ids[0]
    assert whole == [*context, *tokens("a cat", add_special_tokens=False).input_ids, tokens.eos_token_id]


def test_text_needs_no_image(processor: VisualGLMProcessor) -> None:
    batch = processor(text="Q: what?\nA:")
    assert batch.input_ids == [processor.tokenizer("Q: what?\nA:").input_ids]
    assert "pixel_values" not in batch


def test_places_and_images_must_be_as_many(processor: VisualGLMProcessor) -> None:
    with pytest.raises(ValueError, match="Got 1 images and 0 times `<img></img>`"):
        processor(tiny.picture(), "no image")
    with pytest.raises(ValueError, match="Got 0 images and 1 times"):
        processor(text="<img></img> a")
    with pytest.raises(ValueError, match="neither"):
        processor()


def test_the_template_asks_in_english(processor: VisualGLMProcessor) -> None:
    conversation = tiny.conversation("What is it?")
    asked = processor.apply_chat_template(conversation, add_generation_prompt=True)
    assert asked == "<img></img>Q: What is it?\nA:"
    turns = [*conversation, {"role": "assistant", "content": "A cat."}, {"role": "user", "content": "Sure?"}]
    asked = processor.apply_chat_template(turns, add_generation_prompt=True)
    assert asked == "<img></img>Q: What is it?\nA: A cat.\nQ: Sure?\nA:"


def test_the_template_takes_images(processor: VisualGLMProcessor) -> None:
    picture = tiny.picture()
    batch = processor.apply_chat_template(
        tiny.conversation("What is it?", picture), add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    expected = processor(picture, "<img></img>Q: What is it?\nA:", return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected.input_ids)
    assert torch.equal(batch["pixel_values"], expected.pixel_values)


def test_saving_and_loading_change_nothing(processor: VisualGLMProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is VisualGLMProcessor
    assert (loaded.num_query_tokens, loaded.chat_template) == (tiny.QUERIES, processor.chat_template)
    text = "<img></img>Q: what?\nA:"
    assert loaded(tiny.picture(), text).input_ids == processor(tiny.picture(), text).input_ids
