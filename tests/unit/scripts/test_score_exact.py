"""scripts/score_exact.py: what is asked, what is scored, and how long training took until then."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError, InputError, NotFound
from core.events import EventWriter
from evaluation.questions import spread
from scripts.score_exact import (
    Candidate,
    Question,
    Score,
    ScoreConfig,
    answer_all,
    draw_accuracy,
    find_candidates,
    measure_minutes,
    read_questions,
    score_answers,
    show,
    stage_adapters,
)
from serve.progress import CountProgress
from tests.fakes.engine import BASE, read_state, running_engine
from train.checkpoint import mark_complete


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_checkpoint(run: Path, step: int, *, is_whole: bool = True) -> None:
    folder = run / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt"):
        (folder / name).write_text(f"{name} of {step}")
    if is_whole:
        mark_complete(folder)


def test_questions_come_from_columns_or_from_chats(tmp_path: Path) -> None:
    columns = write_rows(tmp_path / "a.jsonl", {"text": "Where?", "label": " here "})
    assert read_questions(columns, "text", "label") == [Question([{"role": "user", "content": "Where?"}], "here")]
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "here"}]
    chats = write_rows(tmp_path / "b.jsonl", {"messages": turns})
    assert read_questions(chats, None, None) == [Question(turns[:1], "here")]


def test_rows_that_are_no_questions_are_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", {"text": "a", "label": "b"}, {"text": "a"}, {"text": "a", "label": 3}, [1])
    with pytest.raises(InputError, match="lines 2, 3, 4"):
        read_questions(path, "text", "label")
    with pytest.raises(InputError, match="messages"):
        read_questions(path, None, None)
    with pytest.raises(NotFound):
        read_questions(tmp_path / "nothing", None, None)


def test_one_column_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither, found one"):
        ScoreConfig(run="a", questions="b", prompt_column="text")
    with pytest.raises(ConfigError, match="limit"):
        ScoreConfig(run="a", questions="b", limit=0)


def test_a_limit_takes_questions_from_all_over_the_file() -> None:
    questions = [Question([], str(number)) for number in range(10)]
    assert [question.expected for question in spread(questions, 4)] == ["0", "2", "5", "7"]
    assert spread(questions, None) == spread(questions, 99) == questions


def test_whole_checkpoints_in_order_then_the_adapter(tmp_path: Path) -> None:
    for step in (100, 20, 3):
        write_checkpoint(tmp_path, step, is_whole=step != 100)
    with pytest.raises(NotFound, match="checkpoints=true"):
        find_candidates(tmp_path, "base", with_base=True, with_checkpoints=False)
    found = find_candidates(tmp_path, "base", with_base=False, with_checkpoints=True)
    assert [candidate.name for candidate in found] == ["checkpoint-3", "checkpoint-20"]
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "manifest.json").write_text(json.dumps({"metrics": {"steps": 101}}))
    found = find_candidates(tmp_path, "base", with_base=True, with_checkpoints=True)
    assert [(candidate.name, candidate.step) for candidate in found] == [
        ("base", 0),
        ("checkpoint-3", 3),
        ("checkpoint-20", 20),
        ("adapter", 101),
    ]


def test_the_adapter_of_the_best_step_counts_the_steps_behind_it(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "manifest.json").write_text(json.dumps({"metrics": {"steps": 101, "best_step": 60}}))
    (found,) = find_candidates(tmp_path, "base", with_base=False, with_checkpoints=False)
    assert found.step == 60


def test_only_the_adapter_of_a_checkpoint_goes_to_the_engine(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 5)
    candidates = find_candidates(tmp_path, "base", with_base=True, with_checkpoints=True)
    with stage_adapters(candidates) as adapters:
        assert [adapter.name for adapter in adapters] == ["checkpoint-5"]
        staged = adapters[0].path
        assert sorted(path.name for path in staged.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
        assert staged.parent.stat().st_mode & 0o777 == 0o700
    assert not staged.exists()


def test_minutes_in_steps_leave_out_what_lies_between_them(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as events:
        for step in (1, 2, 3):  # 600 tokens at 10 a second: a minute each
            events.write("step", step=step, tokens=600 * step, tokens_per_s=10.0)
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    write_rows(tmp_path / "events.jsonl", *({**line, "time": 90.0 * line["step"]} for line in lines))
    assert measure_minutes(tmp_path, 2) == (2.0, 2.5)
    assert measure_minutes(tmp_path, 3) == (3.0, 4.0)
    assert measure_minutes(tmp_path, 0) == (0.0, 0.0)


def test_all_are_asked_greedily_under_the_candidates_name_and_scored_in_order(tmp_path: Path) -> None:
    texts = ["red", "green", "blue"]
    questions = [Question([{"role": "user", "content": text}], text) for text in texts]

    async def run() -> tuple[list[str], list[dict[str, Any]]]:
        async with running_engine(tmp_path) as engine:
            answers = await answer_all(engine, BASE, questions, 5, 2, CountProgress("asking", 3))
            return answers, (await read_state(engine))["requests"]

    answers, requests = asyncio.run(run())
    assert answers == texts  # the fake repeats what it is asked
    asked = [body for body in requests if body.get("max_tokens") == 5]  # the others are for the engine's health
    assert sorted(body["messages"][-1]["content"] for body in asked) == sorted(texts)
    assert all((body["model"], body["temperature"]) == (BASE, 0) for body in asked)
    score = score_answers(Candidate(BASE, 0, None), tmp_path, questions, ["red", "green ", "blue!"])
    assert (score.exact, score.n, score.training_minutes) == (round(1 / 3, 4), 3, 0.0)


def test_the_next_command_names_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show([Score("base", 0, 0.0, 0.0, 0.02, 50)], tmp_path, "mine", "my data")
    assert "next: python serve/run.py adapters=[mine] 'paths.data_dir=my data'\n" in capsys.readouterr().out


def test_the_curve_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.png"
    draw_accuracy(path, [Score("base", 0, 0.0, 0.0, 0.02, 50), Score("adapter", 20, 3.0, 3.5, 0.8, 50)])
    assert path.read_bytes()[:4] == b"\x89PNG"
