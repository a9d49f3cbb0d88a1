"""Packs hold every row once and whole, and say where each begins."""

from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from train.config import TrainConfig, TrainerConfig
from train.encoding import Encoded
from train.packing import describe, pack_rows
from train.tokens import IGNORED, Example, TokenFile, TokenWriter

MOST = 16


def make_config(*, packing: bool = True) -> TrainConfig:
    return TrainConfig(trainer=TrainerConfig(packing=packing, max_length=MOST))


def make_rows(lengths: list[int]) -> list[Example]:
    """Rows that can be told apart; the second half of each is learned."""
    rows: list[Example] = []
    for number, length in enumerate(lengths):
        ids = [1000 * number + place for place in range(length)]
        rows.append({"input_ids": ids, "labels": [IGNORED] * (length // 2) + ids[length // 2 :]})
    return rows


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(1, MOST), min_size=1, max_size=30))
def test_every_row_is_there_once_and_whole(tmp_path: Path, lengths: list[int]) -> None:
    rows = make_rows(lengths)
    (tmp_path / "packs.arrow").unlink(missing_ok=True)
    packed = pack_rows(Encoded(rows, tokens=sum(lengths)), make_config(), tmp_path)
    found = []
    for pack in packed.examples:
        assert len(pack["input_ids"]) == len(pack["labels"]) == sum(pack["seq_lengths"]) <= MOST  # type: ignore[typeddict-item]
        ends = np.cumsum(pack["seq_lengths"])  # type: ignore[typeddict-item]
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            found.append((pack["input_ids"][start:end], pack["labels"][start:end]))
    assert sorted(found) == sorted((row["input_ids"], row["labels"]) for row in rows)
    assert packed.longest == max(len(pack["input_ids"]) for pack in packed.examples)
    assert (packed.tokens, len(packed.examples) <= len(rows)) == (sum(lengths), True)


def test_rows_on_disk_are_packed_on_disk_and_alike(tmp_path: Path) -> None:
    rows = make_rows([9, 4, 4, 16, 1, 7, 3, 12])
    with TokenWriter(tmp_path / "rows.arrow") as writer:
        for row in rows:
            writer.add(np.array(row["input_ids"], np.int32), np.array(row["labels"], np.int32))
    packed = []
    for name, examples in (("disk", TokenFile(tmp_path / "rows.arrow")), ("memory", rows)):
        (tmp_path / name).mkdir()
        made = pack_rows(Encoded(examples, tokens=56), make_config(), tmp_path / name)
        packed.append([(pack["input_ids"], pack["labels"]) for pack in made.examples])
        assert list((tmp_path / name).iterdir()) == [tmp_path / name / "packs.arrow"]
    assert packed[0] == packed[1]
    assert len(packed[0]) == 4


def test_nothing_is_packed_unasked(tmp_path: Path) -> None:
    rows = Encoded(make_rows([3, 4]))
    assert pack_rows(rows, make_config(packing=False), tmp_path) is rows
    assert describe(make_config(packing=False), rows, rows) == []


def test_it_says_how_full_the_packs_are(tmp_path: Path) -> None:
    rows = Encoded(make_rows([8, 4, 4, 8]), tokens=24)
    (line,) = describe(make_config(), rows, pack_rows(rows, make_config(), tmp_path))
    assert "4 rows in 2 packs" in line
    assert "75% full" in line
