"""Gradient checkpointing of frozen models: the same gradient, layers run again, dropout off."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch
from by_hand import T5
from tiny import language_model, make_canvas
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin
from transformers.modeling_layers import GradientCheckpointingLayer

from transferable_vp.answers import answer_loss
from transferable_vp.checkpointing import checkpoint_layers, recomputing
from transferable_vp.generation import generate
from transferable_vp.surrogate import Surrogate


Pair = tuple[PreTrainedModel, ProcessorMixin]
QUESTIONS = ["What is it?", "Which colour is the square in the picture, and why is it so?"]
ANSWERS = ["red", "a blue square"]
all_families = pytest.mark.parametrize("family", [*tiny.FAMILIES, T5])


class TestGradientCheckpointing:
    @all_families
    @pytest.mark.parametrize("late", [False, True])
    def test_the_gradient_is_the_same(
        self, family: str, surrogate: Surrogate, own_pair: Callable[[str], Pair], late: bool
    ) -> None:
        checkpointed = Surrogate(*own_pair(family), gradient_checkpointing=not late)
        if late:
            checkpointed.enable_gradient_checkpointing()
        linears: dict[str, nn.Module] = {}
        for name, layer in checkpointed.model.named_modules():
            if isinstance(layer, GradientCheckpointingLayer):
                linears[name] = next(part for part in layer.modules() if isinstance(part, nn.Linear))
        runs = dict.fromkeys(linears, 0)
        for name, linear in linears.items():
            linear.register_forward_pre_hook(lambda *_, name=name: runs.update({name: runs[name] + 1}))
        gradients = []
        for model in (surrogate, checkpointed):
            canvas = make_canvas(2)
            output = model.forward(canvas, QUESTIONS[:2], ANSWERS[:2], with_features=True)
            assert output.features is not None
            (answer_loss(output) + output.features.square().mean()).backward()
            gradients.append(canvas.grad)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-8)
        # Every layer on the way to the image once forward and once again backward, whatever part of the model it is in.
        assert any("vision" in name or "visual" in name for name in runs)
        assert any("vision" not in name and "visual" not in name for name in runs)
        assert {name: count for name, count in runs.items() if count != 2} == {}

    def test_dropout_stays_off(self, own_pair: Callable[[str], Pair]) -> None:
        model, processor = own_pair("blip-2")

        def gradient(surrogate: Surrogate) -> torch.Tensor:
            canvas = make_canvas()
            answer_loss(surrogate.forward(canvas, QUESTIONS[:1], ANSWERS[:1])).backward()
            assert canvas.grad is not None
            return canvas.grad

        layers = language_model(model).model.decoder.layers
        for layer in layers:
            layer.dropout = layer.self_attn.dropout = 0.5
        surrogate = Surrogate(model, processor)
        expected = gradient(surrogate)
        surrogate.enable_gradient_checkpointing()
        assert torch.equal(gradient(surrogate), expected)
        # And that is not because there is none.
        surrogate._recomputed = []
        layers[0].train()
        assert not torch.allclose(gradient(surrogate), expected)

    def test_a_pass_without_a_graph_is_as_it_was(self, own_pair: Callable[[str], Pair]) -> None:
        surrogate = Surrogate(*own_pair("llava"))
        arguments = (surrogate, [tiny.picture()], ["What is in the picture?"])
        written = generate(*arguments, max_new_tokens=6)
        surrogate.enable_gradient_checkpointing()
        surrogate.forward(make_canvas(), QUESTIONS[:1], ANSWERS[:1])
        # In training mode, layers keep no cache, and every token would be written as if it were the first.
        assert not any(layer.training for layer in surrogate.model.modules())
        assert generate(*arguments, max_new_tokens=6) == written


class Layer(GradientCheckpointingLayer):
    """Notes how it is run: whether in training mode, and whether with a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout, self.modes = nn.Linear(3, 3), nn.Dropout(0.5), []

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.modes.append((self.training, self.dropout.training))
        return self.dropout(self.linear(hidden)).tanh()


class TestLayers:
    @pytest.fixture
    def model(self) -> nn.Sequential:
        model = nn.Sequential(Layer(), nn.ModuleDict({"deep": Layer()})["deep"], nn.Linear(3, 3))
        return model.eval().requires_grad_(False)

    def test_a_layer_runs_again_as_it_ran(self, model: nn.Sequential) -> None:
        hidden = torch.rand(2, 3, requires_grad=True)
        (expected,) = torch.autograd.grad(model(hidden).sum(), hidden)
        layers = checkpoint_layers(model)
        assert layers == list(model[:2])
        for layer in layers:
            layer.modes.clear()
        with recomputing(layers):
            loss = model(hidden).sum()
        assert [layer.modes for layer in layers] == [[(False, False)]] * 2
        # After the context too, which is when a backward pass comes.
        (gradient,) = torch.autograd.grad(loss, hidden)
        assert torch.equal(gradient, expected)
        assert [layer.modes for layer in layers] == [[(False, False)] * 2] * 2

    def test_nothing_else_goes_to_training_mode(self, model: nn.Sequential) -> None:
        layers = checkpoint_layers(model)
        with recomputing(layers):
            # What transformers asks for before it checkpoints; their own parts stay in evaluation mode.
            assert [layer.training for layer in model] == [True, True, False]
            assert not any(layer.dropout.training for layer in layers)
            model(torch.rand(2, 3, requires_grad=True))
            assert [layer.training for layer in model] == [True, True, False]
        assert not any(layer.training for layer in model)

    def test_outside_the_context_nothing_is_recomputed(self, model: nn.Sequential) -> None:
        layers = checkpoint_layers(model)
        model(torch.rand(2, 3, requires_grad=True)).sum().backward()
        assert [len(layer.modes) for layer in layers] == [1, 1]

    def test_an_error_leaves_a_layer_as_it_was(self, model: nn.Sequential) -> None:
        layers = checkpoint_layers(model)
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"), recomputing(layers):
            model(torch.rand(2, 5, requires_grad=True))
        assert not any(layer.training for layer in model)
        hidden = torch.rand(2, 3, requires_grad=True)
        for layer in layers:
            layer.modes.clear()
        with recomputing(layers):
            loss = model(hidden).sum()
        loss.backward()
        assert hidden.grad is not None
        assert [len(layer.modes) for layer in layers] == [2, 2]

    def test_the_model_stays_frozen(self, model: nn.Sequential) -> None:
        checkpoint_layers(model)
        assert not any(parameter.requires_grad for parameter in model.parameters())
        model(torch.rand(2, 3, requires_grad=True)).sum().backward()
        assert all(parameter.grad is None for parameter in model.parameters())
