"""Chunks are exact slices that cover the text, respect sections, fit the limit and keep paragraphs whole."""

import itertools
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.chunking import Chunk, cut_document
from retrieval.config import ChunkingConfig, ChunkingMode
from retrieval.document import Document, Section

PIECES = st.sampled_from(
    [
        "word ",
        "Sentence one. ",
        "What? ",
        "äöü漢字 ",
        "\n",
        "\n\n",
        " ",
        "\t",
        "- item\n",
        "a | b | c\n",
        "x" * 40,
        "…",
        "🙂",
    ]
)


def token_starts(text: str) -> Sequence[int]:
    """Tokens of at most four letters, or single signs."""
    return [match.start() for match in re.finditer(r"\w{1,4}|[^\w\s]", text)]


def count_tokens(text: str) -> int:
    return len(token_starts(text))


def make_document(*texts: str) -> Document:
    """A document with one section for each text."""
    sections, offset = [], 0
    for number, text in enumerate(texts):
        sections.append(Section(offset, offset + len(text), number + 1, f"Part {number}"))
        offset += len(text)
    return Document("".join(texts), tuple(sections))


def cut(document: Document, max_tokens: int = 20, overlap_tokens: int = 0) -> list[Chunk]:
    return cut_document(document, ChunkingConfig(max_tokens, overlap_tokens), token_starts)


def slices(document: Document, chunks: list[Chunk]) -> list[str]:
    return [document.text[chunk.start : chunk.end] for chunk in chunks]


@given(
    texts=st.lists(st.lists(PIECES, max_size=80).map("".join), max_size=4),
    max_tokens=st.integers(16, 60),
    overlap_tokens=st.integers(0, 8),
)
def test_chunks_are_whole_exact_and_short(texts: list[str], max_tokens: int, overlap_tokens: int) -> None:
    document = make_document(*texts)
    chunks = cut(document, max_tokens, overlap_tokens)
    covered: set[int] = set()
    for chunk in chunks:
        text = document.text[chunk.start : chunk.end]
        assert text == text.strip() != ""
        assert count_tokens(text) <= max_tokens
        assert any(
            section.start <= chunk.start and chunk.end <= section.end and section.heading == chunk.heading
            for section in document.sections
        )
        covered.update(range(chunk.start, chunk.end))
    assert {index for index, sign in enumerate(document.text) if not sign.isspace()} <= covered
    assert all(one.start < two.start and one.end < two.end for one, two in itertools.pairwise(chunks))


@given(texts=st.lists(PIECES, max_size=120).map("".join), overlap_tokens=st.integers(0, 8))
def test_neighbours_share_no_more_than_the_overlap(texts: str, overlap_tokens: int) -> None:
    document = make_document(texts)
    chunks = cut(document, 20, overlap_tokens)
    for one, two in itertools.pairwise(chunks):
        if two.start < one.end:
            assert count_tokens(document.text[two.start : one.end]) <= overlap_tokens


def test_a_short_section_is_one_chunk() -> None:
    document = make_document("First paragraph.\n\n- one\n- two\n", "Second part.")
    assert slices(document, cut(document)) == ["First paragraph.\n\n- one\n- two", "Second part."]
    assert [(chunk.page, chunk.heading) for chunk in cut(document)] == [(1, "Part 0"), (2, "Part 1")]


def test_a_long_section_is_cut_between_paragraphs_first() -> None:
    paragraphs = ["one two six ten. " * 3, "two ten six one. " * 3, "six two one ten. " * 3]
    document = make_document("\n\n".join(paragraph.strip() for paragraph in paragraphs))
    assert slices(document, cut(document, 20, 8)) == [paragraph.strip() for paragraph in paragraphs]


def test_a_long_table_is_cut_between_rows() -> None:
    rows = [f"Name: a{number} | Price: {number}" for number in range(10, 20)]
    document = make_document("\n".join(rows))
    lines = [line for text in slices(document, cut(document, 20)) for line in text.split("\n")]
    assert lines == rows


def test_only_a_cut_paragraph_repeats_its_last_sentence() -> None:
    sentences = [f"Here is no {number}." for number in range(10, 30)]
    document = make_document(" ".join(sentences))
    texts = slices(document, cut(document, 20, 6))
    assert all(text.startswith("Here") and text.endswith(".") for text in texts)
    for one, two in itertools.pairwise(texts):
        assert two.startswith(re.findall(r"Here[^.]*\.", one)[-1])


def test_no_small_rest_is_left_over() -> None:
    document = make_document("\n".join(["four four four four"] * 11))
    sizes = [count_tokens(text) for text in slices(document, cut(document, 20))]
    assert sum(sizes) == 44
    assert min(sizes) >= 12


def test_a_word_longer_than_a_chunk_is_cut_too() -> None:
    document = make_document("x" * 400)
    assert "".join(slices(document, cut(document, 20))) == "x" * 400


def test_a_blank_document_has_no_chunks() -> None:
    assert cut(make_document("", " \n\n ")) == []
    assert cut(Document("", ())) == []


@pytest.mark.parametrize("mode", list(ChunkingMode))
def test_what_a_tokenizer_drops_whole_is_a_chunk_all_the_same(mode: ChunkingMode) -> None:
    document = make_document("\ufe0f", "Text.")  # all that is left of an emoji
    chunks = cut_document(document, ChunkingConfig(mode=mode), lambda text: [] if text == "\ufe0f" else [0])
    assert "".join(slices(document, chunks)).replace("\n", "") == "\ufe0fText."


def test_a_long_word_is_cut_where_a_token_starts() -> None:
    document = make_document("x" * 161)  # forty tokens of four letters and one of a single one
    chunks = cut(document, 16)
    assert all(chunk.start % 4 == 0 for chunk in chunks)
    assert all(count_tokens(text) <= 16 for text in slices(document, chunks))
    assert "".join(slices(document, chunks)) == document.text


STATIC = ChunkingConfig(800, 400, ChunkingMode.static)


@given(
    texts=st.lists(st.lists(PIECES, max_size=80).map("".join), max_size=4),
    max_tokens=st.integers(16, 60),
    overlap_share=st.floats(0, 0.5),
)
def test_windows_are_exact_and_of_one_length(texts: list[str], max_tokens: int, overlap_share: float) -> None:
    document = make_document(*texts)
    overlap = int(max_tokens * overlap_share)
    chunks = cut_document(document, ChunkingConfig(max_tokens, overlap, ChunkingMode.static), token_starts)
    starts = token_starts(document.text)
    covered: set[int] = set()
    lengths = [sum(chunk.start <= start < chunk.end for start in starts) for chunk in chunks]
    for chunk, length in zip(chunks, lengths, strict=True):
        text = document.text[chunk.start : chunk.end]
        assert text == text.strip() != ""
        assert length <= max_tokens
        section = next(section for section in document.sections if section.start <= chunk.start < section.end)
        assert (chunk.page, chunk.heading) == (section.page, section.heading)
        covered.update(range(chunk.start, chunk.end))
    assert {index for index, sign in enumerate(document.text) if not sign.isspace()} <= covered
    assert all(length >= max_tokens - max_tokens // 8 for length in lengths[:-1])
    for one, two in itertools.pairwise(chunks):
        assert one.start < two.start
        assert sum(two.start <= start < one.end for start in starts) <= overlap


def test_windows_have_the_sizes_that_openai_names() -> None:
    text = " ".join(f"{number:04d}" for number in range(2000))
    chunks = cut_document(make_document(text[:5000], text[5000:]), STATIC, token_starts)
    words = [slice_.split() for slice_ in slices(make_document(text), chunks)]
    assert [len(window) for window in words] == [800, 800, 800, 800]
    assert [window[0] for window in words] == ["0000", "0400", "0800", "1200"]
    assert {chunk.page for chunk in chunks} == {1, 2}


def test_windows_begin_and_end_with_whole_words_where_there_are_any() -> None:
    document = make_document("internationalisation " * 200)
    chunks = cut_document(document, ChunkingConfig(64, 32, ChunkingMode.static), token_starts)
    assert {word for slice_ in slices(document, chunks) for word in slice_.split()} == {"internationalisation"}
    long = make_document("x" * 4000)
    assert len(cut_document(long, ChunkingConfig(64, 32, ChunkingMode.static), token_starts)) > 20
