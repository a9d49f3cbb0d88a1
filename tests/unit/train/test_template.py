"""Our training templates render what the originals render, byte for byte."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from core.errors import ContractError, InputError
from tests.fakes.byte_tokenizer import make_byte_tokenizer
from tests.fakes.chat_templates import ORIGINALS
from train.template import KNOWN_TEMPLATES, LLAMA_3_1, LLAMA_3_2, QWEN_2_5, QWEN_3, TrainingTemplate, find_template

TOKENIZER = make_byte_tokenizer()
TEXT = st.text(min_size=1, max_size=40).filter(str.strip)
TURNS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)
WEIGHTS: st.SearchStrategy[dict[str, Any]] = st.sampled_from([{}, {"weight": 0}, {"weight": 1}])
NAMES = st.sampled_from(["weather", "find_order"])
VALUES = st.one_of(TEXT, st.integers(), st.booleans(), st.none(), st.lists(TEXT, max_size=2))
DATES = st.dates().map(lambda date: date.strftime("%d %b %Y"))
TWINS = pytest.mark.parametrize(("template", "original"), ORIGINALS, ids=lambda value: getattr(value, "file", ""))
TWINS_WITH_TOOLS = pytest.mark.parametrize(
    ("template", "original"),
    [twin for twin in ORIGINALS if twin[0].takes_tools],
    ids=lambda value: getattr(value, "file", ""),
)


@st.composite
def chats(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Chats with and without a system message, of one to three turns, some answers of weight 0."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for question, answer in draw(TURNS):
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer, **draw(WEIGHTS)})
    return messages


@st.composite
def tool_chats(draw: st.DrawFn, max_calls: int = 1) -> list[dict[str, Any]]:
    """Chats whose every turn calls tools, reads their results and answers.

    Args:
        draw: Hypothesis's.
        max_calls: Calls in one turn.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for question, answer in draw(TURNS):
        messages.append({"role": "user", "content": question})
        calls = [
            {
                "type": "function",
                "function": {"name": draw(NAMES), "arguments": draw(st.dictionaries(TEXT, VALUES, max_size=2))},
            }
            for _ in range(draw(st.integers(1, max_calls)))
        ]
        said = {"content": draw(TEXT)} if draw(st.booleans()) else {}
        messages.append({"role": "assistant", **said, "tool_calls": calls, **draw(WEIGHTS)})
        messages += [{"role": "tool", "content": draw(TEXT)} for _ in calls]
        messages.append({"role": "assistant", "content": answer, **draw(WEIGHTS)})
    return messages


TOOLS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {"name": NAMES, "description": TEXT, "parameters": st.just({"type": "object", "properties": {}})}
            ),
        }
    ),
    min_size=1,
    max_size=2,
)


def render(template: str, messages: list[dict[str, Any]], **values: Any) -> str:
    rendered: Any = render_jinja_template([messages], chat_template=template, bos_token="<|begin_of_text|>", **values)
    return str(rendered[0][0])


@TWINS
@given(messages=chats(), is_prompt=st.booleans(), date=DATES)
def test_a_template_equals_its_original(
    template: TrainingTemplate, original: str, messages: list[dict[str, Any]], is_prompt: bool, date: str
) -> None:
    values = {"add_generation_prompt": is_prompt, **({"date_string": date} if template.prints_date else {})}
    rendered = render(template.text, messages, **values)
    assert rendered == render(original, messages, **values)
    assert (date in rendered) or not template.prints_date


@TWINS_WITH_TOOLS
@given(data=st.data(), tools=st.none() | TOOLS, date=DATES)
def test_a_template_equals_its_original_with_tools(
    template: TrainingTemplate, original: str, data: st.DataObject, tools: list[dict[str, Any]] | None, date: str
) -> None:
    messages = data.draw(tool_chats(max_calls=3 if template.takes_parallel_calls else 1))
    values: dict[str, Any] = {"tools": tools, "date_string": date}
    assert render(template.text, messages, **values) == render(original, messages, **values)


@pytest.mark.parametrize("template", [LLAMA_3_1, LLAMA_3_2], ids=lambda template: template.name)
@given(messages=tool_chats(), tools=TOOLS, in_user_message=st.booleans())
def test_llama_equals_its_original_wherever_tools_are_listed(
    template: TrainingTemplate, messages: list[dict[str, Any]], tools: list[dict[str, Any]], in_user_message: bool
) -> None:
    original = next(text for twin, text in ORIGINALS if twin is template)
    values = {"tools": tools, "tools_in_user_message": in_user_message, "date_string": "26 Jul 2024"}
    assert render(template.text, messages, **values) == render(original, messages, **values)


@pytest.mark.parametrize("weight", [{}, {"weight": 0}])
def test_llama_3_1_equals_its_original_with_built_in_tools(weight: dict[str, int]) -> None:
    call = {"function": {"name": "brave_search", "arguments": {"query": "Ulm", "language": "de"}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "How warm is it in Ulm?"},
        {"role": "assistant", "tool_calls": [call], **weight},
        {"role": "ipython", "content": {"output": 21}},
        {"role": "assistant", "content": "21 degrees."},
    ]
    original = next(text for twin, text in ORIGINALS if twin is LLAMA_3_1)
    for builtin_tools in (["brave_search", "code_interpreter"], ["wolfram_alpha"]):
        values = {"builtin_tools": builtin_tools, "date_string": "26 Jul 2024"}
        rendered = render(LLAMA_3_1.text, messages, **values)
        assert rendered == render(original, messages, **values)
        assert "<|eom_id|>" in rendered


@TWINS
@given(data=st.data())
def test_what_is_learned_is_what_the_server_lets_the_model_write(
    template: TrainingTemplate, original: str, data: st.DataObject
) -> None:
    """An answer is what the original template prints after its generation prompt, up to and with the stop token."""
    several = 3 if template.takes_parallel_calls else 1
    messages = data.draw(chats() | tool_chats(several)) if template.takes_tools else data.draw(chats())
    date: dict[str, Any] = {"date_string": "26 Jul 2024"}
    wanted = ""
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and message.get("weight") != 0:
            prompt = render(original, messages[:index], add_generation_prompt=True, **date)
            answered = render(original, messages[: index + 1], **date)
            assert answered.startswith(prompt)
            wanted += answered.removeprefix(prompt).removesuffix("\n" if template.stop_token == "<|im_end|>" else "")
    encoded: Any = TOKENIZER.apply_chat_template(
        messages, chat_template=template.text, return_dict=True, return_assistant_tokens_mask=True, **date
    )
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    assert TOKENIZER.decode([token for token, is_learned in pairs if is_learned]) == wanted
    assert wanted == "" or wanted.endswith(template.stop_token)


@TWINS
def test_a_template_is_found_by_its_original_text(template: TrainingTemplate, original: str, tmp_path: Path) -> None:
    folder = tmp_path / "any-name"
    folder.mkdir()
    (folder / "chat_template.jinja").write_text(original + "\n\n", encoding="utf-8")
    assert find_template(folder) is template


def test_every_known_template_is_held_against_every_original() -> None:
    assert len(ORIGINALS) == len(KNOWN_TEMPLATES)
    assert {template.file for template, _ in ORIGINALS} == {template.file for template in KNOWN_TEMPLATES.values()}


def test_an_unknown_template_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    with pytest.raises(InputError, match=r"Llama 3\.2, .*SmolLM2"):
        find_template(tmp_path)


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="chat template"):
        find_template(tmp_path)


def test_only_a_template_that_prints_a_date_gets_one() -> None:
    dated = {template.name for template, _ in ORIGINALS if template.date("26 Jul 2024") == "26 Jul 2024"}
    assert dated == {LLAMA_3_1.name, LLAMA_3_2.name}


def test_only_qwen_takes_several_calls_in_one_turn() -> None:
    calls = [{"function": {"name": "weather", "arguments": {"town": town}}} for town in ("Ulm", "Graz")]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Where is it warmer?"},
        {"role": "assistant", "tool_calls": calls},
    ]
    for template, original in ORIGINALS:
        if template in (QWEN_2_5, QWEN_3):
            assert template.takes_parallel_calls
            assert render(template.text, messages) == render(original, messages)
        elif template.takes_tools:
            assert not template.takes_parallel_calls
            with pytest.raises(Exception, match="single tool-calls"):
                render(template.text, messages)
