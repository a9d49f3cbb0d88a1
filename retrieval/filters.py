"""Filters over documents' attributes, in OpenAI's shape: from JSON to a tree, and from there to SQL.

    {"type": "eq|ne|gt|gte|lt|lte", "key": "year", "value": 2024}
    {"type": "in|nin", "key": "team", "value": ["sales", "support"]}
    {"type": "and|or", "filters": [ … ]}

Strings, numbers and booleans are never equal to each other, nor above or below. A document without the key fulfils `ne`
and `nin`, and nothing else: they are the opposites of `eq` and `in`. Text is ordered by code point. Does not know where
attributes come from or how a search is done.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, text

from core.errors import InputError
from retrieval.attributes import MAX_KEY_CHARS, Value, find_fault, split_value
from retrieval.database import read_transaction
from retrieval.store import Store

MAX_DEPTH = 16
MAX_VALUES = 500
"""Most values that a whole filter may compare with, an empty list counted as one."""


class Operator(Enum):
    """How an attribute is compared."""

    eq = "eq"
    ne = "ne"
    gt = "gt"
    gte = "gte"
    lt = "lt"
    lte = "lte"
    is_in = "in"
    nin = "nin"


class Junction(Enum):
    """How filters are joined."""

    all_of = "and"
    any_of = "or"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One attribute compared.

    Attributes:
        operator: How.
        key: The attribute's.
        values: One, or for `in` and `nin` any number.
    """

    operator: Operator
    key: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Compound:
    """Filters joined by and, or."""

    junction: Junction
    filters: tuple["Filter", ...]


Filter = Comparison | Compound

_ORDERS = {Operator.gt: ">", Operator.gte: ">=", Operator.lt: "<", Operator.lte: "<="}
_OPPOSITES = {Operator.ne: Operator.eq, Operator.nin: Operator.is_in}


def parse_filter(value: object) -> Filter:
    """Return the filter that a JSON value describes.

    Raises:
        InputError: It describes none; every fault is named with its place.
    """
    faults: list[str] = []
    parsed = _parse(value, "filters", 1, faults)
    if not faults and parsed is not None and _count_values(parsed) > MAX_VALUES:
        faults.append(f"filters: wanted at most {MAX_VALUES} values in all, found more")
    if faults or parsed is None:
        raise InputError(f"{'; '.join(faults)}.", param="filters")
    return parsed


def _count_values(parsed: Filter) -> int:
    if isinstance(parsed, Comparison):
        return max(1, len(parsed.values))
    return sum(_count_values(part) for part in parsed.filters)


def _parse(value: object, place: str, depth: int, faults: list[str]) -> Filter | None:
    if not isinstance(value, Mapping):
        faults.append(f"{place}: wanted an object, found {_name_kind(value)}")
        return None
    kind = value.get("type")
    junctions, operators = {item.value: item for item in Junction}, {item.value: item for item in Operator}
    if not isinstance(kind, str) or kind not in {**junctions, **operators}:
        faults.append(f"{place}.type: wanted one of {', '.join([*operators, *junctions])}; found {str(kind)[:40]!r}")
        return None
    keys = {"type", "filters"} if kind in junctions else {"type", "key", "value"}
    faults += [f"{place}.{str(key)[:40]}: no such key here" for key in value if key not in keys]
    faults += [f"{place}.{key}: wanted a value, found none" for key in sorted(keys - value.keys())]
    if not keys <= value.keys():
        return None
    if kind in junctions:
        return _parse_compound(value["filters"], junctions[kind], place, depth, faults)
    return _parse_comparison(value, operators[kind], place, faults)


def _parse_compound(parts: object, junction: Junction, place: str, depth: int, faults: list[str]) -> Filter | None:
    if not isinstance(parts, list) or not parts:
        faults.append(f"{place}.filters: wanted a list of one or more filters, found {_name_kind(parts)}")
        return None
    if depth >= MAX_DEPTH:
        faults.append(f"{place}.filters: wanted filters nested at most {MAX_DEPTH} deep, found more")
        return None
    parsed = [_parse(part, f"{place}.filters[{number}]", depth + 1, faults) for number, part in enumerate(parts)]
    return Compound(junction, tuple(part for part in parsed if part is not None))


def _parse_comparison(value: Mapping[Any, Any], operator: Operator, place: str, faults: list[str]) -> Comparison | None:
    found = len(faults)
    key, wanted = value["key"], value["value"]
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_CHARS or find_fault(key) is not None:
        faults.append(f"{place}.key: wanted text of 1 to {MAX_KEY_CHARS} characters, found {str(key)[:80]!r}")
    if operator in {Operator.is_in, Operator.nin}:
        values = wanted if isinstance(wanted, list) else []
        if not isinstance(wanted, list):
            faults.append(f"{place}.value: wanted a list for {operator.value!r}, found {_name_kind(wanted)}")
        for number, item in enumerate(values):
            fault = "wanted a string or number, found a boolean" if isinstance(item, bool) else find_fault(item)
            if fault:
                faults.append(f"{place}.value[{number}]: {fault}")
    else:
        values = [wanted]
        fault = find_fault(wanted)
        if operator in _ORDERS and isinstance(wanted, bool):
            fault = f"wanted a string or number for {operator.value!r}, found a boolean"
        if fault:
            faults.append(f"{place}.value: {fault}")
    return Comparison(operator, key, tuple(values)) if len(faults) == found else None


def _name_kind(value: object) -> str:
    return "an empty list" if value == [] else type(value).__name__


def select_chunks(engine: Engine, store: Store, wanted: Filter) -> NDArray[np.int64]:
    """Return the numbers of the chunks whose documents a filter lets through, (chunks,) int64, rising."""
    parameters: dict[str, Any] = {"store_id": store.id}
    condition = _write_sql(wanted, parameters)
    query = text(
        "SELECT c.id FROM documents d JOIN chunks c ON c.document_id = d.id "  # noqa: S608  (names and marks only)
        f"WHERE d.store_id = :store_id AND d.status = 'completed' AND {condition}"
    )
    with read_transaction(engine) as connection:
        numbers = np.fromiter(connection.execute(query, parameters).scalars(), dtype=np.int64)
    numbers.sort()
    return numbers


def _write_sql(wanted: Filter, parameters: dict[str, Any]) -> str:
    """Return a condition on `d`, and add its values to the parameters."""
    if isinstance(wanted, Compound):
        word = " AND " if wanted.junction is Junction.all_of else " OR "
        return f"({word.join(_write_sql(part, parameters) for part in wanted.filters)})"
    if wanted.operator in _OPPOSITES:
        opposite = Comparison(_OPPOSITES[wanted.operator], wanted.key, wanted.values)
        return f"NOT {_write_sql(opposite, parameters)}"
    key = _add_parameter(wanted.key, parameters)
    marks: dict[str, list[str]] = defaultdict(list)
    for value in wanted.values:
        kind, words, number = split_value(value)
        marks[kind].append(_add_parameter(words if kind == "text" else number, parameters))
    if not marks:
        return "(1 = 0)"
    sign = _ORDERS.get(wanted.operator)
    tests = []
    for kind, names in marks.items():
        column = "text" if kind == "text" else "number"
        compared = f"{sign} {names[0]}" if sign else f"IN ({', '.join(names)})"
        tests.append(f"(a.kind = '{kind}' AND a.{column} {compared})")
    return (
        f"(d.id IN (SELECT a.document_id FROM attributes a WHERE a.store_id = :store_id AND a.key = {key} "  # noqa: S608
        f"AND ({' OR '.join(tests)})))"
    )


def _add_parameter(value: object, parameters: dict[str, Any]) -> str:
    name = f"value_{len(parameters)}"
    parameters[name] = value
    return f":{name}"
