"""Uploads: streamed, under ids of our own, whole or not at all, an owner's own."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from core.errors import ContractError, InvalidFile, NotFound, StorageFull
from core.layout import DataDir, sha256_bytes
from retrieval.database import open_database
from retrieval.uploads import (
    Upload,
    check_upload,
    delete_upload,
    find_leftovers,
    find_upload,
    list_uploads,
    remove_leftovers,
    save_upload,
)


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path)


@pytest.fixture
def engine(data: DataDir) -> Engine:
    return open_database(data.database)


def keep(engine: Engine, data: DataDir, *pieces: bytes, owner: str = "a", max_bytes: int = 1000) -> Upload:
    name = "../../etc/passwd\0"
    return save_upload(engine, data, iter(pieces), owner=owner, name=name, purpose="assistants", max_bytes=max_bytes)


def test_bytes_and_row_are_kept_under_an_id_of_ours(engine: Engine, data: DataDir) -> None:
    upload = keep(engine, data, b"one ", b"two")
    assert find_upload(engine, upload.id, "a") == upload
    assert check_upload(data, upload).read_bytes() == b"one two"
    assert (upload.size_bytes, upload.sha256) == (7, sha256_bytes(b"one two"))
    assert [path.name for path in data.files.iterdir()] == [upload.id]
    assert upload.name == "../../etc/passwd\\x00"


def test_another_owner_sees_nothing(engine: Engine, data: DataDir) -> None:
    upload = keep(engine, data, b"secret")
    for refused in (find_upload, lambda engine, number, owner: delete_upload(engine, data, number, owner)):
        with pytest.raises(NotFound, match="there is none"):
            refused(engine, upload.id, "b")
    assert list_uploads(engine, "b") == []
    assert list_uploads(engine, "a") == list_uploads(engine) == [upload]


def test_one_that_is_too_long_leaves_nothing(engine: Engine, data: DataDir) -> None:
    with pytest.raises(InvalidFile, match="at most 10 bytes"):
        keep(engine, data, b"12345", b"123456", max_bytes=10)
    assert list(data.files.iterdir()) == []
    assert list_uploads(engine) == []


def test_a_client_that_leaves_half_way_leaves_nothing(engine: Engine, data: DataDir) -> None:
    def break_off() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        save_upload(engine, data, break_off(), owner="a", name="x", purpose="assistants", max_bytes=1000)
    assert list(data.files.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_nothing(engine: Engine, data: DataDir) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    earlier = keep(engine, data, b"earlier")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageFull, match="Free some disk space"):
            keep(engine, data, bytes(200_000), max_bytes=1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in data.files.iterdir()] == [earlier.id]
    assert list_uploads(engine) == [earlier]
    assert check_upload(data, keep(engine, data, b"later")).read_bytes() == b"later"


def test_changed_and_missing_bytes_are_refused(engine: Engine, data: DataDir) -> None:
    upload = keep(engine, data, b"one")
    (data.files / upload.id).write_bytes(b"two")
    with pytest.raises(ContractError, match="found other bytes"):
        check_upload(data, upload)
    (data.files / upload.id).unlink()
    with pytest.raises(ContractError, match="found nothing"):
        check_upload(data, upload)


def test_a_deleted_file_is_gone(engine: Engine, data: DataDir) -> None:
    upload = keep(engine, data, b"one")
    delete_upload(engine, data, upload.id, "a")
    assert list_uploads(engine) == []
    assert list(data.files.iterdir()) == []


def test_leftovers_are_found_after_a_while_and_removed_by_a_start(engine: Engine, data: DataDir) -> None:
    upload = keep(engine, data, b"one")
    old, fresh = data.files / "file-old", data.files / ".file-fresh.tmp"
    for path in (old, fresh):
        path.write_bytes(b"x")
    for path in (old, data.files / upload.id):
        os.utime(path, (0, 0))
    assert find_leftovers(engine, data) == [old]  # beside a gateway, the other may be an upload that is coming
    assert remove_leftovers(engine, data) == 2
    assert [path.name for path in data.files.iterdir()] == [upload.id]
