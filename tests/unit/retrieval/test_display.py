"""Programs get one JSON object a line and nothing else; people get tables and the next command."""

import json
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from retrieval import display
from retrieval.documents import DocumentState
from retrieval.ingest import Failure, IngestReport
from retrieval.searcher import Hit, SearchedStore, SearchResult
from retrieval.status import StoreStatus

HIT = Hit(
    store="acme", file="[a].md", chunk_id="chunk-7", page=2, heading="A > [B]", start=3, end=9, text='say "hi"\n[bold]',
    rank=1, score=0.5, dense_score=0.4, span_score=0.4, lexical_score=3.0, fused_score=0.5, rerank_score=None,
)  # fmt: skip
RESULT = SearchResult("q", [HIT, HIT], [SearchedStore("acme", 3, 10, 5)], {"total": 12.0})
STATUS = StoreStatus(
    "acme", files=44, failed=1, in_progress=0, chunks=175, embedder="mini", dimension=384, language="german",
    generation=45, created_at=0,
)  # fmt: skip
REPORT = IngestReport("acme", 3, 1, 1, [Failure("bad.pdf", "invalid_file", "It needs a [password].")], 5, 5, 1.0)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    screen = StringIO()
    monkeypatch.setattr(display, "console", Console(file=screen, width=100))
    return screen


def read_lines(capsys: pytest.CaptureFixture[str], screen: StringIO) -> list[dict[str, Any]]:
    assert screen.getvalue() == ""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_hits_as_json(capsys: pytest.CaptureFixture[str], screen: StringIO) -> None:
    display.show_hits(RESULT, as_json=True)
    wanted = {
        "rank": 1, "score": 0.5, "store": "acme", "file": "[a].md", "chunk_id": "chunk-7", "page": 2,
        "heading": "A > [B]", "start": 3, "end": 9, "text": 'say "hi"\n[bold]',
    }  # fmt: skip
    assert read_lines(capsys, screen) == [wanted, wanted]


def test_status_as_json(capsys: pytest.CaptureFixture[str], screen: StringIO) -> None:
    display.show_status([STATUS], "data", as_json=True)
    (line,) = read_lines(capsys, screen)
    assert (line["store"], line["files"], line["chunks"]) == ("acme", 44, 175)


def test_a_report_as_json(capsys: pytest.CaptureFixture[str], screen: StringIO) -> None:
    display.show_report(REPORT, "data", as_json=True)
    (line,) = read_lines(capsys, screen)
    assert line["failures"] == [{"file": "bad.pdf", "code": "invalid_file", "reason": "It needs a [password]."}]


def test_hits_for_people_show_brackets_as_they_are(screen: StringIO) -> None:
    display.show_hits(RESULT, as_json=False)
    shown = screen.getvalue()
    for part in ("0.500", "[a].md", "page 2", "A > [B]", "[bold]", "acme (10 chunks)"):
        assert part in shown


def test_nothing_found_is_said(screen: StringIO) -> None:
    display.show_hits(SearchResult("q", [], RESULT.searched, {"total": 1.0}), as_json=False)
    assert "Nothing found in acme" in screen.getvalue()


def test_a_report_lists_every_failure_and_the_next_command(screen: StringIO) -> None:
    display.show_report(REPORT, "data", as_json=False)
    shown = screen.getvalue()
    for part in ("3 files found, 1 ingested, 1 unchanged, 1 failed", "bad.pdf", "It needs a [password].", "next:"):
        assert part in shown
    assert "scripts/search.py acme" in shown
    display.show_report(REPORT, "elsewhere", as_json=False)
    assert "python scripts/search.py --data-dir elsewhere acme" in screen.getvalue()


def test_status_without_stores_says_how_to_make_one(screen: StringIO) -> None:
    display.show_status([], "elsewhere", as_json=False)
    assert (
        "python retrieval/run.py action=ingest store=NAME source=FOLDER paths.data_dir=elsewhere" in screen.getvalue()
    )


HOSTILE = "a\x1b[2J\r\u202e\u2028\x85\ud800.md"


def test_no_name_reaches_the_terminal_or_a_program_as_it_is(
    capsys: pytest.CaptureFixture[str], screen: StringIO
) -> None:
    """Names are spelled when they are ingested; a store that was made before that may hold others."""
    hit = replace(HIT, file=HOSTILE, heading=HOSTILE, text=HOSTILE)
    result = SearchResult("q", [hit], [SearchedStore("acme", 3, 10, 5)], {"total": 12.0})
    report = replace(REPORT, failures=[Failure(HOSTILE, "invalid_file", HOSTILE)])
    error = {"code": "invalid_file", "message": HOSTILE}
    state = DocumentState(HOSTILE, "failed", 1, 0, 0, error, {})
    for as_json in (False, True):
        display.show_hits(result, as_json=as_json)
        display.show_report(report, "data", as_json=as_json)
        display.show_documents({"acme": [state]}, as_json=as_json)
    shown = screen.getvalue()
    shown.encode()
    assert not set(shown) & set(HOSTILE[1:-3].replace("[2J", ""))
    assert "a\\x1b[2J" in shown
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert {json.loads(line).get("file", HOSTILE) for line in lines} == {HOSTILE}
    assert all(line.isprintable() for line in lines)
