"""evaluation.metrics: known answers have known scores."""

import math
from typing import Any

import pytest

from evaluation.answers import Answer, Passage
from evaluation.metrics import (
    Summary,
    follows_format,
    judge_content,
    match_gold,
    measure_exact_match,
    measure_percentile,
    measure_token_f1,
    normalize_answer,
    remove_marks,
    score_all,
    score_answer,
    summarize,
)
from evaluation.questions import Kind, Question


def make_question(**changes: Any) -> Question:
    return Question(**{"id": "q", "question": "How long?", "answers": ("45 days",), "files": ("a.md",)} | changes)


def make_hit(n: int, file: str = "a.md", text: str = "words", chunk_id: str | None = None) -> Passage:
    return Passage(n, "s", file, None, None, chunk_id or f"chunk-{n}", 0.5, 0, len(text), text)


def make_answer(text: str = "45 days", files: tuple[str, ...] | None = None, **changes: Any) -> Answer:
    hits = tuple(make_hit(n, file) for n, file in enumerate(files or (), start=1))
    values: dict[str, Any] = {
        "arm": "rag",
        "question_id": "q",
        "question": "How long?",
        "model": "m",
        "text": text,
        "citations": (),
        "hits": hits,
        "searched": files is not None,
        "finish_reason": "stop",
        "prompt_tokens": 10,
        "completion_tokens": 3,
        "ttft_s": 0.5,
        "latency_s": 2.0,
        "asked_at": 1.0,
    }
    return Answer(**values | changes)


@pytest.mark.parametrize(
    ("text", "normal"),
    [("The  Cat,  a dog.", "cat dog"),
     ("«Ünïcode»", "«ünïcode»"), ("an", ""), ("It's 3.5!", "its 35"), ("theatre", "theatre")],
)  # fmt: skip
def test_the_normal_form_is_squads(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("text", "gold", "exact", "f1"),
    [
        ("the Denver Broncos", "Denver Broncos", True, 1.0),
        ("Denver", "Denver Broncos", False, 2 / 3),
        ("no", "yes", False, 0.0),
        ("a b b c", "b b d", False, 4 / 6),  # «a» is an article: 3 words, 2 shared
        ("", "", True, 1.0),
        ("", "x", False, 0.0),
        ("the", "a", True, 1.0),
    ],
)
def test_exact_match_and_f1_of_known_pairs(text: str, gold: str, exact: bool, f1: float) -> None:
    assert measure_exact_match(text, gold) is exact
    assert measure_token_f1(text, gold) == pytest.approx(f1)
    assert measure_token_f1(gold, text) == pytest.approx(f1)


def test_without_accepted_texts_the_words_of_an_answer_must_stand_in_order() -> None:
    question = make_question(answers=("the 45 days", "six weeks"))
    assert judge_content(question, "Within 45 days, they say.") is True
    assert judge_content(question, "Six — no: six, weeks!") is True  # punctuation does not count
    assert judge_content(question, "days 45") is False
    assert judge_content(question, "145 days") is False
    assert judge_content(make_question(answers=(), regex="x"), "x") is None


def test_a_figure_is_not_one_with_other_digits_or_another_point() -> None:
    question = make_question(answers=("114 litres",))
    assert judge_content(question, "It holds 11.4 litres.") is False
    assert judge_content(question, "It holds 114 litres.") is True
    assert judge_content(make_question(answers=("1,000 litres",)), "It holds 1000 litres!") is True
    for text in ("It holds 12 300 litres.", "It holds 12\u202f300 litres.", "It holds 12,300 litres."):
        for answer in ("12,300 litres", "12 300 litres"):
            assert judge_content(make_question(answers=(answer,)), text) is True
    assert judge_content(make_question(answers=("12,300",)), "rooms 12, 300 people") is False
    assert judge_content(make_question(answers=("840",)), "at 8:40") is False


def test_marks_are_no_part_of_an_answer() -> None:
    assert remove_marks("45 days. [1] Yes [12].\n") == "45 days. Yes."
    assert remove_marks("So it is.[1][2] (In part) [3]") == "So it is. (In part)"
    assert score_answer(make_question(), make_answer("45 days [1]")).exact_match == 1.0


def test_brackets_that_are_no_marks_belong_to_the_answer() -> None:
    for text in ("Read rows[0] and rows[12].", "As of [2026].", "[45]"):
        assert remove_marks(text) == text
    assert judge_content(make_question(accept=("button [3]",)), "Press button [3]. [1]") is True
    assert judge_content(make_question(accept=("27 days",)), "It is 27 [1] days.") is True


def test_formats_are_patterns_and_schemas() -> None:
    schema = {"type": "object", "required": ["days"], "properties": {"days": {"type": "integer"}}}
    assert follows_format(make_question(), "x") is None
    assert follows_format(make_question(regex=r"^\d+ days$"), "45 days") is True
    assert follows_format(make_question(regex=r"^\d+ days$"), "about 45 days") is False
    assert follows_format(make_question(schema=schema), '{"days": 45}') is True
    assert follows_format(make_question(schema=schema), '```json\n{"days": 45}\n```') is True
    for text in ('{"days": "45"}', "{", "", '{"days": 45} so it is', "[" * 100_000):
        assert follows_format(make_question(schema=schema), text) is False
    assert follows_format(make_question(schema=schema, regex="46"), '{"days": 45}') is False


def test_a_list_in_json_is_no_mark() -> None:
    schema = {"type": "object", "required": ["days"], "properties": {"days": {"type": "array", "minItems": 1}}}
    question = make_question(schema=schema)
    for text in ('{"days": [45]}', '{"days": ["45"]} [1]'):
        assert score_answer(question, make_answer(text)).format_ok == 1.0
    assert score_answer(question, make_answer('{"days": []} [1]')).format_ok == 0.0


def test_success_needs_every_demand() -> None:
    question = make_question(accept=("45 days",), regex=r"^Desk: ")
    assert score_answer(question, make_answer("Desk: 45 days")).success == 1.0
    assert score_answer(question, make_answer("Desk: 46 days")).success == 0.0
    assert score_answer(question, make_answer("45 days")).success == 0.0
    failed = score_answer(question, make_answer("", error="timeout: no whole answer within 1 s"))
    assert (failed.success, failed.failed, failed.correct, failed.latency_s) == (0.0, 1.0, 0.0, None)
    assert score_answer(make_question(regex="^[^!]*$"), make_answer("", error="broken off")).format_ok == 0.0


def test_an_unanswerable_question_wants_a_refusal_and_nothing_else() -> None:
    question = make_question(kind=Kind.unanswerable, answers=(), files=())
    declined = score_answer(question, make_answer("The documents do not say."))
    assert (declined.success, declined.abstained, declined.correct, declined.token_f1) == (1.0, 1.0, None, None)
    assert score_answer(question, make_answer("45 days")).success == 0.0
    assert score_answer(question, make_answer("")).success == 0.0
    assert score_answer(question, make_answer("", error="broken off")).success == 0.0


def test_citations_are_judged_against_the_gold_documents() -> None:
    question = make_question(files=("a.md", "b.md"))
    scores = score_answer(question, make_answer(files=("x.md", "a.md", "a.md"), citations=(1, 2)))
    assert (scores.citation_precision, scores.citation_recall) == (0.5, 0.5)
    silent = score_answer(question, make_answer(files=("a.md",)))
    assert (silent.citation_precision, silent.citation_recall) == (None, 0.0)
    unsearched = score_answer(question, make_answer())
    assert (unsearched.citation_precision, unsearched.citation_recall) == (None, None)


def test_retrieval_counts_a_document_once() -> None:
    question = make_question(files=("a.md", "b.md"))
    scores = score_answer(question, make_answer(files=("x.md", "x.md", "a.md", "a.md")))
    assert scores.retrieval_recall == 0.5
    assert scores.ndcg_at_10 == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert score_answer(question, make_answer(files=())).retrieval_recall == 0.0
    assert score_answer(question, make_answer(files=("b.md", "a.md"))).ndcg_at_10 == 1.0


def test_gold_is_chunks_before_passages_before_documents() -> None:
    hit = make_hit(1, "a.md", "The warranty of the pump is 26 months. Keep the invoice.")
    assert match_gold(make_question(chunks=("chunk-1",), files=("z.md",)), hit) == "chunk-1"
    assert match_gold(make_question(chunks=("chunk-2",)), hit) is None
    assert match_gold(make_question(passages=("the warranty of the pump is 26 months",), files=("z.md",)), hit)
    assert match_gold(make_question(passages=(f"Before. {hit.text} And after.",)), hit)
    assert match_gold(make_question(passages=("Something else",)), hit) is None
    assert match_gold(make_question(passages=("Something",)), make_hit(1, text="...")) is None
    assert match_gold(make_question(), hit) == "a.md"


def test_means_count_what_does_not_apply() -> None:
    questions = [
        make_question(id="k1"),
        make_question(id="k2"),
        make_question(id="u1", kind=Kind.unanswerable, answers=(), files=()),
    ]
    answers = [
        make_answer(question_id="k1", files=("a.md",), citations=(1,)),
        make_answer("46 days", question_id="k2", files=("a.md",)),
        make_answer("I don't know.", question_id="u1", files=("a.md",)),
        make_answer("45 days", question_id="k1", arm="base"),
        make_answer("45 days", question_id="unknown"),
    ]
    scored = score_all(questions, answers)
    assert [one.question.id for one in scored] == ["k1", "k2", "u1", "k1"]
    found = {(one.arm, one.kind, one.metric): one for one in summarize(scored)}
    success = found["rag", "all", "success"]
    assert success.mean == pytest.approx(2 / 3)
    assert (success.n, success.missing) == (3, 0)
    assert found["rag", "knowledge", "correct"] == Summary("rag", "knowledge", "correct", 0.5, 2, 0)
    assert found["rag", "all", "correct"] == Summary("rag", "all", "correct", 0.5, 2, 1)
    assert found["rag", "knowledge", "citation_precision"] == Summary(
        "rag", "knowledge", "citation_precision", 1.0, 1, 1
    )
    assert found["base", "all", "citation_recall"] == Summary("base", "all", "citation_recall", None, 0, 1)
    assert ("base", "unanswerable", "success") not in found


def test_percentiles_are_values_that_were_measured() -> None:
    assert measure_percentile([], 0.5) is None
    assert measure_percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert measure_percentile([float(value) for value in range(1, 101)], 0.95) == 95.0
    assert measure_percentile([7.0], 0.95) == 7.0
