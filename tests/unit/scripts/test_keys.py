"""scripts/keys.py: the key on standard output once, everything else by id."""

import shlex
import sys
from pathlib import Path

import pytest

from core.errors import NotFound
from retrieval.database import open_database
from scripts.keys import main


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> list[str]:
    """Run the command and return the lines of its standard output."""
    monkeypatch.setattr(sys, "argv", ["keys.py", *words, "--data-dir", str(folder)])
    main()
    return capsys.readouterr().out.splitlines()


def test_a_key_is_printed_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for words in (["list"], ["revoke", "nothing"]):
        with pytest.raises(NotFound, match=r"wanted a database with keys, found none at .*loam\.db"):
            run(capsys, monkeypatch, tmp_path / "none", *words)
    assert not (tmp_path / "none").exists(), "looking makes nothing"
    (token,) = run(capsys, monkeypatch, tmp_path, "create", "--owner", "sales", "--admin")
    prefix, key_id, secret = token.split("-")
    assert prefix == "loam"
    (line,) = run(capsys, monkeypatch, tmp_path, "list")
    assert line.startswith(f"{key_id}  sales  admin  made ")
    assert line.endswith("good")
    assert secret not in line
    (line,) = run(capsys, monkeypatch, tmp_path, "revoke", key_id)
    assert "revoked" in line
    assert run(capsys, monkeypatch, tmp_path, "list") == [line]
    with pytest.raises(NotFound):
        run(capsys, monkeypatch, tmp_path, "revoke", "nothing")


def test_the_data_directory_is_where_the_images_have_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOAM_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["keys.py", "create", "--owner", "sales"])
    main()
    capsys.readouterr()
    assert len(run(capsys, monkeypatch, tmp_path, "list")) == 1


def test_the_first_key_is_told_to_be_made_in_the_directory_that_was_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "a place"
    folder.mkdir()
    open_database(folder / "loam.db").dispose()
    monkeypatch.setattr(sys, "argv", ["keys.py", "list", "--data-dir", str(folder)])
    main()
    command = capsys.readouterr().err.partition("Make one: ")[2]
    monkeypatch.setattr(sys, "argv", shlex.split(command.replace("NAME", "sales"))[1:])
    main()
    capsys.readouterr()
    assert len(run(capsys, monkeypatch, folder, "list")) == 1
