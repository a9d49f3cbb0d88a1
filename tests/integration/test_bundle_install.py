"""Installing a bundle without a network: whole or not at all, by a bare Python, beside what was there before."""

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

from core.failpoints import NAMED, SWITCH
from core.layout import DataDir, read_sealed_json, sha256_file, write_sealed_json
from scripts.bundle_create import Order, create_bundle
from scripts.bundle_format import MANIFEST, SUMS, read_manifest
from scripts.bundle_install import SETUP_MARK, end_orphans, find_wanted_glibc
from tests.fakes.bundles import BARE_PYTHON, REPO, make_order, repack, write_model, write_packages, write_project

IMAGE = "loam-serve.tar"
KILLS = ["install.environment"]
if os.environ.get("LOAM_TEST_FULL"):
    KILLS += [
        "install.marked",
        "install.project",
        "install.wheels",
        "install.models",
        "install.switched",
        "file.synced",
        "file.renamed",
    ]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bundles of a small project at two commits, with the real uv and setuptools of this environment."""
    root = tmp_path_factory.mktemp("install")
    lines = write_packages(root / "packages")
    for name in ("uv", "setuptools"):
        path = repack(root / "packages", name)
        lines.append(f"{name}=={path.name.split('-')[1]}")
    first = make_order(root, sorted(lines), models=("mini",), piece_bytes=10 * 2**20)
    write_model(first.data, "mini")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_FIND_LINKS", str(root / "packages"))
        patch.setenv("PIP_NO_INDEX", "1")
        create_bundle(first)
        write_project(root / "project", sorted(lines), "second")
        image = root / IMAGE
        image.write_bytes(b"layers " * 1000)
        second = Order("cpu", (), first.piece_bytes, image, first.project, first.data, root / "second")
        create_bundle(second)
    return first.out, second.out


def run_bundle(
    bundle: Path, *words: str, place: str = "", umask: int = -1, is_counted: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a bundle's own program by a bare Python; unless told otherwise where only loopback exists, and counted."""
    room = (
        []
        if os.environ.get("AIRGAP_AUDIT_LOG") or not is_counted
        else [sys.executable, str(REPO / "scripts" / "prove_airgap.py")]
    )
    command = [*room, BARE_PYTHON, "-S", "-E", str(bundle / "bundle.py"), *words]
    environment = {**os.environ, **({SWITCH: "1", NAMED: place} if place else {})}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300, umask=umask
    )


def list_entries(prefix: Path) -> set[str]:
    """Return what a prefix holds at its top and in its folders of releases and models."""
    folders = (prefix, prefix / "releases", prefix / "data" / "models")
    return {str(path.relative_to(prefix)) for folder in folders if folder.is_dir() for path in folder.iterdir()}


def read_word(prefix: Path) -> str:
    return (prefix / "current" / "word.txt").read_text()


def check_setup_changes_nothing(release: Path, folder: Path) -> None:
    """Set up once more where a driver answers: an installed release keeps the set that its bundle brought."""
    (folder / "nvidia-smi").write_text("#!/bin/sh\n")
    (folder / "nvidia-smi").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "LOAM_SET"}
    environment |= {"PATH": f"{folder}:{os.environ['PATH']}", "PWD": str(release)}
    setup = ["bash", "scripts/setup_env.sh"]
    again = subprocess.run(setup, cwd=release, env=environment, capture_output=True, text=True, check=True)
    assert again.stderr == ""


def test_install_upgrade_rollback_and_nothing_to_set_up_again(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = bundles
    prefix = tmp_path / "prefix"
    done = run_bundle(first, "install", f"to={prefix}", umask=0o077)  # as root has it on a hardened machine
    assert done.returncode == 0, done.stderr
    release = (prefix / "current").resolve()
    for path in (prefix, release, release / ".venv" / "bin", release / "scripts" / "setup_env.sh"):
        assert path.stat().st_mode & 0o055 == 0o055, path
    assert (prefix / "data").stat().st_mode & 0o777 == 0o700
    assert "air gap: 0 packets without a way out" in done.stderr or os.environ.get("AIRGAP_AUDIT_LOG")
    code = "import reed0, reed2, torch, setuptools; print(reed2.NUMBER, torch.IS_SMALL)"
    command = [str(prefix / "current" / ".venv" / "bin" / "python"), "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "2 True\n"
    model = prefix / "current" / "data" / "models" / "mini"
    assert {path.name for path in model.iterdir()} == {"config.json", "model.json", "model.safetensors"}
    assert not (prefix / ".staging").exists()
    check_setup_changes_nothing(prefix / "current", tmp_path)
    upgraded = run_bundle(second, "install", f"to={prefix}")
    assert upgraded.returncode == 0, upgraded.stderr
    loaded = prefix / "images" / read_manifest(second).release / IMAGE
    assert f"docker load --input {loaded}" in upgraded.stderr
    assert loaded.read_bytes() == b"layers " * 1000
    assert read_word(prefix) == "second"
    back = run_bundle(second, "rollback", f"to={prefix}")
    assert back.returncode == 0, back.stderr
    assert read_word(prefix) == "first"
    assert run_bundle(second, "rollback", f"to={prefix}").returncode == 0
    assert read_word(prefix) == "second"
    assert "installed already" in run_bundle(first, "install", f"to={prefix}").stderr
    assert read_word(prefix) == "first"


def write_earlier(prefix: Path) -> None:
    """Make a release that is current, as an earlier installation left it."""
    earlier = prefix / "releases" / "earlier"
    earlier.mkdir(parents=True)
    (earlier / "word.txt").write_text("earlier")
    (earlier / "installed.json").write_text(json.dumps({"release": "earlier"}))
    (prefix / "current").symlink_to("releases/earlier")


def check_second_try(bundle: Path, prefix: Path, *, is_counted: bool = True) -> None:
    """Install after a kill: it ends well, and nothing of the first try is left."""
    done = run_bundle(bundle, "install", f"to={prefix}", is_counted=is_counted)
    assert done.returncode == 0, done.stderr
    assert read_word(prefix) == "first"
    assert list_entries(prefix) == {
        ".install.lock", "current", "previous", "data", "data/models/mini", "releases", "releases/earlier",
        f"releases/{read_manifest(bundle).release}",
    }  # fmt: skip


@pytest.mark.parametrize("place", KILLS)
def test_a_kill_leaves_what_was_there_and_the_next_call_ends_well(
    bundles: tuple[Path, Path], tmp_path: Path, place: str
) -> None:
    prefix = tmp_path / "prefix"
    write_earlier(prefix)
    killed = run_bundle(bundles[0], "install", f"to={prefix}", place=place)
    assert killed.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    is_marked = place in ("install.marked", "install.switched", "file.renamed")
    assert read_word(prefix) == ("first" if place == "install.switched" else "earlier")
    releases = {path.name for path in (prefix / "releases").iterdir() if (path / "installed.json").is_file()}
    assert len(releases) == 1 + is_marked
    check_second_try(bundles[0], prefix)


def test_what_a_killed_installation_left_running_is_ended_and_nothing_else(tmp_path: Path) -> None:
    marked = {**os.environ, SETUP_MARK: str(tmp_path / "prefix")}
    other = {**os.environ, SETUP_MARK: str(tmp_path / "prefix2")}
    with subprocess.Popen(["sleep", "60"], env=marked) as left, subprocess.Popen(["sleep", "60"], env=other) as stays:
        end_orphans(tmp_path / "prefix")
        assert left.wait(timeout=50) == -signal.SIGKILL
        assert stays.poll() is None
        stays.kill()


@pytest.mark.skipif(not os.environ.get("LOAM_TEST_FULL"), reason="wanted LOAM_TEST_FULL=1: twenty installations")
@pytest.mark.parametrize("seed", range(10))
def test_a_kill_of_all_its_processes_at_any_moment_does_no_harm(
    bundles: tuple[Path, Path], tmp_path: Path, seed: int
) -> None:
    prefix = tmp_path / "prefix"
    write_earlier(prefix)
    command = [BARE_PYTHON, "-S", "-E", str(bundles[0] / "bundle.py"), "install", f"to={prefix}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        time.sleep(random.Random(seed).uniform(0.1, 6))
        os.killpg(process.pid, signal.SIGKILL)
    assert read_word(prefix) in ("earlier", "first")
    check_second_try(
        bundles[0], prefix, is_counted=False
    )  # from a namespace what the first left running is out of reach


def test_signals_take_back_what_was_begun_and_a_second_one_does_not_disturb_that(
    bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    prefix = tmp_path / "prefix"
    command = [BARE_PYTHON, "-S", "-E", str(bundles[0] / "bundle.py"), "install", f"to={prefix}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        while "making .venv" not in process.stderr.readline():
            assert process.poll() is None
        for _ in range(20):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.01)
        words = process.stderr.read()
    assert process.returncode == 130, words
    assert "taking back what was begun" in words
    assert list_entries(prefix) == {".install.lock", "releases", "data"}


def reseal(bundle: Path, name: str) -> None:
    """Put a changed file's digest into the manifest and the sums, as somebody who may seal would."""
    content = read_sealed_json(bundle / MANIFEST)
    content["files"][name] = [(bundle / name).stat().st_size, sha256_file(bundle / name)]
    write_sealed_json(bundle / MANIFEST, content)
    (bundle / SUMS).write_bytes(read_manifest(bundle).render_sums(bundle))


def write_bad_tar(bundle: Path, folder: Path, kind: str) -> None:
    """Put an entry into the project's archive that would write elsewhere."""
    (folder / "evil").mkdir()
    if kind == "link":
        (folder / "evil" / "link").symlink_to("/etc/passwd")
        words = ["link"]
    elif kind == "hard link":
        (folder / "evil" / "a").write_text("a")
        os.link(folder / "evil" / "a", folder / "evil" / "b")
        words = ["a", "b"]
    else:
        (folder / "evil" / "x").write_text("x")
        words = [f"--transform=s,x,{kind},", "--absolute-names", "x"]
    command = ["tar", "--append", "--file", str(bundle / "project.tar"), "--directory", str(folder / "evil"), *words]
    subprocess.run(command, check=True)
    reseal(bundle, "project.tar")


@pytest.mark.parametrize("kind", ["link", "hard link", "../outside", "/tmp/outside", "a/../../../outside"])
def test_an_entry_that_leads_elsewhere_is_refused_and_nothing_stays(
    bundles: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    bundle, prefix = tmp_path / "bundle", tmp_path / "prefix"
    shutil.copytree(bundles[0], bundle, copy_function=os.link)
    for name in ("project.tar", MANIFEST, SUMS):
        content = (bundle / name).read_bytes()
        (bundle / name).unlink()
        (bundle / name).write_bytes(content)
    write_bad_tar(bundle, tmp_path, kind)
    done = run_bundle(bundle, "install", f"to={prefix}")
    assert done.returncode == 6, done.stderr
    assert "is a link or leads elsewhere" in done.stderr
    assert list_entries(prefix) == {".install.lock", "releases"}
    assert not (tmp_path / "outside").exists()


def test_what_fails_half_way_is_taken_back(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, prefix = tmp_path / "bundle", tmp_path / "prefix"
    shutil.copytree(bundles[0], bundle, copy_function=os.link)
    wheel = next((bundle / "wheels").glob("reed2-*"))
    wheel.unlink()
    wheel.write_bytes(b"no wheel")
    (bundle / MANIFEST).unlink()
    shutil.copyfile(bundles[0] / MANIFEST, bundle / MANIFEST)
    (bundle / SUMS).unlink()
    reseal(bundle, f"wheels/{wheel.name}")
    done = run_bundle(bundle, "install", f"to={prefix}")
    assert done.returncode == 6
    assert "the environment could not be made" in done.stderr
    assert list_entries(prefix) == {".install.lock", "releases", "data"}
    DataDir(prefix / "data").model("mini").mkdir(parents=True)
    (prefix / "data" / "models" / "mini" / "config.json").write_text("another")
    taken = run_bundle(bundles[0], "install", f"to={prefix}")
    assert taken.returncode == 5
    assert "found another of its name" in taken.stderr
    assert list((prefix / "releases").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"python": "3.99"}, "wanted Python 3.99"),
        ({"platform": "plan9 mips"}, "wanted plan9 mips"),
        ({"installed_bytes": 1 << 60}, "GiB of disk"),
    ],
)
def test_a_machine_that_does_not_fit_is_told_before_anything_is_written(
    bundles: tuple[Path, Path], tmp_path: Path, change: dict[str, object], fault: str
) -> None:
    bundle, prefix = tmp_path / "bundle", tmp_path / "prefix"
    shutil.copytree(bundles[0], bundle, copy_function=os.link)
    content = {**read_sealed_json(bundle / MANIFEST), **change}
    (bundle / MANIFEST).unlink()
    (bundle / SUMS).unlink()
    write_sealed_json(bundle / MANIFEST, content)
    (bundle / SUMS).write_bytes(read_manifest(bundle).render_sums(bundle))
    done = run_bundle(bundle, "install", f"to={prefix}")
    assert done.returncode in (2, 7)
    assert fault in done.stderr
    assert not (prefix / "releases").exists()


@pytest.mark.parametrize(
    ("wheels", "wanted"),
    [
        (["wheels/a-1-py3-none-any.whl"], (0, 0)),
        (["a-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", "b-manylinux2010_x86_64.whl"], (2, 17)),
        (["a-manylinux2014_x86_64.manylinux_2_28_x86_64.whl"], (2, 17)),
        (["a-manylinux_2_9_x86_64.whl", "b-manylinux_2_34_x86_64.whl", "c-manylinux_2_28_x86_64.whl"], (2, 34)),
    ],
)
def test_the_oldest_system_follows_from_the_wheels(wheels: list[str], wanted: tuple[int, int]) -> None:
    assert find_wanted_glibc(wheels)[0] == wanted


def test_wheels_of_a_newer_system_are_told_before_anything_is_written(
    bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle, prefix = tmp_path / "bundle", tmp_path / "prefix"
    shutil.copytree(bundles[0], bundle, copy_function=os.link)
    (bundle / SUMS).unlink()
    name = "wheels/new-1-cp311-cp311-manylinux_2_99_x86_64.whl"
    (bundle / name).write_bytes(b"")
    reseal(bundle, name)
    done = run_bundle(bundle, "install", f"to={prefix}")
    assert done.returncode == 2
    assert f"wanted glibc 2.99 or later ({name}), found 2." in done.stderr
    assert not prefix.exists()


def test_two_installations_do_not_work_at_once(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    prefix.mkdir()
    with subprocess.Popen(
        ["flock", "--exclusive", str(prefix / ".install.lock"), "sh", "-c", "echo held; read wait"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout
        assert holder.stdin
        assert holder.stdout.readline() == "held\n"
        done = run_bundle(bundles[0], "install", f"to={prefix}")
        holder.communicate("\n", timeout=60)
    assert done.returncode == 5
    assert "another installation" in done.stderr


def test_the_command_line_is_read_strictly(bundles: tuple[Path, Path]) -> None:
    for words in (["install"], ["verify", "other=1"], ["erase"], ["create", "profile=cpu"]):
        done = run_bundle(bundles[0], *words)
        assert done.returncode == 2, words
        assert "wanted" in done.stderr
