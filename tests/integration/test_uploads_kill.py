"""A file whose id was handed out is there byte for byte after kill -9 (promise D2); nothing without a row counts."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from core.layout import DataDir
from retrieval.database import open_database, read_transaction
from retrieval.uploads import check_upload, list_uploads

REPO = Path(__file__).resolve().parents[2]
UPLOADS = 200 if os.environ.get("LOAM_TEST_FULL") else 20
BATCH = 20
PLACES = ("upload.synced", "upload.renamed", "upload.written", "upload.committed")


def upload_and_kill(data: DataDir, seed: int, count: int, failpoint: str | None = None) -> dict[str, str]:
    """Upload and kill the process the moment it has acknowledged `count` files; return id and hash of each."""
    command = [sys.executable, "-m", "tests.fakes.upload_command", str(data.root), str(seed), str(count + 1)]
    named = {"LOAM_TEST_BUILD": "1", "LOAM_FAILPOINT": failpoint} if failpoint else {}
    kept: dict[str, str] = {}
    environment = {**os.environ, **named}
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            _, upload_id, sha256 = line.split()
            kept[upload_id] = sha256
            if len(kept) == count and not failpoint:
                process.send_signal(signal.SIGKILL)
    assert process.returncode in ({-signal.SIGKILL} if failpoint else {-signal.SIGKILL, 0})
    return kept


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
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    data, chance = DataDir(tmp_path), random.Random(2)
    kept: dict[str, str] = {}
    turn = 0
    while len(kept) < UPLOADS:
        turn += 1
        kept |= upload_and_kill(data, turn, chance.randrange(1, BATCH))
        check_kept(data, kept)
    record_property("uploads", len(kept))
    record_property("kills", turn)


@pytest.mark.parametrize("place", PLACES)
def test_a_kill_at_a_named_place_loses_no_file(
    tmp_path: Path, place: str, record_property: Callable[[str, object], None]
) -> None:
    data = DataDir(tmp_path)
    kept = upload_and_kill(data, 1, 3, f"{place}:3")
    assert len(kept) == 2
    check_kept(data, kept)
    check_kept(data, kept | upload_and_kill(data, 2, 2))
    record_property("kills", 2)
