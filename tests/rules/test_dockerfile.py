"""Dockerfile.cuda: every path and program that it names exists; it runs offline, from the lock, as an ordinary user."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.offline import offline_environment
from tests.rules.checkout import PACKAGES, REPO, list_files

TEXT = (REPO / "Dockerfile.cuda").read_text()
PROGRAM = re.compile(r"^(\w+/)+\w+\.(py|sh)$")


def read_instructions() -> list[tuple[str, str, str]]:
    """Return (stage, instruction, arguments) for each instruction, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", TEXT, flags=re.MULTILINE))
    instructions = []
    stage = ""
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            stage = arguments.rpartition(" AS ")[2]
        instructions.append((stage, name, arguments.strip()))
    return instructions


INSTRUCTIONS = read_instructions()


def select(name: str, stage: str | None = None) -> list[str]:
    """Return the arguments of every instruction of a name."""
    return [arguments for where, kind, arguments in INSTRUCTIONS if kind == name and stage in {None, where}]


def list_copied() -> Iterator[str]:
    """Yield every path of the checkout that is copied into an image."""
    for arguments in select("COPY"):
        words = [word for word in arguments.split() if not word.startswith("--")]
        if "--from=" not in arguments:
            yield from words[:-1]


def test_both_targets_exist() -> None:
    assert {"train", "serve"} <= {stage for stage, _, _ in INSTRUCTIONS}


def test_every_stage_is_built_on_an_earlier_one_or_a_named_image() -> None:
    images = {match[1] for argument in select("ARG") if (match := re.match(r"(\w+_IMAGE)=\S+:\S+$", argument))}
    known: set[str] = set()
    for stage, name, arguments in INSTRUCTIONS:
        if name == "FROM":
            base = arguments.split()[0]
            assert base in known or base.strip("${}") in images, f"{stage}: {base}"
            known.add(stage)


@pytest.mark.parametrize("source", sorted(set(list_copied())))
def test_what_is_copied_is_tracked_and_let_through(source: str) -> None:
    assert any(path == source or path.startswith(f"{source}/") for path in list_files())
    let_through = re.findall(r"^!(\S+)$", (REPO / ".dockerignore").read_text(), re.MULTILINE)
    assert any(source == name or source.startswith(f"{name}/") for name in let_through)


def test_every_package_and_the_configuration_are_in_the_image() -> None:
    assert {*PACKAGES, "conf", "examples"} <= set(list_copied())


def test_every_program_that_it_runs_exists() -> None:
    commands = [json.loads(arguments) for arguments in (*select("ENTRYPOINT"), *select("CMD"))]
    words = [word for command in commands for word in command]
    words += [word for arguments in select("RUN") for word in arguments.split()]
    programs = {word for word in words if PROGRAM.match(word)}
    assert {"train/run.py", "serve/run.py", "scripts/setup_env.sh"} <= programs
    assert {name for name in programs if not (REPO / name).is_file()} == set()
    named_in_comments = set(re.findall(r"(?<![\w/])(?:\w+/)+\w+\.(?:py|txt|sh)\b", TEXT))
    assert {name for name in named_in_comments if not (REPO / name).is_file()} == set()


def test_the_environment_is_the_cuda_lock_without_development() -> None:
    assert [path for path in list_copied() if path.startswith("locks/")] == ["locks/cuda-image.txt"]
    assert "LOAM_SET=cuda-image" in " ".join(select("ENV", "environment")).split()


def test_it_runs_as_an_ordinary_user_who_owns_only_the_data() -> None:
    assert select("USER") == ["10001:10001"]
    assert select("VOLUME") == ["/data"]
    assert not any("--chown" in arguments for arguments in select("COPY"))


def test_it_sets_the_whole_offline_switch() -> None:
    pairs = dict(pair.partition("=")[::2] for arguments in select("ENV", "runtime") for pair in arguments.split())
    expected = offline_environment()
    assert {name: pairs.get(name) for name in expected} == expected
    assert pairs["LOAM_DATA_DIR"] == "/data"


def test_it_keeps_no_package_cache() -> None:
    settings = " ".join(select("ENV", "environment")).split()
    assert {"PIP_NO_CACHE_DIR=1", "UV_NO_CACHE=1"} <= set(settings)
    for arguments in select("RUN"):
        assert "apt-get update" not in arguments or "rm -rf /var/lib/apt/lists/*" in arguments


def test_the_gateway_tells_its_health_on_the_port_it_listens_on() -> None:
    port = select("EXPOSE", "serve")[0]
    entry = json.loads(select("ENTRYPOINT", "serve")[0])  # options after the image's name replace CMD, and nothing here
    assert {"gateway.host=0.0.0.0", f"gateway.port={port}"} <= set(entry)
    assert select("CMD", "serve") == []
    assert f":{port}/health" in select("HEALTHCHECK", "serve")[0]


def test_its_version_is_the_projects() -> None:
    version = re.search(r'^version = "(.+)"$', (REPO / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"LOAM_VERSION={version[1]}" in select("ARG", "runtime")


def list_ancestors(stage: str) -> list[str]:
    """Return a stage and what it is built on, down to the base image."""
    bases = {where: arguments.split()[0] for where, name, arguments in INSTRUCTIONS if name == "FROM"}
    chain = [stage]
    while bases.get(chain[-1]) in bases:
        chain.append(bases[chain[-1]])
    return chain


@pytest.mark.parametrize("target", ["train", "serve"])
def test_there_is_no_compiler_at_run_time(target: str) -> None:
    chain = list_ancestors(target)
    assert chain == [target, "runtime", "base"]
    words = [word for stage in chain for arguments in select("RUN", stage) for word in arguments.split()]
    assert {"gcc", "g++", "clang", "build-essential", "libc6-dev", "make"}.isdisjoint(words)
    assert "gcc" in select("RUN", "environment")[0].split()
    copied = [arguments for stage in chain for arguments in select("COPY", stage) if "--from=environment" in arguments]
    assert copied == ["--from=environment /srv/loam/.venv .venv", "--from=environment /srv/loam/lib lib"]


def test_all_that_is_written_at_run_time_lies_in_the_volume() -> None:
    pairs = dict(pair.partition("=")[::2] for arguments in select("ENV", "runtime") for pair in arguments.split())
    places = [
        pairs[name] for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TRITON_CACHE_DIR", "LOAM_DATA_DIR")
    ]
    assert all(place == "/data" or place.startswith("/data/") for place in places)
    assert pairs["PYTHONDONTWRITEBYTECODE"] == "1"


def test_each_target_says_how_its_health_is_told() -> None:
    assert select("HEALTHCHECK", "train") == ["NONE"]
    assert "CMD" in select("HEALTHCHECK", "serve")[0]


def test_hadolint_finds_no_fault() -> None:
    target = re.search(r"^lint-image:.*\n\t@\$\(BIN\)/uv tool run (.*)$", (REPO / "Makefile").read_text(), re.MULTILINE)
    assert target is not None
    command = [Path(sys.executable).with_name("uv"), "tool", "run", "--offline", *target[1].split()]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    if done.returncode and "Dockerfile.cuda:" not in done.stdout:
        pytest.skip(f"wanted hadolint in uv's cache, found none ({done.stderr.strip()[-200:]}). Run: make lint-image")
    assert (done.returncode, done.stdout) == (0, "")
