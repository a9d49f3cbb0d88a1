"""Which profile fits this machine, and that it fills only what is open."""

import os
from pathlib import Path

import pytest

from serve.engine_command import EngineConfig
from serve.hardware import detect_profile, fill_engine_config, read_card_memory


def put_nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("script", "cards", "profile"),
    [
        ("exit 9", [], "cpu"),
        ("echo 24564", [24564], "gpu_24gb"),
        ("echo 81559; echo 81559", [81559, 81559], "h100"),
        ("echo '[N/A]'", [], "cpu"),
    ],
)
def test_the_first_card_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, cards: list[int], profile: str
) -> None:
    put_nvidia_smi(tmp_path, script, monkeypatch)
    assert read_card_memory() == cards
    assert detect_profile() == profile


def test_the_profile_fills_what_is_open_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_nvidia_smi(tmp_path, "echo 24564", monkeypatch)
    filled = fill_engine_config(EngineConfig(max_model_len=2048, start_timeout_s=5))
    assert (filled.device, filled.max_model_len, filled.start_timeout_s) == ("cuda", 2048, 5)
    assert filled.gpu_memory_utilization == pytest.approx(0.8)


def test_a_chosen_profile_is_left_alone() -> None:
    chosen = EngineConfig(device="cuda")
    assert fill_engine_config(chosen) == chosen


@pytest.mark.parametrize(
    ("cpu_info", "dtype"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 sse\n", "bfloat16"),
        ("Features\t: fp asimd bf16\n", "bfloat16"),
        ("flags\t\t: fpu avx512f\nbugs : avx512_bf16\n", "float32"),
        ("", "float32"),
    ],
)
def test_a_cpu_takes_the_dtype_that_it_has_arithmetic_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_info: str, dtype: str
) -> None:
    (tmp_path / "cpuinfo").write_text(cpu_info)
    monkeypatch.setattr("serve.hardware.CPU_INFO", tmp_path / "cpuinfo")
    assert fill_engine_config(EngineConfig(device="cpu")).dtype == dtype
    assert fill_engine_config(EngineConfig(device="cpu", dtype="float16")).dtype == "float16"


def test_all_threads_are_named_one_by_one() -> None:
    filled = fill_engine_config(EngineConfig(device="cpu", cpu_threads="all"))
    assert filled.cpu_threads == ",".join(map(str, sorted(os.sched_getaffinity(0))))
    assert fill_engine_config(EngineConfig(device="cpu", cpu_threads="auto")).cpu_threads == "auto"
