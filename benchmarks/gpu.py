"""Every GPU path once, each with a figure and a verdict, in under eight minutes on one GPU.

    python benchmarks/gpu.py [--small] [--only PART ...] [--folder DIR]

It needs the checkout and its dependencies, no model from a hub: weights are random, and text is
made of a few words. Without a GPU, or with --small, the sizes are small and the same code runs on
what there is; that proves the script, not a GPU.

round_on_cpu      one round in float32 on the CPU: what the next three are compared with
float32           its stored data, updated on the device in float32: largest relative gap of a loss
bfloat16          the same with train.bf16
compiled          the same with train.torch_compile
fsdp2             the same under launch/accelerate/fsdp2.yaml with one process: gap of the weights
lora, qlora       a round with an adapter; on a 4-bit base, or the refusal where it cannot be had
resume            killed inside an update and continued: the same bits as a run left alone
supervised        SFT and the training of a reward model: both losses fall
chunked           ln pi at a vocabulary of 128,000: peak memory of plain logits over ours
update            tokens a second, forward and backward, and the share of the matrix product's rate
sampling          tokens a second of our sampler
attention         of a token at lengths not met before: PyTorch's choice over that without cuDNN's
whole_round       sample, score, store, update, measure, with a model of 0.7 B parameters
pqn_arranged      Q-values of the fast arrangement against the reference layout, both precisions
pqn, pqn_workers  steps a second with environments in this process, and in worker processes

A part runs in a process of its own, and one that fails or hangs does not stop the others. The last
line is one JSON object; the exit status is 0 if every part is ok.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for a GPU must not open it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, installed or not


def main() -> int:
    """Run the parts, print a table and a JSON line."""
    import torch
    from gpu_parts import FULL, PARTS, SMALL, apart, describe, write_lab

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small sizes, whatever there is")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--folder", type=Path, help="keep what the parts write here")
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available()
    size = FULL if gpu and not arguments.small else SMALL
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        apart(write_lab, folder, limit=60)
        for name in arguments.only:
            started = time.monotonic()
            result = apart(PARTS[name], size, folder, limit=size.limit)
            found.append({"name": name, **result, "seconds": round(time.monotonic() - started, 1)})
            verdict = "ok" if result["ok"] else "FAILED"
            print(
                f"{name:<14}{verdict:<8}{result['figure'] or 0:>12.4g} {result['unit']:<24}"
                f"{found[-1]['seconds']:>6.1f} s  {result['note']}",
                flush=True,
            )
        about = apart(describe, size, limit=size.limit)
        machine = {key: about[key] for key in ("device", "teraflops", "cpu", "cores", "torch")}
    print(json.dumps({"name": "gpu", "small": size is SMALL, "parts": found, "machine": machine}))
    return 0 if all(part["ok"] for part in found) else 1


if __name__ == "__main__":
    sys.exit(main())
