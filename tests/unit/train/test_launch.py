"""The launcher's command line, for one machine and for several, and what is refused before anything starts."""

import os
import subprocess
import sys

import pytest

from core.config import Device
from core.errors import ConfigError
from tests.rules.checkout import REPO
from train.config import HardwareConfig
from train.launch import (
    CARDS,
    build_command,
    check_processes,
    find_rendezvous,
    is_launched,
    is_main,
    let_segments_grow,
    show_one_card,
)

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


@pytest.mark.parametrize(
    ("before", "after"),
    [({}, "0"), ({CARDS: "2,3"}, "2"), ({CARDS: "1"}, "1"), ({CARDS: ""}, ""), ({CARDS: "GPU-5ab,GPU-7cd"}, "GPU-5ab")],
)
def test_a_run_of_one_process_sees_one_card(before: dict[str, str], after: str) -> None:
    for hardware in (HardwareConfig(), HardwareConfig(device=Device.cuda)):
        environment = dict(before)
        show_one_card(hardware, environment)
        assert environment == {CARDS: after}


def test_a_run_of_several_processes_sees_all_cards() -> None:
    for hardware in (HardwareConfig(processes=2), HardwareConfig(nodes=2), HardwareConfig(device=CPU)):
        environment = {CARDS: "2,3"}
        show_one_card(hardware, environment)
        assert environment == {CARDS: "2,3"}


@pytest.mark.parametrize("values", [{"node_rank": 1}, {"nodes": 0}, {"rendezvous": "head"}])
def test_the_group_is_checked(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        HardwareConfig(**values)  # type: ignore[arg-type]


def test_a_plain_process_is_the_main_one() -> None:
    assert not is_launched()
    assert is_main()


@pytest.mark.parametrize("device", [Device.cuda, Device.auto])
def test_a_cards_allocator_may_extend_its_segments(device: Device) -> None:
    environment: dict[str, str] = {}
    let_segments_grow(device, environment)
    assert environment == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_what_somebody_says_of_the_allocator_stands(name: str) -> None:
    environment = {name: "max_split_size_mb:64"}
    let_segments_grow(Device.cuda, environment)
    assert environment == {name: "max_split_size_mb:64"}


def test_nothing_is_said_of_the_allocator_on_a_cpu() -> None:
    environment: dict[str, str] = {}
    let_segments_grow(CPU, environment)
    assert environment == {}


RUN = """
import os, sys
from types import SimpleNamespace
from core.config import Device
from train import run

def check(_):
    print(os.environ.get("PYTORCH_ALLOC_CONF"), os.environ.get("CUDA_VISIBLE_DEVICES"), "torch" in sys.modules)
    sys.exit()

run.load_config = lambda *_: SimpleNamespace(hardware=SimpleNamespace(device=Device.cuda, world=1))
run.check_run = check
run.main(SimpleNamespace())
"""


def test_a_run_says_it_before_torch_is_there() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith(("ALLOC_CONF", CARDS))}
    answer = subprocess.run(
        [sys.executable, "-c", RUN], check=False, cwd=REPO, env=environment, capture_output=True, text=True
    )
    assert answer.stdout.split() == ["expandable_segments:True", "0", "False"], answer.stderr
