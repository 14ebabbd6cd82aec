"""A laboratory in a second: a tiny policy, a reward model and text, on disk, for real runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# What a shell starts in the background ignores Ctrl-C, and so would the runs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Lab:
    """Folders of a tiny policy and reward model that share a tokenizer, and a data folder."""

    policy: Path
    reward: Path
    data: Path

    def config(self, experiment: str = "alignment.on_policy", **changes: Any) -> dict[str, Any]:
        """A complete config of three rounds of eight pairs; nested keys as `a__b=value`."""
        config: dict[str, Any] = {
            "experiment": experiment,
            "seed": 3,
            "policy": str(self.policy),
            "attention": "eager",
            "data": {"name": str(self.data)},
            "reward": {"model": str(self.reward)},
            "sampling": {"max_prompt_tokens": 24, "max_new_tokens": 6, "batch_size": 8},
            "objective": {"name": "dpo", "gamma": 0.1, "reference": "initial", "labels": "ranked"},
            "rounds": 3,
            "prompts_per_round": 8,
            "batch_size": 4,
            "shard_size": 4,
            "evaluation": {"prompts": 6, "bootstrap": 100},
            "train": {
                "learning_rate": 3e-3,
                "per_device_train_batch_size": 2,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 0.1,
                "save_strategy": "no",
            },
        }
        for path, value in changes.items():
            *parents, key = path.split("__")
            place = config
            for parent in parents:
                place = place.setdefault(parent, {})
            place[key] = value
        return config


WORDS = "get set read write the a file name value list of path to item".split()


def make_lab(folder: Path, architecture: str) -> Lab:
    """Write a policy and a reward model with random weights, and forty short prompts."""
    import torch

    from reprise.alignment import models
    from reprise.alignment.config import FromScratch

    texts = [f"{a} {b} {c}:" for a in WORDS for b in WORDS[::3] for c in WORDS[::5]]
    tokenizer = models.train_tokenizer(texts * 2, 300)
    shape = FromScratch(
        architecture=architecture, layers=2, width=16, heads=2, feedforward=32, vocabulary=300
    )
    policy = models.new_policy(shape, tokenizer, seed=1)
    reward = models.reward_model_from(policy, seed=2)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        reward.score.weight.normal_(generator=generator)
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "data").mkdir()
    for split, start in (("train", 0), ("test", 1)):
        rows = [{"prompt": text, "completion": text[:-1] + "."} for text in texts[start:80:2]]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "data" / f"{split}.jsonl").write_text(lines)
    return Lab(folder / "policy", folder / "reward", folder / "data")


@pytest.fixture(scope="session")
def neox_lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """GPT-NeoX, untied: the architecture with the resume trap."""
    return make_lab(tmp_path_factory.mktemp("neox"), "gpt_neox")


@pytest.fixture(scope="session")
def llama_lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Llama."""
    return make_lab(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def said_with_threads() -> Callable[..., set[bytes]]:
    """What a piece of code prints under each number of threads: one answer if it changes no bit."""

    def run(code: str, *threads: str) -> set[bytes]:
        return {
            subprocess.run(
                [sys.executable, "-c", code],
                cwd=Path(__file__).parents[1],
                env={**os.environ, "OMP_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n},
                capture_output=True,
                check=True,
            ).stdout
            for n in threads
        }

    return run
