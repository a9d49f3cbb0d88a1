"""JSON schemas that vLLM makes grammars of: which are taken.

A grammar is compiled inside vLLM's engine, where one that explodes holds up everybody. What is refused here cannot
be compiled in bounded time, or says nothing: schemas that are too deep or too large, references that lead elsewhere
or in a circle without consuming anything, patterns that repeat a repetition, and counts that no answer reaches. Does
not know what the schema is for, nor compiles it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from re import _constants, _parser  # type: ignore[attr-defined, unused-ignore]  # seen or not by what else is checked
from typing import Any

MAX_DEPTH = 64
MAX_NODES = 5_000
MAX_PATTERN_CHARS = 512
MAX_GROUPS = 64
"""Of a pattern, within one another: the parser needs a moment for each, and a person needs none of so many."""
MAX_REPEATS = 1_000
"""Of a pattern's counted repetitions, multiplied where one stands in another."""
MAX_LOOSE_RANGES = 100
"""The same, of repetitions that vary within one that varies, where no letter marks an end, as in
`([a-z]{1,10}[0-9]?){1,10}`: xgrammar has to keep every way to share out what was read, and takes seconds for more."""
MAX_COUNT = 10_000
MAX_VALUES = 100_000
"""In an answer: each array's largest count times what stands in it, added up. No context holds so many."""
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
NAMED_GROUP = re.compile(r"\(\?<(?![=!])")
UNICODE_CLASS = re.compile(r"\\[pP]\{[^}]*\}")
"""Of JavaScript's expressions, which JSON schemas are written in; Python writes them otherwise."""
HOLDING = {"items", "prefixItems", "properties", "patternProperties", "additionalProperties"}
"""Keywords whose schemas hold for what a value holds."""
SAME_PLACE = {"allOf", "anyOf", "oneOf", "not", "if", "then", "else"}
"""Keywords whose schemas hold for the very value that theirs holds for."""


def check_grammar(schema: dict[str, Any]) -> dict[str, Any]:
    """Bound a JSON schema.

    Raises:
        ValueError: What is wrong with it, in one sentence.
    """
    for node in walk(schema):
        check_node(node)
    check_references(schema)
    check_values(schema)
    return schema


def walk(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every object within a schema, itself first.

    Raises:
        ValueError: It is too deep or too large.
    """
    waiting, nodes = [(schema, 1)], 1
    while waiting:
        value, depth = waiting.pop()
        nodes += len(value)
        if nodes > MAX_NODES:
            raise ValueError(f"wanted a schema of at most {MAX_NODES} values, found more")
        if depth >= MAX_DEPTH and value:
            raise ValueError(f"wanted a schema of at most {MAX_DEPTH} levels, found more")
        if isinstance(value, dict):
            yield value
        parts = value.values() if isinstance(value, dict) else value
        waiting += [(part, depth + 1) for part in parts if isinstance(part, dict | list)]


def check_node(node: dict[str, Any]) -> None:
    """Bound what stands in one object of a schema.

    Raises:
        ValueError: A count or a pattern is out of bounds.
    """
    for name in COUNTS:
        count = node.get(name)
        if isinstance(count, int | float) and not 0 <= count <= MAX_COUNT:
            raise ValueError(f"{name}: wanted 0 to {MAX_COUNT}, found {count}")
    patterns = [node["pattern"]] if isinstance(node.get("pattern"), str) else []
    if isinstance(node.get("patternProperties"), dict):
        patterns += node["patternProperties"]
    for pattern in patterns:
        check_pattern(pattern)


def check_pattern(pattern: str) -> None:
    """Bound a regular expression.

    Raises:
        ValueError: It is too long, is none, or repeats without end what repeats without end.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise ValueError(f"pattern: wanted at most {MAX_PATTERN_CHARS} characters, found {len(pattern)}")
    if find_depth(pattern) > MAX_GROUPS:
        raise ValueError(f"pattern: wanted at most {MAX_GROUPS} groups within one another, found more")
    try:
        parsed = _parser.parse(NAMED_GROUP.sub("(?P<", UNICODE_CLASS.sub(r"\\w", pattern)))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"pattern: wanted a regular expression, found {pattern[:64]!r}: {error}") from error
    check_repeats(parsed, Repeated())


def find_depth(pattern: str) -> int:
    """Return how many groups stand open at once at most, judged by brackets alone; escaped ones count as well."""
    depth = most = 0
    for character in pattern:
        depth += (character == "(") - (character == ")")
        most = max(most, depth)
    return most


@dataclass(frozen=True, slots=True)
class Repeated:
    """How a part of an expression is repeated by what stands around it.

    Attributes:
        times: How often counted repetitions repeat it at most.
        loosely: The same of those that vary, as long as no letter stands in what they repeat.
        is_endless: Whether an endless one does.
    """

    times: int = 1
    loosely: int = 1
    is_endless: bool = False


def check_repeats(parsed: Any, around: Repeated) -> None:
    """Bound the repetitions within a parsed expression.

    Args:
        parsed: As Python's own parser has it.
        around: What repeats it.

    Raises:
        ValueError: There are too many.
    """
    for operation, argument in parsed:
        if operation in (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT):
            least, most, inner = argument
            check_repeats(inner, repeat(around, least, most, inner))
        elif operation is _constants.BRANCH:
            for branch in argument[1]:
                check_repeats(branch, around)
        elif operation is _constants.SUBPATTERN:
            check_repeats(argument[-1], around)
        elif operation in (_constants.ASSERT, _constants.ASSERT_NOT):
            check_repeats(argument[1], around)


def repeat(around: Repeated, least: int, most: int, inner: Any) -> Repeated:
    """Return how what stands in a repetition is repeated.

    Raises:
        ValueError: It is repeated too often.
    """
    is_endless = most == _constants.MAXREPEAT
    if is_endless and around.is_endless:
        raise ValueError("pattern: wanted no endless repetition within another, found one")
    times = around.times * max(1, least if is_endless else most)
    if times > MAX_REPEATS:
        raise ValueError(f"pattern: wanted at most {MAX_REPEATS} counted repetitions, found {times}")
    loosely = around.loosely * (most if least != most and not is_endless else 1)
    if around.loosely > 1 and loosely > MAX_LOOSE_RANGES:
        raise ValueError(
            f"pattern: wanted at most {MAX_LOOSE_RANGES} repetitions where ranges stand in ranges and no letter marks "
            f"an end, found {loosely}"
        )
    return Repeated(times, 1 if has_letter(inner) else loosely, around.is_endless or is_endless)


def has_letter(parsed: Any) -> bool:
    """Tell whether a letter stands in an expression that all it matches must hold."""
    return any(
        operation is _constants.LITERAL or (operation is _constants.SUBPATTERN and has_letter(argument[-1]))
        for operation, argument in parsed
    )


def check_references(schema: dict[str, Any]) -> None:
    """See that every reference leads to a place within the schema, and none back to itself without consuming anything.

    Raises:
        ValueError: One does not, or does.
    """
    ways: dict[int, list[dict[str, Any]]] = {}
    for node in walk(schema):
        ways[id(node)] = list_alike(schema, node)
    done: set[int] = set()
    for start, first_steps in ways.items():
        stack, path = [(start, iter(first_steps))], {start}
        while stack and start not in done:
            node_id, steps_left = stack[-1]
            step = next(steps_left, None)
            if step is None:
                done.add(node_id)
                path.discard(node_id)
                stack.pop()
            elif id(step) in path:
                raise ValueError("$ref: wanted a reference that leads to an end, found one that leads back to itself")
            elif id(step) not in done:
                path.add(id(step))
                stack.append((id(step), iter(ways.get(id(step), ()))))


def check_values(schema: dict[str, Any]) -> None:
    """Bound how many values an answer may hold by the schema's own counts.

    Raises:
        ValueError: There may be too many.
    """
    found = count_values(schema)
    if found > MAX_VALUES:
        raise ValueError(
            f"maxItems: wanted counts by which an answer holds at most {MAX_VALUES:,} values, found {found:,} where "
            "they stand within one another"
        )


def count_values(schema: dict[str, Any]) -> int:
    """Return how many values an answer may hold by a schema's own counts; what refers to itself is counted once."""
    counted: dict[int, int] = {}
    parts: dict[int, tuple[list[tuple[dict[str, Any], int]], list[dict[str, Any]]]] = {}
    waiting = [schema]
    while waiting:
        node = waiting[-1]
        if id(node) in counted:
            waiting.pop()
        elif id(node) not in parts:
            held, alike = list_held(node), list_alike(schema, node)
            parts[id(node)] = held, alike
            waiting += [part for part in (*(part for part, _ in held), *alike) if id(part) not in parts]
        else:
            held, alike = parts[id(node)]
            inner = sum(times * counted.get(id(part), 1) for part, times in held)
            inner += sum(counted.get(id(part), 1) - 1 for part in alike)  # the value itself is counted already
            counted[id(node)] = min(1 + inner, MAX_COUNT**3)
    return counted[id(schema)]


def list_held(node: dict[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """Return the schemas of what a value holds, each with how often it may at most."""
    if not node.keys() & HOLDING:
        return []
    found: list[tuple[Any, int]] = [
        (node.get("items"), find_most(node, "minItems", "maxItems")),
        (node.get("additionalProperties"), find_most(node, "minProperties", "maxProperties")),
    ]
    for value in (node.get("properties"), node.get("patternProperties")):
        found += [(part, 1) for part in value.values()] if isinstance(value, dict) else []
    prefix = node.get("prefixItems")
    found += [(part, 1) for part in prefix] if isinstance(prefix, list) else []
    return [(part, times) for part, times in found if isinstance(part, dict)]


def list_alike(schema: dict[str, Any], node: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the schemas that hold for the very value that a schema's object holds for."""
    found = [find_target(schema, node["$ref"])] if isinstance(node.get("$ref"), str) else []
    for keyword in node.keys() & SAME_PLACE:
        value = node[keyword]
        found += [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, dict)]
    return found


def find_most(node: dict[str, Any], *names: str) -> int:
    """Return the largest of an object's counts by some names, at least 1; a property of that name has a schema."""
    return max([1, *(int(count) for name in names if isinstance(count := node.get(name), int | float))])


def find_target(schema: dict[str, Any], reference: str) -> dict[str, Any]:
    """Return what a reference leads to.

    Raises:
        ValueError: It leads out of the schema, or nowhere.
    """
    value: Any = schema
    if not reference.startswith("#"):
        raise ValueError(f"$ref: wanted a place within the schema, as #/$defs/name, found {reference[:64]!r}")
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, dict):
        raise ValueError(f"$ref: wanted a place within the schema, found nothing at {reference[:64]!r}")
    return value
