"""Where bfloat16 spoils PQN's gradient: its error against float32's, arm by arm.

python -m benchmarks.pqn_precision [--iterations 8]    Breakout after a few iterations, minutes

For weights of a few iterations and a minibatch of what they saw, with the loss of `rl.pqn`,

    error = |g - g_32| / |g_32|        over all parameters, and for each layer

and the share of greedy actions that differ. The first arm is the arrangement as it is. The others
compute in float32 and round to bfloat16 one kind of number only, going forward, backward or both:
what is left is that rounding, not a machine's way of summing. Normalization, sums of weight
gradients and master weights are float32 in all of them, so arms that round the operands alone are
what mending those would leave.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from reprise.launch.config import load
from reprise.rl.arranged import Arranged, arrange, q_values
from reprise.rl.pqn import Learner
from reprise.rl.workers import Clock
from reprise.rollout.run.run_dir import RunDir

LAYERS = ("conv1", "conv2", "conv3", "hidden", "head")


class Round(torch.autograd.Function):
    """The nearest bfloat16, as float32, of a value, of its gradient, or of both."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, forward: bool, backward: bool) -> torch.Tensor:
        """Round `x` if `forward`; remember whether to round its gradient."""
        context.backward_too = backward
        return x.bfloat16().float() if forward else x.clone()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Round the gradient if it was asked for."""
        (gradient,) = gradients
        return gradient.bfloat16().float() if context.backward_too else gradient, None, None


@dataclass(frozen=True)
class Arm:
    """What is rounded: weights, inputs of layers, their outputs (before normalization)."""

    name: str
    weights: bool = False
    inputs: bool = False
    outputs: bool = False
    forward: bool = True
    backward: bool = False

    def rounded(self, x: torch.Tensor, chosen: bool) -> torch.Tensor:
        """`x`, rounded if its kind is chosen."""
        if not chosen:
            return x
        result: torch.Tensor = Round.apply(x, self.forward, self.backward)
        return result


ARMS = (
    Arm("weights", weights=True),
    Arm("inputs of layers", inputs=True),
    Arm("outputs of layers", outputs=True),
    Arm("weights and inputs: float32 normalization", weights=True, inputs=True),
    Arm("the same, and gradients", weights=True, inputs=True, backward=True),
    Arm("gradients only", inputs=True, outputs=True, forward=False, backward=True),
    Arm("everything", weights=True, inputs=True, outputs=True, backward=True),
)


def rounded_q_values(weights: Arranged, packed: torch.Tensor, arm: Arm) -> torch.Tensor:
    """`rl.arranged.q_values` in float32, rounded where the arm says."""
    x = packed.float().permute(0, 3, 1, 2)  # bytes are exact
    for layer in weights.convolutions:
        x = F.conv2d(x, arm.rounded(layer.weight, arm.weights), layer.bias, layer.stride)
        x = arm.rounded(x, arm.outputs)
        count, channels, height, width = x.shape
        flat = x.permute(0, 2, 3, 1).reshape(count, -1)
        flat = F.relu(F.layer_norm(flat, flat.shape[1:], *layer.norm))
        flat = arm.rounded(flat, arm.inputs)
        x = flat.view(count, height, width, channels).permute(0, 3, 1, 2)
    hidden, bias = weights.hidden
    x = F.linear(x.flatten(1), arm.rounded(hidden, arm.weights), bias)
    x = arm.rounded(x, arm.outputs)
    x = F.relu(F.layer_norm(x, x.shape[1:], *weights.hidden_norm))
    return F.linear(x, *weights.head)


def main(arguments: Sequence[str] | None = None) -> None:
    """Learn a little, then print a line for each arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--seed", type=int, default=100, help="a development seed")
    options = parser.parse_args(arguments)
    print("| arm | error | " + " | ".join(LAYERS) + " | cosine | greedy actions changed |")
    print("|---" * (len(LAYERS) + 4) + "|")
    for name, numbers in measured(options.iterations, options.rows, options.seed).items():
        print(f"| {name} | " + " | ".join(f"{one:.4f}" for one in numbers) + " |")


def measured(iterations: int, rows: int, seed: int) -> dict[str, list[float]]:
    """For each arm: error over all parameters and by layer, cosine, share of changed actions."""
    config = load("laptop/pqn_breakout_baseline", [f"seed={seed}"])
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(config, RunDir(Path(folder), experiment="rl.pqn", seed=seed))
        learner.resume()
        for _ in range(iterations):
            rollout = learner.act(Clock(learner.workers.device))
            targets = learner.returns(rollout)
            learner.update(rollout, targets, Clock(learner.workers.device))
            learner.iteration += 1
    network = learner.network
    chosen = torch.randperm(config.batch, generator=torch.Generator().manual_seed(seed))[:rows]
    packed = rollout.observations.flatten(0, 1)[chosen]
    actions, target = rollout.actions.flatten()[chosen], targets.flatten()[chosen]

    def gradient(values: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        network.zero_grad()
        taken = values.gather(1, actions[:, None])[:, 0]
        (taken - target).square().mean().backward()
        grads = {name: getattr(network, name).weight.grad.clone() for name in LAYERS}
        grads["all"] = torch.cat([p.grad.flatten() for p in network.parameters()])
        return grads, values.argmax(1)

    exact, best = gradient(q_values(arrange(network, torch.float32), packed))
    found = {}
    arms = {"bfloat16 as it is": q_values(arrange(network, torch.bfloat16), packed)}
    arms |= {a.name: rounded_q_values(arrange(network, torch.float32), packed, a) for a in ARMS}
    for name, values in arms.items():
        grads, greedy = gradient(values)
        errors = [float((grads[k] - exact[k]).norm() / exact[k].norm()) for k in ("all", *LAYERS)]
        cosine = float(F.cosine_similarity(grads["all"], exact["all"], dim=0))
        found[name] = [*errors, cosine, float((greedy != best).float().mean())]
    return found


if __name__ == "__main__":
    main()
