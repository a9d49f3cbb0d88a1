"""JSON schemas that vLLM makes grammars of: which are taken.

A grammar is compiled inside vLLM's engine, where one that explodes holds up everybody. What is refused here cannot
be compiled in bounded time, or says nothing: schemas that are too deep or too large, references that lead elsewhere
or in a circle without consuming anything, patterns that repeat a repetition, and counts that no answer reaches. Does
not know what the schema is for, nor compiles it.
"""

import re
from collections.abc import Iterator
from re import _constants, _parser  # type: ignore[attr-defined, unused-ignore]  # seen or not by what else is checked
from typing import Any

MAX_DEPTH = 64
MAX_NODES = 5_000
MAX_PATTERN_CHARS = 512
MAX_REPEATS = 1_000
"""Of a pattern's counted repetitions, multiplied where one stands in another."""
MAX_COUNT = 10_000
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
NAMED_GROUP = re.compile(r"\(\?<(?![=!])")
UNICODE_CLASS = re.compile(r"\\[pP]\{[^}]*\}")
"""Of JavaScript's expressions, which JSON schemas are written in; Python writes them otherwise."""
SAME_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else")
"""Keywords whose schemas hold for the very value that theirs holds for."""


def check_grammar(schema: dict[str, Any]) -> dict[str, Any]:
    """Bound a JSON schema.

    Raises:
        ValueError: What is wrong with it, in one sentence.
    """
    for node in walk(schema):
        check_node(node)
    check_references(schema)
    return schema


def walk(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every object within a schema, itself first.

    Raises:
        ValueError: It is too deep or too large.
    """
    waiting, nodes = [(schema, 1)], 0
    while waiting:
        value, depth = waiting.pop()
        nodes += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"wanted a schema of at most {MAX_DEPTH} levels, found more")
        if nodes > MAX_NODES:
            raise ValueError(f"wanted a schema of at most {MAX_NODES} values, found more")
        if isinstance(value, dict):
            yield value
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += [(part, depth + 1) for part in parts]


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
    try:
        parsed = _parser.parse(NAMED_GROUP.sub("(?P<", UNICODE_CLASS.sub(r"\\w", pattern)))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"pattern: wanted a regular expression, found {pattern[:64]!r}: {error}") from error
    check_repeats(parsed, 1, is_repeated=False)


def check_repeats(parsed: Any, repeats: int, *, is_repeated: bool) -> None:
    """Bound the repetitions within a parsed expression.

    Args:
        parsed: As Python's own parser has it.
        repeats: How often a counted repetition around it repeats it at most.
        is_repeated: Whether an endless one does.

    Raises:
        ValueError: There are too many.
    """
    for operation, argument in parsed:
        if operation in (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT):
            least, most, inner = argument
            is_endless = most == _constants.MAXREPEAT
            if is_endless and is_repeated:
                raise ValueError("pattern: wanted no endless repetition within another, found one")
            inside = repeats * max(1, least if is_endless else most)
            if inside > MAX_REPEATS:
                raise ValueError(f"pattern: wanted at most {MAX_REPEATS} counted repetitions, found {inside}")
            check_repeats(inner, inside, is_repeated=is_repeated or is_endless)
        elif operation is _constants.BRANCH:
            for branch in argument[1]:
                check_repeats(branch, repeats, is_repeated=is_repeated)
        elif operation is _constants.SUBPATTERN:
            check_repeats(argument[-1], repeats, is_repeated=is_repeated)
        elif operation in (_constants.ASSERT, _constants.ASSERT_NOT):
            check_repeats(argument[1], repeats, is_repeated=is_repeated)


def check_references(schema: dict[str, Any]) -> None:
    """See that every reference leads to a place within the schema, and none back to itself without consuming anything.

    Raises:
        ValueError: One does not, or does.
    """
    ways: dict[int, list[dict[str, Any]]] = {}
    for node in walk(schema):
        target = node.get("$ref")
        steps = [find_target(schema, target)] if isinstance(target, str) else []
        for keyword in SAME_PLACE:
            value = node.get(keyword)
            steps += [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, dict)]
        ways[id(node)] = steps
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
