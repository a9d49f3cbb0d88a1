"""evaluation.answers: what is saved is read back, and a file of other answers is refused."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError, ContractError, InputError
from evaluation.answers import FORMAT, Answer, Arm, AskConfig, Passage, read_answers, read_citations, take_turns
from evaluation.questions import Question

HITS = tuple(Passage(n, "s", f"{n}.md", None, None, f"chunk-{n}", 0.5, 0, 1, "x") for n in (1, 2, 3))


def make_answer(**changes: Any) -> Answer:
    values: dict[str, Any] = {
        "arm": "rag",
        "question_id": "q1",
        "question": "How long?",
        "model": "m",
        "text": "Ünïcode \u2028 [1]",
        "citations": (1,),
        "hits": HITS,
        "searched": True,
        "finish_reason": "stop",
        "prompt_tokens": 10,
        "completion_tokens": None,
        "ttft_s": 0.5,
        "latency_s": 2.0,
        "asked_at": 1.0,
    }
    return Answer(**values | changes)


def write_answers(path: Path, *answers: Answer) -> Path:
    lines = [{"format": FORMAT, "settings": {}}, *(asdict(answer) for answer in answers)]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def test_answers_come_back_and_the_last_of_several_counts(tmp_path: Path) -> None:
    first, other, again = make_answer(error="timeout"), make_answer(question_id="q2"), make_answer(text="26 months")
    path = write_answers(tmp_path / "a.jsonl", first, other, again)
    assert read_answers(path) == [again, other]
    with path.open("a") as file:
        file.write('{"arm": "rag", "quest')
    assert read_answers(path) == [again, other]


@pytest.mark.parametrize(
    "content", ['{"arm": "x"}\n', "[1]\n", "x\n", '{"format": "loam-answers-0", "settings": {}}\n']
)
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ContractError, match="line 1: wanted loam-answers-1"):
        read_answers(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="found nothing"):
        read_answers(tmp_path / "none.jsonl")


def test_arms_take_turns() -> None:
    questions = [Question(str(number), "?") for number in range(3)]
    arms = [Arm("a", "m"), Arm("b", "m")]
    order = [(question.id, arm.name) for question, arm in take_turns(questions, arms)]
    assert order == [("0", "a"), ("0", "b"), ("1", "b"), ("1", "a"), ("2", "a"), ("2", "b")]


def test_citations_are_numbers_of_passages_in_order() -> None:
    text = "One. [2] Two. [1] Again. [2] None. [9] No mark [3]"
    starts = [text.index("[2]"), text.index("[1]"), text.rindex("[2]"), text.index("[9]")]
    spans = [{"url_citation": {"start_index": start, "end_index": start + 3}} for start in starts]
    assert read_citations(text, spans, {1, 2, 3}) == (2, 1)
    assert read_citations(text, [{"url_citation": {"start_index": 0, "end_index": 4}}], {1, 2, 3}) == ()


def test_every_setting_out_of_range_is_named() -> None:
    with pytest.raises(ConfigError) as refusal:
        AskConfig(url="localhost", max_tokens=0, temperature=3, concurrency=0, timeout_s=0, retries=-1)
    for key in ("url", "max_tokens", "temperature", "concurrency", "timeout_s", "retries"):
        assert f"ask.{key}: wanted" in refusal.value.message
