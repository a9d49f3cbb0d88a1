"""Commands that are printed to be copied go on with the data directory that was given."""

import ast
import re
from collections.abc import Iterator

from core.next_command import BY_FLAG, BY_PLACE
from tests.rules.checkout import REPO, read_our_modules

OURS = r"python3? (?:train|retrieval|serve|scripts)/\w+\.py"
COMMAND = re.compile(rf"\A{OURS}|\bnext: .*{OURS}|\bso does: {OURS}", re.IGNORECASE | re.DOTALL)
WITHOUT = {
    ("core/manifest.py", "python scripts/models.py"): "a remedy: a folder is all that is known there",
    ("core/manifest.py", "python train/run.py"): "a remedy: a folder is all that is known there",
    ("scripts/advise.py", "python scripts/verdict.py"): "it reads no data directory and cannot know one",
    ("scripts/verdict.py", "python scripts/advise.py"): "it reads the report that is named",
    ("scripts/backup.py", "python scripts/backup.py"): "the backup is named, and a new directory",
    ("scripts/bundle_install.py", "python scripts/doctor.py"): "it is run where the data directory lies",
    ("scripts/doctor_machine.py", "python scripts/keys.py"): "the directory stands in it",
    ("train/report.py", "python serve/run.py"): "it repeats the run's own words",
}
"""Module and command that need not go through core.next_command, with the reason."""


def list_texts(tree: ast.AST) -> Iterator[str]:
    """Yield each text of a program, with what is filled in left out, but no docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def list_docstrings(tree: ast.AST) -> set[str]:
    """Return the texts that stand alone."""
    alone = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    return {node.value for node in alone if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def find_commands(tree: ast.AST) -> list[str]:
    """Return our programs that a module names in commands to copy."""
    docstrings = list_docstrings(tree)
    texts = [text for text in list_texts(tree) if text not in docstrings]
    return [re.findall(OURS, text)[-1] for text in texts if COMMAND.search(text)]


def test_commands_to_copy_are_written_in_one_place() -> None:
    found = {(module.path, command) for module in read_our_modules() for command in find_commands(module.tree)}
    assert found == set(WITHOUT)


def test_the_rule_sees_a_command() -> None:
    assert find_commands(ast.parse('print(f"wrote it\\nnext: python serve/run.py adapters=[{run}]")'))
    assert find_commands(ast.parse('suggest("python scripts/search.py NAME")'))
    assert not find_commands(ast.parse('"""Next: python serve/run.py"""'))


def list_programs() -> set[str]:
    """Return the programs that core.next_command is asked for."""
    programs = set()
    for module in read_our_modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name in {"write_next_command", "suggest"}:
                    programs.add(str(node.args[0].value))
    return programs


def test_each_program_takes_the_directory_as_it_is_named() -> None:
    programs = list_programs()
    assert programs >= BY_FLAG | BY_PLACE | {"serve/run.py", "train/run.py", "retrieval/run.py"}
    for program in programs:
        text = (REPO / program).read_text()
        if program in BY_FLAG:
            assert 'parser.add_argument("--data-dir"' in text, program
        elif program in BY_PLACE:
            assert re.search(rf"python {re.escape(program)} \[DATA_DIR\]", text), program
        else:
            assert 'run_app("' in text, program
