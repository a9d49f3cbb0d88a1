"""Calibrating answers: claims from questions, what a pair of thresholds comes to, and which pair is recommended."""

import sys
from pathlib import Path

import numpy as np
import pytest

from core.errors import NotFound
from scripts.calibrate_answers import (
    Claim,
    Outcome,
    choose_outcome,
    main,
    parse_arguments,
    separate,
    tell_kind,
    try_pair,
    write_claim,
)
from serve.citing import Source, Thresholds

PLACES = [Source(n, "", None, "", "") for n in range(3)]


def make_claim(kind: str, coverage: float, similarity: float, *, is_right: bool = False) -> Claim:
    """Return a claim whose first source supports it so far; the others lack a number."""
    return Claim(
        kind, np.array([coverage, -1.0, -1.0]), np.array([similarity, 0.9, 0.9]), np.array([is_right, 0, 0], bool)
    )


@pytest.mark.parametrize(
    ("question", "answer", "claim"),
    [
        ("Who proclaimed the oil embargo?", "OAPEC", "proclaimed the oil embargo OAPEC."),
        ("In what year did it begin ?", "1973", "In year it begin 1973."),
    ],
)
def test_a_question_and_an_answer_become_a_claim(question: str, answer: str, claim: str) -> None:
    assert write_claim(question, answer) == claim


def test_answers_have_kinds() -> None:
    assert [tell_kind(answer) for answer in ("in 1973", "Tesla", "an oil crisis")] == ["number", "name", "words"]


def test_a_pair_of_thresholds_is_counted_by_what_it_cites() -> None:
    claims = [
        make_claim("right", 0.8, 0.6, is_right=True),
        make_claim("right", 0.5, 0.6, is_right=True),
        make_claim("right", 0.8, 0.6),
        make_claim("other article", 0.7, 0.6),
        make_claim("same passage", 0.9, 0.1),
    ]
    outcome = try_pair(claims, Thresholds(0.6, 0.3), PLACES)
    assert (outcome.right, outcome.misplaced, outcome.citable) == (1, 1, 2)
    assert outcome.false == {"other article": 1, "same passage": 0}
    assert outcome.recall == 0.5
    assert outcome.precision == pytest.approx(1 / 3)


def test_the_most_citations_among_the_precise_are_recommended() -> None:
    def outcome(right: int, false: int) -> Outcome:
        return Outcome(Thresholds(), right, 0, 100, {"other article": false, "same passage": 0}, {"right": 100})

    assert choose_outcome([outcome(90, 30), outcome(60, 5), outcome(40, 1)], 0.9) == outcome(60, 5)
    assert choose_outcome([outcome(90, 30), outcome(60, 10)], 0.9) == outcome(60, 10)


def test_separation_is_the_area_under_the_curve() -> None:
    assert separate(np.array([0.9, 0.8]), np.array([0.1, 0.2])) == 1.0
    assert separate(np.array([0.5]), np.array([0.5])) == 0.5
    assert separate(np.array([0.1, 0.6]), np.array([0.5])) == 0.5


@pytest.mark.parametrize(
    ("environment", "words", "root"),
    [(None, [], "data"), ("/srv/loam", [], "/srv/loam"), ("/srv/loam", ["--data-dir", "/other"], "/other")],
)
def test_the_models_are_where_the_data_directory_is(
    monkeypatch: pytest.MonkeyPatch, environment: str | None, words: list[str], root: str
) -> None:
    monkeypatch.delenv("LOAM_DATA_DIR", raising=False)
    if environment is not None:
        monkeypatch.setenv("LOAM_DATA_DIR", environment)
    monkeypatch.setattr(sys, "argv", ["calibrate_answers.py", *words])
    assert parse_arguments().data_dir == Path(root)


def test_a_data_directory_without_the_embedder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOAM_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["calibrate_answers.py"])
    with pytest.raises(NotFound, match=f"wanted the model .* in {tmp_path}/models, found none"):
        main()
