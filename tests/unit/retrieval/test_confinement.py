"""What a confined process cannot do: each attempt is made for real, in a process of its own."""

import json
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[3]
PROGRAM = """
import ctypes, json, os, socket, subprocess, sys
from pathlib import Path
import lxml.etree, pypdfium2, retrieval.loaders.pdf
from retrieval.confinement import Confinement

folder, port, attempt, is_confined = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "yes"
libc = ctypes.CDLL(None, use_errno=True)
confinement = Confinement()
if is_confined:
    confinement.begin(2**30)
confinement.open_only(folder / "question.txt")
try:
    outcome = repr(eval(attempt))
except Exception as error:
    outcome = type(error).__name__
answer = {"outcome": outcome, "refusals": confinement.take_refusals(), "filter": confinement.has_kernel_filter}
print(json.dumps(answer))
"""
BY_PYTHON = {
    "connect": "socket.create_connection(('127.0.0.1', port), timeout=5)",
    "resolve": "socket.getaddrinfo('example.org', 80)",
    "run": "subprocess.run([sys.executable, '-c', ''])",
    "fork": "os.fork()",
    "write": "(folder / 'new.txt').write_text('x')",
    "append": "open(folder / 'question.txt', 'a')",
    "open another file": "(folder / 'secret.txt').read_bytes()",
    "open another file by a detour": "open(str(Path(lxml.etree.__file__).parent / '..' / '..') + os.sep + 'x')",
    "remove": "os.remove(folder / 'question.txt')",
    "rename": "os.rename(folder / 'question.txt', folder / 'renamed.txt')",
    "link": "os.symlink(folder / 'question.txt', folder / 'link.txt')",
    "make a folder": "os.mkdir(folder / 'new')",
    "cut": "os.truncate(folder / 'question.txt', 0)",
    "unpickle": "__import__('pickle').loads(b'cposix\\nsystem\\n.')",
}
BY_C = {
    "make a socket": "libc.socket(2, 1, 0)",
    "fork": "libc.fork()",
    "exec": "libc.execl(b'/bin/true', b'true', None)",
    "open for writing": "libc.open(bytes(folder / 'new.txt'), 0o101, 0o600)",
    "make a file": "libc.creat(bytes(folder / 'new.txt'), 0o600)",
    "remove": "libc.unlink(bytes(folder / 'question.txt'))",
    "rename": "libc.rename(bytes(folder / 'question.txt'), bytes(folder / 'renamed.txt'))",
    "make a folder": "libc.mkdir(bytes(folder / 'new'), 0o700)",
    "cut": "libc.truncate(bytes(folder / 'question.txt'), 0)",
    "trace": "libc.ptrace(0, 0, 0, 0)",
    "leave the namespace": "libc.unshare(0x10000000)",
}


def attempt(folder: Path, what: str, *, is_confined: bool = True) -> dict[str, Any]:
    """Run an attempt in a process of its own beside a listening socket; return what it says and whether it did it."""
    (folder / "question.txt").write_text("words")
    (folder / "secret.txt").write_text("secret")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port, confined = str(server.getsockname()[1]), "yes" if is_confined else "no"
        command = [sys.executable, "-c", PROGRAM, str(folder), port, what, confined]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, timeout=110)
        is_called = bool(select.select([server], [], [], 0)[0])
    assert done.returncode == 0, done.stderr
    after = {path.name: path.read_bytes() if path.is_file() else b"" for path in folder.iterdir()}
    answer: dict[str, Any] = json.loads(done.stdout)
    return {**answer, "is_done": is_called or after != before}


@pytest.mark.parametrize("what", BY_PYTHON)
def test_python_code_is_refused_and_named(what: str, tmp_path: Path) -> None:
    answer = attempt(tmp_path, BY_PYTHON[what])
    assert answer["outcome"] == "PermissionError"
    assert answer["refusals"]
    assert not answer["is_done"]


@pytest.mark.parametrize("what", BY_C)
def test_code_in_c_is_refused_by_the_kernel(what: str, tmp_path: Path) -> None:
    answer = attempt(tmp_path, BY_C[what])
    if not answer["filter"]:
        pytest.skip(
            "wanted Linux on x86-64, whose kernel filters system calls; found none, so this proves nothing here"
        )
    assert answer["outcome"] == "-1"
    assert not answer["is_done"]


@pytest.mark.parametrize("what", ["connect", "write", "remove", "rename", "link", "make a folder", "cut"])
def test_unconfined_python_code_does_it(what: str, tmp_path: Path) -> None:
    assert attempt(tmp_path, BY_PYTHON[what], is_confined=False)["is_done"]


@pytest.mark.parametrize("what", ["open for writing", "make a file", "remove", "rename", "make a folder", "cut"])
def test_unconfined_code_in_c_does_it(what: str, tmp_path: Path) -> None:
    assert attempt(tmp_path, BY_C[what], is_confined=False)["is_done"]


def test_what_parsing_needs_is_allowed(tmp_path: Path) -> None:
    reading = "(folder / 'question.txt').read_text() + str(__import__('encodings.cp1252').__name__)"
    answer = attempt(tmp_path, reading)
    assert (answer["outcome"], answer["refusals"]) == ("'wordsencodings'", [])


def test_memory_is_limited(tmp_path: Path) -> None:
    assert attempt(tmp_path, "len(bytes(2**31))")["outcome"] == "MemoryError"
