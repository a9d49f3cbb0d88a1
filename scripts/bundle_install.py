"""Install a bundle beside earlier releases and switch to it, or go back.

    PREFIX/releases/<version>-<commit>-<profile>/    project and .venv; installed.json is written last
    PREFIX/current, PREFIX/previous                  links to two of them
    PREFIX/data/                                     the data directory, which all releases share
    PREFIX/images/<release>/                         its container images

Killed at any moment, the current release stays what it was, and the next installation clears what was half done.
Carried in every bundle: Python's standard library and core only. Does not know what a bundle must hold;
bundle_format.py does.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path

from core.errors import ConfigError, Conflict, ContractError, NotFound, StorageFull
from core.failpoints import reach
from core.layout import sync_directory, write_json
from core.lock import hold_lock
from scripts.bundle_format import PROJECT, Manifest, Progress, copy_whole, hash_file, list_files, say, verify_bundle

MARK = "installed.json"
BYTECODE_SHARE = 0.3
"""How much compiled bytecode adds to unpacked packages, about."""
MANYLINUX_YEARS = {"1": (2, 5), "2010": (2, 12), "2014": (2, 17)}
PROGRAMS = ("awk", "bash", "grep", "sed", "sha256sum")
"""What the project's own set-up calls."""
SETUP_MARK = "LOAM_INSTALLS_INTO"
"""Variable of the set-up's processes that names their prefix, so that the next installation knows them."""
LIBRARIES = {"cpu": {"libnuma.so.1": "libnuma1 (Red Hat: numactl-libs)"}}
"""What a profile's packages load and do not bring, with the system's package of it."""


def install(bundle: Path, prefix: Path, signers: Path | None = None) -> Path:
    """Install a bundle: whole, or as if nothing had been.

    Args:
        bundle: The bundle's folder.
        prefix: Where Loam lives.
        signers: As for `verify_bundle`.

    Returns:
        The release's folder.

    Raises:
        ConfigError: The bundle does not fit this machine.
        Conflict: Another installation is at work, or another model of a name is there.
        ContractError: The bundle is not whole, or the environment could not be made.
        StorageFull: There is no room; nothing was begun.
    """
    start = time.monotonic()
    manifest = verify_bundle(bundle, signers)
    prefix = prefix.absolute()
    check_machine(manifest, prefix)
    prefix.mkdir(parents=True, exist_ok=True)
    with hold_lock(prefix / ".install.lock", _explain_lock):
        release = prefix / "releases" / manifest.release
        clear_unfinished(prefix)
        if (release / MARK).is_file():
            say(f"{manifest.release} is installed already")
        else:
            check_disk(manifest, prefix)
            put_release(bundle, manifest, prefix, release)
        switch(prefix, release)
    say(f"{manifest.release} is current after {time.monotonic() - start:.0f} s")
    for image in manifest.facts["images"]:
        say(f"image: docker load --input {prefix / 'images' / manifest.release / image}")
    say(f"next: cd {prefix / 'current'} && .venv/bin/python scripts/doctor.py && make demo")
    return release


def _explain_lock(holder: str) -> Conflict:
    return Conflict(f"another installation (process {holder}) is at work there. Wait for it.")


def check_machine(manifest: Manifest, prefix: Path) -> None:
    """Check that this machine can run what the bundle brings, before anything is written.

    Raises:
        ConfigError: It cannot; all that is missing is named.
    """
    facts = manifest.facts
    here = f"{platform.system()} {platform.machine()}".lower()
    found = ".".join(sys.version.split(".")[:2])
    faults = []
    if found != facts["python"]:
        faults.append(f"wanted Python {facts['python']}, found {found}. Run bundle.py by the other")
    if here != facts["platform"]:
        faults.append(f"wanted {facts['platform']}, found {here}. Make a bundle on such a machine")
    version, wheel = find_wanted_glibc(manifest.find("wheels/"))
    glibc = platform.libc_ver()[1]
    if tuple(map(int, re.findall(r"\d+", glibc)[:2])) < version:
        wanted = ".".join(map(str, version))
        faults.append(f"wanted glibc {wanted} or later ({wheel}), found {glibc or 'none'}. Use a newer system")
    faults += [
        f"wanted Python's module {module}, found none. Install the package python{found}-venv"
        for module in ("venv", "ensurepip")
        if importlib.util.find_spec(module) is None
    ]
    faults += [f"wanted the program {name}, found none. Install it" for name in PROGRAMS if not shutil.which(name)]
    faults += [
        f"wanted the library {name}, found none. Install the package {package}"
        for name, package in LIBRARIES.get(facts["profile"], {}).items()
        if not _is_loadable(name)
    ]
    if re.search(r"\s", str(prefix)):
        faults.append(f"to: wanted a path without blanks, found {str(prefix)!r}. Choose another")
    if faults:
        raise ConfigError("; ".join(faults) + ".")


def _is_loadable(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def find_wanted_glibc(wheels: Iterable[str]) -> tuple[tuple[int, int], str]:
    """Return the oldest glibc that all of some wheels run on, and the wheel that wants it; (0, 0) where none does.

    Source: PEP 600 (manylinux_x_y) and its names for the years before.
    """
    wanted = ((0, 0), "")
    for wheel in wheels:
        versions = [(int(major), int(minor)) for major, minor in re.findall(r"manylinux_(\d+)_(\d+)_", wheel)]
        versions += [version for year, version in MANYLINUX_YEARS.items() if f"manylinux{year}_" in wheel]
        if versions:
            wanted = max(wanted, (min(versions), wheel))  # a wheel with several tags runs where one of them does
    return wanted


def end_orphans(prefix: Path) -> None:
    """End the set-up that a killed installation has left running: it would go on writing into what is cleared now."""
    mark = f"{SETUP_MARK}={prefix.resolve()}".encode()
    while running := [entry for entry in Path("/proc").glob("[0-9]*") if mark in _read_environment(entry)]:
        for entry in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)
        time.sleep(0.05)


def _read_environment(process: Path) -> list[bytes]:
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is somebody else's
        return []


def clear_unfinished(prefix: Path) -> None:
    """Remove what an installation that was killed has left: releases without their mark, their images, half models."""
    end_orphans(prefix)
    releases, images = prefix / "releases", prefix / "images"
    left = [path for path in releases.glob("*") if not (path / MARK).is_file()]
    left += [path for path in images.glob("*") if not (releases / path.name / MARK).is_file()]
    left += [*(prefix / "data" / "models").glob(".*.bundle.tmp"), *prefix.glob(".staging")]
    for path in left:
        say(f"clearing {path.relative_to(prefix)}, not wholly installed")
        shutil.rmtree(path)


def check_disk(manifest: Manifest, prefix: Path) -> None:
    """Check that there is room for the wheels, what they unpack to, models and images.

    Raises:
        StorageFull: There is not.
    """
    kept = sum(whole.size_bytes for kind in ("models/", "images/") for whole in manifest.find(kind).values())
    wheels = sum(whole.size_bytes for whole in manifest.find("wheels/").values())
    needed = kept + wheels + round(manifest.facts["installed_bytes"] * (1 + BYTECODE_SHARE))
    free = shutil.disk_usage(prefix).free
    if free < needed:
        raise StorageFull(f"{prefix}: wanted {needed / 2**30:.1f} GiB of disk, found {free / 2**30:.1f}. Free some.")


def put_release(bundle: Path, manifest: Manifest, prefix: Path, release: Path) -> None:
    """Write a release, its environment, models and images; take all of it back where one part fails."""
    staging = prefix / ".staging"
    added: list[Path] = []
    try:
        say("writing the project")
        extract_project(bundle, manifest, release, staging)
        (prefix / "data").mkdir(mode=0o700, exist_ok=True)
        (release / "data").symlink_to(Path("..", "..", "data"))
        reach("install.project")
        make_environment(bundle, manifest, release, staging)
        reach("install.environment")
        for name in manifest.facts["models"]:
            added += put_model(bundle, manifest, name, prefix / "data" / "models")
        reach("install.models")
        for path, whole in manifest.find("images/").items():
            target = prefix / "images" / manifest.release / path.removeprefix("images/")
            copy_whole(bundle, whole, target, Progress(path, whole.size_bytes))
        os.sync()  # thousands of files: all of them are on the disk before the mark says so
        write_json(release / MARK, {"release": manifest.release, "installed_at": int(time.time()), **manifest.facts})
        reach("install.marked")
    except BaseException:
        say("taking back what was begun")
        for place in (release, *added):
            shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):  # what cannot be removed now goes at the next installation
            clear_unfinished(prefix)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def extract_project(bundle: Path, manifest: Manifest, release: Path, staging: Path) -> None:
    """Unpack the project.

    Raises:
        ContractError: An entry is a link, a device, or leads out of the folder.
    """
    archive = staging / PROJECT
    whole = manifest.find(PROJECT)[PROJECT]
    copy_whole(bundle, whole, archive, Progress(PROJECT, whole.size_bytes))
    release.mkdir(parents=True)
    with tarfile.open(archive, "r:") as tar:
        for member in tar:
            parts = member.name.rstrip("/").split("/")
            if not (member.isfile() or member.isdir()) or {"", ".", ".."} & set(parts):
                raise ContractError(f"{PROJECT}: {member.name!r} is a link or leads elsewhere. Do not use this bundle.")
            target = release.joinpath(*parts)
            content = tar.extractfile(member)
            if content is None:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("xb") as output:
                shutil.copyfileobj(content, output)
            target.chmod(0o755 if member.mode & 0o100 else 0o644)


def make_environment(bundle: Path, manifest: Manifest, release: Path, staging: Path) -> None:
    """Make the environment with the project's own set-up, from the bundle's wheels and from nothing else.

    Raises:
        ContractError: Set-up failed; its own words stand above.
    """
    wheels = manifest.find("wheels/")
    progress = Progress(f"{len(wheels)} packages", sum(whole.size_bytes for whole in wheels.values()))
    for path, whole in wheels.items():
        copy_whole(bundle, whole, staging / path, progress)
    reach("install.wheels")
    foreign = ("PIP_", "UV_", "LOAM_", "PYTHON", "VIRTUAL_ENV")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
        "LOAM_SET": manifest.facts["profile"],
        "LOAM_MIN_FREE_GB": "0",
        SETUP_MARK: str(release.parent.parent.resolve()),
        "PYTHON": sys.executable,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(staging / "wheels"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "UV_NO_CONFIG": "1",
        "UV_OFFLINE": "1",
        "UV_CACHE_DIR": str(staging / "cache"),
    }
    say("installing the packages")
    command = ["bash", "scripts/setup_env.sh"]
    with subprocess.Popen(
        command, cwd=release, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
    ) as setup:
        try:
            code = setup.wait()
        except BaseException:
            os.killpg(setup.pid, signal.SIGKILL)  # all of it: what it started would go on writing
            raise
    if code:
        raise ContractError("the environment could not be made; the lines above say why. Mend that and install again.")


def put_model(bundle: Path, manifest: Manifest, name: str, models: Path) -> list[Path]:
    """Copy a model into the data directory, whole or not at all.

    Returns:
        The folder, if it is new; nothing where the same model stands there already.

    Raises:
        Conflict: Another model has its name.
    """
    prefix = f"models/{name}/"
    files = {path.removeprefix(prefix): whole for path, whole in manifest.find(prefix).items()}
    folder, partial = models / name, models / f".{name}.bundle.tmp"
    progress = Progress(f"model {name}", sum(whole.size_bytes for whole in files.values()))
    if folder.exists():
        found = {file: hash_file(folder / file, progress) for file, is_plain in list_files(folder) if is_plain}
        if found != {path: whole.sha256 for path, whole in files.items()}:
            raise Conflict(
                f"{folder}: wanted the bundle's model or none, found another of its name. Move it away first."
            )
        say(f"{name} is here and intact")
        return []
    for path, whole in files.items():
        copy_whole(bundle, whole, partial / path, progress)
    os.sync()
    partial.rename(folder)
    return [folder]


def switch(prefix: Path, release: Path) -> None:
    """Make a release the current one by one rename, and remember the one before."""
    current, target = prefix / "current", str(release.relative_to(prefix))
    if current.is_symlink():
        if str(current.readlink()) == target:
            return
        _link(prefix / "previous", str(current.readlink()))
    _link(current, target)
    reach("install.switched")


def _link(path: Path, target: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)
    sync_directory(path.parent)


def rollback(prefix: Path) -> str:
    """Make the release before the current one current again.

    Returns:
        Its name.

    Raises:
        NotFound: There is none.
    """
    prefix = prefix.absolute()
    previous = prefix / "previous"
    if not (previous / MARK).is_file():
        raise NotFound(f"{prefix}: wanted an earlier release to go back to, found none. Check to=.")
    with hold_lock(prefix / ".install.lock", _explain_lock):
        target = prefix / previous.readlink()
        switch(prefix, target)
        installed: dict[str, str] = json.loads((target / MARK).read_text(encoding="utf-8"))
        return installed["release"]
