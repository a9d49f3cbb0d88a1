"""What happens in a run is written to events.jsonl, and a signal ends it in good order."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import ConfigError
from core.events import EventWriter, read_events
from train.recorder import EventCallback, Result


def make_state(step: int) -> Any:
    return SimpleNamespace(global_step=step, max_steps=10, is_world_process_zero=True)


def do_step(callback: EventCallback, step: int, loss: float, tokens: int) -> Any:
    control = SimpleNamespace(should_training_stop=False, should_save=False)
    callback.on_step_begin(None, make_state(step), control)
    callback.on_step_end(None, make_state(step), control)
    logs = {"loss": loss, "learning_rate": 1e-3, "grad_norm": 0.5, "num_tokens": float(tokens)}
    callback.on_log(None, make_state(step), control, logs=logs)
    return control


def test_steps_evaluations_and_checkpoints_become_events(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        callback = EventCallback(events, [])
        callback.on_train_begin(None, make_state(0), None)
        do_step(callback, 1, 3.0, 100)
        do_step(callback, 2, 2.0, 250)
        logs = {"eval_loss": 1.9, "eval_mean_token_accuracy": 0.6}
        callback.on_log(None, make_state(2), None, logs=logs)
        callback.on_save(SimpleNamespace(output_dir=str(tmp_path / "checkpoints")), make_state(2), None)
        callback.on_train_end(None, make_state(2), None)
    first, second, evaluation, checkpoint = read_events(path)
    assert {key: first[key] for key in ("type", "step", "loss", "learning_rate", "grad_norm", "tokens")} == {
        "type": "step", "step": 1, "loss": 3.0, "learning_rate": 1e-3, "grad_norm": 0.5, "tokens": 100,
    }  # fmt: skip
    assert second["tokens_per_s"] > 0
    assert (evaluation["type"], evaluation["loss"], evaluation["token_accuracy"]) == ("eval", 1.9, 0.6)
    assert (checkpoint["type"], checkpoint["path"]) == ("checkpoint", "checkpoints/checkpoint-2")
    result = callback.result
    assert (result.steps, result.loss_first, result.loss_last, result.tokens) == (2, 3.0, 2.0, 250)
    assert (result.eval_loss, result.eval_token_accuracy) == (1.9, 0.6)


def test_a_step_takes_until_its_loss_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card is still computing when its step has been handed over."""
    now = 0.0
    monkeypatch.setattr("train.recorder.time", SimpleNamespace(perf_counter=lambda: now))
    with EventWriter(tmp_path / "events.jsonl") as events:
        callback = EventCallback(events, [])
        callback.on_step_begin(None, make_state(1), None)
        now = 1.0
        callback.on_step_end(None, make_state(1), None)
        now = 4.0
        logs = {"loss": 2.0, "learning_rate": 1e-3, "num_tokens": 100.0}
        callback.on_log(None, make_state(1), None, logs=logs)
    (event,) = read_events(tmp_path / "events.jsonl")
    assert (event["tokens_per_s"], callback.result.tokens_per_s) == (25.0, 25.0)


def test_a_resumed_run_counts_on(tmp_path: Path) -> None:
    earlier = [{"step": 1, "loss": 3.0, "tokens": 100}, {"step": 2, "loss": 2.0, "tokens": 250}]
    with EventWriter(tmp_path / "events.jsonl") as events:
        callback = EventCallback(events, earlier)
        do_step(callback, 3, 1.5, 80)
    (event,) = read_events(tmp_path / "events.jsonl")
    assert event["tokens"] == 330
    assert callback.result.loss_first == 3.0
    assert callback.result.loss_last == 1.5


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as events, pytest.raises(ConfigError, match="Lower the learning rate"):
        do_step(EventCallback(events, []), 1, float("nan"), 10)


def test_a_signal_ends_the_run_after_its_step(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as events:
        callback = EventCallback(events, [])
        with callback.stop.watch():
            assert do_step(callback, 1, 3.0, 10).should_training_stop is False
            os.kill(os.getpid(), signal.SIGTERM)
            control = do_step(callback, 2, 2.0, 20)
    assert (control.should_training_stop, control.should_save) == (True, True)
    assert callback.stop.received == signal.SIGTERM


@pytest.mark.parametrize("moment", ["on_evaluate", "on_save"])
def test_a_signal_during_an_evaluation_or_a_save_needs_no_further_step(tmp_path: Path, moment: str) -> None:
    with EventWriter(tmp_path / "events.jsonl") as events:
        callback = EventCallback(events, [])
        control = SimpleNamespace(should_training_stop=False, should_save=False)
        with callback.stop.watch():
            os.kill(os.getpid(), signal.SIGINT)
            getattr(callback, moment)(SimpleNamespace(output_dir=str(tmp_path)), make_state(2), control)
    assert (control.should_training_stop, control.should_save) == (True, moment == "on_evaluate")


def test_nothing_earlier_means_nothing_done() -> None:
    assert Result.of_steps([]).steps == 0
