"""The parts of benchmarks/gpu.py; each is a function of a size and a folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reprise.alignment import (
    models,
    on_policy,  # noqa: F401 (imported once for all parts)
)
from reprise.alignment.adapters import quantization_config
from reprise.alignment.config import FromScratch, Quantization
from reprise.alignment.logprobs import completion_logprobs
from reprise.launch.config import load
from reprise.launch.provenance import cores, cpu_name
from reprise.launch.run import execute
from reprise.rl.arranged import Forward
from reprise.rl.pqn import Learner
from reprise.rl.workers import Clock
from reprise.rollout.generate import generate
from reprise.rollout.randomness import Streams
from reprise.rollout.run.run_dir import RunDir, metrics_of
from reprise.rollout.run.settings import Sampling

ROOT = Path(__file__).resolve().parents[2]
# What is imported is inherited, unless the imports have opened a GPU, which no child could use.
PROCESSES: Any = multiprocessing.get_context("spawn" if torch.cuda.is_initialized() else "fork")
WORDS = "get set read write the a file name value list of path to item".split()
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "compiled": 1e-3}  # of a loss, relative


@dataclass(frozen=True)
class Size:
    """How much each part does."""

    shape: dict[str, Any]  # of the model of update, sampling and whole_round
    prompts: int  # of whole_round, and of sampling
    completion: int  # tokens
    sequences: int  # of a batch in update
    vocabulary: int  # of chunked
    matrix: int  # side of the matrix product
    copies: int  # PQN's environments
    workers: int  # their processes
    iterations: int
    compile: dict[str, Any]
    limit: int  # seconds a part may take


FULL = Size(
    shape={"layers": 16, "width": 1536, "heads": 12, "feedforward": 6144, "positions": 1024},
    prompts=256,
    completion=128,
    sequences=16,
    vocabulary=128_000,
    matrix=8192,
    copies=120,
    workers=15,
    iterations=2,
    compile={"torch_compile": True},
    limit=150,
)
SMALL = Size(
    shape={"layers": 2, "width": 32, "heads": 2, "feedforward": 64, "positions": 256},
    prompts=8,
    completion=8,
    sequences=2,
    vocabulary=8_000,
    matrix=256,
    copies=4,
    workers=2,
    iterations=1,
    compile={"torch_compile": True, "torch_compile_backend": "eager"},
    limit=90,
)


@dataclass(frozen=True)
class Result:
    """What a part found."""

    ok: bool
    figure: float
    unit: str
    note: str = ""


def apart(work: Callable[..., Any], *arguments: Any, limit: float) -> dict[str, Any]:
    """What `work` returns, from a process of its own, which may crash or hang."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = PROCESSES.Process(target=_told, args=(theirs, work, *arguments))
    process.start()
    theirs.close()
    told: dict[str, Any] = {"ok": False, "figure": None, "unit": "", "note": ""}
    try:
        if ours.poll(limit):
            return told | ours.recv()
        return told | {"note": f"not done within {limit:.0f} s"}
    except EOFError:
        process.join()
        return told | {"note": f"its process ended with exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _told(pipe: Any, work: Callable[..., Any], *arguments: Any) -> None:
    try:
        result = work(*arguments)
        pipe.send(result if isinstance(result, dict) else vars(result))
    except BaseException as error:
        traceback.print_exc()
        pipe.send({"note": f"{type(error).__name__}: {error}"[:300]})


def describe(size: Size) -> dict[str, Any]:
    """The card, and the rate of its matrix product in bfloat16."""
    device = where()
    a = torch.randn(size.matrix, size.matrix, device=device).bfloat16()
    product = seconds(lambda: a @ a, 3 if device.type == "cpu" else 20)
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "none",
        "teraflops": 2 * size.matrix**3 / product / 1e12,
        "cpu": cpu_name(),
        "cores": cores(),
        "torch": torch.__version__,
    }


# -- a policy, a reward model and text -------------------------------------------------------------


def write_lab(folder: Path) -> dict[str, Any]:
    """Small models with a tokenizer of 300 tokens, and prompts of about 60."""
    texts = [f"{a} {b} {c}:" for a in WORDS for b in WORDS for c in WORDS[::2]]
    tokenizer = models.train_tokenizer(texts, 300)
    shape = FromScratch(
        architecture="llama", layers=2, width=64, heads=2, feedforward=128, vocabulary=300
    )
    policy = models.new_policy(shape, tokenizer, seed=1)
    reward = models.reward_model_from(policy, seed=2)
    with torch.no_grad():
        reward.score.weight.normal_(generator=torch.Generator().manual_seed(3))
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "data").mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        rows = []
        for _ in range(512):
            prompt = " ".join(generator.choice(WORDS, 30)) + ":"
            chosen, rejected = (" " + " ".join(generator.choice(WORDS, 4)) for _ in range(2))
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        written = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "data" / f"{split}.jsonl").write_text(written)
    return {}


def alignment(folder: Path, **changes: Any) -> dict[str, Any]:
    """A config of one round of 32 pairs in four steps; the changes replace whole sections."""
    train = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "save_strategy": "no"}
    return {
        "experiment": "alignment.on_policy",
        "policy": str(folder / "policy"),
        "data": {"name": str(folder / "data")},
        "reward": {"model": str(folder / "reward")},
        "sampling": {"max_prompt_tokens": 96, "max_new_tokens": 16, "batch_size": 64},
        "objective": {"name": "dpo", "gamma": 0.1, "reference": "initial", "labels": "ranked"},
        "rounds": 1,
        "prompts_per_round": 32,
        "batch_size": 8,
        "evaluation": {"prompts": 8, "bootstrap": 100},
        **changes,
        "train": train | changes.get("train", {}),
    }


def carried_out(config: dict[str, Any], out: Path) -> dict[str, Any]:
    """Run a config as the command does; returns its summary."""
    file = out.with_suffix(".json")
    file.write_text(json.dumps(config))
    execute(file, out=out)
    return json.loads((out / "summary.json").read_text())


def losses(out: Path) -> np.ndarray:
    """The loss of each optimizer step."""
    return np.array([record["loss"] for record in metrics_of(out) if "step" in record])


# -- alignment -------------------------------------------------------------------------------------


def round_on_cpu(size: Size, folder: Path) -> Result:
    """The round whose data the next parts train on."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    summary = carried_out(alignment(folder), folder / "cpu")
    return Result(True, summary["throughput"]["completions_per_second"], "completions/s sampled")


def replayed(folder: Path, **changes: Any) -> dict[str, Any]:
    """A config that updates on that data."""
    changes = {"first_step_tolerance": 0.5, **changes}
    return alignment(folder, experiment="alignment.offline", replay=str(folder / "cpu"), **changes)


def updated(kind: str, size: Size, folder: Path) -> Result:
    """The update's losses against those on the CPU."""
    train = {"float32": {}, "bfloat16": {"bf16": True}, "compiled": size.compile}[kind]
    carried_out(replayed(folder, train=train), folder / kind)
    ours, theirs = losses(folder / kind), losses(folder / "cpu")
    gap = float(np.abs(ours / theirs - 1).max())
    return Result(gap <= TOLERANCE[kind], gap, "relative gap of a loss", f"{len(ours)} steps")


def fsdp2(size: Size, folder: Path) -> Result:
    """The shipped launcher file; without a GPU through the shim of the tests."""
    asked = {"processes": 1, "strategy": "fsdp2"}
    out, file = folder / "fsdp2", folder / "fsdp2.json"
    file.write_text(json.dumps(replayed(folder, parallelism=asked)))
    module = ["-m", "reprise.launch.run"]
    if not torch.cuda.is_available():
        module = [str(ROOT / "tests/system/sharding_on_cpu.py")]
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher += ["--config_file", str(ROOT / "launch/accelerate/fsdp2.yaml")]
    command = [*launcher, "--num_processes", "1", *module, str(file), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=with_root(), capture_output=True, text=True)
    if done.returncode:
        return Result(
            False, done.returncode, "exit status", done.stderr.partition("=====")[0][-600:]
        )
    from safetensors.torch import load_file

    ours, theirs = (
        load_file(path / "checkpoints/round-00001/model.safetensors")
        for path in (out, folder / "float32")
    )
    gap = max((ours[name] - theirs[name]).abs().max().item() for name in theirs)
    return Result(gap < 1e-4, gap, "largest gap of a weight", "against float32")


def lora(size: Size, folder: Path) -> Result:
    """A round with an adapter, base in bfloat16."""
    config = alignment(folder, lora={"rank": 8, "base_dtype": "bfloat16"}, train={"bf16": True})
    summary = carried_out(config | {"first_step_tolerance": 0.5}, folder / "lora")
    kept = models.weights_sha256(models.load_policy(str(folder / "policy"), "policy").state_dict())
    return Result(
        summary["weights_sha256"] != kept,
        summary["throughput"]["pairs_per_second"],
        "pairs/s updated",
    )


def qlora(size: Size, folder: Path) -> Result:
    """A round on a 4-bit base, or the refusal."""
    try:
        quantization_config(Quantization())
    except ValueError as refusal:
        return Result(
            "pip install bitsandbytes" in str(refusal), 0, "rounds", f"refused: {refusal}"
        )
    changed = {"rank": 8, "quantization": {}}
    config = alignment(folder, lora=changed, train={"bf16": True}) | {"first_step_tolerance": 0.5}
    carried_out(config, folder / "qlora")
    return Result(True, 1, "rounds")


def resume(size: Size, folder: Path) -> Result:
    """Kill a run once its update has a checkpoint, continue it, compare it with one left alone."""
    train = {"save_strategy": "steps", "save_steps": 1}
    hashes = {}
    for name in ("left_alone", "killed"):
        config, out = alignment(folder, train=train), folder / name
        if name == "killed":
            process = PROCESSES.Process(target=carried_out, args=(config, out))
            process.start()
            wanted = "checkpoints/update-00001/checkpoint-[12]/complete.json"
            while process.is_alive() and not list(out.glob(wanted)):
                time.sleep(0.002)
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            if (out / "summary.json").exists():
                return Result(False, 0, "runs killed", "it ended before it was killed")
        work = PROCESSES.Process(target=carried_out, args=(config, out))
        work.start()
        work.join()
        hashes[name] = json.loads((out / "summary.json").read_text())["weights_sha256"]
    same = hashes["left_alone"] == hashes["killed"]
    return Result(same, float(same), "of 1 run has the same bits")


def supervised(size: Size, folder: Path) -> Result:
    """SFT, then a reward model from it."""
    common = {
        "data": {"name": str(folder / "data")},
        "heldout": 64,
        "epochs": 2,
        "batch_size": 16,
        "train": {"learning_rate": 2e-3, "logging_steps": 4, "per_device_train_batch_size": 16},
    }
    sft = {"experiment": "alignment.sft", "model": str(folder / "policy"), **common}
    carried_out(sft, folder / "sft")
    reward = {"experiment": "alignment.reward_training", "model": str(folder / "sft"), **common}
    carried_out(reward, folder / "reward_model")
    falls = [losses(folder / name) for name in ("sft", "reward_model")]
    fell = [float(loss[0] - loss[-2:].mean()) for loss in falls]
    return Result(fell[0] > 0, fell[0], "nats that SFT's loss fell", f"reward: {fell[1]:.3g}")


def chunked(size: Size, folder: Path) -> Result:
    """Memory of a forward and backward pass above weights and gradients, plain over chunked."""
    peaks, values = {}, {}
    for kind in (True, False):
        told = apart(_chunked, kind, size, limit=size.limit)
        peaks[kind], values[kind] = told["peak"], told["value"]
    gap = abs(values[True] / values[False] - 1)
    ratio = peaks[False] / peaks[True]
    return Result(
        ratio > 1 and gap < 1e-4,
        ratio,
        "x memory of ours",
        f"{peaks[False] / 1e9:.2f} GB against {peaks[True] / 1e9:.2f}; values agree to {gap:.1g}",
    )


def _chunked(chunked: bool, size: Size) -> dict[str, Any]:
    model = causal(size.vocabulary, {"layers": 1, "width": 256, "heads": 4, "feedforward": 512})
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ids = tokens(8, 16 + 512 if size is FULL else 16 + 128, size.vocabulary)
    logprobs(model, tokens(1, 20, size.vocabulary), 16, chunked).sum().backward()
    before = memory(reset=True)
    total = logprobs(model, ids, 16, chunked)
    total.sum().backward()
    return {"peak": memory() - before, "value": total.sum().item()}


def update(size: Size, folder: Path) -> Result:
    """Forward and backward in bfloat16 autocast, a vocabulary of 32,000."""
    model = causal(32_000 if size is FULL else 300, size.shape)
    ids = tokens(size.sequences, 4 * size.completion, model.config.vocab_size)

    def step() -> None:
        with torch.autocast(where().type, torch.bfloat16):
            total = logprobs(model, ids, size.completion, True)
        total.sum().backward()

    rate = ids.numel() / seconds(step, 1 if size is SMALL else 5)
    weights = sum(parameter.numel() for parameter in model.parameters())
    peak = describe(size)["teraflops"] * 1e12
    note = f"{6 * weights * rate / peak:.0%} of the matrix product's rate, {weights / 1e9:.2f} B"
    return Result(rate > 0, rate, "tokens/s updated", note)


def sampling(size: Size, folder: Path) -> Result:
    """Two completions of each prompt by our own sampler, in bfloat16."""
    model = causal(32_000 if size is FULL else 300, size.shape).bfloat16().eval()
    prompts = list(tokens(size.prompts, 64, model.config.vocab_size).cpu().numpy())
    settings = Sampling(
        max_prompt_tokens=64, max_new_tokens=size.completion, batch_size=2 * size.prompts
    )
    generate(model, prompts[:4], settings, Streams(0), round_index=0, eos_ids=0)
    started = time.monotonic()
    drawn = generate(model, prompts, settings, Streams(0), round_index=0, eos_ids=0)
    count = sum(len(one) for samples in drawn.completion_ids for one in samples)
    return Result(count > 0, count / (time.monotonic() - started), "tokens/s sampled")


def attention(size: Size, folder: Path) -> Result:
    """A token's attention at lengths not met before: as PyTorch chooses, and without cuDNN's."""
    from torch.nn.functional import scaled_dot_product_attention

    heads, took = size.shape["heads"], {}
    for with_cudnn, first in ((True, 64), (False, 128)):
        torch.backends.cuda.enable_cudnn_sdp(with_cudnn)

        def attend(length: int) -> torch.Tensor:
            like = {"device": where(), "dtype": torch.bfloat16}
            keys = torch.zeros(2 * size.prompts, heads, length, 128, **like)
            query, mask = keys[:, :, :1], torch.ones_like(keys[:, :1, None, :, 0]).bool()
            return scaled_dot_product_attention(query, keys, keys, attn_mask=mask)

        lengths = iter(range(first, first + 32))
        took[with_cudnn] = seconds(lambda lengths=lengths: attend(next(lengths)), 24)
    ratio = took[True] / took[False]
    note = f"{1e3 * took[True]:.3g} ms a length against {1e3 * took[False]:.3g}"
    return Result(where().type == "cpu" or ratio > 1, ratio, "x the time without cuDNN", note)


def whole_round(size: Size, folder: Path) -> Result:
    """A round through the command with a policy of `size`."""
    tokenizer = models.load_tokenizer(str(folder / "policy"), "policy")
    shape = FromScratch(architecture="llama", vocabulary=300, **size.shape)
    with where():
        policy = models.new_policy(shape, tokenizer, seed=1)
    policy.save_pretrained(folder / "large")
    tokenizer.save_pretrained(folder / "large")
    weights = policy.num_parameters()
    del policy
    config = alignment(
        folder,
        policy=str(folder / "large"),
        prompts_per_round=size.prompts,
        batch_size=max(4, size.prompts // 4),
        sampling={
            "max_prompt_tokens": 96,
            "max_new_tokens": size.completion,
            "batch_size": 512,
            "dtype": "bfloat16",
        },
        train={"bf16": True, "learning_rate": 1e-6, "gradient_checkpointing": False},
        first_step_tolerance=5.0,
        logits="chunked",
    )
    started = time.monotonic()
    summary = carried_out(config, folder / "whole")
    told = summary["throughput"]
    took = time.monotonic() - started
    note = (
        f"{weights / 1e9:.2f} B; {told['completions_per_second']:.1f} completions/s, "
        f"{told['pairs_per_second']:.1f} pairs/s updated, peak {memory() / 1e9:.1f} GB"
    )
    return Result(True, took, "seconds", note)


# -- PQN -------------------------------------------------------------------------------------------


def learner(size: Size, folder: Path, workers: int, **overrides: Any) -> Learner:
    """PQN on Breakout."""
    changed = {"copies": size.copies, "environment_settings.workers": workers, **overrides}
    config = load(
        "laptop/pqn_breakout_quantized_regularized", [f"{k}={v}" for k, v in changed.items()]
    )
    folder = folder / f"pqn_{len(list(folder.glob('pqn_*')))}"
    made = Learner(config, RunDir(folder, experiment="rl.pqn", seed=0))  # type: ignore[arg-type]
    made.resume()
    return made


def pqn_arranged(size: Size, folder: Path) -> Result:
    """Largest gap of a Q-value between the layouts, over their spread."""
    made = learner(size, folder, 0, copies=2, steps=64, total_steps=128)
    noise = np.random.default_rng(0).integers(0, 256, (256, 4, 84, 84), dtype=np.uint8)
    gaps, q = {}, {}
    with torch.no_grad():
        for arrangement, dtype in (
            ("reference", torch.float32),
            ("fast", torch.float32),
            ("fast", torch.bfloat16),
        ):
            forward = Forward(made.network, arrangement, dtype)
            encoded = forward.encode(noise, made.workers.device)
            q[arrangement, dtype] = forward(forward.weights(), encoded).float()
        reference = q["reference", torch.float32]
        for (arrangement, dtype), values in q.items():
            if arrangement == "fast":
                gaps[dtype] = ((values - reference).abs().max() / reference.std()).item()
    narrow = gaps[torch.bfloat16]
    ok = gaps[torch.float32] < 1e-2 and narrow < 0.2
    note = f"bfloat16: {narrow:.2g}"
    return Result(ok, gaps[torch.float32], "of the spread, float32", note)


def pqn(size: Size, folder: Path, workers: int = 0) -> Result:
    """Whole iterations: act, returns, four epochs."""
    steps = 128 if size is FULL else 8
    total = (size.iterations + 1) * size.copies * steps
    made = learner(size, folder, workers, steps=steps, total_steps=total)
    rates, clocks = [], []
    for _ in range(size.iterations + 1):
        clock = Clock(made.workers.device)
        rollout = made.act(clock)
        made.update(rollout, made.returns(rollout), clock)
        made.iteration += 1
        rates.append(made.config.batch / clock.total())
        clocks.append(clock)
    spent = clocks[-1].seconds
    note = ", ".join(f"{name} {value:.2f} s" for name, value in spent.items())
    return Result(True, float(np.median(rates[1:])), "environment steps/s", note)


def pqn_workers(size: Size, folder: Path) -> Result:
    """The same with the environments in processes of their own."""
    return pqn(size, folder, size.workers)


# -- details ---------------------------------------------------------------------------------------


def where() -> torch.device:
    """The device that is measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def with_root() -> dict[str, str]:
    """The environment of a command that finds this checkout."""
    return os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}


def causal(vocabulary: int, shape: dict[str, Any]) -> Any:
    """A Llama with random float32 weights on the device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=shape["width"],
        intermediate_size=shape["feedforward"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["heads"],
        max_position_embeddings=shape.get("positions", 1024),
    )
    torch.manual_seed(0)  # the same weights in every process
    with where():
        return AutoModelForCausalLM.from_config(config)


def tokens(rows: int, length: int, vocabulary: int) -> torch.Tensor:
    """Random tokens, none of them 0."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, vocabulary, (rows, length), generator=generator).to(where())


def logprobs(model: Any, ids: torch.Tensor, prompt: int, chunked: bool) -> torch.Tensor:
    """ln pi of what follows the first `prompt` tokens."""
    both = ids[:, :prompt], ids[:, prompt:]
    masks = [torch.ones_like(part) for part in both]
    total, _ = completion_logprobs(model, both[0], masks[0], both[1], masks[1], chunked=chunked)
    return total


def seconds(step: Callable[[], Any], repeats: int) -> float:
    """Of one step, after one that is not counted."""
    step()
    _wait()
    started = time.monotonic()
    for _ in range(repeats):
        step()
    _wait()
    return (time.monotonic() - started) / repeats


def _wait() -> None:
    if where().type == "cuda":
        torch.cuda.synchronize()


def memory(reset: bool = False) -> int:
    """Peak bytes held on the device; on a CPU of the process. With `reset`, what is held now."""
    if where().type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() if reset else torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    wanted = "VmRSS:" if reset else "VmHWM:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(wanted))


PARTS: dict[str, Callable[..., Result]] = {
    "round_on_cpu": round_on_cpu,
    "float32": partial(updated, "float32"),
    "bfloat16": partial(updated, "bfloat16"),
    "compiled": partial(updated, "compiled"),
    "fsdp2": fsdp2,
    "lora": lora,
    "qlora": qlora,
    "resume": resume,
    "supervised": supervised,
    "chunked": chunked,
    "update": update,
    "sampling": sampling,
    "attention": attention,
    "whole_round": whole_round,
    "pqn_arranged": pqn_arranged,
    "pqn": pqn,
    "pqn_workers": pqn_workers,
}
