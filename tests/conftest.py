"""What every tier shares: the offline switch, the network guard, the tiers' marks, shared data and the small models."""

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from core.offline import switch_offline
from tests.network_guard import NetworkGuard
from tests.pickle_watch import PickleWatch

REPO = Path(__file__).resolve().parent.parent
TEST_MODELS = ("smollm2-135m-instruct", "all-minilm-l6-v2")
SLOW_TIERS = {"integration", "e2e"}
SLOW_TIMEOUT_S = 900

switch_offline()  # before any test module imports a library that would look for a hub

# A machine that stalls is no fault of what is tested; the full profile tries other examples each time.
calm = hypothesis.settings(deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("quick", calm, derandomize=True, database=None)
hypothesis.settings.register_profile("full", calm, max_examples=1000)
hypothesis.settings.load_profile("full" if os.environ.get("LOAM_TEST_FULL") else "quick")

_guard = NetworkGuard()
_pickles = PickleWatch()
PICKLE_FREE = re.compile(r"(unit/(serve|retrieval)/|integration/test_(serve|retrieval|uploads|hostile|outward)_)")
"""Tests of the gateway and of ingestion, where no pickle may name a class."""


def pytest_configure() -> None:
    """Start listening once a process."""
    _guard.install()
    _pickles.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by its tier's folder; give the slow tiers their time; skip GPU tests where there is no GPU."""
    reason = None
    for item in items:
        tier = item.path.relative_to(REPO / "tests").parts[0]
        if tier in SLOW_TIERS:
            item.add_marker(tier)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
        if tier == "gpu" or item.get_closest_marker("gpu"):
            reason = _find_gpu_fault() if reason is None else reason
            item.add_marker("gpu")
            # What a compiler or a driver warns of there is unknown here, and must not make a kernel fail its trial.
            item.add_marker(pytest.mark.filterwarnings("default"))
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def _find_gpu_fault() -> str:
    """Return why no CUDA device can be used here, or an empty string."""
    import torch

    if torch.cuda.is_available():
        return ""
    build = f"torch {torch.__version__}"
    return f"wanted a CUDA device, found none ({build}); this test proves nothing here"


@pytest.fixture(autouse=True)
def network_guard() -> Iterator[NetworkGuard]:
    """Fail the test that connects beyond loopback or resolves a foreign name, even where its code hid the refusal."""
    _guard.take_violations()
    _guard.is_on = True
    yield _guard
    _guard.is_on = False
    violations = _guard.take_violations()
    if violations:
        pytest.fail(f"tried to leave this machine: {'; '.join(violations)}")


@pytest.fixture(autouse=True)
def pickle_watch(request: pytest.FixtureRequest) -> Iterator[PickleWatch]:
    """Fail the test of the gateway or of ingestion in which a pickle names a class: that is how one carries code."""
    _pickles.take_found()
    _pickles.is_on = bool(PICKLE_FREE.search(request.path.as_posix()))
    yield _pickles
    _pickles.is_on = False
    found = _pickles.take_found()
    if found:
        pytest.fail(f"a pickle named {', '.join(sorted(set(found))[:5])}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real documents and data sets that lies beside the checkout, or where LOAM_SHARED_DATA says."""
    named = os.environ.get("LOAM_SHARED_DATA")
    folder = Path(named) if named else REPO.parent / "shared" / "data"
    if not folder.is_dir():
        if named:
            pytest.fail(f"LOAM_SHARED_DATA: wanted a folder, found nothing at {folder}")
        pytest.skip(f"wanted real data in {folder} (or $LOAM_SHARED_DATA), found no such folder")
    return folder


@pytest.fixture(scope="session")
def demo_models() -> Path:
    """Data directory with both small models, made once for the checkout. Read only: write elsewhere.

    A test links what it needs: `(data / "models").symlink_to(demo_models / "models")`.
    """
    folder = REPO / ".cache" / "test-models"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another session may be making them now
        for name in TEST_MODELS:
            command = [sys.executable, "scripts/models.py", "--data-dir", str(folder), "get", name]
            subprocess.run(command, cwd=REPO, check=True, timeout=300)
    return folder
