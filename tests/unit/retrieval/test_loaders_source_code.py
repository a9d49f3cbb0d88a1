"""Source code: a class or function is a section under the file's name, and no character is lost."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.document import Document
from retrieval.loaders.outline import Outline
from retrieval.loaders.source_code import load_source

PYTHON = '''"""Pumps."""
import os

SIZE = 3


@dataclass
class Pump:
    """A pump."""

    @property
    def size(self):
\t\treturn SIZE

    def stop(self): pass

    limit = 4


async def start():
    """def not_me(): is text."""
    def inner():
        return 1
    return inner


if os.name:
    def only_here(): ...
LAST = 1
'''
GO = """package main

// Store keeps.
type Store struct {
	name string
}

// Find finds.
func (s *Store) Find(id int) (string, error) {
	return s.name, nil
}

var x = 3
"""
TYPESCRIPT = """import { x } from "y";

/** Docs. */
export default class Pump<T> extends Base {
  size = 3;

  /** Stops. */
  static async function stop() {
    return 1;
  }
}

const after = 1;
"""
RUBY = """module Acme
  class Pump
    # Starts it.
    def start
      run
    end
  end
end
"""


def read(text: str, name: str) -> Document:
    outline = Outline()
    load_source(text, outline, name=name)
    return outline.build()


def list_sections(document: Document) -> list[tuple[str | None, str]]:
    return [(part.heading, document.text[part.start : part.end]) for part in document.sections]


def test_python_is_cut_by_its_own_parser() -> None:
    sections = list_sections(read(PYTHON, "pump.py"))
    assert [heading for heading, _ in sections] == [
        "pump.py",
        "pump.py > Pump",
        "pump.py > Pump > size",
        "pump.py > Pump > stop",
        "pump.py > Pump",
        "pump.py > start",
        "pump.py",
        "pump.py > only_here",
        "pump.py",
    ]
    assert sections[1][1].startswith("@dataclass\nclass Pump:")
    assert sections[2][1] == "    @property\n    def size(self):\n        return SIZE"
    assert sections[4][1] == "    limit = 4"
    assert sections[5][1].endswith("    return inner")


@pytest.mark.parametrize(
    ("text", "name", "headings"),
    [
        (GO, "store.go", ["store.go", "store.go > Store", "store.go > Find", "store.go"]),
        (
            TYPESCRIPT,
            "pump.ts",
            ["pump.ts", "pump.ts > Pump<T>", "pump.ts > Pump<T> > stop", "pump.ts > Pump<T>", "pump.ts"],
        ),
        (RUBY, "a.rb", ["a.rb > Acme", "a.rb > Acme > Pump", "a.rb > Acme > Pump > start", "a.rb > Acme > Pump"]),
        ("class = 3\nkey: value\n", "conf.yaml", ["conf.yaml"]),
        ("def broken(:\n    pass\n\nx = 1\n", "broken.py", ["broken.py > broken", "broken.py"]),
    ],
)
def test_other_languages_are_cut_by_keyword_and_indent(text: str, name: str, headings: list[str]) -> None:
    found = [heading for heading, _ in list_sections(read(text, name))]
    assert [heading for heading in found if heading][: len(headings)] == headings


def test_comments_right_above_belong_to_what_they_say() -> None:
    sections = dict(list_sections(read(GO, "store.go")))
    assert sections["store.go > Find"].startswith("// Find finds.\nfunc")
    assert sections["store.go > Find"].endswith("}")


def test_every_file_of_the_standard_library_keeps_every_word() -> None:
    folder = Path(next(place for place in sys.path if place.endswith(f"python3.{sys.version_info.minor}")))
    files = sorted(folder.glob("*.py"))[:40]
    assert len(files) == 40
    for path in files:
        text = path.read_text(encoding="utf-8")
        for name in (path.name, f"{path.stem}.rb"):
            assert read(text, name).text.split() == text.replace("\f", " ").split(), path


LINES = st.sampled_from(
    ["def f():", "class A {", "}", "end", "  def g", "    x = 1", "", "// note", "@mark", "\tfunc h()"]
)


@given(st.lists(LINES, min_size=1, max_size=40), st.sampled_from(["a.py", "a.go", "a.rb", "a.txt", "a.ts"]))
def test_no_line_is_lost_or_moved(lines: list[str], name: str) -> None:
    text = "x = 0\n" + "\n".join(lines)
    document = read(text, name)
    assert document.text.split() == text.split()
    assert all((part.heading or "").startswith(name) for part in document.sections)


@pytest.mark.parametrize(
    "text", ["(" * 5000, "x = " + "-" * 50_000 + "1", "a\0b", "class A:\n" * 3000, "def f(" * 20_000]
)
def test_hostile_programs_are_only_text(text: str) -> None:
    assert read(f"{text}\nword", "a.py").text.endswith("word")
