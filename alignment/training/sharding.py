"""Parameters in shards: is the strategy what was asked for, and the whole policy out of its shards.

FSDP2 and ZeRO-3 change the modules that they are given: each process keeps a share of every
parameter. Sampling and scoring want whole ones, since processes work on prompts of their own, at
their own pace, and a layer that is gathered in one process would wait for the others. So a round
ends by copying the shards, one parameter at a time, into a whole policy in every process.

Traps. On CPU Accelerate runs FSDP as plain data parallelism and says nothing: the strategy in use
is compared with the launcher's, whatever the config asks. While a ZeRO-3 configuration is alive,
`from_pretrained` gives empty parameters: it is taken back as soon as the update is over.

Run here: FSDP2, ZeRO-2 and ZeRO-3 in two gloo processes on CPU, through a shim in the tests, for
Accelerate refuses it; FSDP2 on one GPU with NCCL. Several GPUs and offloading have not been at
hand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from reprise.alignment.training.parallelism import SHARDED, Parallelism, launched_strategy
from reprise.rollout.errors import BadInput

# Top-level keys of a DeepSpeed config (0.19) that a run of ours may have.
DEEPSPEED_KEYS = set(
    "activation_checkpointing aio bf16 checkpoint comms_logger communication_data_type compile "
    "csv_monitor data_types dump_state flops_profiler fp16 gradient_accumulation_steps "
    "gradient_clipping gradient_predivide_factor memory_breakdown optimizer prescale_gradients "
    "scheduler seq_parallel_communication_data_type sparse_gradients steps_per_print tensorboard "
    "torch_autocast train_batch_size train_micro_batch_size_per_gpu wall_clock_breakdown wandb "
    "zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization".split()
)
SLACK = 1.25  # shards are padded to equal size; small tensors fall to few processes


def check_strategy(requested: Parallelism, world: int, supported: tuple[str, ...]) -> str:
    """What Accelerate makes of this launch: "single", "ddp", "fsdp2", "zero2", ...

    Call it after `TrainingArguments` were made, and before anything expensive.

    Args:
        requested: the config's section.
        world: number of processes.
        supported: what this experiment can train with.

    Raises:
        BadInput: not what the launcher or the config asked for, or not supported.
    """
    launched = launched_strategy(os.environ, world)
    wanted = requested.strategy or launched
    if launched == wanted == "single":
        return wanted
    if launched not in supported:
        raise BadInput(
            f"the launch is for {launched!r}, which this experiment cannot train with; use one of "
            f"{', '.join(supported)} (launch/accelerate has a file for each)"
        )
    if launched == "fsdp2" and os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "") == "true":
        raise BadInput(
            "fsdp_cpu_ram_efficient_loading=true gives all processes but the first models without "
            "weights, and every process samples; set it to false in the launcher's file"
        )
    # The plugin, as the Trainer gives one: without it DeepSpeed's "auto" is read as a number.
    once = GradientAccumulationPlugin(num_steps=1)
    accelerator = Accelerator(gradient_accumulation_plugin=once)
    if accelerator.distributed_type.value == "DEEPSPEED":
        check_deepspeed_keys(accelerator.state.deepspeed_plugin.deepspeed_config)
    found = _strategy_of(accelerator, world)
    AcceleratorState._reset_state()  # the Trainer makes its own
    forget_deepspeed()
    if found != wanted:
        raise BadInput(
            f"parallelism.strategy={wanted!r} was asked for, but Accelerate runs {found!r} with "
            f"{world} process{'es' * (world > 1)}. It falls back without a word on CPU and for a "
            "single process; use GPUs, more processes, or another file of launch/accelerate"
        )
    return found


def _strategy_of(accelerator: Accelerator, world: int) -> str:
    kind = accelerator.distributed_type.value
    if kind == "FSDP":
        return f"fsdp{accelerator.state.fsdp_plugin.fsdp_version}"
    if kind == "DEEPSPEED":
        return f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
    return "ddp" if world > 1 else "single"


def check_deepspeed_keys(config: Mapping[str, object]) -> None:
    """Refuse top-level keys that DeepSpeed does not know, which its own parser passes over.

    Raises:
        BadInput: names them, with the nearest known ones.
    """
    unknown = [key for key in config if key not in DEEPSPEED_KEYS]
    if unknown:
        near = [get_close_matches(key, DEEPSPEED_KEYS, n=1) for key in unknown]
        listed = "; ".join(
            f"{key!r}" + (f", did you mean {close[0]!r}?" if close else "")
            for key, close in zip(unknown, near, strict=True)
        )
        raise BadInput(f"the DeepSpeed config has keys that DeepSpeed does not know: {listed}")


def check_shards(model: nn.Module, requested: Parallelism, world: int) -> None:
    """Refuse to train when this process holds more of the parameters than its share.

    Args:
        model: as prepared for training.
        requested: the config's section.
        world: number of processes.

    Raises:
        BadInput: the parameters are not in as many shards as were asked for.
    """
    strategy = launched_strategy(os.environ, world)  # which `check_strategy` found in use
    if strategy not in SHARDED or world == 1:
        return
    held, total = shares(model)
    shards = requested.shards or world
    if held * shards > SLACK * total:
        raise BadInput(
            f"parallelism: under {strategy} each parameter was to be in {shards} shards, but this "
            f"process holds {held:,} of {total:,} elements; check fsdp_* or zero_stage of the "
            "launcher's file, and parallelism.shards"
        )


def shares(model: nn.Module) -> tuple[int, int]:
    """(elements that this process holds, elements) of all parameters."""
    held = total = 0
    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            held, total = held + parameter.to_local().numel(), total + parameter.numel()
        elif hasattr(parameter, "ds_tensor"):  # ZeRO-3
            held, total = held + parameter.ds_tensor.numel(), total + parameter.ds_numel
        else:
            held, total = held + parameter.numel(), total + parameter.numel()
    return held, total


def copy_whole(sharded: nn.Module, whole: nn.Module) -> None:
    """Copy every parameter and buffer of `sharded` into `whole`; every process calls it.

    One parameter is gathered at a time, so that the peak is the whole model and its largest matrix.
    """
    targets = dict(whole.named_parameters(remove_duplicate=False))
    copied = set()
    with torch.no_grad():
        for name, value in _gathered(sharded):
            targets[name].copy_(value)
            copied.add(name)
        missing = {id(p) for p in targets.values()} - {id(targets[name]) for name in copied}
        assert not missing, "the two models have different parameters"


def _gathered(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            yield name, parameter.full_tensor()
        elif hasattr(parameter, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                yield name, parameter.detach()
        else:
            yield name, parameter.detach()


def forget_deepspeed() -> None:
    """Let `from_pretrained` give whole models again (see the module's docstring)."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
