"""core.layout: names cannot escape, writes are whole or not at all."""

import ctypes
import errno
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError, ContractError, NotFound, StorageFull
from core.layout import (
    DataDir,
    check_name,
    read_sealed_json,
    sha256_bytes,
    sha256_file,
    write_file,
    write_folder,
    write_json,
    write_sealed_json,
)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "a\0b", ".hidden", "-x", "a b", "x" * 129, "ü"])
def test_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="run_id: wanted 1 to 128 letters"):
        check_name(name, "run_id")


@given(st.text(max_size=200))
def test_an_accepted_name_stays_in_its_folder(name: str) -> None:
    data = DataDir(Path("/srv/loam"))
    try:
        folder = data.run(name)
    except ConfigError:
        return
    assert folder.parent == data.runs
    assert os.path.normpath(folder) == str(folder)


def test_a_written_file_replaces_the_old_one_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_file(path, "old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]
    assert sha256_file(path) == sha256_bytes(b"new")


def test_a_full_disk_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageFull, match=r"write .*file\.json"):
        write_json(path, {"new": 2})
    assert path.read_text() == '{\n  "old": 1\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    final = tmp_path / "adapter"
    with write_folder(final) as partial:
        (partial / "a").write_text("1")
        assert not final.exists()
    assert [path.name for path in final.iterdir()] == ["a"]
    with write_folder(final) as partial:
        (partial / "b").write_text("2")
    assert [path.name for path in final.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_folder_that_is_replaced_is_there_at_every_moment(tmp_path: Path) -> None:
    final, missing, is_over = tmp_path / "adapter", [0], threading.Event()

    def look() -> None:
        while not is_over.is_set():
            missing[0] += not os.path.lexists(final)

    with write_folder(final):
        pass
    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(300):
            with write_folder(final, is_cache=True):
                pass
    finally:
        is_over.set()
        reader.join()
    assert missing == [0]


def test_a_file_system_that_cannot_exchange_is_given_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(renameat2=refuse))
    final = tmp_path / "adapter"
    for name in ("a", "b"):
        with write_folder(final) as partial:
            (partial / name).write_text("1")
    assert [path.name for path in final.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_folder_that_can_be_made_again_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    with write_folder(tmp_path / "cache", is_cache=True) as partial:
        (partial / "a").write_text("1")
    assert (tmp_path / "cache" / "a").read_text() == "1"
    assert flushed == []
    with write_folder(tmp_path / "adapter") as partial:
        (partial / "a").write_text("1")
    assert len(flushed) == 3  # the file, the folder, and the folder that it lies in


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    final = tmp_path / "adapter"
    with write_folder(final) as partial:
        (partial / "a").write_text("1")
    with pytest.raises(NotFound), write_folder(final) as partial:
        (partial / "missing" / "b").write_text("2")
    assert [path.name for path in final.iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


SEALED = {"name": "Größe", "counts": [1, 2.5, None], "files": {"b": "x", "a": "y"}}


def test_a_sealed_object_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_sealed_json(tmp_path / "sealed.json", SEALED)
    found = read_sealed_json(tmp_path / "sealed.json")
    assert found == SEALED
    assert list(found["files"]) == ["b", "a"]


def test_a_sealed_object_that_says_the_same_in_other_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sealed.json"
    write_sealed_json(path, SEALED)
    written = path.read_bytes()
    value = json.loads(written)
    others = [
        written[:-1],
        written + b"\n",
        written.replace(b"\n", b"\r\n"),
        written.replace(b": ", b":  ", 1),
        b"\xef\xbb\xbf" + written,
        written.decode().encode("utf-16"),
        json.dumps(value).encode(),
        json.dumps({"sha256": value.pop("sha256"), **value}, indent=2, ensure_ascii=False).encode() + b"\n",
        written.replace(b"{", b'{"name": 1, ', 1),
        written.replace("Größe".encode(), b"\\ud800"),
        b"[]",
        b'{"sha256": 1}',
        b"[" * 100_000,
        b"",
    ]
    for other in others:
        path.write_bytes(other)
        with pytest.raises(ContractError, match="sealed"):
            read_sealed_json(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_sealed_json(path)
