"""Pages of a list show everything once and nothing twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import NotFound
from serve.windows import Window, cut_window

IDS = st.lists(st.text("abc", min_size=1, max_size=4), unique=True, max_size=20)


@given(IDS, st.integers(1, 7))
def test_paging_forward_shows_each_once(ids: list[str], limit: int) -> None:
    seen: list[str] = []
    after, has_more = None, True
    while has_more:
        page, has_more = cut_window(ids, Window(after, None, limit, True))
        assert len(page) <= limit
        seen += page
        after = page[-1] if page else None
    assert seen == ids


@given(IDS.filter(bool), st.integers(1, 7))
def test_paging_backward_shows_each_once(ids: list[str], limit: int) -> None:
    before, has_more = ids[-1], True
    seen = [before]
    while has_more:
        page, has_more = cut_window(ids, Window(None, before, limit, True))
        seen = page + seen
        before = page[0] if page else before
    assert seen == ids


def test_both_ends_together_and_an_unknown_one() -> None:
    assert cut_window(list("abcde"), Window("a", "e", 2, True)) == (["b", "c"], True)
    assert cut_window(list("abcde"), Window("a", "d", 2, True)) == (["b", "c"], False)
    for window in (Window("x", None, 2, True), Window(None, "x", 2, True)):
        with pytest.raises(NotFound, match="'x' is not in this list"):
            cut_window(list("abc"), window)
