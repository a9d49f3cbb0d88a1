"""core.logs: servers get JSON, one object a line, with whatever `extra` holds."""

import json
import logging
import os
from collections.abc import Iterator

import pytest

from core.logs import JsonFormatter, configure_logging


@pytest.fixture(autouse=True)
def restored_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TQDM_DISABLE", "")  # so that what is set below is taken back
    monkeypatch.delenv("TQDM_DISABLE")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


def test_json_lines_carry_extra_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    logging.getLogger("serve.app").info("served %s", "x", extra={"request_id": "req_1", "ms": 3.5})
    line = json.loads(capsys.readouterr().err)
    assert line["message"] == "served x"
    assert line["request_id"] == "req_1"
    assert line["ms"] == 3.5
    assert line["level"] == "info"
    assert line["time"].endswith("Z")


def test_an_exception_stays_on_one_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed", None, info)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert "ValueError" in json.loads(text)["exception"]


def test_no_message_passes_for_two_records(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\n12:00:00 ERROR   forged\x1b[2J\u2028b\ud800"
    configure_logging("json")
    logging.getLogger("x").info("read %s", hostile, extra={"file": hostile})
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["file"] == hostile
    configure_logging("text")
    logging.getLogger("x").info("read %s", hostile)
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("read a")
    assert second == "    12:00:00 ERROR   forged\\x1b[2J\\u2028b\\ud800"


def test_noisy_libraries_are_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text")
    logging.getLogger("httpx").info("GET /")
    logging.getLogger("loam").info("hello")
    assert capsys.readouterr().err.strip().endswith("hello")


def test_libraries_draw_no_bars_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    configure_logging()
    assert "TQDM_DISABLE" not in os.environ
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    configure_logging()
    assert os.environ["TQDM_DISABLE"] == "1"
