"""The prompt of a grounded question: which passages and which turns fit, and how the model reads them.

What stays the same from one question to the next comes first (instructions, the client's wishes; then passages,
history, question), so that the engine's prefix cache can use it. Does not know how passages are found or answers are
written.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer

from core.control_tokens import SHAPES, break_token
from retrieval.searcher import Hit
from serve.inquiry import Chat, Inquiry
from serve.relay import ContextTooLong

TOKENS_A_MESSAGE = 8
"""What a chat template puts around a message, rounded up."""
TOKENS_A_CHAT = 64
"""What a chat template puts around a chat (Llama 3 prints two dates), and room for texts that join into more tokens."""

CountTokens = Callable[[str], int]
Disarm = Callable[[str], str]
"""Returns a text in which nothing is read as a control token."""
Message = dict[str, Any]
"""As the engine's chats have it; `content` is a text."""


def build_disarm(tokenizer: Tokenizer) -> Disarm:
    """Return a function that takes the power out of control tokens which stand in a text as plain characters.

    A chat template writes roles and turns as control tokens (`<|im_start|>`, `<|eot_id|>`), and a tokenizer finds them
    in the words of a document as well: a passage that holds them could end its message and speak as the system. A space
    behind their first character makes them words. A model may list them as ordinary added tokens: there the shape
    tells.

    Args:
        tokenizer: The model's.
    """
    added = [token for token in tokenizer.get_added_tokens_decoder().values() if token.content]
    control = [token.content for token in added if token.special or SHAPES.fullmatch(token.content)]
    if not control:
        return keep
    pattern = re.compile("|".join(re.escape(token) for token in sorted(control, key=len, reverse=True)))
    return lambda text: pattern.sub(lambda match: break_token(match[0]), text)


def keep(text: str) -> str:
    """Return a text as it came."""
    return text


def fit_prompt(
    instructions: str, inquiry: Inquiry, hits: Sequence[Hit], count_tokens: CountTokens, budget: int, disarm: Disarm
) -> tuple[list[Hit], list[Message]]:
    """Choose the passages and the history that fit the prompt's budget, and build the prompt of them.

    Passages go first, the best before the others, then the newest turns; a history that has to be kept goes before all.
    Nothing but the instructions is believed: control tokens in the words of documents and clients are read as words.

    Args:
        instructions: The assistant's.
        inquiry: What is asked.
        hits: The passages, best first.
        count_tokens: Length of a text in the model's tokens.
        budget: Tokens for the prompt.
        disarm: Makes words of control tokens, as the model's tokenizer knows them.

    Returns:
        The hits that fit, in their order, and the messages.

    Raises:
        ContextTooLong: Instructions and question alone do not fit, or not with the history that has to be kept; or they
            leave no room for any of the passages.
    """
    chat = disarm_chat(inquiry.chat, disarm)
    left = budget - TOKENS_A_CHAT - 2 * TOKENS_A_MESSAGE
    left -= count_tokens(f"{instructions}\n\n{chat.wishes}\n\n{chat.question}")
    if inquiry.keeps_history:
        left -= sum(count_turn(turn, count_tokens) for turn in chat.history)
    if left < 0:
        wanted = "instructions, history and question" if inquiry.keeps_history else "instructions and question"
        raise ContextTooLong(
            f"messages: wanted {wanted} in {budget} tokens, found {-left} too many. Shorten the question, or ask for a "
            "shorter answer.",
            param="messages",
        )
    written = [disarm(format_passage(hit)) for hit in hits]
    costs = [count_tokens(passage) + 2 for passage in written]
    if costs and min(costs) > left:  # to say that nothing was found would be untrue
        raise ContextTooLong(
            f"messages: wanted room for a passage of {min(costs)} tokens beside instructions and question, found "
            f"{left} tokens of {budget} left. Shorten the question, or ask for a shorter answer.",
            param="messages",
        )
    chosen, passages = [], []
    for hit, passage, cost in zip(hits, written, costs, strict=True):
        if cost <= left:
            chosen.append(hit)
            passages.append(passage)
            left -= cost
    history = chat.history if inquiry.keeps_history else choose_turns(chat.history, count_tokens, left)
    return chosen, build_prompt(instructions, chat, passages, history)


def disarm_chat(chat: Chat, disarm: Disarm) -> Chat:
    """Return a chat whose every word is read as one."""
    history = [{**turn, "content": disarm(turn["content"])} for turn in chat.history]
    return Chat(disarm(chat.question), history, disarm(chat.wishes))


def count_turn(turn: Message, count_tokens: CountTokens) -> int:
    """Return what a message takes in the prompt, in tokens."""
    return count_tokens(turn["content"]) + TOKENS_A_MESSAGE


def choose_turns(history: Sequence[Message], count_tokens: CountTokens, left: int) -> list[Message]:
    """Return the newest turns that fit into some tokens, oldest first, beginning with the user's."""
    turns: list[Message] = []
    for turn in reversed(history):
        left -= count_turn(turn, count_tokens)
        if left < 0:
            break
        turns.insert(0, turn)
    while turns and turns[0]["role"] != "user":
        turns.pop(0)
    return turns


def read_passage_text(hit: Hit) -> str:
    """Return what the model reads of a hit: its surroundings where the search brings them."""
    return hit.text if hit.context is None else hit.context


def drop_covered(hits: Sequence[Hit]) -> list[Hit]:
    """Return the hits, best first, without those that lie in the surroundings of a better one."""
    kept: list[Hit] = []
    for hit in hits:
        if not any(covers(better, hit) for better in kept):
            kept.append(hit)
    return kept


def covers(better: Hit, hit: Hit) -> bool:
    """Tell whether a hit's surroundings hold another hit."""
    if better.context_start is None or better.context_end is None:
        return False
    is_same = (better.store, better.file) == (hit.store, hit.file)
    return is_same and better.context_start <= hit.start and hit.end <= better.context_end


def format_passage(hit: Hit) -> str:
    """Return a passage as the model reads it."""
    title = f"{hit.file} | {hit.heading}" if hit.heading else hit.file
    return f"Document: {title}\n{read_passage_text(hit)}"


def build_prompt(instructions: str, chat: Chat, passages: Sequence[str], history: Sequence[Message]) -> list[Message]:
    """Build the messages of a grounded question; the training chats of examples/acme carry the same layout.

    Args:
        instructions: The assistant's.
        chat: Question, and wishes that the client's own system message adds.
        passages: As `format_passage` writes them, best first.
        history: Earlier turns, oldest first.

    Returns:
        System message (instructions, then the passages), the history, the question as it came.
    """
    system = "\n\n".join(part for part in (instructions, chat.wishes, *passages) if part)
    return [{"role": "system", "content": system}, *history, {"role": "user", "content": chat.question}]


def cut_messages(messages: Sequence[Message], count_tokens: CountTokens, budget: int) -> list[Message]:
    """Return a chat without the oldest turns that do not fit; system messages and the last message stay.

    Args:
        messages: The chat.
        count_tokens: Length of a text in the model's tokens.
        budget: Tokens for the prompt.
    """
    system = [message for message in messages if message["role"] == "system"]
    turns = [message for message in messages if message["role"] != "system"]
    left = budget - TOKENS_A_CHAT - sum(count_turn(message, count_tokens) for message in [*system, *turns[-1:]])
    return [*system, *choose_turns(turns[:-1], count_tokens, left), *turns[-1:]]
