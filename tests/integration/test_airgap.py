"""Promise A1, short form: a document, a job, an evaluation where only loopback exists, and nothing tries to leave.

The room itself is tried first: whatever leaves it, by whatever language, must be counted. Installing from a bundle is
counted in test_bundle_install.py. The long form, with the real trainer and the real vLLM from a real bundle, is
`make test-airgap BUNDLE=DIR`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
JOURNEY = [
    "tests/integration/test_serve_vector_stores.py::test_the_journey_of_a_document",
    "tests/integration/test_serve_jobs.py::test_a_job_from_upload_to_answer",
    "tests/integration/test_evaluate.py::test_the_command_ends_with_the_exit_code_of_a_limit",
]
if os.environ.get("LOAM_TEST_FULL"):
    JOURNEY += [
        "tests/integration/test_retrieval_documents.py::test_the_example_company_is_found_by_its_questions",
        "tests/integration/test_train.py::test_llama_trains_by_the_same_commands",
    ]
"""What a person does, as tests that exist."""


def run_in_room(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the closed room; skip where the kernel lets nobody make one."""
    if subprocess.run(["unshare", "-rnm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("wanted user namespaces (unshare -rnm), found them refused; this proves nothing here")
    words = [sys.executable, "scripts/prove_airgap.py", *command]
    return subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=False, timeout=600)


ATTEMPTS = {
    "a connection by Python": (
        [sys.executable, "-c", "import socket; socket.socket().connect(('192.0.2.9', 9))"], True,
    ),
    "a datagram to IPv6": (
        [sys.executable, "-c", "import socket; socket.socket(10, 2).sendto(b'x', ('2001:db8::1', 53))"], True,
    ),
    "a name by C code": (["getent", "ahosts", "loam.invalid"], False),
    "a connection by bash": (["bash", "-c", "exec 3<>/dev/tcp/192.0.2.9/80"], False),
}  # fmt: skip
"""Attempts to leave, and whether a Python process makes them."""


@pytest.mark.parametrize("name", ATTEMPTS)
def test_whatever_tries_to_leave_is_counted(name: str) -> None:
    command, is_told = ATTEMPTS[name]
    if shutil.which(command[0]) is None:
        pytest.skip(f"wanted {command[0]}, found none")
    done = run_in_room("sh", "-c", '"$@" 2>/dev/null; true', "sh", *command)
    assert done.returncode == 1, done.stderr
    assert "air gap: 0 packets" not in done.stderr
    assert (" 1 attempts told" in done.stderr) is is_told


def test_what_stays_on_loopback_is_not_counted_and_the_commands_code_is_kept() -> None:
    code = (
        "import socket; a = socket.create_server(('127.0.0.1', 0)); socket.create_connection(a.getsockname()); "
        "socket.getaddrinfo('localhost', 80); raise SystemExit(7)"
    )
    done = run_in_room(sys.executable, "-c", code)
    assert done.returncode == 7, done.stderr
    assert "air gap: 0 packets without a way out, 0 attempts told by Python processes, interfaces lo" in done.stderr


def test_the_journey_tries_nothing() -> None:
    done = run_in_room(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *JOURNEY)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "air gap: 0 packets without a way out, 0 attempts told" in done.stderr
    assert " passed" in done.stdout


def test_the_long_form_refuses_a_step_that_it_does_not_know(tmp_path: Path) -> None:
    command = ["bash", "scripts/closed_room.sh", str(tmp_path), str(tmp_path / "prefix"), "journeys"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "wanted install, demo or journey; found journeys" in done.stderr
