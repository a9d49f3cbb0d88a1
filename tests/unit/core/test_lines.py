"""core.lines: lines are whole or absent, whatever they hold; events (test_events.py) show the rest."""

from pathlib import Path

import pytest

from core.lines import LineWriter, read_whole_lines


def test_lines_come_back_as_they_went_in(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    with LineWriter(path) as writer:
        assert writer.is_empty()
        for line in ("one", "with \u2028 and \r inside", ""):
            writer.write(line)
        assert not writer.is_empty()
    assert list(read_whole_lines(path)) == ["one\n", "with \u2028 and \r inside\n", "\n"]


@pytest.mark.parametrize("rest", [b"tw", b"two", "twó".encode()[:-1]])
def test_a_half_written_line_is_not_there(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\n" + rest)
    assert list(read_whole_lines(path)) == ["one\n"]
    with LineWriter(path) as writer:
        writer.write("three")
    assert path.read_bytes() == b"one\nthree\n"


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert list(read_whole_lines(tmp_path / "none")) == []
