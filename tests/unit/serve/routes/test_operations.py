"""The doctor as the gateway runs it: a process that does not outlive its time."""

import asyncio
from pathlib import Path

import psutil
import pytest

from serve.boundary import DoctorUnfinished
from serve.routes.operations import examine


def test_a_doctor_that_does_not_end_is_ended_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "doctor.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr("serve.routes.operations.DOCTOR", tmp_path / "doctor.py")
    monkeypatch.setattr("serve.routes.operations.DOCTOR_TIMEOUT_S", 0.2)
    with pytest.raises(DoctorUnfinished, match=r"within 0\.2 s, found it at work still") as told:
        asyncio.run(examine(tmp_path, "data"))
    assert str(tmp_path) not in told.value.message
    assert [child for child in psutil.Process().children() if str(tmp_path) in " ".join(child.cmdline())] == []
