"""Let Accelerate shard on CPU, which it refuses: for tests only, never imported by the program.

Accelerate takes gloo on CPU for MULTI_CPU, and gives that plain data parallelism whatever the
launcher asked for. Here it takes gloo for MULTI_GPU with the CPU as every device; FSDP2 and
DeepSpeed then do what they do on GPUs.

    accelerate launch --config_file FILE tests/system/sharding_on_cpu.py CONFIG
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def patch() -> None:
    """Change Accelerate in this process."""
    import torch
    from accelerate.state import DistributedType, PartialState

    os.environ.pop("ACCELERATE_USE_CPU", None)
    os.environ["DS_ACCELERATOR"] = "cpu"
    original = PartialState.__init__

    def without_cpu(self, cpu=False, **kwargs):
        original(self, False, **kwargs)

    def gloo(self, *args, **kwargs):
        return "gloo", DistributedType.MULTI_GPU

    def on_cpu(self):
        self.device = torch.device("cpu")

    PartialState.__init__ = without_cpu
    PartialState._prepare_backend = gloo
    PartialState.set_device = on_cpu


def environment_of(name: str) -> dict[str, str]:
    """What the launcher sets for the processes of ``launch/accelerate/NAME``."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    file = str(ROOT / "launch/accelerate" / name)
    parsed = launch_command_parser().parse_args(["--config_file", file, "script.py"])
    arguments, defaults, _ = _validate_launch_command(parsed)
    if arguments.use_deepspeed:
        fields = ",".join(defaults.deepspeed_config)
        arguments.deepspeed_fields_from_accelerate_config = fields
        _, environment = prepare_deepspeed_cmd_env(arguments)
    else:
        environment = prepare_multi_gpu_env(arguments)
    wanted = ("ACCELERATE_", "FSDP_")
    return {k: v for k, v in environment.items() if k.startswith(wanted)}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    patch()
    from reprise.launch.cli.main import main

    main(["run", *sys.argv[1:]])
