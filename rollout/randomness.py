"""Named random streams from one seed.

Two kinds, because replicable learning (2509.08660, Definition 1.1) tells them apart:

* ``internal`` randomness is the algorithm's own (rounding offsets, random features, initial
  weights). Replicas of one experiment *share* it.
* ``data`` randomness is the world's (prompts, tokens, environments, labels). Replicas draw it
  *independently*.

A stream is a counter-based generator (Philox) keyed by a hash of its seed, kind, name and index,
so adding a stream never moves another, and no process has to wait for another's draws.
"""

from __future__ import annotations

import hashlib
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from reprise.rollout.errors import BadInput

if TYPE_CHECKING:
    import torch


class Streams:
    """Random streams of one run.

    ``streams.data("prompts")`` is one generator that lives as long as the run; its state belongs
    in every checkpoint (`state_dict`). ``streams.data("tokens", round, prompt)`` is a *fresh*
    generator at its start every time it is asked for, so that there is nothing to save.

    Args:
        seed: seed of the data streams, and of the internal ones unless given apart.
        internal_seed: seed of the internal streams, shared between replicas.
    """

    def __init__(self, seed: int, internal_seed: int | None = None) -> None:
        self.seed = seed
        self.internal_seed = seed if internal_seed is None else internal_seed
        self._living: dict[str, np.random.Generator] = {}

    def data(self, name: str, *index: int | str) -> np.random.Generator:
        """Randomness of the data: independent between replicas."""
        return self._stream("data", self.seed, name, index)

    def internal(self, name: str, *index: int | str) -> np.random.Generator:
        """Randomness of the algorithm: shared between replicas."""
        return self._stream("internal", self.internal_seed, name, index)

    def data_seed(self, name: str, *index: int | str) -> int:
        """A 63-bit seed for a library that insists on drawing its own numbers."""
        return _key("data", self.seed, name, index)[0] >> 1

    def internal_seed_for(self, name: str, *index: int | str) -> int:
        """Like `data_seed`, from the internal randomness."""
        return _key("internal", self.internal_seed, name, index)[0] >> 1

    def torch(self, name: str, *index: int | str, device: str = "cpu") -> torch.Generator:
        """A fresh torch generator keyed like ``data(name, *index)``."""
        import torch

        return torch.Generator(device).manual_seed(self.data_seed(name, *index))

    def state_dict(self) -> dict[str, Any]:
        """Seeds and the states of all living streams, as plain JSON values."""
        return {
            "seed": self.seed,
            "internal_seed": self.internal_seed,
            "streams": {
                name: _plain(generator.bit_generator.state)
                for name, generator in self._living.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            BadInput: the state belongs to another seed.
        """
        if (state["seed"], state["internal_seed"]) != (self.seed, self.internal_seed):
            raise BadInput(
                f"random state of seed {state['seed']} (internal {state['internal_seed']}) cannot "
                f"continue a run with seed {self.seed} (internal {self.internal_seed}); resume "
                "with the seed the run was started with"
            )
        self._living = {}
        for name, saved in state["streams"].items():
            generator = np.random.Generator(np.random.Philox())
            generator.bit_generator.state = _arrays(saved)
            self._living[name] = generator

    def _stream(
        self, kind: str, seed: int, name: str, index: tuple[int | str, ...]
    ) -> np.random.Generator:
        if index:
            return np.random.Generator(np.random.Philox(key=_key(kind, seed, name, index)))
        label = f"{kind}/{name}"
        if label not in self._living:
            key = _key(kind, seed, name, ())
            self._living[label] = np.random.Generator(np.random.Philox(key=key))
        return self._living[label]


def _key(kind: str, seed: int, name: str, index: tuple[int | str, ...]) -> tuple[int, int]:
    # repr keeps 1 and "1" apart, and the separator keeps ("ab", "c") and ("a", "bc") apart.
    parts = [repr(part if isinstance(part, str) else operator.index(part)) for part in index]
    text = "\x1f".join([kind, str(seed), name, *parts])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return [int(item) for item in value]
    return int(value) if isinstance(value, np.integer) else value


def _arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _arrays(item) for key, item in value.items()}
    return np.array(value, dtype=np.uint64) if isinstance(value, list) else value
