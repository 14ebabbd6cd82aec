"""Put a run's completions, or a model's answers, before a judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from reprise.alignment.judging.config import AlpacaSuite, Judge, JudgeSuite
from reprise.alignment.judging.judge import Comparison, LanguageModelJudge, Verdicts
from reprise.alignment.judging.win_rates import length_controlled_win_rate, win_rate
from reprise.launch.config import ConfigError, load, read
from reprise.rollout.files import write_json
from reprise.rollout.randomness import Streams
from reprise.rollout.store import RoundStore
from reprise.rollout.types import Completions

Say = Callable[[str], None]


def judge_run(
    settings: JudgeSuite, root: Path, k: int, cache: Path, dry_run: bool, say: Say
) -> dict[str, Any]:
    """Win rate of pi_k's stored held-out samples against pi_0's, or against people's answers.

    The first completion of each prompt is compared. In percent, with 95% intervals over prompts.

    Raises:
        ConfigError: the round was not evaluated.
    """
    from reprise.alignment.evaluate import percentile_interval
    from reprise.alignment.models import load_tokenizer

    config = read(root / "config.yaml")
    tokenizer = load_tokenizer(config["policy"], "policy")
    ours, initial = (_evaluated(root, index) for index in (k, 0))

    def text(ids: np.ndarray) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True).strip()

    rows = range(min(len(ours), settings.prompts or len(ours)))
    if settings.against == "initial":
        theirs = [text(initial.completion_ids[row][0]) for row in rows]
    else:
        references = _references(root, tokenizer)
        theirs = [references[ours.prompt_index[row]] for row in rows]
    comparisons = [
        Comparison(text(ours.prompt_ids[row]), text(ours.completion_ids[row][0]), other)
        for row, other in zip(rows, theirs, strict=True)
    ]
    verdicts = _ask(settings.judge, cache, comparisons, Streams(0), dry_run, say)
    if isinstance(verdicts, dict):
        return verdicts
    judged = ~np.isnan(verdicts.preferences)
    p = verdicts.preferences[judged]
    draws = Streams(0).data("judge bootstrap", k)
    resampled = draws.integers(len(p), size=(settings.bootstrap, len(p)))
    rate, error = win_rate(p)
    result: dict[str, Any] = {
        "win_rate": rate,
        "win_rate_ci95": [100 * bound for bound in percentile_interval(p, resampled)],
        "standard_error": error,
        "wins": float((p > 0.5).mean()),
        "ties": float((p == 0.5).mean()),
        "judged": len(p),
        **_asides(verdicts),
    }
    lengths = np.array([[len(c.answer), len(c.baseline)] for c in comparisons])[judged]
    result["characters"], result["characters_baseline"] = (float(x) for x in lengths.mean(axis=0))
    if len(p) >= 10:
        result |= length_controlled_win_rate(p, lengths[:, 0], lengths[:, 1])
    return result


def judge_alpaca(
    settings: AlpacaSuite, model: str, folder: Path, cache: Path, dry_run: bool, say: Say
) -> dict[str, Any]:
    """Answer the instructions with `model`, have the answers judged, write AlpacaEval's files."""
    from reprise.alignment.judging.alpaca import (
        gamed_baseline,
        instructions,
        model_outputs,
        write_results,
    )

    rows = instructions(settings)
    gamed = gamed_baseline(settings, len(rows))
    outputs = folder / "model_outputs.json"
    generator = settings.generator or Path(model).name
    if outputs.is_file():  # an earlier attempt got this far
        answers = [row["output"] for row in json.loads(outputs.read_text(encoding="utf-8"))]
        if len(answers) != len(rows):
            raise ConfigError(f"{outputs} answers {len(answers)} instructions, not {len(rows)}")
    elif dry_run:
        # What is not yet written cannot be priced: take the baseline's own length.
        answers = [row["output"] for row in rows]
    else:
        say(f"{generator} answers {len(rows)} instructions")
        answers = _answers(settings, model, [row["instruction"] for row in rows])
        folder.mkdir(parents=True, exist_ok=True)
        write_json(outputs, model_outputs(rows, answers, generator))
    comparisons = [
        Comparison(row["instruction"], answer, row["output"])
        for row, answer in zip(rows, answers, strict=True)
    ]
    verdicts = _ask(settings.judge, cache, comparisons, Streams(settings.seed), dry_run, say)
    if isinstance(verdicts, dict):
        return verdicts
    name = settings.judge.model
    result = write_results(folder, rows, answers, verdicts.preferences, generator, name, gamed)
    return {**result, **_asides(verdicts)}


def _ask(
    judge: Judge,
    cache: Path,
    comparisons: list[Comparison],
    streams: Streams,
    dry_run: bool,
    say: Say,
) -> Verdicts | dict[str, Any]:
    requested = LanguageModelJudge(judge, cache, streams)
    estimate = requested.estimate(comparisons)
    price = "unknown (no prices set)" if estimate.usd is None else f"{estimate.usd:.4g} USD"
    say(
        f"{judge.model}: {estimate.requests} requests to send, {estimate.cached} answered before; "
        f"about {estimate.input_tokens} tokens asked, at most {estimate.output_tokens} answered; "
        f"cost about {price}"
    )
    return dict(estimate._asdict()) if dry_run else requested.compare(comparisons)


def _asides(verdicts: Verdicts) -> dict[str, Any]:
    return {
        "first_won": verdicts.first_won,
        "contradictory": verdicts.contradictory,
        "unparsed": verdicts.unparsed,
        "cost": verdicts.cost,
    }


def _evaluated(root: Path, k: int) -> Completions:
    store = RoundStore(root / "evaluations")
    if k not in store.rounds():
        raise ConfigError(f"--round {k}: {root} has evaluated {store.rounds() or 'no rounds'}")
    data = store.read(k).data
    assert isinstance(data, Completions)
    return data


def _references(root: Path, tokenizer: Any) -> list[str]:
    from reprise.alignment.collector import load_prompts

    config: Any = load(root / "config.yaml")
    return load_prompts(config, config.evaluation.split, tokenizer).references


def _answers(settings: AlpacaSuite, model: str, questions: list[str]) -> list[str]:
    """One answer to each question, through the chat template if the model has one."""
    import torch

    from reprise.alignment.collector import eos_ids
    from reprise.alignment.models import load_policy, load_tokenizer
    from reprise.rollout.generate import generate, sampling_model

    tokenizer = load_tokenizer(model, "RUN")
    policy: Any
    if (Path(model) / "adapter_config.json").is_file():  # a round of a LoRA run
        from peft import AutoPeftModelForCausalLM

        adapted = AutoPeftModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        policy = adapted.merge_and_unload()
    else:
        policy = load_policy(model, "RUN")
    policy = policy.to("cuda" if torch.cuda.is_available() else "cpu")
    if tokenizer.chat_template:
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
            for question in questions
        ]
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    else:
        ids = [tokenizer(question).input_ids for question in questions]
    with sampling_model(policy, settings.sampling.dtype) as sampler:
        generated = generate(
            sampler,
            ids,
            settings.sampling,
            Streams(settings.seed),
            round_index=0,
            eos_ids=eos_ids(policy, tokenizer),
            stream="alpaca",
        )
    return [
        tokenizer.decode(samples[0], skip_special_tokens=True).strip()
        for samples in generated.completion_ids
    ]
