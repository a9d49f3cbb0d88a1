"""core.lines: lines are whole or absent, whatever they hold; events (test_events.py) show the rest."""

from pathlib import Path

import pytest

from core import lines
from core.lines import LineWriter, find_line_start, read_lines_back, read_whole_lines


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
    assert list(read_lines_back(tmp_path / "none")) == []


@pytest.mark.parametrize("block", [1, 2, 3, 7, 2**14])
@pytest.mark.parametrize("content", ["", "on", "\n", "one\n", "one\n\ntwó\nthree\n\n", "one\ntwo\nthr", "one\n" * 9])
def test_lines_are_read_back_from_any_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, block: int
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    place = 0
    wanted: list[tuple[int, str]] = []
    for line in read_whole_lines(path):
        assert list(read_lines_back(path, place)) == wanted[::-1]
        wanted.append((place, line))
        place += len(line.encode())
    assert list(read_lines_back(path)) == wanted[::-1]
    with path.open("rb") as file:
        for byte in range(path.stat().st_size):
            starts = [start for start, _ in wanted if start <= byte] + [place] * (place <= byte)
            assert find_line_start(file, byte) == starts[-1]
        assert find_line_start(file, path.stat().st_size) == place
