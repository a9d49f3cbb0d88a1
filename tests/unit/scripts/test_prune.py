"""Pruning: only what nobody needs goes, nothing goes without apply=true, and a run can go on afterwards."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import ConfigError, Conflict, NotFound
from core.layout import DataDir
from core.lock import hold_lock
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.database import open_database
from retrieval.ingest import ingest
from retrieval.searcher import Searcher
from retrieval.store import find_store
from scripts.prune import Keep, find_removals, parse_arguments, remove
from tests.fakes.hash_embedder import HashEmbedder
from train.checkpoint import find_last_complete, mark_complete

REPO = Path(__file__).resolve().parents[3]
KEEP = Keep(checkpoints=1, reports=2, days=30)
OLD = (1_000_000_000, 1_000_000_000)


def write_run(data: DataDir, run_id: str, steps: list[int], *, is_finished: bool, broken: int = 0) -> Path:
    run = data.run(run_id)
    for step in steps:
        folder = run / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "optimizer.pt").write_bytes(b"state" * 100)
        if step != broken:
            mark_complete(folder)
    (run / "events.jsonl").write_text("")
    if is_finished:
        (run / "adapter").mkdir()
        (run / "adapter" / "manifest.json").write_text("{}")
    for path in run.rglob("*"):
        os.utime(path, OLD)
    return run


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path / "data")


def list_paths(data: DataDir) -> list[str]:
    return [removal.path for removal in find_removals(data, KEEP)]


def test_a_finished_run_keeps_the_newest_and_an_unfinished_one_what_it_resumes_from(data: DataDir) -> None:
    write_run(data, "done", [5, 10, 15], is_finished=True)
    unfinished = write_run(data, "half", [5, 10, 15], is_finished=False, broken=15)
    assert list_paths(data) == [
        "runs/done/checkpoints/checkpoint-10", "runs/done/checkpoints/checkpoint-5",
        "runs/half/checkpoints/checkpoint-5",
    ]  # fmt: skip
    for removal in find_removals(data, KEEP):
        assert removal.size_bytes > 500
        remove(data, removal)
    assert list_paths(data) == []
    last = find_last_complete(unfinished / "checkpoints")
    assert last is not None
    assert last.name == "checkpoint-10"


def test_a_run_that_was_touched_or_is_being_trained_is_left_alone(data: DataDir) -> None:
    run = write_run(data, "done", [5, 10], is_finished=True)
    os.utime(run / "events.jsonl")
    assert list_paths(data) == []
    os.utime(run / "events.jsonl", OLD)
    with hold_lock(run / ".lock", Conflict):
        assert list_paths(data) == []
    assert list_paths(data) == ["runs/done/checkpoints/checkpoint-5"]


def test_snapshots_of_earlier_generations_and_of_gone_stores_go_and_search_goes_on(
    data: DataDir, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.md").write_text("The word of the pump is canary.\n")
    ingest(
        data, "acme", source, embedder=HashEmbedder(), chunking=ChunkingConfig(30, 8), parsing=ParsingConfig(workers=1)
    )
    engine = open_database(data.database)
    store = find_store(engine, "acme")
    engine.dispose()
    folder = data.indexes / str(store.id)
    shutil.copytree(folder / str(store.generation), folder / str(store.generation - 1))
    shutil.copytree(folder, data.indexes / "99")
    assert list_paths(data) == [f"indexes/{store.id}/{store.generation - 1}", "indexes/99"]
    for removal in find_removals(data, KEEP):
        remove(data, removal)
    assert list_paths(data) == []
    searcher = Searcher(data, make_embedder=HashEmbedder)
    assert "canary" in searcher.search(["acme"], "canary", k=1).hits[0].text
    searcher.close()


def test_reports_beyond_the_newest_go_when_they_are_old(data: DataDir) -> None:
    data.reports.mkdir(parents=True)
    for number in range(5):
        (data.reports / f"{number}.json").write_text("{}")
        os.utime(data.reports / f"{number}.json", (OLD[0] + number, OLD[0] + number))
    os.utime(data.reports / "0.json")
    assert list_paths(data) == ["reports/3.json", "reports/2.json", "reports/1.json"]


def test_a_link_goes_and_what_it_leads_to_stays(data: DataDir, tmp_path: Path) -> None:
    data.reports.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "report.json").write_text("{}" * 100)
    for name, target in (("nowhere", tmp_path / "none"), ("folder", elsewhere), ("file", elsewhere / "report.json")):
        (data.reports / name).symlink_to(target)
        os.utime(data.reports / name, OLD, follow_symlinks=False)
    found = find_removals(data, Keep(checkpoints=0, reports=0, days=1))
    assert {removal.path for removal in found} == {"reports/nowhere", "reports/folder", "reports/file"}
    assert all(removal.size_bytes < 200 for removal in found)
    for removal in found:
        remove(data, removal)
    assert list(data.reports.iterdir()) == []
    assert (elsewhere / "report.json").is_file()


def test_what_is_gone_is_told_before_what_cannot_go(data: DataDir) -> None:
    write_run(data, "done", [5, 10], is_finished=True)
    data.reports.mkdir()
    (data.reports / "old.json").write_text("{}")
    os.utime(data.reports / "old.json", OLD)
    checkpoint = data.runs / "done" / "checkpoints" / "checkpoint-5"
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(data.root), "reports=0", "apply=true"],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")
    assert [line.split()[2] for line in done.stdout.splitlines()] == ["runs/done/checkpoints/checkpoint-5"]
    assert not checkpoint.exists()
    assert (data.reports / "old.json").is_file()


STOPPED = """
from core.config import run_command
from scripts import prune
remove = prune.remove
def interrupt(data, removal):
    if removal.path.startswith("reports"):
        raise KeyboardInterrupt  # as Ctrl-C would
    remove(data, removal)
prune.remove = interrupt
run_command(prune.main)
"""


def test_nothing_goes_without_apply(data: DataDir) -> None:
    run = write_run(data, "done", [5, 10], is_finished=True)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "scripts/prune.py", str(data.root), *words]
        return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)

    assert call().stdout.splitlines()[-1] == f"next: python scripts/prune.py {data.root} apply=true"
    assert (run / "checkpoints" / "checkpoint-5").is_dir()
    report = json.loads(call("apply=true", "output=json").stdout)
    assert report["is_removed"] is True
    assert [removal["path"] for removal in report["removals"]] == ["runs/done/checkpoints/checkpoint-5"]
    assert not (run / "checkpoints" / "checkpoint-5").exists()


def test_what_frees_a_full_disk_goes_on_where_the_database_cannot_be_opened_for_it(data: DataDir) -> None:
    run = write_run(data, "done", [5, 10], is_finished=True)
    open_database(data.database).dispose()
    words = shlex.join([sys.executable, "scripts/prune.py", str(data.root), "apply=true"])
    command = ["bash", "-c", f"ulimit -f 16; exec {words}"]  # KiB: SQLite's shared memory takes 32
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("note: the disk is too full to open the database")
    assert not (run / "checkpoints" / "checkpoint-5").exists()


def test_the_command_line_is_read_strictly(data: DataDir) -> None:
    assert parse_arguments(["x", "days=1", "apply=true"]) == (DataDir(Path("x")), Keep(1, 10, 1), True, False)
    for word, told in (
        ("--apply", "Did you mean apply=true|false?"),
        ("apply=yes", "apply: wanted apply=true|false, found 'yes'"),
        ("days=-1", "days: wanted days=N, 0 to 1,000,000, found '-1'"),
        ("days=1000001", "days: wanted"),
        ("all=1", "found 'all=1'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(told)):
            parse_arguments([word])
    with pytest.raises(ConfigError, match=r"all=1.*apply: wanted.*wanted one data directory, found a and b"):
        parse_arguments(["a", "all=1", "apply=yes", "b"])
    with pytest.raises(NotFound, match="found none at"):
        find_removals(data, KEEP)
