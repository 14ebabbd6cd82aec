r"""The hybrid sampler: on-policy mixed with a preferential G-optimal design (Algorithm 2).

    (x, a) ~ pi'_k(x, a) = (1 - s) D(x) pi_k(a|x) + s pi^g(x, a),      s = 1/2 in the paper,

and a second action from the same pi'_k(.|x) (line 7): of a pair, either, both or none of the two
may be the design's. For a prompt x each action is the design's with probability

    w(x) = s mu(x) / (s mu(x) + (1 - s) D(x)),      pi^g(x, a) = mu(x) pi^cg(a|x),

independently of the other. The paper's pi^g is over all prompts and all responses. Of a language
model's responses we take a handful of pi_0's own samples for each of some prompts, so that the
design stays near what the model can say; which of them to compare is then the design's choice. It
is made before training, needs no reward, and is a file of the run: a resumed run reads it back.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from accelerate import PartialState

from reprise.alignment.collector import Collector, Given, Prompts, eos_ids
from reprise.alignment.config import HybridDesign
from reprise.alignment.features import bounded, hidden_features, projection
from reprise.alignment.theory.design import preferential_design
from reprise.rollout.draws import binomial, categorical
from reprise.rollout.errors import BadInput
from reprise.rollout.files import write_bytes
from reprise.rollout.requests import SamplingRequest
from reprise.rollout.run.run_dir import RunDir

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
        self,
        rows: np.ndarray,
        count: int,
        prompts: int,
        generator: np.random.Generator,
    ) -> tuple[np.ndarray, Given]:
        """Put `count` prompts x ~ mu^g_X after `rows`, and draw whose each action is.

        Args:
            rows: prompts drawn from D.
            count: how many to add: the share s of all.
            prompts: size of the data set, D(x) = 1 / prompts.
            generator: randomness.

        Returns:
            The prompts of the round, and the completions of those that are not to be sampled.
        """
        drawn = self.rows[categorical(generator, self.prompt_weights, count)]
        all_rows, share = np.concatenate([rows, drawn]), count / (len(rows) + count)
        index = {int(row): x for x, row in enumerate(self.rows)}
        x = np.array([index.get(int(row), -1) for row in all_rows])
        weight = np.where(x < 0, 0.0, share * self.prompt_weights[x])
        weight = weight / (weight + (1 - share) / prompts)
        shape = len(all_rows), 2
        from_design = binomial(generator, np.ones(shape, int), weight[:, None]).astype(bool)
        responses = np.stack(
            [categorical(generator, self.response_weights[x]) for _ in range(2)], axis=1
        )
        given: list[list[np.ndarray | None] | None] = [
            [self.candidate(i, a) if own else None for a, own in zip(pair, mask, strict=True)]
            if mask.any()
            else None
            for i, pair, mask in zip(x, responses, from_design, strict=True)
        ]
        return all_rows, Given(given, self.terminated[x[:, None], responses] & from_design)

    def untouched(self, rows: np.ndarray) -> np.ndarray:
        """Which of `rows` are prompts that the design never draws: wholly pi_k's; bool."""
        return ~np.isin(rows, self.rows[self.prompt_weights > 0])


def designed_pairs(
    settings: HybridDesign, collector: Collector, prompts: Prompts, run_dir: RunDir
) -> DesignedPairs:
    """Make the design with pi_0, or read it back.

    Raises:
        BadInput: fewer prompts than asked for, or features that do not span.
    """
    file = run_dir.path / FILE
    if run_dir.is_main and not file.exists():
        made = _make(settings, collector, prompts, run_dir)
        buffer = io.BytesIO()
        np.savez(buffer, **vars(made))
        write_bytes(file, buffer.getvalue())
        used = int((made.prompt_weights > 0).sum())
        run_dir.say(f"design: {used} of {len(made.rows)} prompts, value {float(made.value):.1f}")
    PartialState().wait_for_everyone()
    with np.load(file) as arrays:
        return DesignedPairs(**arrays)


def _make(
    settings: HybridDesign, collector: Collector, prompts: Prompts, run_dir: RunDir
) -> DesignedPairs:
    initial = collector.policies.initial
    assert initial is not None
    if settings.prompts > len(prompts):
        raise BadInput(
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
        request = SamplingRequest(
            ids,
            sampling,
            streams,
            round_index=0,
            eos_ids=eos_ids(initial, collector.tokenizer),
            prompt_index=rows,
            stream="design tokens",
            vocabulary=collector.vocabulary,
        )
        sampled = sample(request, progress.advance)
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
        raise BadInput(
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
