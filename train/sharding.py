"""Fully sharded data parallelism (FSDP2): the frozen base is shared out over all processes, layer by layer.

Tells the Trainer what it passes on to accelerate's FullyShardedDataParallelPlugin, and brings the adapter's shards
together again. Does not know how the processes were started.
"""

from typing import Any

import torch
from torch import nn

from train.config import HardwareConfig, Strategy


def build_options(hardware: HardwareConfig, *, is_recomputed: bool) -> dict[str, Any]:
    """Return what a run under FSDP2 adds to the Trainer's arguments; nothing for data parallelism or one process.

    Args:
        hardware: The run's hardware group.
        is_recomputed: Whether activations are recomputed: under FSDP2 its own wrapper does it, because the Trainer's
            would gather every layer once more.
    """
    if not is_sharded(hardware):
        return {}
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # a unit for each of the model's blocks
            "reshard_after_forward": True,
            "state_dict_type": "FULL_STATE_DICT",
            "cpu_ram_efficient_loading": False,  # each process loads for itself: 4-bit weights cannot be sent
            "activation_checkpointing": is_recomputed,
        },
    }


def is_sharded(hardware: HardwareConfig) -> bool:
    """Whether the weights are shared out."""
    return hardware.strategy is Strategy.fsdp2 and hardware.world > 1


def shard_on_cpu(trainer: Any) -> None:
    """Let accelerate shard on CPUs too.

    torch does, over gloo; accelerate 1.15 takes its plugin into account on accelerators only. With the plugin put in
    its place, every later step is the one that a card takes, which is how it is tested here.

    Args:
        trainer: A Trainer whose accelerator was just made, with `fsdp` arguments.
    """
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    if trainer.args.fsdp_plugin_args is None or state.distributed_type is not DistributedType.MULTI_CPU:
        return
    plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    if state.mixed_precision != "no":
        plugin.set_mixed_precision(state.mixed_precision)
    state.fsdp_plugin, state.distributed_type = plugin, DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def gather_trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the trained parameters whole, by name, in main memory; every process must take part.

    Args:
        model: The PEFT model, sharded or not.
    """
    whole = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            value: Any = parameter.detach()
            whole[name] = (value.full_tensor() if hasattr(value, "full_tensor") else value).cpu()
    return whole
