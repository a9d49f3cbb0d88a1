"""Backups: one state while the directory is in use, every byte proven, restored whole or not at all."""

import random
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from core.errors import Conflict, ContractError, InputError, NotFound
from core.layout import DataDir
from core.manifest import AdapterManifest, BaseIdentity
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.database import open_database, write_transaction
from retrieval.ingest import ingest
from retrieval.searcher import Searcher
from retrieval.uploads import delete_upload, list_uploads, save_upload
from scripts.backup import create_backup, main, restore_backup, verify_backup
from scripts.doctor import examine
from tests.fakes.hash_embedder import HashEmbedder

FILES = 40


def write_source(folder: Path) -> Path:
    folder.mkdir()
    for number in range(FILES):
        text = "\n\n".join(f"Part {part} of the words about pump {number}." for part in range(12))
        (folder / f"{number:02d}.md").write_text(f"{text}\n\nThe word is canary{number:02d}.\n")
    return folder


def bring_in(data: DataDir, source: Path) -> None:
    ingest(
        data, "acme", source, embedder=HashEmbedder(), chunking=ChunkingConfig(30, 8), parsing=ParsingConfig(workers=1)
    )


def keep(data: DataDir, content: bytes) -> None:
    engine = open_database(data.database)
    save_upload(engine, data, [content], owner="a", name="a", purpose="assistants", max_bytes=1 << 20)
    engine.dispose()


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    data = DataDir(tmp_path / "data")
    bring_in(data, write_source(tmp_path / "source"))
    keep(data, b"an upload")
    (data.run("mine") / "adapter").mkdir(parents=True)
    (data.run("mine") / "adapter" / "weights").write_text("weights")
    return data


def find(data: DataDir, numbers: range) -> list[bool]:
    searcher = Searcher(data, make_embedder=HashEmbedder)
    try:
        return [
            any(f"canary{n:02d}" in hit.text for hit in searcher.search(["acme"], f"canary{n:02d}", k=5).hits)
            for n in numbers
        ]
    finally:
        searcher.close()


@pytest.mark.parametrize("has_runs", [False, True])
def test_a_restored_backup_finds_what_the_first_did(data: DataDir, tmp_path: Path, has_runs: bool) -> None:
    backup, new = tmp_path / "backup", DataDir(tmp_path / "new")
    create_backup(data, backup, has_runs=has_runs)
    verify_backup(backup)
    assert (restore_backup(backup, new)["acme"]) > FILES
    assert [path.stat().st_mode & 0o777 for path in (backup, new.root)] == [0o700, 0o700]
    assert all(find(new, range(FILES)))
    assert {finding.check for finding in examine(new, repair=False)} <= {"adapters"}  # this one was never trained
    assert (new.run("mine") / "adapter" / "weights").is_file() is has_runs
    assert [path.read_bytes() for path in new.files.iterdir()] == [b"an upload"]


def test_a_backup_during_an_ingestion_is_one_state(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    data, source = DataDir(tmp_path / "data"), write_source(tmp_path / "source")
    open_database(data.database).dispose()
    worker = threading.Thread(target=bring_in, args=(data, source))
    worker.start()
    backups: list[Path] = []
    while worker.is_alive() and len(backups) < 8:
        backups.append(tmp_path / f"backup{len(backups)}")
        create_backup(data, backups[-1], has_runs=False)
    worker.join()
    for backup in backups:
        new = DataDir(tmp_path / f"new-{backup.name}")
        chunks = restore_backup(backup, new).get("acme", 0)
        completed = 0
        for status in Searcher(new, make_embedder=HashEmbedder).list_stores():
            completed = status.files
        assert [finding for finding in examine(new, repair=False) if not finding.is_mended] == []
        assert bool(chunks) == bool(completed)
        assert all(find(new, range(completed))) if completed else not chunks
    assert all(find(data, range(FILES)))
    record_property("backups_during_ingestion", len(backups))


@pytest.mark.parametrize("seed", range(12))
def test_any_damage_to_a_backup_is_seen_and_nothing_restored(data: DataDir, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    backup = tmp_path / "backup"
    create_backup(data, backup, has_runs=True)
    path = chance.choice(sorted(path for path in backup.rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    if chance.random() < 0.3:
        path.unlink()
    elif chance.random() < 0.3:
        path.write_bytes(content[: chance.randrange(len(content))])
    else:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    with pytest.raises((ContractError, NotFound)):
        verify_backup(backup)
    with pytest.raises((ContractError, NotFound)):
        restore_backup(backup, DataDir(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(data: DataDir, tmp_path: Path) -> None:
    create_backup(data, tmp_path / "backup", has_runs=False)
    with pytest.raises(Conflict, match="wanted a new folder"):
        create_backup(data, tmp_path / "backup", has_runs=False)
    with pytest.raises(Conflict, match="wanted an empty folder"):
        restore_backup(tmp_path / "backup", data)
    with pytest.raises(InputError, match="wanted a data directory outside the backup"):
        restore_backup(tmp_path / "backup", DataDir(tmp_path / "backup" / "new"))
    verify_backup(tmp_path / "backup")
    with pytest.raises(NotFound, match="wanted a database"):
        create_backup(DataDir(tmp_path / "none"), tmp_path / "other", has_runs=False)
    assert not (tmp_path / "other").exists()


def test_a_damaged_directory_makes_no_backup(data: DataDir, tmp_path: Path) -> None:
    shutil.rmtree(data.files)
    with pytest.raises(ContractError, match="its bytes are gone"):
        create_backup(data, tmp_path / "backup", has_runs=False)
    assert not (tmp_path / "backup").exists()


def publish(run: Path, name: str) -> Path:
    """Write an adapter as training publishes one."""
    adapter = run / name
    adapter.mkdir(parents=True)
    (adapter / "weights").write_text(name)
    base = BaseIdentity("mini", "1", "2", "3")
    AdapterManifest(run.name, base, "sft", {"rank": 8}, {}, {}, 1, None, {}, {}, 1).write(adapter)
    return adapter


def test_adapters_of_checkpoints_come_back_too(data: DataDir, tmp_path: Path) -> None:
    run = data.run("ftjob-1")
    for name in ("adapter-5", "adapter-10"):  # the last model of the job was deleted, those of its checkpoints were not
        publish(run, name)
    (run / ".adapter-15.abc.tmp").mkdir()
    for name in ("events.jsonl", "inputs.json", "notes.txt"):
        (run / name).touch()
    create_backup(data, tmp_path / "backup", has_runs=True)
    new = DataDir(tmp_path / "new")
    restore_backup(tmp_path / "backup", new)
    found = sorted(path.name for path in new.run("ftjob-1").iterdir())
    assert found == ["adapter-10", "adapter-5", "events.jsonl", "inputs.json"]
    assert {finding.subject for finding in examine(new, repair=False)} == {"mine/adapter"}  # which was never trained


def test_a_damaged_adapter_takes_no_good_ones_place(data: DataDir, tmp_path: Path) -> None:
    adapter = publish(data.run("ftjob-1"), "adapter-5")
    create_backup(data, tmp_path / "good", has_runs=True)
    (adapter / "weights").write_text("other")
    assert "ftjob-1/adapter-5" in {finding.subject for finding in examine(data, repair=False)}
    with pytest.raises(ContractError, match="adapter-5: it is not what was published"):
        create_backup(data, tmp_path / "backup", has_runs=True)
    assert not (tmp_path / "backup").exists()
    create_backup(data, tmp_path / "without", has_runs=False)


def test_a_file_deleted_meanwhile_is_not_in_the_backup(
    data: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copyfile = shutil.copyfile

    def delete_first(source: Path, target: Path) -> Path:
        monkeypatch.setattr(shutil, "copyfile", copyfile)
        engine = open_database(data.database)
        delete_upload(engine, data, list_uploads(engine)[0].id, "a")
        engine.dispose()
        return copyfile(source, target)

    engine = open_database(data.database)
    with write_transaction(engine) as connection:
        connection.execute(
            text(
                "INSERT INTO vector_store_files (store_id, file_id, document, status, attributes, max_tokens, "
                "overlap_tokens, created_at) VALUES (1, :id, '00.md', 'completed', '{}', 240, 0, 1)"
            ),
            {"id": list_uploads(engine)[0].id},
        )
    engine.dispose()
    monkeypatch.setattr(shutil, "copyfile", delete_first)
    create_backup(data, tmp_path / "backup", has_runs=False)
    new = DataDir(tmp_path / "new")
    restore_backup(tmp_path / "backup", new)
    engine = open_database(new.database)
    assert list_uploads(engine) == []
    engine.dispose()
    assert find(new, range(2)) == [False, True]
    assert find(data, range(1)) == [True]


@pytest.mark.parametrize("action", ["create", "restore"])
def test_an_interrupted_command_leaves_nothing_and_says_so(
    data: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    def interrupt(_source: Path, _target: Path) -> Path:
        raise KeyboardInterrupt  # as Ctrl-C would, in the middle of the copying

    create_backup(data, tmp_path / "good", has_runs=False)
    before = sorted(tmp_path.iterdir())
    words = {
        "create": ["create", str(tmp_path / "backup"), "--data-dir", str(data.root)],
        "restore": ["restore", str(tmp_path / "good"), "--data-dir", str(tmp_path / "new")],
    }[action]
    monkeypatch.setattr(sys, "argv", ["backup.py", *words])
    monkeypatch.setattr(shutil, "copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main()
    assert sorted(tmp_path.iterdir()) == before
    assert capsys.readouterr().err.endswith("was not made. Give the same command again.\n")
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["backup.py", *words])
    main()
