"""kill -9 at any time of a run, and resume=auto: the same batches, losses and adapter (promises T1, T2, T6).

A tiny Llama in float32 on NF4 weights with dropout, 60 steps in six epochs, gradient accumulation, rows grouped by
length, a checkpoint every 5 steps. The run to compare with is a process of its own that nobody touches. Each kill is a
real SIGKILL: at a named place of the code, or by a watcher while the files of a checkpoint are being written, or at any
moment. `-o log_cli=true -o log_cli_level=INFO` shows the seed and what each kill hit; LOAM_TEST_SEED replays.
"""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.events import EventWriter, read_events
from core.layout import DataDir
from core.manifest import AdapterManifest, BaseIdentity
from serve.adapter_check import check_served_adapter
from serve.job_command import JobsConfig, Profile, build_arguments, build_command
from serve.jobs import Job
from serve.tuned_models import is_whole
from tests.fakes.tiny_llama import write_byte_llama
from tests.fakes.trainer import PROGRAM
from tests.fakes.warm_trainer import REPO, Training, WarmTrainer
from train.checkpoint import MARKER, choose_checkpoint, find_last_complete, is_complete, list_checkpoints, step_of
from train.folder import read_steps

logger = logging.getLogger(__name__)

IS_FULL = bool(os.environ.get("LOAM_TEST_FULL"))
SEED = int(os.environ.get("LOAM_TEST_SEED", "20261125"))
STEPS, SAVE_EVERY, ROWS = 60, 5, 41
INSIDE = ("weights_written", "optimizer_written", "written", "synced", "hashed")
"""Places between the first byte of a checkpoint and its marker."""
AROUND = ("marked", "unmarked")
"""Places after the marker, while older checkpoints go."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the tiny model and chats of different length."""
    folder = tmp_path_factory.mktemp("data")
    write_byte_llama(folder / "models" / "byte-llama")
    for name, rows in (("train", ROWS), ("valid", 6)):
        chats = [
            {
                "messages": [
                    {"role": "user", "content": f"Item {row}? {'word ' * (row % 7)}"},
                    {"role": "assistant", "content": f"=> {row}! {'la ' * (row % 5)}"},
                ]
            }
            for row in range(rows)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return folder


def arguments(data: Path, run_id: str, *others: str) -> list[str]:
    return [
        "hardware=cpu", "hardware.dtype=float32", "model.name=byte-llama", "lora.dropout=0.1", f"run_id={run_id}",
        f"paths.data_dir={data}", f"data.train={data / 'train.jsonl'}", f"data.valid={data / 'valid.jsonl'}",
        f"trainer.max_steps={STEPS}", "trainer.epochs=100", "trainer.batch_size=4", "trainer.micro_batch=2",
        "trainer.learning_rate=2e-3", f"trainer.save_every={SAVE_EVERY}", "trainer.eval_every=15", "resume=auto",
        *others,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmTrainer]:
    """What starts a run without the imports."""
    with WarmTrainer(tmp_path_factory.mktemp("logs")) as server:
        yield server


@pytest.fixture(scope="module")
def untouched(data: Path, server: WarmTrainer) -> Path:
    """The run to compare with, by the command that a person types."""
    ended = subprocess.run(
        [sys.executable, str(REPO / "train" / "run.py"), *arguments(data, "untouched")],
        cwd=data, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return data / "runs" / "untouched"


def read_adapter(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def read_messages(run: Path) -> list[str]:
    return [event["message"] for event in read_events(run / "events.jsonl") if event["type"] == "log"]


def check_same(run: Path, untouched: Path) -> float:
    """Every step, also one done twice, read the same batches; the adapter has the same bytes; return the loss's gap."""
    wanted = {step["step"]: step for step in read_steps(untouched)}
    assert sorted(wanted) == list(range(1, STEPS + 1))
    done = [event for event in read_events(run / "events.jsonl") if event["type"] == "step"]
    assert {event["step"] for event in done} == set(wanted)
    assert [event["batch"] for event in done] == [wanted[event["step"]]["batch"] for event in done]
    difference: float = max(abs(event["loss"] - wanted[event["step"]]["loss"]) for event in done)
    assert difference <= 1e-6
    assert read_adapter(run) == read_adapter(untouched)
    assert AdapterManifest.read(run / "adapter").hardware["threads"] == 1
    assert not list(run.glob(".*.tmp"))
    return difference


def wait_until(training: Training, is_so: Callable[[], bool]) -> bool:
    """Look again and again; return False where the run ended before."""
    deadline = time.monotonic() + 240
    while not is_so():
        if training.poll() is not None:
            return False
        assert time.monotonic() < deadline, training.log.read_text()
        time.sleep(0.002)
    return True


def kill_while_saving(training: Training, run: Path, chance: random.Random) -> None:
    """Kill when a checkpoint's folder is there without its marker, some milliseconds into its writing."""
    wanted, delay_s = chance.randrange(1, 4), chance.uniform(0, 0.01)
    seen, fresh = {path.name for path in list_checkpoints(run / "checkpoints")}, set[str]()

    def is_saving() -> bool:
        found = list_checkpoints(run / "checkpoints")  # the newest first
        fresh.update(path.name for path in found if path.name not in seen)
        return len(fresh) >= wanted and found[0].name in fresh and not (found[0] / MARKER).is_file()

    while wait_until(training, is_saving):
        time.sleep(delay_s)
        training.send(signal.SIGSTOP)
        if is_saving():
            training.send(signal.SIGKILL)
            return
        training.send(signal.SIGCONT)  # too late: the next one


def kill_after_step(training: Training, run: Path, chance: random.Random) -> None:
    """Kill at any moment of any of the steps that are left, but for the last ones: it would end before."""
    whole = find_last_complete(run / "checkpoints")
    first, before = step_of(whole) + 1 if whole else 1, count_events(run)
    wanted, delay_s = chance.randrange(first, STEPS - SAVE_EVERY), chance.uniform(0, 0.1)
    if wait_until(training, lambda: last_step(run, before) >= wanted):
        time.sleep(delay_s)
        training.send(signal.SIGKILL)


def count_events(run: Path) -> int:
    return len(list(read_events(run / "events.jsonl")))


def last_step(run: Path, after: int) -> int:
    """Return the step of the last `step` event after so many events, or 0."""
    events = list(read_events(run / "events.jsonl"))[after:]
    return max((event["step"] for event in events if event["type"] == "step"), default=0)


def kill_once(server: WarmTrainer, data: Path, run: Path, kind: str, chance: random.Random) -> dict[str, Any]:
    """Start or go on with a run and kill it; return what the kill hit."""
    environment = {}
    if kind in INSIDE + AROUND:
        turn = chance.randrange(1, 5) if kind != "unmarked" else 1
        environment = {"LOAM_TEST_BUILD": "1", "LOAM_FAILPOINT": f"checkpoint.{kind}:{turn}"}
    before = count_events(run)
    training = server.start(arguments(data, run.name), environment=environment)
    if kind == "saving":
        kill_while_saving(training, run, chance)
    elif kind == "step":
        kill_after_step(training, run, chance)
    code = training.wait()
    last, step = find_last_complete(run / "checkpoints"), last_step(run, before)
    saving = run / "checkpoints" / f"checkpoint-{step}"
    return {
        "kind": kind,
        "killed": code == -signal.SIGKILL,
        "inside": saving.exists() and not is_complete(saving),
        "step": step,
        "whole": step_of(last) if last else 0,
    }


def plan_kills(chance: random.Random) -> list[str]:
    """Return the kinds of the kills, in random order."""
    kinds = [*INSIDE, *INSIDE[:1], *AROUND, *["saving"] * 5, *["step"] * 7]
    if not IS_FULL:
        kinds = ["saving", chance.choice(INSIDE), "step"]
    chance.shuffle(kinds)
    return kinds


def test_a_killed_run_ends_as_if_nothing_had_been(server: WarmTrainer, data: Path, untouched: Path) -> None:
    chance = random.Random(SEED)
    kills: list[dict[str, Any]] = []
    plan = plan_kills(chance)
    for number, kind in enumerate(plan):
        if not kills or kills[-1]["whole"] > STEPS - 4 * SAVE_EVERY:  # too little is left to be killed in
            run = data / "runs" / f"killed{number}"
        kill = kill_once(server, data, run, kind, chance)
        logger.info("seed %d, %s: %s", SEED, run.name, kill)
        assert kill["step"] - kill["whole"] <= SAVE_EVERY
        kills.append(kill)
    differences = []
    for run in sorted((data / "runs").glob("killed*")):
        last = server.start(arguments(data, run.name))
        assert last.wait() == 0, last.log.read_text()
        differences.append(check_same(run, untouched))
        assert len(list_checkpoints(run / "checkpoints")) == 2
    killed = [kill for kill in kills if kill["killed"]]
    inside = [kill for kill in killed if kill["inside"]]
    logger.info(
        "seed %d: %d kills, %d inside a save; largest difference of a loss %s, adapters bit-equal",
        SEED, len(killed), len(inside), max(differences),
    )  # fmt: skip
    assert len(killed) == len(kills)
    assert len(inside) >= (8 if IS_FULL else 2)


@pytest.fixture(scope="module")
def unfinished(server: WarmTrainer, data: Path) -> Path:
    """A run that was killed after its third checkpoint, with three whole ones."""
    environment = {"LOAM_TEST_BUILD": "1", "LOAM_FAILPOINT": "checkpoint.marked:3"}
    assert server.start(arguments(data, "unfinished"), environment=environment).wait() == -signal.SIGKILL
    run = data / "runs" / "unfinished"
    assert [step_of(path) for path in list_checkpoints(run / "checkpoints")] == [15, 10, 5]
    return run


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_with_any_damage_is_never_used(
    server: WarmTrainer, data: Path, untouched: Path, unfinished: Path, tmp_path: Path
) -> None:
    """Promise T2: each file of the newest checkpoint in turn; one of the damaged runs then goes on to its end."""
    names = sorted(path.name for path in (unfinished / "checkpoints" / "checkpoint-15").iterdir())
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", MARKER} <= set(names)
    damages = [(name, damage) for name in names for damage in (remove, truncate, flip_bit)]
    for name, damage in damages:
        copied = Path(shutil.copytree(unfinished / "checkpoints", tmp_path / f"{name}-{damage.__name__}"))
        damage(copied / "checkpoint-15" / name)
        record = copied.with_name(f"{copied.name}.jsonl")
        with EventWriter(record) as events:
            assert choose_checkpoint(copied, events) == copied / "checkpoint-10", (name, damage)
        messages = [event["message"] for event in read_events(record)]
        assert [message.partition(",")[0] for message in messages] == [
            "checkpoint-15: passed over",
            "checkpoint-10: whole",
        ]
        assert name in messages[0] or name == MARKER
    logger.info("%d damages of %d files, all passed over", len(damages), len(names))
    name, damage = random.Random(SEED).choice(damages)
    run = Path(shutil.copytree(unfinished, data / "runs" / "damaged"))
    damage(run / "checkpoints" / "checkpoint-15" / name)
    ended = server.start(arguments(data, run.name))
    assert ended.wait() == 0, ended.log.read_text()
    assert [message.partition(",")[0] for message in read_messages(run)][-2:] == [
        "checkpoint-15: passed over",
        "checkpoint-10: whole",
    ]
    check_same(run, untouched)


def test_an_adapter_is_published_whole_or_not_at_all(server: WarmTrainer, data: Path, untouched: Path) -> None:
    """Promise T6: killed at each place of the publishing; going on from the last step does no step more."""
    run = data / "runs" / "published"
    places = ["adapter.weights_written", "adapter.hashed", "folder.synced"]
    for place in [*places * (10 if IS_FULL else 1), "folder.renamed"]:
        environment = {"LOAM_TEST_BUILD": "1", "LOAM_FAILPOINT": place}
        assert server.start(arguments(data, run.name), environment=environment).wait() == -signal.SIGKILL
        if place != "folder.renamed":
            assert not (run / "adapter").exists()
            assert list(run.glob(".adapter.*.tmp"))
    check_same(run, untouched)
    assert len([event for event in read_events(run / "events.jsonl") if event["type"] == "step"]) == STEPS
    assert not (run / "report.md").exists()
    mended = server.start(arguments(data, run.name))
    assert mended.wait() == 0, mended.log.read_text()
    assert (run / "report.md").is_file()
    assert list(read_events(run / "events.jsonl"))[-1]["type"] == "done"
    check_same(run, untouched)
    again = server.start(arguments(data, run.name))
    assert again.wait() == 5
    assert "finished run" in again.log.read_text()


@pytest.mark.parametrize(("limit", "others"), [(100_000, []), (200_000, []), (100_000, ["trainer.save_every=null"])])
def test_a_full_disk_ends_a_run_that_goes_on_afterwards(
    server: WarmTrainer, data: Path, untouched: Path, unfinished: Path, limit: int, others: list[str]
) -> None:
    """Promise D6: no room for the checkpoint's adapter, for its optimizer, or for the adapter that is published."""
    run = data / "runs" / f"full{limit}{len(others)}"
    if not others:
        shutil.copytree(unfinished, run)
    full = server.start(arguments(data, run.name, *others), file_limit=limit)
    assert full.wait() == 7, full.log.read_text()
    last = list(read_events(run / "events.jsonl"))[-1]
    assert (last["type"], last["code"]) == ("error", "storage_full")
    assert "Free some disk space" in full.log.read_text()
    assert not (run / "adapter").exists()
    found = list_checkpoints(run / "checkpoints")
    assert [step_of(path) for path in found if is_complete(path)] == ([] if others else [15, 10, 5])
    assert len(found) == (0 if others else 3)
    again = server.start(arguments(data, run.name, *others))
    assert again.wait() == 0, again.log.read_text()
    check_same(run, untouched)


def test_a_run_that_is_told_to_stop_goes_on_as_if_nothing_had_been(
    server: WarmTrainer, data: Path, untouched: Path
) -> None:
    """In the middle of an epoch, after the step that is evaluated, and while a checkpoint is written."""
    run, chance = data / "runs" / "told", random.Random(SEED)
    for number, step in ((signal.SIGTERM, chance.choice([7, 8, 13])), (signal.SIGINT, 15), (signal.SIGTERM, 20)):
        before = count_events(run)
        training = server.start(arguments(data, run.name))
        assert wait_until(training, lambda: last_step(run, before) >= step)  # noqa: B023
        if step == 20:
            wait_until(training, (run / "checkpoints" / "checkpoint-20").exists)
        training.send(number)
        assert training.wait() == 128 + number, training.log.read_text()
        *_, saved, error = read_events(run / "events.jsonl")
        assert (saved["type"], error["code"]) == ("checkpoint", "interrupted")
        assert saved["step"] == last_step(run, before)
        assert find_last_complete(run / "checkpoints") == run / "checkpoints" / f"checkpoint-{saved['step']}"
    ended = server.start(arguments(data, run.name))
    assert ended.wait() == 0, ended.log.read_text()
    check_same(run, untouched)
    steps = [event["step"] for event in read_events(run / "events.jsonl") if event["type"] == "step"]
    assert steps == list(range(1, STEPS + 1)), "nothing was done twice"


def run_two(data: Path, run_id: str, failpoint: str | None = None, stop_at: int | None = None) -> tuple[int, str]:
    """Train with two processes, as a person would; send SIGTERM to the launcher once a step is done."""
    environment = {"LOAM_TEST_BUILD": "1", "LOAM_FAILPOINT": failpoint} if failpoint else {}
    command = [*arguments(data, run_id), "hardware.processes=2", "trainer.max_steps=24"]
    with (data / f"{run_id}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(REPO / "train" / "run.py"), *command],
            cwd=data, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, stdout=log, stderr=log,
        )  # fmt: skip
    while stop_at and process.poll() is None and last_step(data / "runs" / run_id, 0) < stop_at:
        time.sleep(0.01)
    if stop_at:
        process.send_signal(signal.SIGTERM)
    return process.wait(timeout=400), (data / f"{run_id}.log").read_text()


@pytest.mark.skipif(not IS_FULL, reason="six starts of two processes take minutes: only with LOAM_TEST_FULL=1")
def test_two_processes_go_on_alike_after_a_kill_and_after_a_signal(data: Path) -> None:
    """The main process is killed after its checkpoint in the second epoch; both leave at one step when told to."""
    code, log = run_two(data, "two")
    assert code == 0, log
    wanted = {step["step"]: (step["batch"], step["loss"]) for step in read_steps(data / "runs" / "two")}
    for run_id, failpoint, stop_at in (("two-killed", "checkpoint.marked:3", None), ("two-told", None, 13)):
        code, log = run_two(data, run_id, failpoint, stop_at)
        assert code != 0, log
        run = data / "runs" / run_id
        assert not (run / "adapter").exists()
        last = find_last_complete(run / "checkpoints")
        assert last is not None
        assert step_of(last) == (15 if failpoint else last_step(run, 0))
        code, log = run_two(data, run_id)
        assert code == 0, log
        found = {step["step"]: (step["batch"], step["loss"]) for step in read_steps(run)}
        assert found == wanted
        assert read_adapter(run) == read_adapter(data / "runs" / "two")


def run_scripted(command: list[str]) -> tuple[int, str]:
    ended = subprocess.run([*PROGRAM, *command], cwd=REPO, capture_output=True, text=True, timeout=300, check=False)
    return ended.returncode, ended.stderr + ended.stdout


def test_the_scripted_trainer_does_what_this_one_does(server: WarmTrainer, data: Path, tmp_path: Path) -> None:
    """The contract behind tests/fakes/trainer.py: one command line as serve/ makes it, the same traces of both."""
    (data / "files").mkdir(exist_ok=True)
    shutil.copyfile(data / "train.jsonl", data / "files" / "file-a")
    shutil.copyfile(data / "valid.jsonl", data / "files" / "file-b")
    seen = []
    for is_real in (True, False):
        job = Job(
            id=f"ftjob-{'real' if is_real else 'scripted'}", owner="local", model="byte-llama", suffix=None, seed=3,
            training_file="file-a", validation_file="file-b", method="supervised", metadata=None,
            hyperparameters={"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 1.0},
            options={"lora_rank": 8, "max_steps": 10},
        )  # fmt: skip
        profile = Profile(epochs=3, batch_size=16, learning_rate=1e-3, beta=0.1, rank=16)
        config = JobsConfig(save_every=4, keep_checkpoints=2)
        made, steps = build_arguments(job, config, profile, DataDir(data), "cpu", rows=ROWS)
        command = build_command(replace(job, arguments=made), DataDir(data), ())
        codes = []
        words = ""
        for more in (["check_only=true", "output=json"], [], []):
            if is_real:
                training = server.start([*command, *more])
                code, said = training.wait(), training.log.read_text()
            else:
                code, said = run_scripted([*command, *more])
            codes.append((code, "finished run" in said))
            words = words or said
        estimate = json.loads(next(line for line in reversed(words.splitlines()) if line.startswith("{")))
        run = data / "runs" / job.id
        events = list(read_events(run / "events.jsonl"))
        manifest = check_served_adapter(run / "adapter", BaseIdentity.of(data / "models" / "byte-llama"), 16)
        checkpoints = list_checkpoints(run / "checkpoints")
        seen.append(
            {
                "codes": codes,
                "estimate": (sorted(estimate), estimate["rows"], estimate["steps"], estimate["fits"]),
                "steps": [event["step"] for event in events if event["type"] == "step"],
                "last": events[-1]["type"],
                "saved": [event["step"] for event in events if event["type"] == "checkpoint"],
                "evaluated": [event["step"] for event in events if event["type"] == "eval" and event["step"]],
                "sampled": sorted({event["step"] for event in events if event["type"] == "sample"}),
                "sample": set(next(event for event in events if event["type"] == "sample")),
                "kept": [step_of(path) for path in checkpoints],
                "whole": all(is_whole(path) for path in checkpoints),
                "manifest": (manifest.run_id, manifest.lora["rank"], manifest.seed)[1:],
                "planned": steps,
                "done": sorted(set(events[-1]) & {"steps", "tokens", "seconds", "loss_last"}),
                "fields": {"step", "loss", "learning_rate", "tokens", "time"}
                <= set(next(event for event in events if event["type"] == "step")),
            }
        )
    assert seen[0] == seen[1]
    assert seen[0]["codes"] == [(0, False), (0, False), (5, True)]
    assert seen[0]["planned"] == len(seen[0]["steps"]) == 10
