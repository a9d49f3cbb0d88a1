"""Programs get one JSON object a line and nothing else; people get tables and the next command."""

import json
import shlex
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console

from retrieval import display
from retrieval.config import EmbedderConfig
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
EMBEDDER = EmbedderConfig()


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
    display.show_report(REPORT, "data", EMBEDDER, as_json=True)
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
    display.show_report(REPORT, "data", EMBEDDER, as_json=False)
    shown = screen.getvalue()
    for part in ("3 files found, 1 ingested, 1 unchanged, 1 failed", "bad.pdf", "It needs a [password].", "next:"):
        assert part in shown
    assert "scripts/search.py acme" in shown
    display.show_report(REPORT, "elsewhere", EMBEDDER, as_json=False)
    assert "python scripts/search.py --data-dir elsewhere acme" in screen.getvalue()


def test_the_next_command_names_an_embedder_that_is_not_the_usual_one(screen: StringIO) -> None:
    display.show_report(REPORT, "data", EmbedderConfig(name="e5", query_prefix="it's: "), as_json=False)
    display.show_status([STATUS], "data", as_json=False)
    report, status = (line for line in screen.getvalue().splitlines() if line.startswith("next: "))
    arguments = shlex.split(report)
    settings = [arguments[place + 1] for place, word in enumerate(arguments) if word == "--set"]
    parsed = OverridesParser.create().parse_overrides(settings)
    assert {one.key_or_group: one.value() for one in parsed} == {
        "embedder.name": "e5",
        "embedder.query_prefix": "it's: ",
    }
    assert status.endswith('acme "what you want to know" --set embedder.name=mini')


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
        display.show_report(report, "data", EMBEDDER, as_json=as_json)
        display.show_documents({"acme": [state]}, as_json=as_json)
    shown = screen.getvalue()
    shown.encode()
    assert not set(shown) & set(HOSTILE[1:-3].replace("[2J", ""))
    assert "a\\x1b[2J" in shown
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert {json.loads(line).get("file", HOSTILE) for line in lines} == {HOSTILE}
    assert all(line.isprintable() for line in lines)
