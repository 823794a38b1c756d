"""Models as people deploy them: in half precision, with adapters, quantised, compiled, spread over devices."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import tiny
import torch
import torch.nn.functional as F
from accelerate import dispatch_model
from packaging.version import Version
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from tiny_training import dataset, losses, make_trainer, new_prompt
from torch import nn
from torch._dynamo.utils import counters
from transformers import LlavaConfig, PreTrainedModel, ProcessorMixin, TorchAoConfig
from transformers.integrations.peft import MIN_PEFT_VERSION

from transferable_vp.answers import answer_loss
from transferable_vp.bundled import bundled
from transferable_vp.scoring import score_candidates
from transferable_vp.surrogate import Surrogate


try:
    from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig, quantize_
except ImportError:
    Int8Tensor = ()

needs_torchao = pytest.mark.skipif(Int8Tensor == (), reason="torchao is not installed (the extra `extended` has it)")
Pair = tuple[PreTrainedModel, ProcessorMixin]
FAMILIES = ["llava", "qwen2_vl", "idefics3", "blip-2"]
QUESTIONS = ["What is it?", "Which colour is the square in the picture, and why is it so?"]
ANSWERS = ["red", "a blue square"]
CANDIDATES = [["red", "a blue square", "no"]] * 2
families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def surrogates(shared_pair: Callable[[str], Pair]) -> Callable[[str], Surrogate]:
    """Gives the plain float32 surrogate of a family, made once, of a copy of its own. For tests that do not change it."""
    return functools.cache(lambda family: Surrogate(*copy.deepcopy(shared_pair(family)), name=family))


def make_canvas(count: int = 1, size: int = 40, seed: int = 0) -> torch.Tensor:
    """Noise that no 8-bit image holds, of a size that every processor has to resize."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)).requires_grad_()


class Result(NamedTuple):
    """What a training step sees of a model."""

    loss: float
    gradient: torch.Tensor
    features: torch.Tensor


def step(surrogate: Surrogate) -> Result:
    """One training step's pass over two pictures of other sizes, through a prompt of noise."""
    prompt = tiny.noise_prompt(canvas_size=48, border_size=8)
    canvas = prompt([tiny.picture(60, 44, seed=1), tiny.picture(48, 48, seed=2)])
    output = surrogate.forward(canvas, QUESTIONS, ANSWERS, with_features=True)
    loss = answer_loss(output)
    loss.backward()
    assert loss.dtype == torch.float32
    assert output.features is not None
    assert output.features.dtype == torch.float32
    assert output.features.requires_grad
    assert prompt.delta.grad is not None
    assert all(parameter.grad is None for parameter in surrogate.model.parameters())
    return Result(loss.item(), prompt.delta.grad, output.features.detach())


@functools.cache
def plain_step(family: str) -> Result:
    return step(Surrogate(*tiny.build(family)))


def scores(surrogate: Surrogate) -> torch.Tensor:
    images = [tiny.picture(48, 48, seed=1), tiny.picture(48, 48, seed=2)]
    return torch.stack(score_candidates(surrogate, images, QUESTIONS, CANDIDATES))


def cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    return F.cosine_similarity(left.flatten(), right.flatten(), dim=0).item()


def same(found: Result, expected: Result) -> None:
    """Fails unless both are the same but for rounding in another order."""
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.features, expected.features, rtol=1e-3, atol=1e-4)
    assert cosine(found.gradient, expected.gradient) > 0.9999
    torch.testing.assert_close(found.gradient.norm(), expected.gradient.norm(), rtol=1e-3, atol=0)


def differ(found: Result, expected: Result) -> None:
    """Fails where a form does nothing, so that a test of it would show nothing."""
    assert abs(found.loss - expected.loss) > 1e-2
    assert cosine(found.gradient, expected.gradient) < 0.9


class TestHalfPrecision:
    @families
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_the_gradient_is_that_of_float32(
        self, family: str, dtype: torch.dtype, pair: Callable[[str], Pair]
    ) -> None:
        model, processor = pair(family)
        surrogate = Surrogate(model.to(dtype), processor)
        assert surrogate.encode([tiny.picture()], QUESTIONS[:1])["pixel_values"].dtype == dtype
        found, expected = step(surrogate), plain_step(family)
        assert cosine(found.gradient, expected.gradient) > 0.99
        torch.testing.assert_close(found.gradient.norm(), expected.gradient.norm(), rtol=0.05, atol=0)
        torch.testing.assert_close(found.loss, expected.loss, rtol=0.01, atol=0.01)
        torch.testing.assert_close(found.features, expected.features, rtol=0.05, atol=0.1)
        # Of fewer digits than float32 all the same.
        assert not torch.equal(found.features, expected.features)

    @families
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_the_scores_are_those_of_float32(
        self, family: str, dtype: torch.dtype, pair: Callable[[str], Pair], surrogates: Callable[[str], Surrogate]
    ) -> None:
        model, processor = pair(family)
        found = scores(Surrogate(model.to(dtype), processor))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, scores(surrogates(family)), rtol=0.02, atol=0.05)


# Not as they are at the start of training, when adapters do nothing.
ADAPTERS: dict[str, PeftConfig] = {
    "lora": LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False),
    "ia3": IA3Config(target_modules=r".*(k_proj|v_proj|fc2|down_proj)", feedforward_modules=r".*(fc2|down_proj)",
                     init_ia3_weights=False),
}  # fmt: skip


def with_adapter(model: PreTrainedModel, kind: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_peft_model(model, ADAPTERS[kind])


class TestMergedAdapters:
    @families
    @pytest.mark.parametrize("kind", ADAPTERS)
    def test_it_is_the_model_that_the_adapter_would_be_merged_into(
        self, family: str, kind: str, pair: Callable[[str], Pair]
    ) -> None:
        model, processor = pair(family)
        wrapped = with_adapter(model, kind)
        merged = Surrogate(copy.deepcopy(wrapped).merge_and_unload(), processor)
        assert not any("lora" in name or "ia3" in name for name, _ in merged.model.named_parameters())
        surrogate = Surrogate(wrapped, processor)
        found = step(surrogate)
        same(found, step(merged))
        differ(found, plain_step(family))
        torch.testing.assert_close(scores(surrogate), scores(merged), rtol=1e-3, atol=1e-3)
        assert not any(parameter.requires_grad for parameter in wrapped.parameters())


class TestAdapters:
    @pytest.fixture
    def config(self) -> LoraConfig:
        # Not zero at the start, so that the adapter is seen in the result.
        return LoraConfig(target_modules=r".*language_model.*\.(q|v)_proj", r=4, init_lora_weights=False)

    def check(self, surrogate: Surrogate, plain: Surrogate) -> None:
        canvas = make_canvas(2)
        output = surrogate.forward(canvas, QUESTIONS[:2], ANSWERS[:2], with_features=True)
        loss = answer_loss(output)
        loss.backward()
        assert canvas.grad is not None
        assert (canvas.grad != 0).all()
        assert not any(parameter.requires_grad for parameter in surrogate.model.parameters())
        expected = plain.forward(canvas.detach(), QUESTIONS[:2], ANSWERS[:2], with_features=True)
        assert output.logits.shape == expected.logits.shape
        assert abs(loss.item() - answer_loss(expected).item()) > 1e-4
        assert output.features is not None
        assert expected.features is not None
        assert torch.equal(output.features.detach(), expected.features)

    def test_wrapped_by_peft(
        self, pair: Callable[[str], Pair], surrogates: Callable[[str], Surrogate], config: LoraConfig
    ) -> None:
        model, processor = pair("llava")
        wrapped = get_peft_model(model, config)
        surrogate = Surrogate(wrapped, processor)
        self.check(surrogate, surrogates("llava"))
        heads: list[int] = []
        model.lm_head.register_forward_pre_hook(lambda _, args: heads.append(args[0].shape[1]))
        tokens = surrogate.forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1]).logits.shape[1]
        assert heads == [tokens + 1]
        with wrapped.disable_adapter(), torch.no_grad():
            bare = surrogate.forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1]).logits
        torch.testing.assert_close(
            bare, surrogates("llava").forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1]).logits.detach()
        )

    @pytest.mark.skipif(
        Version(peft.__version__) < Version(MIN_PEFT_VERSION),
        # transformers 5.24.0 wants 0.22.0, which is not released.
        reason=f"this transformers loads adapters itself with PEFT {MIN_PEFT_VERSION} or later only",
    )
    def test_loaded_into_the_model_by_transformers(
        self, pair: Callable[[str], Pair], surrogates: Callable[[str], Surrogate], config: LoraConfig
    ) -> None:
        model, processor = pair("llava")
        model.add_adapter(config)
        assert hasattr(model, "peft_config")
        self.check(Surrogate(model, processor), surrogates("llava"))

    def test_from_a_folder_of_an_adapter(
        self,
        pair: Callable[[str], Pair],
        surrogates: Callable[[str], Surrogate],
        config: LoraConfig,
        tmp_path: Path,
    ) -> None:
        model, processor = pair("llava")
        model.save_pretrained(tmp_path / "base")
        assert isinstance(model.config, LlavaConfig)
        model.config._name_or_path = model.name_or_path = str(tmp_path / "base")
        wrapped = get_peft_model(model, config)
        wrapped.save_pretrained(tmp_path / "adapter")
        processor.save_pretrained(tmp_path / "adapter")
        loaded = Surrogate.from_pretrained(str(tmp_path / "adapter"))
        self.check(loaded, surrogates("llava"))
        with torch.no_grad():
            outputs = [s.forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1])
                       for s in (loaded, Surrogate(wrapped, processor))]  # fmt: skip
        torch.testing.assert_close(outputs[0].logits, outputs[1].logits)


def quantised(model: PreTrainedModel) -> PreTrainedModel:
    quantize_(model, Int8WeightOnlyConfig())
    return model


@needs_torchao
class TestInt8:
    @families
    def test_weights_in_place(self, family: str, pair: Callable[[str], Pair]) -> None:
        model, processor = pair(family)
        reference = copy.deepcopy(model)
        surrogate = Surrogate(quantised(model), processor)
        self.check(surrogate, reference, plain_step(family))

    def check(self, surrogate: Surrogate, reference: PreTrainedModel, full: Result) -> None:
        """Compares with the model whose float32 weights are the very values that the int8 ones stand for."""
        weights = {name: w.dequantize() for name, w in surrogate.model.named_parameters() if isinstance(w, Int8Tensor)}
        assert len(weights) >= 10
        changed = []
        for name, weight in weights.items():
            # A new parameter, as quantising unties a head from its embeddings.
            owner, _, key = name.rpartition(".")
            changed.append(not torch.equal(reference.get_parameter(name), weight))
            setattr(reference.get_submodule(owner), key, nn.Parameter(weight, requires_grad=False))
        assert all(changed)
        plain = Surrogate(reference, surrogate.processor)
        found = step(surrogate)
        same(found, step(plain))
        assert cosine(found.gradient, full.gradient) > 0.99
        assert found.loss != full.loss
        torch.testing.assert_close(scores(surrogate), scores(plain), rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("name", ["llava", "idefics3", "instructblip"])
    def test_loaded_from_a_folder(self, name: str) -> None:
        folder = str(bundled(f"zoo/{name}"))
        surrogate = Surrogate.from_pretrained(folder, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
        reference = Surrogate.from_pretrained(folder)
        assert not any(isinstance(weight, Int8Tensor) for weight in reference.model.parameters())
        self.check(surrogate, reference.model, step(Surrogate.from_pretrained(folder)))


COMPILERS: dict[str, Callable[[Any, str], Any]] = {
    "torch.compile(model)": lambda model, backend: torch.compile(model, backend=backend),
    "model.compile()": lambda model, backend: model.compile(backend=backend) or model,
    "model.forward": lambda model, backend: setattr(
        model, "forward", torch.compile(model.forward, backend=backend)) or model,
}  # fmt: skip


class TestCompiled:
    @pytest.fixture(autouse=True)
    def own_cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        # The shared one keeps what a killed run has left half written.
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))

    @pytest.fixture(autouse=True)
    def _forget(self) -> Iterator[None]:
        torch._dynamo.reset()
        counters.clear()
        yield
        # It was compiled indeed, and not run as it is.
        assert counters["stats"]["unique_graphs"] > 0
        torch._dynamo.reset()

    @pytest.mark.parametrize(
        ("family", "compiler", "backend"),
        [
            # The first of them is asked by default: a compilation takes many seconds.
            pytest.param(family, compiler, backend,
                         marks=() if (family, compiler, backend) == ("llava", "torch.compile(model)", "aot_eager")
                         else pytest.mark.slow)
            for family in FAMILIES
            for compiler, backend in [*((c, "aot_eager") for c in COMPILERS), ("torch.compile(model)", "inductor")]
        ],
    )  # fmt: skip
    def test_it_trains_as_the_plain_model(
        self,
        family: str,
        compiler: str,
        backend: str,
        pair: Callable[[str], Pair],
        surrogates: Callable[[str], Surrogate],
    ) -> None:
        model, processor = pair(family)
        surrogate = Surrogate(COMPILERS[compiler](model, backend), processor)
        same(step(surrogate), plain_step(family))
        clean = surrogate.features(make_canvas(2), QUESTIONS)
        plain = surrogates(family).features(make_canvas(2), QUESTIONS)
        torch.testing.assert_close(clean, plain, rtol=1e-3, atol=1e-4)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("family", "compiler"),
        [*(("llava", compiler) for compiler in COMPILERS), *((f, "torch.compile(model)") for f in FAMILIES[1:])],
    )
    def test_it_ranks_as_the_plain_model(
        self, family: str, compiler: str, pair: Callable[[str], Pair], surrogates: Callable[[str], Surrogate]
    ) -> None:
        model, processor = pair(family)
        surrogate = Surrogate(COMPILERS[compiler](model, "aot_eager"), processor)
        torch.testing.assert_close(scores(surrogate), scores(surrogates(family)), rtol=1e-3, atol=1e-3)


class TestSplitOverDevices:
    def parts(self, model: PreTrainedModel) -> list[str]:
        """Names of modules that hold every parameter between them, those of the layers one by one."""
        kept = model._no_split_modules or []
        names: list[str] = []

        def visit(module: nn.Module, name: str) -> None:
            if type(module).__name__ in kept or not any(True for _ in module.children()):
                names.append(name)
                return
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            names.extend(f"{name}.{key}".lstrip(".") for key, _ in own)
            for child, part in module.named_children():
                visit(part, f"{name}.{child}".lstrip("."))

        visit(model, "")
        return names

    @families
    def test_hooks_between_the_parts(
        self, family: str, pair: Callable[[str], Pair], surrogates: Callable[[str], Surrogate]
    ) -> None:
        model, processor = pair(family)
        device_map = dict.fromkeys(self.parts(model), "cpu")
        assert len(device_map) > 5
        surrogate = Surrogate(dispatch_model(model, device_map, main_device="cpu", force_hooks=True), processor)
        hooked = [name for name, module in surrogate.model.named_modules() if hasattr(module, "_hf_hook")]
        assert len(hooked) > 5
        same(step(surrogate), plain_step(family))
        clean = surrogate.features(make_canvas(2), QUESTIONS)
        torch.testing.assert_close(clean, surrogates(family).features(make_canvas(2), QUESTIONS))
        torch.testing.assert_close(scores(surrogate), scores(surrogates(family)), rtol=1e-3, atol=1e-3)

    @families
    def test_weights_that_wait_on_disk(self, family: str, pair: Callable[[str], Pair], tmp_path: Path) -> None:
        model, processor = pair(family)
        device_map = dict.fromkeys(self.parts(model), "cpu")
        layers = [name for name in device_map if "layers.1" in name and "vision" not in name]
        device_map.update(dict.fromkeys(layers, "disk"))
        assert layers
        dispatched = dispatch_model(model, device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
        assert any(parameter.is_meta for parameter in dispatched.parameters())
        same(step(Surrogate(dispatched, processor)), plain_step(family))

    def test_loaded_with_a_device_map(self, pair: Callable[[str], Pair], tmp_path: Path) -> None:
        for part in pair("llava"):
            part.save_pretrained(tmp_path)
        device_map = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu",
                      "model.language_model": "cpu", "lm_head": "cpu"}  # fmt: skip
        surrogate = Surrogate.from_pretrained(str(tmp_path), device_map=device_map)
        assert surrogate.device == torch.device("cpu")
        same(step(surrogate), plain_step("llava"))


def with_lora(model: PreTrainedModel) -> Any:
    return with_adapter(model, "lora")


class TestTraining:
    @pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
    @pytest.mark.parametrize("form", [pytest.param(quantised, marks=needs_torchao), with_lora])
    def test_ten_steps_lower_the_loss_and_leave_the_model(
        self, family: str, form: Callable[[Any], Any], pair: Callable[[str], Pair], tmp_path: Path
    ) -> None:
        model, processor = pair(family)
        surrogate = Surrogate(form(model), processor)
        before = self.values(surrogate.model)
        prompt = new_prompt()
        start = prompt.delta.detach().clone()
        # The same four rows in every step.
        trainer = make_trainer(tmp_path, model=prompt, surrogates=surrogate, train_dataset=dataset(4), max_steps=10)
        trainer.train()
        logged = [entry["loss"] for entry in losses(trainer)]
        assert len(logged) == 10
        assert logged[-1] < logged[0] - 0.01, logged
        assert not torch.equal(prompt.delta.detach().cpu(), start)
        after = self.values(surrogate.model)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert not any(parameter.requires_grad for parameter in surrogate.model.parameters())

    @staticmethod
    def values(model: nn.Module) -> dict[str, torch.Tensor]:
        """Every parameter and buffer, the int8 weights as what they stand for."""
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {k: (v.dequantize() if isinstance(v, Int8Tensor) else v).detach().clone() for k, v in state.items()}
