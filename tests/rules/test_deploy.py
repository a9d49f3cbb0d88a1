"""examples/deploy: what the compose file and the systemd units name exists, is confined, and comes back."""

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.rules.checkout import REPO

DEPLOY = REPO / "examples" / "deploy"
PREFIX = "/srv/loam/"
UNITS = sorted(DEPLOY.glob("*.service")) + sorted(DEPLOY.glob("*.timer"))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
MOST_EXPOSED = {"loam-serve.service": 2.5, "loam-backup.service": 1.5}
"""Largest exposure that `systemd-analyze security` may count, of 10; the gateway needs cards and a network."""


def read_unit(path: Path) -> dict[str, list[str]]:
    """Return every setting of a unit with its values."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_a_container_is_confined_and_has_a_card(service: str) -> None:
    settings = COMPOSE["services"][service]
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    (device,) = settings["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert "data:/data" in settings["volumes"]
    assert settings["image"] == f"loam-{service}"
    assert f"AS {service}\n" in (REPO / "Dockerfile.cuda").read_text()
    assert set(settings["networks"]) <= COMPOSE["networks"].keys()


def test_the_gateway_comes_back_has_a_key_and_training_no_way_out() -> None:
    serve, train = COMPOSE["services"]["serve"], COMPOSE["services"]["train"]
    assert serve["restart"] == "always"
    assert serve["environment"]["LOAM_API_KEY"].startswith("${LOAM_API_KEY:?")
    assert serve["ports"] == ["127.0.0.1:8000:8000"]
    assert COMPOSE["networks"][train["networks"][0]] == {"internal": True}
    assert COMPOSE["volumes"] == {"data": {"name": "loam-data"}}
    assert "-v loam-data:/data" in (REPO / "Dockerfile.cuda").read_text()


@pytest.mark.parametrize("unit", [DEPLOY / name for name in MOST_EXPOSED], ids=lambda path: path.name)
def test_a_service_names_what_exists_and_is_confined(unit: Path) -> None:
    settings = read_unit(unit)
    words = shlex.split(" ".join(settings["ExecStart"]).replace("&&", " "))
    programs = {word for line in words for word in re.findall(r"\b(?:scripts|serve)/\w+\.py\b", line)}
    assert programs
    assert {name for name in programs if not (REPO / name).is_file()} == set()
    assert settings["WorkingDirectory"] == ["/srv/loam/current"]
    assert settings["User"] == ["loam"]
    for key, value in (("ProtectSystem", "strict"), ("NoNewPrivileges", "true"), ("CapabilityBoundingSet", "")):
        assert settings[key] == [value]


def test_the_gateway_is_started_again_and_speaks_to_private_addresses_only() -> None:
    settings = read_unit(DEPLOY / "loam-serve.service")
    assert settings["Restart"] == ["always"]
    assert settings["IPAddressDeny"] == ["any"]
    assert all(
        re.match(r"localhost|10\.|172\.16|192\.168|fd00", word) for word in settings["IPAddressAllow"][0].split()
    )


def test_the_cards_files_are_made_before_the_gateway_starts_and_their_lack_stops_nothing() -> None:
    serve, card = read_unit(DEPLOY / "loam-serve.service"), read_unit(DEPLOY / "loam-card.service")
    assert serve["Wants"] == ["loam-card.service"]
    assert "loam-card.service" in serve["After"][0].split()
    assert serve["DeviceAllow"] == ["char-nvidia* rw"]
    assert all(command.startswith("-/") for command in card["ExecStart"])
    assert card["Type"] == ["oneshot"]


def test_a_trainer_that_runs_out_of_memory_does_not_end_the_gateway_and_caches_are_kept() -> None:
    settings = read_unit(DEPLOY / "loam-serve.service")
    assert settings["OOMPolicy"] == ["continue"]
    pairs = dict(pair.split("=", 1) for line in settings["Environment"] for pair in line.split())
    image = {
        "HOME",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "TRITON_CACHE_DIR",
        "TORCHINDUCTOR_CACHE_DIR",
        "LOAM_DATA_DIR",
    }
    assert pairs.keys() == image
    assert all(value == "/srv/loam/data" or value.startswith("/srv/loam/data/") for value in pairs.values())


def run_backup(folder: Path, code: int) -> set[str]:
    """Run the nightly backup's command with a stand-in for Python; return the backups that are there afterwards."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f'#!/bin/sh\n[ "$2" = verify ] && exit {code}\nmkdir "$3"\n')
    python.chmod(0o755)
    backups = folder / "backups"
    for name, days in (("2026-01-01-023000", 20), ("2026-01-19-023000", 2), ("drill", 90)):
        (backups / name).mkdir(parents=True, exist_ok=True)
        stamp = time.time() - 86_400 * days
        os.utime(backups / name, (stamp, stamp))
    (words,) = read_unit(DEPLOY / "loam-backup.service")["ExecStart"]
    command = shlex.split(words.replace("$$", "$").replace("%%", "%"))
    environment = {**os.environ, "BACKUPS": str(backups), "DAYS": "14"}
    assert subprocess.run(command, cwd=folder, env=environment, check=False).returncode == code
    return {path.name for path in backups.iterdir()}


def test_old_backups_go_only_after_a_good_new_one(tmp_path: Path) -> None:
    found = run_backup(tmp_path, 1)
    assert {"2026-01-01-023000", "2026-01-19-023000", "drill"} < found
    shutil.rmtree(tmp_path / "backups")
    found = run_backup(tmp_path, 0)
    assert len(found) == 3
    assert {"2026-01-19-023000", "drill"} < found


def needs_systemd() -> str:
    """Return the program that checks units; skip where there is none."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("wanted systemd-analyze (Debian: apt install systemd), found none")
    return program


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_finds_no_fault(unit: Path, tmp_path: Path) -> None:
    program = needs_systemd()
    python = tmp_path / "loam" / "current" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    for other in UNITS:  # beside each other, as a timer names its service
        text = other.read_text().replace(PREFIX, f"{tmp_path}/loam/")
        (tmp_path / other.name).write_text(re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE))
    command = [program, "verify", "--man=no", str(tmp_path / unit.name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "loam" in line]
    assert ours == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_systemd_counts_little_exposure(name: str) -> None:
    command = [needs_systemd(), "security", "--offline=true", "--no-pager", str(DEPLOY / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout + done.stderr)
    assert exposure is not None, done.stdout + done.stderr
    assert float(exposure[1]) <= MOST_EXPOSED[name]
