"""The order of the bench where a card is lent for minutes: by worth, within a budget, losing one step at most."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from core.layout import DataDir
from scripts import bench_gpu
from scripts.bench_gpu import BOOK, BenchConfig, note_loss, run_in_group
from scripts.bench_gpu_plan import PLAN, Leg, find_patience
from scripts.bench_gpu_steps import Book, Figure, Setting, Step, run_steps
from tests.rules.checkout import REPO

MACHINE = {"name": "a card", "identity": ["a card", "small", "abc", "2"], "commit": "abc", "size": "small"}


def test_the_order_of_worth_names_every_step_once() -> None:
    planned = sorted((leg.part, step) for leg in PLAN for step in leg.allowances)
    every: list[tuple[str, str]] = []
    for part in bench_gpu.PARTS:
        every += [(part, step.name) for step in importlib.import_module(f"scripts.bench_gpu_{part}").STEPS]
    assert planned == sorted(every)
    page = (REPO / "docs" / "benchmarks" / "gpu.md").read_text()
    for number, leg in enumerate(PLAN, start=1):
        steps = ", ".join(f"{name} {seconds}" for name, seconds in leg.allowances.items())
        assert f"| {number} | {leg.part} | {steps} | {sum(leg.allowances.values())} |" in page


def test_a_step_begins_only_where_its_allowance_is_left(tmp_path: Path) -> None:
    book = Book(tmp_path / BOOK, MACHINE)
    ran: list[str] = []

    def measure(_: Setting) -> list[Figure]:
        ran.append(json.loads((tmp_path / BOOK).read_text())["parts"]["train"][f"step {len(ran)}"]["status"])
        return [Figure("speed", 2.0, "tokens/s")]

    allowances, until = {"step 0": 90, "step 1": 101}, time.monotonic() + 100
    steps = [Step("step 0", measure), Step("step 1", measure)]
    setting = Setting(torch.device("cpu"), is_small=True, data=DataDir(tmp_path / "data"), folder=tmp_path)
    assert run_steps("train", steps, setting, book, until, allowances)
    entries = book.content["parts"]["train"]
    assert ran == ["begun"], "whoever ends the process leaves the step's name in the book"
    assert entries["step 0"]["status"] == "measured"
    assert "wanted 101 s, " in entries["step 1"]["reason"]


STUCK = """
import sys, time
from pathlib import Path
import torch
from core.layout import DataDir
from scripts import bench_gpu_plan
from scripts.bench_gpu_steps import Book, Figure, Setting, Step, run_steps

bench_gpu_plan.LEAST_PATIENCE_S = 1
folder = Path(sys.argv[1])
fine = lambda _: [Figure("speed", 1.0, "")]
steps = [Step("a", fine), Step("b", lambda _: time.sleep(60)), Step("c", fine)]
setting = Setting(torch.device("cpu"), is_small=True, data=DataDir(folder), folder=folder)
book = Book(folder / "bench_gpu.json", {"identity": ["a card", "small", "abc", "2"]})
run_steps("train", steps, setting, book, time.monotonic() + 100, {"a": 1, "b": 1, "c": 1})
"""


def test_a_step_that_does_not_end_loses_itself_only(tmp_path: Path) -> None:
    leg = Leg("train", {"a": 1, "b": 1, "c": 1})
    command = [sys.executable, "-c", STUCK, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    ending = run_in_group(command, environment, 60)
    assert note_loss(tmp_path / BOOK, leg, ending), ending
    assert run_in_group(command, environment, 60) == 0
    entries = json.loads((tmp_path / BOOK).read_text())["parts"]["train"]
    assert [entries[name]["status"] for name in "abc"] == ["measured", "failed", "measured"]
    assert entries["b"]["reason"] == f"wanted it within 1 s, found it at work after {find_patience(1)} s"
    assert not note_loss(tmp_path / BOOK, leg, ending)


def test_a_budget_measures_by_worth_and_names_what_did_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    def begin(number: int, *_: Any) -> bool:
        begun.append(number)
        return True

    command = [sys.executable, "-m", "scripts.bench_gpu", "part=probe", "device=cpu", "output=markdown"]
    command += [f"folder={tmp_path}", f"paths.data_dir={tmp_path}", "budget_s=100"]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, timeout=110)
    assert result.returncode == 0, result.stderr[-2000:]
    entries = json.loads((tmp_path / BOOK).read_text())["parts"]["probe"]
    assert list(entries) == ["products", "copy", "a token at least, computed"]
    assert all(entry["status"] == "measured" for entry in entries.values())
    assert [bench_gpu.is_measured(tmp_path / BOOK, leg) for leg in PLAN[:2]] == [True, False]
    config = BenchConfig(folder=str(tmp_path), budget_s=60)
    bench_gpu.run_within(0, [1, 5], config)
    parts = json.loads((tmp_path / BOOK).read_text())["parts"]
    assert parts["train"]["step, true NF4"]["reason"] == "none of the 0 s were left; run it again to go on"
    assert "flat, 1024" in parts["retrieval"]
    monkeypatch.setattr(bench_gpu, "run_leg", begin)
    bench_gpu.run_within(60, [1, 0, 5], config)
    assert begun == [1, 5], "what is measured is not begun again"
