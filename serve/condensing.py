"""Condensing: a question that leans on what was said before becomes one that can be searched for by itself.

The base model rewrites it: adapters have learned a style of answering, not this. What it makes is only searched for;
the question that is answered stays as it came. Does not know how anything is found.
"""

import json
from typing import Any

from serve.inquiry import Chat
from serve.prompting import CountTokens, Disarm, choose_turns

INSTRUCTIONS = (
    "Rewrite the last question so that it can be understood without the conversation. Keep its meaning, and put names "
    "in place of words such as it, they or there. Reply with the question only."
)
MAX_ANSWER_TOKENS = 64
MAX_HISTORY_TOKENS = 512
"""Of the newest turns; what lies further back is seldom meant."""
MAX_CHARS = 400
"""A longer answer is no question."""


def build_condensing(model: str, chat: Chat, count_tokens: CountTokens, disarm: Disarm) -> bytes:
    """Return the request that lets a model rewrite a chat's question; its answer comes whole.

    Args:
        model: The engine's name of it.
        chat: With a history.
        count_tokens: Length of a text in the model's tokens.
        disarm: Makes words of control tokens; an earlier answer may quote a document that holds some.
    """
    turns = choose_turns(chat.history, count_tokens, MAX_HISTORY_TOKENS)
    said = "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    question = f"Conversation:\n{said}\n\nLast question: {chat.question}"
    messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": disarm(question)}]
    body = {"model": model, "messages": messages, "max_tokens": MAX_ANSWER_TOKENS, "temperature": 0.0}
    return json.dumps(body, ensure_ascii=False).encode()


def read_condensed(answer: bytes, question: str) -> str:
    """Return the question that a model has made, or the one that was asked where it made none."""
    message: dict[str, Any] = json.loads(answer)["choices"][0]["message"]
    lines = [line.strip().strip("\"'“”") for line in (message.get("content") or "").splitlines()]
    written = next((line for line in lines if line), "")
    label, colon, rest = written.partition(":")
    if colon and label.casefold() in ("question", "last question", "rewritten question"):
        written = rest.strip().strip("\"'“”")
    return written if written and len(written) <= MAX_CHARS else question
