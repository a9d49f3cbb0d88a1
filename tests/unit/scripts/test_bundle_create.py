"""Making a bundle: what goes in, what is refused before anything is fetched, and going on after kill -9."""

import ast
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.errors import ConfigError, Conflict, InputError
from core.failpoints import NAMED, SWITCH
from scripts.bundle_create import CARRIED, NOTES, create_bundle, hold_folder, read_lock
from scripts.bundle_format import MANIFEST, list_files, read_manifest, verify_bundle
from tests.fakes.bundles import REPO, make_order, write_model, write_packages

PACKAGES = 14
"""More than one batch."""
KILLS = ["create.packages:1", "create.cut:1", "create.sealed:1", "file.synced:3"]
if os.environ.get("LOAM_TEST_FULL"):
    KILLS += [
        *(f"file.synced:{turn}" for turn in (1, 2, *range(4, 10))),
        *(f"file.renamed:{turn}" for turn in range(1, 10)),
        *(f"create.put:{turn}" for turn in range(1, 15)),
        *(f"create.part:{turn}" for turn in range(1, 6)),
        "create.packages:2", "create.cut:2", "create.summed:1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheels, a project that locks them and a model; never written to."""
    folder = tmp_path_factory.mktemp("create")
    order = make_order(folder, write_packages(folder / "packages", PACKAGES))
    write_model(order.data, "mini")
    return folder


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, where pip finds the wheels."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "packages"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path


@pytest.fixture(scope="module")
def wanted(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """What an undisturbed bundle holds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(made, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_FIND_LINKS", str(folder / "packages"))
        patch.setenv("PIP_NO_INDEX", "1")
        create_bundle(make_order(folder, [], models=("mini",)))
    return read_bundle(folder / "bundle")


def read_bundle(folder: Path) -> dict[str, tuple[str, int]]:
    """Return digest and size of each whole file but those that hold the time of making."""
    timed = {"sbom.cdx.json"}
    found = read_manifest(folder).find("")
    return {path: (whole.sha256, whole.size_bytes) for path, whole in found.items() if path not in timed}


def test_it_holds_packages_project_models_notices_and_what_checks_it(root: Path) -> None:
    order = make_order(root, [], models=("mini",), piece_bytes=20_000)
    manifest = create_bundle(order)
    verify_bundle(order.out)
    assert len(manifest.find("wheels/")) == PACKAGES + 1
    assert {f"models/mini/{name}" for name in ("config.json", "model.json", "model.safetensors")} == set(
        manifest.find("models/")
    )
    assert {*CARRIED, "project.tar", "README.txt", "licences/NOTICE"} <= manifest.find("").keys()
    sizes = {path: whole.size_bytes for path, whole in manifest.files.items() if path not in CARRIED}
    assert max(sizes.values()) <= order.piece_bytes
    assert manifest.split.keys() >= {"models/mini/model.safetensors"}
    assert not (order.out / NOTES).exists()
    bill = json.loads((order.out / "sbom.cdx.json").read_text())
    hashes = {part["hashes"][0]["content"] for part in bill["components"] if part["type"] == "library"}
    assert hashes == {whole.sha256 for whole in manifest.find("wheels/").values()}
    needs = {row["ref"]: row["dependsOn"] for row in bill["dependencies"]}
    assert needs["pkg:pypi/reed2@1.2"] == ["pkg:pypi/reed1@1.1"]
    assert "Do as you like." in (order.out / "licences" / "third-party.txt").read_text()
    with pytest.raises(Conflict, match="wanted an empty folder"):
        create_bundle(order)


def begin_bundle(root: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Begin a bundle in a process of its own."""
    command = [sys.executable, "-m", "tests.fakes.bundle_command", str(root)]
    return subprocess.Popen(command, cwd=REPO, env={**os.environ, **variables}, start_new_session=True)


def check_second_try(root: Path, wanted: dict[str, tuple[str, int]]) -> None:
    """Make the bundle after a kill: nothing that was noted is fetched again, and it is as if nothing had been."""
    whole = make_order(root, [], models=("mini",))
    notes = whole.out / NOTES
    for package in json.loads(notes.read_text())["packages"].values() if notes.is_file() else ():
        (root / "packages" / package["file"]).unlink()
    create_bundle(whole)
    verify_bundle(whole.out)
    assert read_bundle(whole.out) == wanted


@pytest.mark.parametrize("place", KILLS)
def test_it_goes_on_after_a_kill_and_fetches_nothing_twice(
    root: Path, wanted: dict[str, tuple[str, int]], place: str
) -> None:
    assert begin_bundle(root, **{SWITCH: "1", NAMED: place}).wait() == -signal.SIGKILL
    check_second_try(root, wanted)


@pytest.mark.skipif(not os.environ.get("LOAM_TEST_FULL"), reason="wanted LOAM_TEST_FULL=1: ten bundles more")
@pytest.mark.parametrize("seed", range(10))
def test_it_goes_on_after_a_kill_of_all_its_processes_at_any_moment(
    root: Path, wanted: dict[str, tuple[str, int]], seed: int
) -> None:
    bundle = root / "bundle"
    with begin_bundle(root) as process:
        time.sleep(random.Random(seed).uniform(0.5, 6))
        os.killpg(process.pid, signal.SIGKILL)
    if (bundle / NOTES).is_file() or not (bundle / MANIFEST).is_file():  # else it had just ended
        check_second_try(root, wanted)
    verify_bundle(bundle)
    verify_bundle(root / "bundle")


def test_two_do_not_write_into_one_folder(root: Path) -> None:
    order = make_order(root, [])
    order.out.mkdir()
    with hold_folder(order.out), pytest.raises(Conflict, match="another process makes a bundle there"):
        create_bundle(order)
    assert list(order.out.iterdir()) == []


def test_another_order_does_not_go_on_with_it(root: Path) -> None:
    (root / "packages" / f"reed{PACKAGES - 1}-1.{PACKAGES - 1}-py3-none-any.whl").unlink()
    order = make_order(root, [])
    with pytest.raises(InputError, match="pip could not bring a package"):
        create_bundle(order)
    with pytest.raises(Conflict, match="another order was begun"):
        create_bundle(make_order(root, [], models=("mini",)))


def test_all_faults_of_an_order_come_at_once(root: Path) -> None:
    write_model(make_order(root, []).data, "llama", "Llama 3.2 Community License")
    (make_order(root, []).data.model("mini") / "config.json").write_text("{ }")
    with pytest.raises(ConfigError) as refusal:
        create_bundle(make_order(root, [], models=("llama", "mini", "none"), piece_bytes=0), root / "no-key")
    for words in ("config.json has changed", "none/model.json: wanted a manifest", "piece_mib", "sign:", "LICENSE.txt"):
        assert words in refusal.value.message
    assert not (root / "bundle").exists()


def test_a_llama_model_brings_metas_notice(root: Path) -> None:
    order = make_order(root, [], models=("llama",))
    files = {"config.json": "{}", "model.safetensors": "w", "LICENSE.txt": "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT"}
    write_model(order.data, "llama", "Llama 3.2 Community License", files)
    create_bundle(order)
    notice = (order.out / "licences" / "NOTICE").read_text()
    assert "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc." in notice
    assert "Built with Llama" in notice
    assert "models/llama/LICENSE.txt" in dict(list_files(order.out))


def test_hashes_of_a_lock_are_kept(tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text(
        "# note\na==1 \\\n    --hash=sha256:00 \\\n    --hash=sha256:01\n    # via b\nb==2\n"
    )
    found = read_lock(tmp_path / "lock.txt")
    assert list(found) == ["a==1", "b==2"]
    assert found["a==1"].split() == ["a==1", "--hash=sha256:00", "--hash=sha256:01"]


def list_imports(path: Path) -> set[str]:
    """Return the modules that a file imports anywhere but under the name of what only a checkout has."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names - {"scripts.bundle_create"}


def test_what_is_carried_needs_the_standard_library_and_what_is_carried() -> None:
    ours = {source.removesuffix(".py").replace("/", ".") for source in CARRIED.values()}
    for source in CARRIED.values():
        foreign = {name for name in list_imports(REPO / source) if name.split(".")[0] not in sys.stdlib_module_names}
        assert foreign <= ours, source
