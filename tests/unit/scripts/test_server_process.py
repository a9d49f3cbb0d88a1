"""Texts of any kind survive the way through a Hydra override."""

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

from core.config import CONF_DIR
from core.errors import ConfigError
from scripts.server_process import quote_override

TEXTS = (
    "plain",
    'a "quote"',
    "it's, {a: b} [c] = d",
    "two\nlines\\",
    '\\"',
    "ümlaut £ €",
    "a\\\\",
    "#no comment",
    "%{x} $x",
)


def read_back(text: str) -> str:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        override = f"+assistants.x={{model: {quote_override(text)}, stores: [{quote_override(text)}]}}"
        composed = compose("serve", overrides=[override])
    assert composed.assistants.x.stores[0] == composed.assistants.x.model
    return str(composed.assistants.x.model)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_through_as_it_is(text: str) -> None:
    assert read_back(text) == text


@given(st.text(alphabet="ab\"\\'{}[],:=\n £", max_size=12))
def test_any_text_is_quoted_so_that_the_parser_gives_it_back(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(f"x={quote_override(text)}")
    assert override.value() == text


def test_a_reference_is_refused() -> None:
    with pytest.raises(ConfigError, match="reference"):
        quote_override("costs ${price}")
