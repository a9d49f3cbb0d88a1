"""Uploaded files: bytes in files/<id>, a row in the database; a file whose id was handed out is on disk, unchanged.

    write to a temporary name → fsync → rename → fsync of the folder → row committed → id returned

Without a row there is no file: bytes that a killed process left are removed by `remove_leftovers`. Ids are made here,
never from a client's name. Does not know HTTP, nor what the bytes mean.
"""

import hashlib
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, RowMapping, text

from core.errors import ContractError, InputError, InvalidFile, LoamError, NotFound, describe_os_error
from core.failpoints import reach
from core.layout import NAME_PATTERN, DataDir, sha256_file, sync_directory
from core.spelling import reveal
from retrieval.database import read_transaction, write_transaction

ID_PREFIX = "file-"
MAX_NAME_CHARS = 1024
ABANDONED_AFTER_S = 3600
"""Bytes without a row that are older than this belong to a process that was killed."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded file as the database has it.

    Attributes:
        id: Made by the server; also the name of its bytes below files/.
        owner: Whose it is.
        name: As the client called it, unseen signs revealed (core/spelling.py); shown, never used as a path.
        purpose: What it was uploaded for.
        size_bytes: Of its bytes.
        sha256: Of its bytes.
        created_at: Unix seconds.
    """

    id: str
    owner: str
    name: str
    purpose: str
    size_bytes: int
    sha256: str
    created_at: int


def save_upload(
    engine: Engine, data: DataDir, pieces: Iterable[bytes], *, owner: str, name: str, purpose: str, max_bytes: int
) -> Upload:
    """Keep a file; its bytes and its row are on disk when this returns.

    Args:
        engine: The database.
        data: The data directory.
        pieces: The bytes, as they come; never all in memory.
        owner: Whose it is.
        name: As the client calls it, at most MAX_NAME_CHARS long.
        purpose: What it is for.
        max_bytes: A longer one is refused.

    Returns:
        The file.

    Raises:
        InvalidFile: It is longer than that.
        InputError: The name is empty or too long.
        StorageFull: The disk is full; nothing was kept.
    """
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        wanted = f"wanted a file name of 1 to {MAX_NAME_CHARS} characters"
        raise InputError(f"{wanted}, found one of {len(name)}. Rename the file.", param="file")
    name = reveal(name)
    number = f"{ID_PREFIX}{secrets.token_hex(12)}"
    path = data.files / number
    temporary = path.with_name(f".{number}.tmp")
    try:
        data.files.mkdir(parents=True, exist_ok=True)
        size, sha256 = _write_pieces(temporary, pieces, max_bytes)
        reach("upload.synced")
        temporary.rename(path)
        reach("upload.renamed")
        sync_directory(data.files)
    except OSError as error:
        raise describe_os_error(error, f"keep the file {name}") from error
    finally:
        temporary.unlink(missing_ok=True)
    upload = Upload(number, owner, name, purpose, size, sha256, int(time.time()))
    try:
        _insert(engine, upload)
    except LoamError:  # rolled back; after any other end the row may be there, and then the bytes must be
        path.unlink(missing_ok=True)
        raise
    reach("upload.committed")
    return upload


def _write_pieces(path: Path, pieces: Iterable[bytes], max_bytes: int) -> tuple[int, str]:
    """Write and flush a new file; return its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for piece in pieces:
            size += len(piece)
            if size > max_bytes:
                raise InvalidFile(f"wanted a file of at most {max_bytes} bytes, found more. Split it.", param="file")
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def _insert(engine: Engine, upload: Upload) -> None:
    statement = text(
        "INSERT INTO files (id, owner, name, purpose, size_bytes, sha256, created_at) "
        "VALUES (:id, :owner, :name, :purpose, :size_bytes, :sha256, :created_at)"
    )
    values = {key: getattr(upload, key) for key in Upload.__slots__}
    with write_transaction(engine) as connection:
        connection.execute(statement, values)
        reach("upload.written")


def find_upload(engine: Engine, upload_id: str, owner: str) -> Upload:
    """Return an owner's file by id.

    Raises:
        NotFound: There is none, or it is another's.
    """
    query = text("SELECT * FROM files WHERE id = :id AND owner = :owner")
    row = None
    if NAME_PATTERN.fullmatch(upload_id):
        with read_transaction(engine) as connection:
            row = connection.execute(query, {"id": upload_id, "owner": owner}).mappings().first()
    if row is None:
        raise NotFound(f"file {upload_id!r}: there is none. Upload it first.", param="file_id")
    return _to_upload(row)


def list_uploads(engine: Engine, owner: str | None = None) -> list[Upload]:
    """Return an owner's files, or everybody's, the oldest first."""
    query = text("SELECT * FROM files WHERE :owner IS NULL OR owner = :owner ORDER BY created_at, id")
    with read_transaction(engine) as connection:
        return [_to_upload(row) for row in connection.execute(query, {"owner": owner}).mappings()]


def _to_upload(row: RowMapping) -> Upload:
    return Upload(**{key: row[key] for key in Upload.__slots__})


def check_upload(data: DataDir, upload: Upload) -> Path:
    """Return where a file's bytes lie, once they are what was uploaded.

    Raises:
        ContractError: They are gone or changed.
    """
    path = data.files / upload.id
    if not path.is_file() or sha256_file(path) != upload.sha256:
        found = "other bytes" if path.is_file() else "nothing"
        raise ContractError(f"{path}: wanted the file as it was uploaded, found {found}. Restore it from a backup.")
    return path


def delete_upload(engine: Engine, data: DataDir, upload_id: str, owner: str) -> None:
    """Remove an owner's file: its row, then its bytes.

    Raises:
        NotFound: There is none, or it is another's.
    """
    upload = find_upload(engine, upload_id, owner)
    with write_transaction(engine) as connection:
        connection.execute(text("DELETE FROM files WHERE id = :id"), {"id": upload.id})
    reach("upload.deleted")
    (data.files / upload.id).unlink(missing_ok=True)
    sync_directory(data.files)


def find_leftovers(engine: Engine, data: DataDir) -> list[Path]:
    """Return bytes without a row that are too old to belong to an upload that is still coming."""
    if not data.files.is_dir():
        return []
    known = {upload.id for upload in list_uploads(engine)}
    limit = time.time() - ABANDONED_AFTER_S
    return sorted(path for path in data.files.iterdir() if path.name not in known and path.stat().st_mtime < limit)


def remove_leftovers(engine: Engine, data: DataDir) -> int:
    """Remove the bytes that killed processes left; return how many files."""
    leftovers = find_leftovers(engine, data)
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)
