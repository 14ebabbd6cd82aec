"""A GGUF file -> a folder that every experiment can start from: safetensors, config, tokenizer.

    python -m reprise.launch.hub.gguf gemma-3-270m-q4_k_m.gguf models/gemma-3-270m

GGUF holds weights in few bits; they are expanded to float32 once, so that training sees ordinary
matrices. What the quantization rounded away does not come back: the folder is the quantized model,
in a format in which it can be trained, and not the original. Needs `pip install gguf`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from reprise.rollout.errors import BadInput


def main() -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="the .gguf file")
    parser.add_argument("folder", type=Path, help="the folder to make")
    parser.add_argument("--end", action="append", default=[], help="a token that ends a text too")
    arguments = parser.parse_args()
    ends = [end.encode().decode("unicode_escape") for end in arguments.end]
    convert(arguments.file, arguments.folder, ends)


def convert(file: Path, folder: Path, ends: Sequence[str] = ()) -> None:
    r"""Write the model in `file` to `folder`, with `save_pretrained`.

    Args:
        file: the .gguf file.
        folder: the folder to make.
        ends: texts of one token each, such as a line break, that end a completion like EOS does.

    Raises:
        BadInput: no such file, it lacks weights of its own architecture, or an end is not one
            token.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not file.is_file():
        raise BadInput(f"file={str(file)!r} does not exist; give the path of a .gguf file")
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    loaded, info = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, output_loading_info=True
    )
    wrong = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys")}
    if any(wrong.values()):
        raise BadInput(f"{file}: the weights do not fit {loaded.config.model_type}: {wrong}")
    # transformers takes the expanded model for a quantized one, and refuses to save that.
    config = type(loaded.config).from_dict(
        {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    )
    with torch.device("meta"):  # no random weights: the loaded ones take their place
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), strict=True, assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    tokenizer = AutoTokenizer.from_pretrained(**source)
    stops = [
        [tokenizer.eos_token_id],
        *(tokenizer.encode(e, add_special_tokens=False) for e in ends),
    ]
    if any(len(ids) != 1 for ids in stops):
        raise BadInput(
            f"--end {list(ends)}: each has to be one token of the model; got {stops[1:]}"
        )
    model.generation_config.eos_token_id = [stop for [stop] in stops]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
