"""The advice by flags, by questions and beside a verdict."""

import json
from pathlib import Path

import pytest

from core.errors import InputError, NotFound
from evaluation.rules import Situation
from scripts.advise import ask_what_is_missing, main, parse_arguments, read_verdict


def run(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    """Run the program with some flags, without a terminal."""
    monkeypatch.setattr("sys.argv", ["advise.py", *flags])
    main()


def test_flags_are_enough(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(
        monkeypatch, "--changes-per-month", "8", "--citations", "yes", "--format", "no", "--examples", "1,200", "--json"
    )
    said = json.loads(capsys.readouterr().out)
    assert said["arm"] == "rag"
    assert said["unknown"] == ["prompt_keeps_format", "is_latency_critical", "documents", "queries_per_month"]
    assert [one["side"] for one in said["findings"]][:3] == ["RAG", "RAG", "neither"]


def test_the_table_names_the_next_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "--citations", "yes")
    said = capsys.readouterr().out
    assert "arm: rag" in said
    assert "not known: --changes-per-month, --format" in said
    assert "scripts/verdict.py" in said


def test_a_terminal_is_asked_until_it_makes_sense(capsys: pytest.CaptureFixture[str]) -> None:
    situation = Situation(needs_citations=True)
    replies = iter(["often", "2", "no", "", "yes", "-3", "40", "900"])
    asked: list[str] = []

    def reply(question: str) -> str:
        asked.append(question)
        return next(replies)

    ask_what_is_missing(situation, reply)
    assert situation == Situation(2.0, True, False, None, None, True, 40, 900)
    assert len(asked) == 8  # two were asked again, citations were known, and no format needs no prompt
    assert "wanted a number, found 'often'" in capsys.readouterr().err


def test_the_end_of_the_input_leaves_the_rest_unknown() -> None:
    replies = iter(["2"])

    def reply(_: str) -> str:
        try:
            return next(replies)
        except StopIteration:
            raise EOFError from None

    situation = Situation()
    ask_what_is_missing(situation, reply)
    assert situation == Situation(changes_per_month=2.0)


def test_a_verdict_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    verdict = {"arm": "hybrid", "open": ["hybrid"], "means": {"rag": {}, "hybrid": {}}, "outcome": "decided"}
    report.write_text(json.dumps({"verdict": verdict}))
    run(monkeypatch, "--citations", "yes", "--verdict", str(report))
    assert "do not agree: the rules say rag, the measurement says hybrid" in " ".join(capsys.readouterr().out.split())


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"absent\.json"):
        read_verdict(tmp_path / "absent.json")
    for text in ("[]", "{}", '{"verdict": {"arm": "rag"}}', "no JSON"):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(InputError, match="wanted the report"):
            read_verdict(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--citations", "maybe"], "--citations: wanted yes or no, found 'maybe'"),
        (["--examples", "many"], "--examples: wanted a whole number, found 'many'"),
        (["--changes-per-month", "often"], "--changes-per-month: wanted a number, found 'often'"),
        (["--examples", "-1"], "--examples: wanted at least 0, found -1"),
        (["--changes-per-month", "inf"], "--changes-per-month: wanted at least 0, found inf"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_arguments(flags)
    assert end.value.code == 2
    assert said in capsys.readouterr().err
