"""evaluation.calibration: agreement of known raters, controls from known answers, and the doubts that follow."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import InputError, NotFound
from evaluation.answers import Answer, Passage
from evaluation.calibration import (
    Agreement,
    Labelled,
    find_judge_doubts,
    make_controls,
    measure_agreement,
    measure_kappa,
    read_labels,
)
from evaluation.judgements import Judgement, Sample
from evaluation.metrics import Scored, score_answer
from evaluation.questions import Kind, Question


def make_scored(number: int, text: str, **changes: Any) -> Scored:
    question = Question(
        **{"id": f"q{number}", "question": f"How many {number}?", "answers": (f"{number} pieces",)} | changes
    )
    hit = Passage(1, "s", "a.md", None, None, "chunk-1", 0.5, 0, 1, text)
    answer = Answer("rag", question.id, question.question, "m", "x", (), (hit,), True, "stop", 1, 1, 0.1, 0.2, 1.0)
    return Scored(question, answer, score_answer(question, answer))


def make_agreement(**changes: Any) -> Agreement:
    values: dict[str, Any] = {
        "source": "label",
        "metric": "faithfulness",
        "n": 10,
        "faults": 0,
        "agreement": 0.9,
        "kappa": 0.8,
        "yes_kept": 0.8,
        "noes_kept": 1.0,
        "yeses": 5,
        "noes": 5,
    }
    return Agreement(**values | changes)


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [
        ({(1, 1): 20, (1, 0): 5, (0, 1): 10, (0, 0): 15}, 0.4),  # the textbook's example
        ({(1, 1): 5, (0, 0): 5}, 1.0),
        ({(1, 0): 5, (0, 1): 5}, -1.0),
        ({(1, 1): 5, (0, 1): 5}, 0.0),  # always yes
        ({(1, 1): 5}, None),
        ({}, None),
    ],
)
def test_kappa_of_known_tables(counts: dict[tuple[int, int], int], kappa: float | None) -> None:
    pairs = [pair for pair, count in counts.items() for _ in range(count)]
    assert measure_kappa(pairs) == (None if kappa is None else pytest.approx(kappa))


def test_agreement_counts_both_answers_and_faults() -> None:
    values = {"a": (1, 0.9), "b": (1, 0.2), "c": (0, 0.0), "d": (0, 0.5), "e": (0, 0.1), "f": (1, None)}
    known = [
        Labelled(Sample("label", key, "?", "x", ("y",)), {"faithfulness": label}) for key, (label, _) in values.items()
    ]
    said = [Judgement("label", key, "faithfulness", value, None, "") for key, (_, value) in values.items()]
    foreign = Judgement("rag", "a", "faithfulness", 0.0, None, "")
    (one,) = measure_agreement(known, [*said, foreign])
    assert (one.source, one.metric, one.n, one.faults, one.yeses, one.noes) == ("label", "faithfulness", 5, 1, 2, 3)
    assert one.agreement == pytest.approx(3 / 5)
    assert one.yes_kept == 0.5
    assert one.noes_kept == pytest.approx(2 / 3)


def test_controls_are_right_answers_beside_own_and_foreign_passages() -> None:
    scored = [
        make_scored(1, "There are 1 pieces."),
        make_scored(2, "There are 2 pieces."),
        make_scored(3, "Nothing about it."),  # retrieval missed: nothing is known
        make_scored(4, "x", kind=Kind.unanswerable, answers=()),
        make_scored(5, "There are 5 pieces and 1 pieces."),
    ]
    controls = make_controls(scored, 10)
    assert [(one.sample.id, one.labels["context_recall"], one.sample.contexts) for one in controls] == [
        ("q1 1", 1, ("There are 1 pieces.",)),
        ("q1 0", 0, ("There are 2 pieces.",)),
        ("q2 1", 1, ("There are 2 pieces.",)),
        ("q2 0", 0, ("There are 5 pieces and 1 pieces.",)),
        ("q5 1", 1, ("There are 5 pieces and 1 pieces.",)),
        ("q5 0", 0, ("There are 1 pieces.",)),
    ]
    assert controls[0].sample.reference == "1 pieces"
    assert len(make_controls(scored, 2)) == 4
    assert make_controls(scored, 0) == []
    assert make_controls(scored[:1], 5) == []


def test_labels_are_read_or_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    good = {"question": "?", "answer": "a", "contexts": ["c"], "reference": "r", "faithfulness": 1, "context_recall": 0}
    path.write_text(json.dumps(good) + "\n\n")
    (one,) = read_labels(path)
    assert (one.sample.group, one.sample.id, one.labels) == (
        "label",
        "line-1",
        {"faithfulness": 1, "context_recall": 0},
    )
    bad: list[Any] = [
        [],
        {"question": "?"},
        good | {"faithfulness": 2},
        good | {"faithfulness": True},
        good | {"contexts": "c"},
        good | {"answer": ""},
        {"question": "?", "answer": "a", "faithfulness": 1},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in bad) + "{\n")
    with pytest.raises(InputError) as refusal:
        read_labels(path)
    assert [f"line {number}: " in refusal.value.message for number in range(1, 9)] == [True] * 8
    path.write_text("")
    with pytest.raises(InputError, match="at least one"):
        read_labels(path)
    with pytest.raises(NotFound):
        read_labels(tmp_path / "none")


def test_a_good_judge_raises_no_doubt() -> None:
    assert find_judge_doubts([make_agreement()], "j", "other", {"rag": "llama"}) == []


@pytest.mark.parametrize(
    ("changes", "base", "words"),
    [
        ({}, "llama", "judges itself: arm rag answers with the same base model"),
        ({"noes_kept": 0.2}, "other", "says yes to 4 of 5"),
        ({"noes_kept": 0.0, "yes_kept": 1.0}, "other", "says yes to 5 of 5"),
        ({"yes_kept": 0.0}, "other", "says no to 5 of 5"),
        (
            {"n": 20, "yeses": 10, "noes": 10, "yes_kept": 0.5, "noes_kept": 0.5},
            "other",
            "yes to 5 of 10 answers that are known to be right and to 5 of 10 that are not",
        ),
        ({"n": 2, "yeses": 1, "noes": 1, "faults": 8}, "other", "no usable judgement of 8 of 10"),
        ({"n": 2, "yeses": 1, "noes": 1}, "other", "compared with 2 known pairs only"),
    ],
)
def test_each_doubt_is_named(changes: dict[str, Any], base: str, words: str) -> None:
    doubts = find_judge_doubts([make_agreement(**changes)], "j", base, {"rag": "llama"})
    assert len(doubts) == 1
    assert words in doubts[0]


def test_without_known_pairs_nothing_is_known() -> None:
    assert "compared with 0 known pairs" in find_judge_doubts([], "j", "other", {"rag": "llama"})[0]
