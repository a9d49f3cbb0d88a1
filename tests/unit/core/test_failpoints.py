"""core.failpoints: a process dies where a test says, the time that it says, and nowhere else."""

import signal
import subprocess
import sys

import pytest

PROGRAM = "from core.failpoints import reach\nfor turn in range(3):\n    reach('a')\n    reach('b')\n    print(turn)"


@pytest.mark.parametrize(
    ("environment", "printed"),
    [
        ({"LOAM_TEST_BUILD": "1", "LOAM_FAILPOINT": "b"}, []),
        ({"LOAM_TEST_BUILD": "1", "LOAM_FAILPOINT": "a:3"}, ["0", "1"]),
        ({"LOAM_TEST_BUILD": "1", "LOAM_FAILPOINT": "c"}, ["0", "1", "2"]),
        ({"LOAM_TEST_BUILD": "1"}, ["0", "1", "2"]),
        ({"LOAM_FAILPOINT": "a"}, ["0", "1", "2"]),
    ],
)
def test_a_process_dies_where_it_is_told(environment: dict[str, str], printed: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-u", "-c", PROGRAM],
        env={"PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.split() == printed
    assert ended.returncode == (0 if len(printed) == 3 else -signal.SIGKILL)
