"""Language models, reward models and tokenizers: find, load, make, identify, and resume them.

Loading is strict everywhere. transformers saves GPT-NeoX with `embed_out.weight` while the live
module calls it `lm_head.weight`, and `Trainer` resumes with `strict=False`: a resumed Pythia would
silently keep the head it started with. Here a missing or unexpected weight is an error. Only
safetensors are read. Code that comes with a model is run only for a reward model, on an explicit
opt-in, pinned to a commit.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from reprise.alignment.config import FromScratch
from reprise.rollout.errors import BadInput
from reprise.rollout.generate import attend_without_plans
from reprise.rollout.weights import (
    weights_sha256 as weights_sha256,  # the models' identity: used with them
)

PAD, EOS = "<pad>", "<eos>"
# Pythia pads with <|padding|>; Llama 3 has no padding token, and reserved ones to take its place.
KNOWN_PADS = (
    "<pad>",
    "<|padding|>",
    "[PAD]",
    "<|pad|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_0|>",
)

logging.disable_progress_bar()  # loading bars would break up the progress of the run itself


# --- finding and loading ---------------------------------------------------------------------


def resolve_model(name: str, key: str = "model") -> str:
    """What `from_pretrained` should be given for `name`.

    `name` is a finished run (its `checkpoints/final` is meant), a folder with a `config.json`, or
    the name of a model on the Hugging Face Hub.

    Raises:
        BadInput: none of these; the message starts with the config key.
    """
    folder = Path(name)
    for candidate in (folder / "checkpoints" / "final", folder):
        if (candidate / "config.json").is_file() or (candidate / "adapter_config.json").is_file():
            return str(candidate)
    if folder.is_dir():
        raise BadInput(
            f"{key}={name!r} is a folder with neither checkpoints/final nor config.json: name a "
            "finished run (finish this one with `reprise resume`) or a save_pretrained folder"
        )
    require_on_hub(name, "model", key)
    return name


def require_on_hub(name: str, kind: str, key: str) -> None:
    """Check within seconds that `name` can be had from the Hub or from its local cache.

    `kind` is "model" or "dataset". Without this check a missing name costs a minute of retries.

    Raises:
        BadInput: malformed, unknown, gated, or out of reach without a network.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    start = f"{key}={name!r} is neither a folder here nor "
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BadInput(f"{start}a Hub name (owner/name): check the path")
    pattern = ["config.json"] if kind == "model" else None
    try:
        hub.snapshot_download(name, repo_type=kind, local_files_only=True, allow_patterns=pattern)
        return
    except HFValidationError as error:
        raise BadInput(f"{start}a Hub name (owner/name): check the path") from error
    except LocalEntryNotFoundError:
        pass
    remedy = f"give a local folder, or fetch it first with `hf download {name} --repo-type {kind}`"
    if hub.constants.HF_HUB_OFFLINE:
        raise BadInput(f"{start}in the local Hub cache, and HF_HUB_OFFLINE is set: {remedy}")
    try:
        hub.HfApi().repo_info(name, repo_type=kind, timeout=5)
    except Exception as error:  # the HTTP library's own classes change from version to version
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise BadInput(f"{start}to be had from the Hub ({reason}): {remedy}") from error


def load_tokenizer(
    name: str, key: str = "model", revision: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with an EOS token and a PAD token that is not EOS.

    `revision` is the commit of a Hub repository; null is its newest.

    Raises:
        BadInput: no EOS, or no PAD distinct from EOS (padding would hide the end of a text).
    """
    folder = resolve_model(name, key)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{key}={name!r}: no tokenizer can be loaded from {folder} "
            f"({_first_line(error)}); save one there with `save_pretrained`"
        ) from error
    if tokenizer.eos_token_id is None:
        raise BadInput(f"{key}={name!r}: its tokenizer has no EOS token; completions need one")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        candidates = [
            token
            for token in (*KNOWN_PADS, tokenizer.unk_token)
            if token is not None and token != tokenizer.eos_token and token in tokenizer.get_vocab()
        ]
        if not candidates:
            raise BadInput(
                f"{key}={name!r}: its tokenizer has no PAD token distinct from EOS; set "
                "`pad_token` to a token that never occurs in text and save the tokenizer again"
            )
        tokenizer.pad_token = candidates[0]
    return tokenizer


def load_policy(
    name: str,
    key: str = "model",
    dtype: str = "float32",
    attention: str | None = None,
    **quantized: Any,
) -> PreTrainedModel:
    """A causal language model, loaded strictly (see the module's docstring).

    `quantized` is what `alignment.adapters.quantization_config` gives.
    """
    return _load_strictly(AutoModelForCausalLM, name, key, dtype, attention, **quantized)


def load_reward_model(
    name: str,
    key: str = "reward_model",
    dtype: str = "float32",
    attention: str | None = None,
    *,
    one_logit: bool = True,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> PreTrainedModel:
    """A sequence classifier with one output, the reward r(x, y) at the last real token.

    Args:
        name: run, folder or Hub name.
        key: the config key that holds `name`, for messages.
        dtype: of the weights.
        attention: attention implementation.
        one_logit: require exactly one output; False for models with a `score` of their own.
        trust_remote_code: run the code in the model's repository.
        revision: the commit of the repository.

    Raises:
        BadInput: more than one output, weights missing or left over, no such model, or code to
            be run from a Hub repository that is not pinned to a commit.
    """
    folder = resolve_model(name, key)
    if trust_remote_code and revision is None and not Path(folder).is_dir():
        raise BadInput(
            f"{key}={name!r} with trust_remote_code=true runs code from the Hub, but no revision "
            "pins it: read that code, then set `revision` to its commit (40 hexadecimal digits)"
        )
    remote = {"trust_remote_code": trust_remote_code, "revision": revision}
    outputs = AutoConfig.from_pretrained(folder, **remote).num_labels
    if one_logit and outputs != 1:
        raise BadInput(
            f"{key}={name!r} has {outputs} outputs; a reward model has one (num_labels=1). Train "
            "one with `experiment: alignment.reward_training`, or choose another model"
        )
    auto = AutoModelForSequenceClassification
    model = _load_strictly(auto, name, key, dtype, attention, **remote)
    return model.eval()


def _load_strictly(
    auto: Any, name: str, key: str, dtype: str, attention: str | None, **extra: Any
) -> PreTrainedModel:
    folder = resolve_model(name, key)
    attend_without_plans()
    try:
        model, info = auto.from_pretrained(
            folder,
            dtype=getattr(torch, dtype) if dtype != "auto" else "auto",
            attn_implementation=attention,
            use_safetensors=True,
            output_loading_info=True,
            **{"trust_remote_code": False, **extra},
        )
    except (OSError, ImportError, SafetensorError) as error:
        raise BadInput(
            f"{key}={name!r} cannot be loaded ({_first_line(error)}): it should be whole, in "
            f"safetensors, and able to run with attention={attention!r} here"
        ) from error
    _refuse_mismatch(info, f"{key}={name!r}")
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]


def _refuse_mismatch(info: Mapping[str, Any], what: str) -> None:
    found = {
        "missing": info.get("missing_keys"),
        "unexpected": [k for k in info.get("unexpected_keys") or () if not _BUFFER.search(str(k))],
        "of another shape": info.get("mismatched_keys"),
    }
    problems = [
        f"{title} {', '.join(sorted(map(str, keys))[:8])}" for title, keys in found.items() if keys
    ]
    if problems:
        raise BadInput(
            f"{what}: its weights do not fit the model: {'; '.join(problems)}. Every weight must "
            "be present and none left over; use a complete checkpoint of this very architecture"
        )


# --- making ----------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `texts`; id 0 is PAD, id 1 is EOS, no BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=PAD, eos_token=EOS)


def new_policy(
    shape: FromScratch, tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    """A small GPT-NeoX or Llama with fresh weights drawn from `seed`."""
    shared = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.feedforward,
        "max_position_embeddings": shape.positions,
        "tie_word_embeddings": shape.tie_embeddings,
        "initializer_range": shape.initializer_range,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    extra: dict[str, Any] = {"num_key_value_heads": shape.heads}
    if shape.architecture == "gpt_neox":
        extra = {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": shape.rotary_fraction,
            },
            "classifier_dropout": 0.0,
        }
    config = AutoConfig.for_model(shape.architecture, **shared, **extra)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)


def reward_model_from(policy: PreTrainedModel, seed: int, extra_layers: int = 0) -> PreTrainedModel:
    """A reward model with the body of `policy` and a fresh head with one output.

    The head starts at 0, so that before training every text scores the same. `extra_layers` are
    put on top of the body; what they write starts at 0, so that at first they change nothing. They
    give a shallow model room to sum up, at the last token, what the layers below found out.
    """
    settings = policy.config.to_dict()
    for labels in ("id2label", "label2id", "layer_types"):
        settings.pop(labels, None)
    depth = policy.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    settings[depth] += extra_layers
    config = type(policy.config).from_dict({**settings, "num_labels": 1})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, dtype=policy.dtype)
    with torch.no_grad():
        for layer in _last_layers(model, extra_layers) if extra_layers else ():
            outputs = [p for name, p in layer.named_parameters() if _OUTPUT.search(name)]
            if not outputs or (not hasattr(layer, "attention") and not hasattr(layer, "self_attn")):
                raise BadInput(
                    f"extra_layers={extra_layers}: layers of {policy.config.model_type} are not "
                    "known here; set extra_layers=0, or start from a Llama or a GPT-NeoX"
                )
            for parameter in outputs:
                parameter.zero_()
            _attend_to_like(layer, model.config)
    body = model.base_model.state_dict()
    model.base_model.load_state_dict({**body, **policy.base_model.state_dict()}, strict=True)
    torch.nn.init.zeros_(model.score.weight)
    return model


def _last_layers(model: PreTrainedModel, count: int) -> list[torch.nn.Module]:
    """The last blocks of a model's body, whatever it calls their list."""
    depth = model.config.num_hidden_layers
    lists = [
        module
        for module in model.base_model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth
    ]
    return list(lists[0])[depth - count :] if lists else [torch.nn.Identity()]


def _attend_to_like(layer: torch.nn.Module, config: Any) -> None:
    """Keys start equal to queries, LIKENESS times as large: a token attends to tokens like itself.

    Whether a word of the answer occurs in the prompt is then there to be read at once; learning
    to compare words from one bit a pair takes a small model thousands of steps.
    """
    heads = config.num_attention_heads
    if hasattr(layer, "attention"):  # GPT-NeoX: each head's query, key and value stacked
        fused = layer.attention.query_key_value.weight.view(heads, 3, -1, config.hidden_size)
        fused[:, 0] *= LIKENESS
        fused[:, 1] = fused[:, 0]
    elif getattr(config, "num_key_value_heads", None) == heads:
        layer.self_attn.q_proj.weight *= LIKENESS
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)


# Constants that older versions of transformers saved among the weights.
_BUFFER = re.compile(r"\.(masked_bias|attn\.bias|attention\.bias|rotary_emb\.inv_freq)$")
LIKENESS = 3.0
# Matrices through which attention and the feed-forward part write to the residual stream.
_OUTPUT = re.compile(r"(attention\.dense|mlp\.dense_4h_to_h|self_attn\.o_proj|mlp\.down_proj)\.")


# --- identity and resuming ---------------------------------------------------------------------


def load_weights_strictly(model: torch.nn.Module, folder: str | os.PathLike[str]) -> None:
    """Load the weights saved in `folder` into `model` in place; nothing missing, nothing over.

    The saved names are translated by `from_pretrained` (GPT-NeoX: `embed_out` -> `lm_head`), then
    copied with `strict=True`. A PEFT model takes its adapter from the folder.

    Raises:
        BadInput: a weight is missing, left over, or of another shape.
    """
    if hasattr(model, "peft_config"):
        return _load_adapter_strictly(model, folder)
    assert isinstance(model, PreTrainedModel)
    loaded, info = type(model).from_pretrained(
        folder,
        config=copy.deepcopy(model.config),
        dtype=model.dtype,
        use_safetensors=True,
        output_loading_info=True,
    )
    _refuse_mismatch(info, f"checkpoint {folder}")
    model.load_state_dict(loaded.state_dict(), strict=True)


def _load_adapter_strictly(model: torch.nn.Module, folder: str | os.PathLike[str]) -> None:
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    saved = load_peft_weights(str(folder), device="cpu")
    wanted = set(get_peft_model_state_dict(model))
    info = {"missing_keys": wanted - set(saved), "unexpected_keys": set(saved) - wanted}
    _refuse_mismatch(info, f"checkpoint {folder}")
    set_peft_model_state_dict(model, saved)
