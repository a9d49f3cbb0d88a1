"""The bench of the GPU path runs its small twins here, goes on where it stopped, and says what it left out and why."""

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

from core.config import Device
from core.errors import ConfigError
from core.layout import DataDir
from scripts import bench_gpu
from scripts.bench_gpu import BOOK, WHOLE, BenchConfig, list_rows, note_ending, read_command_line, render_markdown
from scripts.bench_gpu_probe import describe_machine
from scripts.bench_gpu_steps import Book, Figure, Setting, Step, Unavailable, Wrong, compare, run_steps
from tests.rules.checkout import REPO

MACHINE = {"name": "a card", "identity": ["a card", "small", "abc", "2"], "commit": "abc", "size": "small"}
CARD_ONLY = {"trainer, Unsloth": "CUDA card"}
SLOW = {"serve"}
"""Twins that start the real vLLM: under LOAM_TEST_FULL; the load is tried on a fake in tests/integration."""


def make_setting(folder: Path) -> Setting:
    return Setting(torch.device("cpu"), is_small=True, data=DataDir(folder / "data"), folder=folder)


@pytest.mark.parametrize(
    "part", [part for part in bench_gpu.PARTS if part not in SLOW or os.environ.get("LOAM_TEST_FULL")]
)
def test_every_step_of_a_part_runs_its_small_twin(part: str, tmp_path: Path) -> None:
    book = Book(tmp_path / BOOK, MACHINE)
    steps = importlib.import_module(f"scripts.bench_gpu_{part}").STEPS
    run_steps(part, steps, make_setting(tmp_path), book, time.monotonic() + 500)
    entries = json.loads((tmp_path / BOOK).read_text())["parts"][part]
    assert list(entries) == [step.name for step in steps]
    for name, entry in entries.items():
        if entry["status"] != "measured":
            assert CARD_ONLY.get(name, "?") in entry["reason"], f"{name}: {entry}"
        else:
            assert all(torch.isfinite(torch.tensor(figure["value"])) for figure in entry["figures"]), name


def steps_of(*runs: Any) -> list[Step]:
    return [Step(f"step {number}", run) for number, run in enumerate(runs)]


def refuse(_: Setting) -> list[Figure]:
    raise Unavailable("no such thing here")


def break_off(_: Setting) -> list[Figure]:
    raise RuntimeError("CUDA error: an illegal memory access\nmore")


def test_a_step_that_fails_keeps_no_other_from_running(tmp_path: Path) -> None:
    book = Book(tmp_path / BOOK, MACHINE)
    steps = [
        *steps_of(refuse, break_off, lambda _: [Figure("speed", 2.0, "tokens/s", "3")]),
        Step("needs", lambda _: [], needs=("no_such_module",)),
        Step("card", lambda _: [], card_only=True),
    ]
    run_steps("train", steps, make_setting(tmp_path), book, time.monotonic() + 60)
    entries = book.content["parts"]["train"]
    assert [entry["status"] for entry in entries.values()] == ["skipped", "failed", "measured", "skipped", "skipped"]
    assert entries["step 1"]["reason"] == "RuntimeError: CUDA error: an illegal memory access"
    assert "no_such_module" in entries["needs"]["reason"]
    rows = list_rows(book.content)
    assert ("train", "step 2", "speed", "2 tokens/s", "3") in rows
    assert len(rows) == 5
    assert all(" | ".join(row) in render_markdown(book.content) for row in rows)


def test_what_was_measured_is_not_measured_again_on_the_same_machine(tmp_path: Path) -> None:
    count = []

    def measure(_: Setting) -> list[Figure]:
        count.append(1)
        return [Figure("speed", 1.0, "")]

    for machine in (MACHINE, MACHINE, {**MACHINE, "identity": ["another"]}):
        book = Book(tmp_path / BOOK, machine)
        run_steps("probe", steps_of(measure), make_setting(tmp_path), book, time.monotonic() + 60)
    assert len(count) == 2


def test_no_step_begins_after_the_parts_time(tmp_path: Path) -> None:
    book = Book(tmp_path / BOOK, MACHINE)
    run_steps("probe", steps_of(refuse), make_setting(tmp_path), book, time.monotonic() - 1)
    assert "time was over" in book.content["parts"]["probe"]["step 0"]["reason"]


def test_a_part_that_broke_off_stands_in_the_book(tmp_path: Path) -> None:
    book = Book(tmp_path / BOOK, MACHINE)
    book.write("train", "a", {"status": "measured", "figures": []})
    note_ending(tmp_path / BOOK, "train", "its process ended with -11")
    again = Book(tmp_path / BOOK, MACHINE)
    assert again.is_measured("train", "a")
    assert again.content["parts"]["train"][WHOLE]["reason"] == "its process ended with -11"


@pytest.mark.parametrize("found", [2.0, float("nan")])
def test_what_is_wrong_is_not_timed(found: float) -> None:
    with pytest.raises(Wrong, match="a sum"):
        compare("a sum", torch.tensor([found]), torch.tensor([1.0]), 0.1)


def test_a_machine_is_described_with_versions_and_commit() -> None:
    machine = describe_machine(torch.device("cpu"), "small")
    assert machine["versions"]["torch"] == torch.__version__
    assert machine["commit"]
    assert machine["identity"][1] == "small"


def test_the_command_line_is_read_without_hydra(tmp_path: Path) -> None:
    config = read_command_line(
        ["part=probe", "device=cpu", "limit_s=60", f"folder={tmp_path}", "paths.data_dir=x", "fresh=true"]
    )
    assert (config.part.value, config.device, config.limit_s, config.fresh) == ("probe", Device.cpu, 60, True)
    assert (config.results, config.paths.data_dir) == (tmp_path, "x")
    assert read_command_line(["folder=null"]) == BenchConfig()
    for wrong in ("bogus=1", "part=none", "limit_s=soon", "worker=maybe"):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
            read_command_line([wrong])


BARE = """
import sys
sys.modules.update(dict.fromkeys({names!r}))
sys.argv = ["bench_gpu.py", *{arguments!r}]
import runpy
runpy.run_path({program!r}, run_name="__main__")
"""
"""Runs the bench as on a machine that has torch, transformers, peft and accelerate, and little else."""


def run_bare(part: str, folder: Path) -> subprocess.CompletedProcess[str]:
    names = {
        "hydra",
        "omegaconf",
        "trl",
        "bitsandbytes",
        "datasets",
        "faiss",
        "vllm",
        "fastapi",
        "sqlalchemy",
        "openvino",
    }
    arguments = [f"part={part}", "device=cpu", f"folder={folder}", "worker=true"]
    program = BARE.format(names=names, arguments=arguments, program=str(REPO / "scripts" / "bench_gpu.py"))
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=110
    )


def test_a_machine_with_little_more_than_torch_runs_what_it_can(tmp_path: Path) -> None:
    result = run_bare("train", tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    entries = json.loads((tmp_path / BOOK).read_text())["parts"]["train"]
    measured = {name for name, entry in entries.items() if entry["status"] == "measured"}
    assert {"loss and gradients", "packed = unpacked", "attention", "passes", "step, bf16 LoRA"} <= measured
    assert entries["step, true NF4"]["reason"] == "not installed: bitsandbytes"
    assert entries["trainer, Loam"]["reason"] == "not installed: trl, datasets"


def test_without_a_card_the_probe_says_so_and_ends_well(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("wanted a machine without a CUDA card, found one")
    command = [sys.executable, "scripts/bench_gpu.py", "part=probe", f"folder={tmp_path}", "output=markdown"]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, timeout=110)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "no CUDA card" in result.stdout
    assert "transformers" in result.stdout, "what is installed is told all the same"
