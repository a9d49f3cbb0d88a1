"""Code in a text: blocks as CommonMark fences them, held against markdown-it, whole and in pieces."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from serve.fenced_code import CodeSplitter, Stretch
from tests.fakes.pieces import cut

FENCES_ALONE = MarkdownIt("zero").enable(["fence", "code"])
COMMONMARK = MarkdownIt("zero").enable(["fence", "code", "list", "blockquote"])

indents = st.sampled_from(["", "", "", " ", "   ", "    ", "\t"])
runs = st.sampled_from(["```", "```", "~~~", "````", "~~~~", "`", "``", "~~"])
ends = st.sampled_from(["", "", "py", " sh x", "  ", "a`b", "```", "~~~", " a~"])
lines = st.one_of(
    st.tuples(indents, runs, ends).map("".join),
    st.sampled_from(["", "run(values[0])", 'text = "```"', "say ```so``` here", "    deep", "~", "`"]),
)
texts = st.tuples(st.lists(lines, max_size=9).map("\n".join), st.sampled_from(["", "\n"])).map("".join)
free_texts = st.text(alphabet="a1 \n\t\r`~>-.[", max_size=60)
cuts = st.lists(st.integers(0, 9), max_size=20)


def split(pieces: list[str]) -> list[Stretch]:
    splitter = CodeSplitter()
    return join([stretch for piece in pieces for stretch in splitter.feed(piece)] + splitter.finish())


def join(stretches: list[Stretch]) -> list[Stretch]:
    """Return stretches with neighbours of one kind made one."""
    joined: list[Stretch] = []
    for one in stretches:
        if joined and joined[-1].kind == one.kind:
            joined[-1] = Stretch(joined[-1].text + one.text, one.kind)
        elif one.text:
            joined.append(one)
    return joined


def find_block_lines(text: str) -> set[int]:
    """Return the numbers of the lines that we hold for code in blocks."""
    found, number = set(), 0
    for stretch in split([text]):
        count = stretch.text.count("\n") + (not stretch.text.endswith("\n"))
        if stretch.kind == "block":
            found |= set(range(number, number + count))
        number += stretch.text.count("\n")
    return found


def find_fenced_lines(text: str, parser: MarkdownIt) -> set[int]:
    """Return the numbers of the lines that markdown-it holds for code in fences; it counts the last line's end, too."""
    tokens = [token for token in parser.parse(text) if token.type == "fence"]
    return {line for token in tokens for line in range(*(token.map or [0, 0])) if line < count_lines(text)}


def count_lines(text: str) -> int:
    return text.count("\n") + (not text.endswith("\n"))


@given(texts)
@example("```\n```\n")
@example("``` a`b\nx\n```")
def test_blocks_are_those_of_commonmark(text: str) -> None:
    assert find_block_lines(text) == find_fenced_lines(text, FENCES_ALONE)


@pytest.mark.parametrize(
    "text",
    [
        "1. Run\n   ```sh\n   a\n   ```\nEnd",
        "10. Run\n\n    ```sh\n    a\n    ```\n\n    more\n",
        "- a\n  - b\n    ```\n        ```\n    ```\n  text\n",
        "- a\n  - b\n- c\n      ```\n",
        "- ```py\n  a\n  ```\n- b",
        "1.\n   ~~~\n   a\n   ~~~\nb",
        "> ```\n> a\n> ```\n> b",
        "> - a\n>   ```\n>   a\n>   ```\n> b",
        "```\n> ```\nb\n```\nc",
        "a ```\nb\n```",
        "```a\r\nb\r\n```\r\nc",
    ],
)
def test_blocks_in_lists_and_quotations_are_those_of_commonmark(text: str) -> None:
    assert find_block_lines(text) == find_fenced_lines(text, COMMONMARK)


def test_code_that_lost_its_lists_indentation_stays_in_its_block() -> None:
    assert [one.kind for one in split(["1. Run\n   ```\na\n```\nEnd"])] == ["text", "block", "text"]


@given(texts | free_texts, cuts)
@example("- ```a``` b", [8])
def test_code_is_the_same_however_the_text_is_cut(text: str, sizes: list[int]) -> None:
    whole = split([text])
    assert "".join(one.text for one in whole) == text
    assert split(cut(text, sizes)) == whole
    assert split(list(text)) == whole


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("a `b` c", ["text", "span", "text"]),
        ("a ```b``` c", ["text", "span", "text"]),
        ("```b``` c", ["span", "text"]),
        ("a ``b ` c`` d", ["text", "span", "text"]),
        ("a ` b\nc", ["text", "span", "text"]),
        ("a\n```\nb", ["text", "block"]),
        ("a\n```", ["text", "block"]),
    ],
)
def test_spans_end_with_their_backticks_or_their_line(text: str, kinds: list[str]) -> None:
    assert [one.kind for one in split([text])] == kinds


def test_code_flows_while_a_block_is_written() -> None:
    splitter = CodeSplitter()
    assert splitter.feed("```py") == []
    assert splitter.feed("\nrun(") == [Stretch("```py\n", "block"), Stretch("run(", "block")]
    assert splitter.feed("1)\n  ") == [Stretch("1)\n", "block")]
    assert splitter.feed("x") == [Stretch("  x", "block")]
