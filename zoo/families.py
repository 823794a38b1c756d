"""The members of the zoo: tiny configurations of unmodified transformers classes, with their processors.

Each `build_*` function gives a randomly initialised model and the processor it is saved with. Nothing here is needed to
load a member: `AutoModelForImageTextToText.from_pretrained("zoo/llava")` reads an ordinary checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import world
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    BertTokenizerFast,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    SiglipImageProcessor,
)


WIDTH = 96
HEADS = 4
PATCH = 8
VISION_LAYERS = 4
TEXT_LAYERS = 2
SIZE = {"height": world.SIZE, "width": world.SIZE}

# Captions of the pictures, for CLIP; the task's texts for Task Semantics Enrichment are of these forms too.
CAPTIONS = ("a {color} {object}", "something {color}", "a picture of {object}")


def corpus() -> list[str]:
    """Every sentence of the world, the text that the tokenizers are trained on."""
    lines = [f"USER: {question} ASSISTANT: {answer}" for kind, question in world.QUESTIONS.items()
             for answer in world.CANDIDATES[kind]]  # fmt: skip
    lines += [CAPTIONS[0].format(color=color, object=name) for color in world.COLORS for name in world.OBJECTS]
    # Answers also stand at the start of a line, where a byte-level vocabulary knows them without their space.
    lines += [answer for answers in world.CANDIDATES.values() for answer in answers] * 3
    return lines + [f"a photo of {color}, a photo of the character {name}" for color in world.COLORS
                    for name in world.CHARACTERS]  # fmt: skip


def captions() -> list[str]:
    """Every caption of the world, the text that CLIP's tokenizer is trained on."""
    return [caption.format(color=color, object=name) for caption in CAPTIONS for color in world.COLORS
            for name in world.OBJECTS]  # fmt: skip


def byte_level_tokenizer(
    special: list[str],
    *,
    begin: str | None,
    lines: list[str] | None = None,
    vocab_size: int = 512,
    named: dict[str, str] | None = None,
) -> PreTrainedTokenizerFast:
    """Byte-pair encoding over bytes, so any text can be read. `special[:3]` are padding, beginning and end.

    `named` gives special tokens a name of their own, as `{"video_token": "<video>"}`, for processors that ask by name.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(corpus() if lines is None else lines, trainer)
    if begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], bos_token=special[1], eos_token=special[2],
        extra_special_tokens=named or {},
    )  # fmt: skip


def build_llava() -> tuple[PreTrainedModel, ProcessorMixin]:
    """LLaVA: CLIP tower, two-layer projector, LLaMA. 64 image tokens."""
    tokenizer = byte_level_tokenizer(["<pad>", "<s>", "</s>", "<image>"], begin="<s>")
    template = (
        "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% else %} ASSISTANT: {% endif %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}"
        "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": world.SIZE}, crop_size=SIZE),
        tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": VISION_LAYERS, "num_attention_heads": HEADS, "image_size": world.SIZE,
            "patch_size": PATCH, "projection_dim": WIDTH, "hidden_act": "gelu",
        },
        text_config={
            "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 3 * WIDTH,
            "num_hidden_layers": TEXT_LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
            "vocab_size": len(tokenizer), "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=(world.SIZE // PATCH) ** 2,
        # The published models read the layer before the last; in so shallow a tower every layer counts.
        vision_feature_layer=-1,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config), processor


def build_idefics3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Idefics3: SigLIP-like tower, 2 x 2 pixel shuffle, LLaMA. 16 image tokens."""
    special = ["<pad>", "<|begin_of_text|>", "<|end_of_text|>", "<image>", "<fake_token_around_image>", "<global-img>",
               "<end_of_utterance>"]  # fmt: skip
    tokenizer = byte_level_tokenizer(special, begin="<|begin_of_text|>")
    template = (
        "{% for message in messages %}{{ message['role'] | capitalize }}:"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}"
        "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    processor = Idefics3Processor(
        Idefics3ImageProcessor(
            size={"longest_edge": world.SIZE}, max_image_size={"longest_edge": world.SIZE}, do_image_splitting=False
        ),
        tokenizer, image_seq_len=(world.SIZE // PATCH) ** 2 // 4, chat_template=template,
    )  # fmt: skip
    config = Idefics3Config(
        vision_config={
            "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": VISION_LAYERS,
            "num_attention_heads": HEADS, "image_size": world.SIZE, "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 3 * WIDTH,
            "num_hidden_layers": TEXT_LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS // 2,
            "vocab_size": len(tokenizer), "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2, pad_token_id=0,
    )  # fmt: skip
    return Idefics3ForConditionalGeneration(config), processor


def build_paligemma() -> tuple[PreTrainedModel, ProcessorMixin]:
    """PaliGemma: SigLIP tower, linear projector, Gemma with a bidirectional prefix. 64 image tokens."""
    tokenizer = byte_level_tokenizer(["<pad>", "<bos>", "<eos>", "<image>"], begin=None)
    template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    image_processor = SiglipImageProcessor(size=SIZE)
    image_processor.image_seq_length = (world.SIZE // PATCH) ** 2
    processor = PaliGemmaProcessor(image_processor, tokenizer, chat_template=template)
    config = PaliGemmaConfig(
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": VISION_LAYERS, "num_attention_heads": HEADS, "image_size": world.SIZE,
            "patch_size": PATCH, "vision_use_head": False,
        },
        text_config={
            "model_type": "gemma", "hidden_size": WIDTH, "intermediate_size": 3 * WIDTH,
            "num_hidden_layers": TEXT_LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 1,
            "head_dim": WIDTH // HEADS, "vocab_size": len(processor.tokenizer), "max_position_embeddings": 256,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vocab_size=len(processor.tokenizer),
        projection_dim=WIDTH, hidden_size=WIDTH,
    )  # fmt: skip
    return PaliGemmaForConditionalGeneration(config), processor


def build_instructblip() -> tuple[PreTrainedModel, ProcessorMixin]:
    """InstructBLIP: BLIP tower, a Q-Former that reads the question, OPT. 16 image tokens."""
    queries = 16
    tokenizer = byte_level_tokenizer(["<pad>", "<s>", "</s>", "<image>"], begin="</s>")
    word_piece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    word_piece.normalizer = normalizers.BertNormalizer(lowercase=True)
    word_piece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    word_piece.train_from_iterator(corpus(), trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    qformer_tokenizer = BertTokenizerFast(vocab=word_piece.get_vocab())
    processor = InstructBlipProcessor(
        BlipImageProcessor(size=SIZE), tokenizer, qformer_tokenizer, num_query_tokens=queries
    )
    config = InstructBlipConfig(
        vision_config={
            "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": VISION_LAYERS,
            "num_attention_heads": HEADS, "image_size": world.SIZE, "patch_size": PATCH,
        },
        qformer_config={
            "vocab_size": len(qformer_tokenizer), "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 2, "num_attention_heads": HEADS, "max_position_embeddings": 64,
            "cross_attention_frequency": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        },
        text_config={
            "model_type": "opt", "hidden_size": WIDTH, "ffn_dim": 3 * WIDTH, "word_embed_proj_dim": WIDTH,
            "num_hidden_layers": TEXT_LAYERS, "num_attention_heads": HEADS, "vocab_size": len(tokenizer),
            "max_position_embeddings": 128, "dropout": 0.0, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 2,
        },
        num_query_tokens=queries, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return InstructBlipForConditionalGeneration(config), processor


def build_blip2() -> tuple[PreTrainedModel, ProcessorMixin]:
    """BLIP-2: InstructBLIP's tower, a Q-Former that never sees the question, OPT. 16 image tokens."""
    instruct, processor = build_instructblip()
    config = Blip2Config(
        vision_config=instruct.config.vision_config.to_dict() | {"model_type": "blip_2_vision_model"},
        qformer_config=instruct.config.qformer_config.to_dict() | {"model_type": "blip_2_qformer"},
        text_config=instruct.config.text_config.to_dict(),
        num_query_tokens=instruct.config.num_query_tokens, image_token_index=instruct.config.image_token_index,
    )  # fmt: skip
    processor = Blip2Processor(
        processor.image_processor, processor.tokenizer, num_query_tokens=processor.num_query_tokens
    )
    return Blip2ForConditionalGeneration(config), processor


def build_internvl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """InternVL: InternViT tower with layer scale, 2 x 2 pixel shuffle, two-layer projector, Qwen2. 16 image tokens."""
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": "<video>"}  # fmt: skip
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values()]
    tokenizer = byte_level_tokenizer(special, begin=None, named=named)
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>\n"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=SIZE, min_patches=1, max_patches=1), tokenizer,
        InternVLVideoProcessor(size=SIZE), image_seq_length=(world.SIZE // PATCH) ** 2 // 4, chat_template=template,
    )  # fmt: skip
    config = InternVLConfig(
        vision_config={
            "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": VISION_LAYERS,
            "num_attention_heads": HEADS, "image_size": world.SIZE, "patch_size": PATCH,
            # The published 0.1 keeps dozens of layers stable; four need none of it.
            "layer_scale_init_value": 1.0,
        },
        text_config={
            "model_type": "qwen2", "hidden_size": WIDTH, "intermediate_size": 3 * WIDTH,
            "num_hidden_layers": TEXT_LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS // 2,
            "vocab_size": len(tokenizer), "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": None,
            "eos_token_id": 2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=(world.SIZE // PATCH) ** 2 // 4,
    )  # fmt: skip
    return InternVLForConditionalGeneration(config), processor


def build_clip() -> tuple[PreTrainedModel, ProcessorMixin]:
    """CLIP, the judge of Task Semantics Enrichment: it never answers questions."""
    tokenizer = byte_level_tokenizer(["<pad>", "<|startoftext|>", "<|endoftext|>"], begin=None, lines=captions())
    # CLIP pools at the end-of-text token, so every text must close with it.
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 1), ("<|endoftext|>", 2)],
    )
    processor = CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": world.SIZE}, crop_size=SIZE), tokenizer)
    config = CLIPConfig(
        vision_config={
            "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": VISION_LAYERS,
            "num_attention_heads": HEADS, "image_size": world.SIZE, "patch_size": PATCH,
        },
        text_config={
            "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 1,
            "num_attention_heads": HEADS, "vocab_size": len(tokenizer), "max_position_embeddings": 32,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        },
        projection_dim=64,
    )  # fmt: skip
    return CLIPModel(config), processor


BUILDERS: dict[str, Callable[[], tuple[PreTrainedModel, ProcessorMixin]]] = {
    "llava": build_llava,
    "idefics3": build_idefics3,
    "paligemma": build_paligemma,
    "instructblip": build_instructblip,
    "blip2": build_blip2,
    "internvl": build_internvl,
    "clip": build_clip,
}


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Draws the weights of every linear, convolution and embedding layer anew at the scale of its width, and starts
    the towers' position embeddings as sines and cosines of row and column.

    transformers draws at a fixed deviation of 0.02 (InstructBLIP's tower: 1e-10), right for widths of a thousand and
    more. At a width of 96 a tower so initialised learns nothing within a thousand steps, and one that has to learn first
    where its patches are is slow to learn what they show.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, fan_in**-0.5)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, 0.02 if "position" in name else WIDTH**-0.5)
    for module in model.modules():
        if type(module).__name__.endswith("VisionEmbeddings"):
            for parameter in module.parameters(recurse=False):
                parameter.normal_(0, 0.02)
            # InternVL has the plural.
            table = getattr(module, "position_embedding", None)
            table = module.position_embeddings if table is None else table
            table = table.weight if isinstance(table, nn.Embedding) else table[0]
            table[-((world.SIZE // PATCH) ** 2) :] = positions(world.SIZE // PATCH)


def positions(side: int) -> torch.Tensor:
    """Sines and cosines of row and column, `(side * side, WIDTH)`."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = torch.logspace(math.log10(math.pi / side), math.log10(math.pi * 0.9), WIDTH // 4)
    return torch.cat([f(c.flatten()[:, None] * waves) for c in (row, column) for f in (torch.sin, torch.cos)], 1)
