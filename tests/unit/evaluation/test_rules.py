"""Each written rule fires on its fact, at its threshold, and the rules together name the arm that the issue names."""

from typing import Any

import pytest

from core.errors import ConfigError
from evaluation.rules import Side, Situation, advise, compare_with_verdict


def side(rule: str, **facts: Any) -> Side:
    """Return what one rule speaks for."""
    return next(one.side for one in advise(Situation(**facts)).findings if one.rule == rule)


@pytest.mark.parametrize(
    ("rate", "wanted"), [(None, Side.unknown), (0.2, Side.nothing), (1, Side.nothing), (1.5, Side.rag)]
)
def test_knowledge_that_changes_more_than_monthly_asks_for_rag(rate: float | None, wanted: Side) -> None:
    assert side("change", changes_per_month=rate) is wanted


def test_facts_that_are_no_counts_are_refused_together() -> None:
    with pytest.raises(ConfigError) as fault:
        Situation(changes_per_month=float("nan"), examples=-5, documents=0)
    assert "situation.changes_per_month: wanted a number of at least 0, found nan" in fault.value.message
    assert "situation.examples: wanted a number of at least 0, found -5" in fault.value.message
    assert "documents" not in fault.value.message


def test_citations_ask_for_rag() -> None:
    assert side("citations", needs_citations=True) is Side.rag
    assert side("citations", needs_citations=False) is Side.nothing


def test_a_format_asks_for_a_fine_tune_unless_a_prompt_keeps_it() -> None:
    assert side("format", needs_format=True) is Side.fine_tune
    assert side("format", needs_format=True, prompt_keeps_format=True) is Side.nothing
    assert side("format", needs_format=False) is Side.nothing


@pytest.mark.parametrize(
    ("count", "wanted", "words"),
    [
        (49, Side.not_fine_tune, "learns little"),
        (50, Side.nothing, "measure before trusting"),
        (499, Side.nothing, "measure before trusting"),
        (500, Side.nothing, "enough for a fine-tune"),
    ],
)
def test_examples_count_by_fifty_and_five_hundred(count: int, wanted: Side, words: str) -> None:
    finding = next(one for one in advise(Situation(examples=count)).findings if one.rule == "examples")
    assert finding.side is wanted
    assert words in finding.reason


def test_latency_asks_for_a_fine_tune() -> None:
    assert side("latency", is_latency_critical=True) is Side.fine_tune


@pytest.mark.parametrize(
    ("documents", "queries", "rate", "wanted"),
    [
        (5000, 2000, 1, Side.rag),
        (5000, 200_000, 1, Side.fine_tune),
        (5000, 200_000, 4, Side.nothing),
        (40, 2000, 1, Side.nothing),
        (None, 500_000, 0.1, Side.fine_tune),
        (5000, None, 1, Side.unknown),
    ],
)
def test_volume_and_base_ask_for_one_or_the_other(
    documents: int | None, queries: int | None, rate: float, wanted: Side
) -> None:
    assert side("volume", documents=documents, queries_per_month=queries, changes_per_month=rate) is wanted


@pytest.mark.parametrize(
    ("facts", "arm"),
    [
        ({"changes_per_month": 8, "needs_format": False, "examples": 1000}, "rag"),
        ({"changes_per_month": 0.1, "needs_format": True, "examples": 1000}, "fine-tuned"),
        ({"needs_citations": True, "needs_format": True, "examples": 600}, "hybrid"),
        ({"needs_citations": True, "needs_format": True, "examples": 20}, "rag"),
        ({"needs_format": True, "examples": 20}, "base-long"),
        ({"needs_format": True, "prompt_keeps_format": True, "needs_citations": True}, "rag"),
        ({}, "base-long"),
    ],
)
def test_the_rules_together_name_an_arm(facts: dict[str, Any], arm: str) -> None:
    assert advise(Situation(**facts)).arm == arm


def test_what_is_not_known_is_said() -> None:
    advice = advise(Situation(changes_per_month=2))
    assert "changes_per_month" not in advice.unknown
    assert {"needs_citations", "examples", "queries_per_month"} <= set(advice.unknown)


@pytest.mark.parametrize(
    ("arm", "open_arms", "is_decided", "words"),
    [
        ("rag", ["rag"], True, "agree: rag"),
        ("rag", ["rag"], False, "among what the data leaves open: rag"),
        ("base", ["base", "rag"], False, "among what the data leaves open"),
        ("base", ["base", "hybrid"], False, "does not decide, and leaves open: base, hybrid"),
        ("hybrid", ["hybrid"], True, "do not agree: the rules say rag, the measurement says hybrid"),
        (None, ["rag"], False, "no arm is good enough"),
    ],
)
def test_the_verdict_is_compared_with_the_rules(
    arm: str | None, open_arms: list[str], is_decided: bool, words: str
) -> None:
    advice, measured = advise(Situation(needs_citations=True)), ["base", "rag", "hybrid"]
    assert words in compare_with_verdict(advice, arm, open_arms, measured, is_decided=is_decided)


def test_an_arm_that_was_not_measured_is_not_said_to_have_lost() -> None:
    advice = advise(Situation(needs_citations=True))
    said = compare_with_verdict(advice, "base", ["base"], ["base", "fine-tuned"], is_decided=True)
    assert said == "The rules say rag, which was not measured. Of what was, the data decides for base."
