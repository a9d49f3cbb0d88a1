"""The doctor of the machine: real computations, real files and sockets; each fault is named with what mends it."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import ContractError
from core.layout import DataDir
from core.manifest import ModelKind, ModelManifest, hash_files
from retrieval.database import open_database
from scripts import doctor_machine
from scripts.doctor_machine import (
    MACHINE_CHECKS,
    Wanted,
    check_assets,
    check_disk,
    check_driver,
    check_keys,
    check_memory,
    check_models,
    check_packages,
    check_ports,
    examine_machine,
    find_library_remedy,
    find_lock,
    find_wanted,
    probing,
)
from scripts.doctor_probes import PROBES
from scripts.finding import Finding
from serve.keys import create_key, list_keys, revoke_key

REPO = Path(__file__).resolve().parents[3]
SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
}  # fmt: skip


def write_model(data: DataDir, name: str, kind: ModelKind = ModelKind.LLM, size_bytes: int = 7) -> None:
    folder = data.model(name)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SHAPE))
    (folder / "model.safetensors").write_bytes(b"weights")
    ModelManifest(name, kind, "here", None, "MIT", hash_files(folder)).write(folder)
    os.truncate(folder / "model.safetensors", size_bytes)


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    data = DataDir(tmp_path / "data")
    write_model(data, "mini")
    write_model(data, "all-minilm-l6-v2", ModelKind.EMBEDDER)
    return Wanted(data, "cpu", "mini")


def find(said: object) -> list[Finding]:
    return [one for one in said if isinstance(one, Finding)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PROBES)
def test_each_kernel_really_runs_here(wanted: Wanted, name: str) -> None:
    (fact,) = probing(name)(wanted)
    assert isinstance(fact, str), fact
    assert name in fact.lower()


def test_a_kernel_that_cannot_run_is_a_finding(wanted: Wanted) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("wanted a machine without a card, found nvidia-smi")
    (finding,) = probing("torch")(replace(wanted, profile="h100"))
    assert isinstance(finding, Finding)
    assert "make setup" in finding.remedy
    assert [one.subject for one in find(check_driver(replace(wanted, profile="h100")))] == ["nvidia-smi"]


@pytest.mark.parametrize(
    ("compiler", "missing"),
    [("", ["gcc"]), ("scripts/triton_module.sh", []), ("none-such", ["none-such", "Python.h"])],
)
def test_a_card_needs_a_compiler_or_what_the_images_have_instead(
    wanted: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, missing: list[str]
) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'NVIDIA H100, 580.1, 81559 MiB, 81000 MiB'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", str(REPO / compiler) if "/" in compiler else compiler)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    if not compiler:
        (tmp_path / "Python.h").touch()
    said = list(check_driver(replace(wanted, profile="h100")))
    assert said[0] == "NVIDIA H100, 580.1, 81559 MiB, 81000 MiB"
    assert [Path(one.subject).name for one in said if isinstance(one, Finding)] == missing


@pytest.mark.parametrize(
    ("library", "remedy"), [("libnuma.so.1", "apt install libnuma1"), ("libodd-2.so.7", "package of your system")]
)
def test_a_missing_library_of_the_system_is_told_with_what_brings_it(library: str, remedy: str) -> None:
    fault = f"ImportError: {library}: cannot open shared object file: No such file or directory"
    assert remedy in (find_library_remedy(fault) or "")
    assert find_library_remedy("ImportError: no module named vllm") is None


def test_packages_are_held_against_the_profiles_own_lock(wanted: Wanted) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("wanted the CPU set, found a card")
    assert find(check_packages(wanted)) == []
    (finding,) = find(check_packages(replace(wanted, profile="h100")))
    assert "vllm missing" in finding.fault or "more" in finding.fault
    assert finding.remedy == "LOAM_SET=cuda make setup"


def test_an_image_is_held_against_the_lock_that_it_was_made_from(tmp_path: Path) -> None:
    lock = tmp_path / "locks"
    assert find_lock(tmp_path, "cuda") == lock / "cuda.txt"
    (tmp_path / ".venv").mkdir()
    for noted, name in (("cuda-image", "cuda-image.txt"), ("cuda", "cuda.txt"), ("", "cuda.txt")):
        (tmp_path / ".venv" / "loam-setup").write_text(f"{noted} 0a1b /srv/loam\n2c3d\n")
        assert find_lock(tmp_path, "cuda") == lock / name
    assert find_lock(tmp_path, "cpu") == lock / "cpu.txt"


def test_models_are_named_with_the_command_that_gets_them(wanted: Wanted) -> None:
    assert find(check_models(wanted)) == []
    (wanted.data.model("mini") / "config.json").write_text("{}")
    shutil.rmtree(wanted.data.model("all-minilm-l6-v2"))
    changed, missing = find(check_models(wanted))
    assert "config.json has changed" in changed.fault
    get = f"python scripts/models.py --data-dir {wanted.data.root} import PATH --name mini"
    assert changed.remedy == f"rm -r {wanted.data.model('mini')} && {get}"  # it refuses a name that is taken
    assert missing.remedy.endswith("get all-minilm-l6-v2")


def test_every_asset_of_this_checkout_is_there(wanted: Wanted) -> None:
    assert find(check_assets(wanted)) == []


def test_a_taken_port_is_named_unless_our_own_gateway_has_it(wanted: Wanted) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = replace(wanted, port=holder.getsockname()[1])
        assert [one.subject for one in find(check_ports(taken))] == [f"127.0.0.1:{taken.port}"]
        (wanted.data.root / "gateway.lock").write_bytes(b"\xff\n")
        assert len(find(check_ports(taken))) == 1
        (wanted.data.root / "gateway.lock").write_text(f"{os.getpid()}\n")
        assert find(check_ports(taken)) == []
    assert find(check_ports(taken)) == []


def test_disk_and_memory_follow_the_model(wanted: Wanted) -> None:
    assert find(check_disk(wanted)) == []
    assert find(check_memory(wanted)) == []
    write_model(wanted.data, "huge", size_bytes=1 << 42)
    huge = replace(wanted, model="huge")
    assert [one.check for one in (*find(check_disk(huge)), *find(check_memory(huge)))] == ["disk", "memory"]
    (fact,) = check_memory(replace(wanted, model="none"))
    assert fact == "cannot be told without none"


def test_what_cannot_be_read_ends_no_other_check(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    for damage in ("{", "{}"):
        (wanted.data.model("mini") / "config.json").write_text(damage)
        assert list(check_memory(wanted)) == ["cannot be told without mini"]
    (wanted.data.model("mini") / "config.json").unlink()
    checks = (("memory", check_memory), ("odd", read_odd), ("keys", check_keys))
    monkeypatch.setattr(doctor_machine, "MACHINE_CHECKS", checks)
    findings, facts = examine_machine(wanted)
    assert [(one.check, "directory" in one.fault) for one in findings] == [("odd", True)]
    assert facts["memory"] == ["cannot be told without mini"]
    assert facts["odd"] == ["begun"]
    assert len(facts["keys"]) == 1


def read_odd(wanted: Wanted) -> Iterator[Finding | str]:
    """Say something, then open a folder as a file."""
    yield "begun"
    yield (wanted.data.root / "models").read_text()


def test_a_foreign_address_needs_a_good_key(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOAM_API_KEY", raising=False)
    open_to_all = replace(wanted, host="0.0.0.0")
    assert find(check_keys(wanted)) == []
    assert [one.subject for one in find(check_keys(open_to_all))] == ["0.0.0.0"]
    engine = open_database(wanted.data.database)
    create_key(engine, "sales")
    assert find(check_keys(open_to_all)) == []
    revoke_key(engine, list_keys(engine)[0].id)
    engine.dispose()
    assert len(find(check_keys(open_to_all))) == 1
    monkeypatch.setenv("LOAM_API_KEY", "loam-x-y")
    assert find(check_keys(open_to_all)) == []


def test_auto_takes_the_only_language_model(wanted: Wanted, tmp_path: Path) -> None:
    assert find_wanted(wanted.data, "cpu", "auto", "127.0.0.1", 8000).model == "mini"
    none = DataDir(tmp_path / "none")
    assert find_wanted(none, "cpu", "auto", "127.0.0.1", 8000).model == "smollm2-135m-instruct"
    assert find_wanted(none, "h100", "auto", "127.0.0.1", 8000).model == "llama-3.2-3b-instruct"


@pytest.mark.skipif(not os.environ.get("LOAM_TEST_FULL"), reason="wanted LOAM_TEST_FULL=1: it tries every kernel again")
def test_the_command_tells_it_all_as_json(wanted: Wanted) -> None:
    (wanted.data.model("mini") / "config.json").unlink()
    command = [sys.executable, "scripts/doctor.py", str(wanted.data.root), "profile=cpu", "model=mini", "port=0"]
    done = subprocess.run([*command, "output=json"], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == ContractError.exit_code, done.stderr
    report = json.loads(done.stdout)
    assert list(report["facts"]) == [name for name, _ in MACHINE_CHECKS]
    assert {finding["check"] for finding in report["findings"]} >= {"wanted models", "models"}
    table = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False).stdout
    get = f"next: rm -r {wanted.data.model('mini')} && python scripts/models.py --data-dir {wanted.data.root} import"
    assert table.splitlines()[-1].startswith(get)
