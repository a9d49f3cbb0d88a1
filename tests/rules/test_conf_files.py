"""Every file in conf/ opens with its launch line and its hardware, and composes: walked, counted, none left out."""

import functools
import re
from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from core.config import load_config
from core.errors import ConfigError
from scripts.write_configuration_docs import load_schema
from tests.rules.checkout import REPO, read_text_files

CONF = REPO / "conf"
FILES = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml"))
PRIMARIES = [name.removesuffix(".yaml") for name in FILES if "/" not in name]
LAUNCH_LINE = re.compile(r"^#\s+([A-Z_]+=\S+ )*(python \w+/\w+\.py|make \w+)", re.MULTILINE)
HARDWARE = re.compile(r"\b(CPU|GPU|GB|card|cards|cores|hardware|machine|H100|Any|any)\b")


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    """Point Hydra at the real conf/."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def read_heading(text: str) -> str:
    """Return the comment lines that a file opens with."""
    lines = text.splitlines()
    return "\n".join(lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))])


@functools.cache
def compose_primary(name: str) -> DictConfig:
    """Compose a primary configuration with Hydra's own choices in it."""
    return compose(name, return_hydra_config=True)


def list_uses(file: str) -> list[tuple[str, str]]:
    """Return (primary, override) for each primary configuration that a file can be part of."""
    if file.removesuffix(".yaml") in PRIMARIES:
        return [(file.removesuffix(".yaml"), "")]
    group, _, option = file.removesuffix(".yaml").rpartition("/")
    users = [name for name in PRIMARIES if group in compose_primary(name).hydra.runtime.choices]
    return [(name, f"{group}={option}") for name in users]


def test_there_are_files_to_check() -> None:
    assert "train.yaml" in FILES
    assert len(FILES) == sum(1 for path in CONF.rglob("*") if path.is_file()), "something in conf/ is no .yaml file"


@pytest.mark.parametrize("file", FILES)
def test_a_file_opens_with_its_launch_line_and_hardware(file: str) -> None:
    heading = read_heading((CONF / file).read_text())
    assert LAUNCH_LINE.search(heading), f"conf/{file}: wanted a launch line in the opening comment"
    assert HARDWARE.search(heading), f"conf/{file}: wanted the hardware it is for in the opening comment"


@pytest.mark.parametrize("file", FILES)
def test_a_file_composes_wherever_its_group_is_used(file: str) -> None:
    uses = list_uses(file)
    assert uses, f"conf/{file}: no primary configuration has its group"
    for primary, override in uses:
        composed = compose(primary, overrides=[override] if override else [])
        assert find_faults(composed, primary) == []


def find_faults(composed: DictConfig, primary: str) -> list[str]:
    """Return what the program's dataclass refuses; a value that only the user can give may be missing."""
    try:
        load_config(composed, load_schema(primary))
    except ConfigError as error:
        return [line for line in error.message.strip().splitlines() if ": missing." not in line]
    return []


def test_the_rule_sees_an_unknown_key() -> None:
    composed = compose("train", overrides=["+trainer.bogus=1"])
    assert find_faults(composed, "train") != []


def test_every_command_with_a_data_directory_of_its_own_reads_the_environment() -> None:
    scripts = {path: text for path, text in read_text_files().items() if re.match(r"scripts/\w+\.py$", path)}
    takers = [path for path, text in scripts.items() if re.search(r'add_argument\(\s*"--data-dir"', text)]
    assert len(takers) >= 8
    assert [path for path in takers if not re.search(r"default_data_dir\(|paths\.data_dir=", scripts[path])] == []


def test_one_place_says_where_the_data_lie_when_a_command_names_no_directory() -> None:
    programs = {path: text for path, text in read_text_files().items() if re.match(r"(?!tests/).*\.py$", path)}
    readers = [path for path, text in programs.items() if re.search(r"environ\b.{0,8}LOAM_DATA_DIR", text)]
    assert readers == ["core/layout.py"]
