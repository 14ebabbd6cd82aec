"""The strict base of every config, and the settings of sampling.

Importing this costs milliseconds: no torch, so that `reprise --help` and `--dry-run` stay quick.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """A config section: unknown keys, wrong types and non-finite numbers are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )


class Sampling(Settings):
    """How completions are drawn from a language model."""

    samples_per_prompt: int = Field(2, ge=1, description="completions drawn for each prompt, n")
    max_prompt_tokens: int = Field(512, ge=1, description="longest prompt accepted, in tokens")
    max_new_tokens: int = Field(64, ge=1, description="longest completion, in tokens, with its EOS")
    temperature: float = Field(1.0, ge=0, description="softmax temperature tau; 0 is greedy")
    top_k: int = Field(0, ge=0, description="keep the k likeliest tokens; 0 keeps all")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus: keep this much probability")
    batch_size: int = Field(64, ge=1, description="sequences decoded side by side")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="precision of the sampling copy of the model; auto keeps the model's"
    )
