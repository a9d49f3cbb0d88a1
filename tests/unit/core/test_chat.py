"""core.chat: each rule of a chat names the field that breaks it."""

from typing import Any

import pytest

from core.chat import check_chat

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def chat(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ([], "messages"),
        ({"text": "x"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        (chat(("human", "q"), ("assistant", "a")), "messages[0].role"),
        (chat(("user", ""), ("assistant", "a")), "messages[0].content"),
        (chat(("user", None), ("assistant", "a")), "messages[0].content"),
        (chat(("user", "q")), "messages[0].role"),
        (chat(("assistant", "a")), "messages[0].role"),
        (chat(("user", "q"), ("user", "q"), ("assistant", "a")), "messages[1].role"),
        (
            chat(("user", "q"), ("assistant", "a"), ("system", "s"), ("user", "q"), ("assistant", "a")),
            "messages[2].role",
        ),
        (chat(("tool", "t"), ("assistant", "a")), "messages[0].role"),
        (chat(("user", "q"), ("assistant", "a"), ("assistant", "b")), "messages[2].role"),
        ({"messages": [*GOOD["messages"][:1], {"role": "assistant", "content": "a", "weight": 0}]}, "messages"),
        (
            {"messages": [*GOOD["messages"][:1], {"role": "assistant", "content": "a", "weight": True}]},
            "messages[1].weight",
        ),
        (
            {"messages": [*GOOD["messages"][:1], {"role": "assistant", "content": "a", "weight": 2}]},
            "messages[1].weight",
        ),
    ],
)
def test_each_rule_names_its_field(row: Any, field: str) -> None:
    assert [fault.field for fault in check_chat(7, row)] == [field]


def test_tool_calls_may_stand_without_content() -> None:
    row = chat(("user", "q"), ("assistant", None), ("tool", "t"), ("assistant", "a"))
    row["messages"][1]["tool_calls"] = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert check_chat(1, row) == []


def make_call(**function: Any) -> dict[str, Any]:
    row = chat(("user", "q"), ("assistant", None))
    row["messages"][1]["tool_calls"] = [{"type": "function", "function": function}]
    return row


@pytest.mark.parametrize("arguments", ['{"town": "Ulm"}', {"town": "Ulm"}])
def test_arguments_are_an_object_or_its_text(arguments: Any) -> None:
    assert check_chat(1, make_call(name="weather", arguments=arguments)) == []


@pytest.mark.parametrize("arguments", [None, "", "Ulm", "[1]", 3, "[" * 100_000])
def test_arguments_that_no_template_could_render_are_named(arguments: Any) -> None:
    (fault,) = check_chat(1, make_call(name="weather", arguments=arguments))
    assert fault.field == "messages[1].tool_calls[0].function.arguments"


def test_a_call_needs_a_name() -> None:
    assert [fault.field for fault in check_chat(1, make_call(arguments="{}"))] == ["messages[1].tool_calls[0]"]


@pytest.mark.parametrize(
    ("tools", "field"),
    [({}, "tools"), (["weather"], "tools[0]"), ([{"type": "function", "function": {}}], "tools[0]")],
)
def test_tools_are_functions_with_names(tools: Any, field: str) -> None:
    assert [fault.field for fault in check_chat(1, {**GOOD, "tools": tools})] == [field]


def test_the_old_form_of_tools_is_not_ignored_silently() -> None:
    assert [fault.field for fault in check_chat(1, {**GOOD, "functions": [{"name": "f"}]})] == ["functions"]
