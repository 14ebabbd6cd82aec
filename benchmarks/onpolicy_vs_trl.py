"""On-policy DPO, the whole loop (generate, score, update), against TRL's OnlineDPOTrainer.

    python benchmarks/onpolicy_vs_trl.py [--repeats 3] [--precision bf16|fp32] [--runs DIR]

The same policy, reward model, prompts, longest completion (24 tokens), pairs per optimizer step
(32), optimizer and schedule; one thread. Without --runs: a GPT-NeoX of 1.06M parameters with
fresh weights and prompts of 64 tokens; such a model emits EOS once in 2,048 tokens, so nearly
every completion is full length, which is the hardest case for us. With --runs runs/quickstart:
the quickstart's trained models on its docstrings, where most completions end early.

Each measurement is a process of its own, ours and TRL's in turn, after a warm-up that is not
counted. Counted for us: all that a round of 256 pairs takes, storing its data and setting up its
trainer included. Counted for TRL: the optimizer steps alone. Evaluation and saving weights are
off or uncounted on both sides. TRL's gradient checkpointing is off, or it would generate without
its key-value cache.

What differs is the algorithm: TRL samples afresh for each optimizer step, 64 completions at a
time; here a round's 512 completions are sampled together, which is what on-policy learning in
rounds (2601.08421) allows. Both use the attention implementation that is fastest for TRL.

The last line is one JSON object; a ratio is TRL's time over ours for the same number of pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROMPT, COMPLETION, VOCABULARY = 64, 24, 2048
PAIRS, STEP = 256, 32  # pairs of a round, pairs of an optimizer step
WARM_UP_STEPS = 3
LEARNING_RATE, GAMMA, TEMPERATURE = 2e-4, 0.1, 0.9


def main() -> None:
    """Measure both sides in turn, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--attention", choices=["sdpa", "eager"], help="for both sides")
    parser.add_argument("--runs", type=Path, help="folder with the runs sft and reward_model")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measure = measure_ours if arguments.side == "ours" else measure_peer
        print(json.dumps(measure(arguments.folder, arguments.precision, arguments.attention)))
        return
    results: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.runs is None:
            make_models_and_prompts(Path(folder))
        else:
            link_models_and_prompts(Path(folder), arguments.runs)
        for repeat in range(arguments.repeats):
            for side in ("ours", "peer") if repeat % 2 == 0 else ("peer", "ours"):
                result = in_a_process(side, Path(folder), arguments)
                results[side].append(result)
                print(f"{side}: {result}", file=sys.stderr)
    both = list(zip(results["ours"], results["peer"], strict=True))
    ratios = [ours["pairs_per_second"] / peer["pairs_per_second"] for ours, peer in both]
    cpu = [ours["pairs_per_cpu_second"] / peer["pairs_per_cpu_second"] for ours, peer in both]
    print(
        json.dumps(
            {
                "name": "onpolicy_vs_trl",
                "ratio_median": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "ratio_cpu_median": statistics.median(cpu),
                "repeats": arguments.repeats,
                "ours": medians(results["ours"]),
                "peer": medians(results["peer"]),
                "precision": arguments.precision,
                "workload": "fresh weights" if arguments.runs is None else str(arguments.runs),
                "machine": machine(),
            }
        )
    )


def measure_ours(folder: Path, precision: str, attention: str | None) -> dict[str, float]:
    """Two rounds of `alignment.on_policy`; the second is measured."""
    from reprise.alignment.config import OnPolicy
    from reprise.alignment.on_policy import run
    from reprise.rollout.run.run_dir import RunDir
    from reprise.rollout.store import RoundStore

    class Clock(RunDir):
        def log(self, **values: Any) -> None:
            if (
                values.get("round") == 1 and "reward_mean" in values
            ):  # pi_1 measured: round 2 begins
                self.started = now()
            elif values.get("round") == 2 and "step" in values:
                self.stopped = now()
            super().log(**values)

    config = OnPolicy.model_validate(
        {
            "experiment": "alignment.on_policy",
            "policy": str(folder / "policy"),
            "attention": attention or "sdpa",
            "data": {"name": str(folder / "prompts")},
            "reward": {"model": str(folder / "reward"), "batch_size": 2 * STEP},
            "sampling": {
                "temperature": TEMPERATURE,
                "max_prompt_tokens": PROMPT,
                "max_new_tokens": COMPLETION,
                "batch_size": 2 * PAIRS,
                "dtype": "bfloat16" if precision == "bf16" else "float32",
            },
            "objective": {
                "name": "dpo",
                "gamma": GAMMA,
                "reference": "initial",
                "labels": "ranked",
            },
            "rounds": 2,
            "prompts_per_round": PAIRS,
            "batch_size": STEP,
            "shard_size": PAIRS,
            "first_step_tolerance": 1.0 if precision == "bf16" else 0.01,
            "evaluation": {"prompts": 2, "bootstrap": 100},
            "train": training_settings() | {"bf16": precision == "bf16"},
        }
    )
    with tempfile.TemporaryDirectory(dir=folder) as out:
        run_dir = Clock(out, experiment=config.experiment, seed=0)
        before = peak_memory()
        run(config, run_dir)
        data = RoundStore(run_dir.rounds).read(1).data
        assert len(data) == PAIRS
        lengths = [len(ids) for samples in data.completion_ids for ids in samples]
    return {
        **speed(run_dir.started, run_dir.stopped),
        "completion_tokens": statistics.mean(lengths),
        **memory(before),
    }


def measure_peer(folder: Path, precision: str, attention: str | None) -> dict[str, float]:
    """The optimizer steps of `OnlineDPOTrainer` after the warm-up."""
    warnings.simplefilter("ignore")
    import datasets
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == WARM_UP_STEPS:
                self.started = now()
            self.stopped = now()

    class Counting(OnlineDPOTrainer):
        lengths: list[float] = []  # noqa: RUF012

        def _generate(self, *args, **kwargs):
            output = super()._generate(*args, **kwargs)
            self.lengths.append(output[3].sum().item() / len(output[3]))
            return output

    chosen = {"attn_implementation": attention or "sdpa", "dtype": "float32"}
    rows = [json.loads(line) for line in (folder / "prompts/train.jsonl").open()]
    steps = WARM_UP_STEPS + PAIRS // STEP
    with tempfile.TemporaryDirectory(dir=folder) as out:
        arguments = OnlineDPOConfig(
            output_dir=out,
            max_new_tokens=COMPLETION,
            max_length=PROMPT + COMPLETION,
            temperature=TEMPERATURE,
            beta=GAMMA,
            gradient_checkpointing=False,
            max_steps=steps,
            logging_steps=1,
            **training_settings() | {"bf16": precision == "bf16"},
        )
        trainer = Counting(
            model=AutoModelForCausalLM.from_pretrained(folder / "policy", **chosen),
            reward_funcs=AutoModelForSequenceClassification.from_pretrained(
                folder / "reward", **chosen
            ),
            args=arguments,
            train_dataset=datasets.Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
            processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
            reward_processing_classes=AutoTokenizer.from_pretrained(folder / "reward"),
            callbacks=[clock := Clock()],
        )
        before = peak_memory()
        trainer.train()
    assert trainer.state.global_step == steps
    return {
        **speed(clock.started, clock.stopped),
        "completion_tokens": statistics.mean(trainer.lengths[WARM_UP_STEPS:]),
        **memory(before),
    }


def training_settings() -> dict[str, Any]:
    """`TrainingArguments` that both sides get."""
    return {
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.0,
        "per_device_train_batch_size": STEP,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }


def make_models_and_prompts(folder: Path) -> None:
    """Write a policy, a reward model, and prompts of exactly PROMPT tokens from Python's manual."""
    from pydoc_data.topics import topics

    from reprise.alignment import models
    from reprise.alignment.config import FromScratch

    tokenizer = models.train_tokenizer(topics.values(), VOCABULARY)
    policy = models.new_policy(FromScratch(vocabulary=VOCABULARY), tokenizer, seed=0)
    for name, model in (("policy", policy), ("reward", models.reward_model_from(policy, seed=1))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    ids = tokenizer("\n".join(topics.values()))["input_ids"]
    texts = (tokenizer.decode(ids[at : at + PROMPT]) for at in range(0, len(ids), PROMPT))
    exact = (text for text in texts if len(tokenizer(text)["input_ids"]) == PROMPT)
    write_prompts(folder, exact)


def link_models_and_prompts(folder: Path, runs: Path) -> None:
    """The policy and the reward model of finished runs, and the prompts they were trained for."""
    from reprise.alignment import models
    from reprise.alignment.text import data
    from reprise.launch.config import load

    for name, run in (("policy", "sft"), ("reward", "reward_model")):
        (folder / name).symlink_to(Path(models.resolve_model(str(runs / run))).resolve())
    settings = load(runs / "sft" / "config.yaml").data
    tokenizer = models.load_tokenizer(str(folder / "policy"))
    texts = data.load_prompts(settings, settings.split, tokenizer)["prompt"]
    write_prompts(folder, (t for t in texts if len(tokenizer(t)["input_ids"]) <= PROMPT))


def write_prompts(folder: Path, texts: Iterator[str]) -> None:
    """As many prompts as both sides need, and a few that ours holds out."""
    (folder / "prompts").mkdir()
    for split, count in (("train", 2 * PAIRS + WARM_UP_STEPS * STEP), ("test", 8)):
        rows = [{"prompt": next(texts), "completion": "."} for _ in range(count)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "prompts" / f"{split}.jsonl").write_text(lines)


def in_a_process(side: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """One measurement in a fresh process with one thread."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    command += ["--precision", arguments.precision]
    command += ["--attention", arguments.attention] if arguments.attention else []
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, env={**os.environ, **one_thread}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def now() -> tuple[float, float]:
    """Wall-clock and CPU seconds."""
    return time.perf_counter(), time.process_time()


def speed(started: tuple[float, float], stopped: tuple[float, float]) -> dict[str, float]:
    """Pairs per second of wall-clock time, and of CPU time, which other processes do not touch."""
    wall, cpu = stopped[0] - started[0], stopped[1] - started[1]
    return {"pairs_per_second": PAIRS / wall, "pairs_per_cpu_second": PAIRS / cpu}


def peak_memory() -> float:
    """Largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(before: float) -> dict[str, float]:
    """Peak memory, and how much of it came after libraries and models were loaded."""
    peak = peak_memory()
    return {"peak_memory_mib": peak, "peak_memory_mib_above_start": peak - before}


def medians(results: list[dict[str, float]]) -> dict[str, float]:
    """The median of each number."""
    return {
        name: round(statistics.median(result[name] for result in results), 3) for name in results[0]
    }


def machine() -> dict[str, Any]:
    """What this was measured on."""
    from reprise.launch.provenance import cores, cpu_name

    return {"cpu": cpu_name(), "cores": cores(), "threads_used": 1}


if __name__ == "__main__":
    main()
