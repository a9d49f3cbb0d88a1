"""Copy a data directory while it is in use, check a copy, bring it back.

    python scripts/backup.py create BACKUP [--data-dir data] [--runs]    one state of the database and all uploads
    python scripts/backup.py verify BACKUP                               every byte against the backup's manifest
    python scripts/backup.py restore BACKUP --data-dir NEW               into an empty directory; indexes are made again

Ingestion and the gateway go on meanwhile. Indexes are not copied, they come from the database; models come from where
they came from (scripts/models.py). With --runs the published adapters are copied too. A backup holds what was deleted
after it: keep it no longer than your promises about deletion allow.
"""

from core.entry import begin_program

begin_program()

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from sqlalchemy import text

from core.config import run_command
from core.errors import Conflict, ContractError, InputError, LoamError, NotFound, describe_os_error
from core.layout import DataDir, default_data_dir, read_sealed_json, sha256_file, write_folder, write_sealed_json
from core.logs import configure_logging
from core.manifest import ADAPTER_MANIFEST, AdapterManifest, list_adapters, verify_files
from core.next_command import write_next_command
from retrieval.config import IndexDevice
from retrieval.database import (
    copy_database,
    find_damage,
    open_database,
    read_transaction,
    truncate_log,
    write_transaction,
)
from retrieval.status import list_stores
from retrieval.store import find_store
from retrieval.uploads import list_uploads

MANIFEST = "backup.json"
FORMAT = 1


def create_backup(data: DataDir, target: Path, *, has_runs: bool) -> dict[str, Any]:
    """Write a backup, whole or not at all.

    Args:
        data: The data directory; it may be in use.
        target: A folder that does not exist.
        has_runs: Whether the adapters of the training runs are copied.

    Returns:
        The manifest.

    Raises:
        NotFound: There is no database.
        Conflict: The target exists.
        ContractError: The database, an upload or an adapter is damaged: a backup must not replace a good one with it.
        StorageFull: There is no space; nothing half-written was left.
    """
    if not data.database.is_file():
        raise NotFound(f"data_dir: wanted a database, found none at {data.database}. Check --data-dir.")
    if target.exists():
        raise Conflict(f"{target}: wanted a new folder for the backup, found it there. Choose another name.")
    with write_folder(target) as temporary:
        temporary.chmod(0o700)  # it holds every document: as private as what it is a copy of
        copy = DataDir(temporary)
        engine = open_database(data.database)
        try:
            copy_database(engine, copy.database)
        finally:
            engine.dispose()
        faults = find_damage(copy.database)
        if faults:
            raise ContractError(
                f"{data.database}: it is damaged ({faults[0]}). Run: python scripts/doctor.py {data.root}"
            )
        _copy_uploads(data, copy)
        if has_runs:
            _copy_adapters(data, copy)
        manifest = _describe(temporary)
        write_sealed_json(temporary / MANIFEST, manifest)
    return manifest


def _copy_uploads(data: DataDir, copy: DataDir) -> None:
    """Copy the bytes of every row; a file that was deleted since the database was copied leaves the copy, too."""
    engine = open_database(copy.database)
    try:
        for upload in list_uploads(engine):
            source, target = data.files / upload.id, copy.files / upload.id
            copy.files.mkdir(exist_ok=True)
            try:
                shutil.copyfile(source, target)
            except FileNotFoundError:
                _forget_deleted(data, copy, upload.id)
                continue
            if sha256_file(target) != upload.sha256:
                raise ContractError(f"{source}: it is not what was uploaded. Run: python scripts/doctor.py {data.root}")
    finally:
        truncate_log(engine)
        engine.dispose()


def _forget_deleted(data: DataDir, copy: DataDir, upload_id: str) -> None:
    """Remove from the copy a file that has been deleted, and what stores made of it.

    Raises:
        ContractError: It has not been deleted: its bytes are lost.
    """
    from serve.attached_files import detach_everywhere

    query = text("SELECT COUNT(*) FROM files WHERE id = :id")
    engine = open_database(data.database)
    try:
        with read_transaction(engine) as connection:
            if connection.execute(query, {"id": upload_id}).scalar():
                raise ContractError(
                    f"{data.files / upload_id}: its bytes are gone. Run: python scripts/doctor.py {data.root}"
                )
    finally:
        engine.dispose()
    engine = open_database(copy.database)
    try:
        detach_everywhere(engine, upload_id)
        with write_transaction(engine) as connection:
            connection.execute(text("DELETE FROM files WHERE id = :id"), {"id": upload_id})
    finally:
        engine.dispose()


def _copy_adapters(data: DataDir, copy: DataDir) -> None:
    """Copy each run's published adapters with its configuration, events and report.

    Raises:
        ContractError: An adapter is damaged.
    """
    for run in sorted(data.runs.iterdir()) if data.runs.is_dir() else []:
        if run.name.startswith("."):
            continue
        adapters = list_adapters(run)
        for adapter in adapters:
            _copy_adapter(adapter, copy.runs / run.name / adapter.name, data)
        for name in ("config.yaml", "inputs.json", "events.jsonl", "report.md") if adapters else ():
            if (run / name).is_file():
                shutil.copyfile(run / name, copy.runs / run.name / name)


def _copy_adapter(source: Path, target: Path, data: DataDir) -> None:
    shutil.copytree(source, target)
    if (target / ADAPTER_MANIFEST).is_file():
        try:
            verify_files(target, AdapterManifest.read(target).files)
        except LoamError as error:
            raise ContractError(
                f"{source}: it is not what was published. Run: python scripts/doctor.py {data.root}"
            ) from error


def _describe(folder: Path) -> dict[str, Any]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "format": FORMAT,
        "created_at": int(time.time()),
        "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths},
        "size_bytes": sum(path.stat().st_size for path in paths),
    }


def verify_backup(folder: Path) -> dict[str, Any]:
    """Check every byte of a backup and return its manifest.

    Raises:
        NotFound: It is no backup.
        ContractError: Something is missing, changed or extra; all is named.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise NotFound(f"{folder}: wanted a backup with {MANIFEST}, found none. Check the path.")
    try:
        manifest = read_sealed_json(path)
    except ContractError as error:
        raise ContractError(f"{error.message}. Use another backup.") from error
    if manifest["format"] != FORMAT:
        raise ContractError(
            f"{path}: wanted a backup of format {FORMAT}, found {manifest['format']}. Use the Loam that made it."
        )
    files = manifest["files"]
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} - {MANIFEST}
    faults = [f"{name} is missing" for name in sorted(files.keys() - found)]
    faults += [f"{name} is not in the manifest" for name in sorted(found - files.keys())]
    faults += [
        f"{name} has changed" for name in sorted(found & files.keys()) if sha256_file(folder / name) != files[name]
    ]
    if faults:
        raise ContractError(f"{folder}: {'; '.join(faults)}. Use another backup.")
    return manifest


def restore_backup(folder: Path, data: DataDir) -> dict[str, int]:
    """Bring a backup into an empty data directory, whole or not at all, and make its indexes.

    Args:
        folder: The backup.
        data: Where it goes; a folder that does not exist or is empty.

    Returns:
        Chunks by store.

    Raises:
        Conflict: There is something in the data directory.
        InputError: The data directory lies in the backup.
        ContractError: The backup is damaged.
        StorageFull: There is no space; nothing half-written was left.
    """
    from retrieval.snapshot import open_index

    if data.root.exists() and (not data.root.is_dir() or any(data.root.iterdir())):
        raise Conflict(f"{data.root}: wanted an empty folder to restore into, found something there. Choose another.")
    manifest = verify_backup(folder)
    if data.root.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{data.root}: wanted a data directory outside the backup, which is to stay as it was written; found it in "
            f"{folder}. Choose another place."
        )
    root = DataDir(data.root.resolve())
    with write_folder(root.root) as temporary:
        temporary.chmod(0o700)
        for name, digest in manifest["files"].items():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target)
            if sha256_file(target) != digest:
                raise ContractError(f"{folder / name}: it changed while it was read. Check the disk.")
    engine = open_database(root.database)
    try:
        stores = list_stores(engine)
        for status in stores:
            open_index(engine, root, find_store(engine, status.store), IndexDevice.cpu)
        return {status.store: status.chunks for status in stores}
    finally:
        engine.dispose()


def main() -> None:
    """Read the command line and do it."""
    arguments = parse_arguments()
    configure_logging(level="WARNING")
    data = DataDir(Path(arguments.data_dir or default_data_dir()))
    try:
        if arguments.action == "create":
            manifest = create_backup(data, arguments.backup, has_runs=arguments.runs)
            print(f"{arguments.backup}: {len(manifest['files'])} files, {manifest['size_bytes'] / 2**20:.1f} MiB")
            if arguments.backup.resolve().is_relative_to(data.root.resolve()):
                print(f"note: it lies in {data.root}, and goes with it: copy it elsewhere", file=sys.stderr)
            print(f"next: python scripts/backup.py verify {shlex.quote(str(arguments.backup))}")
        elif arguments.action == "verify":
            manifest = verify_backup(arguments.backup)
            print(f"{arguments.backup}: {len(manifest['files'])} files, all as they were written")
            print(f"next: python scripts/backup.py restore {shlex.quote(str(arguments.backup))} --data-dir NEW")
        else:
            stores = restore_backup(arguments.backup, data)
            print(
                f"{data.root}: "
                + (", ".join(f"{name} ({chunks} chunks)" for name, chunks in stores.items()) or "no stores")
            )
            print("next: " + write_next_command("scripts/doctor.py", data_dir=data.root))
    except OSError as error:
        raise describe_os_error(error, f"{arguments.action} {arguments.backup}") from error
    except KeyboardInterrupt:
        made = {"create": arguments.backup / MANIFEST, "restore": data.database}.get(arguments.action)
        if made is not None:
            state = "is whole: it was finished before" if made.exists() else "was not made. Give the same command again"
            print(f"stopped: {made.parent} {state}.", file=sys.stderr)
        raise


def parse_arguments() -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description="Back a data directory up, check a backup, restore it.")
    parser.add_argument("action", choices=("create", "verify", "restore"))
    parser.add_argument("backup", type=Path, help="the backup's folder")
    parser.add_argument("--data-dir", help="the data directory (default: LOAM_DATA_DIR, else data)")
    parser.add_argument("--runs", action="store_true", help="copy the adapters of the training runs too")
    arguments = parser.parse_args()
    if arguments.action == "restore" and not arguments.data_dir:
        parser.error("restore: wanted --data-dir with a new or empty folder, found none")
    return arguments


if __name__ == "__main__":
    run_command(main)
