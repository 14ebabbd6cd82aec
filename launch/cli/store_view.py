"""What a run's stored rounds hold, for a reader: counts, rewards, a few texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reprise.launch.config import ConfigError, read
from reprise.rollout.store import RoundStore
from reprise.rollout.types import Completions, Transitions


def open_store(path: Path) -> RoundStore:
    """The store in a run directory, or at `path` itself.

    Raises:
        ConfigError: there are no rounds.
    """
    for root in (path / "rounds", path):
        store = RoundStore(root)
        if store.rounds() or store.unfinished():
            return store
    raise ConfigError(f"{path} holds no rounds; give a run directory, or its rounds/ folder")


def overview(store: RoundStore, samples: int, tokenizer: Any = None) -> list[dict[str, Any]]:
    """One entry a finished round; reading it verifies it.

    Args:
        store: an open store.
        samples: how many prompts to show with their completions.
        tokenizer: a `tokenizers.Tokenizer`; without one, samples are token ids.
    """
    rounds = []
    for index in store.rounds():
        stored = store.read(index)
        manifest = stored.manifest
        entry: dict[str, Any] = {
            "round": index,
            "kind": manifest["kind"],
            "rows": manifest["rows"],
            "shards": len(manifest["shards"]),
            "counts": manifest["counts"],
            "policy": manifest["policy"],
            "reward_model": manifest["reward_model"],
            "code_revision": manifest["code_revision"],
        }
        rewards = stored.data.rewards
        if rewards.size:
            low, middle, high = np.quantile(rewards, [0.05, 0.5, 0.95])
            entry["rewards"] = {
                "mean": float(rewards.mean(dtype=np.float64)),
                "std": float(rewards.std(dtype=np.float64)),
                "quantiles_05_50_95": [float(low), float(middle), float(high)],
            }
        if isinstance(stored.data, Completions):
            entry |= _of_completions(stored.data, samples, tokenizer)
        rounds.append(entry)
    return rounds


def _of_completions(data: Completions, samples: int, tokenizer: Any) -> dict[str, Any]:
    lengths = [len(ids) for row in data.completion_ids for ids in row]

    def text(ids: np.ndarray) -> Any:
        plain = [int(token) for token in ids]
        return plain if tokenizer is None else tokenizer.decode(plain, skip_special_tokens=True)

    return {
        "samples_per_prompt": data.samples_per_prompt,
        "completion_tokens_mean": float(np.mean(lengths)) if lengths else None,
        "no_eos_rate": float(1 - data.terminated.mean()) if data.terminated.size else None,
        "samples": [
            {
                "prompt": text(data.prompt_ids[row]),
                "completions": [text(ids) for ids in data.completion_ids[row]],
                "rewards": [float(reward) for reward in data.rewards[row]],
            }
            for row in range(min(samples, len(data)))
        ],
    }


def export(
    path: Path, destination: Path, wanted: list[int] | None, tokenizer: str | None
) -> dict[str, int]:
    """Write rounds of completions as a preference data set; see `rollout.export`.

    Raises:
        ConfigError: no such round, one without completions, or no tokenizer is known.
    """
    store = open_store(path)
    absent = sorted(set(wanted or []) - set(store.rounds()))
    if absent:
        raise ConfigError(f"--round {absent}: not finished here; there are {store.rounds()}")
    rounds = []
    for index in wanted or store.rounds():
        data = store.read(index).data
        if not isinstance(data, Completions):
            raise ConfigError(
                f"round {index} holds transitions, not completions to prefer; "
                "give --to minari, d3rlpy or datasets"
            )
        rounds.append(data)
    name = tokenizer or _policy_name(path)
    if name is None:
        raise ConfigError(f"{path} does not say which model wrote it; give --tokenizer")
    from reprise.alignment.models import load_tokenizer
    from reprise.rollout.export import export_preferences

    return export_preferences(rounds, load_tokenizer(name, "--tokenizer"), destination)


def export_transitions(path: Path, destination: Path, wanted: list[int] | None, form: str) -> int:
    """Write rounds of transitions for Minari, d3rlpy or datasets; return how many transitions.

    Raises:
        ConfigError: no such round, or one of completions.
    """
    store = open_store(path)
    absent = sorted(set(wanted or []) - set(store.rounds()))
    if absent:
        raise ConfigError(f"--round {absent}: not finished here; there are {store.rounds()}")
    parts: list[Transitions] = []
    environment = None
    for index in wanted or store.rounds():
        stored = store.read(index)
        if not isinstance(stored.data, Transitions):
            raise ConfigError(
                f"--to {form}: round {index} holds completions; only transitions can be written so"
            )
        parts.append(stored.data)
        environment = stored.manifest.get("distilled_from", {}).get("environment", environment)
    from reprise.rollout import offline

    data = Transitions.concatenate(parts)
    offline.export_transitions(data, destination, form, environment or "none")
    return len(data)


def find_tokenizer(path: Path, given: str | None) -> Path | None:
    """The ``tokenizer.json`` to read samples with: the one given, else the run's own policy's.

    Raises:
        ConfigError: the one given is not there.
    """
    if given is not None:
        file = _tokenizer_file(Path(given))
        if file is None:
            raise ConfigError(f"--tokenizer {given}: no tokenizer.json there or in its checkpoints")
        return file
    policy = _policy_name(path)
    return None if policy is None else _tokenizer_file(Path(policy))


def _policy_name(path: Path) -> str | None:
    """The initial policy that the run in `path`, or the run whose rounds/ it is, started from."""
    for folder in (path, path.parent):
        if (folder / "config.yaml").is_file():
            policy = read(folder / "config.yaml").get("policy")
            return policy if isinstance(policy, str) else None
    return None


def _tokenizer_file(folder: Path) -> Path | None:
    for file in (folder, folder / "tokenizer.json", folder / "checkpoints/final/tokenizer.json"):
        if file.is_file():
            return file
    return None


def lines(rounds: list[dict[str, Any]], unfinished: list[int]) -> list[str]:
    """The overview for a reader."""
    text = []
    for entry in rounds:
        text.append(
            f"round {entry['round']}: {entry['rows']} {entry['kind']} in {entry['shards']} shards"
        )
        if "rewards" in entry:
            rewards = entry["rewards"]
            low, middle, high = rewards["quantiles_05_50_95"]
            text.append(
                f"  reward mean {rewards['mean']:.4g}, std {rewards['std']:.4g}, "
                f"5% {low:.4g}, median {middle:.4g}, 95% {high:.4g}"
            )
        if entry.get("completion_tokens_mean") is not None:
            text.append(
                f"  {entry['samples_per_prompt']} samples a prompt, "
                f"{entry['completion_tokens_mean']:.1f} tokens each, "
                f"{entry['no_eos_rate']:.1%} without EOS"
            )
        if entry["counts"]:
            text.append(
                "  " + ", ".join(f"{key} {value}" for key, value in entry["counts"].items())
            )
        for sample in entry.get("samples", []):
            text.append(f"  prompt: {_short(sample['prompt'])}")
            for completion, reward in zip(sample["completions"], sample["rewards"], strict=True):
                text.append(f"    {reward:+.3f}  {_short(completion)}")
    text += [f"round {index}: unfinished" for index in unfinished]
    return text


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 160 else text[:157] + "..."
