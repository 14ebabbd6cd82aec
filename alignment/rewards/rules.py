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

import hashlib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from reprise.alignment.rewards.remote import check_rewards


class RuleReward:
    """A function, as a summand of the reward.

    Args:
        path: ``package.module:function``.

    Raises:
        ValueError: there is no such function, or it does not take prompts and completions.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.function = _load(path)
        taken = inspect.signature(self.function).parameters
        any_name = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        missing = {"prompts", "completions"} - taken.keys()
        if missing and not any_name:
            raise ValueError(
                f"reward.function={path!r} has no parameter {' and '.join(sorted(missing))}; "
                "define it as f(prompts, completions)"
            )
        self.extras = {n for n in ("terminated", "completion_ids") if any_name or n in taken}
        file = inspect.getsourcefile(self.function)
        code = Path(file).read_bytes() if file else b""
        self.identity = f"{path} {hashlib.sha256(code).hexdigest()}"

    def score_texts(
        self,
        prompts: list[Any],
        completions: list[str],
        terminated: np.ndarray,
        completion_ids: list[list[int]],
    ) -> np.ndarray:
        """Rewards, float32.

        Raises:
            ValueError: not as many finite numbers as completions.
        """
        extras: dict[str, Any] = {
            "terminated": [bool(ended) for ended in terminated],
            "completion_ids": completion_ids,
        }
        chosen = {name: extras[name] for name in self.extras}
        rewards = self.function(prompts=prompts, completions=completions, **chosen)
        return np.array(
            check_rewards(rewards, len(completions), f"reward.function={self.path!r}"),
            dtype=np.float32,
        )


def _load(path: str) -> Callable[..., Any]:
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and itself imports what is not
        raise ValueError(
            f"reward.function={path!r}: there is no module {error.name}; install it, or put its "
            "folder into PYTHONPATH"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        there = [n for n, f in vars(module).items() if inspect.isfunction(f) and n[0] != "_"]
        raise ValueError(
            f"reward.function={path!r}: {module_name} has no function {name}; it has "
            f"{', '.join(sorted(there)) or 'none'}"
        )
    return function
