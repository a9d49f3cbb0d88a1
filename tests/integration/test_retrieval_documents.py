"""151 real files and the example company through the real command line with the real MiniLM."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from core.layout import DataDir
from retrieval.config import IndexDevice
from retrieval.database import open_database, read_transaction
from retrieval.searcher import HIT_KEYS, Searcher
from retrieval.snapshot import build_index, load_snapshot, snapshot_folder
from retrieval.store import find_store

REPO = Path(__file__).resolve().parents[2]
ACME = REPO / "examples" / "acme"
HEAVY_IMPORTS = {"torch", "transformers", "sentence_transformers", "faiss"}
"""Seconds of waiting for who only asks how things stand."""


def run(data: DataDir, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run retrieval/run.py as a person would."""
    command = [sys.executable, "retrieval/run.py", *arguments, f"paths.data_dir={data.root}"]
    return subprocess.run(command, cwd=REPO, input=stdin, capture_output=True, text=True, timeout=800, check=False)


def read_json(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def data(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> DataDir:
    root = tmp_path_factory.mktemp("data")
    (root / "models").symlink_to(demo_models / "models")
    return DataDir(root)


@pytest.fixture(scope="module")
def report(data: DataDir, shared_data: Path) -> dict[str, Any]:
    """What ingesting the real files printed."""
    source = f"source={shared_data / 'documents'}"
    (printed,) = read_json(run(data, "action=ingest", "store=docs", source, "output=json"))
    return printed


@pytest.fixture(scope="module")
def acme(data: DataDir) -> dict[str, Any]:
    """What ingesting the example company printed."""
    (printed,) = read_json(run(data, "action=ingest", "store=acme", f"source={ACME / 'documents'}", "output=json"))
    return printed


@pytest.fixture(scope="module")
def searcher(data: DataDir) -> Iterator[Searcher]:
    searcher = Searcher(data)
    yield searcher
    searcher.close()


def test_every_file_is_ingested_or_listed_with_its_reason(report: dict[str, Any], shared_data: Path) -> None:
    files = [path for path in (shared_data / "documents").rglob("*") if path.is_file()]
    failures = {failure["file"]: failure for failure in report["failures"]}
    assert report["found"] == len(files) == report["ingested"] + len(failures)
    assert report["ingested"] >= len(files) - 6
    assert "password" in failures["pdf/libreoffice-writer-password.pdf"]["reason"]
    for failure in failures.values():
        assert failure["code"] in {"invalid_file", "unsupported_file"}
        assert failure["reason"].endswith(".")


def test_every_chunk_is_an_exact_slice_and_nothing_is_left_out(report: dict[str, Any], data: DataDir) -> None:
    with read_transaction(open_database(data.database)) as connection:
        documents = connection.execute(text("SELECT id, name, text FROM documents WHERE status = 'completed'")).all()
        chunks = connection.execute(text("SELECT * FROM chunks ORDER BY document_id, ordinal")).mappings().all()
    assert len(chunks) >= report["chunks"] > 1000
    for document in documents:
        blank = list(document.text)
        for chunk in (chunk for chunk in chunks if chunk["document_id"] == document.id):
            start, end = chunk["start_offset"], chunk["end_offset"]
            assert document.text[start:end] == chunk["text"], document.name
            blank[start:end] = " " * (end - start)
        assert not "".join(blank).strip(), document.name


@pytest.mark.parametrize(
    ("question", "file"),
    [
        ("What do ducks eat?", "html/wiki_duck.html"),
        ("How do I request time off or leave?", "md/handbook"),
        ("layoffs and closures notices filed by employers in California", "pdf/ca-warn-report.pdf"),
        ("Norwich City football club", "other/norwich-city.txt"),
    ],
)
def test_a_question_finds_its_file(report: dict[str, Any], searcher: Searcher, question: str, file: str) -> None:
    assert any(hit.file.startswith(file) for hit in searcher.search(["docs"], question, k=5).hits)


def test_hits_in_a_pdf_carry_their_page(report: dict[str, Any], searcher: Searcher) -> None:
    hits = searcher.search(["docs"], "WARN notice layoff Permanent company county", k=20).hits
    pages = {hit.page for hit in hits if hit.file == "pdf/ca-warn-report.pdf"}
    assert pages
    assert None not in pages


def test_the_example_company_is_found_by_its_questions(acme: dict[str, Any], searcher: Searcher) -> None:
    assert acme["failures"] == []
    rows = [json.loads(line) for line in (ACME / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    answerable = [row for row in rows if row.get("file")]
    found = [
        row["file"] in [hit.file for hit in searcher.search(["acme"], row["question"], k=3).hits] for row in answerable
    ]
    assert len(found) >= 40
    assert sum(found) / len(found) >= 0.95


def test_search_prints_one_object_a_line_and_nothing_else(acme: dict[str, Any], data: DataDir) -> None:
    question = 'How long is the "warranty" of the Brook 40 [pump], {months}?'
    hits = read_json(run(data, "action=search", "store=acme", "query_file=-", "k=4", "output=json", stdin=question))
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4]
    assert all(tuple(hit) == HIT_KEYS for hit in hits)
    assert "26 months" in hits[0]["text"]
    typed = subprocess.run(
        [sys.executable, "scripts/search.py", "acme", question, "--k", "4", "--json", "--data-dir", str(data.root)],
        cwd=REPO, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert [json.loads(line) for line in typed.stdout.splitlines()] == hits


def test_a_second_run_embeds_nothing_and_a_status_is_quick(
    acme: dict[str, Any], data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    (again,) = read_json(run(data, "action=ingest", "store=acme", f"source={ACME / 'documents'}", "output=json"))
    assert (again["ingested"], again["unchanged"], again["embedded"]) == (0, acme["ingested"], 0)
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    printed = run(data, "action=status", "store=acme", "output=json")
    (status,) = read_json(printed)
    imported = {line.rpartition("|")[2].strip() for line in printed.stderr.splitlines() if "import time:" in line}
    assert "sqlalchemy" in imported
    assert imported.isdisjoint(HEAVY_IMPORTS)
    assert (status["store"], status["files"], status["chunks"]) == ("acme", acme["ingested"], acme["chunks"])


def test_a_rebuild_makes_the_same_index(acme: dict[str, Any], data: DataDir) -> None:
    engine = open_database(data.database)
    store = find_store(engine, "acme")
    before = load_snapshot(snapshot_folder(data, store), store, IndexDevice.cpu)
    (printed,) = read_json(run(data, "action=rebuild", "store=acme", "output=json"))
    after = build_index(engine, store, IndexDevice.cpu)
    assert before is not None
    assert printed["chunks"] == len(after.numbers) == len(before.numbers)
    assert after.numbers.tolist() == before.numbers.tolist()


def test_a_searcher_keeps_answering_while_the_command_line_ingests(
    acme: dict[str, Any], data: DataDir, searcher: Searcher, tmp_path: Path
) -> None:
    for number in range(30):
        (tmp_path / f"{number}.md").write_text(
            f"# Note {number}\n\nThe secret word of note {number} is quokka{number}.\n"
        )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", "tests.fakes.ingest_command", str(data.root), "notes", str(tmp_path)]
    errors: list[str] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            hits = searcher.search(["acme"], "warranty of the Brook 40", k=1).hits
            if not hits or "26 months" not in hits[0].text:
                errors.append(str(hits))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        subprocess.run(command, cwd=REPO, env=environment, check=True, capture_output=True, timeout=300)
    finally:
        done.set()
        thread.join()
    assert errors == []
    assert {status.store for status in searcher.list_stores()} >= {"acme", "notes"}


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("action=ingest", "store=x", "source=/none/such"), 4, "source: wanted a file or folder"),
        (("action=ingest", "store=x", "source=conf", "embedder.name=none"), 4, " get none"),
        (("action=ingest", "source=conf"), 2, "store: wanted a value"),
        (("action=search", "store=nix", "query_file=-"), 4, "store 'nix'"),
        (("action=search", "store=nix", "query_file=-", "k=0"), 3, "k: wanted 1 to 1000, found 0"),
        (("action=search", "store=nix", "query_file=/none/such"), 4, "read the query"),
        (("action=status", "store=nix"), 4, "store 'nix'"),
        (("action=dance",), 2, "action"),
        ((), 2, "wanted one of ingest, sync, watch, delete, reembed, search, status, rebuild, tune, train_"),
    ],
)
def test_bad_input_ends_in_one_message(data: DataDir, arguments: tuple[str, ...], code: int, named: str) -> None:
    done = run(data, *arguments, stdin="a question")
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_source_of_bad_files_alone_is_an_error(data: DataDir, tmp_path: Path) -> None:
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7 nothing more")
    done = run(data, "action=ingest", "store=bad", f"source={tmp_path}")
    assert done.returncode == 3
    assert "bad.pdf" in done.stdout
    assert "wanted at least one readable file" in done.stderr
