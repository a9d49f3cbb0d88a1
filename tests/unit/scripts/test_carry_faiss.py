"""FAISS's wheel is carried with the code of one card, and what stands in for cuBLAS 12 hands each call on."""

import base64
import hashlib
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from core.errors import InputError
from scripts.carry_faiss import CONTAINER, LIBRARY, build_stand_in, find_entries, keep_card, shrink_wheel

PIECES = ((2, 80, b"code of 80" * 9), (2, 90, b"code of 90" * 7), (1, 90, b"text of 90" * 5))


def make_container(pieces: tuple[tuple[int, int, bytes], ...] = PIECES) -> bytes:
    """Return what nvcc puts into a library: a header, then each piece behind a header of its own."""
    body = b"".join(
        struct.pack("<HHIQ", kind, 257, 64, len(code)) + bytes(12) + struct.pack("<I", card) + bytes(32) + code
        for kind, card, code in pieces
    )
    return CONTAINER + struct.pack("<HHQ", 1, 16, len(body)) + body


def make_library() -> bytes:
    """Return a library with two containers, and the container's first bytes once by chance."""
    names = b"\0cublasCreate_v2\0cublasSgemmEx\0cudaMalloc\0"
    return b"\x7fELF" + names + make_container() + CONTAINER + b"by chance " * 3 + make_container(PIECES[1:]) + b"end"


def test_the_code_of_one_card_stays_and_all_else_stands_where_it_stood() -> None:
    library = make_library()
    kept = keep_card(library, 90)
    assert len(kept) == len(library)
    assert list(find_entries(kept)) == list(find_entries(library))
    assert len(list(find_entries(library))) == 5
    assert kept.count(b"code of 90" * 7) == 2
    assert b"code of 80" not in kept
    assert b"text of 90" not in kept
    for (kind, card, begin, end), before in zip(find_entries(kept), find_entries(library), strict=True):
        wanted = library[begin:end] if (kind, card) == (2, 90) else bytes(end - begin)
        assert kept[begin:end] == wanted, before
    assert kept.replace(b"\0", b"").startswith(b"\x7fELFcublasCreate_v2cublasSgemmEx")


def test_a_card_that_the_library_does_not_know_is_refused() -> None:
    with pytest.raises(InputError, match="wanted one of 80, 90, found 75"):
        keep_card(make_library(), 75)


def test_the_wheel_says_what_its_files_are_now(tmp_path: Path) -> None:
    source, target = tmp_path / "a.whl", tmp_path / "b.whl"
    with zipfile.ZipFile(source, "w") as wheel:
        wheel.writestr(LIBRARY, make_library())
        wheel.writestr("faiss/__init__.py", "x = 1\n")
        wheel.writestr("faiss_gpu-1.dist-info/RECORD", "old")
    assert shrink_wheel(source, target, 90) == ["cublasCreate_v2", "cublasSgemmEx"]
    with zipfile.ZipFile(target) as wheel:
        assert wheel.read(LIBRARY) == keep_card(make_library(), 90)
        lines = wheel.read("faiss_gpu-1.dist-info/RECORD").decode().splitlines()
        for line in lines:
            name, digest, size = line.split(",")
            if digest:
                data = wheel.read(name)
                found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                assert (digest, size) == (f"sha256={found}", str(len(data)))
    assert len(lines) == 3
    with zipfile.ZipFile(source, "w") as wheel:
        wheel.writestr("other.py", "")
    with pytest.raises(InputError, match="calls cuBLAS, found none"):
        shrink_wheel(source, target, 90)


CUBLAS_13 = """
int cublasCreate_v2(void **handle) { *handle = (void *)42; return 0; }
int cublasMany(int a, int b, int c, int d, int e, int f, int g, int h, double i) { return a + 2 * h + (int)(4 * i); }
"""
CALLS = """
import ctypes, sys
folder, has_13 = sys.argv[1], sys.argv[2] == "1"
sys.path.insert(0, folder)
from nvidia import cublas, curand
if has_13:
    ctypes.CDLL(f"{folder}/libcublas.so.13")
stand_in = ctypes.CDLL(f"{cublas.__path__[0]}/lib/libcublas.so.12")
ctypes.CDLL(f"{cublas.__path__[0]}/lib/libcublasLt.so.12")
ctypes.CDLL(f"{curand.__path__[0]}/lib/libcurand.so.10")
handle = ctypes.c_void_p()
print(stand_in.cublasCreate_v2(ctypes.byref(handle)), handle.value)
print(stand_in.cublasMany(1, 0, 0, 0, 0, 0, 0, 10, ctypes.c_double(25.0)))
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="wanted a C compiler (cc), found none")
def test_the_stand_in_hands_every_argument_on_and_refuses_where_there_is_nothing_behind_it(tmp_path: Path) -> None:
    build_stand_in(["cublasCreate_v2", "cublasMany"], tmp_path / "stand_in.whl")
    with zipfile.ZipFile(tmp_path / "stand_in.whl") as wheel:
        wheel.extractall(tmp_path)
    assert not list(tmp_path.glob("nvidia/*/lib")), "torch would load what lies there before its own cuBLAS"
    assert not list(tmp_path.glob("cublas/lib"))
    (tmp_path / "thirteen.c").write_text(CUBLAS_13)
    library = tmp_path / "libcublas.so.13"
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-Wl,-soname,libcublas.so.13",
        "-o",
        str(library),
        str(tmp_path / "thirteen.c"),
    ]
    subprocess.run(command, check=True)
    found = [
        subprocess.run([sys.executable, "-c", CALLS, str(tmp_path), has_13], capture_output=True, text=True, check=True)
        for has_13 in "10"
    ]
    assert found[0].stdout.split() == ["0", "42", "121"]
    assert found[1].stdout.split() == ["1", "None", "1"]
    assert "import torch first" in found[1].stderr
