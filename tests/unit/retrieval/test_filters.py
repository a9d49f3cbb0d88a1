"""Filters are read strictly, and let through just the documents that a plain evaluation lets through."""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from core.errors import InputError
from retrieval import store
from retrieval.attributes import Value
from retrieval.database import open_database, read_transaction
from retrieval.filters import MAX_DEPTH, MAX_VALUES, parse_filter, select_chunks
from retrieval.store import NewChunk, NewDocument, Store
from retrieval.vectors import ChunkVectors, EmbedderIdentity, no_spans
from tests.fakes.attributes import set_attributes

EMBEDDER = EmbedderIdentity("hash", 1, "abc")
VECTORS = ChunkVectors(np.ones((1, 1), dtype=np.float32), no_spans(1))

KEYS = st.sampled_from(["team", "year", "is_public"])
TEXTS = st.sampled_from(["", "sales", "Sales", "support", "1", "true", "ärger", "zoo", "😀", "\uffee"])
NUMBERS = st.one_of(st.integers(-2, 2), st.sampled_from([0.5, 1.5, 2024, 2**53, -0.0, 1e300]))
ATTRIBUTES = st.dictionaries(KEYS, st.one_of(TEXTS, NUMBERS, st.booleans()), max_size=3)
COMPARISONS = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["eq", "ne"]), "key": KEYS, "value": st.one_of(TEXTS, NUMBERS, st.booleans())}
    ),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["gt", "gte", "lt", "lte"]), "key": KEYS, "value": st.one_of(TEXTS, NUMBERS)}
    ),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["in", "nin"]), "key": KEYS, "value": st.lists(st.one_of(TEXTS, NUMBERS), max_size=4)}
    ),
)
FILTERS = st.recursive(
    COMPARISONS,
    lambda parts: st.fixed_dictionaries(
        {"type": st.sampled_from(["and", "or"]), "filters": st.lists(parts, min_size=1, max_size=3)}
    ),
    max_leaves=8,
)


def kind_of(value: Value) -> str:
    return "bool" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


def evaluate(wanted: Mapping[str, Any], attributes: Mapping[str, Value]) -> bool:
    """The plain evaluation: what a filter means."""
    kind = wanted["type"]
    if kind in {"and", "or"}:
        results = [evaluate(part, attributes) for part in wanted["filters"]]
        return all(results) if kind == "and" else any(results)
    if kind in {"ne", "nin"}:
        return not evaluate({**wanted, "type": {"ne": "eq", "nin": "in"}[kind]}, attributes)
    if wanted["key"] not in attributes:
        return False
    found = attributes[wanted["key"]]
    if kind == "in":
        return any(kind_of(value) == kind_of(found) and value == found for value in wanted["value"])
    orders: dict[str, Callable[[Any, Any], bool]] = {
        "eq": operator.eq, "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le,
    }  # fmt: skip
    return kind_of(found) == kind_of(wanted["value"]) and orders[kind](found, wanted["value"])


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = open_database(tmp_path_factory.mktemp("filters") / "loam.db")
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def stores(engine: Engine) -> tuple[Store, Store]:
    """Two stores of five documents with two chunks each; one that could not be read is beside them."""
    made = store.make_store(engine, "acme", EMBEDDER), store.make_store(engine, "zoo", EMBEDDER)
    for one in made:
        for number in range(5):
            chunks = tuple(NewChunk(0, 1, None, None, f"{number}{part}", VECTORS) for part in range(2))
            store.commit_documents(engine, one, [NewDocument(f"{number}.md", "1", "1", 1, "x", chunks)])
        store.commit_failure(engine, one, NewDocument("bad.md", "1", "1", 1, "", ()), InputError("bad"))
    return made


@given(wanted=FILTERS, values=st.lists(ATTRIBUTES, min_size=5, max_size=5))
def test_a_filter_lets_through_what_a_plain_evaluation_does(
    engine: Engine, stores: tuple[Store, Store], wanted: dict[str, Any], values: list[dict[str, Value]]
) -> None:
    for one, other in (stores, stores[::-1]):
        for number, attributes in enumerate(values):
            set_attributes(engine, one, f"{number}.md", attributes)
            set_attributes(engine, other, f"{number}.md", {"team": "sales"})
        with read_transaction(engine) as connection:
            rows = connection.execute(
                text(
                    "SELECT d.name, c.id FROM documents d JOIN chunks c ON c.document_id = d.id WHERE d.store_id = :id"
                ),
                {"id": one.id},
            ).all()
        right = sorted(row.id for row in rows if evaluate(wanted, values[int(row.name[0])]))
        found = select_chunks(engine, one, parse_filter(wanted))
        assert found.dtype == np.int64
        assert found.tolist() == right


@pytest.mark.parametrize(
    ("wanted", "fault"),
    [
        (None, "filters: wanted an object, found NoneType"),
        ([], "filters: wanted an object, found an empty list"),
        ({}, "filters.type: wanted one of eq, ne, gt, gte, lt, lte, in, nin, and, or; found 'None'"),
        ({"type": ["eq"]}, "filters.type: wanted one of"),
        ({"type": "like", "key": "a", "value": "b"}, "found 'like'"),
        ({"type": "eq", "key": "a"}, "filters.value: wanted a value, found none"),
        (
            {"type": "eq", "key": "a", "value": None},
            "filters.value: wanted a string, number or boolean, found NoneType",
        ),
        ({"type": "eq", "key": "a", "value": ["b"]}, "filters.value: wanted a string, number or boolean, found list"),
        ({"type": "eq", "key": "a", "value": float("nan")}, "wanted a finite number, found nan"),
        ({"type": "eq", "key": "a", "value": 2**60}, "wanted -2**53 to 2**53"),
        ({"type": "eq", "key": "a", "value": "x" * 513}, "wanted at most 512 characters, found 513"),
        ({"type": "eq", "key": "a", "value": "\ud800"}, "half of a surrogate pair"),
        ({"type": "eq", "key": "", "value": 1}, "filters.key: wanted text of 1 to 64 characters, found ''"),
        ({"type": "eq", "key": "k" * 65, "value": 1}, "filters.key: wanted text of 1 to 64 characters"),
        (
            {"type": "gt", "key": "a", "value": True},
            "filters.value: wanted a string or number for 'gt', found a boolean",
        ),
        ({"type": "in", "key": "a", "value": "b"}, "filters.value: wanted a list for 'in', found str"),
        (
            {"type": "nin", "key": "a", "value": [1, True]},
            "filters.value[1]: wanted a string or number, found a boolean",
        ),
        ({"type": "eq", "key": "a", "value": 1, "filters": []}, "filters.filters: no such key here"),
        ({"type": "and", "filters": []}, "filters.filters: wanted a list of one or more filters, found an empty list"),
        ({"type": "in", "key": "a", "value": list(range(MAX_VALUES + 1))}, f"wanted at most {MAX_VALUES} values"),
    ],
)
def test_what_is_no_filter_is_refused(wanted: object, fault: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_filter(wanted)
    assert fault in caught.value.message
    assert caught.value.param == "filters"


def test_all_faults_are_told_at_once() -> None:
    parts = [{"type": "eq", "key": "", "value": None}, {"type": "or", "filters": [{"type": "x"}, 7]}]
    with pytest.raises(InputError) as caught:
        parse_filter({"type": "and", "filters": parts, "extra": 1})
    for place in (
        "filters.extra",
        "filters.filters[0].key",
        "filters.filters[0].value",
        "filters.filters[1].filters[0].type",
        "filters.filters[1].filters[1]: wanted an object, found int",
    ):
        assert place in caught.value.message


def test_filters_may_be_as_large_as_allowed_and_no_deeper(engine: Engine, stores: tuple[Store, Store]) -> None:
    wide = {"type": "or", "filters": [{"type": "eq", "key": "k", "value": number} for number in range(MAX_VALUES)]}
    assert select_chunks(engine, stores[0], parse_filter(wide)).tolist() == []
    deep: dict[str, Any] = {"type": "nin", "key": "none", "value": []}
    for _ in range(MAX_DEPTH - 1):
        deep = {"type": "and", "filters": [deep]}
    assert len(select_chunks(engine, stores[0], parse_filter(deep))) == 10
    for _ in range(100_000):
        deep = {"type": "and", "filters": [deep]}
    with pytest.raises(InputError, match="nested at most 16 deep"):
        parse_filter(deep)
