"""Small bundles for tests: hand-made wheels, a project that the real set-up installs, the real uv of this environment.

The wheels are neighbours of what is tested; creating, checking and installing are the real thing.
"""

import base64
import hashlib
import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

from core.layout import DataDir
from core.manifest import ModelKind, ModelManifest, hash_files
from scripts.bundle_create import Order

REPO = Path(__file__).resolve().parents[2]
BARE_PYTHON = str(Path(sys.base_prefix) / "bin" / "python3.11")
"""The Python that this environment was made from: nothing is installed there that a bundle may lean on."""
PYPROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "loam"
version = "0.1.0"
requires-python = ">=3.11"

[tool.setuptools]
py-modules = []
"""
TORCH = "torch==2.13.0+cpu"


def write_wheel(folder: Path, name: str, version: str, files: dict[str, bytes], headers: str = "") -> Path:
    """Write a wheel with these files and its own metadata; returns its path."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{headers}"
    entries = {
        **files,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    return _zip_wheel(folder / f"{name}-{version}-py3-none-any.whl", info, entries)


def _zip_wheel(path: Path, info: str, entries: dict[str, bytes]) -> Path:
    rows = []
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o100755 if "/scripts/" in name else 0o100644) << 16
            wheel.writestr(entry, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(content)}")
        wheel.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,", ""]))
    return path


def repack(folder: Path, name: str) -> Path:
    """Write a package of this environment as a wheel again; its programs in bin/ are taken for its own scripts."""
    found = importlib.metadata.distribution(name)
    info = f"{name}-{found.version}.dist-info"
    entries = {}
    for file in found.files or ():
        path = str(file)
        if path.endswith((".pyc", "/RECORD", "/INSTALLER", "/REQUESTED", "/direct_url.json")):
            continue
        is_program = path.startswith("../../../bin/")
        target = f"{name}-{found.version}.data/scripts/{file.name}" if is_program else path
        entries[target] = Path(str(found.locate_file(file))).read_bytes()
    tag = (found.read_text("WHEEL") or "").partition("Tag: ")[2].split("\n")[0]
    return _zip_wheel(folder / f"{name}-{found.version}-{tag}.whl", info, entries)


def write_packages(folder: Path, count: int = 3) -> list[str]:
    """Write small wheels, one of them called torch, into a folder; returns their lines for a lock."""
    folder.mkdir(parents=True)
    write_wheel(folder, "torch", "2.13.0+cpu", {"torch/__init__.py": b"IS_SMALL = True\n"}, "License: BSD-3-Clause\n")
    lines = [TORCH]
    for number in range(count):
        name = f"reed{number}"
        headers = (
            f"License-Expression: MIT\nRequires-Dist: reed{number - 1}\n" if number else "License-Expression: MIT\n"
        )
        files = {
            f"{name}/__init__.py": f"NUMBER = {number}\n".encode() * 40,
            f"{name}-1.{number}.dist-info/licenses/LICENSE": b"Do as you like.\n",
        }
        write_wheel(folder, name, f"1.{number}", files, headers)
        lines.append(f"{name}==1.{number}")
    return lines


def write_project(folder: Path, lines: list[str], word: str = "first") -> Path:
    """Write a project with this lock and the real set-up, as a git checkout with one commit."""
    (folder / "locks").mkdir(parents=True, exist_ok=True)
    (folder / "scripts").mkdir(exist_ok=True)
    (folder / "locks" / "cpu.txt").write_text("\n".join(lines) + "\n")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "LICENSE").write_text("Apache License, Version 2.0\n")
    (folder / "word.txt").write_text(word)
    setup = folder / "scripts" / "setup_env.sh"
    setup.write_bytes((REPO / "scripts" / "setup_env.sh").read_bytes())
    setup.chmod(0o755)
    who = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "--all"], [*who, "commit", "--quiet", "--message", word]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return folder


def write_model(data: DataDir, name: str, licence: str = "MIT", files: dict[str, str] | None = None) -> None:
    """Write a model folder with its manifest."""
    folder = data.model(name)
    for path, text in (files or {"config.json": "{}", "model.safetensors": "weights " * 3000}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    ModelManifest(name, ModelKind.LLM, "here", None, licence, hash_files(folder)).write(folder)


def make_order(root: Path, lines: list[str], *, models: tuple[str, ...] = (), piece_bytes: int = 8000) -> Order:
    """Return an order for a bundle of a small project below a folder; the caller lets pip find the wheels."""
    project = root / "project"
    return Order(
        profile="cpu",
        models=models,
        piece_bytes=piece_bytes,
        image=None,
        project=project if project.exists() else write_project(project, lines),
        data=DataDir(root / "source-data"),
        out=root / "bundle",
    )
