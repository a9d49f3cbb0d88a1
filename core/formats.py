"""The formats that training data comes in, and how a row of each becomes messages.

    chat               {"messages": [{"role", "content", "weight"?}, …], "tools"?}
    prompt_completion  {"prompt", "completion"}, each text or messages; or two named columns
    alpaca             {"instruction", "input"?, "output", "system"?, "history"?}
    sharegpt           {"conversations": [{"from", "value"}, …], "system"?, "tools"?}
    preference         {"prompt"?, "chosen", "rejected"}, each text or messages; or OpenAI's
                       {"input": {"messages", "tools"?}, "preferred_output", "non_preferred_output"}

Everything after this module knows two forms only: {"messages", "tools"?} to learn from, and {"prompt", "chosen",
"rejected", "tools"?}, each a list of messages, to prefer by. Does not know files; core.training_file reads them.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from core.chat import Locate, check_chat, check_learned, check_messages, check_tools
from core.errors import ConfigError
from core.faults import Fault, Record

ROWS_LOOKED_AT = 20
"""Rows at the head of a file by which its format is told."""


class DataFormat(Enum):
    """What the rows of a file look like; `auto` is told by their keys."""

    auto = "auto"
    chat = "chat"
    prompt_completion = "prompt_completion"
    alpaca = "alpaca"
    sharegpt = "sharegpt"
    preference = "preference"


SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bard": "assistant", "bing": "assistant", "model": "assistant", "system": "system", "tool": "tool",
    "observation": "tool", "function_response": "tool", "function_call": "function_call",
}  # fmt: skip
"""What ShareGPT files call the roles."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns that hold a row's parts, where they differ from the format's own; None keeps those.

    Attributes:
        prompt: The question.
        completion: The answer to learn.
        system: The system message of each row.
        chosen: The better answer.
        rejected: The worse one.
    """

    prompt: str | None = None
    completion: str | None = None
    system: str | None = None
    chosen: str | None = None
    rejected: str | None = None


def check_columns(wanted: DataFormat, columns: Columns) -> DataFormat:
    """Return the format that is asked for or that the named columns speak of; `auto` where both leave it open.

    Raises:
        ConfigError: They contradict each other.
    """
    is_pair = bool(columns.chosen or columns.rejected)
    if is_pair and columns.completion:
        raise ConfigError(
            "data.completion_column: wanted either completions or chosen and rejected answers, found the columns of "
            "both. Leave one out.",
            param="data.completion_column",
        )
    named = DataFormat.preference if is_pair else DataFormat.auto
    if not is_pair and (columns.completion or columns.prompt):
        can_prompt = wanted is DataFormat.preference and not columns.completion
        named = DataFormat.preference if can_prompt else DataFormat.prompt_completion
    if named is DataFormat.auto or wanted in (DataFormat.auto, named):
        return wanted if named is DataFormat.auto else named
    raise ConfigError(
        f"data.format: the named columns are those of {named.value}, found format={wanted.value}. Leave one out.",
        param="data.format",
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a file are to be understood.

    Attributes:
        format: Never `auto`.
        columns: Names that differ from the format's own.
        system: System message of the rows that have none, or None.
        is_detected: Whether the rows' keys told the format.
    """

    format: DataFormat
    columns: Columns = Columns()
    system: str | None = None
    is_detected: bool = False

    @property
    def is_preference(self) -> bool:
        """Whether rows are pairs to prefer by, rather than answers to learn."""
        return self.format is DataFormat.preference

    def describe(self) -> str:
        """Return the format for people: «alpaca (detected)»."""
        named = {"prompt": self.columns.prompt, "completion": self.columns.completion, "system": self.columns.system,
                 "chosen": self.columns.chosen, "rejected": self.columns.rejected}  # fmt: skip
        given = ", ".join(f"{part} from {name}" for part, name in named.items() if name)
        how = given or ("detected" if self.is_detected else "as told")
        return f"{self.format.value} ({how})"


def choose_layout(
    records: Iterable[Record],
    wanted: DataFormat = DataFormat.auto,
    columns: Columns = Columns(),
    system: str | None = None,
) -> Layout:
    """Decide how rows are to be understood: as told, by the columns that were named, else by the first rows' keys.

    Args:
        records: The file's records; the first few are read, and only where nothing else decides.
        wanted: As configured.
        columns: As configured.
        system: System message of rows without one.

    Raises:
        ConfigError: What is configured contradicts itself.
    """
    told = check_columns(wanted, columns)
    if told is not DataFormat.auto:
        return Layout(told, columns, system)
    return Layout(detect_format(records), columns, system, is_detected=True)


def detect_format(records: Iterable[Record]) -> DataFormat:
    """Return the format that most of the first rows have; `chat` where none of them has one."""
    votes = dict.fromkeys(DataFormat, 0)
    for looked_at, (_, row, _) in enumerate(records, start=1):
        votes[_recognize(row)] += 1
        if looked_at == ROWS_LOOKED_AT:
            break
    votes.pop(DataFormat.auto)
    best = max(votes, key=lambda form: votes[form])
    return best if votes[best] else DataFormat.chat


def _recognize(row: Any) -> DataFormat:
    """Return a row's format by its keys; `auto` where they are none that we know."""
    keys: set[Any] = set(row) if isinstance(row, dict) else set()
    if {"chosen", "rejected"} <= keys or {"preferred_output", "non_preferred_output"} & keys:
        return DataFormat.preference
    if "messages" in keys:
        return DataFormat.chat
    if "conversations" in keys:
        return DataFormat.sharegpt
    if {"instruction", "output"} <= keys:
        return DataFormat.alpaca
    return DataFormat.prompt_completion if {"prompt", "completion"} <= keys else DataFormat.auto


def normalize_records(records: Iterable[Record], layout: Layout) -> Iterator[Record]:
    """Yield each record with its row as messages, or with what is wrong with it.

    Args:
        records: As read from a file.
        layout: How to understand them.

    Yields:
        (line, row, faults). Good rows are {"messages", "tools"?} or {"prompt", "chosen", "rejected", "tools"?}.
    """
    for line, value, faults in records:
        if faults:
            yield line, None, faults
        else:
            row, found = normalize_row(line, value, layout)
            yield line, None if found else row, found


def normalize_row(line: int, value: Any, layout: Layout) -> tuple[dict[str, Any] | None, list[Fault]]:
    """Turn one row into messages.

    Args:
        line: For the faults.
        value: The parsed row, of any kind.
        layout: How to understand it.

    Returns:
        (the row in normal form or None, its faults).
    """
    if not isinstance(value, dict):
        problem = f"wanted an object, found {type(value).__name__}"
        return None, [
            Fault(line, "messages" if layout.format is DataFormat.chat else "", problem, "Put one on each line")
        ]
    if layout.format is DataFormat.chat:
        return _normalize_chat(line, value, layout)
    missing = _find_missing(line, value, layout)
    if missing:
        return None, missing
    if layout.format is DataFormat.alpaca:
        turns = _read_alpaca(value)
    elif layout.format is DataFormat.sharegpt:
        return _normalize_sharegpt(line, value, layout)
    elif layout.format is DataFormat.preference:
        return _normalize_preference(line, value, layout)
    else:
        turns = _read_prompt_completion(value, layout.columns)
    return _check_turns(line, value, _add_system(turns, value, layout))


Turn = tuple[str, Any]
"""Where a message stands in the user's row, and the message."""


def _find_missing(line: int, row: dict[str, Any], layout: Layout) -> list[Fault]:
    """Return a fault for each key that the format needs and the row lacks."""
    columns = layout.columns
    needed = {
        DataFormat.alpaca: ["instruction", "output"],
        DataFormat.sharegpt: ["conversations"],
        DataFormat.prompt_completion: [columns.prompt or "prompt", columns.completion or "completion"],
        DataFormat.preference: [columns.chosen or "chosen", columns.rejected or "rejected"],
    }[layout.format]
    if layout.format is DataFormat.preference and _is_openai_preference(row):
        needed = ["input", "preferred_output", "non_preferred_output"]
    if columns.system:
        needed.append(columns.system)
    found = ", ".join(map(str, row)) or "no keys"
    fix = "Name the right column, or remove the row" if columns != Columns() else "Fill it, or set data.format"
    return [
        Fault(line, key, "wanted text, found nothing" if key in row else f"wanted {key}, found {found:.200}", fix)
        for key in needed
        if row.get(key) is None
    ]


def _plain(value: Any) -> Any:
    """Return a cell as text where it is a whole number, such as a class's number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _read_messages(value: Any, field: str, role: str) -> list[Turn]:
    """Return a cell's messages: text becomes one of the given role."""
    if isinstance(value, list):
        return [(f"{field}[{index}]", _clean_message(message)) for index, message in enumerate(value)]
    return [(field, {"role": role, "content": _plain(value)})]


def _read_prompt_completion(row: dict[str, Any], columns: Columns) -> list[Turn]:
    """Return the turns of a prompt and its completion; only the completion is learned."""
    prompt, completion = columns.prompt or "prompt", columns.completion or "completion"
    turns = [
        (
            field,
            {**message, "weight": 0} if isinstance(message, dict) and message.get("role") == "assistant" else message,
        )
        for field, message in _read_messages(row[prompt], prompt, "user")
    ]
    return turns + _read_messages(row[completion], completion, "assistant")


def _read_alpaca(row: dict[str, Any]) -> list[Turn]:
    turns: list[Turn] = []
    history = row.get("history")
    for index, pair in enumerate(history if isinstance(history, list) else []):
        question, answer = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
        turns.append((f"history[{index}][0]", {"role": "user", "content": question}))
        turns.append((f"history[{index}][1]", {"role": "assistant", "content": answer}))
    instruction, more = row["instruction"], _plain(row.get("input"))
    if isinstance(instruction, str) and isinstance(more, str) and more.strip():
        instruction = f"{instruction}\n\n{more}"
    turns.append(("instruction", {"role": "user", "content": instruction}))
    turns.append(("output", {"role": "assistant", "content": _plain(row["output"])}))
    return turns


def _clean_message(message: Any) -> Any:
    """Return a message in the plainest of OpenAI's forms: one text, `system` for `developer`."""
    if not isinstance(message, dict):
        return message
    content, role = message.get("content"), message.get("role")
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    ):
        message = {**message, "content": "".join(part["text"] for part in content)}
    return {**message, "role": "system"} if role == "developer" else message


def _add_system(turns: list[Turn], row: dict[str, Any], layout: Layout) -> list[Turn]:
    """Put a system message in front where the turns have none: the row's own, else the configured one."""
    first = turns[0][1] if turns else None
    if isinstance(first, dict) and first.get("role") == "system":
        return turns
    column = layout.columns.system or "system"
    own = row.get(column)
    if own is not None and own != "":
        return [(column, {"role": "system", "content": own}), *turns]
    return [("data.system_file", {"role": "system", "content": layout.system}), *turns] if layout.system else turns


def _locate(turns: list[Turn]) -> Locate:
    """Return how to say where a message's key stands."""

    def locate(index: int, key: str) -> str:
        field = turns[index][0]
        return f"{field}.{key}" if key and field.endswith("]") and not field.startswith("history") else field

    return locate


def _check_turns(line: int, row: dict[str, Any], turns: list[Turn]) -> tuple[dict[str, Any], list[Fault]]:
    """Return the turns as a row in normal form, and its faults."""
    messages = [message for _, message in turns]
    if not messages:
        return {}, [Fault(line, "", "wanted at least one message, found none", "Remove the row or fill it")]
    faults = check_messages(line, messages, _locate(turns)) + check_tools(line, row)
    faults = faults or check_learned(line, messages, turns[0][0].partition("[")[0])
    return _with_tools({"messages": messages}, row.get("tools")), faults


def _with_tools(row: dict[str, Any], tools: Any) -> dict[str, Any]:
    return {**row, "tools": tools} if tools else row


def _normalize_chat(line: int, row: dict[str, Any], layout: Layout) -> tuple[dict[str, Any], list[Fault]]:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        faults = check_chat(line, row)
        if not isinstance(messages, list):
            named = (
                "Use OpenAI's chat format, or say what the columns are: data.prompt_column=… data.completion_column=…"
            )
            faults = [Fault(fault.line, fault.field, fault.problem, named) for fault in faults]
        return row, faults
    messages = [_clean_message(message) for message in messages]
    faults = check_chat(line, {**row, "messages": messages})
    turns = _add_system([("", messages[0])], row, layout)
    messages = [message for _, message in turns] + messages[1:]
    return _with_tools({"messages": messages}, row.get("tools")), faults


def _normalize_sharegpt(line: int, row: dict[str, Any], layout: Layout) -> tuple[dict[str, Any] | None, list[Fault]]:
    items = row["conversations"]
    if not isinstance(items, list):
        problem = f"wanted a list, found {type(items).__name__}"
        return None, [Fault(line, "conversations", problem, "Use ShareGPT's form: [{from, value}, …]")]
    tools = _read_sharegpt_tools(row.get("tools"))
    turns = _add_system(
        [(f"conversations[{index}]", _read_sharegpt_message(item)) for index, item in enumerate(items)], row, layout
    )
    normal, faults = _check_turns(line, {"tools": tools}, turns)
    keys = {".role": ".from", ".content": ".value", ".tool_calls": ".value"}
    renamed = []
    for fault in faults:
        key = next((key for key in keys if fault.field.startswith("conversations[") and key in fault.field), None)
        field = fault.field.partition(key)[0] + keys[key] if key else fault.field
        renamed.append(Fault(fault.line, field, fault.problem, fault.fix))
    return normal, renamed


def _read_sharegpt_tools(value: Any) -> Any:
    """Return tools in OpenAI's form; ShareGPT files hold bare functions, often as JSON in a text."""
    tools = _parse(value) if isinstance(value, str) and value.strip() else value or None
    if not isinstance(tools, list):
        return tools
    return [
        {"type": "function", "function": tool} if isinstance(tool, dict) and "function" not in tool else tool
        for tool in tools
    ]


def _parse(text: str) -> Any:
    """Return the JSON value that a text holds, or the text where it holds none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read_sharegpt_message(item: Any) -> Any:
    """Return a message of ShareGPT's as one of OpenAI's; a function's call is JSON in its value."""
    if not isinstance(item, dict):
        return item
    said = item.get("from", item.get("role"))
    role = SHAREGPT_ROLES.get(said, said) if isinstance(said, str) else said
    content = item.get("value", item.get("content"))
    weight = {"weight": item["weight"]} if item.get("weight") is not None else {}
    if role != "function_call":
        return {"role": role, "content": content, **weight}
    call = _parse(content) if isinstance(content, str) else content
    calls = [{"type": "function", "function": one} for one in (call if isinstance(call, list) else [call])]
    return {"role": "assistant", "content": None, "tool_calls": calls, **weight}


def _is_openai_preference(row: dict[str, Any]) -> bool:
    return "preferred_output" in row or "non_preferred_output" in row


def _normalize_preference(line: int, row: dict[str, Any], layout: Layout) -> tuple[dict[str, Any], list[Fault]]:
    columns, tools = layout.columns, row.get("tools")
    names = (columns.chosen or "chosen", columns.rejected or "rejected")
    prompt: list[Turn] = []
    if _is_openai_preference(row):
        names = ("preferred_output", "non_preferred_output")
        given = row["input"]
        if not isinstance(given, dict) or not isinstance(given.get("messages"), list):
            return {}, [Fault(line, "input.messages", "wanted a list of messages, found none", "Use OpenAI's form")]
        prompt, tools = _read_messages(given["messages"], "input.messages", "user"), given.get("tools")
    elif row.get(columns.prompt or "prompt") is not None:
        prompt = _read_messages(row[columns.prompt or "prompt"], columns.prompt or "prompt", "user")
    elif columns.prompt:
        return {}, [Fault(line, columns.prompt, f"wanted {columns.prompt}, found none", "Name the right column")]
    chosen, rejected = (_read_messages(row[name], name, "assistant") for name in names)
    prompt, chosen, rejected = _split_prompt(prompt, chosen, rejected)
    if not (prompt and chosen and rejected):
        problem = "wanted a prompt and two answers to it, found one of them empty"
        return {}, [Fault(line, "", problem, "Fill it or remove the row")]
    prompt = _add_system(prompt, row, layout)
    faults = check_tools(line, {"tools": tools})
    for answer in (chosen, rejected):
        found = check_messages(line, [message for _, message in prompt + answer], _locate(prompt + answer))
        faults += [fault for fault in found if fault not in faults]
    normal = {"prompt": _messages(prompt), "chosen": _messages(chosen), "rejected": _messages(rejected)}
    if not faults and normal["chosen"] == normal["rejected"]:
        problem = f"found the same answer as {names[0]}"
        faults.append(Fault(line, names[1], problem, "Remove the row: there is nothing to prefer"))
    return _with_tools(normal, tools), faults


def _messages(turns: list[Turn]) -> list[Any]:
    return [message for _, message in turns]


def _split_prompt(
    prompt: list[Turn], chosen: list[Turn], rejected: list[Turn]
) -> tuple[list[Turn], list[Turn], list[Turn]]:
    """Take the prompt out of answers that are whole conversations: what both begin with, up to the first difference."""
    first = chosen[0][1] if chosen else None
    if not isinstance(first, dict) or first.get("role") not in ("user", "system"):
        return prompt, chosen, rejected
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared][1] == rejected[shared][1]:
        shared += 1
    return chosen[:shared], chosen[shared:], rejected[shared:]
