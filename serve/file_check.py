"""Checks one uploaded file of training data in a process of its own, so that the gateway never parses it.

    python -m serve.file_check PATH NAME FIELD METHOD

prints one JSON object: {"rows": 48}, or {"error": {"code", "message", "param"}} with every fault's line. Does not know
jobs.
"""

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.errors import LoamError, TrainingDataError
from core.faults import refuse_faults
from core.formats import choose_layout
from core.training_file import read_records, read_rows

CHECK_TIMEOUT_S = 900.0


def check_rows(path: Path, name: str, field: str, method: str) -> int:
    """Return how many rows a file has, or refuse it.

    Args:
        path: Where its bytes lie.
        name: What its owner calls it, for the message.
        field: `training_file` or `validation_file`.
        method: `supervised` or `dpo`.

    Raises:
        TrainingDataError: A row is faulty, there is none, or they are of the other method.
    """
    layout = choose_layout(read_records(path, field))
    rows = sum(1 for _ in refuse_faults(Path(name), read_rows(path, layout, field), field))
    if layout.is_preference != (method == "dpo"):
        wanted = "pairs to prefer by" if method == "dpo" else "chats to learn"
        other = "supervised" if method == "dpo" else "dpo"
        raise TrainingDataError(
            f"{name}: wanted {wanted} (method {method}), found at line 1 rows of the format {layout.format.value}. "
            f"Give another file, or method {other}.",
            param=field,
        )
    return rows


async def check_upload_rows(path: Path, name: str, field: str, method: str) -> int:
    """Run this module on a file and return what it found. Arguments and errors are those of `check_rows`."""
    found = await ask_module("serve.file_check", [str(path), name, field, method], CHECK_TIMEOUT_S, name, field)
    return int(found["rows"])


async def ask_module(module: str, arguments: list[str], timeout_s: float, name: str, field: str) -> dict[str, Any]:
    """Run one of our modules in a process of its own, which ends with this call, and return the object it prints.

    Args:
        module: Its name.
        arguments: Of its command line.
        timeout_s: Longest wait.
        name: What the owner calls the file that it reads, for the message.
        field: The request's field that named the file.

    Raises:
        TrainingDataError: It refused the file, ended without an answer, or took too long.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
    except BaseException as error:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise TrainingDataError(
                f"{name}: it could not be checked within {timeout_s:g} s. Split it.", param=field
            ) from error
        raise
    if process.returncode:
        raise TrainingDataError(f"{name}: it could not be checked (exit code {process.returncode}).", param=field)
    found: dict[str, Any] = json.loads(output)
    if "error" in found:
        raise TrainingDataError(found["error"]["message"], param=field)
    return found


def main(path: str, name: str, field: str, method: str) -> None:
    """Check and print."""
    try:
        found: dict[str, Any] = {"rows": check_rows(Path(path), name, field, method)}
    except LoamError as error:
        found = error.to_openai()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
