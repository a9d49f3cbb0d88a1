"""Where deleted things stood: found by who lists them, for an hour."""

import time
from pathlib import Path

import pytest

from retrieval.database import open_database, read_transaction, write_transaction
from retrieval.departures import KEPT_S, find_departure, forget_departures, note_departure


def test_a_place_is_known_for_an_hour_to_its_list_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_database(tmp_path / "loam.db")
    with write_transaction(engine) as connection:
        note_departure(connection, "files/a", "file-1", 10)
        note_departure(connection, "files/a", "file-1", 20, 7)  # it was there again, and went again
        note_departure(connection, "files/b", "file-2", 30)
    forget_departures(engine)
    with read_transaction(engine) as connection:
        assert find_departure(connection, "files/a", "file-1") == (20, 7)
        assert find_departure(connection, "files/a", "file-2") is None
    now = time.time()
    monkeypatch.setattr("retrieval.departures.time.time", lambda: now + KEPT_S + 1)
    with read_transaction(engine) as connection:
        assert find_departure(connection, "files/a", "file-1") is None
    forget_departures(engine)
    monkeypatch.undo()
    with read_transaction(engine) as connection:
        assert find_departure(connection, "files/a", "file-1") is None
