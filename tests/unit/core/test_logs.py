"""core.logs: servers get JSON, one object a line, with whatever `extra` holds."""

import json
import logging
from collections.abc import Iterator

import pytest

from core.logs import JsonFormatter, configure_logging


@pytest.fixture(autouse=True)
def restored_root() -> Iterator[None]:
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


def test_noisy_libraries_are_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text")
    logging.getLogger("httpx").info("GET /")
    logging.getLogger("loam").info("hello")
    assert capsys.readouterr().err.strip().endswith("hello")
