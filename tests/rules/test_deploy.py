"""examples/deploy: what the compose file and the systemd units name exists, is confined, and comes back."""

import re
import shlex
import shutil
import subprocess
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
    assert COMPOSE["volumes"].keys() == {"data"}


@pytest.mark.parametrize("unit", [path for path in UNITS if path.suffix == ".service"], ids=lambda path: path.name)
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
