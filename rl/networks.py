"""Q-networks: what is computed, in the reference layout; saved, loaded, and asked for actions.

Images (CleanRL's network for PQN on Atari), uint8 [N, 4, 84, 84]:

    x/255 -> conv 32, 8x8/4 -> LN -> ReLU -> conv 64, 4x4/2 -> LN -> ReLU -> conv 64, 3x3 -> LN
          -> ReLU -> linear 512 -> LN -> ReLU -> linear |A|

with LN over (C, H, W). Vectors: linear -> LN -> ReLU for each of `hidden`, then linear |A|. Weights
are orthogonal with gain sqrt(2), the last layer's too, and biases 0.

A folder of a policy holds `model.safetensors` (float32, these names and shapes, however the run
computed) and `network.json` (`Metadata`), so that it can be used without the run's config.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from reprise.rl.config import Quantization
from reprise.rl.quantize import Quantizer
from reprise.rollout.errors import BadInput
from reprise.rollout.files import write_json


@dataclass(frozen=True)
class Metadata:
    """What a saved policy is a policy of.

    Attributes:
        environment: its name, as `rollout.environments.make` takes it.
        environment_settings: `EnvironmentSettings` as plain values.
        observation_shape: of one observation.
        actions: |A|.
        hidden: layers of the network for vectors.
        quantization: `Quantization` as plain values: the policy acts on rounded values.
        training: what the run was (seed, steps, precision): for people, nothing depends on it.
    """

    environment: str
    environment_settings: dict[str, Any]
    observation_shape: list[int]
    actions: int
    hidden: list[int]
    quantization: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)


class QNetwork(nn.Module):
    """Q(s, .) before rounding; `quantizer` is what acting and targets apply to it.

    Args:
        observation_shape: [4, 84, 84] (bytes) or [D].
        actions: |A|.
        hidden: layers for vectors.
        quantizer: of its values.
    """

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        actions: int,
        hidden: tuple[int, ...] = (120, 84),
        quantizer: Quantizer | None = None,
    ) -> None:
        super().__init__()
        self.observation_shape, self.actions = tuple(observation_shape), actions
        self.quantizer = quantizer or Quantizer(Quantization())
        self.images = len(observation_shape) == 3
        if self.images:
            channels, height, width = observation_shape
            if min(height, width) < 36 or height % 4 or width % 4:
                raise BadInput(
                    f"observation_shape={list(observation_shape)}: height and width must be "
                    "multiples of 4 and at least 36 for the three convolutions"
                )
            self.conv1 = nn.Conv2d(channels, 32, 8, stride=4)
            height, width = (height - 8) // 4 + 1, (width - 8) // 4 + 1
            self.norm1 = nn.LayerNorm([32, height, width])
            self.conv2 = nn.Conv2d(32, 64, 4, stride=2)
            height, width = (height - 4) // 2 + 1, (width - 4) // 2 + 1
            self.norm2 = nn.LayerNorm([64, height, width])
            self.conv3 = nn.Conv2d(64, 64, 3)
            height, width = height - 2, width - 2
            self.norm3 = nn.LayerNorm([64, height, width])
            self.hidden = nn.Linear(64 * height * width, 512)
            self.norm4 = nn.LayerNorm(512)
            self.head = nn.Linear(512, actions)
        else:
            sizes = [math.prod(observation_shape), *hidden]
            self.layers = nn.Sequential()
            for number, (before, after) in enumerate(pairwise(sizes), 1):
                self.layers.add_module(f"linear{number}", nn.Linear(before, after))
                self.layers.add_module(f"norm{number}", nn.LayerNorm(after))
                self.layers.add_module(f"relu{number}", nn.ReLU())
            self.head = nn.Linear(sizes[-1], actions)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Observations [N, ...] -> Q-values [N, A], not quantized."""
        if not self.images:
            values: torch.Tensor = self.head(self.layers(observations.flatten(1)))
            return values
        x = observations.to(self.head.weight.dtype) / 255
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.conv3(x)))
        x = F.relu(self.norm4(self.hidden(x.flatten(1))))
        values = self.head(x)
        return values


def build(
    observation_shape: tuple[int, ...],
    actions: int,
    hidden: tuple[int, ...],
    quantizer: Quantizer,
    seed: int,
) -> QNetwork:
    """A network with new weights, orthogonal, from a generator of its own."""
    network = _empty(observation_shape, actions, hidden, quantizer)
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(module.weight, math.sqrt(2), generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    return network


def _empty(
    observation_shape: tuple[int, ...], actions: int, hidden: tuple[int, ...], quantizer: Quantizer
) -> QNetwork:
    """Without the default initialization, which draws from the global generator."""
    with torch.device("meta"):
        network = QNetwork(observation_shape, actions, hidden, quantizer)
    return network.to_empty(device="cpu")


def greedy(network: QNetwork, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the policy does, in float32 whatever it was trained in.

    Args:
        network: in the reference layout.
        observations: [B, ...].

    Returns:
        Actions int64 [B] (of equal values the lowest) and rounded Q-values float32 [B, A].

    Raises:
        BadInput: observations of another shape.
    """
    if observations.shape[1:] != network.observation_shape:
        raise BadInput(
            f"observations: shape {list(observations.shape[1:])}; this policy is of "
            f"{list(network.observation_shape)}. Preprocess them as the environment does"
        )
    device = network.head.weight.device
    with torch.no_grad():
        inputs = torch.from_numpy(np.ascontiguousarray(observations)).to(device)
        values = network.quantizer(network(inputs))
        return values.argmax(1).cpu().numpy(), values.cpu().numpy()


# -- on disk ---------------------------------------------------------------------------------------


def save_weights(network: QNetwork, folder: Path) -> None:
    """Write ``model.safetensors``."""
    from safetensors.torch import save_file

    tensors = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, str(folder / "model.safetensors"))


def save_policy(network: QNetwork, folder: Path, metadata: Metadata) -> None:
    """Write weights and metadata into `folder`, which exists."""
    save_weights(network, folder)
    write_json(folder / "network.json", asdict(metadata))


def load_weights(network: QNetwork, folder: Path) -> None:
    """Read ``model.safetensors`` into `network`; nothing missing, nothing over.

    Raises:
        BadInput: they are of another network, such as one for another number of actions.
    """
    from safetensors.torch import load_file

    file = folder / "model.safetensors"
    saved = load_file(file)
    found = {name: list(tensor.shape) for name, tensor in saved.items()}
    wanted = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    if found != wanted:
        names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
        if names == ["head.weight", "head.bias"]:
            raise BadInput(
                f"{file}: a policy with {found['head.bias'][0]} actions, but {network.actions} "
                "are needed; is it of another game, or of another full_action_space?"
            )
        name = names[0]
        raise BadInput(
            f"{file}: {name} has shape {found.get(name, 'none')}, needed is "
            f"{wanted.get(name, 'none')} ({len(names)} of {len(wanted)} tensors differ); "
            "these are the weights of another network"
        )
    network.load_state_dict(saved)


def load_policy(path: str | os.PathLike[str]) -> tuple[QNetwork, Metadata]:
    """The network, in float32 and ready for `greedy`, and what it is a policy of.

    Args:
        path: a run directory (its ``checkpoints/final``), or a folder that `save_policy` wrote.

    Raises:
        BadInput: there is none, or its weights do not fit its metadata.
    """
    path = Path(path)
    folder = next(
        (one for one in (path, path / "checkpoints" / "final") if (one / "network.json").is_file()),
        None,
    )
    if folder is None:
        hint = "; that run is not finished" if (path / "config.yaml").is_file() else ""
        raise BadInput(
            f"{path} holds no policy: neither network.json nor checkpoints/final/network.json{hint}"
        )
    metadata = Metadata(**json.loads((folder / "network.json").read_text(encoding="utf-8")))
    quantizer = Quantizer(Quantization(**metadata.quantization))
    network = _empty(
        tuple(metadata.observation_shape), metadata.actions, tuple(metadata.hidden), quantizer
    )
    load_weights(network, folder)
    return network.eval(), metadata
