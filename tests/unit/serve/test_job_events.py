"""What a run's events say through the API: ids that stay, figures by step, the time that is left."""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from core.errors import NotFound
from core.events import EventWriter, read_events, read_events_from
from retrieval.database import open_database, write_transaction
from serve.job_events import Figures, Progress, read_event_page

JOB = "ftjob-1"
STEP = {"learning_rate": 1e-4, "grad_norm": 1.0, "tokens_per_s": 1.0, "batch": "0", "memory_bytes": 1}


def write(path: Path) -> None:
    with EventWriter(path) as events:
        for step in (1, 2, 2, 3):  # a resumed run does a step twice
            events.write("step", step=step, loss=4.0 / step, tokens=step * 10, **STEP)
        events.write("eval", step=2, loss=float("nan"), token_accuracy=0.5)
        events.write("checkpoint", step=3, path="checkpoints/checkpoint-3")
        events.write("sample", step=3, index=0, prompt="How long?", answer="45 days")
        events.write("error", message="/secret/path is full", code="storage_full")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    """A database with the job."""
    engine = open_database(tmp_path / "loam.db")
    with write_transaction(engine) as connection:
        connection.execute(
            text(
                "INSERT INTO fine_tuning_jobs (id, owner, model, seed, training_file, method, hyperparameters, "
                "options, status, created_at) "
                "VALUES (:id, 'me', 'base', 1, 'file-a', 'supervised', '{}', '{}', 'queued', 0)"
            ),
            {"id": JOB},
        )
    yield engine
    engine.dispose()


def say(database: Engine, created_at: float, message: str = "said") -> None:
    with write_transaction(database) as connection:
        connection.execute(
            text("INSERT INTO job_messages (job_id, created_at, level, message) VALUES (:id, :at, 'info', :message)"),
            {"id": JOB, "at": created_at, "message": message},
        )


def read_all(database: Engine, path: Path, limit: int) -> list[dict[str, Any]]:
    """Return every event, read by pages."""
    events: list[dict[str, Any]] = []
    has_more = True
    while has_more:
        after = events[-1]["id"] if events else None
        page, has_more = read_event_page(database, JOB, path, after=after, limit=limit)
        assert len(page) == limit or not has_more
        events += page
    return events


def test_events_are_the_newest_first_with_ids_that_stay(tmp_path: Path, database: Engine) -> None:
    path = tmp_path / "events.jsonl"
    write(path)
    say(database, time.time() + 60, "ended")
    shown = read_all(database, path, 100)
    assert [event["message"] for event in shown[:2]] == ["ended", "Training was interrupted (storage_full)"]
    assert shown[-1]["id"] == "ftevent-1-t0"
    assert shown[1]["level"] == "error"
    assert not any("secret" in str(event) for event in shown)
    assert shown[-1]["data"]["tokens_per_s"] == 1.0
    (sample,) = (event["data"] for event in shown if "answer" in event["data"])
    assert sample == {"step": 3, "index": 0, "prompt": "How long?", "answer": "45 days"}
    with EventWriter(path) as events:
        events.write("log", message="more")
    later = read_all(database, path, 100)
    assert {event["id"] for event in shown} < {event["id"] for event in later}


def test_pages_show_each_event_once_in_the_order_of_time(tmp_path: Path, database: Engine) -> None:
    chance = random.Random(7)
    path = tmp_path / "events.jsonl"
    said: list[tuple[int, int, int, str]] = []
    for turn in range(8):
        said.append((chance.randrange(8), 0, turn, f"said {turn}"))
        say(database, said[-1][0], said[-1][-1])
        moments = sorted(chance.randrange(8) for _ in range(chance.randrange(20)))
        lines = [{"type": "log", "time": moment, "message": f"trained {n}"} for n, moment in enumerate(moments)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"type": "lo')  # the last is not whole
        wanted = sorted([*said, *((moment, 1, n, f"trained {n}") for n, moment in enumerate(moments))], reverse=True)
        for limit in (1, 2, 7, 100):
            assert [event["message"] for event in read_all(database, path, limit)] == [one[-1] for one in wanted]


def test_a_page_is_read_without_the_rest_of_the_file(tmp_path: Path, database: Engine) -> None:
    path = tmp_path / "events.jsonl"
    write(path)
    events, rest = path.read_text(), "this would be read by who reads everything\n" * 10_000
    path.write_text(rest + events)
    shown, has_more = read_event_page(database, JOB, path, after=None, limit=2)
    assert has_more
    shown += read_event_page(database, JOB, path, after=shown[-1]["id"], limit=2)[0]
    assert len({event["id"] for event in shown}) == 4
    assert all(int(event["id"].rpartition("-t")[2]) >= len(rest) for event in shown)


def test_a_page_after_what_never_was_is_refused(tmp_path: Path, database: Engine) -> None:
    path = tmp_path / "events.jsonl"
    write(path)
    rests = ("t1", "t00", "t999999", f"t{10**30}", "g1", "g", "t", "x0", "t0 ", "t-1", "t\u0660")
    for after in ("", "ftevent-2-t0", "ftevent-1", *(f"ftevent-1-{rest}" for rest in rests)):
        with pytest.raises(NotFound, match="is not in this list"):
            read_event_page(database, JOB, path, after=after, limit=5)


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
