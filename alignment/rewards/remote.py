"""A reward server: any program that answers this, in any language, on any machine.

    GET  URL    ->  {"model": "name and version of what scores"}
    POST URL        {"prompts": [...], "completions": [...], "terminated": [true, ...]}
                ->  {"rewards": [0.25, ...]}

A prompt is a text, or a list of {"role", "content"} messages where the data is a chat. A completion
is the text without its end-of-sequence token, `terminated` says whether it had one. There are at
most `reward.batch_size` of them, and as many finite rewards go back, in the same order. The model's
name goes into the manifest of every round, so say there what the rewards depend on.

Status 429 or 5xx means later, and is retried; any other but 200 stops the run. A bearer token comes
from the environment variable named in `token_variable`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from reprise.alignment.rewards.config import RewardTerm
from reprise.rollout.engines.json_server import JsonServer
from reprise.rollout.errors import BadInput


class RemoteReward:
    """A reward server, as a summand of the reward.

    Args:
        source: its address and how patient to be.
        batch_size: completions in a request.

    Raises:
        BadInput: it does not say which model it is.
        OutageError: it cannot be reached.
    """

    def __init__(self, source: RewardTerm, batch_size: int) -> None:
        assert source.url is not None
        self.url, self.batch_size = source.url, batch_size
        self.server = JsonServer(
            source.url, "reward.url", source.token_variable, source.timeout, source.retries
        )
        answer = self.server.get()
        if not isinstance(answer, dict) or not isinstance(answer.get("model"), str):
            raise BadInput(
                f"reward.url={self.url!r}: GET should answer {{'model': 'name and version'}}, and "
                f"answered {str(answer)[:100]!r}; see alignment/rewards/remote.py for the protocol"
            )
        self.identity = f"{self.url} {answer['model']}"

    def score_texts(
        self, prompts: list[Any], completions: list[str], terminated: np.ndarray
    ) -> np.ndarray:
        """Rewards, float32.

        Raises:
            BadInput: not as many finite numbers as completions.
        """
        scores: list[float] = []
        for start in range(0, len(completions), self.batch_size):
            part = slice(start, start + self.batch_size)
            body = {
                "prompts": prompts[part],
                "completions": completions[part],
                "terminated": [bool(ended) for ended in terminated[part]],
            }
            answer = self.server.post("", body)
            rewards = answer.get("rewards") if isinstance(answer, dict) else None
            scores += check_scores(rewards, len(completions[part]), f"reward.url={self.url!r}")
        return np.array(scores, dtype=np.float32)


def check_scores(rewards: Any, count: int, who: str) -> list[float]:
    """`rewards` as `count` finite floats, which float32 can tell apart.

    Raises:
        BadInput: they are something else.
    """
    if not hasattr(rewards, "__len__") or isinstance(rewards, str | dict):
        raise BadInput(f"{who} gave {str(rewards)[:80]!r}; it should give {count} numbers")
    if len(rewards) != count:
        raise BadInput(f"{who} gave {len(rewards)} rewards for {count} completions")
    values = []
    for index, reward in enumerate(rewards):
        number = isinstance(reward, int | float | np.number) and math.isfinite(reward)
        if not number or isinstance(reward, bool):
            raise BadInput(f"{who} gave {reward!r} at {index}; every reward is a finite number")
        values.append(float(reward))
    if len(set(values)) > 1 and len(set(np.float32(values).tolist())) == 1:
        raise BadInput(
            f"{who} gave rewards between {min(values)!r} and {max(values)!r}, which are all equal "
            "in float32, in which they are kept; subtract a constant, or scale them"
        )
    return values
