"""VisualGLM's converter: every key finds its place, and wrong files are told."""

from __future__ import annotations

import json
from pathlib import Path

import published_glm
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoProcessor

from transferable_vp.models.convert import rename
from transferable_vp.models.visualglm import VisualGLMConfig
from transferable_vp.models.visualglm.convert import RULES, _split, convert_visualglm, read_config


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published_glm.save(tmp_path_factory.mktemp("files") / "visualglm-6b", published_glm.weights())


def changed(published: Path, folder: Path, **config: object) -> Path:
    """The published folder with another configuration; `None` takes an entry away."""
    folder.mkdir()
    for file in published.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in content.items() if value is not None})
    )
    return folder


def test_the_published_configuration_is_the_default() -> None:
    """What `config.json` of THUDM/visualglm-6b says is what the class has without arguments."""
    config = VisualGLMConfig()
    text, vision, qformer = config.text_config, config.vision_config, config.qformer_config
    assert (text.num_hidden_layers, text.hidden_size, text.num_attention_heads) == (28, 4096, 32)
    assert (text.vocab_size, text.intermediate_size, text.layer_norm_eps) == (130528, 16384, 1e-5)
    ids = (text.pad_token_id, text.bos_token_id, text.eos_token_id, text.gmask_token_id)
    assert ids == (3, 130004, 130005, 130001)
    assert (vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size) == (39, 1408, 6144)
    assert (vision.num_attention_heads, vision.image_size, vision.patch_size, vision.layer_norm_eps) == (
        16, 224, 14, 1e-6)  # fmt: skip
    assert (qformer.num_hidden_layers, qformer.hidden_size, qformer.num_attention_heads) == (12, 768, 12)
    assert (qformer.cross_attention_frequency, qformer.encoder_hidden_size, qformer.layer_norm_eps) == (2, 1408, 1e-12)
    assert (config.num_query_tokens, config.vision_norm_eps) == (32, 1e-5)


def test_the_configuration_is_read(published: Path, tmp_path: Path) -> None:
    convert_visualglm(published, tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert type(config) is VisualGLMConfig and config.architectures == ["VisualGLMForConditionalGeneration"]
    text = config.text_config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (
        published_glm.WIDTH, published_glm.INNER, published_glm.LAYERS)  # fmt: skip
    assert config.vision_config.hidden_size == config.qformer_config.encoder_hidden_size == published_glm.VIT_WIDTH
    assert config.qformer_config.intermediate_size == 4 * published_glm.Q_WIDTH
    assert config.num_query_tokens == published_glm.QUERIES
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.num_query_tokens == published_glm.QUERIES
    assert dict(processor.image_processor.size) == {"height": published_glm.IMAGE, "width": published_glm.IMAGE}


def test_taking_weights_apart_copies_none(published: Path) -> None:
    # A third of the language model's attention at a time would be gigabytes.
    weights = rename(published_glm.weights(), RULES, "test")
    parts = _split(weights, read_config(published / "config.json"))
    assert len(parts) > len(weights)
    read = {value.untyped_storage().data_ptr() for value in weights.values()}
    assert {value.untyped_storage().data_ptr() for value in parts.values()} == read


def test_weights_keep_values_and_precision_in_parts(tmp_path: Path) -> None:
    """What each becomes is tested by the numbers of test_visualglm.py; here that nothing is lost or rounded."""
    made = {name: value.half() for name, value in published_glm.weights().items()}
    convert_visualglm(published_glm.save(tmp_path / "in", made), tmp_path / "out", max_shard_size=20_000)
    parts = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(parts) > 3
    written = {name: value for part in parts for name, value in load_file(part).items()}
    assert {value.dtype for value in written.values()} == {torch.float16}
    kept = [value for name, value in made.items() if "inv_freq" not in name]
    assert sum(value.numel() for value in written.values()) == sum(value.numel() for value in kept)
    flat = [torch.cat([value.flatten() for value in values]).sort().values for values in (kept, written.values())]
    assert torch.equal(*flat)
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.float16


@pytest.mark.parametrize("name", ["config.json", "ice_text.model", "pytorch_model-00002-of-00002.bin"])
def test_a_missing_file_is_named(published: Path, tmp_path: Path, name: str) -> None:
    folder = changed(published, tmp_path / "in")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        convert_visualglm(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "lost", ["image_encoder.glm_proj.bias", "transformer.layers.1.attention.query_key_value.bias"]
)
def test_a_missing_weight_is_named(tmp_path: Path, lost: str) -> None:
    made = published_glm.weights()
    del made[lost]
    with pytest.raises(
        ValueError, match=r"needs model\.language_(projection\.bias|model\.layers\.1\.self_attn\.k_proj)"
    ):
        convert_visualglm(published_glm.save(tmp_path / "in", made), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_weight_is_named(tmp_path: Path) -> None:
    made = published_glm.weights() | {"transformer.prefix_encoder.embedding.weight": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"do not belong there: transformer\.prefix_encoder\.embedding\.weight"):
        convert_visualglm(published_glm.save(tmp_path / "in", made), tmp_path / "out")


def test_another_model_is_refused(published: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chatglm model without `eva_config`"):
        convert_visualglm(changed(published, tmp_path / "text", eva_config=None), tmp_path / "out")
    with pytest.raises(ValueError, match=r"bos token is 150004, and its ice_text.model has it at"):
        convert_visualglm(changed(published, tmp_path / "old", bos_token_id=150004), tmp_path / "out")
    qformer = published_glm.config()["qformer_config"] | {"is_decoder": [True, True, False, False]}
    with pytest.raises(ValueError, match="cross attention in the layers"):
        convert_visualglm(changed(published, tmp_path / "other", qformer_config=qformer), tmp_path / "out")
