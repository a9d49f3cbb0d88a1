"""evaluation.testset: what the writer says is checked, and what cannot be used is refused with its reason."""

import json
from pathlib import Path

import pytest

from core.errors import Conflict, ContractError
from evaluation.testset import (
    Draft,
    WrittenAnswer,
    check_question,
    check_written,
    count_refusals,
    read_drafts,
    share_out,
    show_passages,
)
from tests.fakes.searcher import make_passage

PASSAGE = make_passage("chunk-1", "The Brook 40 pump has a warranty of 26 months.", file="w.md", heading="Warranty")


@pytest.mark.parametrize(
    ("n", "shares", "counts"),
    [
        (100, {"fact": 0.6, "multi-hop": 0.2, "unanswerable": 0.2}, [60, 20, 20]),
        (7, {"fact": 1.0, "multi-hop": 1.0, "unanswerable": 1.0}, [3, 2, 2]),
        (1, {"fact": 0.6, "multi-hop": 0.2, "unanswerable": 0.2}, [1, 0, 0]),
        (5, {"fact": 0.0, "multi-hop": 0.0, "unanswerable": 3.0}, [0, 0, 5]),
    ],
)
def test_shares_add_up(n: int, shares: dict[str, float], counts: list[int]) -> None:
    assert list(share_out(n, shares).values()) == counts


@pytest.mark.parametrize(
    ("question", "fault"),
    [
        ("What is the warranty of the Brook 40 pump?", None),
        ("The warranty of the Brook 40 is 26 months.", "it is not one question"),
        ("What is the warranty? And the price of it?", "it is not one question"),
        ("Which warranty?", "it is too short"),
        ("What does the passage say about the warranty?", "it points at its source"),
        ("According to the text, what is the warranty?", "it points at its source"),
    ],
)
def test_a_question_must_stand_by_itself(question: str, fault: str | None) -> None:
    assert check_question(question) == fault


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"short_answer": "27 months"}, "the short answer does not stand in the chunk"),
        ({"short_answer": " . "}, "the short answer is empty"),
        ({"question": "Is the warranty of the pump 26 months?"}, "the question gives its answer away"),
        ({"answer": "It has a long warranty."}, "the answer does not hold the short one"),
        ({"question": "Warranty?"}, "it is too short"),
    ],
)
def test_an_answer_must_stand_in_the_chunk_to_the_letter(changes: dict[str, str], fault: str | None) -> None:
    good = {
        "question": "What is the warranty of the Brook 40 pump?",
        "short_answer": "26 months",
        "answer": "The Brook 40 pump has a warranty of 26 months.",
    }
    assert check_written(WrittenAnswer(**good | changes), [PASSAGE]) == fault


def test_a_passage_is_shown_with_where_it_stands() -> None:
    assert show_passages([PASSAGE]) == f"Passage (w.md | Warranty):\n{PASSAGE.text}"


def test_drafts_come_back_for_the_same_plan_only(tmp_path: Path) -> None:
    path = tmp_path / "drafts.jsonl"
    settings = {"plan": {"seed": 0}, "writer": "m"}
    head = {"format": "loam-testset-1", "settings": settings}
    draft = {"label": "fact", "attempt": 3, "row": None, "refused": "it is too short"}
    path.write_text(json.dumps(head) + "\n" + json.dumps(draft) + '\n{"label"')
    assert read_drafts(path, settings) == {("fact", 3): Draft("fact", 3, None, "it is too short")}
    assert read_drafts(tmp_path / "none", settings) == {}
    with pytest.raises(Conflict, match="another name"):
        read_drafts(path, settings | {"writer": "other"})
    path.write_text("[]\n")
    with pytest.raises(ContractError, match="line 1"):
        read_drafts(path, settings)


def test_refusals_are_counted_by_their_reason() -> None:
    reasons = ["a.md answers it", "b.md answers it", "it was asked before: x?", None, "it is too short"]
    drafts = [Draft("fact", number, None, reason) for number, reason in enumerate(reasons)]
    assert count_refusals(drafts) == [
        ("a chunk of the store answers it", 2),
        ("it was asked before", 1),
        ("it is too short", 1),
    ]
