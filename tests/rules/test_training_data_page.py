"""docs/training-data.md shows every format, and each example is detected as what it stands under and is good."""

import json
import re

import pytest

from core.formats import DataFormat, choose_layout, normalize_row
from tests.rules.checkout import REPO

PAGE = (REPO / "docs" / "training-data.md").read_text(encoding="utf-8")
EXAMPLES = {
    heading: [json.loads(line) for line in body.splitlines()]
    for heading, body in re.findall(r"^### `(\w+)`\n(?:(?!^#).*\n)*?```json\n((?:.*\n)*?)```", PAGE, re.MULTILINE)
}


def test_every_format_has_examples_and_no_other() -> None:
    assert set(EXAMPLES) == {form.value for form in DataFormat if form is not DataFormat.auto}
    assert {len(rows) for rows in EXAMPLES.values()} == {2}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_what_it_stands_under(name: str) -> None:
    for row in EXAMPLES[name]:
        layout = choose_layout([(1, row, [])])
        assert layout.format.value == name
        assert normalize_row(1, row, layout)[1] == []
