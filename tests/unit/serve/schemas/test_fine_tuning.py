"""What a job's body may hold."""

from typing import Any

import pytest
from pydantic import ValidationError

from serve.schemas.fine_tuning import JobCreate, JobListQuery

LEAST = {"model": "base", "training_file": "file-a"}


def test_the_least_is_a_supervised_job_with_everything_auto() -> None:
    body = JobCreate.model_validate(LEAST)
    assert (body.kind, body.read_hyperparameters()) == ("supervised", {})


def test_hyperparameters_are_found_in_each_place() -> None:
    older = JobCreate.model_validate({**LEAST, "hyperparameters": {"n_epochs": 2}})
    assert older.read_hyperparameters() == {"n_epochs": 2}
    part = {"hyperparameters": {"beta": 0.1, "batch_size": "auto"}}
    newer = JobCreate.model_validate({**LEAST, "method": {"type": "dpo", "dpo": part}})
    assert (newer.kind, newer.read_hyperparameters()) == ("dpo", {"beta": 0.1, "batch_size": "auto"})


@pytest.mark.parametrize(
    "more",
    [
        {"n_epochs": 0}, {"n_epochs": 51}, {"n_epochs": True}, {"n_epochs": 1.5}, {"batch_size": 257},
        {"learning_rate_multiplier": 0}, {"learning_rate_multiplier": float("inf")}, {"beta": 1}, {"n_epochs": "many"},
    ],
)  # fmt: skip
def test_ranges(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JobCreate.model_validate({**LEAST, "hyperparameters": more})


@pytest.mark.parametrize("beta", [0, 0.00005, 2.1])
def test_a_beta_is_one_that_the_trainer_takes(beta: float) -> None:
    part = {"hyperparameters": {"beta": beta}}
    with pytest.raises(ValidationError, match="beta"):
        JobCreate.model_validate({**LEAST, "method": {"type": "dpo", "dpo": part}})


@pytest.mark.parametrize("suffix", ["", "a:b", "../a", "a/b", "ä", "a\n", "-a", "x" * 65, "a b"])
def test_a_suffix_is_part_of_a_name(suffix: str) -> None:
    with pytest.raises(ValidationError):
        JobCreate.model_validate({**LEAST, "suffix": suffix})


def test_a_list_is_filtered_by_notes_only() -> None:
    query = JobListQuery.model_validate({"metadata[a]": "1", "metadata[b c]": "2", "limit": "3"})
    assert query.notes == {"a": "1", "b c": "2"}
    for wrong in ({"status": "running"}, {"metadata[]": "1"}, {"metadata": "x"}, {"metadata[a]": ["1", "2"]}):
        with pytest.raises(ValidationError):
            JobListQuery.model_validate(wrong)
