"""The converters of MiniGPT-4, VPGTrans and BLIVA: every key accounted for, and wrong files named."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import checkpoints
import pytest
import tiny
import torch
from transformers import AutoProcessor, LlamaConfig

from transferable_vp.models import lavis
from transferable_vp.models.convert import Rules, Weights, read_weights


def rows(weights: Weights, rules: Rules) -> dict[str, str | None]:
    """What becomes of every key; `None` where it is left out."""
    result: dict[str, str | None] = {}
    for key in weights:
        new = next((re.sub(p, to, key) for p, to in rules.rename.items() if re.fullmatch(p, key)), None)
        result[key] = None if any(re.fullmatch(p, key) for p in rules.drop) else new
    return result


class TestKeys:
    """What is written is what was published, tensor by tensor."""

    @pytest.mark.parametrize(("name", "rules"), [("vpgtrans", lavis.VPGTRANS_RULES), ("bliva", lavis.BLIVA_RULES)])
    def test_every_tensor_of_a_checkpoint_is_in_the_folder(
        self, published: Path, converted: Path, name: str, rules: Rules
    ) -> None:
        source, written = read_weights(published / f"{name}.pth"), read_weights(converted / name)
        renamed = rows(source, rules)
        assert [key for key, new in renamed.items() if new is None] == ["Qformer.bert.embeddings.position_ids"]
        for key, new in renamed.items():
            if new is not None and "_bias" not in new.rsplit(".", 1)[-1]:
                assert torch.equal(written[new], source[key]), key

    def test_a_key_has_no_bias(self, published: Path, converted: Path) -> None:
        eva, written = read_weights(published / "eva.pth"), read_weights(converted / "minigpt4")
        bias = written["vision_model.encoder.layers.1.self_attn.qkv.bias"]
        query, key, value = bias.chunk(3)
        assert torch.equal(query, eva["blocks.1.attn.q_bias"])
        assert torch.equal(value, eva["blocks.1.attn.v_bias"])
        assert not key.any()

    def test_the_language_model_is_vicuna_to_the_bit(self, published: Path, converted: Path) -> None:
        vicuna = read_weights(published / "vicuna")
        for name in ("minigpt4", "vpgtrans", "bliva"):
            written = read_weights(converted / name)
            for key, value in vicuna.items():
                assert key.endswith("inv_freq") or torch.equal(written[f"language_model.{key}"], value)

    def test_what_another_key_would_be_is_an_error(self, published: Path, tmp_path: Path) -> None:
        weights = checkpoints.vpgtrans() | {"Qformer.bert.pooler.dense.bias": torch.ones(2)}
        path = checkpoints.save_checkpoint(weights, tmp_path / "more.pth")
        with pytest.raises(ValueError, match=r"keys that do not belong there: Qformer\.bert\.pooler\.dense\.bias"):
            lavis.convert_vpgtrans(path, published / "vicuna", tmp_path / "out", published / "eva.pth")

    def test_a_key_that_is_gone_is_an_error(self, published: Path, tmp_path: Path) -> None:
        weights = checkpoints.vpgtrans()
        del weights["Qformer.bert.encoder.layer.2.crossattention.self.key.bias"]
        path = checkpoints.save_checkpoint(weights, tmp_path / "less.pth")
        with pytest.raises(
            ValueError, match=r"needs qformer\.encoder\.layer\.2\.crossattention\.attention\.key\.bias"
        ):
            lavis.convert_vpgtrans(path, published / "vicuna", tmp_path / "out", published / "eva.pth")
        eva = checkpoints.eva()
        del eva["blocks.1.attn.v_bias"]
        torch.save(eva, tmp_path / "eva.pth")
        with pytest.raises(ValueError, match=r"no .*layers\.1\.self_attn\.v_bias"):
            lavis.convert_vpgtrans(
                published / "vpgtrans.pth", published / "vicuna", tmp_path / "out", tmp_path / "eva.pth"
            )

    def test_what_is_trained_with_no_part_in_the_model_is_left_out(self, published: Path, tmp_path: Path) -> None:
        frozen = {"llama_model.model.norm.weight": torch.ones(32), "Qformer.cls.predictions.bias": torch.ones(5)}
        text = {"Qformer.bert.encoder.layer.0.output.dense.bias": torch.ones(3)}
        text |= {"Qformer.bert.embeddings.word_embeddings.weight": torch.ones(5, 3)}
        path = checkpoints.save_checkpoint(checkpoints.vpgtrans() | frozen | text, tmp_path / "more.pth")
        lavis.convert_vpgtrans(path, published / "vicuna", tmp_path / "out", published / "eva.pth")

    def test_rules_have_reasons(self) -> None:
        for name, rules in vars(lavis).items():
            if isinstance(rules, Rules):
                assert all(rules.drop.values()), name


class TestConfigurations:
    def test_shapes_say_what_the_model_is(self, converted: Path) -> None:
        config = json.loads((converted / "bliva/config.json").read_text())
        vision, qformer, text = (config[f"{part}_config"] for part in ("vision", "qformer", "text"))
        expected = {"hidden_size": 176, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 40,
                    "patch_size": 8, "image_size": 32, "layer_norm_eps": 1e-6}  # fmt: skip
        assert {key: vision[key] for key in expected} == expected
        expected = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 4, "intermediate_size": 24,
                    "cross_attention_frequency": 2, "encoder_hidden_size": 176}  # fmt: skip
        assert {key: qformer[key] for key in expected} == expected
        assert (text["bos_token_id"], text["eos_token_id"]) == (2, 2)
        assert (config["image_token_index"], config["use_patch_tokens"]) == (3, True)

    @pytest.mark.parametrize(("width", "heads"), [("EVA_HEAD", 1408 // 88), ("BERT_HEAD", 768 // 64)])
    def test_the_published_models_have_as_many_heads_as_their_code_says(self, width: str, heads: int) -> None:
        published = {"EVA_HEAD": (1408, 16), "BERT_HEAD": (768, 12)}[width]
        assert published[0] // getattr(lavis, width) == heads == published[1]

    def test_the_vocabulary_is_vicunas(self, converted: Path) -> None:
        size = len(checkpoints.llama_tokenizer())
        for name in ("minigpt4", "vpgtrans", "bliva"):
            assert json.loads((converted / name / "config.json").read_text())["text_config"]["vocab_size"] == size
            processor = AutoProcessor.from_pretrained(converted / name)
            assert len(processor.tokenizer) == size
            assert processor.image_token_id == 3
        assert AutoProcessor.from_pretrained(converted / "minigpt4").tokenizer.pad_token == "</s>"

    def test_a_vicuna_without_a_padding_token_pads_with_the_end(self, published: Path, tmp_path: Path) -> None:
        vicuna = shutil.copytree(published / "vicuna", tmp_path / "vicuna")
        for path in vicuna.glob("tokenizer*.json"):
            path.write_text(path.read_text().replace("[PAD]", "zzz"))
        lavis.convert_bliva(published / "bliva.pth", vicuna, tmp_path / "out", qformer_tokenizer=published / "bert")
        assert AutoProcessor.from_pretrained(tmp_path / "out").tokenizer.pad_token == "</s>"


class TestTokenizer:
    """Vicuna v0 has a SentencePiece model, and names one token for everything."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        sentencepiece = pytest.importorskip("sentencepiece")
        pytest.importorskip("google.protobuf")
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*tiny.SENTENCES, "This is a photo of a dog <Img> </Img> ###Human: ###Assistant:"] * 4),
            model_writer=written, vocab_size=400, model_type="bpe", byte_fallback=True, hard_vocab_limit=False,
            normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, minloglevel=2,
        )  # fmt: skip
        (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
        pieces = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue()).get_piece_size()
        (tmp_path / "added_tokens.json").write_text(json.dumps({"[PAD]": pieces}))
        names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
        (tmp_path / "special_tokens_map.json").write_text(json.dumps({**names, "pad_token": "[PAD]"}))
        # A class that never was.
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LLaMATokenizer"}))
        return tmp_path

    @pytest.mark.parametrize(
        "text", ["<Img>", "</Img>", "This is a photo of a", "dog", "###Human: <Img>", "a\nb", "12", "é\x00"]
    )
    def test_it_makes_the_pieces_of_sentencepiece(self, folder: Path, text: str) -> None:
        sentencepiece = pytest.importorskip("sentencepiece")
        expected = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode(text)
        tokenizer = lavis._vicuna_tokenizer(folder)
        assert tokenizer(text, add_special_tokens=False).input_ids == expected
        assert tokenizer.get_vocab()["[PAD]"] == len(tokenizer) - 1

    @pytest.mark.parametrize("name", ["sentencepiece", "protobuf"])
    def test_what_reads_it_is_asked_for(self, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lavis, f"is_{name}_available", lambda: False)
        with pytest.raises(ImportError, match=f"`pip install {name}`"):
            lavis._vicuna_tokenizer(folder)

    def test_one_of_more_tokens_than_the_model_is_an_error(self, published: Path, tmp_path: Path) -> None:
        vicuna = shutil.copytree(published / "vicuna", tmp_path / "vicuna")
        config = json.loads((vicuna / "config.json").read_text())
        (vicuna / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
        with pytest.raises(ValueError, match="tokens and the model there 300"):
            lavis.convert_vpgtrans(published / "vpgtrans.pth", vicuna, tmp_path / "out", published / "eva.pth")

    def test_one_of_another_kind_of_model_is_an_error(self, published: Path, tmp_path: Path) -> None:
        vicuna = shutil.copytree(published / "vicuna", tmp_path / "vicuna")
        path = vicuna / "tokenizer.json"
        path.write_text(path.read_text().replace("<0x00>", "other"))
        with pytest.raises(ValueError, match=r"Token 3 of the tokenizer at .* is 'other'"):
            lavis.convert_vpgtrans(published / "vpgtrans.pth", vicuna, tmp_path / "out", published / "eva.pth")


class TestWrongFiles:
    @pytest.mark.parametrize(("given", "what"), [
        ("vpgtrans", "it is a VPGTrans checkpoint"), ("bliva", "it is a BLIVA checkpoint"),
        ("blip2", "it is a BLIP-2 checkpoint"), ("eva", "it is an EVA image encoder"),
    ])  # fmt: skip
    def test_for_minigpt4(self, published: Path, tmp_path: Path, given: str, what: str) -> None:
        with pytest.raises(ValueError, match=what):
            lavis.convert_minigpt4(published / f"{given}.pth", published / "vicuna", published / "blip2.pth",
                                   tmp_path / "out", published / "eva.pth")  # fmt: skip

    @pytest.mark.parametrize(("given", "what"), [
        ("minigpt4", "it is MiniGPT-4's projection"), ("bliva", "it is a BLIVA checkpoint"),
        ("blip2", "it is a BLIP-2 checkpoint"),
    ])  # fmt: skip
    def test_for_vpgtrans(self, published: Path, tmp_path: Path, given: str, what: str) -> None:
        with pytest.raises(ValueError, match=what):
            lavis.convert_vpgtrans(published / f"{given}.pth", published / "vicuna", tmp_path, published / "eva.pth")

    def test_for_bliva(self, published: Path, tmp_path: Path) -> None:
        weights = {key: value for key, value in checkpoints.bliva(30).items() if not key.startswith("vision_project")}
        path = checkpoints.save_checkpoint(weights, tmp_path / "instructblip.pth")
        with pytest.raises(ValueError, match="it is an InstructBLIP checkpoint of LAVIS"):
            lavis.convert_bliva(path, published / "vicuna", tmp_path, qformer_tokenizer=published / "bert")

    def test_for_the_image_encoder_the_q_former_and_vicuna(self, published: Path, tmp_path: Path) -> None:
        checkpoint, vicuna, eva = (published / name for name in ("vpgtrans.pth", "vicuna", "eva.pth"))
        with pytest.raises(ValueError, match="a language model of the LLaMA kind"):
            lavis.convert_vpgtrans(checkpoint, vicuna, tmp_path / "out", vit=vicuna)
        with pytest.raises(ValueError, match="an EVA image encoder"):
            lavis.convert_minigpt4(published / "minigpt4.pth", vicuna, eva, tmp_path / "out", eva)
        wrong = shutil.copytree(vicuna, tmp_path / "vicuna")
        (wrong / "pytorch_model.bin.index.json").unlink()
        torch.save(checkpoints.eva(), wrong / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"lacks model\.embed_tokens\.weight, lm_head\.weight"):
            lavis.convert_vpgtrans(checkpoint, wrong, tmp_path / "out", eva)

    def test_a_vicuna_of_another_size(self, published: Path, tmp_path: Path) -> None:
        wrong = shutil.copytree(published / "vicuna", tmp_path / "vicuna")
        LlamaConfig(hidden_size=64, num_attention_heads=4).save_pretrained(wrong)
        with pytest.raises(ValueError, match=r"a llama of width 64, and .* projects into a LLaMA of width 32"):
            lavis.convert_vpgtrans(published / "vpgtrans.pth", wrong, tmp_path / "out", published / "eva.pth")

    def test_an_image_encoder_is_given_once(self, published: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="has no image encoder: give `vit`"):
            lavis.convert_vpgtrans(published / "vpgtrans.pth", published / "vicuna", tmp_path / "out")
        with pytest.raises(ValueError, match="leave out `vit`"):
            lavis.convert_bliva(published / "bliva.pth", published / "vicuna", tmp_path / "out", published / "eva.pth",
                                published / "bert")  # fmt: skip

    def test_a_bliva_without_its_image_encoder_takes_it_from_a_file(
        self, published: Path, converted: Path, tmp_path: Path
    ) -> None:
        weights = {key: value for key, value in read_weights(published / "bliva.pth").items()
                   if not key.startswith("visual_encoder.")}  # fmt: skip
        path = checkpoints.save_checkpoint(weights, tmp_path / "trimmed.pth")
        lavis.convert_bliva(path, published / "vicuna", tmp_path / "out", published / "eva.pth", published / "bert")
        own, other = read_weights(tmp_path / "out"), read_weights(converted / "bliva")
        assert own.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in own.items())

    def test_a_tokenizer_of_other_words(self, published: Path, tmp_path: Path) -> None:
        tiny.word_piece_tokenizer("[ONE]", "[TWO]").save_pretrained(tmp_path / "bert")
        with pytest.raises(ValueError, match="give that of bert-base-uncased"):
            lavis.convert_bliva(published / "bliva.pth", published / "vicuna", tmp_path / "out",
                                qformer_tokenizer=tmp_path / "bert")  # fmt: skip
