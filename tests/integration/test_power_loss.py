"""Power loss: nothing is acknowledged before it is on disk (promise D3). kill -9 proves nothing of the kind.

strace records the system calls of real programs. First the order is checked: bytes written, file flushed, renamed,
folder flushed, transaction flushed, and only then the answer. Then the disk is played back up to random moments and
whatever no flush had reached is dropped, wholly or file by file at random; what was acknowledged must be there.
"""

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import text

from core.layout import DataDir
from retrieval.database import find_damage, open_database, read_transaction
from retrieval.uploads import check_upload, list_uploads

REPO = Path(__file__).resolve().parents[2]
LOSSES = 100 if os.environ.get("LOAM_TEST_FULL") else 10
UPLOADS = 20
TRACED = "openat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,ftruncate"
CALL = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")
OPEN_FILE = re.compile(r"^(?:\d+|AT_FDCWD)<([^>]*)>(?:, )?(.*)$")
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass
class Inode:
    """A file's bytes as the program sees them, and as the disk has them."""

    seen: bytearray = field(default_factory=bytearray)
    flushed: bytes = b""


@dataclass
class Disk:
    """Folders as the program sees them and as the disk has them, played back from a trace."""

    root: str
    seen: dict[str, Inode] = field(default_factory=dict)
    flushed: dict[str, Inode] = field(default_factory=dict)
    said: str = ""

    def play(self, call: str, arguments: str) -> None:
        """Do one system call."""
        strings = [decode(found) for found in STRING.findall(arguments)]
        if call == "openat":
            self._open(strings[0].decode(), arguments)
        elif call.startswith("rename"):
            source, target = (self._place(found.decode()) for found in strings[-2:])
            if source in self.seen:
                self.seen[target] = self.seen.pop(source)
        elif call.startswith("unlink"):
            self.seen.pop(self._place(strings[-1].decode()), None)
        else:
            self._use(call, arguments, strings)

    def _place(self, name: str) -> str:
        return name if name.startswith("/") else f"/{name}"

    def _open(self, name: str, arguments: str) -> None:
        if name.startswith(self.root) and "O_CREAT" in arguments:
            inode = self.seen.setdefault(name, Inode())
            if "O_TRUNC" in arguments:
                inode.seen.clear()

    def _use(self, call: str, arguments: str, strings: list[bytes]) -> None:
        """Write to, cut or flush an open file."""
        found = OPEN_FILE.match(arguments)
        assert found, arguments[:100]
        path = decode(found[1]).decode() if found[1].startswith("\\x") else found[1]
        if call == "write" and arguments.startswith("1<"):
            self.said += strings[0].decode()
        if not path.startswith(self.root):
            return
        if call in ("fsync", "fdatasync"):
            self._flush(path)
            return
        inode = self.seen.get(path)
        if inode is None:
            return
        if call == "ftruncate":
            size = int(arguments.rpartition(", ")[2])
            inode.seen[:] = inode.seen[:size].ljust(size, b"\0")
            return
        start = int(arguments.rpartition(", ")[2]) if call == "pwrite64" else len(inode.seen)
        end = start + len(strings[0])
        if len(inode.seen) < end:
            inode.seen.extend(bytes(end - len(inode.seen)))
        inode.seen[start:end] = strings[0]

    def _flush(self, path: str) -> None:
        if path in self.seen:
            self.seen[path].flushed = bytes(self.seen[path].seen)
            return
        inside = {name: inode for name, inode in self.seen.items() if name.rpartition("/")[0] == path}
        self.flushed = {name: inode for name, inode in self.flushed.items() if name.rpartition("/")[0] != path} | inside

    def lose_power(self, target: Path, chance: random.Random | None) -> None:
        """Write what survives into a folder: what was flushed, and by chance some bytes and names that were not."""
        unsure = {name: inode for name, inode in self.seen.items() if chance and chance.random() < 0.5}
        for name, inode in {**unsure, **self.flushed}.items():
            content = bytes(inode.seen) if chance and chance.random() < 0.5 else inode.flushed
            path = target / os.path.relpath(name, self.root)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def decode(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def trace(root: Path, log: Path, *command: str) -> list[tuple[str, str]]:
    """Run a program under strace; return its calls in the order in which they were done."""
    if shutil.which("strace") is None:
        pytest.skip("wanted strace to see the order of system calls, found none; this test proves nothing here")
    strace = ["strace", "-f", "-y", "-xx", "-s", "70000", "-e", f"trace={TRACED}", "-e", "signal=none", "-o", str(log)]
    subprocess.run([*strace, sys.executable, *command], cwd=REPO, check=True, stdout=subprocess.DEVNULL)
    calls, unfinished = [], {}
    for line in log.read_text().splitlines():
        process = line.split(" ", 1)[0]
        if line.endswith("<unfinished ...>"):
            unfinished[process] = line.removesuffix("<unfinished ...>").rstrip()
            continue
        resumed = re.match(r"^\d+ +<\.\.\. \w+ resumed>(.*)", line)
        whole = CALL.match(unfinished.pop(process) + resumed[1] if resumed else line)
        if whole and int(whole[3]) >= 0:
            calls.append((whole[1], whole[2]))
    return calls


def name_of(arguments: str) -> str:
    """The last part of the path of the open file that a call is about."""
    found = OPEN_FILE.match(arguments)
    path = found[1] if found else ""
    return (decode(path).decode() if path.startswith("\\x") else path).rpartition("/")[2]


@pytest.fixture(scope="module")
def uploading(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[tuple[str, str]]]:
    folder = tmp_path_factory.mktemp("uploading")
    root = folder / "data"
    return str(root), trace(root, folder / "log", "-m", "tests.fakes.upload_command", str(root), "1", str(UPLOADS))


@pytest.fixture(scope="module")
def ingesting(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[tuple[str, str]]]:
    folder = tmp_path_factory.mktemp("ingesting")
    source, root = folder / "source", folder / "data"
    source.mkdir()
    for number in range(40):
        (source / f"{number:02d}.md").write_text("\n\n".join(f"Part {part} of file {number}." for part in range(60)))
    program = ("-m", "tests.fakes.ingest_command", str(root), "acme", str(source))
    return str(root), trace(root, folder / "log", *program)


def test_an_upload_is_answered_after_every_flush(
    uploading: tuple[str, list[tuple[str, str]]], record_property: Callable[[str, object], None]
) -> None:
    kinds = []
    for call, arguments in uploading[1]:
        name = name_of(arguments) if not call.startswith(("rename", "open", "unlink")) else ""
        if call == "write" and name.endswith(".tmp"):
            kinds.append("write")
        elif call == "fsync" and name.endswith(".tmp"):
            kinds.append("flush")
        elif call.startswith("rename"):
            kinds.append("rename")
        elif call == "fsync" and name == "files":
            kinds.append("folder")
        elif call in ("fsync", "fdatasync") and name == "loam.db-wal":
            kinds.append("commit")
        elif call == "write" and arguments.startswith("1<"):
            kinds.append("answer")
    steps = re.sub(r"(\b\w+)( \1)+", r"\1", " ".join(kinds[kinds.index("write") :]))
    wanted = " ".join(["write flush rename folder commit answer"] * UPLOADS)
    assert steps.removesuffix(" commit") == wanted  # at its end the log is written into the database
    record_property("answers_in_order", UPLOADS)


@pytest.mark.parametrize("seed", range(LOSSES))
def test_no_acknowledged_upload_is_lost(
    uploading: tuple[str, list[tuple[str, str]]],
    tmp_path: Path,
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    chance = random.Random(seed)
    root, calls = uploading
    disk = play_until(Disk(root), calls, chance, first="answer")
    disk.lose_power(tmp_path, chance if seed % 2 else None)
    data = DataDir(tmp_path)
    kept = dict(line.split()[1:] for line in disk.said.splitlines())
    assert kept
    assert find_damage(data.database) == []
    engine = open_database(data.database)
    uploads = {upload.id: upload for upload in list_uploads(engine)}
    engine.dispose()
    assert {upload_id: uploads[upload_id].sha256 for upload_id in kept} == kept
    for upload in uploads.values():
        check_upload(data, upload)
    record_property("losses_during_uploads", 1)


@pytest.mark.parametrize("seed", range(LOSSES))
def test_no_acknowledged_document_is_lost(
    ingesting: tuple[str, list[tuple[str, str]]],
    tmp_path: Path,
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    chance = random.Random(seed)
    root, calls = ingesting
    disk = play_until(Disk(root), calls, chance, first="answer")
    disk.lose_power(tmp_path, chance if seed % 2 else None)
    acknowledged = max(int(line) for line in disk.said.splitlines() if line.isdigit())
    path = DataDir(tmp_path).database
    assert find_damage(path) == []
    engine = open_database(path)
    with read_transaction(engine) as connection:
        names = connection.execute(text("SELECT name FROM documents WHERE status = 'completed'")).scalars().all()
    engine.dispose()
    assert {f"{number:02d}.md" for number in range(acknowledged)} <= set(names)
    record_property("losses_during_ingestion", 1)


def play_until(disk: Disk, calls: list[tuple[str, str]], chance: random.Random, *, first: str) -> Disk:
    """Play a trace back up to a random call after the first answer."""
    answers = [place for place, (call, given) in enumerate(calls) if call == "write" and given.startswith("1<")]
    assert answers, f"wanted an {first} in the trace, found none"
    for call, arguments in calls[: chance.randrange(answers[0] + 1, len(calls) + 1)]:
        disk.play(call, arguments)
    return disk
