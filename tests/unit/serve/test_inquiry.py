"""What is asked of an assistant: a chat taken apart, and what is refused."""

from typing import Any

import pytest

from serve.boundary import InvalidRequest
from serve.inquiry import Chat, read_chat, read_chat_request
from serve.schemas.chat import ChatRequest


def make_request(*messages: dict[str, Any], **more: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": list(messages), **more})


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


def test_a_chat_requests_own_wishes_are_kept() -> None:
    question = {"role": "user", "content": "Why?"}
    inquiry = read_chat_request(make_request(question, max_tokens=9, temperature=0.5, top_p=0.9, stop="x"))
    assert (inquiry.max_tokens, inquiry.temperature) == (9, 0.5)
    assert inquiry.sampling == {"top_p": 0.9, "stop": "x"}
    assert (inquiry.filters, inquiry.keeps_history, inquiry.is_cited) == (None, False, True)
