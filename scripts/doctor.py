"""Answer what an operator asks, before and after: can this machine do it, and is the data whole.

    python scripts/doctor.py [DATA_DIR] [checks=all|machine|data] [profile=auto|cpu|gpu_24gb|h100|multi_gpu]
        [model=NAME] [host=127.0.0.1] [port=8000] [repair=true] [output=json]

`machine` (doctor_machine.py) tries driver, packages and their kernels, models, assets, room, ports and keys. `data`
reads every page of the database and every byte of chunks, uploads, indexes, models and adapters, holds them against
what was written down when they were stored, and mends what is derived with repair=true. Each row of CHECKS is one plain
function. Ends with 0 where all is well or mended, with 6 where something remains; each fault comes with its remedy. May
run beside a gateway.
"""

from core.entry import begin_program

begin_program()

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, RowMapping, text

from core.config import run_command
from core.errors import ContractError, LoamError, NotFound
from core.layout import DataDir, sync_directory
from core.logs import configure_logging
from core.manifest import AdapterManifest, ModelManifest, list_adapters, verify_files
from core.next_command import write_next_command
from retrieval.attributes import find_stale, index_attributes
from retrieval.config import IndexDevice
from retrieval.database import find_damage, find_loss, open_database, read_transaction, write_transaction
from retrieval.seal import (
    DOCUMENT_COLUMNS,
    check_chunk,
    check_document,
    check_embeddings,
    check_seal,
    check_text,
    hash_document,
    hash_text,
    is_whole,
    seal_chunk,
    seal_documents,
)
from retrieval.status import list_stores
from retrieval.store import Store, find_store
from retrieval.uploads import check_upload, find_leftovers, list_uploads
from retrieval.vectors import unpack_vectors
from scripts.doctor_attached import ATTACHED, check_attached
from scripts.doctor_request import Request, parse_arguments
from scripts.finding import AGAIN, Finding, tell_refusals
from scripts.models import write_remedy
from scripts.words import show_help

ABANDONED_AFTER_S = 3600
RESTORE = "Restore a backup: python scripts/backup.py restore BACKUP --data-dir NEW"
BATCH_CHUNKS = 1000


@dataclass(frozen=True, slots=True)
class Patient:
    """What is checked.

    Attributes:
        data: The data directory.
        engine: Its database; None where there is none or it cannot be opened.
        repair: Whether what is derived shall be mended.
    """

    data: DataDir
    engine: Engine | None
    repair: bool


def check_pages(patient: Patient) -> Iterator[Finding]:
    """Check the database's pages, its indexes against its tables, and its foreign keys."""
    path = patient.data.database
    if path.exists() and not path.is_file():
        yield Finding("database", str(path), "wanted a file, found something else", RESTORE)
        return
    loss = find_loss(path)
    if loss is not None:
        yield Finding("database", str(path), loss, RESTORE)
        return
    if not path.is_file():
        yield Finding("database", str(path), "there is none", "Nothing was ingested yet, or restore a backup.", True)
        return
    try:
        faults = find_damage(path)
    except LoamError as error:  # it cannot be read, or not now
        yield Finding("database", str(path), error.message, find_remedy(error))
        return
    for fault in faults:
        yield Finding("database", str(path), fault, RESTORE)


def find_remedy(error: LoamError) -> str:
    """Return what to do about a fault that an error tells: a backup is for damage only."""
    return RESTORE if isinstance(error, ContractError) else AGAIN


def check_chunks(patient: Patient) -> Iterator[Finding]:
    """Check each chunk's words, vectors and place against its hashes, and seal those of an earlier Loam."""
    if patient.engine is None:
        return
    with read_transaction(patient.engine) as connection:
        numbers = connection.execute(text("SELECT id FROM chunks ORDER BY id")).scalars().all()
    unsealed: list[dict[str, object]] = []
    for start in range(0, len(numbers), BATCH_CHUNKS):
        for number, row in _read_rows(patient.engine, numbers[start : start + BATCH_CHUNKS]):
            if isinstance(row, str):
                yield Finding("chunks", f"chunk-{number}", row, RESTORE)
                continue
            yield from _check_row(row)
            if row["seal"] is None:
                unsealed.append(seal_chunk(row))
    if unsealed:
        yield _seal(patient, unsealed)


def _read_rows(engine: Engine, numbers: Sequence[int]) -> Iterator[tuple[int, RowMapping | str]]:
    """Yield each chunk's row, or why it cannot be read."""
    query = text(
        "SELECT c.id, c.document_id, c.ordinal, c.start_offset, c.end_offset, c.page, c.heading, c.text, c.sha256, "
        "c.embeddings, "
        "c.spans, c.embeddings_sha256, c.seal, s.dimension FROM chunks c JOIN stores s ON s.id = c.store_id "
        "WHERE c.id BETWEEN :first AND :last ORDER BY c.id"
    )
    try:
        with read_transaction(engine) as connection:
            rows = connection.execute(query, {"first": numbers[0], "last": numbers[-1]}).mappings().all()
        yield from ((row["id"], row) for row in rows)
    except ContractError as error:
        if len(numbers) == 1:
            yield numbers[0], error.message
            return
        for number in numbers:
            yield from _read_rows(engine, [number])


def _check_row(row: RowMapping) -> Iterator[Finding]:
    """Yield what in a chunk's row is not what was stored."""
    for check in (check_chunk, check_embeddings, check_seal):
        try:
            check(row)
        except ContractError as error:
            yield Finding("chunks", f"chunk-{row['id']}", error.message, RESTORE)
    try:
        unpack_vectors(row["embeddings"], row["spans"], row["dimension"])
    except ContractError as error:
        yield Finding("chunks", f"chunk-{row['id']}", error.message, RESTORE)


def _seal(patient: Patient, rows: list[dict[str, object]]) -> Finding:
    """Seal chunks that have no seal, where that is wanted."""
    if patient.repair and patient.engine is not None:
        statement = text("UPDATE chunks SET embeddings_sha256 = :embeddings_sha256, seal = :seal WHERE id = :id")
        values = [{key: row[key] for key in ("id", "embeddings_sha256", "seal")} for row in rows]
        with write_transaction(patient.engine) as connection:
            connection.execute(statement, values)
    fault = f"{len(rows)} chunks of an earlier version have no seal: damage to their vectors would not be seen"
    return Finding("chunks", "seals", fault, "repair=true seals them as they are", patient.repair)


def check_documents(patient: Patient) -> Iterator[Finding]:
    """Check documents against their hashes, and that their chunks are slices of them; seal those of an earlier Loam."""
    if patient.engine is None:
        return
    query = text(  # one at a time: a text may be long
        f"SELECT d.text, {DOCUMENT_COLUMNS} FROM documents d WHERE d.id > :last ORDER BY d.id LIMIT 1"  # noqa: S608
    )
    pieces = text("SELECT id, start_offset, end_offset, text FROM chunks WHERE document_id = :id ORDER BY ordinal")
    unsealed: dict[int, str] = {}
    last = -1
    while True:
        with read_transaction(patient.engine) as connection:
            document = connection.execute(query, {"last": last}).mappings().first()
            if document is None:
                break
            last = document["document_id"]
            chunks = connection.execute(pieces, {"id": last}).all()
        faults = list(_check_document(document, chunks))
        yield from faults
        is_sealed = document["text_sha256"] is not None and document["document_seal"] == hash_document(document)
        if not is_sealed and not faults and document["status"] != "in_progress":
            unsealed[last] = document["text_sha256"] or hash_text(document["text"])
    if unsealed:
        yield _seal_documents(patient, unsealed)


def _check_document(document: RowMapping, chunks: Sequence[Row[Any]]) -> Iterator[Finding]:
    """Yield what of a document is not what was stored."""
    name, words = document["file"], document["text"]
    for check in (check_document, check_text):
        try:
            check(document)
        except ContractError as error:
            yield Finding("documents", name, error.message, RESTORE)
    if document["status"] != "completed" and chunks:
        yield Finding("documents", name, f"it is {document['status']} and has chunks", RESTORE)
    for chunk in chunks:
        if words[chunk.start_offset : chunk.end_offset] != chunk.text:
            yield Finding("documents", name, f"chunk-{chunk.id} is not a part of its text", RESTORE)


def _seal_documents(patient: Patient, hashes: dict[int, str]) -> Finding:
    """Seal documents that have no seal, or one that covers less, where that is wanted."""
    if patient.repair and patient.engine is not None:
        statement = text("UPDATE documents SET text_sha256 = :hash WHERE id = :id")
        with write_transaction(patient.engine) as connection:
            connection.execute(statement, [{"id": number, "hash": digest} for number, digest in hashes.items()])
            seal_documents(connection, list(hashes))
    fault = (
        f"{len(hashes)} documents of an earlier version have no seal over all of them: damage to their text, name or "
        "state would not be seen"
    )
    return Finding("documents", "seals", fault, "repair=true seals them as they are", patient.repair)


def check_attributes(patient: Patient) -> Iterator[Finding]:
    """Check that filters read what the documents' own rows say; else make their table anew."""
    if patient.engine is None:
        return
    with read_transaction(patient.engine) as connection:
        stale = find_stale(connection)
        sound = [number for number in stale if _is_sound(connection, number)]
    if not stale:
        return
    if patient.repair:
        with write_transaction(patient.engine) as connection:
            index_attributes(connection, sound)
    fault = f"of {len(stale)} documents filters read other values than the documents have"
    is_mended = patient.repair and sound == stale
    yield Finding("attributes", "filters", fault, "repair=true makes them anew", is_mended)


def _is_sound(connection: Connection, number: int) -> bool:
    """Tell whether a document's row is what was stored."""
    query = text(f"SELECT {DOCUMENT_COLUMNS} FROM documents d WHERE d.id = :id")  # noqa: S608  (a constant)
    return is_whole(connection.execute(query, {"id": number}).mappings().one())


def check_attached_files(patient: Patient) -> Iterator[Finding]:
    """Check what the API attached to vector stores (doctor_attached.py)."""
    if patient.engine is not None:
        yield from check_attached(patient.engine, repair=patient.repair)


def check_uploads(patient: Patient) -> Iterator[Finding]:
    """Check each uploaded file's bytes against the hash that its row has."""
    if patient.engine is None:
        return
    for upload in list_uploads(patient.engine):
        try:
            check_upload(patient.data, upload)
        except ContractError as error:
            yield Finding("uploads", upload.id, error.message, "Restore it from a backup, or upload it again.")


def check_indexes(patient: Patient) -> Iterator[Finding]:
    """Check that each store's index is whole and holds the database's chunks; else make it again."""
    if patient.engine is None:
        return
    for status in list_stores(patient.engine):
        fault = _find_index_fault(patient, find_store(patient.engine, status.store))
        if fault is None:
            continue
        words = ("action=rebuild", f"store={status.store}")
        command = write_next_command("retrieval/run.py", *words, data_dir=patient.data.root)
        remedy = f"repair=true makes it again, and so does: {command}"
        is_mended = False
        if patient.repair:
            from retrieval.ingest import rebuild

            try:
                rebuild(patient.data, status.store)
                is_mended = True
            except LoamError as error:
                remedy = error.message
        yield Finding("indexes", status.store, fault, remedy, is_mended)


def _find_index_fault(patient: Patient, store: Store) -> str | None:
    """Return what is wrong with a store's index, or None."""
    from retrieval.snapshot import load_snapshot, snapshot_folder

    folder = snapshot_folder(patient.data, store)
    if not folder.is_dir():
        return f"there is none of generation {store.generation}"
    index = load_snapshot(folder, store, IndexDevice.cpu)
    if index is None:
        return f"{folder} is damaged or of another version"
    if patient.engine is not None:
        query = text("SELECT id FROM chunks WHERE store_id = :id ORDER BY id")
        with read_transaction(patient.engine) as connection:
            numbers = connection.execute(query, {"id": store.id}).scalars().all()
        if index.numbers.tolist() != list(numbers):
            return f"{folder} holds {len(index.numbers)} chunks that are not the database's {len(numbers)}"
    return None


def check_models(patient: Patient) -> Iterator[Finding]:
    """Check each model's files against its manifest."""
    for folder in _list_folders(patient.data.models):
        try:
            verify_files(folder, ModelManifest.read(folder).files)
        except LoamError as error:
            yield Finding("models", folder.name, error.message, write_remedy(folder.name, patient.data))


def check_adapters(patient: Patient) -> Iterator[Finding]:
    """Check the files of each published adapter, those of checkpoints among them, against their manifest."""
    for run in _list_folders(patient.data.runs):
        for folder in list_adapters(run):
            try:
                verify_files(folder, AdapterManifest.read(folder).files)
            except LoamError as error:
                yield Finding("adapters", str(folder.relative_to(patient.data.runs)), error.message, RESTORE)


def check_leftovers(patient: Patient) -> Iterator[Finding]:
    """Look for what killed processes left: half-written folders, indexes of removed stores, bytes without a row."""
    data = patient.data
    found = [path for folder in (data.models, data.runs, data.indexes) for path in _list_abandoned(folder)]
    if patient.engine is not None:
        stores = {str(find_store(patient.engine, status.store).id) for status in list_stores(patient.engine)}
        for folder in _list_folders(data.indexes):
            if folder.name.isdigit():
                found += [folder] if folder.name not in stores else _list_abandoned(folder)
        found += find_leftovers(patient.engine, data)
    for path in found:
        if patient.repair:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            sync_directory(path.parent)
        size = "removed" if patient.repair else "left by a process that was killed, or of a store that is gone"
        yield Finding("leftovers", str(path.relative_to(data.root)), size, "repair=true removes it", patient.repair)


def _list_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _list_abandoned(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    limit = time.time() - ABANDONED_AFTER_S
    hidden = sorted(path for path in folder.iterdir() if path.name.startswith(".") and path.suffix in (".tmp", ".old"))
    return [path for path in hidden if path.lstat().st_mtime < limit]


CHECKS: tuple[tuple[str, Callable[[Patient], Iterator[Finding]]], ...] = (
    ("database", check_pages),
    ("chunks", check_chunks),
    ("documents", check_documents),
    ("attributes", check_attributes),
    (ATTACHED, check_attached_files),
    ("uploads", check_uploads),
    ("indexes", check_indexes),
    ("models", check_models),
    ("adapters", check_adapters),
    ("leftovers", check_leftovers),
)
"""Each check by name, in the order that they are made."""


def examine(data: DataDir, *, repair: bool, show: Callable[[str], None] = lambda _: None) -> list[Finding]:
    """Make every check.

    Args:
        data: The data directory.
        repair: Mend what is derived. Nothing is mended in a database that has damaged pages.
        show: Told each check's name as it begins.

    Returns:
        What was found, in the order of CHECKS.

    Raises:
        NotFound: There is no such folder.
    """
    if not data.root.is_dir():
        raise NotFound(f"data_dir: wanted a data directory, found none at {data.root}. Check the path.")
    findings = list(check_pages(Patient(data, None, repair=False)))
    is_damaged = any(not finding.is_mended for finding in findings)
    engine = None
    try:
        if data.database.is_file():
            engine = open_database(data.database)
    except LoamError as error:
        findings.append(Finding("database", str(data.database), error.message, find_remedy(error)))
    patient = Patient(data, engine, repair=repair and not is_damaged)
    try:
        for name, check in CHECKS[1:]:
            show(name)
            try:
                findings += tell_refusals(name, check(patient), data.root)
            except LoamError as error:
                findings.append(Finding(name, str(data.root), error.message, find_remedy(error)))
            except (TypeError, ValueError) as error:  # a damaged value may have any type
                findings.append(Finding(name, str(data.root), f"a value cannot be read ({error})", RESTORE))
    finally:
        if engine is not None:
            engine.dispose()
    return findings


def show_findings(findings: list[Finding], facts: dict[str, list[str]], request: Request) -> None:
    """Print what was found, and the next command."""
    has_data = request.checks != "machine" and request.data.root.is_dir()
    names = [*facts, *(name for name, _ in CHECKS if has_data)]
    for name in dict.fromkeys(names):
        found = [finding for finding in findings if finding.check == name]
        print(f"{name:<13} {'' if found else 'ok'}".rstrip())
        for fact in facts.get(name, []):
            print(f"  {fact}")
        for finding in found:
            print(f"  {'mended' if finding.is_mended else 'FAULT'}  {finding.subject}: {finding.fault}")
    open_ones = [finding for finding in findings if not finding.is_mended]
    if not open_ones:
        print("all is well")
    elif all(finding.remedy.startswith("repair=true") for finding in open_ones):
        print("next: " + write_next_command("scripts/doctor.py", "repair=true", data_dir=request.data.root))
    else:
        remedies = dict.fromkeys(f.remedy for f in open_ones if not f.remedy.startswith("repair=true"))
        print("next: " + "; ".join(remedies))


def main() -> None:
    """Check, print, and end with the right code."""
    show_help(sys.argv[1:], __doc__)
    request = parse_arguments(sys.argv[1:])
    configure_logging(level="ERROR")
    show = (lambda name: print(f"checking {name}", file=sys.stderr)) if sys.stderr.isatty() else (lambda _: None)
    findings: list[Finding] = []
    facts: dict[str, list[str]] = {}
    if request.checks != "data":
        from scripts.doctor_machine import examine_machine, find_wanted

        wanted = find_wanted(request.data, request.profile, request.model, request.host, int(request.port))
        findings, facts = examine_machine(wanted, show)
    if request.checks == "all" and not request.data.root.is_dir():
        facts["data"] = [f"there is no data directory at {request.data.root} yet, so nothing in it was checked"]
    elif request.checks != "machine":
        findings += examine(request.data, repair=request.repair == "true", show=show)
    is_well = all(finding.is_mended for finding in findings)
    if request.output == "json":
        report = {"data_dir": str(request.data.root), "ok": is_well, "facts": facts}
        print(json.dumps({**report, "findings": [asdict(finding) for finding in findings]}))
    else:
        show_findings(findings, facts, request)
    sys.exit(0 if is_well else ContractError.exit_code)


if __name__ == "__main__":
    run_command(main)
