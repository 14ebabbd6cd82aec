"""PQN's checkpoints: everything that decides what follows, so that a killed run ends the same.

    checkpoints/step-000000025600/model.safetensors   weights, float32, reference layout
                                  state.pt            optimizer, all environments, counters

Random streams need no place here: exploration and permutations are keyed by the iteration, and the
environments carry their own. The last two are kept: one is whole while the next is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from reprise.rl.networks import load_weights, save_weights
from reprise.rollout.run.run_dir import RunDir

if TYPE_CHECKING:
    from reprise.rl.pqn import Learner

KEPT = 2


def save(learner: Learner) -> None:
    """Write a checkpoint, then remove those before the last two."""
    environments = learner.workers.gather(learner.environments.state_dict())
    if not learner.run_dir.is_main:
        return
    state = {**learner.state_dict(), "environments": environments}
    with learner.run_dir.checkpoint(f"step-{learner.step:012d}") as folder:
        save_weights(learner.network, folder)
        torch.save(state, folder / "state.pt")
    _prune(learner.run_dir)


def restore(learner: Learner, folder: Path) -> None:
    """Continue exactly where `save` was called.

    Raises:
        BadInput: the checkpoint is of another network or environment.
    """
    load_weights(learner.network, folder)
    # A run's own file: it holds numpy arrays and bytes, which `weights_only` does not read.
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=False)
    learner.load_state_dict(state)
    own = state["environments"][learner.workers.rank]
    learner.observations = learner.environments.load_state_dict(own)
    if learner.run_dir.is_main:
        _prune(learner.run_dir)  # the run may have been killed while it did


def _prune(run_dir: RunDir) -> None:
    run_dir.prune("step", lambda steps: steps[:-KEPT])
