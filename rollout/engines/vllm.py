"""Completions from vLLM: token ids there and back, weights before each round.

The server speaks what TRL's `VLLMClient` speaks (trl 1.16). Start it on its own GPUs with

    VLLM_SERVER_DEV_MODE=1 vllm serve POLICY --logprobs-mode raw_logprobs
        [--weight-transfer-config '{"backend": "nccl"}']        for weight_sync: nccl

Used here: GET /health, /v1/models, /server_info; POST /v1/completions with token ids,
/collective_rpc, /reset_prefix_cache; and through TRL's client /init_weight_transfer_engine,
/start_weight_update, /update_weights, /finish_weight_update. Nothing of vLLM is imported for
weight_sync "folder": vLLM pins a torch of its own, and is best a server of its own.

A prompt is one request, with a seed of its own from `streams.data(stream, round, prompt)`. Text
never travels: the prompt's ids are echoed and compared, the completion's ids come back with the
EOS that ended it. The log-probabilities that come with them, ln p at temperature 1 before any
filter, are stored beside the trainer's own to measure the gap, and never trained on: vLLM's kernels
round otherwise, so they are not ln pi_k of the model that is trained.

What has been run: everything over HTTP, weight_sync "folder" included, against a small server that
answers with a real model (tests/system/test_vllm_server.py), not against vLLM itself. The NCCL
broadcast needs CUDA on both sides, and `mode: colocate` (rollout/vllm_colocated.py) a GPU: neither
has been run by us. vLLM's results also depend on which requests share a batch, so a round sampled
again is the same in law, not in bits; finished shards are never sampled again.

Traps. NCCL sends weights under the names of the live module, which for GPT-NeoX are not those of
its checkpoints (`lm_head` for `embed_out`): use a folder there. A seed fixes vLLM's draws only
while its own weights, version and batching stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reprise.rollout.engines.json_server import JsonServer
from reprise.rollout.errors import BadInput
from reprise.rollout.files import atomic_directory
from reprise.rollout.requests import Generated, SamplingRequest
from reprise.rollout.run.remote import OutageError
from reprise.rollout.run.settings import VLLM, Sampling

Weights = Iterable[tuple[str, torch.Tensor]]


class VLLMServer:
    """A vLLM server that holds the policy's weights.

    Args:
        settings: where it is, and how weights get there.
        sampling: what it will be asked for.

    Raises:
        OutageError: it does not come up within `settings.wait` seconds.
        BadInput: it was started without what is needed here.
    """

    def __init__(self, settings: VLLM, sampling: Sampling) -> None:
        self.settings, self.held = settings, ""
        self.http = JsonServer(
            settings.url,
            "sampling.vllm.url",
            settings.token_variable,
            settings.timeout,
            settings.retries,
        )
        self._await()
        self.model = self.http.get("/v1/models")["data"][0]["id"]
        self._check(sampling)
        self._client: Any = None

    def load(self, name: str, save: Callable[[Path], None], weights: Callable[[], Weights]) -> None:
        """Give the server the weights called `name`, unless it holds them.

        Args:
            name: identifies the weights.
            save: writes them to a folder, as `save_pretrained` does.
            weights: gives them one by one.
        """
        if self.held == name:
            return
        if self.settings.weight_sync == "folder":
            self._through_a_folder(name, save)
        else:
            self._broadcast(weights())
        # What it computed for a prompt under the old weights is no longer true.
        self.http.post("/reset_prefix_cache", {})
        self.held = name

    def generate(
        self, request: SamplingRequest, on_batch: Callable[[int], None] | None = None
    ) -> Generated:
        """Completions of the server's model, as `rollout.generate.Sampler` has it.

        Raises:
            BadInput: the answer is not about the tokens that were sent, or ends otherwise than in
                one of `eos_ids` or at the length limit.
            OutageError: no answer.
        """
        sampling, ends = request.sampling, request.ends
        bodies = [
            self._body([int(token) for token in ids], sampling, seed, ends)
            for ids, seed in zip(request.prompt_ids, request_seeds(request), strict=True)
        ]

        def ask(body: dict[str, Any]) -> list[tuple[np.ndarray, float, bool]]:
            answer = self.http.post("/v1/completions", body)
            drawn = [_read(choice, body["prompt"], ends) for choice in answer["choices"]]
            if len(drawn) != body["n"]:
                raise BadInput(f"{self.settings.url} gave {len(drawn)} of {body['n']} completions")
            drawn *= sampling.samples_per_prompt // body["n"]
            if on_batch is not None:
                on_batch(len(drawn))
            return drawn

        with ThreadPoolExecutor(max_workers=max(1, sampling.batch_size)) as pool:
            answers = list(pool.map(ask, bodies))
        shape = (len(answers), sampling.samples_per_prompt)
        return Generated(
            [[ids for ids, _, _ in row] for row in answers],
            np.array([[ended for *_, ended in row] for row in answers], dtype=bool).reshape(shape),
            np.array([[p for _, p, _ in row] for row in answers], dtype=np.float32).reshape(shape),
        )

    # -- how --------------------------------------------------------------------------------------

    def _body(
        self, prompt: list[int], sampling: Sampling, seed: int, ends: list[int]
    ) -> dict[str, Any]:
        greedy = sampling.temperature == 0  # vLLM then refuses n > 1: they would all be the same
        return {
            "model": self.model,
            "prompt": prompt,
            "n": 1 if greedy else sampling.samples_per_prompt,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": seed,
            "stop_token_ids": ends,
            "logprobs": 0,  # the sampled token's own
            "add_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }

    def _await(self) -> None:
        started = time.monotonic()
        probe = JsonServer(self.settings.url, "sampling.vllm.url", None, 5.0, 0)
        while True:
            try:
                probe.get("/health")
                return
            except OutageError:
                if time.monotonic() - started >= self.settings.wait:
                    raise
                time.sleep(0.5)

    def _check(self, sampling: Sampling) -> None:
        try:
            info = self.http.get("/server_info?config_format=json")["vllm_config"]
        except ValueError as error:
            raise BadInput(
                f"sampling.vllm.url={self.settings.url!r} has no /server_info, so it will not take "
                "weights either: start the server with VLLM_SERVER_DEV_MODE=1 in its environment"
            ) from error
        mode = (info.get("model_config") or {}).get("logprobs_mode", "raw_logprobs")
        plain = sampling.temperature == 1 and sampling.top_p == 1 and sampling.top_k == 0
        if mode != "raw_logprobs" and not (plain and mode == "processed_logprobs"):
            raise BadInput(
                f"sampling.vllm.url={self.settings.url!r} reports {mode}, which cannot be compared "
                "with the trainer's; start it with --logprobs-mode raw_logprobs"
            )
        if self.settings.weight_sync == "nccl" and info.get("weight_transfer_config") is None:
            raise BadInput(
                f"sampling.vllm.url={self.settings.url!r} has no weight-transfer engine: start it "
                """with --weight-transfer-config '{"backend": "nccl"}', or set """
                "sampling.vllm.weight_sync=folder"
            )

    def _through_a_folder(self, name: str, save: Callable[[Path], None]) -> None:
        assert self.settings.sync_folder is not None
        parent = Path(self.settings.sync_folder)
        folder = parent / f"policy-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        with atomic_directory(folder) as being_written:
            save(being_written)
        arguments = {"weights_path": str(folder.resolve())}
        self.http.post("/collective_rpc", {"method": "reload_weights", "kwargs": arguments})
        for old in parent.glob("policy-*"):
            if old != folder:
                with contextlib.suppress(FileNotFoundError):  # another process may have been first
                    shutil.rmtree(old)

    def _broadcast(self, weights: Weights) -> None:
        """By NCCL, with TRL's client. Has not been run by us: it needs vLLM and CUDA here."""
        try:
            if self._client is None:
                from trl.generation.vllm_client import VLLMClient

                self._client = VLLMClient(
                    base_url=self.settings.url,
                    group_port=self.settings.group_port,
                    connection_timeout=self.settings.wait,
                )
                self._client.init_communicator("cuda")
        except (ImportError, NotImplementedError) as error:
            raise BadInput(
                f"sampling.vllm.weight_sync='nccl': {error} Use weight_sync=folder with a "
                "sync_folder that the server can read"
            ) from error
        with self._client.weight_update():
            for name, tensor in weights:
                self._client.update_named_param(name, tensor.to("cuda"))


def request_seeds(request: SamplingRequest) -> list[int]:
    """vLLM's seed for each prompt, from the prompt's own stream."""
    draws = (request.streams.data(request.stream, request.round_index, key) for key in request.keys)
    return [int(draw.integers(2**31 - 1)) for draw in draws]


def _read(
    choice: dict[str, Any], prompt: list[int], ends: list[int]
) -> tuple[np.ndarray, float, bool]:
    """Token ids, ln p of their sequence, and whether they end in EOS."""
    if choice.get("prompt_token_ids") != prompt:
        raise BadInput(
            f"vLLM sampled from prompt {str(choice.get('prompt_token_ids'))[:80]}, and was asked "
            f"for {str(prompt)[:80]}: the server must not tokenize or add tokens of its own"
        )
    ids = np.asarray(choice["token_ids"], dtype=np.int32)
    ended = len(ids) > 0 and int(ids[-1]) in ends
    if len(ids) == 0 or (choice["finish_reason"] == "stop") != ended:
        raise BadInput(
            f"vLLM ended a completion with {choice['finish_reason']!r} after {ids[-3:].tolist()}, "
            f"which is not the policy's EOS {ends}; start the server with --generation-config vllm"
        )
    logprobs = choice["logprobs"]["token_logprobs"]
    if len(logprobs) != len(ids):
        raise BadInput(f"vLLM gave {len(logprobs)} log-probabilities for {len(ids)} tokens")
    return ids, float(np.sum(np.asarray(logprobs, dtype=np.float64))), ended
