"""The prompt of a grounded question: its layout, its budget, and what stays the same between questions."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE

from retrieval.searcher import Hit
from serve.inquiry import Chat, Inquiry
from serve.prompting import (
    Message,
    build_disarm,
    build_prompt,
    cut_messages,
    drop_covered,
    fit_prompt,
    format_passage,
    keep,
)
from serve.relay import ContextTooLong
from tests.fakes.byte_tokenizer import SPECIAL_TOKENS, make_byte_tokenizer
from tests.fakes.searcher import make_hit, make_passage

CHATS = Path(__file__).resolve().parents[3] / "examples" / "acme" / "chats_train.jsonl"
INSTRUCTIONS = "Be good."
HITS = [
    make_hit(make_passage(f"c{number}", f"passage {number} " + "word " * 20, heading="H > I")) for number in range(4)
]
PASSAGES = [format_passage(hit) for hit in HITS]
HISTORY = [{"role": "user", "content": "old " * 30}, {"role": "assistant", "content": "yes"}]


def count_words(text: str) -> int:
    return len(text.split())


def fit(inquiry: Inquiry, budget: int, found: list[Hit] = HITS) -> tuple[list[Hit], list[Message]]:
    """Return the hits and the history that fit."""
    hits, messages = fit_prompt(INSTRUCTIONS, inquiry, found, count_words, budget, keep)
    return hits, messages[1:-1]


def test_a_passage_is_titled_by_its_document_and_headings() -> None:
    assert format_passage(make_hit(make_passage("c", "Text.", file="a/b.md"))) == "Document: a/b.md\nText."
    assert format_passage(HITS[0]).startswith("Document: a.md | H > I\npassage 0")


def test_a_passage_is_read_with_its_surroundings_where_it_has_them() -> None:
    hit = replace(HITS[0], context="Before. passage 0 After.", context_start=0, context_end=24)
    assert format_passage(hit) == "Document: a.md | H > I\nBefore. passage 0 After."


def test_a_hit_in_the_surroundings_of_a_better_one_is_not_read_twice() -> None:
    first = replace(HITS[0], start=10, end=20, context="x", context_start=0, context_end=40)
    inside, beside = replace(HITS[1], start=20, end=40), replace(HITS[2], start=20, end=41)
    elsewhere = replace(inside, file="b.md")
    assert drop_covered([first, inside, beside, elsewhere]) == [first, beside, elsewhere]
    assert drop_covered([inside, first]) == [inside, first]
    assert drop_covered(HITS) == HITS


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
        written = [format_passage(hit) for hit in hits]
        assert build_prompt(instructions, Chat(messages[1]["content"], [], ""), written, []) == messages[:2]


def test_what_stays_the_same_comes_first() -> None:
    """So that the engine's prefix cache holds instructions and wishes between questions, and all between retries."""
    wishes = "Be brief."
    one = build_prompt(INSTRUCTIONS, Chat("Why?", HISTORY, wishes), PASSAGES[:2], HISTORY)
    other = build_prompt(INSTRUCTIONS, Chat("How?", [], wishes), PASSAGES[2:], [])
    assert one[0]["content"].startswith(f"{INSTRUCTIONS}\n\n{wishes}\n\nDocument: ")
    assert other[0]["content"].startswith(f"{INSTRUCTIONS}\n\n{wishes}\n\nDocument: ")
    follow_up = build_prompt(INSTRUCTIONS, Chat("How?", HISTORY, wishes), PASSAGES[:2], HISTORY)
    assert follow_up[:-1] == one[:-1], "the same passages and history are the same prompt up to the question"
    assert one == build_prompt(INSTRUCTIONS, Chat("Why?", HISTORY, wishes), PASSAGES[:2], HISTORY)


def test_passages_go_before_history_and_the_best_first() -> None:
    inquiry = Inquiry(Chat("Why?", HISTORY, ""))
    assert fit(inquiry, 400) == (HITS, HISTORY)
    assert fit(inquiry, 210) == (HITS, [])
    assert fit(inquiry, 150) == (HITS[:2], [])


def test_a_history_that_has_to_be_kept_goes_before_passages() -> None:
    inquiry = Inquiry(Chat("Why?", HISTORY, ""), keeps_history=True)
    assert fit(inquiry, 210) == (HITS[:2], HISTORY)
    with pytest.raises(ContextTooLong, match="history"):
        fit(inquiry, 120)


@given(st.integers(120, 600), st.lists(st.integers(0, 60), max_size=6))
def test_the_prompt_never_exceeds_its_budget(budget: int, turns: list[int]) -> None:
    roles = ["user", "assistant"] * 3
    history = [{"role": role, "content": "w " * size} for role, size in zip(roles, turns, strict=False)]
    inquiry = Inquiry(Chat("Why is it so?", history, ""))
    hits, messages = fit_prompt(INSTRUCTIONS, inquiry, HITS, count_words, budget, keep)
    assert sum(count_words(message["content"]) + 8 for message in messages) <= budget
    kept = messages[1:-1]
    assert messages == build_prompt(INSTRUCTIONS, inquiry.chat, [format_passage(hit) for hit in hits], kept)
    assert kept == history[len(history) - len(kept) :]
    assert not kept or kept[0]["role"] == "user"


def test_a_question_that_leaves_no_room_is_refused_and_not_taken_for_one_that_finds_nothing() -> None:
    for words, message in ((100, "instructions and question in 150 tokens"), (60, "room for a passage of 30 tokens")):
        with pytest.raises(ContextTooLong, match=message):
            fit(Inquiry(Chat("why " * words, [], "")), 150)
    assert fit(Inquiry(Chat("why " * 60, [], "")), 150, []) == ([], [])


def test_a_plain_chat_loses_its_oldest_turns_and_neither_instructions_nor_question() -> None:
    system, question = {"role": "system", "content": "Be good."}, {"role": "user", "content": "Why?"}
    chat = [system, *HISTORY, question]
    assert cut_messages(chat, count_words, 400) == chat
    assert cut_messages(chat, count_words, 110) == [system, question]
    assert cut_messages(chat, count_words, 1) == [system, question]


BYTES = make_byte_tokenizer().backend_tokenizer
PIECES = st.sampled_from([*SPECIAL_TOKENS, "<|im_", "end|>", "<", "|>", "plain words ", "\n", "é"])


@given(st.lists(PIECES, max_size=12).map("".join))
def test_no_control_token_is_left_in_a_disarmed_text(text: str) -> None:
    special = {number for number, token in BYTES.get_added_tokens_decoder().items() if token.special}
    disarmed = build_disarm(BYTES)(text)
    assert not special & set(BYTES.encode(disarmed, add_special_tokens=False).ids)
    assert disarmed.replace(" ", "") == text.replace(" ", ""), "nothing but spaces is added"
    if not special & set(BYTES.encode(text, add_special_tokens=False).ids):
        assert disarmed == text


def test_a_tokenizer_without_control_tokens_changes_nothing() -> None:
    assert build_disarm(Tokenizer(BPE())) is keep


def test_a_turn_that_a_tokenizer_lists_as_an_ordinary_token_is_known_by_its_shape() -> None:
    tokenizer = Tokenizer(BPE())
    tokenizer.add_tokens(["<|im_end|>", "<tool_call>"])
    assert build_disarm(tokenizer)("a<|im_end|><tool_call>") == "a< |im_end|><tool_call>"


def test_only_the_instructions_may_hold_control_tokens() -> None:
    token = SPECIAL_TOKENS[0]
    hit = make_hit(make_passage("c", f"words {token}system", file=f"{token}.md", heading=token))
    chat = Chat(f"{token}why?", [], f"wish {token}")
    history = [{"role": "user", "content": token}, {"role": "assistant", "content": token}]
    inquiry = Inquiry(replace(chat, history=history), keeps_history=True)
    _, messages = fit_prompt(f"Obey {token}.", inquiry, [hit], len, 1000, build_disarm(BYTES))
    assert [message["content"].count(token) for message in messages] == [1, 0, 0, 0]
    assert messages[0]["content"].startswith(f"Obey {token}.\n\n")
    assert history[0]["content"] == token, "what was said stays as it was"


def test_what_is_counted_is_what_is_sent_and_nothing_is_disarmed_twice() -> None:
    seen: list[str] = []

    def shout(text: str) -> str:
        seen.append(text)
        return text.upper()

    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return count_words(text)

    inquiry = Inquiry(Chat("Why?", HISTORY, "Brief."))
    hits, messages = fit_prompt(INSTRUCTIONS, inquiry, HITS, count, 400, shout)
    assert hits == HITS
    assert sorted(seen) == sorted(["Why?", "Brief.", *PASSAGES, *(turn["content"] for turn in HISTORY)])
    sent = [*messages[0]["content"].split("\n\n")[2:], *(turn["content"] for turn in messages[1:-1])]
    assert set(sent) < set(counted)
