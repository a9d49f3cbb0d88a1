"""scripts.write_configuration_docs: what a dataclass, a YAML file and a default look like on the page."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from omegaconf import MISSING

from scripts.write_configuration_docs import describe_type, describe_value, list_keys, read_meanings, read_yaml_comments


class Colour(Enum):
    red = "red"
    blue = "blue"


@dataclass
class Leaf:
    """A leaf.

    Attributes:
        size: How large, in MiB;
            on two lines.
        name: Its name.
    """

    size: int = 3
    name: str = MISSING


@dataclass
class Root:
    leaf: Leaf = field(default_factory=Leaf)
    maybe: Leaf | None = None
    leaves: dict[str, Leaf] = field(default_factory=dict)


def test_every_level_has_its_keys_and_composed_values_win() -> None:
    keys = {key.name: key.default for key in list_keys(Root, {"leaf": {"size": 5}})}
    assert keys == {
        "leaf.size": "`5`",
        "leaf.name": "required",
        "maybe": "`null`",
        "maybe.size": "`3`",
        "maybe.name": "required",
        "leaves": "`{}`",
        "leaves.NAME.size": "`3`",
        "leaves.NAME.name": "required",
    }


def test_meanings_come_from_the_attributes_section_with_all_their_lines() -> None:
    assert read_meanings(Leaf) == {"size": "How large, in MiB; on two lines.", "name": "Its name."}


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (int | None, "whole number, null"),
        (list[str], "list of text"),
        (Colour, "`red`, `blue`"),
        (dict[str, Any], "mapping"),
        (bool, "true or false"),
    ],
)
def test_types_in_words(hint: Any, expected: str) -> None:
    assert describe_type(hint) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "`null`"), (0.05, "`0.05`"), (Colour.red, "`red`"), (["a", "b"], "`[a, b]`"), ("", "`''`"), ({}, "`{}`")],
)
def test_defaults_as_yaml(value: Any, expected: str) -> None:
    assert describe_value(value) == expected


def test_yaml_comments_by_key(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("# heading\nfirst: 1   # one\nouter:     # all\n  inner: '#'\n  last: 2  # two\n")
    assert read_yaml_comments(path) == {"first": "one", "outer": "all", "outer.last": "two"}
