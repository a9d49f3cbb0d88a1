"""Answering's parts: the prompt, the budget, the chat as an assistant reads it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from serve.answering import AssistantConfig, Chat, build_prompt, fit_budget, format_passage, read_chat
from serve.boundary import InvalidRequest
from serve.relay import ContextTooLong
from serve.schemas.chat import ChatRequest
from tests.fakes.searcher import make_hit, make_passage

CHATS = Path(__file__).resolve().parents[3] / "examples" / "acme" / "chats_train.jsonl"
CONFIG = AssistantConfig(model="m", stores=["s"], instructions="Be good.")
HITS = [
    make_hit(make_passage(f"c{number}", f"passage {number} " + "word " * 20, heading="H > I")) for number in range(4)
]


def count_words(text: str) -> int:
    return len(text.split())


def make_request(*messages: dict[str, Any]) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": list(messages)})


def test_a_passage_is_titled_by_its_document_and_headings() -> None:
    assert format_passage(make_hit(make_passage("c", "Text.", file="a/b.md"))) == "Document: a/b.md\nText."
    assert format_passage(HITS[0]).startswith("Document: a.md | H > I\npassage 0")


def test_the_prompt_has_the_layout_of_the_training_chats() -> None:
    rows = [json.loads(line) for line in CHATS.read_text().splitlines()]
    grounded = [row["messages"] for row in rows if row["messages"][0]["content"].count("\n\nDocument: ")]
    assert len(grounded) > 100
    for messages in grounded:
        instructions, *passages = messages[0]["content"].split("\n\nDocument: ")
        hits = []
        for number, passage in enumerate(passages):
            title, _, text = passage.partition("\n")
            file, _, heading = title.partition(" | ")
            hits.append(make_hit(make_passage(f"c{number}", text, file=file, heading=heading or None)))
        assert build_prompt(instructions, Chat(messages[1]["content"], [], ""), hits, []) == messages[:2]


def test_passages_go_before_history_and_the_best_first() -> None:
    chat = Chat("Why?", [{"role": "user", "content": "old " * 30}, {"role": "assistant", "content": "yes"}], "")
    everything = fit_budget(CONFIG, chat, HITS, count_words, 400)
    assert everything == (HITS, chat.history)
    no_history = fit_budget(CONFIG, chat, HITS, count_words, 210)
    assert no_history == (HITS, [])
    two = fit_budget(CONFIG, chat, HITS, count_words, 150)
    assert two == (HITS[:2], [])


@given(st.integers(90, 600), st.lists(st.integers(0, 60), max_size=6))
def test_the_prompt_never_exceeds_its_budget(budget: int, turns: list[int]) -> None:
    roles = ["user", "assistant"] * 3
    history = [{"role": role, "content": "w " * size} for role, size in zip(roles, turns, strict=False)]
    chat = Chat("Why is it so?", history, "")
    hits, kept = fit_budget(CONFIG, chat, HITS, count_words, budget)
    messages = build_prompt(CONFIG.instructions, chat, hits, kept)
    assert sum(count_words(message["content"]) + 8 for message in messages) <= budget
    assert kept == history[len(history) - len(kept) :]
    assert not kept or kept[0]["role"] == "user"


def test_a_question_alone_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ContextTooLong):
        fit_budget(CONFIG, Chat("why " * 100, [], ""), HITS, count_words, 150)


def test_a_chat_is_taken_apart() -> None:
    chat = read_chat(
        make_request(
            {"role": "developer", "content": "Short."},
            {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": "Three [1]."},
            {"role": "system", "content": " "},
            {"role": "user", "content": "Four?"},
        )
    )
    assert chat == Chat(
        "Four?", [{"role": "user", "content": "One\ntwo"}, {"role": "assistant", "content": "Three."}], "Short."
    )


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "x"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        [{"role": "user", "content": "\n"}],
        [{"role": "tool", "content": "x", "tool_call_id": "1"}, {"role": "user", "content": "x"}],
    ],
)
def test_a_chat_without_a_question_at_its_end_is_refused(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidRequest):
        read_chat(make_request(*messages))


@pytest.mark.parametrize(
    "change",
    [
        {"stores": []},
        {"k": 0},
        {"k": 51},
        {"min_score": 1.5},
        {"nothing_found": " "},
        {"max_tokens": 0},
        {"temperature": 3},
    ],
)
def test_an_assistants_settings_have_ranges(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        AssistantConfig(**{"model": "m", "stores": ["s"], **change})
