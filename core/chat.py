"""The rules of a chat: known roles that take turns, text in each, tools in OpenAI's form, an assistant's answer last.

Checks messages, wherever they stand in a row. Does not know files or formats: core.training_file reads them and
core.formats turns rows into messages. Nor what a token is; train/ does.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from core.faults import Fault

ROLES = ("system", "user", "assistant", "tool")

Locate = Callable[[int, str], str]
"""Says where a message's key stands in the user's row: (index of the message, key or nothing) → field."""


def locate_message(index: int, key: str) -> str:
    """Return where a key stands in OpenAI's chat format."""
    return f"messages[{index}].{key}" if key else f"messages[{index}]"


def check_chat(line: int, row: Any) -> list[Fault]:
    """Check one row in OpenAI's chat format: messages that can be learned from, and tools.

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
    faults = check_messages(line, messages, locate_message)
    return (faults or check_learned(line, messages, "messages")) + check_tools(line, row)


def check_messages(line: int, messages: list[Any], locate: Locate) -> list[Fault]:
    """Check messages one by one, then their order; the last must be the assistant's.

    Args:
        line: The row's line, for the faults.
        messages: At least one, of any kind.
        locate: Says where each stands.
    """
    faults = [fault for index, message in enumerate(messages) for fault in _check_message(line, index, message, locate)]
    return faults or _check_order(line, messages, locate)


def check_learned(line: int, messages: list[dict[str, Any]], field: str) -> list[Fault]:
    """Check that checked messages leave something to learn: an assistant's message whose weight is not 0."""
    if all(message.get("weight") == 0 for message in messages if message["role"] == "assistant"):
        return [Fault(line, field, "every assistant message has weight 0", "Leave one to train on")]
    return []


def _check_message(line: int, index: int, message: Any, locate: Locate) -> Iterator[Fault]:
    if not isinstance(message, dict):
        problem = f"wanted an object, found {type(message).__name__}"
        yield Fault(line, locate(index, ""), problem, "Use {role, content}")
        return
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        problem = f"wanted one of {', '.join(ROLES)}; found {role!r:.60}"
        yield Fault(line, locate(index, "role"), problem, "Rename the role")
    content = message.get("content")
    calls = message.get("tool_calls")
    if not isinstance(content, str):
        if not (content is None and role == "assistant" and calls):
            problem = f"wanted text, found {'nothing' if content is None else type(content).__name__}"
            yield Fault(line, locate(index, "content"), problem, "Give the text as a string")
    elif not content.strip() and not (role == "tool" or (role == "assistant" and calls)):
        yield Fault(line, locate(index, "content"), "found empty text", "Fill it or remove the message")
    weight = message.get("weight")
    if weight is not None and (role != "assistant" or weight not in (0, 1) or isinstance(weight, bool)):
        problem = f"wanted 0 or 1 on an assistant's message, found {weight!r:.60}"
        yield Fault(line, locate(index, "weight"), problem, "Remove it")
    if calls is not None:
        yield from _check_calls(line, calls, role, locate(index, "tool_calls"))


def _check_calls(line: int, calls: Any, role: Any, where: str) -> Iterator[Fault]:
    if role != "assistant" or not isinstance(calls, list):
        problem = f"wanted a list on an assistant's message, found {type(calls).__name__} on {role!r:.60}"
        yield Fault(line, where, problem, "Remove it")
        return
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not _is_name(function.get("name")):
            problem = "wanted {function: {name, arguments}}, found something else"
            yield Fault(line, f"{where}[{index}]", problem, "Use OpenAI's form of a tool call")
        elif not _is_object(function.get("arguments")):
            problem = f"wanted a JSON object or its text, found {function.get('arguments')!r:.60}"
            yield Fault(line, f"{where}[{index}].function.arguments", problem, 'Write "{}" where there are none')


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_object(value: Any) -> bool:
    """Return whether a call's arguments are a JSON object, or text that holds one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    return isinstance(value, dict)


def check_tools(line: int, row: dict[str, Any]) -> list[Fault]:
    """Check the tools that a row offers: OpenAI's list of functions, each with a name."""
    old = [key for key in ("functions", "function_call") if row.get(key)]
    if old:
        return [Fault(line, old[0], "found OpenAI's old form of tools", "Use tools and tool_calls")]
    tools = row.get("tools")
    if tools is None:
        return []
    if not isinstance(tools, list):
        return [Fault(line, "tools", f"wanted a list, found {type(tools).__name__}", "Use OpenAI's form of tools")]
    return [
        Fault(line, f"tools[{index}]", "wanted {type: function, function: {name, …}}", "Use OpenAI's form of tools")
        for index, tool in enumerate(tools)
        if not (isinstance(tool, dict) and isinstance(tool.get("function"), dict))
        or not _is_name(tool["function"].get("name"))
    ]


def _check_order(line: int, messages: list[dict[str, Any]], locate: Locate) -> list[Fault]:
    faults = []
    before = None
    for index, message in enumerate(messages):
        role = message["role"]
        problem = fix = ""
        if role == "system" and index:
            problem, fix = "found a system message that is not the first", "Move it to the front"
        elif role == "assistant" and before in (None, "system", "assistant"):
            problem, fix = f"found assistant after {before or 'nothing'}", "Let roles take turns"
        elif role == "user" and before == "user":
            problem, fix = "found two user messages in a row", "Join them"
        elif role == "tool" and before not in ("assistant", "tool"):
            problem, fix = f"found tool after {before or 'nothing'}", "Put it after the call"
        if problem:
            faults.append(Fault(line, locate(index, "role"), problem, fix))
        before = role
    if before != "assistant":
        problem = f"wanted the assistant last, found {before}"
        faults.append(Fault(line, locate(len(messages) - 1, "role"), problem, "Add the answer"))
    return faults


def plain_message(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as templates expect it: no null keys, and tool arguments parsed (OpenAI sends them as text)."""
    plain = {key: value for key, value in message.items() if value is not None}
    if "tool_calls" in plain:
        plain["tool_calls"] = [_plain_call(call) for call in plain["tool_calls"]]
        if not plain["tool_calls"]:
            del plain["tool_calls"]
    return plain


def _plain_call(call: dict[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if isinstance(function.get("arguments"), str):
        function["arguments"] = json.loads(function["arguments"])
    return {**call, "function": function}
