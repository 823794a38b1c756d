"""Tiny models whose answers are read by a decoder of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from tiny import (
    HEADS,
    IMAGE_SIZE,
    LAYERS,
    PATCH,
    QUERIES,
    SENTENCES,
    SIZE,
    WIDTH,
    byte_level_tokenizer,
    qformer_config,
    vision_config,
    word_piece_tokenizer,
)
from tiny_t5 import build_t5
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin


def bart_config(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """BART and its like: a decoder that begins with the end token."""
    return {
        "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_ffn_dim": 2 * WIDTH,
        "decoder_ffn_dim": 2 * WIDTH, "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS,
        "dropout": 0.0, "vocab_size": len(tokenizer), "max_position_embeddings": 128,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": tokenizer.eos_token_id, **more,
    }  # fmt: skip


def t5_like_config(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """T5 and its like: a decoder that begins with the padding token."""
    return {
        "d_kv": WIDTH // HEADS, "d_ff": 2 * WIDTH, "num_layers": LAYERS, "num_heads": HEADS,
        "vocab_size": len(tokenizer), "dropout_rate": 0.0, "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": tokenizer.pad_token_id, **more,
    }  # fmt: skip


def build_florence2() -> tuple[PreTrainedModel, ProcessorMixin]:
    """DaViT (attention over windows and over channels) and BART. The processor writes the placeholders itself."""
    tokenizer = byte_level_tokenizer(["<pad>", "<s>", "</s>", "<image>"], begin=None, image_token="<image>")
    image_processor = transformers.CLIPImageProcessor(size=SIZE, do_center_crop=False)
    # 4 x 4 places, and their mean before them.
    image_processor.image_seq_length = 17
    processor = transformers.Florence2Processor(image_processor, tokenizer)
    vision = {
        "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
        "patch_prenorm": [False, True], "embed_dim": [WIDTH // 2, WIDTH], "num_heads": [2, 4], "num_groups": [2, 4],
        "window_size": 4, "drop_path_rate": 0.0, "projection_dim": WIDTH,
    }  # fmt: skip
    config = transformers.Florence2Config(
        vision_config=vision, text_config=bart_config(tokenizer, model_type="bart"),
        image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    return transformers.Florence2ForConditionalGeneration(config), processor


def build_pix2struct() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Patches of any resolution in a row, normalised per image; the text is how the decoder's answer begins. (With
    `is_vqa` the processor draws the text into the image by PIL, which passes no gradient.)"""
    tokenizer = byte_level_tokenizer(["<pad>", "<s>", "</s>"], begin=None)
    patches = {"patch_size": {"height": PATCH, "width": PATCH}, "max_patches": 20}
    processor = transformers.Pix2StructProcessor(transformers.Pix2StructImageProcessor(**patches), tokenizer)
    # The class sets 2048, which goes before what the image processor was made with.
    processor.images_kwargs = {"max_patches": 20}
    vision = {
        "hidden_size": WIDTH, "patch_embed_hidden_size": 3 * PATCH**2, "d_ff": 2 * WIDTH, "d_kv": WIDTH // HEADS,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "seq_len": 32,
    }  # fmt: skip
    config = transformers.Pix2StructConfig(
        vision_config=vision, text_config=t5_like_config(tokenizer, hidden_size=WIDTH)
    )
    return transformers.Pix2StructForConditionalGeneration(config), processor


def encoder_decoder(encoder: dict[str, Any], decoder: dict[str, Any]) -> PreTrainedModel:
    """Any image encoder under any text decoder."""
    config = transformers.VisionEncoderDecoderConfig(encoder=encoder, decoder={**decoder, "is_decoder": True,
                                                                  "add_cross_attention": True})  # fmt: skip
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        setattr(config, name, decoder[name])
    return transformers.VisionEncoderDecoderModel(config=config)


def build_donut() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Donut: Swin (shifted windows, merged patches) and mBART. The question is how the decoder's answer begins."""
    special = ["<pad>", "<s>", "</s>", "<s_docvqa>", "<s_question>", "</s_question>", "<s_answer>", "</s_answer>"]
    tokenizer = byte_level_tokenizer(special, begin="<s>")
    processor = transformers.DonutProcessor(transformers.DonutImageProcessor(size=SIZE), tokenizer)
    swin = {
        "model_type": "donut-swin", "image_size": [IMAGE_SIZE, IMAGE_SIZE], "patch_size": 4, "embed_dim": WIDTH // 2,
        "depths": [2, 1], "num_heads": [2, 4], "window_size": 4, "drop_path_rate": 0.0,
    }  # fmt: skip
    return encoder_decoder(swin, bart_config(tokenizer, model_type="mbart")), processor


def build_trocr() -> tuple[PreTrainedModel, ProcessorMixin]:
    """TrOCR: ViT and a decoder that reads no question; the processor makes labels of it, which are dropped."""
    tokenizer = byte_level_tokenizer(["<pad>", "<s>", "</s>"], begin="<s>")
    processor = transformers.TrOCRProcessor(transformers.ViTImageProcessor(size=SIZE), tokenizer)
    vit = vision_config(model_type="vit", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    decoder = bart_config(tokenizer, model_type="trocr", cross_attention_hidden_size=WIDTH)
    return encoder_decoder(vit, decoder), processor


def build_udop() -> tuple[PreTrainedModel, ProcessorMixin]:
    """T5 that reads words with the boxes they stand in, and the patches no word stands in. Without OCR its processor
    needs to be given words and boxes."""
    letters = sorted({letter for sentence in SENTENCES for letter in sentence.replace(" ", "")} | {","})
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in letters)]
    tokenizer = transformers.UdopTokenizer(vocab=vocab)
    processor = transformers.UdopProcessor(
        transformers.LayoutLMv3ImageProcessor(size=SIZE, apply_ocr=False), tokenizer
    )
    config = transformers.UdopConfig(
        **t5_like_config(tokenizer, d_model=WIDTH), image_size=IMAGE_SIZE, patch_size=PATCH,
        max_2d_position_embeddings=64,
    )  # fmt: skip
    return transformers.UdopForConditionalGeneration(config), processor


def build_pp_formulanet() -> tuple[PreTrainedModel, ProcessorMixin]:
    """SAM's encoder (windows and one global layer, relative positions) and mBART's decoder. It reads formulas, never
    a question: its processor takes images only, and cuts off their light margins."""
    tokenizer = byte_level_tokenizer(["<s>", "<pad>", "</s>"], begin="<s>")
    tokenizer.bos_token, tokenizer.pad_token = "<s>", "<pad>"
    processor = transformers.PPFormulaNetProcessor(transformers.PPFormulaNetImageProcessor(size=SIZE), tokenizer)
    vision = {
        "hidden_size": WIDTH, "output_channels": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "image_size": IMAGE_SIZE, "patch_size": 4, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 2 * WIDTH,
        "post_conv_in_channels": WIDTH, "post_conv_mid_channels": WIDTH, "post_conv_out_channels": WIDTH,
        "decoder_hidden_size": WIDTH,
    }  # fmt: skip
    config = transformers.PPFormulaNetConfig(vision_config=vision, text_config=bart_config(tokenizer))
    return transformers.PPFormulaNetForConditionalGeneration(config), processor


def build_blip_2_t5() -> tuple[PreTrainedModel, ProcessorMixin]:
    """BLIP-2 under T5: the question is read by an encoder, the answer by a decoder."""
    return build_t5()


def build_instructblip_t5() -> tuple[PreTrainedModel, ProcessorMixin]:
    """InstructBLIP under T5, with a Q-Former that reads the question through a tokenizer of its own."""
    model, processor = build_t5()
    qformer_tokenizer = word_piece_tokenizer()
    config = transformers.InstructBlipConfig(
        vision_config=vision_config(), qformer_config=qformer_config(vocab_size=len(qformer_tokenizer)),
        text_config=model.config.text_config.to_dict(), num_query_tokens=QUERIES,
        image_token_index=model.config.image_token_index,
    )  # fmt: skip
    processor = transformers.InstructBlipProcessor(
        transformers.BlipImageProcessor(size=SIZE), processor.tokenizer, qformer_tokenizer, num_query_tokens=QUERIES
    )
    return transformers.InstructBlipForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], tuple[PreTrainedModel, ProcessorMixin]]] = {
    "florence2": build_florence2,
    "pix2struct": build_pix2struct,
    "vision-encoder-decoder": build_donut,
    "vision-encoder-decoder (trocr)": build_trocr,
    "udop": build_udop,
    "pp_formulanet": build_pp_formulanet,
    "blip-2 (t5)": build_blip_2_t5,
    "instructblip (t5)": build_instructblip_t5,
}
