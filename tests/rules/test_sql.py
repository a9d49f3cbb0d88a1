"""SQL outside database.py and the migrations is what PostgreSQL understands as well, so that it can follow by URL."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.rules.checkout import read_our_modules

KNOWS_SQLITE = {"retrieval/database.py", "retrieval/migrations.py", "scripts/bench_lexical_engines.py"}
"""The last one compares SQLite's own full-text search."""
STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|CREATE|ALTER|DROP|PRAGMA|VACUUM|BEGIN)\b")
SQLITE_ONLY = re.compile(
    r"\b(PRAGMA|VACUUM|INSERT\s+OR|UPDATE\s+OR|REPLACE\s+INTO|ROWID|IFNULL|GLOB|GROUP_CONCAT|JSON_EXTRACT|JSON_EACH|"
    r"STRFTIME|JULIANDAY|TYPEOF|LAST_INSERT_ROWID|AUTOINCREMENT|ZEROBLOB|SQLITE_\w+)\b|\bLIMIT\s+-1\b|\b(MAX|MIN)\([^()]*,",
    re.IGNORECASE,
)
"""Words, a limit of -1, and MAX or MIN of several values, which others call GREATEST and LEAST."""


def find_faults(tree: ast.Module) -> Iterator[str]:
    """Yield line and word of what only SQLite understands in a statement's text."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr | ast.Constant):
            continue
        pieces = node.values if isinstance(node, ast.JoinedStr) else [node]
        words = "".join(
            piece.value for piece in pieces if isinstance(piece, ast.Constant) and isinstance(piece.value, str)
        )
        if STATEMENT.match(words) and (found := SQLITE_ONLY.search(words)):
            yield f"{node.lineno}: {found[0]}"


def test_only_two_files_know_sqlite() -> None:
    found = {module.path: list(find_faults(module.tree)) for module in read_our_modules()}
    assert found.keys() >= KNOWS_SQLITE
    assert {path for path, faults in found.items() if faults} <= KNOWS_SQLITE
    assert found["retrieval/database.py"]
    assert found["retrieval/migrations.py"]


@pytest.mark.parametrize(
    "source",
    [
        "text('PRAGMA synchronous = OFF')",
        "text('SELECT name FROM stores ORDER BY rowid')",
        "text('INSERT OR IGNORE INTO stores VALUES (1)')",
        "text('SELECT MAX(0, start) FROM chunks')",
        "text(f'SELECT {columns} FROM chunks LIMIT -1')",
        "text('SELECT id FROM chunks '\n     'WHERE IFNULL(page, 0) > 1')",
    ],
)
def test_the_rule_sees_each_kind(source: str) -> None:
    assert list(find_faults(ast.parse(source)))


@pytest.mark.parametrize(
    "source", ["text('SELECT MAX(id), COALESCE(page, 0) FROM chunks')", "say('Replace into a new folder')"]
)
def test_the_rule_lets_harmless_text_pass(source: str) -> None:
    assert not list(find_faults(ast.parse(source)))
