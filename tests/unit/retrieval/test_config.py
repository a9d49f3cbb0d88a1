"""A wrong setting is refused by name and range before anything heavy is loaded, all faults together."""

import pytest

from core.errors import ConfigError
from retrieval.config import ChunkingConfig, EmbedderConfig, ParsingConfig, RetrievalConfig, SearchConfig


def test_a_language_that_nothing_stems_is_refused() -> None:
    assert RetrievalConfig(language="german").language == "german"
    with pytest.raises(ConfigError, match=r"language: wanted one of .*german.*, or null; found 'klingon'"):
        RetrievalConfig(language="klingon")


def test_the_defaults_are_good() -> None:
    assert EmbedderConfig().name == "all-minilm-l6-v2"
    assert ChunkingConfig().max_tokens < 256
    assert SearchConfig().reranker is None
    assert ParsingConfig().timeout_s > 0


@pytest.mark.parametrize(
    ("kind", "values", "named"),
    [
        (ChunkingConfig, {"max_tokens": 8}, r"chunking\.max_tokens: wanted 16 to 4096, found 8"),
        (
            ChunkingConfig,
            {"max_tokens": 40, "overlap_tokens": 21},
            r"chunking\.overlap_tokens: wanted 0 to 20, found 21",
        ),
        (SearchConfig, {"dense_weight": 1.5}, r"search\.dense_weight: wanted 0 to 1, found 1\.5"),
        (SearchConfig, {"reranker": "../up"}, r"search\.reranker: wanted"),
        (EmbedderConfig, {"name": "a/b"}, r"embedder\.name: wanted"),
        (EmbedderConfig, {"batch_size": 0}, r"embedder\.batch_size"),
        (ParsingConfig, {"timeout_s": 0}, r"parsing\.timeout_s"),
    ],
)
def test_a_value_out_of_range_is_refused(kind: type, values: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        kind(**values)


def test_all_faults_are_told_together() -> None:
    with pytest.raises(ConfigError, match=r"candidates.*rerank_depth"):
        SearchConfig(candidates=0, rerank_depth=0)
