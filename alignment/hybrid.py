"""The hybrid sampler: part of each round from a preferential G-optimal design (Algorithm 2).

The paper's pi^g is over all prompts and all responses. Of a language model's responses we take a
handful of pi_0's own samples for each of some prompts, so that the design stays near what the model
can say; which of them to compare is then the design's choice. It is made before training, needs no
reward, and is a file of the run: a resumed run reads it back.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from accelerate import PartialState
from transformers import PreTrainedModel

from alignment.collect import Collector, Given, Prompts, eos_ids
from alignment.config import HybridDesign
from alignment.design import preferential_design
from alignment.features import bounded, hidden_features, projection
from rollout.files import write_bytes
from rollout.run_dir import RunDir

FILE = "design.npz"


@dataclass(frozen=True)
class DesignedPairs:
    """pi^g over candidate responses.

    Attributes:
        rows: prompts of the design, int64, shape (prompts,).
        tokens: all candidates one after the other, int32.
        lengths: of each candidate, shape (prompts, candidates).
        terminated: whether each ended in EOS, shape (prompts, candidates).
        prompt_weights: mu^g_X, shape (prompts,).
        response_weights: pi^cg(a|x), shape (prompts, candidates).
        value: worst variance of the design.
    """

    rows: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray
    prompt_weights: np.ndarray
    response_weights: np.ndarray
    value: np.ndarray

    def candidate(self, prompt: int, response: int) -> np.ndarray:
        """Token ids of one candidate."""
        end = int(np.cumsum(self.lengths)[prompt * self.lengths.shape[1] + response])
        return self.tokens[end - int(self.lengths[prompt, response]) : end]

    def append(
        self, rows: np.ndarray, count: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, Given]:
        """Draw `count` pairs x ~ mu^g_X, a1, a2 ~ pi^cg(x), and put them after `rows`.

        Returns:
            The prompts of the round, and the completions of those that are not to be sampled.
        """
        x = generator.choice(len(self.rows), size=count, p=self.prompt_weights)
        ends = self.response_weights[x].cumsum(axis=1)
        uniforms = generator.random((count, 2))
        pairs = (uniforms[:, :, None] >= ends[:, None, :-1]).sum(axis=2)
        drawn = [[self.candidate(i, a) for a in pair] for i, pair in zip(x, pairs, strict=True)]
        ended = np.zeros((len(rows) + count, 2), dtype=bool)
        ended[len(rows) :] = self.terminated[x[:, None], pairs]
        return np.concatenate([rows, self.rows[x]]), Given([None] * len(rows) + drawn, ended)


def designed_pairs(
    settings: HybridDesign,
    collector: Collector,
    initial: PreTrainedModel,
    prompts: Prompts,
    run_dir: RunDir,
) -> DesignedPairs:
    """Make the design, or read it back.

    Raises:
        ValueError: fewer prompts than asked for, or features that do not span.
    """
    file = run_dir.path / FILE
    if run_dir.is_main and not file.exists():
        made = _make(settings, collector, initial, prompts, run_dir)
        buffer = io.BytesIO()
        np.savez(buffer, **vars(made))
        write_bytes(file, buffer.getvalue())
        used = int((made.prompt_weights > 0).sum())
        run_dir.say(f"design: {used} of {len(made.rows)} prompts, value {float(made.value):.1f}")
    PartialState().wait_for_everyone()
    with np.load(file) as arrays:
        return DesignedPairs(**arrays)


def _make(
    settings: HybridDesign,
    collector: Collector,
    initial: PreTrainedModel,
    prompts: Prompts,
    run_dir: RunDir,
) -> DesignedPairs:
    if settings.prompts > len(prompts):
        raise ValueError(
            f"design.prompts={settings.prompts} exceeds the {len(prompts)} prompts of the data; "
            "lower it, or use more data"
        )
    streams, count = collector.streams, settings.candidates
    rows = streams.data("design prompts", 0).permutation(len(prompts))[: settings.prompts]
    sampling = collector.sampling.model_copy(update={"samples_per_prompt": count})
    ids = [prompts.ids[row] for row in rows]
    with (
        collector.sampler(initial) as sample,
        run_dir.progress("design: candidates", len(rows) * count, "completions") as progress,
    ):
        sampled = sample(
            ids,
            sampling,
            streams,
            round_index=0,
            eos_ids=eos_ids(initial, collector.tokenizer),
            prompt_index=rows,
            stream="design tokens",
            on_batch=progress.advance,
        )
    flat = [completion for samples in sampled.completion_ids for completion in samples]
    repeated = [prompt for prompt in ids for _ in range(count)]
    pad_id, batch_size = collector.tokenizer.pad_token_id, collector.sampling.batch_size
    hidden = hidden_features(initial, repeated, flat, pad_id, batch_size)
    features = bounded(hidden @ projection(hidden.shape[1], settings.dimension, streams))
    try:
        design = preferential_design(
            features.reshape(len(rows), count, settings.dimension), settings.tolerance
        )
    except ValueError as error:
        raise ValueError(
            f"design: {error}; or lower design.dimension={settings.dimension}, or raise "
            "design.prompts and design.candidates"
        ) from error
    return DesignedPairs(
        rows=np.asarray(rows, dtype=np.int64),
        tokens=np.concatenate(flat),
        lengths=np.array([len(ids) for ids in flat]).reshape(len(rows), count),
        terminated=sampled.terminated,
        prompt_weights=design.prompt_weights / design.prompt_weights.sum(),
        response_weights=design.response_weights,
        value=np.array(design.value),
    )
