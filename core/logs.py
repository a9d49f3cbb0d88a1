"""Logging, configured once by each entry point.

People at a terminal get short lines; servers get one JSON object a line. Prompts, documents and keys are never logged
at INFO. Does not know about progress bars: long work draws those itself, on a terminal only.
"""

import logging
import os
import sys
import time
from contextvars import ContextVar
from typing import Any, Literal

from core.spelling import dump_line, reveal_lines

NOISY_LOGGERS = ("httpx", "httpcore", "urllib3", "filelock", "sentence_transformers", "faiss", "fsspec")
SILENT_LOGGERS = ("bitsandbytes.backends.cpu.ops",)
"""On some CPUs it misses a kernel package that would fetch code from a hub; that is left out on purpose."""
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that the running code works for; every line that it logs tells it."""
_STANDARD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, ISO 8601), level, logger, message, and whatever `extra` holds."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := REQUEST_ID.get()) is not None:
            line["request_id"] = request_id
        line.update({key: value for key, value in record.__dict__.items() if key not in _STANDARD_FIELDS})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return dump_line(line)


class TextFormatter(logging.Formatter):
    """Short lines; a record's further lines are indented, so that no message can pass for two records."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text in which nothing unseen is left."""
        return reveal_lines(super().format(record)).replace("\n", "\n    ")


def configure_logging(form: Literal["text", "json"] = "text", level: str = "INFO") -> None:
    """Send the root logger to standard error, replacing handlers set by libraries.

    Args:
        form: `text` for people, `json` for log collectors.
        level: Name of the lowest level shown.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in SILENT_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.captureWarnings(True)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported: libraries' bars are for terminals only
