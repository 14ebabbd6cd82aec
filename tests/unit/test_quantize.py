"""The grid of Q-values: idempotent, unbiased at midpoints, within its range, right gradients."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from reprise.rl.config import Quantization
from reprise.rl.quantize import Quantizer

pytestmark = pytest.mark.portable

STEPS = [0.01, 0.05, 0.1, 0.25, 0.3, 1.0]


def quantizer(step, largest=100.0, gradient="straight_through"):
    return Quantizer(Quantization(step=step, range=largest, gradient=gradient))


def values(scale=3.0, count=10_000):
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(count, generator=generator)


@pytest.mark.parametrize("step", STEPS)
def test_rounding_twice_is_rounding_once_to_the_last_bit(step):
    once = quantizer(step)(values(scale=60.0))
    assert torch.equal(quantizer(step)(once), once)


@pytest.mark.parametrize("step", STEPS)
def test_the_nearest_multiple_of_the_step(step):
    q = values()
    rounded = quantizer(step)(q)
    multiple = rounded.double() / step
    assert (multiple - multiple.round()).abs().max() < 1e-4
    assert (rounded - q).abs().max() <= step / 2 * (1 + 1e-5)
    assert (rounded - q).abs().max() > 0.49 * step


def test_midpoints_go_up_as_often_as_down():
    # Sixteenths are exact in float32, so these are midpoints to the last bit.
    step = 0.0625
    midpoints = (torch.arange(-50, 50) + 0.5) * step
    rounded = quantizer(step)(midpoints)
    assert (rounded - midpoints).mean() == 0
    assert set((rounded - midpoints).tolist()) == {-step / 2, step / 2}
    assert torch.equal((rounded / step) % 2, torch.zeros(100))


def test_signs_are_treated_alike():
    q = values()
    assert torch.equal(quantizer(0.1)(-q), -quantizer(0.1)(q))


@pytest.mark.parametrize(
    "step, largest, top", [(0.5, 2.0, 2.0), (0.5, 2.3, 2.0), (0.1, 0.3, 0.3), (1.0, 1.0, 1.0)]
)
def test_values_beyond_the_range_go_to_its_last_points(step, largest, top):
    q = torch.tensor([-1e9, -50.0, 50.0, 1e9, float("inf")])
    expected = torch.tensor([-top, -top, top, top, top])
    torch.testing.assert_close(quantizer(step, largest)(q), expected, rtol=1e-6, atol=0)


def test_without_a_step_nothing_is_rounded():
    q = values().requires_grad_()
    assert quantizer(None)(q) is q
    assert quantizer(None).learned(q) is q
    assert quantizer(None).saturated(q) == 0


def test_nan_stays_nan():
    assert quantizer(0.1)(torch.tensor([float("nan")])).isnan().all()


@pytest.mark.parametrize("gradient", ["straight_through", "targets_only"])
def test_gradients_of_the_squared_error(gradient):
    # The last two are beyond the range, 2: their gradient must not vanish.
    q = torch.tensor([0.24, -0.3, 1.2, 5.0, -7.0], requires_grad=True)
    targets = torch.tensor([0.1, 0.2, 1.0, 1.5, 0.5])
    rounder = quantizer(0.5, 2.0, gradient)
    (rounder.learned(q) - targets).square().sum().backward()
    seen = {
        "straight_through": torch.tensor([0.0, -0.5, 1.0, 2.0, -2.0]),
        "targets_only": q.detach(),
    }[gradient]
    torch.testing.assert_close(q.grad, 2 * (seen - targets))


def test_what_the_loss_sees_is_what_acts_under_straight_through():
    q = values().requires_grad_()
    assert torch.equal(quantizer(0.1).learned(q), quantizer(0.1)(q))
    assert torch.equal(quantizer(0.1, gradient="targets_only").learned(q), q)


def test_the_share_beyond_the_range_is_counted():
    q = torch.tensor([0.0, 1.9, 2.1, -3.0])
    assert quantizer(0.5, 2.0).saturated(q) == 0.5
    assert quantizer(0.5, 2.0).saturated(q[:0]) == 0  # a process's part of a small minibatch


def test_a_range_below_the_step_is_refused():
    with pytest.raises(ValidationError, match=r"range=0\.05 is less than step=0\.1.*raise"):
        Quantization(step=0.1, range=0.05)


def test_rounding_makes_ties_and_the_lowest_action_wins():
    q = torch.tensor([[0.11, 0.12, 0.09], [0.0, 0.2, 0.19]])
    rounded = quantizer(0.1)(q)
    assert rounded.argmax(1).tolist() == [0, 1]
    assert np.allclose(rounded.numpy(), [[0.1, 0.1, 0.1], [0.0, 0.2, 0.2]])
