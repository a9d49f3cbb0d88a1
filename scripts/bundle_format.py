"""What a bundle is, and whether one is whole: manifest, sums, signature.

    manifest.json               facts; SHA-256 and size of every file but these three; sealed by a checksum of itself
    SHA256SUMS                  the same digests and the manifest's, for `sha256sum --check` and for signing
    SHA256SUMS.sig              optional, by ssh-keygen -Y sign -n loam-bundle
    bundle.py core/ scripts/    what checks and installs it
    project.tar                 the checkout at one commit
    wheels/ models/ images/     packages of the lock, model folders with their own manifests, container images
    licences/ sbom.cdx.json     notices, and the bill of materials (CycloneDX)

A file larger than the chosen piece lies as NAME.part-0001 and so on; the manifest says what they join to. Carried in
every bundle: Python's standard library and core only. Does not know how a bundle is made or installed.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ContractError, NotFound
from core.layout import read_sealed_json, sha256_file, write_sealed_json

FORMAT = 1
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"
NAMESPACE = "loam-bundle"
PROJECT = "project.tar"
FACTS = frozenset(
    {"version", "commit", "profile", "python", "platform", "created_at", "models", "images", "installed_bytes"}
)
SAFE_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@=-]*(/[A-Za-z0-9_][A-Za-z0-9._+@=-]*)*")
"""Paths inside a bundle: no absolute one, no `..`, nothing hidden."""
CHUNK_BYTES = 1 << 20
SHOWN_FROM_BYTES = 100 * 2**20
"""Work from this size on shows how far it is."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A file as it is used: one file of the bundle, or several that follow each other.

    Attributes:
        sha256: Of all of it.
        size_bytes: Of all of it.
        parts: Paths in the bundle, in their order.
    """

    sha256: str
    size_bytes: int
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What stands in manifest.json.

    Attributes:
        facts: The values of FACTS.
        files: Every file of the bundle but manifest, sums and signature, each a Whole of one part.
        split: Files that were cut into pieces.
    """

    facts: dict[str, Any]
    files: dict[str, Whole]
    split: dict[str, Whole]

    @property
    def release(self) -> str:
        """Return the folder's name that an installation gets."""
        return f"{self.facts['version']}-{self.facts['commit'][:10]}-{self.facts['profile']}"

    @property
    def size_bytes(self) -> int:
        """Return the size of all files."""
        return sum(whole.size_bytes for whole in self.files.values())

    def find(self, prefix: str) -> dict[str, Whole]:
        """Return the whole files whose path begins so, by path; pieces are joined to what they make."""
        pieces = {part for whole in self.split.values() for part in whole.parts}
        joined = {path: whole for path, whole in self.files.items() if path not in pieces} | self.split
        return {path: whole for path, whole in sorted(joined.items()) if path.startswith(prefix)}

    def write(self, folder: Path) -> None:
        """Write manifest and sums into a bundle; the sums come last, so that a bundle with them is finished."""
        content = {
            "format": FORMAT,
            **self.facts,
            "files": {path: [whole.size_bytes, whole.sha256] for path, whole in sorted(self.files.items())},
            "split": {
                path: {"size_bytes": whole.size_bytes, "sha256": whole.sha256, "parts": list(whole.parts)}
                for path, whole in sorted(self.split.items())
            },
        }
        write_sealed_json(folder / MANIFEST, content)

    def render_sums(self, folder: Path) -> bytes:
        """Return what SHA256SUMS must hold, in the form that `sha256sum --check` reads."""
        digests = {path: whole.sha256 for path, whole in self.files.items()} | {
            MANIFEST: sha256_file(folder / MANIFEST)
        }
        return "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items())).encode()


def read_manifest(folder: Path) -> Manifest:
    """Read and check a bundle's manifest, but no other file.

    Raises:
        NotFound: There is none.
        ContractError: It is damaged, of another format, or names a path that leads elsewhere.
    """
    path = folder / MANIFEST
    if not path.is_file() or path.is_symlink():
        raise NotFound(f"{folder}: wanted a bundle with {MANIFEST}, found none. Give the bundle's folder.")
    try:
        content = read_sealed_json(path)
        if content.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}: use the bundle.py that lies beside it")
        files = {name: Whole(str(digest), int(size), (name,)) for name, (size, digest) in content.pop("files").items()}
        split = {
            name: Whole(str(row["sha256"]), int(row["size_bytes"]), tuple(row["parts"]))
            for name, row in content.pop("split").items()
        }
        if content.keys() != FACTS:
            raise ValueError(f"wanted {', '.join(sorted(FACTS))}; found {', '.join(sorted(content))}")
    except (ContractError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ContractError(
            f"{MANIFEST} has changed or is of another Loam ({error}). Carry the bundle in anew."
        ) from error
    manifest = Manifest(content, files, split)
    parts = [part for whole in split.values() for part in whole.parts]
    names = [*files, *split, *parts, manifest.release, *content["models"], *content["images"]]
    odd = [name for name in names if not SAFE_PATH.fullmatch(str(name))] + [part for part in parts if part not in files]
    if odd:
        raise ContractError(f"{MANIFEST} names what no bundle holds: {', '.join(map(repr, odd[:5]))}. Do not use it.")
    return manifest


def list_files(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield every entry below a folder but plain folders: its path, and whether it is an ordinary file."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            for name, is_plain in list_files(folder / entry.name):
                yield f"{entry.name}/{name}", is_plain
        else:
            yield entry.name, entry.is_file(follow_symlinks=False)


def verify_bundle(folder: Path, signers: Path | None = None) -> Manifest:
    """Check that a bundle holds exactly what its manifest names, byte for byte, and its signature if it has one.

    Args:
        folder: The bundle.
        signers: Who may have signed it, in ssh-keygen's format of allowed signers; None compares with nobody.

    Returns:
        The manifest.

    Raises:
        NotFound: It is no bundle.
        ContractError: Something is missing, changed, extra or no ordinary file, or the signature is not as wanted; all
            is named.
    """
    manifest = read_manifest(folder)
    wanted = set(manifest.files) | {MANIFEST, SUMS}
    found = dict(list_files(folder))
    faults = [f"{name} is a link or no ordinary file" for name, is_plain in found.items() if not is_plain]
    faults += [f"{name} is missing" for name in sorted(wanted - found.keys())]
    faults += [f"{name} is not in the manifest" for name in sorted(found.keys() - wanted - {SIGNATURE})]
    progress = Progress("checking", manifest.size_bytes)
    for name, whole in manifest.files.items():
        if found.get(name):
            size_bytes = (folder / name).stat().st_size
            if size_bytes != whole.size_bytes:
                faults.append(f"{name} has changed: {size_bytes} bytes, wanted {whole.size_bytes}")
            elif hash_file(folder / name, progress) != whole.sha256:
                faults.append(f"{name} has changed")
    if found.get(SUMS) and (folder / SUMS).read_bytes() != manifest.render_sums(folder):
        faults.append(f"{SUMS} has changed")
    if found.get(SIGNATURE):
        faults += check_signature(folder, signers)
    elif signers is not None:
        faults.append(f"{SIGNATURE} is missing: wanted a signature by one of {signers}")
    if faults:
        raise ContractError(f"{folder}: {'; '.join(faults)}. Nothing was installed; carry the bundle in anew.")
    return manifest


def hash_file(path: Path, progress: "Progress") -> str:
    """Return a file's SHA-256, and show how far it is."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
            progress.add(len(block))
    return digest.hexdigest()


def copy_whole(bundle: Path, whole: Whole, target: Path, progress: "Progress") -> None:
    """Write a file out of its parts.

    Raises:
        ContractError: Its bytes are not the manifest's any more.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("wb") as output:
        for part in whole.parts:
            with (bundle / part).open("rb") as file:
                while block := file.read(CHUNK_BYTES):
                    digest.update(block)
                    output.write(block)
                    progress.add(len(block))
    if digest.hexdigest() != whole.sha256:
        raise ContractError(f"{', '.join(whole.parts)} changed while it was read. Check the medium and try again.")


def sign(folder: Path, key: Path) -> None:
    """Sign a bundle's sums with an SSH key; ssh-keygen asks for its passphrase by itself.

    Raises:
        ContractError: ssh-keygen refused.
    """
    command = ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(folder / SUMS)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ContractError(f"{key}: ssh-keygen could not sign with it ({done.stderr.strip()}). Check sign=.")


def check_signature(folder: Path, signers: Path | None) -> list[str]:
    """Return what is wrong with the signature of the sums.

    Without signers the signature must still be one of these very bytes, by whomever; who that is, is printed.
    """
    if shutil.which("ssh-keygen") is None:
        return [f"{SIGNATURE} cannot be checked: wanted ssh-keygen, found none"]
    text = (folder / SIGNATURE).read_bytes()
    body = b"".join(text.split(b"\n")[1:-2])
    lines = [body[start : start + 70] for start in range(0, len(body), 70)]
    if text != b"\n".join([b"-----BEGIN SSH SIGNATURE-----", *lines, b"-----END SSH SIGNATURE-----", b""]):
        return [f"{SIGNATURE} has changed"]  # ssh-keygen would pass over some of it
    file = ["-n", NAMESPACE, "-s", str(folder / SIGNATURE)]
    if signers is None:
        done = _run_keygen(["-Y", "check-novalidate", *file], folder / SUMS)
        note = "; compared with nobody, give signers=FILE"
    else:
        who = _run_keygen(["-Y", "find-principals", "-s", str(folder / SIGNATURE), "-f", str(signers)], folder / SUMS)
        name = who.stdout.partition("\n")[0].strip()
        if who.returncode or not name:
            return [f"{SIGNATURE} is by nobody of {signers}"]
        done = _run_keygen(["-Y", "verify", "-f", str(signers), "-I", name, *file], folder / SUMS)
        note = ""
    if done.returncode:
        return [f"{SIGNATURE} or {SUMS} has changed ({(done.stderr.strip() or done.stdout.strip())[:200]})"]
    say(f"signature: {done.stdout.strip()}{note}")
    return []


def _run_keygen(arguments: list[str], message: Path) -> subprocess.CompletedProcess[str]:
    with message.open("rb") as file:
        command = ["ssh-keygen", *arguments]
        return subprocess.run(command, stdin=file, capture_output=True, text=True, errors="replace", check=False)


class Progress:
    """Shows how far a long piece of work is: one line that changes on a terminal, a line each tenth elsewhere."""

    def __init__(self, what: str, total_bytes: int) -> None:
        self.what, self.total_bytes, self.done_bytes = what, max(total_bytes, 1), 0
        self._step, self._start = 0, time.monotonic()

    def add(self, size_bytes: int) -> None:
        """Count bytes that are done."""
        self.done_bytes += size_bytes
        is_terminal = sys.stderr.isatty()
        step = (100 if is_terminal else 10) * self.done_bytes // self.total_bytes
        if step <= self._step or self.total_bytes < SHOWN_FROM_BYTES:
            return
        self._step = step
        speed = self.done_bytes / 2**20 / max(time.monotonic() - self._start, 1e-3)
        done, total = self.done_bytes / 2**20, self.total_bytes / 2**20
        end = "\r" if is_terminal and self.done_bytes < self.total_bytes else "\n"
        print(f"{f'{self.what}: {done:,.0f} of {total:,.0f} MiB, {speed:,.0f} MiB/s':<78}", end=end, file=sys.stderr)


def say(text: str) -> None:
    """Tell the operator."""
    print(f"bundle: {text}", file=sys.stderr, flush=True)
