"""Measuring answers: what an answer is read as, and the trade-off between silence and invention."""

from dataclasses import replace

import pytest
from openai.types.responses import Response

from scripts.calibrate_answers import Question
from scripts.measure_answers import Answer, ask_all, decline, holds, read_marks, render

ANSWER = Answer(0.5, is_found=True, is_refusal=False, is_right=True, citations=1, right_citations=1)


def test_an_accepted_answer_is_found_whatever_its_case_and_spaces() -> None:
    assert holds("It was the  Oil\ncrisis.", ["oil crisis"])
    assert not holds("It was coal.", ["oil crisis"])
    assert not holds("anything", [])


def test_the_marks_name_the_passages_that_they_stand_for() -> None:
    text = "A day [2]. A night [1]."
    annotations = [
        {"type": "file_citation", "file_id": f"file-{at}", "filename": "a.txt", "index": text.index(mark)}
        for at, mark in enumerate(("[2]", "[1]"))
    ]
    content = {"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [content]}
    search = {"type": "file_search_call", "id": "fs_1", "queries": ["a"], "status": "completed", "results": []}
    response = Response.model_validate({
        "id": "resp_1", "object": "response", "created_at": 0, "model": "m", "output": [search, message],
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
    })  # fmt: skip
    assert list(read_marks(response)) == [2, 1]


@pytest.mark.parametrize(("threshold", "declined"), [(0.0, 0.25), (0.4, 0.5), (0.6, 0.75), (1.0, 1.0)])
def test_a_question_is_declined_by_the_score_or_by_the_model(threshold: float, declined: float) -> None:
    answers = [replace(ANSWER, relevance=score) for score in (0.3, 0.5, 0.9)]
    answers.append(replace(ANSWER, relevance=0.9, is_refusal=True))
    assert decline(answers, threshold) == declined


def test_the_answers_stand_in_the_order_of_the_questions() -> None:
    questions = [Question(str(number), (), "") for number in range(40)]
    answers = ask_all(lambda question: replace(ANSWER, citations=int(question.text)), questions, 8)
    assert [answer.citations for answer in answers] == list(range(40))


def test_the_figures_say_what_was_counted() -> None:
    answerable = [ANSWER, replace(ANSWER, is_right=False, right_citations=0), replace(ANSWER, is_refusal=True)]
    unanswerable = [replace(ANSWER, is_refusal=True, citations=0), ANSWER]
    text = render(answerable, unanswerable)
    assert "- right: 67%" in text
    assert "- citations: 3, of them to a passage that holds the answer: 2" in text
    assert "- right answers with such a citation: 100%" in text
    assert "unanswerable: 2\n- refused: 50%\n- with a citation: 50%" in text
    assert "| 0.0 | 0.33 | 0.50 |" in text
