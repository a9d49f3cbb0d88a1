"""Each command of ours that a page or a file in conf/ shows would be taken: keys, values and options are there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from core.config import CONF_DIR, load_config
from core.errors import ConfigError
from scripts.evaluate import spell_out
from scripts.write_configuration_docs import SCHEMAS, load_schema
from tests.rules.checkout import REPO, read_text_files

HISTORY = ("CHANGELOG.md", "docs/experiments.md", "docs/decisions/")
"""What tells of the past, in the commands of its time."""
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LAUNCH = re.compile(r"^# +(?:[A-Z_]+=\S+ )*python .*$|; python .*$", re.MULTILINE)
COMMAND = re.compile(r"(?<![\w.])((?:train|retrieval|serve|scripts)[/.]\w+)(?:\.py)?((?: .*)?)$", re.MULTILINE)
END = re.compile(r" #| {3,}| && |; | \| | > ")
"""What ends a command on its line: a remark, or another command."""


def list_commands() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield where a command stands, its program, and its words."""
    for path, text in read_text_files().items():
        if path.endswith(".md") and not path.startswith(HISTORY):
            parts = CODE.findall(re.sub(r" *\\\n *", " ", text))
        else:
            parts = LAUNCH.findall(text) if path.startswith("conf/") else []
        for part in parts:
            for name, rest in COMMAND.findall(re.sub(r"(?<= && )|(?<=; )", "\n", part.strip("`"))):
                program = name.replace(".", "/") + ".py"
                if (REPO / program).is_file():
                    yield path, program, tuple(split_words(END.split(rest)[0]))


def split_words(text: str) -> list[str]:
    """Return a command's words, those that may be left out ([…]) too, but none that holds … or a variable."""
    text = re.sub(r"(?<= )\[([-\w.]+[= ][^\]]*)\]", r"\1", text)
    try:
        words = shlex.split(text)
    except ValueError:  # the last word closes what was opened before the command: bash -c '…'
        words = shlex.split(text.rstrip("'"))
    return [word.rstrip("),") for word in words if not {"…", "$"} & set(word)]


def list_faults(program: str, words: tuple[str, ...]) -> list[str]:
    """Return what a program would refuse before it looked for any file."""
    name = Path(program).stem if program.startswith("scripts/") else program.partition("/")[0]
    if name in SCHEMAS:
        words = tuple(spell_out(list(words))) if name == "evaluate" else words
        return list(find_refused(name, [word for word in words if "=" in word and not word.startswith("hydra")]))
    parts = "\n".join(path.read_text() for path in (REPO / "scripts").glob(f"{name}*.py"))
    options = [found[0] for found in (re.match(r"--\w[\w-]*|\w+=", word) for word in words) if found]
    return [f"{option}: no such option" for option in options if not re.search(rf"[\"']{option.rstrip('=')}\b", parts)]


def find_refused(name: str, words: list[str]) -> Iterator[str]:
    """Yield what a configuration does not have; what only the user can give may be missing."""
    values = OmegaConf.create()
    try:
        overrides = OverridesParser.create().parse_overrides(words)
    except HydraException as error:
        yield str(error)
        return
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if (CONF_DIR / key).is_dir():
            if not (CONF_DIR / key / f"{value}.yaml").is_file():
                yield f"{key}: no option {value}"
        else:
            first = next(iter(override.sweep_iterator())) if override.is_sweep_override() else value
            OmegaConf.update(values, key, first, force_add=True)
    try:
        load_config(values, load_schema(name))
    except ConfigError as error:
        yield from (line for line in error.message.splitlines() if line and ": missing." not in line)


def test_what_is_documented_would_be_taken() -> None:
    places: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for place, program, words in list_commands():
        places.setdefault((program, words), set()).add(place)
    assert len(places) > 200
    faults = {command: list_faults(*command) for command in places}
    assert {(*places[command], *command, *found) for command, found in faults.items() if found} == set()


def test_the_rule_sees_what_would_be_refused() -> None:
    assert list_faults("train/run.py", ("trainer.steps=4",))
    assert list_faults("train/run.py", ("trainer.max_steps=many",))
    assert list_faults("serve/run.py", ("hardware=abacus",))
    assert list_faults("scripts/keys.py", ("create", "--holder", "sales"))
    assert list_faults("scripts/doctor.py", ("check=data",))
