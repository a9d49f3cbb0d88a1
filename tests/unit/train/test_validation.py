"""Held-out figures are exact means, the best adapter is the one that stays, and a run ends when nothing gets better."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.fakes.small_run import SmallRun, run_small
from tests.unit.train.test_trainer import ragged_rows
from train.config import Keep, TrainerConfig
from train.encoding import Encoded
from train.sharding import gather_trained
from train.tokens import IGNORED
from train.validation import Best, plan_validation, read_saved, restore_trained, save_trained


def rows_that_say(token: int, count: int) -> Encoded:
    """Return rows that say one token again and again: learning to say another unlearns it."""
    examples: Any = []
    for row in range(count):
        examples.append({"input_ids": [row + 1] + [token] * 8, "labels": [IGNORED] * 3 + [token] * 6})
    return Encoded(examples=examples)


def overfit(folder: Path, **options: Any) -> SmallRun:
    wanted = TrainerConfig(batch_size=4, epochs=6, learning_rate=1e-2, eval_every=2, warmup=0, **options)
    return run_small(folder, rows_that_say(65, 8), rows_that_say(66, 6), wanted)


def test_the_held_out_loss_does_not_depend_on_the_batches(tmp_path: Path) -> None:
    losses = []
    for rows in (1, 4):
        options = TrainerConfig(batch_size=8, micro_batch=rows, max_steps=1)
        (before, _) = run_small(tmp_path / str(rows), ragged_rows(8), ragged_rows(7), options).read("eval")
        losses.append((before["loss"], before["token_accuracy"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_best_adapter_is_published(tmp_path: Path) -> None:
    run = overfit(tmp_path)
    evaluations = {event["step"]: event["loss"] for event in run.read("eval")}
    assert sorted(evaluations) == [0, 2, 4, 6, 8, 10, 12]
    best = min((step for step in evaluations if step), key=lambda step: evaluations[step])
    assert best < 12, "the run must get worse in the end for this to prove anything"
    assert run.result.best_step == best
    assert run.result.eval_loss == evaluations[best]
    assert read_saved(tmp_path / "checkpoints" / "best") == (evaluations[best], best)
    last = overfit(tmp_path / "last", keep=Keep.last)
    assert last.result.best_step is None
    assert last.result.eval_loss == evaluations[12]
    ours, theirs = gather_trained(run.model), gather_trained(last.model)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    shorter = overfit(tmp_path / "again", early_stopping=1)
    assert shorter.result.best_step == best
    again = gather_trained(shorter.model)
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_a_run_ends_when_nothing_gets_better(tmp_path: Path) -> None:
    run = overfit(tmp_path, early_stopping=2)
    assert run.result.steps < 12
    assert any("early stopping" in event["message"] for event in run.read("log"))


def test_a_run_that_goes_on_knows_the_best_before_it_whether_or_not_it_keeps_one(tmp_path: Path) -> None:
    callback = SimpleNamespace(note_answer=print, note_early_end=print)
    earlier = [{"step": 2, "loss": 0.5}, {"step": 4, "loss": 0.9}]
    for keep, wanted in ((Keep.last, (0.5, 2)), (Keep.best, (math.inf, 0))):
        plan = plan_validation(TrainerConfig(keep=keep), [], 0, tmp_path / "best", earlier, callback)
        assert (plan.best.loss, plan.best.step, plan.best.waited) == (*wanted, 1)


def test_answers_are_taken_at_each_evaluation(tmp_path: Path) -> None:
    run = overfit(tmp_path, early_stopping=1, sample_tokens=5)
    samples = run.read("sample")
    assert {event["step"] for event in samples} == {event["step"] for event in run.read("eval")}
    assert [event["index"] for event in samples[:2]] == [0, 1]
    assert (samples[0]["prompt"], samples[0]["wanted"]) == ("abc", "def")
    assert "wanted" not in samples[1]
    assert samples[0]["answer"] != samples[-2]["answer"]


def test_answers_are_taken_without_held_out_rows_too(tmp_path: Path) -> None:
    run = run_small(tmp_path, ragged_rows(8), None, TrainerConfig(batch_size=8, max_steps=2, sample_tokens=3))
    assert [event["step"] for event in run.read("sample")] == [0, 0, 2, 2]
    assert run.read("eval") == []


def test_taking_answers_does_not_change_what_is_learned(tmp_path: Path) -> None:
    with_answers = overfit(tmp_path / "1", keep=Keep.last)
    without = run_small(
        tmp_path / "2",
        rows_that_say(65, 8),
        None,
        TrainerConfig(batch_size=4, epochs=6, learning_rate=1e-2, warmup=0),
    )
    assert [event["loss"] for event in with_answers.read("step")] == [event["loss"] for event in without.read("step")]


def test_patience_counts_from_the_last_clear_gain() -> None:
    best = Best(patience=2, min_delta=0.1)
    assert best.note(0, 0.1) is False
    assert [best.note(step, loss) for step, loss in [(1, 2.0), (2, 1.95), (3, 1.8)]] == [True, True, True]
    assert (best.waited, best.is_out_of_patience) == (0, False)
    assert best.note(4, 1.75) is True
    assert best.note(5, 1.76) is False
    assert best.is_out_of_patience
    assert (best.step, best.loss) == (4, 1.75)


def test_saved_parameters_come_back(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    kept = {name: value.clone() for name, value in gather_trained(model).items()}
    assert read_saved(tmp_path / "best") == (math.inf, 0)
    save_trained(kept, tmp_path / "best", 7, 0.1 + 0.2)
    torch.nn.init.zeros_(model.weight)
    restore_trained(model, tmp_path / "best")
    assert torch.equal(model.weight.data, kept["weight"])
    assert read_saved(tmp_path / "best") == (0.1 + 0.2, 7)
