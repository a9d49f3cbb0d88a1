"""core.formats: every format is told by its keys and becomes the same messages; faults are said in its words."""

from typing import Any

import pytest

from core.errors import ConfigError
from core.formats import Columns, DataFormat, Layout, check_columns, choose_layout, normalize_row

ASKED = [{"role": "user", "content": "q"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "a"}]
SYSTEM = {"role": "system", "content": "s"}
PLAIN = Columns()
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def read(row: Any, columns: Columns = PLAIN, system: str | None = None) -> dict[str, Any]:
    layout = choose_layout([(1, row, [])], columns=columns, system=system)
    normal, faults = normalize_row(1, row, layout)
    assert faults == []
    assert normal is not None
    return normal


def list_fields(row: Any, form: DataFormat, columns: Columns = PLAIN) -> list[str]:
    return [fault.field for fault in normalize_row(7, row, Layout(form, columns))[1]]


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"messages": ANSWERED}, DataFormat.chat),
        ({"prompt": "q", "completion": "a"}, DataFormat.prompt_completion),
        ({"prompt": ASKED, "completion": ANSWERED[1:]}, DataFormat.prompt_completion),
        ({"instruction": "q", "input": "", "output": "a"}, DataFormat.alpaca),
        ({"instruction": "q", "output": "a"}, DataFormat.alpaca),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, DataFormat.sharegpt),
    ],
)
def test_each_format_is_detected_and_becomes_a_chat(row: Any, form: DataFormat) -> None:
    layout = choose_layout([(1, row, [])])
    assert (layout.format, layout.is_detected) == (form, True)
    assert layout.describe() == f"{form.value} (detected)"
    assert read(row) == {"messages": ANSWERED}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": ASKED, "chosen": ANSWERED[1:], "rejected": [{"role": "assistant", "content": "b"}]},
        {"chosen": ANSWERED, "rejected": [*ASKED, {"role": "assistant", "content": "b"}]},
        {"prompt": "q", "chosen": ANSWERED, "rejected": [*ASKED, {"role": "assistant", "content": "b"}]},
        {
            "input": {"messages": ASKED},
            "preferred_output": ANSWERED[1:],
            "non_preferred_output": [{"role": "assistant", "content": "b"}],
        },
    ],
    ids=["text", "messages", "conversations", "both", "openai"],
)
def test_each_shape_of_a_preference_becomes_the_same_pair(row: Any) -> None:
    assert choose_layout([(1, row, [])]).is_preference
    pair = {"prompt": ASKED, "chosen": ANSWERED[1:], "rejected": [{"role": "assistant", "content": "b"}]}
    assert read(row) == pair


def test_rows_of_preferences_keep_their_tools() -> None:
    output = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    row = {
        "input": {"messages": ASKED, "tools": [CALL]},
        "preferred_output": output,
        "non_preferred_output": ANSWERED[1:],
    }
    assert read(row)["tools"] == [CALL]


def test_most_of_the_first_rows_decide_and_faulty_ones_do_not() -> None:
    rows: list[Any] = [
        "x",
        {"text": 1},
        {"messages": []},
        {"instruction": 1, "output": 2},
        {"instruction": 1, "output": 2},
    ]
    assert choose_layout([(1, row, []) for row in rows]).format is DataFormat.alpaca
    assert choose_layout([(1, None, [])]).format is DataFormat.chat


def test_named_columns_override_detection() -> None:
    row = {"text": "q", "label": 5, "instruction": "no", "output": "no", "sys": "s"}
    messages = [SYSTEM, *ASKED, {"role": "assistant", "content": "5"}]
    assert read(row, Columns("text", "label", "sys")) == {"messages": messages}
    pair = {"text": "q", "good": "a", "bad": "b"}
    columns = Columns("text", chosen="good", rejected="bad")
    assert read(pair, columns)["rejected"] == [{"role": "assistant", "content": "b"}]
    assert (
        Layout(DataFormat.preference, columns).describe()
        == "preference (prompt from text, chosen from good, rejected from bad)"
    )


def test_a_told_format_overrides_detection() -> None:
    row = {"messages": ANSWERED, "prompt": "q", "completion": "a"}
    layout = choose_layout([(1, row, [])], DataFormat.prompt_completion)
    assert layout.describe() == "prompt_completion (as told)"


@pytest.mark.parametrize(
    ("form", "columns"),
    [
        (DataFormat.auto, Columns(completion="a", chosen="b")),
        (DataFormat.chat, Columns(prompt="a")),
        (DataFormat.alpaca, Columns(rejected="a")),
        (DataFormat.preference, Columns(completion="a")),
    ],
)
def test_contradictions_are_refused(form: DataFormat, columns: Columns) -> None:
    with pytest.raises(ConfigError, match="Leave one out"):
        check_columns(form, columns)


def test_a_prompt_column_goes_with_preferences_where_they_are_asked_for() -> None:
    assert check_columns(DataFormat.preference, Columns(prompt="text")) is DataFormat.preference


def test_alpaca_joins_instruction_and_input_and_takes_system_and_history() -> None:
    row = {"instruction": "Translate.", "input": "Hi", "output": "a", "system": "s", "history": [["q", "a"]]}
    question = {"role": "user", "content": "Translate.\n\nHi"}
    assert read(row)["messages"] == [SYSTEM, *ANSWERED, question, ANSWERED[1]]


def test_only_the_completion_of_a_conversation_is_learned() -> None:
    row = {"prompt": [*ANSWERED, *ASKED], "completion": ANSWERED[1:]}
    assert [message.get("weight") for message in read(row)["messages"]] == [None, 0, None, None]


def test_sharegpt_takes_tools_calls_and_weights() -> None:
    row = {
        "system": "s",
        "tools": '[{"name": "f", "parameters": {}}]',
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "a", "weight": 0},
        ],
    }
    assert read(row) == {
        "messages": [
            SYSTEM,
            *ASKED,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "a", "weight": 0},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    }


def test_parts_of_text_and_developers_are_plain_messages() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": parts}, ANSWERED[1]]}
    assert [message["content"] for message in read(row)["messages"]] == ["s", "ab", "a"]
    assert read(row)["messages"][0]["role"] == "system"


@pytest.mark.parametrize("own", [True, False])
def test_a_system_message_is_added_only_where_there_is_none(own: bool) -> None:
    messages = [SYSTEM, *ANSWERED] if own else ANSWERED
    row = {"messages": messages}
    expected = "s" if own else "t"
    assert read(row, system="t")["messages"][0] == {"role": "system", "content": expected}
    assert row == {"messages": messages}


@pytest.mark.parametrize(
    ("row", "form", "fields"),
    [
        ([], DataFormat.alpaca, [""]),
        ([], DataFormat.chat, ["messages"]),
        ({"text": "x"}, DataFormat.chat, ["messages"]),
        ({"text": "x"}, DataFormat.prompt_completion, ["prompt", "completion"]),
        ({"prompt": "x", "completion": None}, DataFormat.prompt_completion, ["completion"]),
        ({"prompt": " ", "completion": ""}, DataFormat.prompt_completion, ["prompt", "completion"]),
        ({"prompt": 1.5, "completion": "x"}, DataFormat.prompt_completion, ["prompt"]),
        ({"prompt": ANSWERED, "completion": "x"}, DataFormat.prompt_completion, ["completion"]),
        ({"prompt": [], "completion": []}, DataFormat.prompt_completion, [""]),
        ({"prompt": [{"role": "user"}], "completion": "x"}, DataFormat.prompt_completion, ["prompt[0].content"]),
        ({"instruction": "q", "output": ""}, DataFormat.alpaca, ["output"]),
        ({"instruction": "q", "output": "a", "history": [5]}, DataFormat.alpaca, ["history[0][0]", "history[0][1]"]),
        ({"conversations": "x"}, DataFormat.sharegpt, ["conversations"]),
        ({"conversations": []}, DataFormat.sharegpt, [""]),
        ({"conversations": ["x"]}, DataFormat.sharegpt, ["conversations[0]"]),
        ({"conversations": [{"from": "alien", "value": "q"}]}, DataFormat.sharegpt, ["conversations[0].from"]),
        (
            {"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "a"}]},
            DataFormat.sharegpt,
            ["conversations[0].value"],
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "no"}]},
            DataFormat.sharegpt,
            ["conversations[1].value"],
        ),
        ({"conversations": [], "tools": "no"}, DataFormat.sharegpt, [""]),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 0}]},
            DataFormat.sharegpt,
            ["conversations"],
        ),
        ({"prompt": "q", "chosen": "a"}, DataFormat.preference, ["rejected"]),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, DataFormat.preference, ["rejected"]),
        ({"chosen": "a", "rejected": "b"}, DataFormat.preference, [""]),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, DataFormat.preference, [""]),
        ({"prompt": "", "chosen": "a", "rejected": ""}, DataFormat.preference, ["prompt", "rejected"]),
        ({"prompt": "q", "chosen": ASKED, "rejected": "b"}, DataFormat.preference, [""]),
        ({"preferred_output": [], "non_preferred_output": []}, DataFormat.preference, ["input"]),
        ({"input": {}, "preferred_output": [], "non_preferred_output": []}, DataFormat.preference, ["input.messages"]),
        (
            {"input": {"messages": ASKED}, "preferred_output": [{"role": "user", "content": "x"}],
             "non_preferred_output": ANSWERED[1:]},
            DataFormat.preference,
            [""],
        ),
    ],
)  # fmt: skip
def test_faults_are_said_in_the_words_of_the_row(row: Any, form: DataFormat, fields: list[str]) -> None:
    assert list_fields(row, form) == fields


def test_a_missing_column_is_named_with_those_found() -> None:
    columns = Columns("question", "answer", "sys")
    (fault,) = normalize_row(
        7, {"text": "q", "answer": "a", "sys": "s"}, Layout(DataFormat.prompt_completion, columns)
    )[1]
    assert (fault.line, fault.field) == (7, "question")
    assert "found text, answer, sys" in fault.problem
