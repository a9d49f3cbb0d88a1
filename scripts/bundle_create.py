"""Make a bundle: packages of a lock as wheels, models, the project, notices, bill of materials; sealed, cut, signed.

    python scripts/bundle.py create profile=cpu|cuda out=DIR [models=[NAME,…]] [data_dir=data] [piece_mib=N]
        [image=FILE] [sign=KEY]

Packages come through pip from wherever pip is set up to look (an index, PIP_FIND_LINKS); a source package is built into
a wheel. Everything is written whole and noted in DIR/.create.json, so that the same command goes on where it was
stopped. Does not know how a bundle is checked or installed; bundle_format.py and bundle_install.py do.
"""

from core.entry import begin_program

begin_program()

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import Version

from core.errors import ConfigError, Conflict, ContractError, InputError, LoamError, NotFound
from core.failpoints import reach
from core.layout import DataDir, default_data_dir, sha256_bytes, sha256_file, sync_directory, write_file, write_json
from core.manifest import MODEL_MANIFEST, ModelManifest, verify_files
from scripts.bundle import read_options
from scripts.bundle_format import (
    MANIFEST,
    PROJECT,
    SAFE_PATH,
    SIGNATURE,
    SUMS,
    Manifest,
    Progress,
    Whole,
    copy_whole,
    hash_file,
    list_files,
    say,
    sign,
)
from scripts.bundle_notices import Package, find_llama_notices, read_package, render_bill, render_texts

REPO = Path(__file__).resolve().parent.parent
PROFILES = ("cpu", "cuda")
CARRIED = {
    "bundle.py": "scripts/bundle.py",
    **{
        name: name
        for name in (
            "scripts/__init__.py", "scripts/bundle_format.py", "scripts/bundle_install.py", "core/__init__.py",
            "core/errors.py", "core/failpoints.py", "core/layout.py", "core/lock.py", "core/spelling.py",
        )
    },
}  # fmt: skip
"""What checks and installs a bundle, by its path there: all of it on Python's standard library."""
NOTES = ".create.json"
BATCH_PACKAGES = 12
DEFAULT_PIECE_MIB = 4000
"""Below 4 GiB, which is what FAT32 holds in one file."""
README = """Loam {release}

  python3.11 bundle.py verify                  every byte against manifest.json
  python3.11 bundle.py install to=PREFIX       no network needed; an earlier release stays beside it
  sha256sum --check SHA256SUMS                 the same by other means
  ssh-keygen -Y verify -f SIGNERS -I WHO -n loam-bundle -s SHA256SUMS.sig < SHA256SUMS      where it is signed

Notices are in licences/, the bill of materials (CycloneDX) is sbom.cdx.json.
"""


@dataclass(frozen=True, slots=True)
class Order:
    """What shall go into a bundle.

    Attributes:
        profile: `cpu` or `cuda`: which lock.
        models: Names of folders under data/models.
        piece_bytes: Largest file.
        image: A container image as `docker save` writes it, or None.
        project: The checkout.
        data: The data directory with the models.
        out: The bundle's folder.
    """

    profile: str
    models: tuple[str, ...]
    piece_bytes: int
    image: Path | None
    project: Path
    data: DataDir
    out: Path

    @property
    def lock(self) -> Path:
        """Return the lock file."""
        return self.project / "locks" / f"{self.profile}.txt"


@dataclass(slots=True)
class Notes:
    """What stands in .create.json while a bundle is made.

    Attributes:
        order: Fingerprint of what was ordered: another order does not go on with this one's files.
        packages: What came, by its line in the lock.
        split: Files that were cut, with their digests and parts.
    """

    order: str
    packages: dict[str, Package]
    split: dict[str, Whole]

    def save(self, folder: Path) -> None:
        """Write the notes, whole or not at all."""
        write_json(folder / NOTES, asdict(self))


def run_create(words: list[str]) -> None:
    """Make what the command line orders, and print what is next.

    Raises:
        LoamError: It was refused, or could not be done.
    """
    known = {"profile", "models", "out", "data_dir", "piece_mib", "image", "sign"}
    plain, options = read_options(words, known)
    if plain or not {"profile", "out"} <= options.keys():
        raise ConfigError("create: wanted profile=cpu|cuda out=DIR and what scripts/bundle.py shows at its head.")
    size = options.get("piece_mib", str(DEFAULT_PIECE_MIB))
    order = Order(
        profile=options["profile"],
        models=tuple(sorted(filter(None, re.split(r"[\[\],\s]+", options.get("models", ""))))),
        piece_bytes=int(size) * 2**20 if size.isdecimal() else 0,
        image=Path(options["image"]) if "image" in options else None,
        project=REPO,
        data=DataDir(Path(options.get("data_dir", default_data_dir()))),
        out=Path(options["out"]),
    )
    start = time.monotonic()
    manifest = create_bundle(order, Path(options["sign"]) if "sign" in options else None)
    say(
        f"{order.out}: {manifest.release}, {len(manifest.files)} files, {manifest.size_bytes / 2**30:.2f} GiB, "
        f"{time.monotonic() - start:.0f} s"
    )
    say(f"next: python3.11 {order.out / 'bundle.py'} verify")


def create_bundle(order: Order, key: Path | None = None) -> Manifest:
    """Make a bundle, or go on with one that was begun.

    Args:
        order: What goes in.
        key: An SSH key to sign with.

    Returns:
        The manifest.

    Raises:
        ConfigError: The order cannot be met; all faults are named.
        Conflict: The folder holds a finished bundle or another order's.
        InputError: A package could not be had; what came is kept.
    """
    facts = check_order(order, key)
    order.out.mkdir(parents=True, exist_ok=True)
    with hold_folder(order.out):
        notes = open_notes(order, facts)
        fetch_packages(order, notes)
        for path, source in CARRIED.items():
            put(order.out, notes, path, copying(REPO / source))
        put(order.out, notes, PROJECT, lambda target: _archive(order.project, target))
        for name in order.models:
            folder = order.data.model(name)
            for file in (*ModelManifest.read(folder).files, MODEL_MANIFEST):
                put(order.out, notes, f"models/{name}/{file}", copying(folder / file))
        if order.image:
            put(order.out, notes, f"images/{order.image.name}", copying(order.image))
        put_notices(order, notes, facts)
        split_large(order, notes)
        return seal(order, notes, facts, key)


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from making a bundle in the same folder; the folder itself is locked, no file lies in it.

    Raises:
        Conflict: Another process makes one there.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"{folder}: another process makes a bundle there. Wait for it.") from error
        yield
    finally:
        os.close(descriptor)


def check_order(order: Order, key: Path | None) -> dict[str, Any]:
    """Check everything before anything is fetched.

    Returns:
        The manifest's facts, but for the unpacked size.

    Raises:
        ConfigError: Something is wrong; all of it is named.
    """
    faults = []
    if order.profile not in PROFILES:
        faults.append(f"profile: wanted one of {', '.join(PROFILES)}; found {order.profile!r}")
    elif not order.lock.is_file():
        faults.append(f"profile: wanted {order.lock}, found none")
    if order.piece_bytes < 1:
        faults.append("piece_mib: wanted a whole number above 0")
    if order.image and not (order.image.is_file() and SAFE_PATH.fullmatch(order.image.name)):
        faults.append(f"image: wanted a file that docker save wrote, with a plain name; found {order.image}")
    if key and not (key.is_file() and shutil.which("ssh-keygen")):
        faults.append(f"sign: wanted ssh-keygen and a key, found no such pair at {key}")
    manifests = []
    for name in order.models:
        try:
            manifest = ModelManifest.read(order.data.model(name))
            verify_files(order.data.model(name), manifest.files)
            manifests.append(manifest)
        except LoamError as error:
            faults.append(f"models: {error.message}")
    faults += [f"models: {fault}" for fault in find_llama_notices(manifests, [])[1]]
    commit = _git(order.project, "rev-parse", "HEAD")
    if commit is None:
        faults.append(f"wanted a git checkout, found none at {order.project}")
    if faults:
        raise ConfigError("; ".join(faults) + ".")
    if _git(order.project, "status", "--porcelain", "--untracked-files=no"):
        say("note: uncommitted changes are not in the bundle")
    project = tomllib.loads((order.project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {
        "version": project["version"],
        "commit": commit,
        "profile": order.profile,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "platform": f"{platform.system()} {platform.machine()}".lower(),
        "created_at": int(time.time()),
        "models": list(order.models),
        "images": [order.image.name] if order.image else [],
    }


def _git(folder: Path, *words: str) -> str | None:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def open_notes(order: Order, facts: dict[str, Any]) -> Notes:
    """Return the notes of an order that was begun, or new ones.

    Raises:
        Conflict: The folder holds something else.
    """
    models = {name: sha256_file(order.data.model(name) / MODEL_MANIFEST) for name in order.models}
    image = sha256_file(order.image) if order.image else None
    wanted = [facts["commit"], facts["profile"], sha256_file(order.lock), order.piece_bytes, models, image]
    fingerprint = sha256_bytes(json.dumps(wanted, sort_keys=True).encode())
    path = order.out / NOTES
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["order"] != fingerprint:
            raise Conflict(f"{order.out}: another order was begun there. Give the same again, or another out=.")
        say(f"going on with {order.out}")
        clear_leftovers(order.out)
        packages = {line: Package(**row) for line, row in found["packages"].items()}
        split = {
            name: Whole(row["sha256"], row["size_bytes"], tuple(row["parts"])) for name, row in found["split"].items()
        }
        return Notes(fingerprint, packages, split)
    half_notes = f".{NOTES}.*.tmp"  # what a kill leaves of the first notes
    if not all(left.match(half_notes) for left in order.out.iterdir()):
        raise Conflict(f"{order.out}: wanted an empty folder or a begun bundle, found other things. Choose another.")
    clear_leftovers(order.out)
    notes = Notes(fingerprint, {}, {})
    notes.save(order.out)
    return notes


def clear_leftovers(folder: Path) -> None:
    """Remove what a run that was killed has half written: all hidden entries but the notes."""
    for path in list(folder.rglob(".*")):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != NOTES:
            path.unlink(missing_ok=True)  # it may have lain in a folder that is gone


def read_lock(path: Path) -> dict[str, str]:
    """Return each requirement of a lock with its hashes, if it has any, by its first words `name==version`."""
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return {line.split(" ", 1)[0]: line for line in lines}


def fetch_packages(order: Order, notes: Notes) -> None:
    """Bring every package of the lock as a wheel, some at a time.

    Raises:
        InputError: pip could not; its words stand above.
    """
    lock = read_lock(order.lock)
    missing = [line for line in lock if line not in notes.packages]
    for start in range(0, len(missing), BATCH_PACKAGES):
        names = missing[start : start + BATCH_PACKAGES]
        with tempfile.TemporaryDirectory(dir=order.out, prefix=".fetch-") as folder:
            _call_pip([lock[name] for name in names], Path(folder))
            _take_wheels(names, Path(folder), order, notes)
        notes.save(order.out)
        reach("create.packages")
        size = sum(package.size_bytes for package in notes.packages.values())
        say(f"packages: {len(notes.packages)} of {len(lock)}, {size / 2**20:,.0f} MiB")


def _call_pip(lines: list[str], folder: Path) -> None:
    wanted = folder / "wanted.txt"
    wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--wheel-dir", str(folder), "--requirement", str(wanted)], check=False)
    if done.returncode:
        raise InputError(
            "pip could not bring a package (above). Check the network, or point PIP_FIND_LINKS at a folder with its "
            "wheel (torch's CPU build is on PyTorch's own index); then give the same command again."
        )


def _take_wheels(names: list[str], folder: Path, order: Order, notes: Notes) -> None:
    """Move the wheels that came into the bundle and note them, each against its line of the lock."""
    came = {}
    for path in folder.glob("*.whl"):
        package = read_package(path)
        came[canonicalize_name(package.name), Version(package.version)] = (path, package)
    (order.out / "wheels").mkdir(exist_ok=True)
    for line in names:
        name, _, version = line.partition("==")
        found = came.get((canonicalize_name(name), Version(version)))
        if found is None:
            raise ContractError(f"{line}: wanted its wheel from pip, found {sorted(p.name for p, _ in came.values())}.")
        path, package = found
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(order.out / "wheels" / path.name)
        notes.packages[line] = package
    sync_directory(order.out / "wheels")


def put(out: Path, notes: Notes, path: str, write: Callable[[Path], None]) -> None:
    """Write a file of the bundle, whole or not at all, unless it is there or was cut already."""
    target = out / path
    if target.is_file() or path in notes.split:
        return
    if not SAFE_PATH.fullmatch(path):
        raise ContractError(f"{path}: wanted letters, digits and ._+@=- in a bundle's path. Rename it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    reach("create.put")
    temporary.replace(target)


def copying(source: Path) -> Callable[[Path], None]:
    """Return what writes a copy of a file, and shows how far it is."""

    def write(target: Path) -> None:
        whole = Whole(sha256_file(source), source.stat().st_size, (source.name,))
        copy_whole(source.parent, whole, target, Progress(source.name, whole.size_bytes))

    return write


def _archive(project: Path, target: Path) -> None:
    command = ["git", "archive", "--format=tar", f"--output={target.absolute()}", "HEAD"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotFound(f"{project}: git could not write its archive ({done.stderr.strip()}).")


def put_notices(order: Order, notes: Notes, facts: dict[str, Any]) -> None:
    """Write the read-me, the notices, the licence texts and the bill of materials."""
    manifests = [ModelManifest.read(order.data.model(name)) for name in order.models]
    packages = list(notes.packages.values())
    release = Manifest(facts, {}, {}).release
    texts = {
        "README.txt": README.format(release=release),
        "licences/NOTICE": "\n".join(find_llama_notices(manifests, packages)[0]),
        "licences/third-party.txt": render_texts(packages),
        "sbom.cdx.json": json.dumps(render_bill(facts, packages, manifests), indent=1) + "\n",
    }
    for path, text in texts.items():
        put(order.out, notes, path, lambda target, text=text: write_file(target, text))  # type: ignore[misc]
    put(order.out, notes, "licences/LICENSE", copying(order.project / "LICENSE"))


def split_large(order: Order, notes: Notes) -> None:
    """Cut each file that is larger than a piece; the file goes when its pieces are written and noted."""
    for path, is_plain in list(list_files(order.out)):
        source = order.out / path
        if path in notes.split:
            source.unlink()
        elif is_plain and source.stat().st_size > order.piece_bytes and path not in {NOTES, *CARRIED}:
            notes.split[path] = _cut(order, path)
            notes.save(order.out)
            reach("create.cut")
            source.unlink()


def _cut(order: Order, path: str) -> Whole:
    source = order.out / path
    size = source.stat().st_size
    parts = []
    for number, start in enumerate(range(0, size, order.piece_bytes), 1):
        part = f"{path}.part-{number:04d}"
        temporary = (order.out / part).with_name(".part.tmp")
        with source.open("rb") as file, temporary.open("wb") as output:
            file.seek(start)
            left = order.piece_bytes
            while left and (block := file.read(min(left, 1 << 20))):
                output.write(block)
                left -= len(block)
            output.flush()
            os.fsync(output.fileno())
        reach("create.part")
        temporary.replace(order.out / part)
        parts.append(part)
    return Whole(sha256_file(source), size, tuple(parts))


def seal(order: Order, notes: Notes, facts: dict[str, Any], key: Path | None) -> Manifest:
    """Hash everything, write manifest and sums, sign, and remove the notes: from then on the bundle is finished."""
    for name in (MANIFEST, SUMS, SIGNATURE):
        (order.out / name).unlink(missing_ok=True)
    names = [name for name, _ in list_files(order.out) if name != NOTES]
    progress = Progress("sealing", sum((order.out / name).stat().st_size for name in names))
    files = {
        name: Whole(hash_file(order.out / name, progress), (order.out / name).stat().st_size, (name,)) for name in names
    }
    unpacked = sum(package.unpacked_bytes for package in notes.packages.values())
    manifest = Manifest({**facts, "installed_bytes": unpacked}, files, notes.split)
    wheels = {package.file: package.sha256 for package in notes.packages.values()}
    changed = [path for path, whole in manifest.find("wheels/").items() if wheels.get(path[7:]) != whole.sha256]
    if changed or len(manifest.find("wheels/")) != len(wheels):
        raise ContractError(
            f"{order.out}: packages changed while the bundle was made: {', '.join(changed)}. Start anew."
        )
    manifest.write(order.out)
    reach("create.sealed")
    write_file(order.out / SUMS, manifest.render_sums(order.out))
    reach("create.summed")
    if key:
        sign(order.out, key)
        reach("create.signed")
    (order.out / NOTES).unlink()
    sync_directory(order.out)
    return manifest
