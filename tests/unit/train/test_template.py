"""Our training templates render what the originals render, byte for byte."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from core.errors import ContractError, InputError
from tests.fakes.byte_tokenizer import read_smollm2_template
from tests.fakes.tiny_llama import read_llama_template
from train.template import KNOWN_TEMPLATES, LLAMA_3_2, SMOLLM2, find_template

ORIGINALS = {SMOLLM2: read_smollm2_template, LLAMA_3_2: read_llama_template}
TEXT = st.text(min_size=1, max_size=40).filter(str.strip)
TURNS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)


@st.composite
def chats(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Chats with and without a system message, of one to three turns, some answers of weight 0."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for question, answer in draw(TURNS):
        messages.append({"role": "user", "content": question})
        weight = {"weight": draw(st.sampled_from([0, 1]))} if draw(st.booleans()) else {}
        messages.append({"role": "assistant", "content": answer, **weight})
    return messages


def render(template: str, messages: list[dict[str, Any]], **values: Any) -> str:
    rendered: Any = render_jinja_template([messages], chat_template=template, bos_token="<|begin_of_text|>", **values)
    return str(rendered[0][0])


@given(chats(), st.booleans())
def test_smollm2_equals_its_original(messages: list[dict[str, Any]], is_prompt: bool) -> None:
    values = {"add_generation_prompt": is_prompt}
    assert render(SMOLLM2.text, messages, **values) == render(read_smollm2_template(), messages, **values)


@given(chats(), st.booleans(), st.dates().map(lambda date: date.strftime("%d %b %Y")))
def test_llama_equals_its_original(messages: list[dict[str, Any]], is_prompt: bool, date: str) -> None:
    values = {"add_generation_prompt": is_prompt, "date_string": date}
    assert render(LLAMA_3_2.text, messages, **values) == render(read_llama_template(), messages, **values)


@pytest.mark.parametrize("in_user_message", [True, False])
def test_llama_equals_its_original_with_tools(in_user_message: bool) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "How warm is it in Ulm?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"town": "Ulm"}}}]},
        {"role": "tool", "content": "21"},
        {"role": "assistant", "content": "21 degrees."},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    values = {"tools": tools, "tools_in_user_message": in_user_message, "date_string": "26 Jul 2024"}
    assert render(LLAMA_3_2.text, messages, **values) == render(read_llama_template(), messages, **values)


@pytest.mark.parametrize("template", [SMOLLM2, LLAMA_3_2], ids=lambda template: template.name)
def test_a_template_is_found_by_its_original_text(template: Any, tmp_path: Path) -> None:
    folder = tmp_path / "any-name"
    folder.mkdir()
    (folder / "chat_template.jinja").write_text(ORIGINALS[template]() + "\n\n", encoding="utf-8")
    assert find_template(folder) is template
    assert template in KNOWN_TEMPLATES.values()


def test_an_unknown_template_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    with pytest.raises(InputError, match=r"Llama 3\.2, SmolLM2"):
        find_template(tmp_path)


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="chat template"):
        find_template(tmp_path)


def test_only_a_template_that_prints_a_date_gets_one() -> None:
    assert (SMOLLM2.date("26 Jul 2024"), LLAMA_3_2.date("26 Jul 2024")) == (None, "26 Jul 2024")
