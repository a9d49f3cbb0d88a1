"""Programs begin with core.entry, before they import anything else, the standard library included."""

import ast

from tests.rules.checkout import read_our_modules

FIRST_LINES = ["from core.entry import begin_program", "begin_program()"]
OTHERWISE = {
    "scripts/audit.py": "it asks a network, and imports the standard library alone",
    "scripts/carry_faiss.py": "it imports the standard library alone",
}
"""Programs that begin otherwise, with the reason; those that measure a card are run where little is installed."""


def is_program(text: str) -> bool:
    return "    run_app(" in text or "    run_command(" in text


def test_every_program_begins_in_one_way() -> None:
    programs = {
        module.path: [ast.unparse(node) for node in module.tree.body[1:3]]
        for module in read_our_modules()
        if is_program(module.text) and not module.path.startswith(("core/", "scripts/bench_gpu"))
    }
    assert len(programs) >= 30
    assert {path for path, lines in programs.items() if lines != FIRST_LINES} == set(OTHERWISE)
