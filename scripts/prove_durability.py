"""Run the full sets of the promises: python scripts/prove_durability.py [ROW …].

Each row of ROWS is a promise of docs/durability.md, or about serving of docs/benchmarks/promises.md, with the tests
that show it. What a row gave is kept in .cache/durability, so that a run that was stopped goes on with the next one; a
row is run again when the code or a test has changed since. Ends with a table for these pages, and with 1 where a row
failed, skipped a test or is still to be run. What was counted comes from the tests themselves (`record_property`).
"""

from core.entry import begin_program

begin_program()

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from core.config import run_command
from core.layout import sha256_bytes, write_json

REPO = Path(__file__).resolve().parents[1]
RECORDS = REPO / ".cache" / "durability"
CODE = ("core", "retrieval", "scripts", "serve", "train", "tests", "locks")
OTHER_STORE = "test_a_store_is_not_seen_from_another_and_does_not_move_its_scores"
ERASURE = "tests/integration/test_retrieval_erasure.py"
FULL_CHECKPOINT = "tests/integration/test_train_kill.py::test_a_full_disk_ends_a_run_that_goes_on_afterwards"
FAULTS = "tests/integration/test_serve_faults.py"
JOBS = "tests/integration/test_serve_jobs_kill.py"
ROWS: dict[str, tuple[str, ...]] = {
    "D1": ("tests/integration/test_retrieval_kill.py",),
    "D2": ("tests/integration/test_uploads_kill.py",),
    "D3": ("tests/integration/test_power_loss.py",),
    "D4": ("tests/integration/test_retrieval_damage.py",),
    "D5": ("tests/unit/scripts/test_doctor.py",),
    "D6": ("tests/integration/test_full_disk.py", FULL_CHECKPOINT),
    "D7": ("tests/integration/test_serve_lock.py",),
    "D8": ("tests/unit/scripts/test_backup.py", "tests/integration/test_retrieval_migration.py"),
    "API": ("tests/integration/test_serve_ingestion_kill.py",),
    "H1": ("tests/integration/test_hostile_documents.py",),
    "H2": ("tests/integration/test_outward_documents.py",),
    "H3": ("tests/integration/test_hostile_names.py",),
    "I2": (f"{ERASURE}::{OTHER_STORE}",),
    "I3": (ERASURE, "--deselect", f"{ERASURE}::{OTHER_STORE}"),
    "S1": (f"{FAULTS}::test_s1_after_kill_9_under_load_it_is_503_and_then_works_again",),
    "S2": (f"{FAULTS}::test_s2_a_death_in_a_stream_never_looks_like_an_end",),
    "S3": (f"{FAULTS}::test_s3_one_that_hangs_is_504_then_not_ready_then_replaced",),
    "S4": (f"{FAULTS}::test_s4_clients_that_go_away_free_vllm",),
    "S5": (f"{FAULTS}::test_s5_too_many_requests_are_refused_and_nothing_else_suffers",),
    "I1": ("tests/integration/test_serve_isolation.py",),
    "S8": ("tests/integration/test_serve_grammars.py",),
    "A3": ("tests/integration/test_serve_repeats.py", "tests/integration/test_serve_response_repeats.py"),
    "T3": (f"{JOBS}::test_kills_of_gateway_trainer_or_both",),
    "T5": (f"{JOBS}::test_cancels_at_any_time",),
    "T6": (f"{JOBS}::test_a_kill_between_two_states_leaves_one_of_them", "tests/unit/serve/test_adapter_check.py"),
    "H4": ("tests/integration/test_serve_fuzz.py",),
    "A4": ("tests/integration/test_serve_soak.py",),
    "512MiB": ("tests/integration/test_serve_edges.py::test_a_large_upload_is_streamed_to_disk",),
}


@dataclass(frozen=True, slots=True)
class Record:
    """What a row gave.

    Attributes:
        row: The promise.
        code: Hash of the code and tests that gave it.
        commit: The commit, with `+` where files differed from it; empty where there is no git.
        date: Day, UTC.
        passed: Tests that passed.
        failed: Tests that failed or broke.
        skipped: Tests that proved nothing here.
        seconds: How long it took.
        counts: What the tests counted: sums, and the largest of what ends in `_s`.
    """

    row: str
    code: str
    commit: str
    date: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    counts: dict[str, float]

    @property
    def is_proof(self) -> bool:
        """Whether everything ran and passed."""
        return bool(self.passed) and not self.failed and not self.skipped


def hash_code() -> str:
    """Return a hash of every file that may change what a row gives."""
    paths = sorted(path for name in CODE for path in (REPO / name).rglob("*") if path.suffix in {".py", ".txt"})
    return sha256_bytes(b"\0".join(str(path.relative_to(REPO)).encode() + b"\0" + path.read_bytes() for path in paths))


def name_commit() -> str:
    """Return the commit that is checked out, marked where files differ from it."""

    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=REPO, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return ask("rev-parse", "--short", "HEAD") + ("+" if ask("status", "--porcelain", "--", *CODE) else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def run_row(row: str, code: str) -> Record:
    """Run a row's full set and keep what it gave."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    report = RECORDS / f"{row}.xml"
    report.unlink(missing_ok=True)
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-o", "junit_family=xunit1", f"--junitxml={report}", *ROWS[row]]
    subprocess.run(command, cwd=REPO, env={**os.environ, "LOAM_TEST_FULL": "1"}, check=False)
    seconds = time.monotonic() - start
    passed, failed, skipped, counts = read_report(report)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    record = Record(row, code, name_commit(), day, passed, failed, skipped, round(seconds, 1), counts)
    write_json(RECORDS / f"{row}.json", asdict(record))
    return record


def read_report(path: Path) -> tuple[int, int, int, dict[str, float]]:
    """Return how many tests of pytest's report passed, failed and were skipped, and what those that passed counted.

    A report that was not written, because pytest was killed, is one failure.
    """
    if not path.is_file():
        return 0, 1, 0, {}
    passed = failed = skipped = 0
    counts: dict[str, float] = {}
    for case in ET.parse(path).iter("testcase"):  # noqa: S314  (pytest has just written it)
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
            for found in case.iter("property"):
                name, value = found.attrib["name"], float(found.attrib["value"])
                counts[name] = max(counts.get(name, 0), value) if name.endswith("_s") else counts.get(name, 0) + value
    return passed, failed, skipped, counts


def read_record(row: str, code: str) -> Record | None:
    """Return what a row gave, where it was a proof of this very code."""
    try:
        record = Record(**json.loads((RECORDS / f"{row}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return record if record.code == code and record.is_proof else None


def render_table(rows: Iterable[str], code: str) -> str:
    """Return the page's table of what was measured."""
    lines = ["| promise | counted | tests passed | minutes | date | commit |", "|---|---|---|---|---|---|"]
    for row in rows:
        record = read_record(row, code)
        if record is None:
            lines.append(f"| {row} | not shown | | | | |")
            continue
        counted = ", ".join(f"{value:g} {re.sub('_s$', ' in seconds', name)}" for name, value in record.counts.items())
        counted = counted.replace("_", " ")
        minutes = f"{record.seconds / 60:.1f}"
        lines.append(f"| {row} | {counted} | {record.passed} | {minutes} | {record.date} | {record.commit} |")
    return "\n".join(lines)


def main() -> None:
    """Run the rows that are still to be run and print the table."""
    parser = argparse.ArgumentParser(description="Run the full sets of the promises.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--again", action="store_true", help="run them even where they have been shown")
    parser.add_argument("--show", action="store_true", help="print what there is and run nothing")
    arguments = parser.parse_args()
    unknown = [row for row in arguments.rows if row not in ROWS]
    if unknown:
        parser.error(f"wanted rows of {', '.join(ROWS)}; found {', '.join(unknown)}")
    rows, code = arguments.rows or list(ROWS), hash_code()
    for row in rows if not arguments.show else []:
        if arguments.again or read_record(row, code) is None:
            print(f"{row}: {' '.join(ROWS[row])}", flush=True)
            run_row(row, code)
        else:
            print(f"{row}: shown by this code already", flush=True)
    print(render_table(rows, code))
    if any(read_record(row, code) is None for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
