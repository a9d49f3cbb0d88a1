"""Progress while the engine starts, for people and for logs."""

import pytest

from serve.progress import StartProgress


def test_progress_in_a_log_is_a_plain_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    progress = StartProgress()
    for tenth in range(120):
        progress.show(tenth / 10, "loading " + "x" * 200)
    progress.end("ready")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" s ")[0] for line in lines[:-1]] == ["starting     vLLM, 5", "starting     vLLM, 10"]
    assert lines[-1] == "ready"
    assert all("\x1b" not in line and len(line) < 140 for line in lines)
