"""A file whose id was handed out is there byte for byte after kill -9 (promise D2); nothing without a row counts."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from core.layout import DataDir
from retrieval.database import open_database, read_transaction
from retrieval.uploads import check_upload, list_uploads
from tests.fakes.warm_python import WarmPython

UPLOADS = 200 if os.environ.get("LOAM_TEST_FULL") else 20
BATCH = 20
PLACES = ("upload.synced", "upload.renamed", "upload.written", "upload.committed")


def upload_and_kill(
    programs: WarmPython, data: DataDir, seed: int, count: int, failpoint: str | None = None
) -> tuple[dict[str, str], int]:
    """Upload and kill the process the moment it has acknowledged `count` files.

    Returns:
        Id and hash of each file that it acknowledged, and its exit code.
    """
    named = {"LOAM_TEST_BUILD": "1", "LOAM_FAILPOINT": failpoint} if failpoint else {}
    kept: dict[str, str] = {}
    arguments = (str(data.root), str(seed), str(count + 30))  # so many that it does not end before the kill
    with programs.start("tests.fakes.upload_command", *arguments, **named) as program:
        for line in program.output:
            _, upload_id, sha256 = line.split()
            kept[upload_id] = sha256
            if len(kept) == count and not failpoint:
                program.kill()
        code = program.wait()
    assert code in ({-signal.SIGKILL} if failpoint else {-signal.SIGKILL, 0})
    return kept, code


def check_kept(data: DataDir, kept: dict[str, str]) -> None:
    """Every acknowledged file is there unchanged, and every row has its bytes."""
    engine = open_database(data.database)
    with read_transaction(engine) as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
    uploads = {upload.id: upload for upload in list_uploads(engine)}
    engine.dispose()
    assert kept.keys() <= uploads.keys()
    for upload in uploads.values():
        check_upload(data, upload)
    assert {upload_id: uploads[upload_id].sha256 for upload_id in kept} == kept


def test_what_was_acknowledged_is_unchanged_after_a_kill(
    programs: WarmPython, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    data, chance = DataDir(tmp_path), random.Random(2)
    kept: dict[str, str] = {}
    turn = kills = 0
    while len(kept) < UPLOADS:
        turn += 1
        found, code = upload_and_kill(programs, data, turn, chance.randrange(1, BATCH))
        kept |= found
        kills += code == -signal.SIGKILL
        check_kept(data, kept)
    assert kills > turn // 2, "most processes had ended before they were killed: this proves little"
    record_property("uploads", len(kept))
    record_property("kills", kills)


@pytest.mark.parametrize("place", PLACES)
def test_a_kill_at_a_named_place_loses_no_file(
    programs: WarmPython, tmp_path: Path, place: str, record_property: Callable[[str, object], None]
) -> None:
    data = DataDir(tmp_path)
    kept, _ = upload_and_kill(programs, data, 1, 3, f"{place}:3")
    assert len(kept) == 2
    check_kept(data, kept)
    later, _ = upload_and_kill(programs, data, 2, 2)
    check_kept(data, kept | later)
    record_property("kills_at_named_places", 1)
