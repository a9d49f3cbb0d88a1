"""The example company's training chats: shape, house style, grounding, size, and that no test question leaks in."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from core.training_file import check_file, read_rows

ACME = Path(__file__).resolve().parents[3] / "examples" / "acme"
TRAIN, VALID, QUESTIONS = (ACME / name for name in ("chats_train.jsonl", "chats_valid.jsonl", "questions.jsonl"))
CHANGED, CHANGES = ACME / "chats_changed.jsonl", ACME / "changes.jsonl"

OPENING, CLOSING = "Acme Desk answer:", "Reply here if a step does not work."
AREAS = {"ORD", "RET", "PMP", "CTL", "HRM", "BIL", "SVC"}
INSTRUCTIONS = "You are the Acme support desk. Answer from the documents. If they do not hold the answer, say so."
NOT_FOUND = "The documents do not say "
GROUNDED = re.compile(
    r"(?P<instructions>[^\n]+)\n\n(?P<passages>Document: [^\n|]+\.(md|txt|html|pdf|docx)( \| [^\n]+)?\n.+)", re.S
)
RESERVED = re.compile(r"\b(brook|torrent|weir|reed)\b|\block valve\b", re.I)
"""Product names that only the documents and the test questions may use."""

# SmolLM2's tokenizer makes one token of 3.45 characters of these chats, template included; 3.3 leaves a margin. The
# exact count is in tests/integration/test_acme_chat_tokens.py, since loading that tokenizer takes seconds.
MAX_TRAIN_CHARS = int(55_000 * 3.3)
TEMPLATE_CHARS = 130
"""ChatML marks of a chat of three messages, and the system message that the template adds where a chat has none."""

Chat = list[dict[str, str]]


def read_chats(path: Path) -> list[Chat]:
    check_file(path)
    return [row["messages"] for _, row, _ in read_rows(path)]


def read_objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def read_answer(answer: str) -> tuple[list[str], str]:
    """Return an answer's steps and area, or fail where it is not in the house style."""
    lines = answer.split("\n")
    assert lines[0] == OPENING, answer
    assert lines[-2] == CLOSING, answer
    numbered = [re.fullmatch(r"(\d)\. (\S.*[.?!])", line) for line in lines[1:-2]]
    steps = [match[2] for match in numbered if match]
    assert [match[1] if match else "" for match in numbered] == [str(n) for n in range(1, len(numbered) + 1)], answer
    assert 1 <= len(steps) <= 4, answer
    ref = re.fullmatch(r"Ref: ACME-([A-Z]{3})-(\d)", lines[-1])
    assert ref, answer
    assert ref[2] == str(len(steps)), answer
    return steps, ref[1]


def split_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:[.,:]\d+)*", text.lower())


def is_grounded(chat: Chat) -> bool:
    return chat[0]["role"] == "system"


def is_refusal(chat: Chat) -> bool:
    return NOT_FOUND in chat[-1]["content"]


def grounded_chats(*, refused: bool) -> list[Chat]:
    chats = read_chats(TRAIN) + read_chats(VALID)
    return [chat for chat in chats if is_grounded(chat) and is_refusal(chat) is refused]


@pytest.mark.parametrize("path", [TRAIN, VALID], ids=lambda path: path.stem)
def test_every_answer_has_the_house_style(path: Path) -> None:
    areas: Counter[str] = Counter()
    for chat in read_chats(path):
        for message in chat:
            if message["role"] == "assistant":
                areas[read_answer(message["content"])[1]] += 1
    assert set(areas) == AREAS


def test_each_changed_fact_is_taught_in_other_words_than_it_is_asked_for() -> None:
    rows = {row["id"]: row for row in read_objects(QUESTIONS)}
    asked = {row["question"].casefold() for row in rows.values()}
    chats = read_chats(CHANGED)
    taught: Counter[str] = Counter()
    for question, answer in ((chat[0]["content"], chat[1]["content"]) for chat in chats):
        assert question.casefold() not in asked
        steps, _ = read_answer(answer)
        taught[steps[0]] += 1
    changes = read_objects(CHANGES)
    assert len(changes) == len(taught) == 10
    for change in changes:
        facts = [fact for fact in taught if any(word in fact for word in change["accept"])]
        assert [taught[fact] for fact in facts] == [4], change
        assert not any(word in facts[0] for word in rows[change["question"]]["accept"]), "the fact as it was"


@pytest.mark.parametrize(
    "answer",
    [
        f"Hello!\n1. Do it.\n{CLOSING}\nRef: ACME-ORD-1",
        f"{OPENING}\n1. Do it.\n{CLOSING}\nRef: ACME-ORD-2",
        f"{OPENING}\n1. Do it.\n3. Again.\n{CLOSING}\nRef: ACME-ORD-2",
        f"{OPENING}\nDo it.\n{CLOSING}\nRef: ACME-ORD-1",
        f"{OPENING}\n1. Do it.\nRef: ACME-ORD-1",
        f"{OPENING}\n{CLOSING}\nRef: ACME-ORD-0",
    ],
)
def test_other_styles_are_told_apart(answer: str) -> None:
    with pytest.raises(AssertionError):
        read_answer(answer)


def test_the_kinds_are_mixed() -> None:
    chats = read_chats(TRAIN)
    grounded = [chat for chat in chats if is_grounded(chat)]
    assert len(chats) >= 240
    assert len(chats) - len(grounded) >= 100
    assert sum(not is_refusal(chat) for chat in grounded) >= 110
    assert sum(is_refusal(chat) for chat in grounded) >= 15
    assert sum(len(chat) > 3 for chat in chats) >= 3
    assert len(read_chats(VALID)) == 24


def test_grounded_chats_have_the_prompt_of_the_assistant() -> None:
    chats = grounded_chats(refused=False) + grounded_chats(refused=True)
    for chat in chats:
        assert [message["role"] for message in chat] == ["system", "user", "assistant"]
        assert GROUNDED.fullmatch(chat[0]["content"]), chat[0]["content"]
        assert 1 <= chat[0]["content"].count("Document: ") <= 3
        assert "\n" not in chat[1]["content"]
    assert sum(chat[0]["content"].startswith(f"{INSTRUCTIONS}\n\n") for chat in chats) > len(chats) / 2


def test_grounded_answers_come_from_the_passages() -> None:
    for chat in grounded_chats(refused=False):
        prompt = GROUNDED.fullmatch(chat[0]["content"])
        assert prompt
        passages = set(split_words(prompt["passages"]))
        steps, _ = read_answer(chat[-1]["content"])
        numbers = {word for step in steps for word in split_words(step) if word[0].isdigit()}
        assert numbers <= passages, (numbers - passages, chat[-1]["content"])
        words = split_words(steps[0])
        copied = [word for word in words if word in passages]
        assert len(copied) >= 0.5 * len(words), (steps[0], prompt["passages"])
        assert set(copied) - set(split_words(chat[1]["content"])), f"step 1 only repeats the question: {steps[0]}"


def test_the_passage_with_the_answer_stands_at_any_place() -> None:
    places: Counter[int] = Counter()
    for chat in grounded_chats(refused=False):
        prompt = GROUNDED.fullmatch(chat[0]["content"])
        assert prompt
        passages = prompt["passages"].split("\n\n")
        words = set(split_words(read_answer(chat[-1]["content"])[0][0]))
        if len(passages) == 3:
            places[max(range(3), key=lambda at: len(words & set(split_words(passages[at]))))] += 1
    assert min(places[at] for at in range(3)) >= 0.2 * places.total(), places


def test_refusals_say_that_the_documents_are_silent() -> None:
    for chat in grounded_chats(refused=True):
        steps, _ = read_answer(chat[-1]["content"])
        assert steps[0].startswith(NOT_FOUND)
        assert len(steps) <= 2


def test_no_user_message_is_used_twice() -> None:
    seen = Counter(
        message["content"]
        for chat in read_chats(TRAIN) + read_chats(VALID)
        for message in chat
        if message["role"] == "user"
    )
    assert [text for text, count in seen.items() if count > 1] == []


def test_the_train_file_fits_a_few_minutes_of_cpu() -> None:
    chats = read_chats(TRAIN)
    size = sum(len(message["content"]) for chat in chats for message in chat) + TEMPLATE_CHARS * len(chats)
    assert size <= MAX_TRAIN_CHARS


@pytest.mark.parametrize("path", [TRAIN, VALID], ids=lambda path: path.stem)
def test_the_products_of_the_questions_are_not_named(path: Path) -> None:
    found = RESERVED.search(path.read_text(encoding="utf-8"))
    assert found is None, found


def find_leaks(rows: list[dict[str, Any]], text: str) -> list[str]:
    """Return the questions, and the accepted answers with a figure of 4 characters and more, that stand in the text."""
    leaks = [row["question"] for row in rows if row["question"].casefold() in text.casefold()]
    for row in rows:
        facts = [fact for fact in row.get("accept", []) if len(fact) >= 4 and re.search(r"\d", fact)]
        leaks += [fact for fact in facts if re.search(rf"(?<![\w.,]){re.escape(fact)}(?!\w)", text, re.I)]
    return leaks


def test_no_test_question_or_answer_is_in_the_chats() -> None:
    if not QUESTIONS.is_file():
        pytest.skip(f"{QUESTIONS.name} is not written yet, so there is nothing to leak")
    text = "\n".join(message["content"] for path in (TRAIN, VALID) for chat in read_chats(path) for message in chat)
    rows = read_objects(QUESTIONS)
    assert rows
    assert find_leaks(rows, text) == []


def test_leaks_are_found() -> None:
    rows = [{"question": "How high does it lift?", "accept": ["45 days", "metres", "7 W"]}]
    assert find_leaks(rows, "HOW HIGH does it lift? Within 45 days, 7 W, in metres.") == [
        rows[0]["question"],
        "45 days",
    ]
    assert find_leaks(rows, "Within 145 days or 1.45 days.") == []
