"""Uploaded files: bytes in files/<id>, a row in the database; a file whose id was handed out is on disk, unchanged.

    write to a temporary name → fsync → rename → fsync of the folder → row committed → id returned

Without a row there is no file: bytes that a killed process left are removed by `remove_leftovers`. Ids are made here,
never from a client's name. Does not know HTTP, nor what the bytes mean.
"""

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection, Engine, RowMapping, text

from core.errors import ContractError, InputError, InvalidFile, LoamError, NotFound, describe_os_error
from core.failpoints import reach
from core.layout import NAME_PATTERN, DataDir, sha256_file, sync_directory
from core.spelling import reveal
from retrieval.database import read_transaction, write_transaction
from retrieval.departures import find_departure, note_departure

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
        expires_at: Unix seconds after which it is as if deleted; None: it stays.
    """

    id: str
    owner: str
    name: str
    purpose: str
    size_bytes: int
    sha256: str
    created_at: int
    expires_at: int | None = None


class UploadWriter:
    """A file on its way in: written piece by piece, then kept or discarded."""

    def __init__(self, data: DataDir, max_bytes: int) -> None:
        """Begin a file under a temporary name.

        Args:
            data: The data directory.
            max_bytes: A longer one is refused.

        Raises:
            StorageFull: The disk is full.
        """
        self._id = f"{ID_PREFIX}{secrets.token_hex(12)}"
        self._path = data.files / self._id
        self._temporary = self._path.with_name(f".{self._id}.tmp")
        self._max_bytes = max_bytes
        self._digest, self._size = hashlib.sha256(), 0
        try:
            data.files.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("xb")
        except OSError as error:
            raise describe_os_error(error, "keep an uploaded file") from error

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._digest.hexdigest()

    def write(self, piece: bytes) -> None:
        """Write the next bytes.

        Raises:
            InvalidFile: The file is too long.
            StorageFull: The disk is full.
        """
        self._size += len(piece)
        if self._size > self._max_bytes:
            raise InvalidFile(f"wanted a file of at most {self._max_bytes} bytes, found more. Split it.", param="file")
        self._digest.update(piece)
        try:
            self._file.write(piece)
        except OSError as error:
            raise describe_os_error(error, "keep an uploaded file") from error

    def keep(self, engine: Engine, *, owner: str, name: str, purpose: str, lifetime_s: int | None = None) -> Upload:
        """Keep what was written; bytes and row are on disk when this returns.

        Args:
            engine: The database.
            owner: Whose it is.
            name: As the client calls it.
            purpose: What it is for.
            lifetime_s: Seconds after which it ends; None: never.

        Raises:
            InvalidFile: Nothing was written.
            InputError: The name is empty or too long.
            StorageFull: The disk is full; nothing was kept.
        """
        if not 1 <= len(name) <= MAX_NAME_CHARS:
            wanted = f"wanted a file name of 1 to {MAX_NAME_CHARS} characters"
            raise InputError(f"{wanted}, found one of {len(name)}. Rename the file.", param="file")
        name = reveal(name)
        if not self._size:
            raise InvalidFile("wanted a file with something in it, found an empty one.", param="file")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            reach("upload.synced")
            self._temporary.rename(self._path)
            reach("upload.renamed")
            sync_directory(self._path.parent)
        except OSError as error:
            raise describe_os_error(error, f"keep the file {name}") from error
        now = int(time.time())
        ends = None if lifetime_s is None else now + lifetime_s
        upload = Upload(self._id, owner, name, purpose, self._size, self._digest.hexdigest(), now, ends)
        try:
            _insert(engine, upload)
        except LoamError:  # rolled back; after any other end the row may be there, and then the bytes must be
            self._path.unlink(missing_ok=True)
            raise
        reach("upload.committed")
        return upload

    def discard(self) -> None:
        """Remove what was not kept; does nothing to what was."""
        with contextlib.suppress(OSError):  # it flushes, which a full disk refuses
            self._file.close()
        self._temporary.unlink(missing_ok=True)


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
    writer = UploadWriter(data, max_bytes)
    try:
        for piece in pieces:
            writer.write(piece)
        return writer.keep(engine, owner=owner, name=name, purpose=purpose)
    finally:
        writer.discard()


def _insert(engine: Engine, upload: Upload) -> None:
    statement = text(
        "INSERT INTO files (id, owner, name, purpose, size_bytes, sha256, created_at, expires_at) "
        "VALUES (:id, :owner, :name, :purpose, :size_bytes, :sha256, :created_at, :expires_at)"
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
    query = text(f"SELECT * FROM files WHERE id = :id AND owner = :owner AND {_IS_THERE}")  # noqa: S608  (a constant)
    row = None
    if NAME_PATTERN.fullmatch(upload_id):
        place = {"id": upload_id, "owner": owner, "now": int(time.time())}
        with read_transaction(engine) as connection:
            row = connection.execute(query, place).mappings().first()
    if row is None:
        raise NotFound(f"file {upload_id!r}: there is none. Upload it first.", param="file_id")
    return _to_upload(row)


def list_page(
    engine: Engine, owner: str, *, after: str | None, limit: int, is_rising: bool, purpose: str | None
) -> tuple[list[Upload], bool]:
    """Return one page of an owner's files.

    Args:
        engine: The database.
        owner: Whose.
        after: Id of the last file of the page before; None: from the beginning.
        limit: Most files of the page.
        is_rising: Whether the oldest come first.
        purpose: Only those uploaded for it; None: all.

    Returns:
        The files, and whether more follow.

    Raises:
        NotFound: The owner has no file of the id `after`, and had none within the last hour.
    """
    sign, word = (">", "ASC") if is_rising else ("<", "DESC")
    query = text(
        f"SELECT * FROM files WHERE owner = :owner AND {_IS_THERE} AND (:purpose IS NULL OR purpose = :purpose) "  # noqa: S608
        f"AND (:id IS NULL OR (created_at, id) {sign} (:created_at, :id)) "
        f"ORDER BY created_at {word}, id {word} LIMIT :limit"
    )
    with read_transaction(engine) as connection:
        moment = None if after is None else _find_moment(connection, owner, after)
        place = {"id": after, "created_at": moment}
        values = {"owner": owner, "purpose": purpose, "now": int(time.time()), "limit": limit + 1, **place}
        uploads = [_to_upload(row) for row in connection.execute(query, values).mappings()]
    return uploads[:limit], len(uploads) > limit


def _find_moment(connection: Connection, owner: str, upload_id: str) -> int:
    """Return when an owner's file was made, which may have ended or been deleted since.

    Raises:
        NotFound: There is none, nor was there one within the last hour.
    """
    query = text("SELECT created_at FROM files WHERE id = :id AND owner = :owner")
    moment = connection.execute(query, {"id": upload_id, "owner": owner}).scalar()
    if moment is not None:
        return int(moment)
    gone = find_departure(connection, _name_listing(owner), upload_id)
    if gone is None:
        raise NotFound(f"file {upload_id!r}: there is none. Upload it first.", param="after")
    return gone[0]


def _name_listing(owner: str) -> str:
    return f"files/{owner}"


_IS_THERE = "(expires_at IS NULL OR expires_at > :now)"


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


def open_upload(data: DataDir, upload: Upload) -> BinaryIO:
    """Open a file's bytes for reading; whoever has them open reads to the end even if it is deleted meanwhile.

    Raises:
        ContractError: They are gone or cut.
    """
    path = data.files / upload.id
    try:
        file = path.open("rb")
    except OSError as error:
        raise ContractError(f"{upload.id}: its bytes cannot be read. Restore them from a backup.") from error
    if os.fstat(file.fileno()).st_size != upload.size_bytes:
        file.close()
        raise ContractError(f"{upload.id}: its bytes are not as they were uploaded. Restore them from a backup.")
    return file


def list_expired_uploads(engine: Engine) -> list[Upload]:
    """Return the files whose time has come, everybody's; no owner finds them any more."""
    query = text("SELECT * FROM files WHERE expires_at <= :now")
    with read_transaction(engine) as connection:
        return [_to_upload(row) for row in connection.execute(query, {"now": int(time.time())}).mappings()]


def delete_upload(engine: Engine, data: DataDir, upload_id: str, owner: str) -> None:
    """Remove an owner's file: its row, then its bytes.

    Raises:
        NotFound: There is none, or it is another's.
    """
    remove_upload(engine, data, find_upload(engine, upload_id, owner))


def remove_upload(engine: Engine, data: DataDir, upload: Upload) -> None:
    """Remove a file: its row, then its bytes."""
    with write_transaction(engine) as connection:
        connection.execute(text("DELETE FROM files WHERE id = :id"), {"id": upload.id})
        note_departure(connection, _name_listing(upload.owner), upload.id, upload.created_at)
    reach("upload.deleted")
    (data.files / upload.id).unlink(missing_ok=True)
    sync_directory(data.files)


def find_leftovers(engine: Engine, data: DataDir) -> list[Path]:
    """Return bytes without a row that are too old to belong to an upload that is still coming."""
    limit = time.time() - ABANDONED_AFTER_S
    return [path for path in _list_rowless(engine, data) if path.stat().st_mtime < limit]


def remove_leftovers(engine: Engine, data: DataDir) -> int:
    """Remove the bytes that killed processes left; return how many files.

    For a gateway that starts: it holds the data directory's lock, so that nobody else takes uploads. Among what goes
    are the bytes of files whose deletion was cut short.
    """
    leftovers = _list_rowless(engine, data)
    for path in leftovers:
        path.unlink(missing_ok=True)
    if leftovers:
        sync_directory(data.files)
    return len(leftovers)


def _list_rowless(engine: Engine, data: DataDir) -> list[Path]:
    if not data.files.is_dir():
        return []
    known = {upload.id for upload in list_uploads(engine)}
    return sorted(path for path in data.files.iterdir() if path.name not in known)
