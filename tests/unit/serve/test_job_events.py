"""What a run's events say through the API: ids that stay, figures by step, the time that is left."""

import time
from pathlib import Path

from core.events import EventWriter, read_events, read_events_from
from serve.job_events import Figures, Progress, shape_events

STEP = {"learning_rate": 1e-4, "grad_norm": 1.0, "tokens_per_s": 1.0, "batch": "0", "memory_bytes": 1}


def write(path: Path) -> None:
    with EventWriter(path) as events:
        for step in (1, 2, 2, 3):  # a resumed run does a step twice
            events.write("step", step=step, loss=4.0 / step, tokens=step * 10, **STEP)
        events.write("eval", step=2, loss=float("nan"), token_accuracy=0.5)
        events.write("checkpoint", step=3, path="checkpoints/checkpoint-3")
        events.write("sample", step=3, index=0, prompt="How long?", answer="45 days")
        events.write("error", message="/secret/path is full", code="storage_full")


def test_events_are_the_newest_first_with_ids_that_stay(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path)
    message = {"number": 7, "created_at": time.time() + 60, "level": "info", "message": "ended"}
    shown = shape_events("ftjob-1", [message], path)
    assert shown[0]["id"] == "ftevent-1-g7"
    assert shown[-1]["id"] == "ftevent-1-t0"
    assert shown[1]["level"] == "error"
    assert not any("secret" in str(event) for event in shown)
    assert shown[-1]["data"]["tokens_per_s"] == 1.0
    (sample,) = (event["data"] for event in shown if "answer" in event["data"])
    assert sample == {"step": 3, "index": 0, "prompt": "How long?", "answer": "45 days"}
    with EventWriter(path) as events:
        events.write("log", message="more")
    later = shape_events("ftjob-1", [message], path)
    assert {event["id"] for event in shown} < {event["id"] for event in later}


def test_figures_are_those_of_the_last_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path)
    figures = Figures.read(path)
    assert figures.shape_metrics(2)["train_loss"] == 2.0
    assert figures.shape_metrics(2)["valid_loss"] is None, "NaN is no JSON"
    assert figures.shape_metrics(2)["full_valid_mean_token_accuracy"] == 0.5
    rows = figures.write_results().decode().splitlines()
    assert rows[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert rows[1:] == ["1,4.0,,,", "2,2.0,,,0.5", f"3,{4 / 3},,,"]


def test_the_end_is_told_from_the_last_steps() -> None:
    progress = Progress(10)
    now = time.time()
    for step in (1, 2):
        progress.add({"type": "step", "step": step, "tokens": step, "time": now - 20 + 10 * step})
    assert progress.estimate_finish() is None
    progress.add({"type": "step", "step": 3, "tokens": 3, "time": now + 10})
    estimate = progress.estimate_finish()
    assert estimate is not None
    assert abs(estimate - (now + 10 + 70)) <= 2


def test_a_file_is_read_on_from_where_it_was_left(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_events_from(path, 0) == ([], 0)
    write(path)
    whole, offset = read_events_from(path, 0)
    assert len(whole) == len(list(read_events(path)))
    with path.open("a") as file:
        file.write('{"type": "log", "ti')
    assert read_events_from(path, offset) == ([], offset)
    with path.open("a") as file:
        file.write('me": 1, "message": "m"}\n')
    assert read_events_from(path, offset)[0] == [{"type": "log", "time": 1, "message": "m"}]
