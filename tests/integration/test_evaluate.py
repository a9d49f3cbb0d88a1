"""python scripts/evaluate.py before the real gateway: reports, limits, comparisons, and planted errors it names."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from core.config import CONF_DIR
from core.errors import LoamError
from scripts.evaluate import LIMITS_EXIT_CODE, main, spell_out
from serve.answering import AssistantConfig
from tests.conftest import REPO
from tests.fakes.engine import BASE
from tests.fakes.gateway import RunningGateway, running_gateway
from tests.fakes.judge import always, scripted_judge
from tests.fakes.searcher import make_passage

ITEMS = (
    "anvil",
    "bellows",
    "chisel",
    "drill",
    "easel",
    "file",
    "gimlet",
    "hammer",
    "jigsaw",
    "knife",
    "lathe",
    "mallet",
)
PASSAGES = [
    make_passage(f"chunk-{n}", f"The {item} weighs {n + 30} kilograms.", file=f"{item}.md")
    for n, item in enumerate(ITEMS)
]
EMPTY = make_passage("chunk-99", "Zzz.", store="empty", file="z.md")
ASSISTANTS = {
    "helper": AssistantConfig(model=BASE, stores=["acme"], k=1, min_score=0.2),
    "lost": AssistantConfig(model=BASE, stores=["empty"], k=2, min_score=0.2),
}
LABELS = REPO / "examples" / "acme" / "judge_labels.jsonl"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway whose model repeats the question, with a store that answers and one that does not."""
    with running_gateway(tmp_path_factory.mktemp("evaluate"), [*PASSAGES, EMPTY], ASSISTANTS) as running:
        running.script(reply=None)
        yield running


def write_questions(path: Path, shift: int = 0) -> Path:
    """Write questions that hold their answers, which the model repeats; `shift` gives each the answer of another."""
    rows = []
    for n, item in enumerate(ITEMS):
        weight = (n + shift) % len(ITEMS) + 30
        question = f"The {item} weighs {n + 30} kilograms."
        answer = f"The {ITEMS[weight - 30]} weighs {weight} kilograms."
        rows.append(
            {
                "id": item,
                "question": question,
                "answer": answer,
                "accept": [f"{weight} kilograms"],
                "file": f"{item}.md",
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def list_arguments(gateway: RunningGateway, data: Path, *arguments: str) -> list[str]:
    return [f"url={gateway.url}/v1", f"paths.data_dir={data}", *arguments]


def evaluate(gateway: RunningGateway, data: Path, *arguments: str) -> tuple[int, str]:
    """Run the program in this process; return its exit code, and the message of an error."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        composed = compose("evaluate", overrides=spell_out(list_arguments(gateway, data, *arguments)))
    try:
        main(composed)
    except LoamError as error:
        return error.exit_code, error.message
    except SystemExit as end:
        return int(str(end.code)), ""
    return 0, ""


def read_report(data: Path, name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((data / "reports" / name / "report.json").read_text())
    return report


def test_a_good_assistant_keeps_its_limits(gateway: RunningGateway, tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "q.jsonl")
    limits = [
        "at_least={success: 1.0, retrieval_recall: 1.0, faithfulness: 0.9}",
        "at_most={failed: 0, judge_faults: 0}",
    ]
    with scripted_judge() as judge:
        more = [f"judge.url={judge.url}", "judge.model=null", "judge.controls=4", "judge.limit=6", *limits]
        found = evaluate(gateway, tmp_path / "data", f"questions={questions}", "model=helper", *more)
    assert found == (0, "")
    report = read_report(tmp_path / "data", "evaluate-helper")
    assert report["doubts"] == report["misses"] == []
    assert report["judge"]["model"] == "scripted-judge"
    (agreement,) = report["agreements"]
    assert (agreement["source"], agreement["agreement"], agreement["noes"]) == ("control", 1.0, 4)
    assert {mean["metric"]: (mean["n"], mean["faults"]) for mean in report["judged"]} == {
        "faithfulness": (6, 0), "answer_relevancy": (6, 0), "context_precision": (6, 0), "context_recall": (6, 0)
    }  # fmt: skip
    folder = tmp_path / "data" / "reports" / "evaluate-helper"
    assert {path.name for path in folder.iterdir()} == {
        "answers.jsonl", "judgements.jsonl", "report.html", "report.json", "scores.csv"
    }  # fmt: skip


def test_shuffled_gold_answers_are_named_and_limits_fail(gateway: RunningGateway, tmp_path: Path) -> None:
    data = tmp_path / "data"
    good, shuffled = write_questions(tmp_path / "q.jsonl"), write_questions(tmp_path / "s.jsonl", shift=5)
    assert evaluate(gateway, data, f"questions={good}", "model=helper", "judge=none", "name=before") == (0, "")
    limits = ["compare=before", "fail_if_worse=true", "at_least={success: 0.5}"]
    code, _ = evaluate(gateway, data, f"questions={shuffled}", "model=helper", "judge=none", "name=shuffled", *limits)
    assert code == LIMITS_EXIT_CODE
    report = read_report(data, "shuffled")
    assert any("gold" in doubt for doubt in report["doubts"])
    assert report["misses"] == ["success: wanted at least 0.5, found 0"]
    assert report["compared"][0]["comparison"]["difference"] == 0.0


def test_only_questions_that_are_the_same_are_compared(
    gateway: RunningGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, questions = tmp_path / "data", write_questions(tmp_path / "q.jsonl")
    assert evaluate(gateway, data, f"questions={questions}", "model=helper", "judge=none", "name=before") == (0, "")
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    moved = [row | {"id": rows[n - 1]["id"]} for n, row in enumerate(rows)]  # as numbers of lines move
    for name, changed, code in (("some", [*rows[:8], *moved[9:]], 0), ("none", moved, 2)):
        questions.write_text("".join(json.dumps(row) + "\n" for row in changed))
        more = ["judge=none", f"name={name}", "compare=before", "fail_if_worse=true"]
        found, message = evaluate(gateway, data, f"questions={questions}", "model=helper", *more)
        assert (found, "wanted answers to these questions" in message) == (code, code == 2)
    assert read_report(data, "some")["compared"][0]["comparison"]["n"] == 8
    assert "left out     3 questions that were worded otherwise in before" in capsys.readouterr().err


def test_an_empty_store_and_a_judge_that_says_yes_are_named(gateway: RunningGateway, tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "q.jsonl")
    with scripted_judge() as judge:
        judge.rules = always(1)
        more = [
            f"judge.url={judge.url}",
            "judge.model=null",
            "judge.metrics=[context_recall]",
            f"judge.labels={LABELS}",
        ]
        assert evaluate(gateway, tmp_path / "data", f"questions={questions}", "model=lost", *more) == (0, "")
    doubts = " ".join(read_report(tmp_path / "data", "evaluate-lost")["doubts"])
    assert "the store is empty" in doubts
    assert "The judge scripted-judge says yes to 23 of 23 answers that are known to be wrong or unsupported" in doubts


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["model=nobody", "judge=none"], 4, "wanted the model nobody"),
        (["model=helper", "judge.url=http://127.0.0.1:9/v1"], 9, "judge=none"),
        (["model=helper", "judge=none", "at_least={speed: 1}"], 2, "at_least.speed"),
        (["model=helper", "judge=none", "compare=nothing"], 4, "found none"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_asked(
    gateway: RunningGateway, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    questions = write_questions(tmp_path / "q.jsonl")
    before = len(gateway.state()["requests"])
    found, message = evaluate(gateway, tmp_path / "data", f"questions={questions}", *arguments)
    assert (found, words in message) == (code, True), message
    assert len(gateway.state()["requests"]) == before


def test_the_command_ends_with_the_exit_code_of_a_limit(gateway: RunningGateway, tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "my q.jsonl", shift=1)
    arguments = [f"questions={questions}", "model=helper", "judge=none", "limit=2", "at_least={success: 0.5}"]
    arguments = list_arguments(gateway, tmp_path / "data", *arguments)
    command = [sys.executable, "scripts/evaluate.py", *arguments]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == LIMITS_EXIT_CODE, done.stdout + done.stderr
    assert "limit not kept: success: wanted at least 0.5, found 0" in done.stdout
    following = shlex.split(done.stdout.partition("compare: ")[2].splitlines()[0])
    assert following[2:] == [*spell_out(arguments), "name=evaluate-helper-2", "compare=evaluate-helper"]
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700  # it holds questions and answers
