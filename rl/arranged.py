"""The image network's arithmetic, arranged for speed: the same function of the same weights.

`rl.networks.QNetwork` says what is computed, in the layout that every other library has. Here it is
computed with channels last, because then the parts of a convolution's sum lie side by side:

    pack(x)            4 x 4 blocks of pixels become channels: the first convolution (8 x 8, stride
                       4, on 4 channels) is a 2 x 2 convolution of stride 1 on 64. Bytes stay bytes.
    arrange(network)   the weights permuted accordingly, in the precision of the convolutions, and
                       the first ones divided by 255 in place of the pixels. Differentiable: the
                       parameters, their gradients and the optimizer keep the reference layout.
    q_values(...)      convolution, layer normalization over (H, W, C), ReLU, three times; then the
                       last two layers in float32, whatever the precision: bfloat16 has 8 bits, a
                       grid of its own of 1/128 for values between 1 and 2.

Layer normalization does not care about the order of what it normalizes, as long as its weights
have the same. Bytes are exact in bfloat16. Master weights are float32 always.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from reprise.rollout.errors import BadInput
from reprise.rollout.files import write_json

if TYPE_CHECKING:
    from reprise.rl.config import PQN
    from reprise.rl.networks import QNetwork
    from reprise.rl.workers import Workers
    from reprise.rollout.run.run_dir import RunDir

BLOCK = 4  # pixels, the stride of the first convolution


class Norm(NamedTuple):
    """Layer normalization's weight and bias, flat."""

    weight: torch.Tensor
    bias: torch.Tensor


class Layer(NamedTuple):
    """A convolution and the normalization after it."""

    weight: torch.Tensor
    bias: torch.Tensor
    stride: int
    norm: Norm


class Arranged(NamedTuple):
    """The weights as `q_values` uses them."""

    convolutions: tuple[Layer, ...]
    hidden: tuple[torch.Tensor, torch.Tensor]
    hidden_norm: Norm
    head: tuple[torch.Tensor, torch.Tensor]


def pack(observations: torch.Tensor) -> torch.Tensor:
    """Bytes [N, C, H, W] -> [N, H/4, W/4, 16 C], channels in the order (c, y, x)."""
    count, channels, height, width = observations.shape
    rows, columns = height // BLOCK, width // BLOCK
    words = observations.contiguous().view(torch.int32)  # the four bytes of a block's row at once
    blocks = words.view(count, channels, rows, BLOCK, columns).permute(0, 2, 4, 1, 3)
    return blocks.contiguous().view(torch.uint8).view(count, rows, columns, -1)


def arrange(network: QNetwork, dtype: torch.dtype) -> Arranged:
    """The network's weights for `q_values`; gradients flow back to its parameters."""
    first = network.conv1.weight
    outputs, channels, size, _ = first.shape
    blocks = size // BLOCK
    first = first.view(outputs, channels, blocks, BLOCK, blocks, BLOCK).permute(0, 1, 3, 5, 2, 4)
    first = first.reshape(outputs, channels * BLOCK * BLOCK, blocks, blocks) / 255
    weights = [first, network.conv2.weight, network.conv3.weight]
    convolutions = [network.conv1, network.conv2, network.conv3]
    norms = [network.norm1, network.norm2, network.norm3]
    strides = [1, network.conv2.stride[0], network.conv3.stride[0]]
    # On a CPU layer normalization takes bfloat16 inputs with float32 weights; on CUDA it does not.
    norm_dtype = torch.float32 if first.device.type == "cpu" else dtype
    return Arranged(
        tuple(
            Layer(
                weight.to(dtype, memory_format=torch.channels_last),
                convolution.bias.to(dtype),
                stride,
                Norm(*(_last(part).to(norm_dtype) for part in (norm.weight, norm.bias))),
            )
            for weight, convolution, stride, norm in zip(
                weights, convolutions, strides, norms, strict=True
            )
        ),
        (network.hidden.weight.to(dtype), network.hidden.bias.to(dtype)),
        Norm(network.norm4.weight, network.norm4.bias),
        (network.head.weight, network.head.bias),
    )


def q_values(weights: Arranged, packed: torch.Tensor) -> torch.Tensor:
    """Q-values float32 [N, A], not quantized, of packed observations [N, H/4, W/4, 16 C]."""
    x = packed.to(weights.hidden[0].dtype).permute(0, 3, 1, 2)
    for layer in weights.convolutions:
        x = F.conv2d(x, layer.weight, layer.bias, layer.stride)
        x = x.contiguous(memory_format=torch.channels_last)
        count, channels, height, width = x.shape
        flat = x.permute(0, 2, 3, 1).reshape(count, -1)
        flat = F.layer_norm(flat, flat.shape[1:], layer.norm.weight, layer.norm.bias)
        x = F.relu(flat).view(count, height, width, channels).permute(0, 3, 1, 2)
    x = F.linear(x.flatten(1), *weights.hidden).float()
    x = F.relu(F.layer_norm(x, x.shape[1:], *weights.hidden_norm))
    return F.linear(x, *weights.head)


def _last(weight: torch.Tensor) -> torch.Tensor:
    """[C, H, W] -> flat [H W C]."""
    return weight.permute(1, 2, 0).flatten()


def measure(work: dict[str, Callable[[], None]], repeats: int = 3) -> dict[str, float]:
    """Fewest milliseconds of each piece of work, after one unmeasured time; taken in turns."""
    for one in work.values():
        one()
    best = dict.fromkeys(work, float("inf"))
    for _ in range(repeats):
        for name, one in work.items():
            start = time.perf_counter()
            one()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


class Forward:
    """A network's Q-values in one arrangement and precision.

    Args:
        network: float32, in the reference layout.
        arrangement: "fast" or "reference".
        dtype: of the convolutions (all of a network for vectors is float32).
    """

    def __init__(self, network: QNetwork, arrangement: str, dtype: torch.dtype) -> None:
        self.network, self.dtype = network, dtype
        self.fast = network.images and arrangement == "fast"

    def encode(self, observations: np.ndarray, device: torch.device) -> torch.Tensor:
        """Observations [N, ...] as they are stored and computed with."""
        tensor = torch.from_numpy(observations).to(device)
        return pack(tensor) if self.fast else tensor

    def weights(self) -> Arranged | None:
        """The weights as they are now, for `__call__`: once for each update, or for all acting."""
        return arrange(self.network, self.dtype) if self.fast else None

    def __call__(self, weights: Arranged | None, encoded: torch.Tensor) -> torch.Tensor:
        """Q-values float32 [N, A], not quantized."""
        if weights is not None:
            return q_values(weights, encoded)
        lower = self.dtype != torch.float32
        with torch.autocast(encoded.device.type, self.dtype, enabled=lower):
            values: torch.Tensor = self.network(encoded)
        return values.float()


def choose_precision(network: QNetwork, arrangement: str, rows: int) -> dict[str, float]:
    """Milliseconds of forward and backward over `rows` observations, by precision.

    Not every machine multiplies bfloat16 faster; on some it is emulated.
    """
    shape = (rows, *network.observation_shape)
    noise = np.random.Generator(np.random.Philox(0)).integers(0, 256, shape, dtype=np.uint8)
    device = network.head.weight.device

    def once(precision: str) -> Callable[[], None]:
        forward = Forward(network, arrangement, getattr(torch, precision))
        encoded = forward.encode(noise, device)

        def work() -> None:
            forward(forward.weights(), encoded).square().mean().backward()
            network.zero_grad()
            if device.type != "cpu":
                torch.accelerator.synchronize()

        return work

    return measure({precision: once(precision) for precision in ("float32", "bfloat16")})


def decide_precision(config: PQN, network: QNetwork, run_dir: RunDir, workers: Workers) -> str:
    """The precision of the convolutions; measured once for a run, and the same when it resumes.

    Raises:
        BadInput: bfloat16 for vectors.
    """
    if not network.images:
        if config.precision == "bfloat16":
            raise BadInput(
                f"precision=bfloat16: the observations of {config.environment} are vectors, whose "
                "network is float32; use auto or float32"
            )
        return "float32"
    if config.precision != "auto":
        return config.precision
    chosen: dict[str, Any] = {}
    file = run_dir.path / "precision.json"
    if run_dir.is_main and file.is_file():
        chosen = json.loads(file.read_text(encoding="utf-8"))
    elif run_dir.is_main:
        rows = config.batch // config.minibatches // workers.world
        times = choose_precision(network, config.arrangement, max(1, rows))
        gains = times["bfloat16"] < 0.9 * times["float32"]
        chosen = {"precision": "bfloat16" if gains else "float32", "milliseconds": times}
        write_json(file, chosen)
        run_dir.say(f"precision: {chosen['precision']} (milliseconds a minibatch: {times})")
    return str(workers.gather(chosen)[0]["precision"])
