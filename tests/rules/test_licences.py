"""Every locked package stands in docs/licences.md with a licence that fits, and the rule refuses what does not."""

import pytest

from scripts.licences import PAGE, Row, collect_rows, read_locks, read_page


def test_the_page_has_every_locked_package_and_no_other() -> None:
    page = read_page()
    assert page.keys() == read_locks().keys(), "docs/licences.md is behind the locks: run make licences"
    assert "NOT JUDGED" not in PAGE.read_text()


def test_every_licence_is_known_and_fits() -> None:
    assert [row.name for row in collect_rows(is_online=False) if not row.judgement] == []


@pytest.mark.parametrize(
    "licence", ["GPL-3.0-only", "AGPL-3.0-or-later", "GNU General Public License v3", "unknown", "Proprietary"]
)
def test_the_rule_refuses(licence: str) -> None:
    assert Row("some-package", licence, ("cpu",)).judgement == ""


@pytest.mark.parametrize(
    "licence",
    ["MIT", "BSD-3-Clause", "Apache-2.0 WITH LLVM-exception", "LGPL-2.1-or-later", "MPL-2.0", "MIT OR GPL-2.0"],
)
def test_the_rule_accepts(licence: str) -> None:
    assert Row("some-package", licence, ("cpu",)).judgement
