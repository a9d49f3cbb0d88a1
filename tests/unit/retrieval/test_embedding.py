"""Embedding keeps its contract: identity by files, windows that leave nothing out, unit vectors."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ContractError, InvalidFile, NotFound
from retrieval.batches import set_budget, share_out
from retrieval.config import Dtype, EmbedderConfig, EncoderEngine
from retrieval.embedding import Embedder, SentenceEmbedder, normalise_rows, pick_dtype, settle_dtype
from retrieval.windows import cut_windows
from tests.fakes.embedder_contract import CHECKS
from tests.fakes.hash_embedder import HashEmbedder
from tests.rules.checkout import REPO


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_hash_embedder_keeps_the_contract(check: Callable[[Embedder], None]) -> None:
    check(HashEmbedder())


@given(
    heading=st.none() | st.text("ab c", max_size=60),
    words=st.lists(st.text("abcdefghi", min_size=1, max_size=20), min_size=1, max_size=90, unique=True),
)
def test_windows_leave_no_word_out(heading: str | None, words: list[str]) -> None:
    embedder = HashEmbedder(max_tokens=16)
    windows = cut_windows(heading, " ".join(words), embedder)
    assert all(len(embedder.token_starts(window)) <= 16 for window in windows)
    joined = "\n".join(windows)
    pieces = [word[start : start + 8] for word in words for start in range(0, len(word), 8)]
    assert [piece for piece in pieces if piece not in joined] == []


def make_model(folder: Path, weights: str = "model.safetensors", dimension: int = 8) -> Path:
    """A folder that looks like a sentence-transformers model."""
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / weights).write_bytes(b"weights")
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Normalize"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config.json").write_text(json.dumps({"hidden_size": 99}))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": dimension}))
    return folder


def test_the_identity_is_known_without_loading(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "mini")
    identity = SentenceEmbedder(folder, EmbedderConfig("mini")).identity
    assert (identity.name, identity.dimension) == ("mini", 8)
    assert identity == SentenceEmbedder(folder, EmbedderConfig("mini")).identity


@pytest.mark.parametrize("change", ["model.safetensors", "1_Pooling/config.json", "prefix"])
def test_the_identity_depends_on_all_that_decides_a_vector(tmp_path: Path, change: str) -> None:
    folder = make_model(tmp_path / "mini")
    before = SentenceEmbedder(folder, EmbedderConfig("mini")).identity
    if change != "prefix":
        path = folder / change
        path.write_bytes(path.read_bytes() + b" ")
    config = EmbedderConfig("mini", query_prefix="query: " if change == "prefix" else "")
    assert SentenceEmbedder(folder, config).identity != before


def test_a_missing_model_names_the_command(tmp_path: Path) -> None:
    command = rf"python scripts/models\.py --data-dir {re.escape(str(tmp_path))} get mini$"
    with pytest.raises(NotFound, match=command):
        SentenceEmbedder(tmp_path / "models" / "mini", EmbedderConfig("mini"))


def test_weights_that_can_carry_code_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match=r"pytorch_model\.bin"):
        SentenceEmbedder(make_model(tmp_path / "mini", "pytorch_model.bin"), EmbedderConfig("mini"))


def test_a_folder_without_a_dimension_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "mini")
    (folder / "modules.json").write_text("[]")
    with pytest.raises(ContractError, match="length of its vectors"):
        SentenceEmbedder(folder, EmbedderConfig("mini"))


def test_few_texts_are_shared_out_among_the_lanes_of_an_encoder() -> None:
    lengths = [130] * 25
    assert len(list(share_out(lengths, set_budget(lengths, 4096, 1)))) == 1
    shared = list(share_out(lengths, set_budget(lengths, 4096, 2)))
    assert sorted(place for batch in shared for place in batch) == list(range(25))
    assert 4 <= len(shared) <= 6
    assert max(map(len, shared)) <= 7
    assert set_budget([130] * 1000, 4096, 2) == 4096
    assert set_budget([12, 9], 4096, 2) == 512  # too few tokens to be worth two batches


def test_rows_of_zeros_stay_zero() -> None:
    rows = normalise_rows(np.array([[3, 4], [0, 0]], dtype=np.float32))
    assert rows.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]


@pytest.mark.parametrize(
    ("is_cuda", "reason"), [(False, "OpenVINO is not installed"), (True, "torch computes on a CUDA card")]
)
def test_int8_gives_way_where_torch_computes(is_cuda: bool, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    assert settle_dtype(Dtype.int8, EncoderEngine.torch, is_cuda=is_cuda) is pick_dtype(is_cuda=is_cuda)
    assert f"wanted int8, found that {reason}" in caplog.text
    assert settle_dtype(Dtype.int8, EncoderEngine.openvino, is_cuda=False) is Dtype.int8
    assert settle_dtype(Dtype.float32, EncoderEngine.torch, is_cuda=is_cuda) is Dtype.float32


def test_who_only_embeds_or_reranks_needs_no_database() -> None:
    code = "import sys; sys.modules['sqlalchemy'] = None; import retrieval.embedding, retrieval.rerank"
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
