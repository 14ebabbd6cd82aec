"""Settings of the reward: models, rules and servers, alone or in a weighted sum.

No torch in this file, as in `alignment.config`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from reprise.rollout.errors import BadInput
from reprise.rollout.run.settings import Settings


class _Source(Settings):
    """Where a reward comes from: a model, a rule of yours, or a server."""

    model: str | None = Field(
        None, description="a sequence classifier with one output: run, folder or Hub name"
    )
    output: Literal["logits", "score"] = Field(
        "logits", description="where the reward is: `logits[:, 0]`, or `score` (ArmoRM)"
    )
    trust_remote_code: bool = Field(
        False, description="run the code in the model's repository; needs `revision`"
    )
    revision: str | None = Field(
        None, pattern="^[0-9a-f]{40}$", description="the commit of the model's repository"
    )
    read_at: str | None = Field(
        None,
        description="token that the model was trained to be read at; null: EOS, or any in chats",
    )
    function: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="a rule, `package.module:function`: f(prompts, completions) -> rewards",
    )
    url: str | None = Field(
        None, pattern="^https?://", description="a reward server (alignment/rewards/remote.py)"
    )
    token_variable: str | None = Field(
        None, description="environment variable that holds the server's bearer token"
    )
    timeout: float = Field(
        60.0, gt=0, description="seconds that one request to the server may take"
    )
    retries: int = Field(5, ge=0, description="further attempts after a failed request")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> _Source:
        if self.url is not None and "@" in self.url.split("/")[2]:
            raise BadInput(
                "url holds a user or password, which would be written to config.yaml; put a token "
                "into an environment variable and name that in token_variable"
            )
        if self.token_variable is not None and self.url is None:
            raise BadInput(f"token_variable={self.token_variable!r} is for url, which is not set")
        if self.model is None and (
            self.trust_remote_code or self.revision or self.read_at or self.output != "logits"
        ):
            raise BadInput(
                "output, trust_remote_code, revision and read_at belong to model, which is not set"
            )
        return self

    @property
    def kinds(self) -> list[str]:
        """Which of model, function and url are set."""
        return [kind for kind in ("model", "function", "url") if getattr(self, kind) is not None]


class RewardTerm(_Source):
    """One summand of the reward."""

    weight: float = Field(1.0, description="w_i in r = sum_i w_i r_i")

    @model_validator(mode="after")
    def _one_kind(self) -> RewardTerm:
        if len(self.kinds) != 1:
            raise BadInput(
                f"a term of reward.terms has {' and '.join(self.kinds) or 'no source'}; give it "
                "one of model, function and url"
            )
        return self


class RewardCheck(Settings):
    """Pairs that the reward must rank right before a run starts (`reward.check`)."""

    file: str = Field(description=".jsonl with prompt (text or messages), better and worse")
    accuracy: float = Field(1.0, gt=0.5, le=1, description="share that must be ranked right")


class Reward(_Source):
    """The reward r~(x, a): one model, rule or server, or a weighted sum of several."""

    terms: list[RewardTerm] = Field(
        default_factory=list, description="several, instead of model, function or url"
    )
    batch_size: int = Field(64, ge=1, description="sequences scored side by side")
    standardize: bool = Field(
        False, description="give the held-out samples of pi_0 mean 0 and deviation 1"
    )
    missing_eos_penalty: float | None = Field(
        None, ge=0, description="subtracted from the raw reward of a completion without EOS"
    )
    check: RewardCheck | None = Field(
        None, description="known better and worse answers to rank right before the run starts"
    )

    @model_validator(mode="after")
    def _some_source(self) -> Reward:
        given = [*self.kinds, *(["terms"] if self.terms else [])]
        if len(given) != 1:
            raise BadInput(
                f"reward has {' and '.join(given) or 'no source'}; give it exactly one of model, "
                "function, url and terms (a list, for several)"
            )
        return self

    @property
    def sources(self) -> list[RewardTerm]:
        """The summands; a single source is one of weight 1."""
        if self.terms:
            return self.terms
        return [RewardTerm(**{name: getattr(self, name) for name in _Source.model_fields})]

    @property
    def title(self) -> str:
        """What to call it in a message."""
        return " + ".join(str(s.model or s.function or s.url) for s in self.sources)
