"""Windows of lists that are ordered by time and, within a second, by place: what a page shows, and how SQL finds it.

Does not know what is listed, nor where the ends of a window stand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from core.errors import NotFound

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of a list is wanted.

    Attributes:
        after: Id of the last one of the page before.
        before: Id of the first one of the page behind.
        limit: Most of the page.
        is_rising: Whether the oldest come first.
    """

    after: str | None
    before: str | None
    limit: int
    is_rising: bool

    @property
    def ends(self) -> dict[str, str]:
        """Return the ids that are given, by `after` and `before`."""
        return {name: end for name, end in (("after", self.after), ("before", self.before)) if end is not None}


@dataclass(frozen=True, slots=True)
class Bounds:
    """A window whose ends are found, for a query that reads along an index and no further than the page.

    Attributes:
        window: The window.
        places: Time and place of its ends, by `after` and `before`.
    """

    window: Window
    places: Mapping[str, tuple[int, int]]

    @property
    def is_backward(self) -> bool:
        """Whether what is nearest to `before` is wanted, so that it is read from there."""
        return self.places.keys() == {"before"}

    @property
    def values(self) -> dict[str, int]:
        """Return the query's parameters, with a limit of one more than the page."""
        values = {"limit": self.window.limit + 1}
        for name, (moment, place) in self.places.items():
            values |= {f"{name}_at": moment, f"{name}_place": place}
        return values

    def list_conditions(self, moment: str, place: str) -> list[str]:
        """Return what a row of the window fulfils, given the columns of its time and place."""
        later, earlier = (">", "<") if self.window.is_rising else ("<", ">")
        signs = {"after": later, "before": earlier}
        return [f"({moment}, {place}) {signs[name]} (:{name}_at, :{name}_place)" for name in self.places]

    def write_order(self, moment: str, place: str) -> str:
        """Return how the rows are read, given the columns of their time and place."""
        word = "ASC" if self.window.is_rising != self.is_backward else "DESC"
        return f"ORDER BY {moment} {word}, {place} {word} LIMIT :limit"

    def cut(self, rows: Sequence[Row]) -> tuple[list[Row], bool]:
        """Return the page of what was read, and whether more follow in the window's direction."""
        page = list(rows[: self.window.limit])
        return page[::-1] if self.is_backward else page, len(rows) > self.window.limit


def cut_window(ids: list[str], window: Window) -> tuple[list[str], bool]:
    """Return the part of an ordered list that a window shows, and whether more follow in the window's direction.

    Raises:
        NotFound: `after` or `before` is not in the list.
    """
    first, end = 0, len(ids)
    for name, wanted in window.ends.items():
        if wanted not in ids:
            raise NotFound(f"{name}: {wanted!r} is not in this list.", param=name)
    if window.after is not None:
        first = ids.index(window.after) + 1
    if window.before is not None:
        end = ids.index(window.before)
        if window.after is None:
            first = max(first, end - window.limit)
            return ids[first:end], first > 0
    return ids[first : min(end, first + window.limit)], first + window.limit < end
