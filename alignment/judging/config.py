"""Settings of evaluation beyond the reward model: judges, AlpacaEval, the leaderboard's tasks.

No torch in this file: `reprise evaluate --dry-run` prices a judge before anything loads.
"""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from reprise.rollout.errors import BadInput
from reprise.rollout.run.remote import secrets_in
from reprise.rollout.run.settings import Sampling, Settings


class Judge(Settings):
    """A language model behind an OpenAI-compatible API that says which of two answers is better."""

    model: str = Field(description="its name on the server, e.g. gpt-5-mini")
    base_url: str = Field("https://api.openai.com/v1", description="the server, up to /v1")
    api_key_variable: str = Field(
        "OPENAI_API_KEY",
        pattern="^[A-Z][A-Z0-9_]*$",
        description="environment variable that holds the key; the key itself is never a setting",
    )
    prompt: str = Field(
        "chat", description="what it is asked: 'chat', 'summary', or a text file (see judge.py)"
    )
    answer: Literal["text", "logprobs"] = Field(
        "text", description="read its verdict, or the probabilities of A and B as first token"
    )
    swap: bool = Field(True, description="ask in both orders; two verdicts that differ are a tie")
    temperature: float | None = Field(0.0, ge=0, description="null: not sent, the server's own")
    max_tokens: int = Field(16, ge=1, description="longest verdict, in tokens")
    token_limit: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what the server calls that limit (reasoning models: the latter)"
    )
    extra: dict[str, Any] = Field(
        default_factory=dict, description="more of the request, e.g. {reasoning_effort: minimal}"
    )
    concurrency: int = Field(8, ge=1, description="requests under way at once")
    timeout: float = Field(60.0, gt=0, description="seconds until a request is tried again")
    retries: int = Field(8, ge=0, description="further tries of a request that failed")
    backoff: float = Field(
        0.5, gt=0, description="seconds before the first retry; doubled for each, at most 60"
    )
    price_input: float | None = Field(None, ge=0, description="USD per million tokens asked")
    price_output: float | None = Field(None, ge=0, description="USD per million tokens answered")
    budget: float | None = Field(None, gt=0, description="USD that this evaluation may cost")
    max_unparsed: float = Field(
        0.1, ge=0, le=1, description="share of answers without a verdict that is accepted"
    )

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput("should be an address like http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query:
            raise BadInput("should hold no user, password or query; keys go into the environment")
        return value.rstrip("/")

    @field_validator("extra")
    @classmethod
    def _holds_no_key(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = {"model", "messages", "temperature", "max_tokens", "max_completion_tokens", "stream"}
        if ours & value.keys():
            raise BadInput(f"cannot set {sorted(ours & value.keys())}: they have settings")
        if secrets_in(value):
            raise BadInput("holds what looks like a key; keys go into the environment")
        return value

    @model_validator(mode="after")
    def _a_budget_needs_prices(self) -> Judge:
        if self.budget is not None and None in (self.price_input, self.price_output):
            raise BadInput(
                f"budget={self.budget:g} needs price_input and price_output, in USD per million "
                "tokens (0 for a server of your own)"
            )
        return self


class JudgeSuite(Settings):
    """Win rate of stored held-out samples, with a language model as the judge (`--suite judge`).

    No text is generated: the samples are those that the run evaluated itself on.
    """

    judge: Judge
    against: Literal["initial", "references"] = Field(
        "initial", description="pi_0's samples on the same prompts, or what people wrote"
    )
    prompts: int | None = Field(None, ge=2, description="the first so many; null: all that are")
    bootstrap: int = Field(1000, ge=100, description="resamples behind each 95% interval")


class AlpacaSuite(Settings):
    """AlpacaEval 2.0 (Dubois et al. 2024): win rate and length-controlled win rate against a
    baseline's outputs, and the files that its own tools read (`--suite alpaca`)."""

    judge: Judge
    instructions: str = Field(
        "tatsu-lab/alpaca_eval",
        description="the baseline's outputs: a .json of {instruction, output, generator}, or the "
        "Hub data set that has them as alpaca_eval_gpt4_baseline.json",
    )
    gamed: str | None = Field(
        "tatsu-lab/alpaca_eval",
        description="df_gamed.csv, or the Hub data set that has it: difficulties, and what "
        "regularizes the fit; null: neither (another instruction set)",
    )
    generator: str | None = Field(None, description="the model's name in the files; null: RUN's")
    limit: int | None = Field(None, ge=2, description="only the first so many instructions")
    sampling: Sampling = Field(
        Sampling(
            samples_per_prompt=1, temperature=0.0, max_prompt_tokens=2048, max_new_tokens=2048
        ),
        description="how the model answers; one sample, greedy unless set",
    )
    seed: int = Field(0, ge=0, description="of sampling, and of the order a judge sees if not both")

    @model_validator(mode="after")
    def _one_answer(self) -> AlpacaSuite:
        if self.sampling.samples_per_prompt != 1:
            raise BadInput("sampling.samples_per_prompt must be 1: one answer an instruction")
        return self


class OpenLLMSuite(Settings):
    """The Open LLM Leaderboard's tasks with lm-evaluation-harness (`--suite openllm`)."""

    tasks: dict[str, int] | None = Field(
        None, description="task: shots; null: the paper's six (Table 1's columns)"
    )
    include: str | None = Field(
        None, description="folder of task YAMLs to use instead of the harness's own"
    )
    limit: int | None = Field(None, ge=1, description="examples of each task; null: all")
    batch_size: int = Field(8, ge=1, description="sequences scored side by side")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="the model's weights")
    chat_template: bool = Field(False, description="put prompts into the model's chat template")
    server: str | None = Field(
        None,
        description="ask a server at this address, up to /v1, instead of loading the model; only "
        "tasks that generate",
    )
    bootstrap: int = Field(1000, ge=0, description="resamples behind a standard error")
    seed: int = Field(1234, ge=0, description="of the few-shot examples (the harness's own: 1234)")

    @model_validator(mode="after")
    def _shots(self) -> OpenLLMSuite:
        for name, shots in (self.tasks or {}).items():
            if shots < 0:
                raise BadInput(f"tasks.{name}={shots}: shots cannot be negative")
        if self.include is not None and self.tasks is None:
            raise BadInput(f"include={self.include!r} needs tasks: which of its tasks, and shots")
        return self


SUITES: dict[str, type[JudgeSuite] | type[AlpacaSuite] | type[OpenLLMSuite]] = {
    "judge": JudgeSuite,
    "alpaca": AlpacaSuite,
    "openllm": OpenLLMSuite,
}
