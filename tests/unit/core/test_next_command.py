"""The next command: nothing is named that need not be, and each program reads back the directory that was meant."""

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from core.next_command import quote_value, write_next_command

texts = st.text(st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="$"), max_size=30)


def test_the_directory_that_is_used_anyway_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOAM_DATA_DIR", raising=False)
    assert write_next_command("serve/run.py", "adapters=[a]", data_dir="data") == "python serve/run.py adapters=[a]"
    monkeypatch.setenv("LOAM_DATA_DIR", "/srv/loam")
    assert write_next_command("scripts/prune.py", data_dir="/srv/loam") == "python scripts/prune.py"
    monkeypatch.setenv("LOAM_DATA_DIR", "/srv/loam/")
    assert write_next_command("scripts/prune.py", data_dir="/srv/loam") == "python scripts/prune.py"
    assert write_next_command("serve/run.py", data_dir="data") == "python serve/run.py paths.data_dir=data"


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("train/run.py", "python train/run.py x=1 'paths.data_dir=/a b/c'"),
        ("scripts/search.py", "python scripts/search.py --data-dir '/a b/c' x=1"),
        ("scripts/doctor.py", "python scripts/doctor.py '/a b/c' x=1"),
    ],
)
def test_another_one_is_named_as_the_program_reads_it(program: str, command: str) -> None:
    assert write_next_command(program, "x=1", data_dir="/a b/c") == command


@given(texts | st.from_regex(r"[a-z./ ]{1,8}", fullmatch=True))
@example("null")
@example("NaN")
@example("..")
def test_shell_and_hydra_read_back_the_directory(text: str) -> None:
    *_, word = shlex.split(write_next_command("serve/run.py", data_dir=text))
    assert word.startswith("paths.data_dir=") == (Path(text) != Path("data"))
    if Path(text) != Path("data"):
        value = OverridesParser.create().parse_override(word).value()
        assert str(value) == text


@pytest.mark.timeout(10)
def test_a_long_path_is_named_at_once() -> None:
    """Word by word: a pattern that tries every way to cut a path up would go on for years."""
    where = "/srv/" + "a_long_name_of_a_folder/" * 8 + "team,data"
    assert write_next_command("serve/run.py", data_dir=where).endswith(f"{where}'\"'\"''")


@example("ends in a backslash\\")
@example("ends in a backslash and a line break\\\n")
@given(texts)
def test_hydra_reads_back_what_was_quoted(text: str) -> None:
    assert str(OverridesParser.create().parse_override(f"key={quote_value(text)}").value()) == text
