"""vLLM inside the training process: one GPU generates, then sleeps while it trains.

Has not been run by us: it needs a GPU and vLLM's own pinned torch (`pip install vllm`). It follows
TRL's colocated mode (trl 1.16, `VLLMGeneration`), which says which of vLLM's inner names to use.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from reprise.rollout.engines.vllm import Weights, request_seeds
from reprise.rollout.errors import BadInput
from reprise.rollout.requests import Generated, SamplingRequest
from reprise.rollout.run.settings import VLLM, Sampling


class ColocatedVLLM:
    """vLLM's engine in this process, with the interface of `VLLMServer`.

    Args:
        settings: the share of the GPU that it takes.
        sampling: the longest prompt and completion.
        model: folder or Hub name whose architecture and tokenizer it starts from.

    Raises:
        BadInput: vLLM is not installed, or there is no GPU.
    """

    def __init__(self, settings: VLLM, sampling: Sampling, model: str) -> None:
        import torch

        try:
            import vllm
        except ImportError as error:
            raise BadInput(
                "sampling.vllm.mode='colocate' needs vllm in this environment; install it, or run "
                "a server and set mode=server"
            ) from error
        if not torch.cuda.is_available():
            raise BadInput("sampling.vllm.mode='colocate' needs a GPU; run a server elsewhere")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are loaded in this process
        self._vllm, self.held = vllm, ""
        self.engine = vllm.LLM(
            model=model,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            max_model_len=sampling.max_prompt_tokens + sampling.max_new_tokens,
            max_num_seqs=sampling.batch_size,
            distributed_executor_backend="external_launcher",
            logprobs_mode="raw_logprobs",
            enable_sleep_mode=True,
        )
        self.engine.sleep(level=1)

    def load(self, name: str, save: Callable[[Path], None], weights: Callable[[], Weights]) -> None:
        """Give the engine the weights called `name`, unless it holds them."""
        if self.held == name:
            return
        self.engine.wake_up(tags=["weights"])
        inner = self.engine.llm_engine.model_executor.driver_worker.model_runner.model
        for pair in weights():
            inner.load_weights([pair])
        self.engine.reset_prefix_cache()
        self.engine.sleep(level=1)
        self.held = name

    def generate(
        self, request: SamplingRequest, on_batch: Callable[[int], None] | None = None
    ) -> Generated:
        """Completions of the engine's model, as `rollout.generate.Sampler` has it."""
        sampling, ends = request.sampling, request.ends
        greedy = sampling.temperature == 0
        n = sampling.samples_per_prompt
        settings = [
            self._vllm.SamplingParams(
                n=1 if greedy else n,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=ends,
                logprobs=0,
                seed=seed,
            )
            for seed in request_seeds(request)
        ]
        prompts = [
            {"prompt_token_ids": [int(token) for token in ids]} for ids in request.prompt_ids
        ]
        self.engine.wake_up()
        answers: list[Any] = self.engine.generate(prompts, settings, use_tqdm=False)
        self.engine.sleep(level=1)
        drawn = [answer.outputs * (n if greedy else 1) for answer in answers]
        completions = [[np.asarray(o.token_ids, dtype=np.int32) for o in row] for row in drawn]
        logprobs = [[_total(output) for output in row] for row in drawn]
        if on_batch is not None:
            on_batch(len(completions) * n)
        ended = [[int(ids[-1]) in ends for ids in row] for row in completions]
        return Generated(
            completions,
            np.array(ended, dtype=bool).reshape(-1, n),
            np.array(logprobs, dtype=np.float32).reshape(-1, n),
        )


def _total(output: Any) -> float:
    """ln p of a completion, from vLLM's `CompletionOutput`."""
    entries = zip(output.logprobs, output.token_ids, strict=True)
    return sum(entry[token].logprob for entry, token in entries)
