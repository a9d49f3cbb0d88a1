"""Parses files in a child process, so that a hostile file costs one file and not the gateway.

Owns: the child's life, its time, and the JSON lines between the two. The child gets an empty environment, so it knows
no key and no address; it imports the loaders and nothing else, and what it may not do, confinement.py refuses it. Knows
no file format.

    parent  {"path": "/…", "name": "leave.pdf"}                →  child
    parent  ←  {"text": "…", "sections": [[0, 93, 1, "Leave"]], "attributes": {}}   child
    parent  ←  {"error": "invalid_file", "message": "The PDF needs …"}   child
"""

import json
import logging
import os
import queue
import selectors
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any, Self

from core.errors import InputError, InvalidFile, LoamError, NotFound, UnsupportedFile
from core.spelling import spell, write_line
from retrieval.confinement import Confinement
from retrieval.document import Document, Section

DEFAULT_TIMEOUT_S = 25.0  # so that a file is done or refused within half a minute, start of a child included
DEFAULT_MEMORY_BYTES = 1024**3
MAX_ANSWER_BYTES = 256 * 1024**2  # of JSON for one file
MAX_REASON_CHARS = 500  # parts and fields are named by whoever made the file

_ERRORS: dict[str, type[LoamError]] = {
    error.openai_code: error for error in (InputError, InvalidFile, UnsupportedFile, NotFound)
}

logger = logging.getLogger(__name__)


class ParserPool:
    """Child processes that parse one file at a time each; safe to call from several threads."""

    def __init__(
        self,
        workers: int = 1,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ) -> None:
        """Prepare the pool; children start with their first file.

        Args:
            workers: Files parsed at the same time, at least 1.
            timeout_s: Time for one file; the child is killed after it.
            memory_bytes: Address space of a child.
        """
        self._timeout_s = timeout_s
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()  # last in, first out: one child stays warm
        self._workers = [_Worker(memory_bytes) for _ in range(workers)]
        for worker in self._workers:
            self._idle.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all children; a file that is being parsed in another thread fails."""
        for worker in self._workers:
            worker.stop()

    def parse(self, path: Path, name: str | None = None) -> Document:
        """Parse a file in a child process, waiting until one is free.

        Args:
            path: A file that this process may read.
            name: What its ending is read from, where that is not the path's own.

        Raises:
            InvalidFile: The file is damaged, encrypted or empty, takes too long, or needs too much memory.
            UnsupportedFile: No loader reads files of this kind.
            NotFound: There is no such file.
        """
        worker = self._idle.get()
        try:
            return worker.parse(path, name or path.name, self._timeout_s)
        finally:
            self._idle.put(worker)


class _Worker:
    """One child; started when it is needed, replaced when it dies."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None

    def parse(self, path: Path, name: str, timeout_s: float) -> Document:
        process = self._process
        if process is None or process.poll() is not None:
            self.stop()
            process = self._process = self._start()
        try:
            answer = _ask(process, {"path": str(path.absolute()), "name": name}, timeout_s)
        except BaseException:
            self.stop()  # whatever the child still says belongs to this file, and must not answer the next
            raise
        if "refused" in answer:
            logger.warning("a parser was refused %s over %s", ", ".join(answer["refused"]), spell(path.name))
        if "fault" in answer:
            logger.error("a loader failed over %s:\n%s", spell(path.name), answer["fault"])
        if "error" in answer:
            if answer.get("is_exhausted"):
                self.stop()
            raise _ERRORS.get(answer["error"], InvalidFile)(write_line(answer["message"], MAX_REASON_CHARS))
        return Document(answer["text"], tuple(Section(*fields) for fields in answer["sections"]), answer["attributes"])

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-m", "retrieval.parsing", str(self._memory_bytes)]
        # Without buffers, what selectors sees is what read() gets.
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env={"LC_ALL": "C.UTF-8"}
        )


def _ask(process: subprocess.Popen[bytes], question: dict[str, str], timeout_s: float) -> dict[str, Any]:
    """Send one line, return the answer's line.

    Raises:
        InvalidFile: No whole answer came: the child died or the time is over.
    """
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a parser process was started without pipes")
    deadline = time.monotonic() + timeout_s
    try:
        process.stdin.write(json.dumps(question).encode() + b"\n")
    except BrokenPipeError as error:
        raise InvalidFile("The parser stopped before it could read the file. Try it once more.") from error
    pieces: list[bytes] = []
    size = 0
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not (pieces and pieces[-1].endswith(b"\n")):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not selector.select(left_s):
                raise InvalidFile(
                    f"The file could not be parsed within {timeout_s:g} seconds. Split it, or save it anew in the "
                    "program that made it."
                )
            piece = os.read(process.stdout.fileno(), 1 << 20)
            size += len(piece)
            if not piece:
                raise InvalidFile(
                    f"The file made its parser stop ({_describe_exit(process)}): it is damaged or asks for too much."
                )
            if size > MAX_ANSWER_BYTES:
                raise InvalidFile(f"The file holds more than {MAX_ANSWER_BYTES // 2**20} MiB of text. Split it.")
            pieces.append(piece)
    answer: dict[str, Any] = json.loads(b"".join(pieces))
    return answer


def _describe_exit(process: subprocess.Popen[bytes]) -> str:
    status = process.wait()
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def main() -> None:
    """Run as the child: be confined, then answer one line for each line until the parent closes the pipe."""
    memory_bytes = int(sys.argv[1])
    # Answers keep the pipe for themselves; whatever a library prints goes to the log.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        confinement = Confinement()
        confinement.begin(memory_bytes)
        for question in sys.stdin.buffer:
            asked = json.loads(question)
            path = Path(asked["path"])
            confinement.open_only(path)
            answer = _answer(path, asked["name"], memory_bytes)
            if refused := confinement.take_refusals():
                answer = _encode({**json.loads(answer), "refused": sorted(set(refused))})
            _send(answers, answer)


def _send(answers: IO[bytes], answer: bytes) -> None:
    answers.write(answer + b"\n")
    answers.flush()


def _encode(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode()


def _answer(path: Path, name: str, memory_bytes: int) -> bytes:
    try:
        from retrieval.loaders import load_document

        document = load_document(path, name)
        sections = [[part.start, part.end, part.page, part.heading] for part in document.sections]
        return _encode({"text": document.text, "sections": sections, "attributes": document.attributes})
    except LoamError as error:
        return _encode({"error": error.openai_code, "message": error.message})
    except MemoryError:
        message = f"The file needs more than {memory_bytes // 2**20} MiB of memory to be parsed. Split it."
        return _encode({"error": "invalid_file", "message": message, "is_exhausted": True})
    except Exception as error:  # noqa: BLE001 - the child's request boundary: a fault of a loader costs one file
        message = f"The file could not be parsed: its content broke the loader ({type(error).__name__})."
        places = "".join(traceback.format_tb(error.__traceback__)[-20:])  # the error's words may quote the file
        return _encode({"error": "invalid_file", "message": message, "fault": f"{places}{type(error).__name__}"})


if __name__ == "__main__":
    main()
