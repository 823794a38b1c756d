"""Models of random weights in the shapes of published ones, for the benchmarks of a training step.

Two shapes: LLaVA-1.5-7B (an image encoder that is small against its language model, hundreds of image tokens) and
InstructBLIP-Vicuna-7B (an image encoder that does as much work as the language model, 32 image tokens). The `full` size
is the published one; `small` keeps the shares of work that encoder, language model and head have in it, at a size for a
CPU. CLIP is ViT-B/32 or as small against the surrogate as ViT-B/32 is. `toy` is for tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BlipImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from transferable_vp import Surrogate, TaskSemantics


Shape = Literal["llava", "instructblip"]
Size = Literal["toy", "small", "full"]


@dataclass(frozen=True)
class Tower:
    """A transformer: width, layers, heads and width of its MLP."""

    width: int
    layers: int
    heads: int
    mlp: int

    def config(self) -> dict[str, int]:
        """In the names that transformers gives them."""
        return {"hidden_size": self.width, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
                "intermediate_size": self.mlp}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """A surrogate and the CLIP beside it. `image` is the side of what the image encoder is given, in pixels."""

    image: int
    patch: int
    vision: Tower
    text: Tower
    words: int
    clip_vision: Tower
    clip_text: Tower
    clip_words: int
    qformer: Tower | None = None
    queries: int = 0


_CLIP_B32 = {"clip_vision": Tower(768, 12, 12, 3072), "clip_text": Tower(512, 12, 8, 2048), "clip_words": 49408}
_CLIP_SMALL = {"clip_vision": Tower(96, 2, 4, 384), "clip_text": Tower(64, 2, 2, 256), "clip_words": 1000}
_TOY = Tower(32, 2, 4, 64)
_CLIP_TOY = {"clip_vision": _TOY, "clip_text": _TOY, "clip_words": 200}

SIZES: dict[tuple[Shape, Size], Sizes] = {
    ("llava", "full"): Sizes(336, 14, Tower(1024, 24, 16, 4096), Tower(4096, 32, 32, 11008), 32064, **_CLIP_B32),
    ("llava", "small"): Sizes(224, 14, Tower(112, 3, 4, 448), Tower(384, 6, 6, 1024), 1000, **_CLIP_SMALL),
    ("llava", "toy"): Sizes(28, 14, _TOY, _TOY, 200, **_CLIP_TOY),
    ("instructblip", "full"): Sizes(
        224, 14, Tower(1408, 39, 16, 6144), Tower(4096, 32, 32, 11008), 32001, **_CLIP_B32,
        qformer=Tower(768, 12, 12, 3072), queries=32,
    ),
    ("instructblip", "small"): Sizes(
        224, 14, Tower(192, 8, 4, 768), Tower(512, 8, 8, 1376), 1000, **_CLIP_SMALL,
        qformer=Tower(96, 2, 4, 384), queries=32,
    ),
    ("instructblip", "toy"): Sizes(28, 14, _TOY, _TOY, 200, **_CLIP_TOY, qformer=_TOY, queries=4),
}  # fmt: skip


def word_tokenizer(words: int, length: int = 1000) -> PreTrainedTokenizerFast:
    """One token for every word `w4`, `w5`, ..., so that lengths are what they are said to be."""
    known = ["<pad>", "<s>", "</s>", "<image>", *(f"w{i}" for i in range(4, words))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=length
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def build(shape: Shape, size: Size, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Surrogate:
    """The surrogate, its weights drawn where they stay: 7 billion of them need no file and no copy."""
    sizes = SIZES[shape, size]
    pixels = {"height": sizes.image, "width": sizes.image}
    vision = {**sizes.vision.config(), "image_size": sizes.image, "patch_size": sizes.patch}
    text = {**sizes.text.config(), "model_type": "llama", "vocab_size": sizes.words, "pad_token_id": 0,
            "num_key_value_heads": sizes.text.heads}  # fmt: skip
    tokenizer = word_tokenizer(sizes.words)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    processor: Any
    if shape == "llava":
        # Drawn for the last layer but one, as LLaVA reads it.
        config: Any = LlavaConfig(
            vision_config={**vision, "model_type": "clip_vision_model"}, text_config=text, image_token_index=image_token,
            image_seq_length=(sizes.image // sizes.patch) ** 2, vision_feature_layer=-2,
        )  # fmt: skip
        processor = LlavaProcessor(
            CLIPImageProcessor(size={"shortest_edge": sizes.image}, crop_size=pixels), tokenizer,
            patch_size=sizes.patch, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        )  # fmt: skip
        model = draw(LlavaForConditionalGeneration, config, device, dtype)
        return Surrogate(model, processor, shape, prompt_template="<s> <image> {question}")
    assert sizes.qformer is not None
    qformer = {**sizes.qformer.config(), "vocab_size": sizes.words, "encoder_hidden_size": sizes.vision.width,
               "cross_attention_frequency": 2}  # fmt: skip
    config = InstructBlipConfig(
        vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=sizes.queries,
        image_token_index=image_token,
    )  # fmt: skip
    processor = InstructBlipProcessor(
        BlipImageProcessor(size=pixels), tokenizer, word_tokenizer(sizes.words), num_query_tokens=sizes.queries
    )
    return Surrogate(draw(InstructBlipForConditionalGeneration, config, device, dtype), processor, shape)


def build_clip(shape: Shape, size: Size, device: str = "cpu", dtype: torch.dtype = torch.float32) -> TaskSemantics:
    """The CLIP beside the surrogate. Its images are 224 pixels wide and cut into patches of 32, as ViT-B/32's."""
    sizes = SIZES[shape, size]
    config = CLIPConfig(
        vision_config={**sizes.clip_vision.config(), "image_size": 224, "patch_size": 32},
        text_config={**sizes.clip_text.config(), "vocab_size": sizes.clip_words, "max_position_embeddings": 77,
                     "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        projection_dim=sizes.clip_text.width,
    )  # fmt: skip
    image_processor = CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    processor = CLIPProcessor(image_processor, word_tokenizer(sizes.clip_words, length=77))
    return TaskSemantics(draw(CLIPModel, config, device, dtype), processor)


@torch.no_grad()
def draw(kind: type[PreTrainedModel], config: Any, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A model whose matrices are drawn at the scale of their width.

    transformers draws BLIP's tower at a deviation of 1e-10, where the gradient to the pixels is next to nothing.
    """
    torch.manual_seed(0)
    with torch.device(device):
        model = kind._from_config(config, dtype=dtype)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            parameter.normal_(0, 0.5 if "embed" in name else parameter[0].numel() ** -0.5)
    return model.eval()
