"""Tiny random models of real families with real processors: milliseconds a forward pass, no network, no weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    BatchFeature,
    BertTokenizerFast,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPImageProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipImageProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.smolvlm import processing_smolvlm

from transferable_vp import TransferableVisualPrompt, TransferableVisualPromptConfig


# SmolVLM's processor will not be made without num2words, which it needs for videos only.
processing_smolvlm.num2words = processing_smolvlm.num2words or str

Builder = Callable[[], tuple[PreTrainedModel, ProcessorMixin]]

WIDTH = 32
HEADS = 4
LAYERS = 2
PATCH = 8
# Height and width of what the image encoders are given. Canvases of other sizes are resized by the processors.
IMAGE_SIZE = 32
SIZE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
IMAGE_TOKENS = (IMAGE_SIZE // PATCH) ** 2
QUERIES = 4

SENTENCES = [
    "USER: What is in the picture? ASSISTANT: a red circle",
    "User: Which colour is the square? Assistant: it is a blue square",
    "Is there a cat? yes no maybe zero one two three four five six seven eight nine",
]


def byte_level_tokenizer(special: list[str], begin: str | None, **named: str) -> PreTrainedTokenizerFast:
    """Byte-pair encoding over bytes, so any text can be read. `special[:3]` are padding, beginning and end; `named`
    are tokens that a processor looks up as attributes, such as `image_token`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    extra = {"extra_special_tokens": named} if named else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], bos_token=special[1], eos_token=special[2], **extra
    )


def word_piece_tokenizer(*added: str) -> PreTrainedTokenizerFast:
    """BERT's: a text becomes `[CLS] text [SEP]`, and no token is called its end. `added` come last, as in BLIP."""
    words = " ".join(SENTENCES).lower()
    letters = sorted({*words, *".,:?!"} - {" "})
    # Written down, as a trainer of word pieces gives another vocabulary in every process. Long words are in pieces.
    short = sorted(set(re.findall(r"\b[a-z]{2,5}\b", words)))
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *short]
    bert = BertTokenizerFast(vocab={token: index for index, token in enumerate(vocab)})
    bert.add_tokens(list(added), special_tokens=True)
    return bert


def text_config(model_type: str, tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """A decoder of the LLaMA shape."""
    return {
        "model_type": model_type, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS // 2, "vocab_size": len(tokenizer),
        "max_position_embeddings": 512, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, **more,
    }  # fmt: skip


def opt_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """OPT, which begins with its end token."""
    return {
        "model_type": "opt", "hidden_size": WIDTH, "ffn_dim": 2 * WIDTH, "word_embed_proj_dim": WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": len(tokenizer),
        "max_position_embeddings": 256, "dropout": 0.0, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 2,
    }  # fmt: skip


def vision_config(**more: Any) -> dict[str, Any]:
    """An image encoder of the ViT shape."""
    return {
        "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "image_size": IMAGE_SIZE, "patch_size": PATCH, **more,
    }  # fmt: skip


def qformer_config(**more: Any) -> dict[str, Any]:
    """BLIP's Q-Former, dropout off."""
    return {
        "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "max_position_embeddings": 64, "cross_attention_frequency": 1,
        "encoder_hidden_size": WIDTH, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **more,
    }  # fmt: skip


def chat_template(image: str, user: str = "USER: ", end: str = " ", assistant: str = "ASSISTANT:") -> str:
    """A template that writes `image` for every image, then the text, of every message."""
    return (
        "{% for message in messages %}{% if message['role'] == 'user' %}" + user + "{% else %}" + assistant + " "
        "{% endif %}{% for part in message['content'] %}{% if part['type'] == 'image' %}" + image + "{% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}" + end + "{% endfor %}{% if add_generation_prompt %}" + assistant
        + "{% endif %}"
    )  # fmt: skip


def build_llava() -> tuple[PreTrainedModel, ProcessorMixin]:
    """CLIP tower, two-layer projector, LLaMA. The processor crops."""
    tokenizer = byte_level_tokenizer(["<pad>", "<s>", "</s>", "<image>"], begin="<s>")
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=SIZE), tokenizer, patch_size=PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=chat_template("<image>\n"),
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision_config(model_type="clip_vision_model", projection_dim=WIDTH, hidden_act="gelu"),
        text_config=text_config("llama", tokenizer), image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS, vision_feature_layer=-1,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config), processor


def build_qwen2_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Native resolution, patches in one long row, M-RoPE. The processor resizes by bicubic, to a multiple of 8."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
               "<|video_pad|>"]  # fmt: skip
    tokenizer = byte_level_tokenizer(special, begin=None)
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    pixels = {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(size=pixels, **sizes), tokenizer, Qwen2VLVideoProcessor(size=pixels, **sizes),
        chat_template=chat_template("<|vision_start|><|image_pad|><|vision_end|>", "<|im_start|>user\n",
                                    "<|im_end|>\n", "<|im_start|>assistant\n"),
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in (
        ("image_token_id", "image_pad"), ("video_token_id", "video_pad"),
        ("vision_start_token_id", "vision_start"), ("vision_end_token_id", "vision_end"),
    )}  # fmt: skip
    config = Qwen2VLConfig(
        vision_config={
            "depth": LAYERS, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": HEADS, "mlp_ratio": 2,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        text_config=text_config("qwen2_vl_text", tokenizer, rope_parameters=rope), **ids,
    )  # fmt: skip
    return Qwen2VLForConditionalGeneration(config), processor


IDEFICS_TOKENS = ["<pad>", "<|im_start|>", "<|end_of_text|>", "<image>", "<fake_token_around_image>", "<global-img>",
                  "<end_of_utterance>", *(f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2))]  # fmt: skip


def build_idefics3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """SigLIP-like tower, pixel shuffle, LLaMA. The processor cuts an image into 2 x 2 tiles and a thumbnail."""
    tokenizer = byte_level_tokenizer(IDEFICS_TOKENS, begin=None)
    processor = Idefics3Processor(
        Idefics3ImageProcessor(size={"longest_edge": 2 * IMAGE_SIZE}, max_image_size={"longest_edge": IMAGE_SIZE}),
        tokenizer, image_seq_len=IMAGE_TOKENS // 4,
        chat_template=chat_template("<image>", "<|im_start|>User:", "<end_of_utterance>\n", "Assistant:"),
    )  # fmt: skip
    config = Idefics3Config(
        vision_config=vision_config(), text_config=text_config("llama", tokenizer), scale_factor=2, pad_token_id=0,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return Idefics3ForConditionalGeneration(config), processor


def build_smolvlm() -> tuple[PreTrainedModel, ProcessorMixin]:
    """As Idefics3, without tiles."""
    tokenizer = byte_level_tokenizer(IDEFICS_TOKENS, begin=None)
    sizes = {"size": {"longest_edge": IMAGE_SIZE}, "max_image_size": {"longest_edge": IMAGE_SIZE}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(do_image_splitting=False, **sizes), tokenizer, SmolVLMVideoProcessor(**sizes),
        image_seq_len=IMAGE_TOKENS // 4,
        chat_template=chat_template("<image>", "<|im_start|>User:", "<end_of_utterance>\n", "Assistant:"),
    )  # fmt: skip
    config = SmolVLMConfig(
        vision_config=vision_config(), text_config=text_config("llama", tokenizer), scale_factor=2, pad_token_id=0,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return SmolVLMForConditionalGeneration(config), processor


def build_blip_2() -> tuple[PreTrainedModel, ProcessorMixin]:
    """BLIP tower, Q-Former, OPT. The processor writes the image placeholders itself and has no chat template."""
    tokenizer = byte_level_tokenizer(["<pad>", "<s>", "</s>", "<image>"], begin="</s>")
    processor = Blip2Processor(BlipImageProcessor(size=SIZE), tokenizer, num_query_tokens=QUERIES)
    config = Blip2Config(
        vision_config=vision_config(), qformer_config=qformer_config(), text_config=opt_config(tokenizer),
        num_query_tokens=QUERIES, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return Blip2ForConditionalGeneration(config), processor


def build_instructblip() -> tuple[PreTrainedModel, ProcessorMixin]:
    """As BLIP-2, with a Q-Former that reads the question through a tokenizer of its own."""
    tokenizer = byte_level_tokenizer(["<pad>", "<s>", "</s>", "<image>"], begin="</s>")
    qformer_tokenizer = word_piece_tokenizer()
    processor = InstructBlipProcessor(
        BlipImageProcessor(size=SIZE), tokenizer, qformer_tokenizer, num_query_tokens=QUERIES
    )
    config = InstructBlipConfig(
        vision_config=vision_config(), qformer_config=qformer_config(vocab_size=len(qformer_tokenizer)),
        text_config=opt_config(tokenizer), num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return InstructBlipForConditionalGeneration(config), processor


def build_paligemma() -> tuple[PreTrainedModel, ProcessorMixin]:
    """SigLIP tower, linear projector, Gemma with a bidirectional prefix."""
    tokenizer = byte_level_tokenizer(["<pad>", "<bos>", "<eos>", "<image>"], begin=None)
    image_processor = SiglipImageProcessor(size=SIZE)
    image_processor.image_seq_length = IMAGE_TOKENS
    processor = PaliGemmaProcessor(image_processor, tokenizer, chat_template=chat_template("<image>", "", "", ""))
    vocabulary = len(processor.tokenizer)
    config = PaliGemmaConfig(
        vision_config=vision_config(model_type="siglip_vision_model", vision_use_head=False),
        text_config=text_config("gemma", processor.tokenizer, head_dim=WIDTH // HEADS), projection_dim=WIDTH,
        hidden_size=WIDTH, vocab_size=vocabulary, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return PaliGemmaForConditionalGeneration(config), processor


def build_gemma3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """SigLIP tower, pooled to 4 tokens, Gemma 3 with one sliding-window layer. The processor counts crops."""
    special = ["<pad>", "<bos>", "<eos>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    tokenizer = byte_level_tokenizer(
        special, begin="<bos>", boi_token="<start_of_image>", eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )  # fmt: skip
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size=SIZE), tokenizer, image_seq_length=IMAGE_TOKENS // 4,
        chat_template="<bos>" + chat_template("<start_of_image>"),
    )  # fmt: skip
    config = Gemma3Config(
        vision_config=vision_config(model_type="siglip_vision_model", vision_use_head=False),
        text_config=text_config("gemma3_text", tokenizer, head_dim=WIDTH // HEADS, sliding_window=16,
                                query_pre_attn_scalar=WIDTH // HEADS,
                                layer_types=["sliding_attention", "full_attention"]),
        mm_tokens_per_image=IMAGE_TOKENS // 4, boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id, image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(config), processor


FAMILIES: dict[str, Builder] = {
    "llava": build_llava,
    "qwen2_vl": build_qwen2_vl,
    "idefics3": build_idefics3,
    "smolvlm": build_smolvlm,
    "blip-2": build_blip_2,
    "instructblip": build_instructblip,
    "paligemma": build_paligemma,
    "gemma3": build_gemma3,
}
# Families whose processor keeps a chat template, as the published ones of these classes do.
TEMPLATED = [name for name in FAMILIES if name not in ("blip-2", "instructblip")]


def build(name: str, families: dict[str, Builder] = FAMILIES, seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model of the family `name` in evaluation mode, the same weights every time, and its processor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = families[name]()
        initialise(model)
    return model.eval(), processor


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Draws all weights at the scale of their width. transformers draws at deviations of 0.02 and less (BLIP's tower:
    1e-10), where features and gradients of so narrow a model are next to nothing, and leaves some at zero."""
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            # Norms are left as they are; a bias of zero would hide a bias that is wrongly applied.
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
        elif "embed" in name.lower() or "token" in name:
            parameter.normal_(0, 0.5)
        elif name.endswith("mm_input_projection_weight"):
            parameter.normal_(0, parameter.shape[0] ** -0.5)
        else:
            parameter.normal_(0, parameter[0].numel() ** -0.5)


def picture(width: int = 48, height: int = 36, seed: int = 0) -> Image.Image:
    """An RGB picture of uniform noise, the hardest to resize alike."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def conversation(question: str, image: Any = None) -> list[dict[str, Any]]:
    """One user message: the image, if any is given, and the question."""
    content: list[dict[str, Any]] = [{"type": "image"} if image is None else {"type": "image", "image": image}]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def question_text(processor: ProcessorMixin, question: str) -> str:
    """The text for one image and `question`, as `processor(text=...)` wants it."""
    if getattr(processor, "chat_template", None):
        return processor.apply_chat_template(conversation(question), add_generation_prompt=True, tokenize=False)
    return question


def question_inputs(
    processor: ProcessorMixin,
    images: Sequence[Any],
    question: str | Sequence[str] = "What is in the picture?",
    **kwargs: Any,
) -> BatchFeature:
    """Model inputs for a batch with one image and one question in every row, images nested."""
    questions = [question] * len(images) if isinstance(question, str) else list(question)
    texts = [question_text(processor, q) for q in questions]
    bos = processor.tokenizer.bos_token
    if bos is not None and texts[0].startswith(bos):
        # The template has written the beginning token: the tokenizer shall not write another.
        kwargs["add_special_tokens"] = False
    nested = [[image] for image in images]
    return processor(images=nested, text=texts, padding=True, return_tensors="pt", **kwargs)


def noise_prompt(seed: int = 0, **config: Any) -> TransferableVisualPrompt:
    """A prompt with uniform noise wherever its layout and value range allow pixels: the hardest to keep to the bit."""
    prompt = TransferableVisualPrompt(TransferableVisualPromptConfig(**config))
    noise = torch.rand(prompt.delta.shape, generator=torch.Generator().manual_seed(seed))
    border = prompt.config.value_range == "displayable" and prompt.config.layout == "border"
    with torch.no_grad():
        # Beyond what can be shown on both sides, where that is allowed; `project_` cuts an overlay to its epsilon.
        prompt.delta.copy_(noise if border else 4 * noise - 2)
    return prompt.project_()


def make_canvas(count: int = 1, size: int = 40, seed: int = 0) -> torch.Tensor:
    """Noise that no 8-bit image holds, of a size that every processor has to resize."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def language_model(model: nn.Module) -> nn.Module:
    """The part of a model that reads text."""
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in ("language_model", "text_model"):
            return module
    raise AssertionError("no language model")
