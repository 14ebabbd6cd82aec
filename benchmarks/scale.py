"""What scale costs: memory of log-probabilities, padding, two processes, staged runs.

    python benchmarks/scale.py [--repeats 3] [--parts memory padding processes staged]

memory     ln pi of 8 sequences of 512 completion tokens, forward and backward, through a one-layer
           Llama of width 256, with vocabularies of 32,000 and 128,000: plain logits against chunks.
           Peak resident memory above what the process held before (weights and gradients included
           there). "frozen": embeddings and output layer take no gradient, as with LoRA. "trained":
           they do, and each gradient, as large as its matrix, exists before it is added up, in
           plain code and in ours.
padding    share of padding in a round's micro-batches, in the order drawn and bucketed within each
           optimizer step. Lengths are made up: prompts 32-512 tokens, completions geometric with
           mean 120, cut at 512; 1,024 pairs, steps of 64, micro-batches of 4.
processes  weak scaling: seconds of collecting and of updating a round, one process with n prompts
           against two (gloo) with 2n. 1 is perfect.
staged     wall-clock seconds of a run of two rounds, a process for each phase against one for all.

Every measurement is a process of its own with one thread. The last line is one JSON object; its
ratio is plain CPU time over chunked CPU time at 32,000, the trained case.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SEQUENCES, PROMPT, COMPLETION, WIDTH = 8, 16, 512, 256
VOCABULARIES = (32_000, 128_000)
PARTS = ("memory", "padding", "processes", "staged")


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, case, vocabulary = arguments.measure
        print(json.dumps(measure_memory(kind == "chunked", case == "frozen", int(vocabulary))))
        return
    found: dict[str, Any] = {}
    for part in arguments.parts:
        found[part] = globals()[f"run_{part}"](arguments.repeats)
        print(f"{part}: {json.dumps(found[part])}", file=sys.stderr)
    last = {"name": "scale", "repeats": arguments.repeats, **found, "machine": machine()}
    if "memory" in found:
        case = f"trained {VOCABULARIES[0]}"
        both = (found["memory"][kind][case]["runs"] for kind in ("plain", "chunked"))
        pairs = list(zip(*both, strict=True))
        ratios = [plain["cpu_seconds"] / ours["cpu_seconds"] for plain, ours in pairs]
        last |= {
            "ratio_median": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "ours": found["memory"]["chunked"][case]["median"],
            "peer": found["memory"]["plain"][case]["median"],
        }
    print(json.dumps(last))


# -- memory ----------------------------------------------------------------------------------------


def run_memory(repeats: int) -> dict[str, Any]:
    """Both ways, by case, with all runs and their medians."""
    found: dict[str, Any] = {"plain": {}, "chunked": {}}
    for vocabulary in VOCABULARIES:
        for case in ("trained", "frozen"):
            runs: dict[str, list[dict[str, float]]] = {"plain": [], "chunked": []}
            for _ in range(repeats):
                for kind in runs:
                    command = [sys.executable, __file__, "--measure", kind, case, str(vocabulary)]
                    runs[kind].append(json.loads(output(command).splitlines()[-1]))
            for kind, those in runs.items():
                median = {n: round(statistics.median(r[n] for r in those), 3) for n in those[0]}
                found[kind][f"{case} {vocabulary}"] = {"median": median, "runs": those}
    return found


def measure_memory(chunked: bool, frozen: bool, vocabulary: int) -> dict[str, float]:
    """One forward and backward pass, after one on a few tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from reprise.alignment.logprobs import completion_logprobs

    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2 * COMPLETION,
    )
    model = AutoModelForCausalLM.from_config(config)
    for matrix in (model.get_input_embeddings(), model.get_output_embeddings()):
        matrix.weight.requires_grad_(not frozen)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    generator = torch.Generator().manual_seed(0)

    def step(sequences: int, length: int) -> None:
        ids = torch.randint(0, vocabulary, (sequences, PROMPT + length), generator=generator)
        prompt, completion = ids[:, :PROMPT], ids[:, PROMPT:]
        masks = torch.ones_like(prompt), torch.ones_like(completion)
        total, _ = completion_logprobs(
            model, prompt, masks[0], completion, masks[1], chunked=chunked
        )
        total.sum().backward()

    step(1, 4)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = memory("VmRSS")
    started = time.perf_counter(), time.process_time()
    step(SEQUENCES, COMPLETION)
    return {
        "peak_mb_above_base": memory("VmHWM") - before,
        "cpu_seconds": time.process_time() - started[1],
        "wall_seconds": time.perf_counter() - started[0],
    }


def memory(name: str) -> float:
    """A line of /proc/self/status, in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"no {name} in /proc/self/status: this needs Linux")


# -- padding ---------------------------------------------------------------------------------------


def run_padding(repeats: int) -> dict[str, float]:
    """Shares of padding in a round."""
    import numpy as np

    from reprise.alignment.training.update import bucketed, padding_of
    from reprise.rollout.types import Pairs

    count, step, micro_batch = 1024, 64, 4
    generator = np.random.default_rng(0)
    completions = [np.minimum(generator.geometric(1 / 120, count), 512) for _ in range(2)]
    sides = [[np.ones(size, np.int32) for size in sizes] for sizes in completions]
    zeros = np.zeros((count, 2), np.float32)
    pairs = Pairs(
        prompt_index=np.arange(count),
        prompt_ids=[np.ones(size, np.int32) for size in generator.integers(32, 513, count)],
        first_ids=sides[0],
        second_ids=sides[1],
        terminated=zeros > 0,
        rewards=zeros,
        policy_logprobs=zeros,
        reference_logprobs=zeros,
        label_uniform=np.zeros(count),
        weight=np.ones(count, np.float32),
    )
    order = generator.permutation(count)
    return {
        "as_drawn": round(padding_of(order, pairs, micro_batch), 3),
        "bucketed": round(padding_of(bucketed(order, pairs, step), pairs, micro_batch), 3),
    }


# -- whole runs ------------------------------------------------------------------------------------


def run_processes(repeats: int) -> dict[str, Any]:
    """Seconds of a round's two phases, one process and two, and their ratio."""
    seconds: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        make_lab(Path(folder))
        for repeat in range(repeats):
            for world in seconds:
                out = Path(folder) / f"run-{world}-{repeat}"
                config = write_config(Path(folder), prompts=64 * world, batch_size=16 * world)
                start = [sys.executable, "-m"]
                if world == 2:
                    start += ["accelerate.commands.launch", "--config_file"]
                    start += [str(ROOT / "launch/accelerate/cpu.yaml"), "-m"]
                output([*start, "reprise.launch.run", str(config), "--out", str(out)])
                lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
                [_, last] = [line for line in lines if "update_seconds" in line]
                phases = ("collect_seconds", "update_seconds")
                seconds[world].append({name: last[name] for name in phases})
    found: dict[str, Any] = {"one": seconds[1], "two": seconds[2]}
    for name in ("collect_seconds", "update_seconds"):
        both = zip(seconds[1], seconds[2], strict=True)
        ratio = statistics.median(one[name] / two[name] for one, two in both)
        found[f"efficiency_{name.split('_')[0]}"] = round(ratio, 3)
    return found


def run_staged(repeats: int) -> dict[str, Any]:
    """Wall-clock seconds of the same run in one process and in one for each phase."""
    found: dict[str, list[float]] = {"in_process": [], "staged": []}
    with tempfile.TemporaryDirectory() as folder:
        make_lab(Path(folder))
        config = write_config(Path(folder), prompts=64, batch_size=16)
        hashes = set()
        for repeat in range(repeats):
            for mode, times in found.items():
                out = Path(folder) / f"{mode}-{repeat}"
                command = [
                    sys.executable,
                    "-m",
                    "reprise.launch.cli",
                    "run",
                    str(config),
                    "--out",
                    str(out),
                ]
                started = time.perf_counter()
                output(command + (["--staged"] if mode == "staged" else []))
                times.append(round(time.perf_counter() - started, 2))
                hashes.add(json.loads((out / "summary.json").read_text())["weights_sha256"])
    assert len(hashes) == 1, "the two modes gave different weights"
    overhead = statistics.median(found["staged"]) - statistics.median(found["in_process"])
    return {**found, "overhead_seconds": round(overhead, 2), "same_weights": True}


def make_lab(folder: Path) -> None:
    """A small policy, a reward model and prompts."""
    from pydoc_data.topics import topics

    from reprise.alignment import models
    from reprise.alignment.config import FromScratch

    tokenizer = models.train_tokenizer(topics.values(), 2048)
    policy = models.new_policy(FromScratch(vocabulary=2048), tokenizer, seed=0)
    for name, model in (("policy", policy), ("reward", models.reward_model_from(policy, seed=1))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    ids = tokenizer("\n".join(topics.values()))["input_ids"]
    texts = [tokenizer.decode(ids[at : at + 40]) for at in range(0, 40 * 400, 40)]
    (folder / "prompts").mkdir()
    for split, rows in (("train", texts[:380]), ("test", texts[380:])):
        lines = [json.dumps({"prompt": text, "completion": "."}) + "\n" for text in rows]
        (folder / "prompts" / f"{split}.jsonl").write_text("".join(lines))


def write_config(folder: Path, prompts: int, batch_size: int) -> Path:
    """Two rounds of DPO on the lab; JSON is YAML."""
    config = {
        "experiment": "alignment.on_policy",
        "policy": str(folder / "policy"),
        "data": {"name": str(folder / "prompts")},
        "reward": {"model": str(folder / "reward")},
        "sampling": {"max_prompt_tokens": 64, "max_new_tokens": 24, "batch_size": 64},
        "objective": {"name": "dpo", "gamma": 0.1, "reference": "initial", "labels": "ranked"},
        "rounds": 2,
        "prompts_per_round": prompts,
        "batch_size": batch_size,
        "shard_size": 32,
        "evaluation": {"prompts": 4, "bootstrap": 100},
        "train": {
            "learning_rate": 1e-4,
            "per_device_train_batch_size": 16,
            "save_strategy": "no",
        },
    }
    file = folder / f"config-{prompts}.yaml"
    file.write_text(json.dumps(config))
    return file


def output(command: list[str]) -> str:
    """Standard output of a command that has one thread and no network."""
    quiet = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **quiet, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def machine() -> dict[str, Any]:
    """What this was measured on."""
    from reprise.launch.provenance import cores, cpu_name

    return {"cpu": cpu_name(), "cores": cores(), "threads_used": 1}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
