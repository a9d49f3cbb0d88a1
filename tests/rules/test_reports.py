"""Committed reports stand alone: every number that is a link leads to a row of the same page, and nothing is loaded."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.rules.checkout import REPO

REPORTS = sorted((REPO / "docs" / "reports").glob("*/report.html"))


class Anchors(HTMLParser):
    """Collects what a page names, links to and loads."""

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag's id, where it leads and what it loads."""
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            elif name in {"href", "xlink:href"}:
                self.links.append(str(value))
            elif name in {"src", "srcset", "data", "action", "poster"}:
                self.loaded.append(str(value))


def read_page(path: Path) -> Anchors:
    reader = Anchors()
    reader.feed(path.read_text())
    return reader


def test_there_is_a_report() -> None:
    assert REPORTS


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_every_link_of_a_report_leads_to_a_row_of_it(path: Path) -> None:
    page = read_page(path)
    assert len(page.links) > 20
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert page.loaded == []
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_a_report_has_its_figures_as_json_and_names_no_folder_of_a_machine(path: Path) -> None:
    values = json.loads(path.with_name("report.json").read_text())
    assert values["format"] == "loam-verdict-1"
    assert values["verdict"]["outcome"] in {"decided", "undecided", "none"}
    assert not re.search(r"(^|[\s\"'>=])/(tmp|home|var|usr)/", path.read_text())
