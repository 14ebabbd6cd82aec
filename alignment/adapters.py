r"""LoRA: the policy is the frozen base plus a low-rank difference, and the reference is it without.

For each adapted matrix W (out x in), with rank r and alpha (arXiv 2106.09685, Section 4.1),

    W' = W + (alpha / r) B A,      A: r x in, random;   B: out x r, 0 at first

so that pi_0 is the base to the bit, and turning the adapter off gives pi_0 again: one copy of the
base serves both columns, ln pi_k and ln pi_0. A round saves the adapter; the run's end also saves
the sum, `checkpoints/final`, which loads like any other model.

Traps. Adapter dropout would make ln pi in training differ from the stored ln pi_k: there is no such
setting. PEFT's own `merge_adapter` followed by `unmerge_adapter` leaves the base changed by
rounding: here the sums are made one matrix at a time, beside the base. With activation
checkpointing and a frozen base no input of a block requires a gradient, and reentrant checkpointing
would silently train nothing: the embeddings' output is made to require one. A quantized base
(QLoRA) has been run by nobody here: it needs bitsandbytes and a CUDA GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reprise.alignment.config import LoRA, Quantization
from reprise.alignment.models import weights_sha256
from reprise.rollout.errors import BadInput

NAME = "default"  # of the adapter, PEFT's own


def attach(base: PreTrainedModel, settings: LoRA, seed: int, checkpointing: bool) -> Any:
    """A `peft.PeftModel` around `base`, which is changed in place and frozen.

    Args:
        base: the policy to start from.
        settings: rank, alpha, which matrices.
        seed: of the random A.
        checkpointing: whether training will use activation checkpointing.

    Raises:
        BadInput: no matrix of the model has a name in `settings.target_modules`.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers.pytorch_utils import Conv1D

    targets = settings.target_modules
    if settings.quantization is not None:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=checkpointing)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),  # GPT-2
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(seed)
        # PEFT asks for transformers' old name of a property, which then warns.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        try:
            adapted = get_peft_model(base, config)
        except ValueError as error:
            if "target modules" not in str(error).lower():
                raise
            names = {n.split(".")[-1] for n, m in base.named_modules() if isinstance(m, nn.Linear)}
            raise BadInput(
                f"lora.target_modules={targets!r} names no matrix of this model; it has "
                f"{', '.join(sorted(names))}. Use some of them, or 'all-linear'"
            ) from error
    # A set of names would be written to adapter_config.json in another order in every process.
    adapted.peft_config[NAME].target_modules = sorted(adapted.peft_config[NAME].target_modules)
    if checkpointing:
        adapted.enable_input_require_grads()
    return adapted.eval()


def is_adapted(model: nn.Module) -> bool:
    """Whether `model` is a base with an adapter."""
    return hasattr(model, "peft_config")


class Reference(nn.Module):
    """pi_0: the same base with its adapter off, as a model of its own that shares every weight.

    Args:
        policy: what `attach` gave.
    """

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base's output."""
        with self.policy.disable_adapter():
            return self.policy(*args, **kwargs)

    def base_model(self, *args: Any, **kwargs: Any) -> Any:
        """The base's body, without its output layer."""
        with self.policy.disable_adapter():
            return self.policy.get_base_model().base_model(*args, **kwargs)

    @property
    def config(self) -> Any:
        """The base's."""
        return self.policy.config

    @property
    def generation_config(self) -> Any:
        """The base's."""
        return self.policy.get_base_model().generation_config

    def get_input_embeddings(self) -> nn.Module:
        """The base's."""
        return self.policy.get_base_model().get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The base's."""
        return self.policy.get_base_model().get_output_embeddings()

    def plain_state(self) -> dict[str, Tensor]:
        """The base's weights under the names that it has without an adapter."""
        return plain_state(self.policy)


def plain_state(adapted: nn.Module) -> dict[str, Tensor]:
    """The base's own weights, under the names that they have without an adapter."""
    state = adapted.get_base_model().state_dict()
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if ".lora_" not in name
    }


def adapter_state(adapted: nn.Module) -> dict[str, Tensor]:
    """A and B of every adapted matrix."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(adapted, save_embedding_layers=False)


def identity(model: nn.Module) -> str:
    """SHA-256 of the weights that decide what the model says.

    A policy whose difference is 0 (every B; of an embedding, A) is its base, and has its base's
    identity: a round drawn by pi_0 can be replayed with an adapter and without.
    """
    if isinstance(model, Reference):
        return weights_sha256(model.plain_state())
    if not is_adapted(model):
        return weights_sha256(model.state_dict())
    adapter = adapter_state(model)
    factors = [t for name, t in adapter.items() if ".lora_B." in name or "_embedding_A" in name]
    if all(not factor.any() for factor in factors):
        adapter = {}
    return weights_sha256(plain_state(model) | adapter)


@torch.no_grad()
def merged(adapted: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, W + (alpha / r) B A) of every weight, one at a time; the base is left as it is.

    The sum is made in float32 and rounded once, to the base's own dtype.
    """
    from peft.tuners.lora import LoraLayer

    base = adapted.get_base_model()
    sums = {}
    for name, module in base.named_modules():
        if isinstance(module, LoraLayer) and NAME in module.active_adapters:
            sums[f"{name}.weight"] = module
    for name, tensor in plain_state(adapted).items():
        if name in sums:
            delta = sums[name].get_delta_weight(NAME).float()
            tensor = (tensor.float() + delta).to(tensor.dtype)
        yield name, tensor.detach()


def save_merged(adapted: nn.Module, folder: Path, fresh_base: PreTrainedModel | None) -> None:
    """Write base plus adapter as a model of its own.

    Args:
        adapted: the policy.
        folder: where to.
        fresh_base: for a quantized base, the same model unquantized: 4-bit codes cannot hold sums.
    """
    base = adapted.get_base_model()
    if fresh_base is not None:
        base = fresh_base
    base.config.use_cache = True  # training switches it off; who loads the model generates with it
    base.save_pretrained(folder, state_dict=dict(merged_onto(adapted, fresh_base)))


def merged_onto(
    adapted: nn.Module, fresh_base: PreTrainedModel | None
) -> Iterator[tuple[str, Tensor]]:
    """`merged`, with the weights of `fresh_base` (if given) in place of the base's."""
    if fresh_base is None:
        yield from merged(adapted)
        return
    from peft.tuners.lora import LoraLayer

    modules = dict(adapted.get_base_model().named_modules())
    for name, tensor in fresh_base.state_dict().items():
        module = modules.get(name.removesuffix(".weight"))
        if isinstance(module, LoraLayer):
            with torch.no_grad():
                delta = module.get_delta_weight(NAME).float().to(tensor.device)
                tensor = (tensor.float() + delta).to(tensor.dtype)
        yield name, tensor.detach()


def quantization_config(settings: Quantization | None) -> Mapping[str, Any]:
    """What `from_pretrained` is given for a quantized base; empty without.

    Raises:
        BadInput: no bitsandbytes, or no CUDA GPU.
    """
    if settings is None:
        return {}
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None or not torch.cuda.is_available():
        missing = "no CUDA GPU" if find_spec("bitsandbytes") else "bitsandbytes is not installed"
        raise BadInput(
            f"lora.quantization is set, but {missing} here: QLoRA needs both a CUDA GPU and "
            "`pip install bitsandbytes`; leave lora.quantization out for plain LoRA"
        )
    from transformers import BitsAndBytesConfig

    compute = getattr(torch, settings.compute_dtype)
    if settings.bits == 8:
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=settings.kind,
            bnb_4bit_use_double_quant=settings.double,
            bnb_4bit_compute_dtype=compute,
        )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of the plain model that says what `model` says, for a sampler elsewhere."""
    if isinstance(model, Reference):
        yield from model.plain_state().items()
    elif is_adapted(model):
        yield from merged(model)
    else:
        yield from model.state_dict().items()


def save_plain(model: nn.Module, folder: Path) -> None:
    """Write that plain model, as `save_pretrained` does."""
    adapted = model.policy if isinstance(model, Reference) else model
    base: Any = adapted.get_base_model() if is_adapted(adapted) else adapted
    base.save_pretrained(folder, state_dict=dict(tensors(model)))
