"""evaluation.judgements: what is judged comes from saved answers, and means leave faults out but count them."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from core.errors import ContractError
from evaluation.answers import Answer, Passage
from evaluation.judgements import JudgedMean, Judgement, Sample, make_samples, read_judgements, summarize_judgements
from evaluation.metrics import Scored, score_answer
from evaluation.questions import Kind, Question

HIT = Passage(1, "s", "a.md", None, None, "chunk-1", 0.5, 0, 1, "Within 45 days.")
ANSWER = Answer("rag/x", "q", "How long?", "m", "45 days. [1]", (1,), (HIT,), True, "stop", 1, 1, 0.1, 0.2, 1.0)


def score(question: Question, answer: Answer) -> Scored:
    return Scored(question, answer, score_answer(question, answer))


def test_an_answer_becomes_a_sample_without_marks() -> None:
    question = Question("q", "How long?", answers=("In 45 days.",), accept=("45",))
    assert make_samples([score(question, ANSWER)]) == [
        Sample("rag/x", "q", "How long?", "45 days.", ("Within 45 days.",), "In 45 days.")
    ]
    (bare,) = make_samples([score(Question("q", "?", accept=("45",)), replace(ANSWER, text="", hits=()))])
    assert (bare.response, bare.contexts, bare.reference) == (None, (), "45")
    unanswerable = Question("q", "?", Kind.unanswerable, answers=("Nobody knows.",))
    (declined,) = make_samples([score(unanswerable, replace(ANSWER, text="I don't know."))])
    assert (declined.reference, declined.has_declined, declined.is_answerable) == (None, True, False)
    assert make_samples([score(question, replace(ANSWER, error="timeout"))]) == []


def test_means_count_faults_and_leave_them_out() -> None:
    said = [
        Judgement("a", "1", "faithfulness", 1.0, None, ""),
        Judgement("a", "2", "faithfulness", 0.0, None, ""),
        Judgement("a", "3", "faithfulness", None, "cut off", ""),
        Judgement("b", "1", "faithfulness", None, "cut off", ""),
    ]
    assert summarize_judgements(said) == [
        JudgedMean("a", "faithfulness", 0.5, 2, 1),
        JudgedMean("b", "faithfulness", None, 0, 1),
    ]


def test_a_file_comes_back_without_its_half_line(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    one = Judgement("a", "1", "faithfulness", 1.0, None, "f")
    path.write_text(json.dumps(asdict(one)) + "\n" + '{"group": "a"')
    assert read_judgements(path) == [one]
    assert read_judgements(tmp_path / "none") == []
    path.write_text("[]\n")
    with pytest.raises(ContractError, match="line 1: wanted a judgement"):
        read_judgements(path)
