"""The metrics are trec_eval's: known rankings give known values, and laws of rankings hold."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.metrics import measure_ndcg, measure_quality, measure_recall, measure_reciprocal_rank


def test_ndcg_of_a_known_ranking() -> None:
    # Gains 3, 2, 3, 0, 1, 2 in ranked order, all judged: the example of Wikipedia's page on discounted cumulative gain.
    gains = {"a": 3.0, "b": 2.0, "c": 3.0, "e": 1.0, "f": 2.0}
    assert measure_ndcg(["a", "b", "c", "d", "e", "f"], gains) == pytest.approx(6.861 / 7.141, abs=1e-3)


def test_one_relevant_document_counts_by_its_rank() -> None:
    ranking, gains = ["x", "y", "z"], {"z": 1.0}
    assert measure_ndcg(ranking, gains) == pytest.approx(1 / math.log2(4))
    assert measure_reciprocal_rank(ranking, gains) == pytest.approx(1 / 3)
    assert measure_recall(ranking, gains) == 1


def test_what_comes_after_the_tenth_does_not_count() -> None:
    ranking, gains = [str(rank) for rank in range(11)], {"10": 1.0}
    assert (measure_ndcg(ranking, gains), measure_recall(ranking, gains)) == (0, 0)
    assert measure_reciprocal_rank(ranking, gains) == 0


def test_more_relevant_documents_than_ten_can_still_be_perfect() -> None:
    gains = {str(number): 1.0 for number in range(20)}
    assert measure_ndcg(list(gains), gains) == pytest.approx(1)
    assert measure_recall(list(gains), gains) == 0.5


def test_means_leave_out_queries_without_a_relevant_document() -> None:
    judged = {"one": {"a": 1.0}, "two": {"b": 1.0}, "none": {"a": 0.0}}
    quality = measure_quality({"one": ["a"], "two": ["a", "b"], "none": ["a"], "unknown": ["a"]}, judged)
    assert (quality.queries, quality.mrr_at_10, quality.recall_at_10) == (2, 0.75, 1)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="found none"):
        measure_quality({"one": ["a"]}, {})


@given(
    st.permutations([str(number) for number in range(12)]),
    st.dictionaries(st.sampled_from([str(number) for number in range(12)]), st.integers(1, 3), min_size=1),
)
def test_the_ideal_ranking_has_one_and_none_has_more(ranking: list[str], found: dict[str, int]) -> None:
    gains = {name: float(gain) for name, gain in found.items()}
    ideal = sorted(ranking, key=lambda name: -gains.get(name, 0))
    assert measure_ndcg(ideal, gains) == pytest.approx(1)
    assert 0 <= measure_ndcg(ranking, gains) <= 1 + 1e-9
