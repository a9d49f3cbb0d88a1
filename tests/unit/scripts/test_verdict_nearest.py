"""scripts.verdict: what the pattern found in the nearest passages is asked for once, and anew where it would differ."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.errors import Conflict, EngineError, EngineUnavailable
from evaluation.questions import Question
from scripts.verdict import ask_nearest, search_nearest
from scripts.verdict_plan import VerdictConfig

QUESTION = Question(id="q", question="How long?", accept=("45 days",))
NOBODY = "http://127.0.0.1:9"
PASSAGE = {"filename": "a.md", "file_id": "f", "score": 0.5, "content": [{"type": "text", "text": "In 45 days."}]}


def make_config(**changes: Any) -> VerdictConfig:
    return VerdictConfig(
        **{"questions": "q.jsonl", "store": "docs", "run": "mine", "nearest_pattern": r"\d+ days"} | changes
    )


def find(pattern: str) -> str:
    """Return what a pattern finds in a passage."""
    answering = httpx.MockTransport(lambda _: httpx.Response(200, json={"data": [PASSAGE]}))
    with httpx.Client(transport=answering, base_url=NOBODY) as client:
        return search_nearest(client, "vs", make_config(nearest_pattern=pattern), QUESTION).text


def test_a_pattern_gives_its_group_or_all_that_it_finds() -> None:
    assert find(r"\d+ days") == "45 days"
    assert find(r"(\d+) days") == "45"
    assert find(r"45|(weeks)") == ""  # its group has found nothing
    assert find("weeks") == ""


def test_saved_passages_are_taken_only_for_the_same_pattern_store_and_questions(tmp_path: Path) -> None:
    path = tmp_path / "nearest.jsonl"
    answer = {
        "arm": "nearest", "question_id": "q", "question": "How long?", "model": "docs", "text": "45 days",
        "citations": [], "hits": [], "searched": True, "finish_reason": "stop", "prompt_tokens": 0,
        "completion_tokens": 0, "ttft_s": 0.1, "latency_s": 0.1, "asked_at": 1.0, "error": None,
    }  # fmt: skip
    settings = {"arms": {"nearest": {"model": "docs", "pattern": r"\d+ days"}}}
    lines = [{"format": "loam-answers-1", "settings": settings}, answer]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [one.text for one in ask_nearest(make_config(), NOBODY, path, [QUESTION])] == ["45 days"]
    for changes in ({"nearest_pattern": ".+"}, {"store": "others"}):
        with pytest.raises(Conflict, match="Give another name"):
            ask_nearest(make_config(**changes), NOBODY, path, [QUESTION])
    with pytest.raises(Conflict, match="the text of q was another"):
        ask_nearest(make_config(), NOBODY, path, [Question(id="q", question="How much?", accept=("1",))])


def serve(monkeypatch: pytest.MonkeyPatch, answers: Iterator[httpx.Response | httpx.HTTPError]) -> None:
    """Have a store of one passage behind every client; each search gets the next answer."""

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            store = {"id": "vs", "name": "docs"}
            return httpx.Response(200, json={"data": [store], "has_more": False, "last_id": "vs"})
        answer = next(answers)
        if isinstance(answer, httpx.HTTPError):
            raise answer
        return answer

    client = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **values: client(**values, transport=httpx.MockTransport(handle)))


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (httpx.Response(503, text="later"), EngineError, "found status 503: later"),
        (httpx.ReadTimeout("too long"), EngineUnavailable, "found none that answers"),
    ],
)
def test_a_run_whose_first_search_failed_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: httpx.Response | httpx.HTTPError,
    kind: type[EngineError], words: str,
) -> None:  # fmt: skip
    found = httpx.Response(200, json={"data": [PASSAGE]})
    serve(monkeypatch, iter([fault, found]))
    path = tmp_path / "nearest.jsonl"
    with pytest.raises(kind, match=words):
        ask_nearest(make_config(), NOBODY, path, [QUESTION])
    for _ in range(2):  # asked, then read
        assert [one.text for one in ask_nearest(make_config(), NOBODY, path, [QUESTION])] == ["45 days"]
