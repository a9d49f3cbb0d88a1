"""core.faults: faults are counted to the last and shown up to a limit, and a good row never hides them."""

from pathlib import Path

import pytest

from core.errors import TrainingDataError
from core.faults import MAX_FAULTS_SHOWN, Fault, describe_faults, refuse_faults

BAD = Fault(3, "messages[0].role", "wanted this, found that", "Do so")


def test_a_fault_is_one_line() -> None:
    assert str(BAD) == "line 3, messages[0].role: wanted this, found that. Do so."
    assert str(Fault(0, "", "nothing", "Fill it")) == "file: nothing. Fill it."


def test_one_fault_is_singular() -> None:
    assert describe_faults(Path("a"), [BAD]).startswith("a: 1 fault in")


def test_good_rows_come_first_and_the_refusal_last() -> None:
    rows = refuse_faults(Path("a"), [(1, {"x": 1}, []), (3, None, [BAD]), (4, {"x": 2}, [])], "training_file")
    assert [next(rows), next(rows)] == [(1, {"x": 1}), (4, {"x": 2})]
    with pytest.raises(TrainingDataError, match="1 fault") as caught:
        next(rows)
    assert caught.value.param == "training_file"


def test_many_faults_are_counted_and_not_kept() -> None:
    with pytest.raises(TrainingDataError, match=r"5,000 faults(?s:.*)and 4,900 more") as caught:
        list(refuse_faults(Path("a"), ((line, None, [BAD, BAD]) for line in range(2500)), "x"))
    assert caught.value.message.count("Do so") == MAX_FAULTS_SHOWN


def test_no_rows_are_a_fault() -> None:
    with pytest.raises(TrainingDataError, match="at least one row"):
        list(refuse_faults(Path("a"), [], "x"))
