"""The training-data format: one chat a line, `{"messages": [{"role", "content"}, …]}`, as OpenAI has it.

Reads and checks in plain Python, with no tokenizer, so that the gateway can check an upload in a moment. Every fault is
found before anything costly starts: file, line, field and what to do. Does not know what a token is; train/ does.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import NotFound, TrainingDataError

ROLES = ("system", "user", "assistant", "tool")
MAX_LINE_BYTES = 4 * 2**20
"""A chat of 4 MiB is about a million tokens: past any context, so a sign of a broken file."""
MAX_FAULTS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a training file.

    Attributes:
        line: Counted from 1; 0 for the file as a whole.
        field: Path inside the row, such as `messages[2].role`; empty for the whole row.
        problem: What was wanted and what was found.
        fix: What to do about it.
    """

    line: int
    field: str
    problem: str
    fix: str

    def __str__(self) -> str:
        """Return the fault as one line for people."""
        where = f"line {self.line}" if self.line else "file"
        return f"{where}{', ' + self.field if self.field else ''}: {self.problem}. {self.fix}."


def load_chats(path: Path) -> list[dict[str, Any]]:
    """Read a chat file into rows, or refuse it with every fault named.

    Args:
        path: JSONL, UTF-8, one chat a line; blank lines are allowed.

    Returns:
        The rows as parsed, each with a checked `messages` list.

    Raises:
        NotFound: There is no such file.
        TrainingDataError: One or more rows break the format.
    """
    rows: list[dict[str, Any]] = []
    faults: list[Fault] = []
    for _, row, line_faults in read_rows(path):
        faults += line_faults
        if not line_faults and row is not None:
            rows.append(row)
    if not rows and not faults:
        faults.append(Fault(0, "", "wanted at least one chat, found none", "Put one JSON object on each line"))
    if faults:
        raise TrainingDataError(describe_faults(path, faults), param="training_file")
    return rows


def describe_faults(path: Path, faults: list[Fault]) -> str:
    """Return the faults of a file as one message, the first ones in full and the rest counted."""
    shown = "".join(f"\n  {fault}" for fault in faults[:MAX_FAULTS_SHOWN])
    rest = f"\n  … and {len(faults) - MAX_FAULTS_SHOWN} more" if len(faults) > MAX_FAULTS_SHOWN else ""
    return f"{path}: {len(faults)} fault{'s' * (len(faults) != 1)} in the training data:{shown}{rest}"


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | None, list[Fault]]]:
    """Yield each line's number, row and faults, reading one line at a time.

    Args:
        path: A JSONL file.

    Yields:
        (line number from 1, the row or None where it cannot be read, its faults). A fault of the whole file comes as
        line 0 and ends the reading.

    Raises:
        NotFound: There is no such file.
    """
    if not path.is_file():
        raise NotFound(f"{path}: wanted a training file, found none. Check the path.", param="training_file")
    with path.open("rb") as file:
        if file.read(3) == b"\xef\xbb\xbf":
            fault = Fault(1, "", "wanted plain UTF-8, found a byte order mark", "Save the file as UTF-8 without BOM")
            yield 0, None, [fault]
            return
        file.seek(0)
        for number, content in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
            if len(content) > MAX_LINE_BYTES:
                size = f"more than {MAX_LINE_BYTES // 2**20} MiB"
                yield 0, None, [Fault(number, "", f"found a line of {size}", "Put one chat on each line")]
                return
            if content.strip():
                row, faults = _parse_line(number, content)
                yield number, row, faults or check_chat(number, row)


def _parse_line(number: int, content: bytes) -> tuple[Any, list[Fault]]:
    """Return a line's JSON value, or None and why it has none."""
    if b"\x00" in content:
        return None, [Fault(number, "", "found a NUL byte", "Remove it")]
    try:
        return json.loads(
            content.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant
        ), []
    except UnicodeDecodeError as error:
        return None, [Fault(number, "", f"not UTF-8 at byte {error.start}", "Save the file as UTF-8")]
    except json.JSONDecodeError as error:
        return None, [
            Fault(number, "", f"not JSON at column {error.colno} ({error.msg})", "Put one JSON object on each line")
        ]
    except RecursionError:
        return None, [Fault(number, "", "nested too deeply", "A chat is a flat list of messages")]
    except ValueError as error:
        return None, [Fault(number, "", str(error), "Give each key once, and finite numbers only")]


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"found the key {key!r} twice")
        seen[key] = value
    return seen


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"found the number {name}")


def check_chat(line: int, row: Any) -> list[Fault]:
    """Check one row: a list of messages with known roles in order, ending with the assistant.

    Args:
        line: The row's line, for the faults.
        row: Any JSON value.

    Returns:
        Its faults; empty for a good row.
    """
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        found = (
            f"an object with {', '.join(map(str, row)) or 'no keys'}" if isinstance(row, dict) else type(row).__name__
        )
        return [Fault(line, "messages", f'wanted {{"messages": […]}}, found {found}', "Use OpenAI's chat format")]
    messages = row["messages"]
    if not messages:
        return [Fault(line, "messages", "wanted at least one message, found none", "Remove the row or fill it")]
    faults = [fault for index, message in enumerate(messages) for fault in _check_message(line, index, message)]
    return faults or _check_order(line, messages)


def _check_message(line: int, index: int, message: Any) -> Iterator[Fault]:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        yield Fault(line, where, f"wanted an object, found {type(message).__name__}", "Use {role, content}")
        return
    role = message.get("role")
    if role not in ROLES:
        yield Fault(line, f"{where}.role", f"wanted one of {', '.join(ROLES)}; found {role!r}", "Rename the role")
    content = message.get("content")
    if not isinstance(content, str):
        if not (content is None and role == "assistant" and message.get("tool_calls")):
            yield Fault(
                line, f"{where}.content", f"wanted text, found {type(content).__name__}", "Give the text as a string"
            )
    elif not content.strip():
        yield Fault(line, f"{where}.content", "found empty text", "Fill it or remove the message")
    weight = message.get("weight")
    if weight is not None and (role != "assistant" or weight not in (0, 1) or isinstance(weight, bool)):
        yield Fault(line, f"{where}.weight", f"wanted 0 or 1 on an assistant's message, found {weight!r}", "Remove it")


def _check_order(line: int, messages: list[dict[str, Any]]) -> list[Fault]:
    faults = []
    roles = [message["role"] for message in messages]
    for index, role in enumerate(roles):
        before = roles[index - 1] if index else None
        where = f"messages[{index}].role"
        if role == "system" and index:
            faults.append(Fault(line, where, "found a system message that is not the first", "Move it to the front"))
        elif role == "assistant" and before in (None, "system", "assistant"):
            faults.append(Fault(line, where, f"found assistant after {before or 'nothing'}", "Let roles take turns"))
        elif role == "user" and before == "user":
            faults.append(Fault(line, where, "found two user messages in a row", "Join them"))
        elif role == "tool" and before not in ("assistant", "tool"):
            faults.append(Fault(line, where, f"found tool after {before or 'nothing'}", "Put it after the call"))
    if roles[-1] != "assistant":
        index = len(roles) - 1
        faults.append(
            Fault(line, f"messages[{index}].role", f"wanted the assistant last, found {roles[-1]}", "Add the answer")
        )
    elif all(message.get("weight") == 0 for message in messages if message["role"] == "assistant"):
        faults.append(Fault(line, "messages", "every assistant message has weight 0", "Leave one to train on"))
    return faults
