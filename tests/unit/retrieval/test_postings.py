"""Inverted lists hold what was counted, and joining is the same as building anew from what is kept."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval import postings
from retrieval.postings import ARRAYS, Postings, build_postings, find_entries, join_postings, read_words

TEXTS = st.lists(st.lists(st.sampled_from(["a", "ab", "b", "ß", "水", "\U0001f986", "zz"]), max_size=6), max_size=8)


def read_all(postings: Postings) -> dict[str, dict[int, int]]:
    """Chunk and count of each word."""
    return {
        word: dict(zip(postings.chunks[place].tolist(), postings.counts[place].tolist(), strict=True))
        for word in read_words(postings)
        for place in [find_entries(postings, word)]
    }


@given(TEXTS)
def test_lists_hold_what_was_counted(texts: list[list[str]]) -> None:
    postings = build_postings(texts)
    wanted: dict[str, dict[int, int]] = {}
    for chunk, words in enumerate(texts):
        for word, count in Counter(words).items():
            wanted.setdefault(word, {})[chunk] = count
    assert read_all(postings) == wanted
    assert postings.lengths.tolist() == [len(words) for words in texts]
    assert find_entries(postings, "absent") == slice(0, 0)


@given(st.lists(TEXTS, min_size=1, max_size=4), st.data())
def test_joining_is_building_from_what_is_kept(parts: list[list[list[str]]], data: st.DataObject) -> None:
    masks = [
        data.draw(st.none() | st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)).map(np.array))
        for texts in parts
    ]
    masks = [None if mask is None else mask.astype(bool) for mask in masks]
    joined = join_postings([build_postings(texts) for texts in parts], masks)
    kept = [
        words
        for texts, mask in zip(parts, masks, strict=True)
        for number, words in enumerate(texts)
        if mask is None or mask[number]
    ]
    wanted = build_postings(kept)
    for name in ARRAYS:
        assert getattr(joined, name).tolist() == getattr(wanted, name).tolist(), name


@pytest.mark.parametrize("block", [1, 2, 5])
def test_joining_in_small_blocks_is_joining_at_once(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(block)
    words = ["a", "b", "c", "d", "e"]
    parts = [build_postings([chance.choice(words, 4).tolist() for _ in range(9)]) for _ in range(3)]
    masks = [None, chance.random(9) < 0.5, np.zeros(9, dtype=bool)]
    wanted = join_postings(parts, masks)
    monkeypatch.setattr(postings, "BLOCK", block)
    joined = join_postings(parts, masks)
    for name in ARRAYS:
        assert getattr(joined, name).tolist() == getattr(wanted, name).tolist(), name
