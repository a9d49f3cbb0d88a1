"""On a card: every step of the bench runs in the small before it runs in the large."""

import importlib
import json
import time
from pathlib import Path

import pytest
import torch

from core.layout import DataDir
from scripts.bench_gpu import BOOK
from scripts.bench_gpu_probe import describe_machine
from scripts.bench_gpu_steps import Book, Setting, run_steps

CARD = torch.device("cuda", 0)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", ["probe", "train", "memory", "retrieval"])
def test_every_step_runs_in_the_small(part: str, tmp_path: Path) -> None:
    book = Book(tmp_path / BOOK, describe_machine(CARD, "small"))
    setting = Setting(CARD, is_small=True, data=DataDir(tmp_path / "data"), folder=tmp_path)
    run_steps(part, importlib.import_module(f"scripts.bench_gpu_{part}").STEPS, setting, book, time.monotonic() + 500)
    entries = json.loads((tmp_path / BOOK).read_text())["parts"][part]
    assert {name: entry for name, entry in entries.items() if entry["status"] == "failed"} == {}
    assert any(entry["status"] == "measured" for entry in entries.values())


def test_a_card_is_described_with_its_clocks() -> None:
    machine = describe_machine(CARD, "full")
    assert machine["name"] == torch.cuda.get_device_name(CARD)
    assert machine["cuda"]
    assert "clocks.sm" in machine["card"] or "error" in machine["card"]
