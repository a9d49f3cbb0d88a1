"""Token ids go to disk in batches and come back as they were."""

from pathlib import Path

import numpy as np
import pytest

from train import tokens
from train.tokens import TokenFile, TokenWriter, measure_rows


def write(path: Path, lengths: list[int]) -> None:
    with TokenWriter(path) as writer:
        for row, length in enumerate(lengths):
            ids = np.arange(length, dtype=np.int32) + row
            writer.add(ids, np.where(ids % 2, ids, -100).astype(np.int32))


@pytest.mark.parametrize("batch_tokens", [1, 7, 2**20])
def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_tokens: int) -> None:
    monkeypatch.setattr(tokens, "BATCH_TOKENS", batch_tokens)
    lengths = [3, 1, 8, 2, 5]
    write(tmp_path / "tokens.arrow", lengths)
    file = TokenFile(tmp_path / "tokens.arrow")
    assert len(file) == 5
    assert file[3] == {"input_ids": [3, 4], "labels": [3, -100]}
    assert [len(example["labels"]) for example in file] == lengths
    assert file[-1]["input_ids"] == [4, 5, 6, 7, 8]
    assert file[1::2] == [file[1], file[3]]
    assert measure_rows(file.dataset).tolist() == lengths


def test_a_file_without_rows_is_empty(tmp_path: Path) -> None:
    write(tmp_path / "tokens.arrow", [])
    assert len(TokenFile(tmp_path / "tokens.arrow")) == 0


def test_the_rows_stay_on_disk(tmp_path: Path) -> None:
    write(tmp_path / "tokens.arrow", [4])
    (cached,) = TokenFile(tmp_path / "tokens.arrow").dataset.cache_files
    assert cached["filename"] == str(tmp_path / "tokens.arrow")
