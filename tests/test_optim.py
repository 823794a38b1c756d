"""The paper's update rule, against the loop of its released code; and learning in blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import delta, make_trainer, new_prompt
from torch import nn

from transferable_vp import TransferableVisualPrompt, TransferableVisualPromptConfig
from transferable_vp.optim import PaperSGD, average_over_blocks


def border(size: int = 8, width: int = 2) -> torch.Tensor:
    mask = torch.ones(1, size, size, dtype=torch.bool)
    mask[:, width:-width, width:-width] = False
    return mask


def sample_losses(prompts: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Something that is nowhere flat, `(batch,)`; `prompts` has an entry per sample."""
    mixed = torch.sin(images + prompts)
    return (mixed * images.roll(1, -1)).flatten(1).mean(1) + 0.1 * (mixed[:, 0] - mixed[:, 2]).square().flatten(
        1
    ).mean(1)


class TestTheRule:
    @pytest.mark.parametrize("lr", [10.0, 0.3])
    def test_fifty_steps_of_the_released_loop(self, lr: float) -> None:
        """As in its `transfer_cls.py`: the gradient of a copy per sample, its mean over the batch divided by its norm
        over the whole canvas, then the mask, then the rate."""
        # In double precision: fifty steps of so steep a function make more of rounding than the rule itself does.
        generator = torch.Generator().manual_seed(0)
        batches = torch.rand(50, 4, 3, 8, 8, generator=generator, dtype=torch.float64)
        mask = border()
        released = torch.zeros(3, 8, 8, dtype=torch.float64)
        for images in batches:
            repeated = released.repeat(4, 1, 1, 1).requires_grad_()
            sample_losses(repeated, images).mean().backward()
            gradient = repeated.grad.mean(0)
            gradient = gradient / (gradient.norm(2) + 1e-10)
            released = released - gradient * mask.double() * lr

        ours = nn.Parameter(torch.zeros(3, 8, 8, dtype=torch.float64))
        rule = PaperSGD([ours], lr=lr, mask=mask)
        for images in batches:
            rule.zero_grad()
            sample_losses(ours.expand(4, -1, -1, -1), images).mean().backward()
            rule.step()
        assert released.abs().max() > 0.1 * lr
        torch.testing.assert_close(ours.detach(), released, rtol=0, atol=1e-6)

    def test_the_norm_is_taken_before_the_mask(self) -> None:
        prompt = TransferableVisualPrompt(TransferableVisualPromptConfig(canvas_size=8, border_size=2))
        prompt.delta.grad = torch.full_like(prompt.delta, 7.0)
        PaperSGD(prompt.parameters(), lr=10.0, mask=prompt.trainable_mask).step()
        expected = torch.where(border().expand(3, -1, -1), -10 / 192**0.5, 0)
        torch.testing.assert_close(prompt.delta.detach(), expected)
        # So that a step is as long as the border's share of the gradient, 144 of 192 values.
        torch.testing.assert_close(prompt.delta.detach().norm(), torch.tensor(10 * (144 / 192) ** 0.5))

    def test_the_scale_of_the_gradient_does_not_matter(self) -> None:
        direction = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
        steps = []
        for factor in (1e-4, 1.0, 1e4):
            parameter = nn.Parameter(torch.zeros(3, 4, 4))
            parameter.grad = direction * factor
            PaperSGD([parameter], lr=2.0).step()
            steps.append(parameter.detach())
            torch.testing.assert_close(parameter.detach(), -2 * direction / direction.norm())
        torch.testing.assert_close(steps[0], steps[2])

    def test_a_gradient_of_zero_moves_nothing(self) -> None:
        parameter = nn.Parameter(torch.ones(3, 4, 4))
        parameter.grad = torch.zeros_like(parameter)
        PaperSGD([parameter]).step()
        assert torch.equal(parameter.detach(), torch.ones(3, 4, 4))

    def test_the_gradient_itself_is_left_alone(self) -> None:
        parameter = nn.Parameter(torch.zeros(2))
        parameter.grad = torch.tensor([3.0, 4.0])
        PaperSGD([parameter], lr=1.0).step()
        assert parameter.grad.tolist() == [3.0, 4.0]
        torch.testing.assert_close(parameter.detach(), torch.tensor([-0.6, -0.8]))


class TestAsAnOptimizer:
    def test_the_default_rate_is_the_papers(self) -> None:
        assert PaperSGD([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 10.0

    def test_a_parameter_without_a_gradient_is_passed_over(self) -> None:
        without, with_one = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        with_one.grad = torch.tensor([0.0, 2.0])
        PaperSGD([without, with_one], lr=0.5).step()
        assert without.tolist() == [1, 1]
        assert with_one.tolist() == [1, 0.5]

    def test_every_parameter_has_a_norm_of_its_own(self) -> None:
        parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
        for parameter, gradient in zip(parameters, (1.0, 100.0), strict=True):
            parameter.grad = torch.tensor([gradient])
        PaperSGD(parameters, lr=0.5).step()
        assert [p.item() for p in parameters] == [-0.5, -0.5]

    def test_groups_have_rates_of_their_own(self) -> None:
        one, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        rule = PaperSGD([{"params": [one], "lr": 3.0}, {"params": [other]}], lr=1.0)
        one.grad, other.grad = torch.ones(1), torch.ones(1)
        rule.step()
        assert (one.item(), other.item()) == (-3, -1)

    def test_a_closure_is_run_with_gradients_and_its_loss_returned(self) -> None:
        parameter = nn.Parameter(torch.tensor([2.0]))
        rule = PaperSGD([parameter], lr=0.5)

        def closure() -> torch.Tensor:
            rule.zero_grad()
            loss = parameter.square().sum()
            loss.backward()
            return loss

        with torch.no_grad():
            assert rule.step(closure).item() == 4
        assert parameter.item() == 1.5
        assert rule.step() is None
        assert parameter.item() == 1

    def test_its_state_is_the_rate(self) -> None:
        parameter = nn.Parameter(torch.zeros(1))
        saved = PaperSGD([parameter], lr=3.0).state_dict()
        assert saved["state"] == {}
        loaded = PaperSGD([parameter], lr=1.0)
        loaded.load_state_dict(saved)
        parameter.grad = torch.ones(1)
        loaded.step()
        assert parameter.item() == -3

    def test_a_schedule(self) -> None:
        parameter = nn.Parameter(torch.zeros(1))
        rule = PaperSGD([parameter], lr=1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(rule, lambda step: 1 / (1 + step))
        for _ in range(3):
            parameter.grad = torch.ones(1)
            rule.step()
            schedule.step()
        assert parameter.item() == pytest.approx(-(1 + 1 / 2 + 1 / 3))

    def test_a_negative_rate(self) -> None:
        with pytest.raises(ValueError, match=r"`lr` is -0\.1; it must not be negative"):
            PaperSGD([nn.Parameter(torch.zeros(1))], lr=-0.1)

    def test_no_parameters(self) -> None:
        with pytest.raises(ValueError, match="empty parameter list"):
            PaperSGD([])


class TestBlocks:
    def test_each_block_has_the_mean_of_its_learned_pixels(self) -> None:
        gradient = torch.arange(3 * 64, dtype=torch.float32).reshape(3, 8, 8)
        mask = border(8, 3)
        found = average_over_blocks(gradient, mask, 2)
        for top in range(0, 8, 2):
            for left in range(0, 8, 2):
                window = (slice(None), slice(top, top + 2), slice(left, left + 2))
                learned = mask[window].expand(3, -1, -1)
                for channel in range(3):
                    values = gradient[window][channel][learned[channel]]
                    assert (found[window][channel][learned[channel]] == values.mean()).all()
        # The paper's rule takes the norm over the whole canvas: what is not learned keeps its gradient.
        assert torch.equal(found[:, 3:5, 3:5], gradient[:, 3:5, 3:5])

    @pytest.mark.parametrize("block_size", [3, 5, 100])
    def test_blocks_end_where_the_canvas_does(self, block_size: int) -> None:
        gradient = torch.rand(3, 8, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found = average_over_blocks(gradient, torch.ones(1, 8, 7, dtype=torch.bool), block_size)
        torch.testing.assert_close(found.sum(), gradient.sum())
        corner = gradient[:, 8 - 8 % block_size :, 7 - 7 % block_size :]
        if corner.numel():
            torch.testing.assert_close(found[:, -1, -1], corner.mean((1, 2)))

    def test_blocks_of_one_pixel_are_the_gradient(self) -> None:
        gradient = torch.rand(3, 8, 8)
        assert torch.equal(average_over_blocks(gradient, border(), 1), gradient)

    @pytest.mark.parametrize("update_rule", ["adam", "paper"])
    def test_a_trained_prompt_is_constant_in_each_block(self, update_rule: str, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, block_size=4, update_rule=update_rule, max_steps=3)
        trainer.train()
        learned = trainer.model.trainable_mask
        found = delta(trainer)
        assert found.abs().max() > 0.01
        torch.testing.assert_close(average_over_blocks(found, learned, 4), found, rtol=0, atol=1e-6)
        # Blocks differ from each other, and pixels of a prompt without blocks from their neighbours.
        assert len(found[0][learned[0]].unique()) > 10
        single = make_trainer(tmp_path, block_size=1, update_rule=update_rule, max_steps=3)
        single.train()
        assert (average_over_blocks(delta(single), learned, 4) - delta(single)).abs().max() > 0.01

    def test_blocks_that_were_not_given_are_an_eighth_of_the_canvas(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, model=new_prompt(canvas_size=30, border_size=6), block_size=None, max_steps=2)
        assert trainer.args.block_size == 3
        trainer.train()
        found, learned = delta(trainer), trainer.model.trainable_mask
        torch.testing.assert_close(average_over_blocks(found, learned, 3), found, rtol=0, atol=1e-6)
        assert (average_over_blocks(found, learned, 6) - found).abs().max() > 0.01

    def test_border_and_overlay_do_not_share_a_block(self, tmp_path: Path) -> None:
        prompt = new_prompt(layout="both", epsilon=0.03)
        trainer = make_trainer(tmp_path, model=prompt, block_size=5, max_steps=3)
        trainer.train()
        found = delta(trainer)
        for mask in (prompt.border_mask, ~prompt.border_mask):
            torch.testing.assert_close(average_over_blocks(found, mask, 5), found, rtol=0, atol=1e-6)
