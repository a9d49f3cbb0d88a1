"""Make FAISS's wheel for cards small enough to be carried to a lent machine without a registry.

    python scripts/carry_faiss.py WHEEL --out DIR [--sm 90]

Writes two wheels. One is WHEEL (faiss-gpu) with the machine code of one kind of card, the others' overwritten with
zeros. The other stands in for nvidia-cublas-cu12 (580 MB) and nvidia-curand-cu12: the functions that FAISS calls jump
into the cuBLAS 13 that torch has loaded, whose arguments for them are the same. Import torch before faiss. Needs `cc`.

torch loads any libcublas.so in a folder `nvidia/cublas/lib` of the path, before its own is there to be found. So these
lie elsewhere, and the modules `nvidia.cublas` and `nvidia.curand`, which FAISS asks, lead to them.

Source: the container of machine code as CUDA's fatbinary.h has it; its entries' fields as read from the wheel.
"""

import argparse
import base64
import hashlib
import re
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from core.config import run_command
from core.errors import InputError, NotFound

CONTAINER = struct.pack("<I", 0xBA55ED50)
MACHINE_CODE = 2
LIBRARY = "faiss/libfaiss.so"
CALLED = re.compile(rb"\0(cublas\w+)(?=\0)")
STAND_IN = "loam_cublas_stand_in-12.9-py3-none-manylinux_2_17_x86_64.whl"

SOURCE_HEAD = """
#include <dlfcn.h>
#include <stdio.h>
static int refuse(void) { return 1; } /* CUBLAS_STATUS_NOT_INITIALIZED */
#define FORWARD(name) \\
    static void *to_##name = refuse; \\
    __attribute__((naked)) void name(void) { __asm__("jmp *%0" : : "m"(to_##name)); }
"""
SOURCE_TAIL = """
__attribute__((constructor)) static void connect(void) {
    void *library = dlopen("libcublas.so.13", RTLD_NOW | RTLD_LOCAL), *found;
    if (!library) { fprintf(stderr, "stand-in for cuBLAS 12: %s (import torch first)\\n", dlerror()); return; }
"""


def main() -> None:
    """Read the command line and write both wheels."""
    parser = argparse.ArgumentParser(description="Make FAISS's wheel for cards small enough to be carried.")
    parser.add_argument("wheel", type=Path, help="faiss_gpu-….whl")
    parser.add_argument("--out", type=Path, required=True, help="folder that both wheels are written to")
    parser.add_argument("--sm", type=int, default=90, help="the card: 90 for H100 and H200")
    arguments = parser.parse_args()
    if not arguments.wheel.is_file():
        raise NotFound(f"{arguments.wheel}: wanted a wheel, found none. Run: pip download --no-deps faiss-gpu==VERSION")
    arguments.out.mkdir(parents=True, exist_ok=True)
    called = shrink_wheel(arguments.wheel, arguments.out / arguments.wheel.name, arguments.sm)
    build_stand_in(called, arguments.out / STAND_IN)
    for name in (arguments.wheel.name, STAND_IN):
        print(f"{(arguments.out / name).stat().st_size / 1e6:6.1f} MB  {arguments.out / name}")


def find_entries(data: bytes | bytearray) -> Iterator[tuple[int, int, int, int]]:
    """Yield each piece of code in a library: its kind, its card (90 for sm_90), where it begins and ends."""
    place = data.find(CONTAINER)
    while place >= 0:
        version, header, size = struct.unpack_from("<HHQ", data, place + 4)
        if (version, header) != (1, 16):  # the same four bytes by chance
            place = data.find(CONTAINER, place + 4)
            continue
        entry, end = place + header, place + header + size
        while entry < end:
            kind, _, head, length = struct.unpack_from("<HHIQ", data, entry)
            (card,) = struct.unpack_from("<I", data, entry + 28)
            yield kind, card, entry + head, entry + head + length
            entry += head + length
        place = data.find(CONTAINER, end)


def keep_card(data: bytes, card: int) -> bytes:
    """Return a library with the machine code of other cards, and what would be compiled for any, set to zero.

    Raises:
        InputError: It has no machine code for that card.
    """
    entries = list(find_entries(data))
    known = sorted({number for kind, number, _, _ in entries if kind == MACHINE_CODE})
    if card not in known:
        raise InputError(f"--sm: wanted one of {', '.join(map(str, known)) or 'none'}, found {card}.", param="sm")
    kept = bytearray(data)
    for kind, number, begin, end in entries:
        if (kind, number) != (MACHINE_CODE, card):
            kept[begin:end] = bytes(end - begin)
    return bytes(kept)


def shrink_wheel(source: Path, target: Path, card: int) -> list[str]:
    """Write a wheel with the machine code of one card; return the names of cuBLAS that its library calls."""
    called: list[str] = []
    files: dict[str, bytes] = {}
    with zipfile.ZipFile(source) as wheel:
        for name in wheel.namelist():
            data = wheel.read(name)
            if name == LIBRARY:
                called = sorted({found.decode() for found in CALLED.findall(data)})
                data = keep_card(data, card)
            if not name.endswith("/"):
                files[name] = data
    if not called:
        raise InputError(f"{source}: wanted {LIBRARY} that calls cuBLAS, found none. Is it faiss-gpu's?", param="wheel")
    write_wheel(target, files)
    return called


def build_stand_in(called: list[str], target: Path) -> None:
    """Compile the libraries that stand in for CUDA 12's, and write them as a wheel."""
    find = '    if ((found = dlsym(library, "{0}"))) to_{0} = found;'
    source = [SOURCE_HEAD, *(f"FORWARD({name})" for name in called), SOURCE_TAIL]
    source += [*(find.format(name) for name in called), "}"]
    information = "loam_cublas_stand_in-12.9.dist-info"
    files = {
        "nvidia/__init__.py": b"__path__ = __import__('pkgutil').extend_path(__path__, __name__)\n",
        **{f"nvidia/{name}/__init__.py": MODULE.format(name=name).encode() for name in ("cublas", "curand")},
        f"{information}/METADATA": b"Metadata-Version: 2.1\nName: loam-cublas-stand-in\nVersion: 12.9\n",
        f"{information}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-manylinux_2_17_x86_64\n",
        f"{information}/RECORD": b"",
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, code in (("cublas/lib/libcublas.so.12", "\n".join(source)), *((bare, "") for bare in BARE)):
            built = Path(folder) / Path(name).name
            built.with_suffix(".c").write_text(code, encoding="utf-8")
            built.with_suffix(".map").write_text(f"{built.name} {{ global: *; }};\n", encoding="utf-8")
            options = ["-shared", "-fPIC", "-O1", f"-Wl,-soname,{built.name}"]
            options += [f"-Wl,--version-script={built.with_suffix('.map')}", "-o", str(built)]
            subprocess.run(["cc", *options, str(built.with_suffix(".c")), "-ldl"], check=True)
            files[f"{FOLDER}/{name}"] = built.read_bytes()
    write_wheel(target, files)


FOLDER = "loam_cublas_stand_in"
MODULE = "import os\n\n__path__ = [os.path.join(os.path.dirname(__file__), '..', '..', '" + FOLDER + "', '{name}')]\n"
BARE = ("cublas/lib/libcublasLt.so.12", "curand/lib/libcurand.so.10")
"""What FAISS's wheel loads and calls nothing of."""


def write_wheel(target: Path, files: dict[str, bytes]) -> None:
    """Write a wheel whose RECORD says what its files are now."""
    (record,) = (name for name in files if name.endswith(".dist-info/RECORD"))
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},," if name == record else f"{name},sha256={digest},{len(data)}")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as wheel:
        for name, data in files.items():
            wheel.writestr(name, data if name != record else "\n".join(lines) + "\n")


if __name__ == "__main__":
    run_command(main)
