"""Write docs/configuration.md: every key, its default, what it may be and what it means. Called by `make docs`.

The keys, types and meanings come from the dataclasses, the defaults from what Hydra composes, the options of each group
from the opening comments of conf/. Does not judge them: tests do.
"""

from core.entry import begin_program

begin_program()

import dataclasses
import enum
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import MISSING, DictConfig, OmegaConf

from core.config import CONF_DIR
from core.layout import write_file

SCHEMAS = {
    "train": ("train.config", "TrainConfig"),
    "retrieval": ("retrieval.config", "RetrievalConfig"),
    "serve": ("serve.preflight", "ServeConfig"),
    "export": ("scripts.export", "ExportConfig"),
    "parity": ("scripts.parity", "ParityConfig"),
    "score_exact": ("scripts.score_exact", "ScoreConfig"),
    "evaluate": ("scripts.evaluate", "EvaluateConfig"),
    "testset": ("scripts.testset", "WritingConfig"),
    "verdict": ("scripts.verdict_plan", "VerdictConfig"),
    "sweep": ("scripts.sweep", "SweepConfig"),
    "bench_sync": ("scripts.bench_sync", "BenchConfig"),
    "bench_index": ("scripts.bench_index", "BenchConfig"),
    "bench_approximate": ("scripts.bench_approximate", "BenchConfig"),
    "bench_lexical": ("scripts.bench_lexical", "BenchConfig"),
    "bench_train": ("scripts.bench_train", "BenchConfig"),
    "bench_gpu": ("scripts.bench_gpu", "BenchConfig"),
    "bench_retrieval": ("scripts.bench_retrieval", "BenchConfig"),
    "bench_documents": ("scripts.bench_documents", "BenchConfig"),
    "bench_gateway": ("scripts.bench_gateway", "BenchConfig"),
    "bench_serving": ("scripts.bench_serving", "BenchConfig"),
}
"""The dataclass that reads each primary configuration, by module and name."""

PAGE = CONF_DIR.parent / "docs" / "configuration.md"
HEADING = """# Configuration

Written by `make docs` from conf/ and the dataclasses that read it: change those, not this page.

Every program composes its configuration with Hydra. `KEY=VALUE` changes a value, `GROUP=OPTION` takes another file of
conf/GROUP/, `--cfg job` prints the result without running. `null` means: not set. An unknown key or a wrong value is
refused before anything starts, and all faults are named at once. Secrets come from the environment only:
`LOAM_API_KEY`, `LOAM_ENGINE_KEY`, `LOAM_JUDGE_API_KEY` and `HF_TOKEN`.
"""
PLAIN_TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "anything"}


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """One line of a table.

    Attributes:
        name: The key with the groups above it, joined by dots.
        kind: What it may be, in words.
        default: As YAML.
        meaning: One or more sentences.
    """

    name: str
    kind: str
    default: str
    meaning: str


def load_schema(primary: str) -> type:
    """Return the dataclass that reads a primary configuration."""
    module, name = SCHEMAS[primary]
    schema = getattr(importlib.import_module(module), name)
    if not isinstance(schema, type):
        raise TypeError(f"{module}.{name}: wanted a dataclass, found {schema!r}")
    return schema


def list_keys(schema: type, values: Any, prefix: str = "") -> Iterator[Key]:
    """Yield every key of a dataclass and of those below it, in the order of their fields.

    Args:
        schema: The dataclass.
        values: What Hydra composed for it, unresolved; anything else where it composed nothing.
        prefix: The keys above, each with a dot behind it.
    """
    hints = typing.get_type_hints(schema)
    meanings = read_meanings(schema)
    for field in dataclasses.fields(schema):
        name, hint = prefix + field.name, hints[field.name]
        value = values[field.name] if isinstance(values, dict) and field.name in values else read_default(field)
        inner = find_dataclass(hint)
        if inner is None or typing.get_origin(hint) is dict or value is None:
            yield Key(name, describe_type(hint), describe_value(value), meanings.get(field.name, ""))
        if inner is not None:
            below = f"{name}.NAME." if typing.get_origin(hint) is dict else f"{name}."
            yield from list_keys(inner, value, below)


def find_dataclass(hint: Any) -> type | None:
    """Return the dataclass that a type is, may be (X | None) or holds (dict[str, X])."""
    candidates = [hint, *typing.get_args(hint)]
    return next((kind for kind in candidates if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)


def read_default(field: dataclasses.Field[Any]) -> Any:
    """Return a field's own default."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING if field.default is dataclasses.MISSING else field.default


def read_meanings(schema: type) -> dict[str, str]:
    """Return what a dataclass's docstring says under Attributes, by field."""
    section = inspect.cleandoc(schema.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def describe_type(hint: Any) -> str:
    """Return what a key may be, in words."""
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return ", ".join([describe_type(kind) for kind in arguments if kind is not type(None)] + ["null"])
    if typing.get_origin(hint) is list:
        return f"list of {describe_type(arguments[0])}"
    if typing.get_origin(hint) is dict or dataclasses.is_dataclass(hint):
        return "mapping"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in hint)
    return PLAIN_TYPES[hint]


def describe_value(value: Any) -> str:
    """Return a default as YAML on one line."""
    if value == MISSING:
        return "required"
    if isinstance(value, enum.Enum):
        value = value.value
    if dataclasses.is_dataclass(value) or isinstance(value, dict):
        return "`{}`"
    text = OmegaConf.to_yaml(OmegaConf.create([value])).strip().removeprefix("- ")
    return f"`[{', '.join(map(str, value))}]`" if isinstance(value, list) else f"`{text}`"


def read_yaml_comments(path: Path) -> dict[str, str]:
    """Return the comment behind each key of a YAML file, by the key's own name with those above it."""
    comments: dict[str, str] = {}
    above: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        key = re.match(r"( *)(\w+):", line)
        comment = re.search(r"\s#\s+(.*)$", line)
        if key:
            above = [*above[: len(key[1]) // 2], key[2]]
            if comment:
                comments[".".join(above)] = comment[1]
    return comments


def list_group_options(composed: DictConfig) -> Iterator[str]:
    """Yield one line of Markdown for each file of each group that a primary configuration has."""
    for group in composed.hydra.runtime.choices:
        for path in sorted((CONF_DIR / group).glob("*.yaml")) if not group.startswith("hydra/") else ():
            about = next((line for line in path.read_text().splitlines() if not line.startswith("# @")), "")
            yield f"- `{group}={path.stem}`: {about.strip('# :')}"


def read_comments(composed: DictConfig, primary: str) -> dict[str, str]:
    """Return the comments of a primary configuration and of the group files that it has chosen, by key."""
    comments = read_yaml_comments(CONF_DIR / f"{primary}.yaml")
    for group, option in composed.hydra.runtime.choices.items():
        path = CONF_DIR / group / f"{option}.yaml"
        if path.is_file():
            comments |= {f"{group}.{key}": text for key, text in read_yaml_comments(path).items()}
    return comments


def list_program_keys(primary: str, composed: DictConfig) -> Iterator[Key]:
    """Yield every key of a program; one without a meaning in its dataclass has the one that its YAML file gives."""
    values = OmegaConf.to_container(composed, resolve=False)
    comments = read_comments(composed, primary)
    for key in list_keys(load_schema(primary), values):
        yield key if key.meaning else dataclasses.replace(key, meaning=comments.get(key.name, ""))


def name_program(primary: str) -> str:
    """Return the program that a primary configuration is for, from the repository's root."""
    package = CONF_DIR.parent / primary
    return f"{primary}/run.py" if package.is_dir() else f"scripts/{primary}.py"


def render_page() -> str:
    """Return the whole page.

    A group that several programs read is explained once: a key without a meaning takes that of an earlier program.
    """
    lines = [HEADING]
    meanings: dict[str, str] = {}
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        for primary in SCHEMAS:
            composed = compose(primary, return_hydra_config=True)
            lines += [
                f"## {name_program(primary)}",
                "",
                "Options of its groups:",
                "",
                *list_group_options(composed),
                "",
            ]
            lines += ["| key | may be | default | meaning |", "|---|---|---|---|"]
            for key in list_program_keys(primary, composed):
                meaning = meanings[key.name] = key.meaning or meanings.get(key.name, "")
                cells = (f"`{key.name}`", key.kind, key.default, re.sub(r"\bNone\b", "null", meaning))
                lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
            lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    write_file(PAGE, render_page())
    print(f"wrote {PAGE}")
