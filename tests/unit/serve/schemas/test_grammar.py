"""Grammars: usual schemas are taken, those that explode are refused in a moment, with the reason."""

import json
from typing import Any

import pytest

from serve.schemas.grammar import check_grammar


def nest_arrays(*counts: int, keyword: str = "maxItems") -> dict[str, Any]:
    """Return arrays of arrays of numbers, with their counts from the outermost on."""
    schema: dict[str, Any] = {"type": "integer"}
    for count in reversed(counts):
        schema = {"type": "array", keyword: count, "items": schema}
    return schema


LINKED_LIST = {
    "type": "object",
    "properties": {"head": {"$ref": "#/$defs/node"}},
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "number"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
        }
    },
}
USUAL: list[dict[str, Any]] = [
    {},
    {"type": "object", "properties": {"a": {"type": "string", "maxLength": 5000}}, "required": ["a"]},
    {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 100},
    {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}(T\d+)?$"},
    {"type": "string", "pattern": r"^(\+\d{1,3} )?[\w.]+@[\w.]+$"},
    {"type": "string", "pattern": "(a)" * 100},
    {"type": "string", "pattern": r"^([a-z0-9-]{1,63}\.){1,8}[a-z]{2,63}$"},
    {"type": "string", "pattern": r"^([01]?\d{1,2}\.){3}\d{1,3}$"},
    nest_arrays(300, 300),
    nest_arrays(1000, 10),
    {"type": "object", "properties": {f"p{number}": nest_arrays(100) for number in range(500)}},
    {"type": "array", "maxItems": 10_000, "items": {"$ref": "#"}},
    {"type": "object", "properties": {"pattern": {"type": "string"}, "maxItems": {"type": "integer"}}},
    {"type": "object", "properties": {"$ref": {"type": "string"}}},
    {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}},
    LINKED_LIST,
]


def nest(keyword: str, depth: int) -> dict[str, Any]:
    """Return a schema of so many levels."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {keyword: [schema]} if keyword.endswith("Of") else {keyword: schema}
    return schema


HOSTILE: list[tuple[str, dict[str, Any]]] = [
    *(
        (f"wanted a schema of at most 64 levels ({keyword})", nest(keyword, 400))
        for keyword in ("oneOf", "items", "not")
    ),
    ("wanted a schema of at most 5000 values", {"enum": list(range(6000))}),
    ("leads back to itself", {"$ref": "#"}),
    ("leads back to itself", {"anyOf": [{"type": "string"}, {"$ref": "#"}]}),
    ("leads back to itself", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
    ("leads back to itself", {"if": {"not": {"$ref": "#/if"}}}),
    ("found nothing", {"$ref": "#/$defs/missing"}),
    ("found 'http", {"$ref": "http://169.254.169.254/"}),
    ("found 'file", {"items": {"$ref": "file:///etc/passwd"}}),
    ("endless repetition within another", {"pattern": "(a+)+$"}),
    ("endless repetition within another", {"pattern": "((a|b*)c)*"}),
    ("endless repetition within another", {"patternProperties": {"^(x*)*$": {}}}),
    ("wanted a regular expression", {"pattern": "foo**"}),
    ("wanted a regular expression", {"pattern": "("}),
    ("at most 64 groups within one another", {"pattern": "(" * 500 + ")" * 5}),
    ("counted repetitions", {"pattern": "(a{100}){100}"}),
    ("counted repetitions", {"pattern": "a{0,100000}"}),
    ("at most 512 characters", {"pattern": "a" * 600}),
    ("maxItems", {"type": "array", "maxItems": 2**31}),
    ("at most 100,000 values, found 1,001,001", nest_arrays(1000, 1000)),
    ("at most 100,000 values", nest_arrays(1000, 1000, keyword="minItems")),
    ("at most 100,000 values", nest_arrays(50, 50, 50)),
    ("at most 100,000 values", nest_arrays(*[10_000] * 20)),
    ("at most 100,000 values", {"type": "object", "properties": {f"p{n}": nest_arrays(1000) for n in range(200)}}),
    ("at most 100,000 values", {"anyOf": [{"type": "null"}, nest_arrays(1000, 1000)]}),
    ("at most 100,000 values", {"type": "object", "maxProperties": 1000, "additionalProperties": nest_arrays(1000)}),
    (
        "at most 100,000 values",
        {
            "type": "array",
            "maxItems": 1000,
            "items": {"$ref": "#/$defs/a"},
            "$defs": {"a": nest_arrays(1000)},
        },
    ),
    ("at most 100,000 values", {"prefixItems": [{}, nest_arrays(1000, 1000)]}),
    ("ranges stand in ranges", {"pattern": "([a-z]{1,20}[0-9]?){1,20}"}),
    ("ranges stand in ranges", {"pattern": "(([a-z]{1,20}|b)[0-9]?){1,20}"}),
    ("minLength", {"type": "string", "minLength": 10**300}),
    ("maxProperties", {"type": "object", "maxProperties": -1}),
]


@pytest.mark.parametrize("schema", USUAL, ids=lambda schema: json.dumps(schema)[:50])
def test_a_usual_schema_is_taken(schema: dict[str, Any]) -> None:
    assert check_grammar(schema) is schema


@pytest.mark.parametrize(("message", "schema"), HOSTILE, ids=lambda value: str(value)[:50])
@pytest.mark.timeout(30)  # what looks at every way through them takes hours
def test_a_hostile_one_is_refused_in_a_moment(message: str, schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message.partition(" (")[0]):
        check_grammar(schema)
