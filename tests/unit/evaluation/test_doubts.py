"""Planted errors are named: an empty store, shuffled gold, an adapter not applied; sound answers raise no doubt."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from evaluation.answers import Answer
from evaluation.doubts import find_doubts, find_shuffled_gold
from evaluation.metrics import score_all
from evaluation.questions import Kind, Question
from tests.fakes.saved_answers import make_answer, make_questions, plant_answers

SHARES = {"base": 0.05, "rag": 0.6, "fine-tuned": 0.2}


def shuffle_gold(questions: Sequence[Question], seed: int = 0) -> list[Question]:
    """Deal the gold answers out again, none to its own question."""
    chance = np.random.default_rng(seed)
    places = [place for place, one in enumerate(questions) if one.kind is not Kind.unanswerable]
    order = list(chance.permutation(places))
    dealt = list(questions)
    for place, source in zip(order, order[1:] + order[:1], strict=True):
        gold = questions[source]
        dealt[place] = dataclasses.replace(questions[place], accept=gold.accept, answers=gold.answers)
    return dealt


def doubts_of(questions: Sequence[Question], answers: Sequence[Answer]) -> list[str]:
    return find_doubts(score_all(questions, answers))


@pytest.mark.parametrize("seed", range(5))
def test_sound_answers_raise_no_doubt(seed: int) -> None:
    questions = make_questions(60)
    assert doubts_of(questions, plant_answers(questions, SHARES, seed)) == []


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_gold_is_named(seed: int) -> None:
    questions = make_questions(60)
    found = doubts_of(shuffle_gold(questions, seed), plant_answers(questions, SHARES, seed))
    assert "look shuffled" in found[0]
    assert "0 of 48 stand in what was read" in found[0]


def test_arms_that_know_nothing_are_not_taken_for_shuffled_gold() -> None:
    questions = make_questions(60)
    assert find_shuffled_gold(score_all(questions, plant_answers(questions, {"base": 0.0, "fine-tuned": 0.05}))) is None


def test_labels_that_many_questions_share_are_not_taken_for_shuffled_gold() -> None:
    labels = ("lost card", "late card", "exchange rate", "top up")
    questions = [Question(f"q{n}", f"Question {n}?", answers=(labels[n % 4],)) for n in range(80)]
    chance = np.random.default_rng(0)
    answers = [
        make_answer(one, "fine-tuned", is_right=True, text=one.answers[0] if chance.random() < 0.5 else labels[n % 3])
        for n, one in enumerate(questions)
    ]
    assert find_shuffled_gold(score_all(questions, answers)) is None
    assert find_shuffled_gold(score_all(shuffle_gold(questions), answers)) is not None


def test_an_empty_store_is_named() -> None:
    questions = make_questions(40)
    answers = [dataclasses.replace(one, hits=(), citations=()) for one in plant_answers(questions, {"rag": 0.1})]
    assert any(
        "none of 40 searches found a passage: the store is empty" in doubt for doubt in doubts_of(questions, answers)
    )


def test_another_store_than_the_gold_speaks_of_is_named() -> None:
    questions = make_questions(40)
    answers = [
        dataclasses.replace(one, hits=tuple(dataclasses.replace(hit, file="other.md", text="-") for hit in one.hits))
        for one in plant_answers(questions, {"rag": 0.3})
    ]
    assert any("found for none of 32 questions" in doubt for doubt in doubts_of(questions, answers))


def test_an_adapter_that_is_not_applied_is_named() -> None:
    questions = make_questions(40)
    answers = plant_answers(questions, {"base": 0.3, "rag": 0.5})
    twins = [dataclasses.replace(one, arm="fine-tuned") for one in answers if one.arm == "base"]
    found = doubts_of(questions, [*answers, *twins])
    assert found == ["base and fine-tuned gave the same answer to 40 of 40 questions: is one model behind both?"]


def test_failed_and_cut_answers_are_counted() -> None:
    questions = make_questions(40)
    answers = plant_answers(questions, {"base": 0.3})
    answers[:3] = [dataclasses.replace(one, text="", error="timeout: none within 9 s") for one in answers[:3]]
    answers[10:30] = [dataclasses.replace(one, finish_reason="length") for one in answers[10:30]]
    found = doubts_of(questions, answers)
    assert found[0] == "base: 3 of 40 answers failed and count as wrong; 3 times: timeout: none within 9 s"
    assert found[1] == "base: 20 of 40 answers were cut off at max_tokens (20)."
