"""Where everything lies under the data directory, and how it is written: whole or not at all.

    models/<name>/                    base model, Hugging Face layout, safetensors, model.json (sha256 of every file)
    runs/<run_id>/                    config.yaml, inputs.json, events.jsonl, checkpoints/, adapter/, report.md
    files/<file_id>                   uploaded bytes
    loam.db                           database (SQLite)
    indexes/<store_id>/<generation>/  FAISS and lexical snapshots
    reports/<name>/                   reports

Does not know what the files mean; the manifests, events and stores do.
"""

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigError, ContractError, describe_os_error
from core.failpoints import reach

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What a model, run or store may be called: it becomes a folder's name, so nothing that could leave the folder."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True, slots=True)
class DataDir:
    """The data directory and the names below it. Creates nothing by itself."""

    root: Path

    @property
    def models(self) -> Path:
        """Folder of the base models."""
        return self.root / "models"

    @property
    def runs(self) -> Path:
        """Folder of the training runs."""
        return self.root / "runs"

    @property
    def files(self) -> Path:
        """Folder of the uploaded files, named by server-made ids."""
        return self.root / "files"

    @property
    def database(self) -> Path:
        """The SQLite database: documents, chunks, embeddings, and all of the gateway's state."""
        return self.root / "loam.db"

    @property
    def indexes(self) -> Path:
        """Folder of the derived index snapshots."""
        return self.root / "indexes"

    @property
    def reports(self) -> Path:
        """Folder of the reports."""
        return self.root / "reports"

    def model(self, name: str) -> Path:
        """Folder of one base model."""
        return self.models / check_name(name, "model")

    def run(self, run_id: str) -> Path:
        """Folder of one training run."""
        return self.runs / check_name(run_id, "run_id")


def find_data_dir(folder: Path) -> Path:
    """Return the data directory that a model's or a run's folder, as `DataDir` names them, lies in."""
    return folder.parent.parent


def default_data_dir(otherwise: Path = Path("data")) -> Path:
    """Return the data directory of a command that names none: LOAM_DATA_DIR, as conf/paths reads it, too.

    Args:
        otherwise: What it is where LOAM_DATA_DIR is not set; a relative one begins at the working directory.
    """
    return Path(os.environ.get("LOAM_DATA_DIR", otherwise))


def make_data_dir(root: Path) -> None:
    """Make a data directory that only its owner may enter (0700); one that is there keeps its rights.

    Raises:
        StorageFull: There is no space for it.
        InputError: It cannot be made there.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise describe_os_error(error, f"make {root}") from error


def check_name(name: str, what: str) -> str:
    """Return the name if it can safely be a folder's name.

    Args:
        name: As the user typed it.
        what: The key that holds it, for the message.

    Raises:
        ConfigError: The name is empty, too long, or holds anything but letters, digits, dot, dash and underscore.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError(
            f"{what}: wanted 1 to 128 letters, digits, dots, dashes or underscores, starting with a letter or digit; "
            f"found {name!r}. Choose another name.",
            param=what,
        )
    return name


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to disk: a rename is durable only after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Flush every file and directory below a path to disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            descriptor = os.open(Path(folder) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(folder))


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all: temporary name, fsync, rename, fsync of the folder.

    Args:
        path: Where it goes; missing parent folders are made.
        data: Bytes, or text that is written as UTF-8.

    Raises:
        StorageFull: The disk is full; the old content, if any, still stands.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        reach("file.synced")
        temporary.replace(path)
        reach("file.renamed")
        sync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise describe_os_error(error, f"write {path}") from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_file(path, _encode_json(value))


def _encode_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def write_sealed_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object with a checksum of itself, its last key `sha256`, whole or not at all."""
    write_file(path, _seal_json(content))


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Return what `write_sealed_json` wrote, without the checksum.

    The file is compared byte for byte with what would be written now, so that no byte of it, its last newline
    included, can change unseen.

    Raises:
        ContractError: It is not what was written.
        OSError: It cannot be read.
    """
    found = path.read_bytes()
    try:
        content: dict[str, Any] = json.loads(found)
        del content["sha256"]
        wanted = _seal_json(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContractError(f"{path}: cannot be read ({error})") from error
    if found != wanted:
        raise ContractError(f"{path}: its checksum differs")
    return content


def _seal_json(content: dict[str, Any]) -> bytes:
    return _encode_json({**content, "sha256": sha256_bytes(json.dumps(content, sort_keys=True).encode())})


@contextmanager
def write_folder(path: Path, *, is_cache: bool = False) -> Iterator[Path]:
    """Fill a folder under a temporary name and publish it whole by one rename.

    An existing folder is replaced only when the body has ended well; on any error the temporary folder is removed.
    Whoever reads, and whoever comes after a kill, finds the old folder or the new one.

    Args:
        path: The final name.
        is_cache: It can be made again, and whoever reads it checks every byte: nothing waits until it is on disk.

    Yields:
        The temporary folder to write into.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if not is_cache:
            sync_tree(temporary)
        reach("folder.synced")
        if path.exists():
            _exchange(temporary, path)  # the temporary name is the old folder's from here on
        else:
            temporary.rename(path)
        reach("folder.renamed")
        if not is_cache:
            sync_directory(path.parent)
    except OSError as error:
        raise describe_os_error(error, f"write {path}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(one: Path, other: Path) -> None:
    """Let two paths change places in one step. Source: rename(2), RENAME_EXCHANGE.

    A file system that cannot do it (some over a network) is given two renames, between which a kill leaves neither.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), os.fspath(other))
    retired = one.with_name(f"{one.name}.old")
    other.rename(retired)
    one.rename(other)
    retired.rename(one)
