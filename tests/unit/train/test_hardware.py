"""Every `auto` of the hardware group becomes what this machine has."""

import pytest
import torch

from core.config import Device
from core.errors import ConfigError
from train.config import Dtype, HardwareConfig
from train.hardware import find_machine, has_bfloat16_arithmetic


def test_the_cpu_is_what_was_asked_for() -> None:
    machine = find_machine(HardwareConfig(device=Device.cpu, dtype=Dtype.float32))
    assert (machine.device.type, machine.dtype) == ("cpu", torch.float32)
    assert machine.memory_bytes > 0
    assert machine.threads == torch.get_num_threads()
    assert "float32" in machine.describe()


@pytest.mark.parametrize("capability", ["avx512_bf16", "amx_bf16", None])
def test_bfloat16_is_taken_where_the_cpu_multiplies_it(monkeypatch: pytest.MonkeyPatch, capability: str | None) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True} if capability else {})
    machine = find_machine(HardwareConfig(device=Device.cpu))
    assert machine.dtype is (torch.bfloat16 if capability else torch.float32)
    assert has_bfloat16_arithmetic() is (capability is not None)


def test_a_card_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="hardware=cpu"):
        find_machine(HardwareConfig(device=Device.cuda))
    assert find_machine(HardwareConfig(device=Device.auto)).device.type == "cpu"
