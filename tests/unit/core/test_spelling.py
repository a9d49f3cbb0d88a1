"""core.spelling: one line of visible text, and no two names alike."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.spelling import dump_line, reveal, spell, write_line

ODD_TEXT = st.text(
    st.one_of(st.characters(), st.sampled_from("\\xuU\n\r\x1b\x85\u2028\u202e\ud800\udce9\ufeff\U000e0041"))
)


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("handbook/leave policy (2026).md", "handbook/leave policy (2026).md"),
        ("Übersicht 漢字 👩‍🚀.pdf", "Übersicht 漢字 👩‍🚀.pdf"),
        ("a\r\nX-Evil: 1.md", "a\\x0d\\x0aX-Evil: 1.md"),
        ("\x1b[2J\x07\x7f.md", "\\x1b[2J\\x07\\x7f.md"),
        ("invoice\u202egpj.exe", "invoice\\u202egpj.exe"),
        ("a\u2028b\x85c", "a\\u2028b\\u0085c"),
        ("caf\udce9.md", "caf\\xe9.md"),
        ("half\ud800", "half\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("C:\\docs\\x.md", "C:\\docs\\x5cx.md"),
    ],
)
def test_what_cannot_be_seen_is_spelled(name: str, spelled: str) -> None:
    assert spell(name) == spelled


@given(ODD_TEXT)
def test_what_is_spelled_is_one_line_that_can_be_stored(name: str) -> None:
    spelled = spell(name)
    spelled.encode()
    assert len(spelled.splitlines()) <= 1
    assert not any(ord(sign) < 32 for sign in spelled)


@given(ODD_TEXT, ODD_TEXT)
def test_no_two_names_come_out_alike(one: str, other: str) -> None:
    assert (spell(one) == spell(other)) == (one == other)


def test_the_bytes_of_two_names_stay_apart() -> None:
    names = ["a\udce9", "a\\xe9", "a\\x5cxe9", "a\\\\xe9", "a\u00e9", "a\x85", "a\udc85"]
    assert len({spell(name) for name in names}) == len(names)


@given(ODD_TEXT)
def test_what_is_spelled_stays_when_it_is_revealed(name: str) -> None:
    assert reveal(spell(name)) == spell(name)


def test_a_long_message_keeps_its_ends() -> None:
    line = write_line("The part\n" + "x" * 10_000 + "\x1b is damaged.", 200)
    assert len(line) <= 200
    assert line.startswith("The part xxx")
    assert line.endswith("\\x1b is damaged.")


@given(st.dictionaries(ODD_TEXT, ODD_TEXT))
def test_a_line_of_json_is_one_line_and_says_the_same(value: dict[str, str]) -> None:
    line = dump_line(value)
    line.encode()
    assert len(line.splitlines()) == 1
    assert json.loads(line) == json.loads(json.dumps(value))


def test_ordinary_letters_stay_readable() -> None:
    assert dump_line({"file": "Übersicht 漢字.md"}) == '{"file": "Übersicht 漢字.md"}'
