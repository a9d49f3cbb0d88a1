"""FSDP2's options are passed on only where the weights are shared out; trained values come together by name."""

import torch
from torch import nn

from train.config import HardwareConfig, Strategy
from train.sharding import build_options, gather_trained, is_sharded


def test_options_are_for_several_processes_under_fsdp2_only() -> None:
    assert build_options(HardwareConfig(processes=2), is_recomputed=False) == {}
    assert build_options(HardwareConfig(strategy=Strategy.fsdp2), is_recomputed=False) == {}
    hardware = HardwareConfig(processes=2, strategy=Strategy.fsdp2)
    assert is_sharded(hardware)
    options = build_options(hardware, is_recomputed=True)
    assert options["fsdp"] is True
    assert options["fsdp_config"]["activation_checkpointing"] is True
    assert options["fsdp_config"]["version"] == 2


def test_only_what_trains_is_gathered() -> None:
    frozen, trained = nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.Sequential(frozen.requires_grad_(False), trained)
    whole = gather_trained(model)
    assert set(whole) == {"1.weight", "1.bias"}
    assert torch.equal(whole["1.weight"], trained.weight)
