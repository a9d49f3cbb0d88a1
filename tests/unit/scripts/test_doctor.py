"""The doctor: a whole directory is well, each kind of damage is named, and what is derived is mended."""

import json
import os
import random
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from core.errors import ConfigError, ContractError, InputError, LoamError, NotFound
from core.layout import DataDir, sha256_bytes, sha256_file, write_folder
from core.manifest import ModelKind, ModelManifest, hash_files
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.database import open_database, write_transaction
from retrieval.ingest import ingest
from retrieval.seal import DOCUMENT_COLUMNS, DOCUMENT_SEALED_BEFORE
from retrieval.searcher import Searcher
from retrieval.snapshot import snapshot_folder
from retrieval.store import find_store
from retrieval.uploads import save_upload
from scripts import doctor
from scripts.doctor import examine, show_findings
from scripts.doctor_request import Request, parse_arguments
from scripts.finding import Finding
from scripts.models import get_model
from tests.fakes.hash_embedder import HashEmbedder

REPO = Path(__file__).resolve().parents[3]
EDITS = 100 if os.environ.get("LOAM_TEST_FULL") else 10
FILES = 30
UNCOVERED = {("stores", "created_at")}
"""Told to people; nothing is found or quoted by it."""
FIRST = "SELECT id FROM documents ORDER BY id LIMIT {}"
QUERIES = [f"the word of file {number} is canary{number}" for number in range(0, FILES, 5)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> DataDir:
    """A directory with a store, an upload and a model; copied for each test that damages it."""
    root = tmp_path_factory.mktemp("doctor")
    data, source = DataDir(root / "data"), root / "source"
    source.mkdir()
    for number in range(FILES):
        lines = [f"## Part {part}\n\nSome words about pump {number} and valve {part}.\n" for part in range(4)]
        (source / f"{number}.md").write_text("\n".join([*lines, f"The word of file {number} is canary{number}.\n"]))
    ingest(
        data, "acme", source, embedder=HashEmbedder(), chunking=ChunkingConfig(30, 8), parsing=ParsingConfig(workers=1)
    )
    engine = open_database(data.database)
    save_upload(engine, data, [b"some bytes"], owner="a", name="a.txt", purpose="assistants", max_bytes=100)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    with write_folder(data.model("mini")) as folder:
        (folder / "config.json").write_text("{}")
        ModelManifest("mini", ModelKind.EMBEDDER, "here", None, "MIT", hash_files(folder)).write(folder)
    return data


@pytest.fixture
def data(whole: DataDir, tmp_path: Path) -> DataDir:
    shutil.copytree(whole.root, tmp_path / "data")
    return DataDir(tmp_path / "data")


def run_sql(data: DataDir, statement: str) -> None:
    engine = open_database(data.database)
    with write_transaction(engine) as connection:
        connection.execute(text(statement))
    engine.dispose()


def open_findings(data: DataDir, *, repair: bool = False) -> list[Finding]:
    return [finding for finding in examine(data, repair=repair) if not finding.is_mended]


def test_a_whole_directory_is_well(data: DataDir) -> None:
    assert examine(data, repair=False) == []


def test_a_directory_without_a_database_is_well_and_none_is_refused(tmp_path: Path) -> None:
    assert open_findings(DataDir(tmp_path)) == []
    with pytest.raises(NotFound, match="found none at"):
        examine(DataDir(tmp_path / "none"), repair=False)


@pytest.mark.parametrize(
    ("statement", "check", "fault"),
    [
        ("UPDATE chunks SET text = 'other' WHERE id = 3", "chunks", "chunk-3: its text"),
        ("UPDATE chunks SET embeddings = zeroblob(256) WHERE id = 3", "chunks", "chunk-3: its vectors"),
        ("UPDATE chunks SET page = 9 WHERE id = 3", "chunks", "chunk-3: its place"),
        ("UPDATE documents SET text = 'other words' WHERE id > 3", "documents", "is not a part of its text"),
        ("UPDATE documents SET status = 'failed' WHERE id > 3", "documents", "it is failed and has chunks"),
        ("UPDATE documents SET text = text || ' ' WHERE id > 3", "documents", "its text is not what was stored"),
        ("UPDATE documents SET name = 'x' || name WHERE id > 3", "documents", "its name, attributes, state"),
        ("UPDATE documents SET stated_attributes = '[]' WHERE id > 3", "documents", "its name, attributes, state"),
        ("UPDATE documents SET updated_at = 1 WHERE id > 3", "documents", "its name, attributes, state"),
        ("UPDATE documents SET error = 'no' WHERE id > 3", "documents", "its name, attributes, state"),
        ("UPDATE documents SET text_sha256 = NULL WHERE id > 3", "documents", "its name, attributes, state"),
    ],
)
def test_damaged_rows_are_named_and_not_mended(data: DataDir, statement: str, check: str, fault: str) -> None:
    run_sql(data, statement)
    for repair in (False, True):
        found = [finding for finding in open_findings(data, repair=repair) if finding.check == check]
        assert any(fault in finding.fault for finding in found)


def test_a_damaged_or_missing_index_is_made_again(data: DataDir) -> None:
    engine = open_database(data.database)
    folder = snapshot_folder(data, find_store(engine, "acme"))
    engine.dispose()
    path = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    before = sha256_file(path)
    path.write_bytes(path.read_bytes()[:-1])
    (finding,) = examine(data, repair=False)
    assert (finding.check, finding.is_mended) == ("indexes", False)
    (finding,) = examine(data, repair=True)
    assert finding.is_mended
    assert sha256_file(path) == before
    assert examine(data, repair=False) == []


def test_what_filters_read_is_made_again_from_sound_documents(data: DataDir) -> None:
    run_sql(data, f"UPDATE attributes SET text = 'other' WHERE key = 'path' AND document_id IN ({FIRST.format(4)})")
    (finding,) = open_findings(data)
    assert (finding.check, finding.fault[:14]) == ("attributes", "of 4 documents")
    run_sql(data, f"UPDATE documents SET set_attributes = '{{}}  ' WHERE id IN ({FIRST.format(1)})")
    found = {finding.check for finding in open_findings(data, repair=True)}
    assert found == {"documents", "attributes"}  # what is damaged is copied nowhere
    run_sql(data, f"UPDATE documents SET set_attributes = '{{}}' WHERE id IN ({FIRST.format(1)})")
    assert open_findings(data, repair=True) == []
    assert examine(data, repair=False) == []


def test_rows_without_a_seal_are_sealed(data: DataDir) -> None:
    run_sql(data, "UPDATE chunks SET seal = NULL, embeddings_sha256 = NULL WHERE id < 10")
    run_sql(data, "UPDATE documents SET seal = NULL, text_sha256 = NULL WHERE id > 10")
    assert [(finding.check, finding.subject) for finding in open_findings(data)] == [
        ("chunks", "seals"),
        ("documents", "seals"),
    ]
    assert open_findings(data, repair=True) == []
    assert examine(data, repair=False) == []


def test_rows_of_attached_files_are_held_against_their_seals(data: DataDir) -> None:
    run_sql(
        data,
        "INSERT INTO vector_store_files (store_id, file_id, document, status, attributes, max_tokens, overlap_tokens, "
        "created_at) VALUES (1, 'file-1', 'x.md', 'failed', '{}', 240, 0, 1)",
    )
    (finding,) = open_findings(data)
    assert (finding.check, finding.subject, finding.fault[:16]) == ("attached", "seals", "1 attached files")
    assert open_findings(data, repair=True) == []
    assert examine(data, repair=False) == []
    for damage in ("'lies'", "CAST(x'ff' AS TEXT)"):  # which is no UTF-8
        run_sql(data, f"UPDATE vector_store_files SET error = {damage}")
        for repair in (False, True):
            (finding,) = open_findings(data, repair=repair)
            assert (finding.check, finding.subject) == ("attached", "file-1")


def test_seals_that_cover_less_are_made_anew(data: DataDir) -> None:
    engine = open_database(data.database)
    with write_transaction(engine) as connection:
        for row in connection.execute(text(f"SELECT {DOCUMENT_COLUMNS} FROM documents d")).mappings().all():
            words = "\0".join(str(row[key]) for key in DOCUMENT_SEALED_BEFORE)
            values = {"seal": sha256_bytes(words.encode()), "id": row["document_id"]}
            connection.execute(text("UPDATE documents SET seal = :seal WHERE id = :id"), values)
    engine.dispose()
    (finding,) = open_findings(data)
    assert (finding.check, finding.subject, finding.fault[:12]) == ("documents", "seals", "30 documents")
    assert open_findings(data, repair=True) == []
    assert examine(data, repair=False) == []
    run_sql(data, "UPDATE documents SET updated_at = 1 WHERE id = (SELECT MIN(id) FROM documents)")
    assert len(open_findings(data, repair=True)) == 1


def test_models_and_uploads_are_held_against_their_hashes(data: DataDir) -> None:
    (data.models / "mini" / "config.json").write_text("{ }")
    next(data.files.iterdir()).write_bytes(b"other bytes")
    assert [finding.check for finding in open_findings(data, repair=True)] == ["uploads", "models"]


def test_leftovers_are_removed(data: DataDir) -> None:
    left = [data.indexes / "1" / ".9.abc.tmp", data.indexes / "99", data.models / ".x.abc.tmp", data.files / "file-x"]
    for path in left:
        path.mkdir()
        os.utime(path, (0, 0))
    assert {finding.check for finding in open_findings(data)} == {"leftovers"}
    assert len(open_findings(data)) == len(left)
    assert open_findings(data, repair=True) == []
    assert [path for path in left if path.exists()] == []


def damage_page(path: Path, chance: random.Random) -> None:
    """Change 1 to 64 bytes in one page of a database, as a bad disk would."""
    content = bytearray(path.read_bytes())
    page = chance.randrange(len(content) // 4096)
    for _ in range(chance.choice((1, 8, 64))):
        content[page * 4096 + chance.randrange(4096)] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def read_rows(path: Path) -> object:
    """Everything that the database says but for what no hash covers, or why it cannot be read."""
    connection = sqlite3.connect(path)
    try:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows: dict[str, list[tuple[object, ...]]] = {}
        for table in tables:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            covered = [name for name in columns if (table, name) not in UNCOVERED]
            rows[table] = connection.execute(f"SELECT {', '.join(covered)} FROM {table} ORDER BY 1, 2").fetchall()
        return rows
    except (sqlite3.Error, UnicodeDecodeError) as error:
        return str(error)
    finally:
        connection.close()


def search(data: DataDir) -> list[tuple[str, str, int, int]] | str:
    """What a few questions quote, or how they are refused."""
    try:
        searcher = Searcher(data, make_embedder=HashEmbedder)
        try:
            hits = [hit for query in QUERIES for hit in searcher.search(["acme"], query, k=5).hits]
        finally:
            searcher.close()
    except LoamError as error:
        return error.message
    return [(hit.chunk_id, hit.text, hit.start, hit.end) for hit in hits]


@pytest.mark.parametrize("seed", range(EDITS))
def test_a_damaged_page_is_named_and_never_quoted(
    whole: DataDir, data: DataDir, seed: int, record_property: Callable[[str, object], None]
) -> None:
    wanted_rows, wanted = read_rows(whole.database), search(whole)
    quoted = {hit[0]: hit for hit in wanted if not isinstance(hit, str)}
    damage_page(data.database, random.Random(seed))
    found = search(data)
    if not isinstance(found, str):
        assert all(hit == quoted.get(hit[0], hit) for hit in found), "words that were not stored were quoted"
    is_changed = read_rows(data.database) != wanted_rows
    findings = open_findings(data)
    assert findings or not is_changed, "rows have changed and nothing was named"
    record_property("page_edits", 1)
    record_property("of_them_in_rows", int(is_changed))
    record_property("named", int(bool(findings)))


def test_the_command_prints_ends_and_tells_what_is_next(data: DataDir) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "scripts/doctor.py", str(data.root), "checks=data", *words]
        return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)

    run_sql(data, "UPDATE chunks SET text = 'other' WHERE id = 3")
    damaged = run()
    assert damaged.returncode == ContractError.exit_code
    assert "chunk-3" in damaged.stdout
    assert "backup.py restore" in damaged.stdout.splitlines()[-1]
    as_json = json.loads(run("output=json").stdout)
    assert as_json["ok"] is False
    assert as_json["findings"][0]["subject"] == "chunk-3"


def test_the_command_line_is_read_strictly() -> None:
    request = parse_arguments(["x", "repair=true", "output=json", "checks=data", "port=9000"])
    assert request == Request(DataDir(Path("x")), "true", "json", "data", port="9000")
    for word, told in (
        ("--repair", "Did you mean repair=true|false?"),
        ("repair=yes", "repair: wanted repair=true|false, found 'yes'"),
        ("other=1", "found 'other=1'"),
        ("port=70000", "port: wanted port=N, 0 to 65535, found '70000'"),
        ("profile=tpu", "profile: wanted profile=auto|cpu|"),
        ("model=", "model: wanted model=NAME, found ''"),
    ):
        with pytest.raises(ConfigError, match=re.escape(told)):
            parse_arguments([word])
    with pytest.raises(ConfigError, match=r"port: wanted.*wanted one data directory, found a and b"):
        parse_arguments(["a", "port=x", "b"])


def test_what_was_not_checked_is_not_said_to_be_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_findings([], {"driver": ["no card is wanted"]}, Request(DataDir(tmp_path / "none")))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["driver", "no", "all"]
    show_findings([], {}, Request(DataDir(tmp_path), checks="data"))
    assert "documents     ok" in capsys.readouterr().out


def test_what_is_no_file_or_leads_nowhere_is_told_and_the_other_checks_go_on(data: DataDir, tmp_path: Path) -> None:
    (tmp_path / "odd" / "loam.db").mkdir(parents=True)
    (finding,) = open_findings(DataDir(tmp_path / "odd"))
    assert (finding.check, finding.fault) == ("database", "wanted a file, found something else")
    link = data.models / ".half.tmp"
    link.symlink_to(tmp_path / "none")
    os.utime(link, (1, 1), follow_symlinks=False)
    (data.model("mini") / "model.json").unlink()
    (data.model("mini") / "model.json").mkdir()
    assert {finding.check for finding in open_findings(data)} == {"models", "leftovers"}
    assert {finding.check for finding in open_findings(data, repair=True)} == {"models"}
    assert not link.is_symlink()


def test_a_database_that_cannot_be_read_is_no_reason_for_a_backup(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> list[str]:
        raise InputError(f"{path}: the database cannot be used (unable to open). Check its permissions and the disk.")

    monkeypatch.setattr(doctor, "find_damage", refuse)  # as where another user owns it; to root everything is readable
    monkeypatch.setattr(doctor, "open_database", refuse)
    (data.model("mini") / "config.json").unlink()
    found = open_findings(data)
    assert [finding.check for finding in found] == ["database", "database", "models"]
    assert {finding.remedy for finding in found[:2]} == {"Mend what is said, and run this again."}


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_what_is_told_for_a_damaged_model_mends_it(data: DataDir, damage: str) -> None:
    weights = get_model("all-minilm-l6-v2", data) / "model.safetensors"
    os.truncate(weights, 1000) if damage == "cut" else weights.unlink()
    (finding,) = open_findings(data)
    assert f"model.safetensors {'has changed' if damage == 'cut' else 'is missing'}" in finding.fault
    command = finding.remedy.replace("python ", f"{shlex.quote(sys.executable)} ")
    subprocess.run(["bash", "-euc", command], cwd=REPO, check=True, capture_output=True)
    assert open_findings(data) == []


@pytest.mark.parametrize("is_empty", [False, True])
def test_a_lost_database_is_named_and_nothing_is_removed_for_it(data: DataDir, is_empty: bool) -> None:
    before = sorted(data.root.rglob("*"))
    data.database.unlink()
    if is_empty:
        data.database.touch()
    for _ in range(2):
        found = open_findings(data, repair=True)
        assert {(one.check, one.remedy[:16]) for one in found} == {("database", "Restore a backup")}
    assert sorted(data.root.rglob("*")) == [path for path in before if is_empty or path != data.database]


def test_a_manifest_of_another_form_is_a_finding(data: DataDir) -> None:
    manifest = data.model("mini") / "model.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "files": ["config.json"]}))
    (finding,) = open_findings(data)
    assert "files: wanted an object, found list" in finding.fault
