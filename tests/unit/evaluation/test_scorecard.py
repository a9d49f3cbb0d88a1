"""evaluation.scorecard: figures, limits and comparisons of known answers; the same input gives the same report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError
from evaluation.answers import Answer
from evaluation.judgements import JudgedMean, Judgement
from evaluation.metrics import Scored, score_answer, summarize
from evaluation.questions import Kind, Question
from evaluation.report import write_report
from evaluation.scorecard import (
    LIMITED,
    Card,
    check_limits,
    compare_runs,
    find_misses,
    is_worse,
    lay_out,
    measure_figures,
    measure_success,
    to_table,
    to_values,
)

ANSWER = Answer("m", "q", "?", "m", "yes", (), (), False, "stop", 10, 2, 0.1, 1.0, 1.0)


def make_run(right: int, wrong: int, latency_s: float = 1.0) -> list[Scored]:
    """Return answers, the first ones right."""
    scored = []
    for number in range(right + wrong):
        question = Question(f"q{number}", "Is it?", answers=("yes",), accept=("yes",))
        text = "yes" if number < right else "no"
        answer = replace(ANSWER, question_id=question.id, text=text, latency_s=latency_s + number)
        scored.append(Scored(question, answer, score_answer(question, answer)))
    return scored


def make_card(scored: list[Scored], **changes: Any) -> Card:
    judged = [JudgedMean("m", "faithfulness", 0.5, 4, 1)]
    values: dict[str, Any] = {
        "name": "run",
        "settings": {"model": "m"},
        "scored": scored,
        "summaries": summarize(scored),
        "success": measure_success(scored, seed=0, level=0.95),
        "figures": measure_figures(scored, judged),
        "judged": judged,
        "judgements": [Judgement("m", "q0", "faithfulness", 0.5, None, "")],
        "judge": {"model": "j", "usage": {"calls": 7, "repeated": 1, "faults": 1}},
    }
    return Card(**values | changes)


def test_figures_are_named_like_limits() -> None:
    figures = measure_figures(make_run(3, 1), [JudgedMean("m", "faithfulness", 0.5, 4, 1)])
    assert set(figures) == set(LIMITED)
    assert figures["success"] == 0.75
    assert (figures["latency_s"], figures["latency_s_p50"], figures["latency_s_p95"]) == (2.5, 2.0, 4.0)
    assert (figures["faithfulness"], figures["context_recall"], figures["judge_faults"]) == (0.5, None, 0.2)
    assert figures["retrieval_recall"] is None


def test_limits_are_kept_or_named() -> None:
    figures = measure_figures(make_run(3, 1), [])
    assert find_misses(figures, {"success": 0.75}, {"latency_s_p95": 4.0}) == []
    assert find_misses(figures, {"success": 0.76, "faithfulness": 0.1}, {"latency_s_p95": 3.9}) == [
        "success: wanted at least 0.76, found 0.75",
        "faithfulness: wanted at least 0.1, but it was not measured",
        "latency_s_p95: wanted at most 3.9, found 4",
    ]
    check_limits({"success": 1.0}, {"judge_faults": 0.1})
    with pytest.raises(ConfigError, match=r"at_least\.sucess.*; at_most\.speed"):
        check_limits({"sucess": 1.0}, {"speed": 1.0})


def test_runs_are_compared_question_by_question() -> None:
    before, after = make_run(30, 10), make_run(10, 30, latency_s=3.0)
    compared = {one.metric: one for one in compare_runs(after, before, seed=0, level=0.95)}
    success = compared["success"]
    assert (success.other_mean, success.mean, success.comparison.n) == (0.75, 0.25, 40)
    assert success.comparison.difference == pytest.approx(-0.5)
    assert success.comparison.high < 0
    assert is_worse(list(compared.values()))
    assert compared["latency_s"].comparison.difference == pytest.approx(2.0)
    assert "retrieval_recall" not in compared
    same = compare_runs(before, before, seed=0, level=0.95)
    assert not is_worse(same)
    assert {one.comparison.difference for one in same} == {0.0}
    assert compare_runs(after, [], seed=0, level=0.95) == []


def test_fractions_of_a_second_are_compared_on_their_own_scale() -> None:
    def answer_within(latency_s: float) -> list[Scored]:
        return [
            Scored(one.question, one.answer, replace(one.scores, latency_s=latency_s + number * 1e-4))
            for number, one in enumerate(make_run(20, 20))
        ]

    compared = {one.metric: one for one in compare_runs(answer_within(0.03), answer_within(0.02), seed=0, level=0.95)}
    found = compared["latency_s"].comparison
    assert found.difference == pytest.approx(0.01)
    assert 0.005 < found.low < found.high < 0.015


def test_the_same_answers_give_the_same_report(tmp_path: Path) -> None:
    scored = [*make_run(6, 4), *make_run(0, 0)]
    unanswerable = Question("u", "Who?", Kind.unanswerable)
    failed = replace(ANSWER, question_id="u", text="", error="timeout: <b>")
    scored.append(Scored(unanswerable, failed, score_answer(unanswerable, failed)))
    pages = []
    for folder in ("a", "b"):
        card = make_card(scored, doubts=["It is all invented."], misses=["success: wanted more"])
        write_report(tmp_path / folder, "Evaluation", lay_out(card), to_values(card), to_table(card))
        pages.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert pages[0] == pages[1]
    page = pages[0]["report.html"].decode()
    assert page.index("It is all invented.") < page.index("54.5% of 11 questions")
    assert "timeout: &lt;b&gt;" in page
    assert "<b>" not in page
    assert len(pages[0]["scores.csv"].decode().strip().splitlines()) == 12
    assert b'"answers": 11' in pages[0]["report.json"]
    assert b'"errors": 1' in pages[0]["report.json"]
