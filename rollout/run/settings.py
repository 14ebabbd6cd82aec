"""The strict base of every config, and the settings of sampling.

Importing this costs milliseconds: no torch, so that `reprise --help` and `--dry-run` stay quick.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reprise.rollout.errors import BadInput


class Settings(BaseModel):
    """A config section: unknown keys, wrong types and non-finite numbers are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )


class VLLM(Settings):
    """A vLLM server, or vLLM inside the training process (rollout/vllm.py)."""

    mode: Literal["server", "colocate"] = Field(
        "server", description="server: over HTTP; colocate: in the training process, on its GPU"
    )
    url: str = Field(
        "http://127.0.0.1:8000", pattern="^https?://[^@]+$", description="where the server listens"
    )
    weight_sync: Literal["nccl", "folder"] = Field(
        "nccl",
        description="how a round's weights reach the server: NCCL broadcast (TRL's client; needs "
        "vllm and CUDA on this side), or a folder that both sides can read",
    )
    sync_folder: str | None = Field(
        None, description="that folder, on a file system shared with the server"
    )
    group_port: int = Field(51216, ge=1, le=65535, description="port of the NCCL group")
    token_variable: str | None = Field(
        None, description="environment variable that holds the server's API key"
    )
    timeout: float = Field(600.0, gt=0, description="seconds that one request may take")
    wait: float = Field(120.0, ge=0, description="seconds to wait for the server to come up")
    retries: int = Field(5, ge=0, description="further attempts after a failed request")
    gpu_memory_utilization: float = Field(
        0.3, gt=0, lt=1, description="share of the GPU's memory that vLLM takes (colocate)"
    )

    @model_validator(mode="after")
    def _folder_is_named(self) -> VLLM:
        if self.mode == "server" and self.weight_sync == "folder" and self.sync_folder is None:
            raise BadInput(
                "weight_sync='folder' needs sync_folder: a folder that this process writes and the "
                "server reads"
            )
        return self


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
    backend: Literal["transformers", "vllm"] = Field(
        "transformers", description="our own decode loop, or vLLM (settings in `vllm`)"
    )
    vllm: VLLM | None = Field(None, description="where vLLM is, for backend 'vllm'")
    logprobs: bool = Field(
        False,
        description="store the sampler's own log-probabilities too, to measure its gap to the "
        "trainer's; never trained on; vLLM always gives them",
    )

    @model_validator(mode="after")
    def _vllm_has_its_settings(self) -> Sampling:
        if (self.backend == "vllm") != (self.vllm is not None):
            raise BadInput(
                f"backend={self.backend!r} with vllm "
                f"{'set' if self.vllm is not None else 'not set'}; "
                "give `vllm: {url: ...}` exactly when backend is 'vllm'"
            )
        return self


class EnvironmentSettings(Settings):
    """How copies of an environment are run; all but `threads` and `workers` change what is learnt.

    Classic control has none of the Atari settings and refuses them, except `max_episode_frames`,
    which can shorten its own time limit (a frame is a step there).
    """

    noop_max: int = Field(
        30, ge=0, description="a game starts with 1 to this many frames of NOOP, uniform; 0: none"
    )
    fire_reset: bool = Field(
        True, description="press FIRE for one step at a game's start and after each lost life"
    )
    frame_skip: int = Field(4, ge=1, description="emulator frames for which an action is held")
    life_loss: Literal["cut", "ignore"] = Field(
        "cut", description="cut: a lost life terminates (the game goes on, it is not reset)"
    )
    sticky_actions: float = Field(
        0.0, ge=0, lt=1, description="probability, each frame, that the last action is kept instead"
    )
    max_episode_frames: int = Field(
        108_000, ge=1, description="time limit of a game, in frames of the agent's own steps"
    )
    full_action_space: bool = Field(False, description="all 18 actions, not the game's own few")
    threads: int = Field(
        1, ge=1, description="threads that step copies, same bits for any; emulation gains nothing"
    )
    workers: int = Field(
        0,
        ge=0,
        description="processes that step the copies of each training process, same bits for any; "
        "0: itself",
    )
