"""Q-networks: one function in both arrangements, saved in one layout, asked for one action."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from reprise.rl.arranged import Forward, arrange, choose_precision, pack, q_values
from reprise.rl.config import Quantization
from reprise.rl.networks import Metadata, build, greedy, load_policy, load_weights, save_policy
from reprise.rl.quantize import Quantizer
from reprise.rollout.weights import weights_sha256

SHAPE = (4, 84, 84)


def network(shape=SHAPE, actions=5, step=None, seed=1, disturbed=True):
    made = build(shape, actions, (16, 8), Quantizer(Quantization(step=step)), seed)
    if disturbed:  # norms away from 1 and 0, so that their order matters
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


def frames(count, shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


def loss_and_gradients(made, compute):
    made.zero_grad()
    values = compute()
    weights = torch.linspace(-1, 1, values.numel()).view(values.shape)
    (weights * values).sum().backward()
    return values.detach().double(), {n: p.grad.double() for n, p in made.named_parameters()}


def relative(a, b):
    return float((a - b).norm() / b.norm())


# -- the reference ---------------------------------------------------------------------------------


def test_the_reference_is_the_usual_sequence_of_layers():
    made = network()
    usual = nn.Sequential(
        nn.Conv2d(4, 32, 8, stride=4),
        nn.LayerNorm([32, 20, 20]),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2),
        nn.LayerNorm([64, 9, 9]),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.LayerNorm([64, 7, 7]),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.LayerNorm(512),
        nn.ReLU(),
        nn.Linear(512, 5),
    )
    usual.load_state_dict(
        dict(zip(usual.state_dict(), made.state_dict().values(), strict=True)), strict=True
    )
    x = frames(3)
    torch.testing.assert_close(made(x), usual(x.float() / 255))


def test_initial_weights_are_orthogonal_with_gain_root_two_and_follow_the_seed():
    before = torch.random.get_rng_state()
    made = network(disturbed=False)
    for name, parameter in made.named_parameters():
        if name.startswith("norm"):
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            matrix = parameter.detach().flatten(1)
            matrix = matrix if len(matrix) <= matrix.shape[1] else matrix.T
            product = matrix @ matrix.T
            torch.testing.assert_close(product, 2 * torch.eye(len(product)), rtol=0, atol=1e-5)
    assert torch.equal(torch.random.get_rng_state(), before)
    same, other = (weights_sha256(network(seed=s, disturbed=False).state_dict()) for s in (1, 2))
    assert same == weights_sha256(made.state_dict()) != other


# -- the fast arrangement --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SHAPE, (3, 44, 60)])
def test_both_arrangements_are_one_function_with_one_gradient(shape):
    made, x = network(shape), frames(6, shape)
    values, gradients = loss_and_gradients(
        made, lambda: q_values(arrange(made, torch.float32), pack(x))
    )
    reference, expected = loss_and_gradients(made.double(), lambda: made.double()(x.double()))
    assert relative(values, reference) < 2e-6
    assert {
        name for name, one in gradients.items() if relative(one, expected[name]) > 2e-5
    } == set()


def made_in(made, arrangement, dtype, x):
    forward = Forward(made, arrangement, dtype)
    encoded = forward.encode(x.numpy(), torch.device("cpu"))
    return loss_and_gradients(made, lambda: forward(forward.weights(), encoded))


@pytest.mark.parametrize("arrangement", ["fast", "reference"])
def test_bfloat16_is_near_and_the_last_layers_are_not_in_it(arrangement):
    made, x = network(), frames(16)
    reference, expected = loss_and_gradients(made, lambda: made(x))
    values, gradients = made_in(made, arrangement, torch.bfloat16, x)
    assert relative(values, reference) < 0.05
    assert {
        name for name, one in gradients.items() if relative(one, expected[name]) > 0.25
    } == set()
    assert all(parameter.dtype == torch.float32 for parameter in made.parameters())
    if arrangement == "fast":  # not all on bfloat16's own grid
        assert not torch.equal(values.bfloat16().double(), values)


def test_packing_keeps_every_byte():
    x = frames(2)
    packed = pack(x)
    assert packed.dtype == torch.uint8 and packed.shape == (2, 21, 21, 64)
    back = packed.view(2, 21, 21, 4, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
    assert torch.equal(back, x)


def test_vectors_go_through_norms_too():
    made = network((4,))
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    h = x
    for number in (1, 2):
        h = h @ made.layers.get_submodule(f"linear{number}").weight.T
        h = h + made.layers.get_submodule(f"linear{number}").bias
        norm = made.layers.get_submodule(f"norm{number}")
        centred = h - h.mean(1, keepdim=True)
        h = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        h = (h * norm.weight + norm.bias).clamp(min=0)
    torch.testing.assert_close(made(x), h @ made.head.weight.T + made.head.bias)
    forward = Forward(made, "fast", torch.float32)
    assert torch.equal(forward(forward.weights(), x), made(x))


def test_precision_is_measured_for_both():
    times = choose_precision(network((4, 36, 36)), "fast", 2)
    assert set(times) == {"float32", "bfloat16"} and all(time > 0 for time in times.values())


@pytest.mark.parametrize("shape", [(4, 32, 84), (4, 84, 86)])
def test_images_that_are_too_small_or_odd_are_refused(shape):
    with pytest.raises(ValueError, match=r"multiples of 4 and at least 36"):
        network(shape)


# -- policies --------------------------------------------------------------------------------------


def metadata(step=None, actions=5, shape=SHAPE):
    quantization = Quantization(step=step).model_dump(mode="json")
    return Metadata("breakout", {}, list(shape), actions, [16, 8], quantization, {"seed": 3})


def test_a_saved_policy_comes_back_bit_for_bit_and_acts_on_rounded_values(tmp_path):
    made, x = network(step=2.0), frames(9)
    save_policy(made, tmp_path, metadata(step=2.0))
    loaded, found = load_policy(tmp_path)
    assert found == metadata(step=2.0)
    assert weights_sha256(loaded.state_dict()) == weights_sha256(made.state_dict())
    actions, values = greedy(loaded, x.numpy())
    raw = made(x).detach().numpy()
    assert np.allclose(values, np.round(raw / 2) * 2)
    assert not np.allclose(values, raw)
    assert actions.dtype == np.int64 and values.dtype == np.float32
    # Rounding makes ties here, and the lowest action wins them.
    ties = (values == values.max(1, keepdims=True)).sum(1) > 1
    assert ties.any()
    assert actions.tolist() == [int(np.flatnonzero(row == row.max())[0]) for row in values]


def test_observations_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \[4, 80, 84\].*Preprocess"):
        greedy(network(), np.zeros((2, 4, 80, 84), dtype=np.uint8))


def test_a_policy_with_another_number_of_actions_is_refused(tmp_path):
    save_policy(network(actions=4), tmp_path, metadata(actions=9))
    with pytest.raises(ValueError, match=r"with 4 actions, but 9 are needed.*another game"):
        load_policy(tmp_path)


def test_weights_of_another_network_are_refused(tmp_path):
    save_policy(network((4,)), tmp_path, metadata(shape=(4,)))
    with pytest.raises(ValueError, match=r"another network"):
        load_weights(network(), tmp_path)


def test_a_folder_without_a_policy_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no policy.*final/network.json$"):
        load_policy(tmp_path)
    (tmp_path / "config.yaml").write_text("experiment: rl.pqn\n")
    with pytest.raises(ValueError, match=r"holds no policy.*not finished"):
        load_policy(tmp_path)


def test_metadata_are_plain_json(tmp_path):
    save_policy(network((4,)), tmp_path, metadata(step=0.25, shape=(4,)))
    found = json.loads((tmp_path / "network.json").read_text())
    assert found["quantization"] == {"step": 0.25, "range": 100.0, "gradient": "straight_through"}
    assert found["actions"] == 5 and found["observation_shape"] == [4]
