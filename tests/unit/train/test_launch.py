"""The launcher's command line, for one machine and for several, and what is refused before anything starts."""

import pytest

from core.config import Device
from core.errors import ConfigError
from train.config import HardwareConfig
from train.launch import build_command, check_processes, find_rendezvous, is_launched, is_main

CPU = Device.cpu


def test_one_machine_needs_no_meeting_point() -> None:
    command = build_command(HardwareConfig(device=CPU, processes=2), "mine", ["run_id=x", "lora.rank=8"])
    assert command[1:5] == ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    assert command[-2:] == ["lora.rank=8", "run_id=mine"]


def test_several_machines_meet_where_they_are_told() -> None:
    hardware = HardwareConfig(device=CPU, processes=4, nodes=2, node_rank=1, rendezvous="head:1234")
    command = build_command(hardware, "mine", [])
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=head", "--master-port=1234"} <= set(command)
    assert hardware.world == 8


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu[01-04,07]", "gpu01"), ("a1,a2", "a1"), ("n[3,5]", "n3"), ("single", "single")],
)
def test_slurm_tells_the_first_machine(monkeypatch: pytest.MonkeyPatch, nodes: str, host: str) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", nodes)
    monkeypatch.setenv("SLURM_JOB_ID", "81234")
    assert find_rendezvous(HardwareConfig(nodes=2)) == (host, 29734)


def test_several_machines_need_a_name_and_a_meeting_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    with pytest.raises(ConfigError, match="run_id=NAME"):
        check_processes(HardwareConfig(device=CPU, nodes=2), None)
    with pytest.raises(ConfigError, match=r"hardware\.rendezvous=HOST"):
        check_processes(HardwareConfig(device=CPU, nodes=2), "mine")


def test_cards_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"wanted 2 cards, found 1\. Set hardware\.processes=1"):
        check_processes(HardwareConfig(device=Device.cuda, processes=2), "mine")


@pytest.mark.parametrize("values", [{"node_rank": 1}, {"nodes": 0}, {"rendezvous": "head"}])
def test_the_group_is_checked(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        HardwareConfig(**values)  # type: ignore[arg-type]


def test_a_plain_process_is_the_main_one() -> None:
    assert not is_launched()
    assert is_main()
