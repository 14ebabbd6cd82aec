"""A rule of your own as a reward: a function, named by its import path.

    # my_rules.py
    def brevity(prompts, completions):
        return [-len(text.split()) / 10 for text in completions]

    reward: {function: my_rules:brevity}

It is called with texts (prompts are lists of messages where the data is a chat), and with
`terminated` and `completion_ids` too if it has parameters of these names or takes ** keywords: the
functions written for TRL's GRPOTrainer fit. It gives one finite number for each completion. It has
to be importable: installed, or its folder in PYTHONPATH. It must not depend on anything but its
arguments, or a resumed run would differ: the SHA-256 of its file goes into every round's manifest.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from reprise.alignment.rewards.remote import check_scores
from reprise.rollout.errors import BadInput
from reprise.rollout.functions import identity, load_function


class RuleReward:
    """A function, as a summand of the reward.

    Args:
        path: ``package.module:function``.

    Raises:
        BadInput: there is no such function, or it does not take prompts and completions.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.function = load_function(path, "reward.function")
        taken = inspect.signature(self.function).parameters
        any_name = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        missing = {"prompts", "completions"} - taken.keys()
        if missing and not any_name:
            raise BadInput(
                f"reward.function={path!r} has no parameter {' and '.join(sorted(missing))}; "
                "define it as f(prompts, completions)"
            )
        self.extras = {n for n in ("terminated", "completion_ids") if any_name or n in taken}
        self.identity = identity(path, self.function)

    def score_texts(
        self,
        prompts: list[Any],
        completions: list[str],
        terminated: np.ndarray,
        completion_ids: list[list[int]],
    ) -> np.ndarray:
        """Rewards, float32.

        Raises:
            BadInput: not as many finite numbers as completions.
        """
        extras: dict[str, Any] = {
            "terminated": [bool(ended) for ended in terminated],
            "completion_ids": completion_ids,
        }
        chosen = {name: extras[name] for name in self.extras}
        rewards = self.function(prompts=prompts, completions=completions, **chosen)
        return np.array(
            check_scores(rewards, len(completions), f"reward.function={self.path!r}"),
            dtype=np.float32,
        )
