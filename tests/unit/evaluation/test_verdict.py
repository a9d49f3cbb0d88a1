"""From saved answers to a verdict: what is planted is found, priced and worded, and comes out the same every time."""

import dataclasses

import pytest

from evaluation.cost import CostConfig
from evaluation.decision import DecisionConfig, Outcome
from evaluation.metrics import score_all
from evaluation.questions import Kind
from evaluation.rules import Situation
from evaluation.verdict import Corpus, Evidence, Result, fill_situation, measure_usages, reach_verdict
from evaluation.verdict_page import make_sections
from tests.fakes.saved_answers import make_evidence

QUICK = DecisionConfig(resamples=1000)
PRICES = CostConfig()
PLAIN_RAG = {"base": 0.05, "base-long": 0.1, "rag": 0.8, "fine-tuned": 0.2, "hybrid": 0.6}


def reach(evidence: Evidence) -> Result:
    return reach_verdict(evidence, QUICK, PRICES, Situation())


def test_a_user_whose_data_favours_rag_is_told_not_to_fine_tune() -> None:
    result = reach(make_evidence(PLAIN_RAG))
    assert (result.verdict.outcome, result.verdict.arm) == (Outcome.decided, "rag")
    assert result.wording.headline.startswith("Use RAG: right in ")
    assert result.wording.advice.startswith("Do not fine-tune for this")
    assert result.arms == ["base", "base-long", "rag", "fine-tuned", "hybrid"]
    assert result.doubts == []


def test_where_the_fine_tune_is_not_shown_to_be_better_it_is_to_wait() -> None:
    result = reach(make_evidence({"base": 0.05, "rag": 0.6, "hybrid": 0.64}, n=60))
    assert result.verdict.outcome is Outcome.undecided
    assert result.verdict.open == ["rag", "hybrid"]
    assert "does not decide between rag and hybrid" in result.wording.headline
    assert result.wording.advice == "Do not fine-tune yet: no fine-tuned arm has been shown to be better."
    assert any("would decide" in change or "Another margin" in change for change in result.wording.would_change)


@pytest.mark.parametrize(("best", "words"), [("hybrid", "keep the documents"), ("fine-tuned", "documents add nothing")])
def test_a_fine_tune_is_advised_where_it_is_shown(best: str, words: str) -> None:
    shares = {"base": 0.05, "rag": 0.3, "fine-tuned": 0.3, "hybrid": 0.4} | {best: 0.9}
    result = reach(make_evidence(shares))
    assert result.verdict.arm == best
    assert words in result.wording.advice


def test_useless_arms_get_no_recommendation() -> None:
    result = reach(make_evidence({"base": 0.0, "rag": 0.0}, n=60))
    assert result.verdict.outcome is Outcome.none
    assert result.wording.headline.startswith("No arm is good enough")
    assert "Mend the questions" in result.wording.advice
    assert "no arm is good enough" in result.agreement


def test_an_answer_that_failed_counts_as_wrong() -> None:
    evidence = make_evidence({"base": 1.0, "rag": 1.0}, n=40)
    answers = [
        dataclasses.replace(one, text="", error="timeout") if one.arm == "rag" else one for one in evidence.answers
    ]
    result = reach(dataclasses.replace(evidence, answers=answers))
    assert (result.verdict.means["base"].mean, result.verdict.means["rag"].mean) == (1.0, 0.0)
    assert any("answers failed" in doubt for doubt in result.doubts)


def test_usage_is_what_was_measured() -> None:
    evidence = make_evidence(PLAIN_RAG)
    usages = measure_usages(evidence, score_all(evidence.questions, evidence.answers))
    rag, tuned = usages["rag"], usages["fine-tuned"]
    assert (rag.prompt_tokens, rag.completion_tokens, rag.busy_s) == (300, 20, 3.0)
    assert (rag.corpus_tokens, rag.ingest_s, rag.training_tokens, rag.is_tuned) == (18_000, 21.0, 0, False)
    assert (tuned.training_tokens, tuned.training_s, tuned.corpus_tokens, tuned.is_tuned) == (200_000, 600, 0, True)
    loaded = measure_usages(dataclasses.replace(evidence, alone=()), score_all(evidence.questions, evidence.answers))
    assert loaded["rag"].busy_s == pytest.approx(1.5 / 4)


def test_an_arm_that_searches_needs_a_store_also_where_its_size_is_not_known() -> None:
    evidence = dataclasses.replace(make_evidence(PLAIN_RAG), corpus=None)
    result = reach(evidence)
    costs = {one.arm: one for one in result.costs}
    assert costs["rag"].usage.uses_documents
    assert costs["rag"].hosted_low.fixed_usd == PRICES.hosted.vector_database_usd_per_month[0]
    assert not costs["base"].usage.uses_documents
    pages = {kept.title: kept.text for kept in make_sections(result, {})}
    assert "embedding and ingesting them is not counted" in pages["Cost"]
    known = {kept.title: kept.text for kept in make_sections(reach(make_evidence(PLAIN_RAG)), {})}
    assert "not counted" not in known["Cost"]


def test_what_was_not_measured_is_said_to_cost_nothing_here() -> None:
    evidence = make_evidence(PLAIN_RAG)
    unknown = dataclasses.replace(evidence, trainings={}, corpus=Corpus(18_000, 44, None))
    pages = {kept.title: kept.text for kept in make_sections(reach(unknown), {})}
    assert "How long ingesting takes was not measured" in pages["Cost"]
    assert "What training took is not known here of fine-tuned, hybrid" in pages["Cost"]
    assert "first training and ingestion spread over 12 months" in pages["Cost"]
    whole = {kept.title: kept.text for kept in make_sections(reach(evidence), {})}
    assert not any(words in whole["Cost"] for words in ("not measured", "not known"))


def test_an_answer_without_a_count_of_tokens_is_not_one_of_no_tokens() -> None:
    evidence = make_evidence(PLAIN_RAG)
    half = [
        dataclasses.replace(answer, prompt_tokens=None, completion_tokens=None) if place % 2 else answer
        for place, answer in enumerate(evidence.answers)
    ]
    whole, some = (measure_usages(evidence, score_all(evidence.questions, one)) for one in (evidence.answers, half))
    for arm, usage in whole.items():
        assert some[arm].prompt_tokens == pytest.approx(usage.prompt_tokens, rel=0.2)
        assert some[arm].completion_tokens == pytest.approx(usage.completion_tokens, rel=0.2)


def test_the_cost_of_the_arm_and_its_break_evens_are_told() -> None:
    result = reach(make_evidence(PLAIN_RAG))
    usd = next(one.local.monthly_usd(10_000) for one in result.costs if one.arm == "rag")
    assert any(f"At 10,000 answers a month rag costs {usd:,.2f} USD" in reason for reason in result.wording.reasons)
    assert any(change.startswith("Volume: above ") for change in result.wording.would_change)


def test_the_order_of_the_answers_does_not_matter() -> None:
    evidence = make_evidence(PLAIN_RAG, n=60)
    other = dataclasses.replace(evidence, answers=list(reversed(evidence.answers)))
    first, second = reach(evidence), reach(other)
    assert first.verdict == second.verdict
    assert first.scored == second.scored
    assert first.costs == second.costs


def test_the_situation_is_filled_from_what_was_measured_and_never_overruled() -> None:
    evidence = make_evidence(PLAIN_RAG, n=20)
    filled = fill_situation(Situation(examples=7, needs_citations=True), evidence, PRICES)
    assert filled == Situation(1.0, True, True, None, 7, None, 44, 10_000)
    assert any(question.kind is Kind.style for question in evidence.questions)
