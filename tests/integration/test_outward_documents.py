"""Documents that point at a secret file and a listening socket: parsing reads nothing and calls nobody (H2)."""

import json
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.outward_files import MARK, make_outward_files

REPO = Path(__file__).resolve().parents[2]
SECRET = "quicksilver-7c1d0e94"
LOAD = """
import json, sys
from pathlib import Path
from core.errors import LoamError
from retrieval.loaders import load_document
tried = []
watched = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "urllib.")
sys.addaudithook(lambda event, arguments: tried.append(event) if event.startswith(watched) else None)
texts = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        document = load_document(path)
        texts[path.name] = document.text + repr(document.sections) + repr(document.attributes)
    except LoamError as error:
        texts[path.name] = error.message
print(json.dumps({"texts": texts, "tried": tried}))
"""


class Listener:
    """A socket on loopback that counts who connects."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._server.getsockname()[1])

    def has_caller(self) -> bool:
        return bool(select.select([self._server], [], [], 0.2)[0])

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def source(tmp_path: Path, listener: Listener) -> Path:
    """The documents, and the secret beside them; the secret's path is in every document, its words in none."""
    secret = tmp_path / "private" / "notes.txt"
    secret.parent.mkdir()
    secret.write_text(f"{SECRET}\n")
    folder = tmp_path / "source"
    folder.mkdir()
    for name, data in make_outward_files(secret, listener.port).items():
        assert SECRET.encode() not in data
        (folder / name).write_bytes(data)
    (folder / "link.txt").symlink_to(secret)
    return folder


def find_secret(folder: Path) -> list[str]:
    """Return the files below a folder that hold the secret, in any of the ways that text is written."""
    ways = [SECRET.encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be")]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if any(way in path.read_bytes() for way in ways)]


def test_ingesting_them_stores_no_secret_and_calls_nobody(
    source: Path, tmp_path: Path, listener: Listener, record_property: Callable[[str, object], None]
) -> None:
    data = tmp_path / "data"
    command = [sys.executable, "-m", "tests.fakes.ingest_folder_command", str(data), "docs", str(source)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert not listener.has_caller()
    assert done.stderr == "", "a parser was refused something, or a loader failed"
    assert find_secret(data) == []
    files = json.loads(done.stdout)["files"]
    assert "link.txt" not in files
    completed = [name for name, (state, _) in files.items() if state == "completed"]
    assert len(completed) >= 0.6 * len(files), f"too few were read for this to prove anything: {files}"
    record_property("outward_documents", len(files))
    record_property("of_them_read", len(completed))


def test_the_loaders_alone_read_and_call_nothing_outside(source: Path, listener: Listener) -> None:
    """The same without the confinement of the child: each library's own switches hold."""
    (source / "link.txt").unlink()
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(source)], cwd=REPO, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert not listener.has_caller()
    assert told["tried"] == []
    assert [name for name, text in told["texts"].items() if SECRET in text] == []
    assert sum(MARK in text for text in told["texts"].values()) >= 0.6 * len(told["texts"])


def test_the_search_for_the_secret_finds_it(source: Path, tmp_path: Path, listener: Listener) -> None:
    """A document that does hold the secret is stored with it, and a call would be seen."""
    (source / "leak.md").write_text(f"# Leak\n\nThe word is {SECRET}.\n")
    data = tmp_path / "data"
    command = [sys.executable, "-m", "tests.fakes.ingest_folder_command", str(data), "docs", str(source / "leak.md")]
    subprocess.run(command, cwd=REPO, capture_output=True, timeout=600, check=True)
    assert any("loam.db" in name for name in find_secret(data))
    with socket.create_connection(("127.0.0.1", listener.port)):
        assert listener.has_caller()
