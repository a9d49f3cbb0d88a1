"""The bench says on which machine it measured, and asks the card that is measured for its clocks."""

from pathlib import Path

import pytest
import torch

from scripts.bench_gpu_probe import CARD_QUESTIONS, ask_card, describe_machine


def test_a_machine_is_described_with_versions_and_commit() -> None:
    machine = describe_machine(torch.device("cpu"), "small")
    assert machine["versions"]["torch"] == torch.__version__
    assert machine["commit"]
    assert machine["identity"][1] == "small"


@pytest.mark.parametrize(("visible", "asked"), [(None, "0"), ("3,5", "3"), ("GPU-2a", "GPU-2a")])
def test_the_card_that_is_asked_is_the_one_that_is_measured(
    visible: str | None, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text('#!/bin/sh\necho "$1 $2"\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert ask_card()["driver_version"] == f"-i {asked}"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (None, {"error": "nvidia-smi is not there"}),
        ("echo no devices were found; exit 6", {"error": "no devices were found"}),
        (
            "echo '580.95.05, 1980 MHz, 2619 MHz, 1980 MHz, 2619 MHz, 700.00 W, Enabled, 34, [N/A]'",
            {
                "driver_version": "580.95.05",
                "clocks.sm": "1980 MHz",
                "temperature.gpu": "34",
                "mig.mode.current": "[N/A]",
            },
        ),
    ],
)
def test_a_card_says_its_clocks_or_why_not(
    script: str | None, told: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = ask_card()
    assert {name: found.get(name) for name in told} == told
    assert found.keys() == told.keys() or list(found) == list(CARD_QUESTIONS)
