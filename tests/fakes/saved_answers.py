"""Saved answers as a run would have left them: arms with known shares of right answers, questions with known gold."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.answers import Answer, Passage
from evaluation.questions import Kind, Question
from evaluation.verdict import Corpus, Evidence, Training

WORDS = ("amber", "birch", "cedar", "delta", "ember", "flint", "grove", "hazel", "inlet", "jetty")


def make_questions(n: int) -> list[Question]:
    """Return n questions: of five, three about facts, one about style, one without an answer."""
    questions = []
    for place in range(n):
        kind = (Kind.knowledge, Kind.knowledge, Kind.knowledge, Kind.style, Kind.unanswerable)[place % 5]
        gold = f"{WORDS[place % 10]} {WORDS[place // 10 % 10]} {place} litres"
        answers = () if kind is Kind.unanswerable else (gold,)
        regex = "^Desk: " if kind is Kind.style else None
        questions.append(
            Question(f"q{place}", f"How much is item {place}?", kind, kind.value, answers=answers, accept=answers,
                     files=(f"{place}.md",) if answers else (), regex=regex)
        )  # fmt: skip
    return questions


def make_answer(question: Question, arm: str, *, is_right: bool, **changes: Any) -> Answer:
    """Return an answer that is right, or wrong; arms with documents have read the gold passage."""
    if question.kind is Kind.unanswerable:
        text = "I do not know; the documents do not say." if is_right else f"It is about {arm} litres."
    else:
        text = f"Desk: it is {question.answers[0]}." if is_right else f"It is about {arm} litres of {question.id}."
    searched = arm in {"rag", "hybrid", "raft-hybrid", "nearest"}
    gold = question.answers[0] if question.answers else "nothing"
    passage = f"Item says {gold}."
    hits = (Passage(1, "s", f"{question.id[1:]}.md", None, None, f"chunk-{question.id[1:]}", 0.8, 0, 9, passage),)
    values: dict[str, Any] = {
        "arm": arm,
        "question_id": question.id,
        "question": question.question,
        "model": arm,
        "text": text,
        "citations": (1,) if searched and is_right else (),
        "hits": hits if searched else (),
        "searched": searched,
        "finish_reason": "stop",
        "prompt_tokens": 300 if searched else 40,
        "completion_tokens": 20,
        "ttft_s": 0.2,
        "latency_s": 1.5 if searched else 0.5,
        "asked_at": 1.0,
    }
    return Answer(**values | changes)


def plant_answers(
    questions: Sequence[Question], shares: Mapping[str, float | Mapping[str, float]], seed: int = 0
) -> list[Answer]:
    """Return answers of several arms, each right with its probability, the same for every kind or by kind."""
    chance = np.random.default_rng(seed)
    answers = []
    for question in questions:
        for arm, share in shares.items():
            likely = share if isinstance(share, float | int) else share[question.kind.value]
            answers.append(make_answer(question, arm, is_right=bool(chance.random() < likely)))
    return answers


def make_evidence(shares: Mapping[str, float | Mapping[str, float]], n: int = 150, seed: int = 0) -> Evidence:
    """Return what a verdict is made from: planted answers, some asked alone, two trainings, a corpus."""
    questions = make_questions(n)
    answers = plant_answers(questions, shares, seed)
    alone = [dataclasses.replace(one, latency_s=2 * one.latency_s) for one in answers[: 10 * len(shares)]]
    training = Training(200_000, 600, 290)
    return Evidence(
        questions,
        answers,
        alone,
        concurrency=4,
        trainings={"fine-tuned": training, "hybrid": training},
        corpus=Corpus(18_000, 44, 21.0),
    )
