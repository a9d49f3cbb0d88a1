"""Forms cut anywhere read the same; what breaks the grammar is refused; names are only ever shown."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.boundary import InvalidRequest
from serve.forms import MAX_FIELD_BYTES, MAX_NAME_CHARS, MAX_PARTS, Form, FormReader, clean_name

ALLOWED = frozenset({"purpose", "note"})
KIND = "multipart/form-data; boundary=edge"


def write_part(head: str, content: bytes) -> bytes:
    return b"--edge\r\ncontent-disposition: form-data; " + head.encode() + b"\r\n\r\n" + content + b"\r\n"


def read(*pieces: bytes) -> tuple[Form, bytes]:
    """Return the form and the file's bytes."""
    reader = FormReader(KIND, ALLOWED)
    content = b"".join(reader.feed(piece) for piece in pieces)
    return reader.finish(), content


@given(st.binary(max_size=300), st.lists(st.integers(0, 600), max_size=12), st.booleans())
def test_a_body_reads_the_same_wherever_it_is_cut(content: bytes, cuts: list[int], is_file_first: bool) -> None:
    content = content.replace(b"\r\n--edge", b"")
    parts = [write_part('name="purpose"', b"batch"), write_part('name="file"; filename="a.txt"', content)]
    body = b"".join(reversed(parts) if is_file_first else parts) + b"--edge--\r\n"
    places = [0, *sorted({cut for cut in cuts if cut < len(body)}), len(body)]
    form, found = read(*(body[start:end] for start, end in itertools.pairwise(places)))
    assert found == content
    assert (form.file_name, form.fields) == ("a.txt", {"purpose": "batch"})


FILE = write_part('name="file"; filename="a"', b"x")


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (FILE, "ends before"),
        (b"--edge--\r\n", "no file|wanted a file|no multipart"),
        (FILE + FILE + b"--edge--", "found two"),
        (write_part('name="file"', b"x") + b"--edge--", "plain field"),
        (FILE + write_part('name="model"', b"x") + b"--edge--", "Unknown field 'model'"),
        (FILE + write_part('name="note"', b"x") * 2 + b"--edge--", "found it twice"),
        (FILE + write_part('name="note"', b"x" * (MAX_FIELD_BYTES + 1)) + b"--edge--", "at most 4096 bytes"),
        (FILE + write_part('name="note"', b"\xff") + b"--edge--", "wanted UTF-8"),
        (b"nonsense", "no multipart form"),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, found: str) -> None:
    with pytest.raises(InvalidRequest, match=found):
        read(body)


def test_more_parts_than_there_can_be_are_refused_early() -> None:
    reader = FormReader(KIND, frozenset(str(number) for number in range(MAX_PARTS + 1)))
    with pytest.raises(InvalidRequest, match="at most 16 parts"):
        reader.feed(b"".join(write_part(f'name="{number}"', b"x") for number in range(MAX_PARTS + 1)))


@pytest.mark.parametrize("kind", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=edge"])
def test_another_kind_of_body_is_refused(kind: str) -> None:
    with pytest.raises(InvalidRequest, match="multipart/form-data"):
        FormReader(kind, ALLOWED)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a.txt", "a.txt"), ("../../etc/passwd", "passwd"), ("/etc/passwd", "passwd"), ("C:\\x\\a.txt", "a.txt"),
        ("..", "file"), ("", "file"), ("a/", "a"), ("a\x00b\r\n.txt", "ab.txt"), ("\u202etxt.exe", "txt.exe"),
        ("días.pdf", "días.pdf"), ("x" * 4096 + ".pdf", "x" * (MAX_NAME_CHARS - 4) + ".pdf"),
    ],
)  # fmt: skip
def test_a_name_keeps_its_last_part_and_nothing_unseen(raw: str, shown: str) -> None:
    assert clean_name(raw) == shown


@given(st.text())
def test_any_name_becomes_one_that_is_no_path(raw: str) -> None:
    shown = clean_name(raw)
    assert 1 <= len(shown) <= MAX_NAME_CHARS
    assert not set("/\\\r\n\0") & set(shown)
    assert shown not in (".", "..")
