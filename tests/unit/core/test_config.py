"""core.config: all faults at once, in words, before anything runs."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import MISSING, OmegaConf

from core.config import load_config
from core.errors import ConfigError, MissingDependency
from tests.rules.checkout import REPO


@dataclass(slots=True)
class Part:
    rank: int = 16

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank: wanted 1 or more, found {self.rank}")


@dataclass(slots=True)
class Item:
    model: str = MISSING
    stores: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Root:
    name: str = MISSING
    first: Part = field(default_factory=Part)
    second: Part = field(default_factory=Part)
    items: dict[str, Item] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(OmegaConf.create(values), Root)
    return caught.value.message


def test_a_good_configuration_becomes_typed_objects() -> None:
    values = {"name": "x", "first": {"rank": "8"}, "items": {"a": {"model": "m", "stores": ["s"]}}, "hydra": {"any": 1}}
    assert load_config(OmegaConf.create(values), Root) == Root("x", Part(8), Part(16), {"a": Item("m", ["s"])}, {})


def test_unknown_keys_and_wrong_types_are_all_named() -> None:
    message = refusal({"nme": 1, "first": {"rnk": 3, "rank": "many"}, "items": {"a": {"modl": "m"}}})
    assert "nme: no such configuration key. Did you mean name?" in message
    assert "first.rnk: no such configuration key. Did you mean rank?" in message
    assert "first.rank: found 'many'" in message
    assert "items.a.modl: no such configuration key. Did you mean model?" in message


def test_a_key_far_from_any_lists_what_there_is() -> None:
    assert "first.zzz: no such configuration key. Known here: rank." in refusal({"name": "x", "first": {"zzz": 1}})


def test_missing_values_are_named_with_the_remedy() -> None:
    message = refusal({"items": {"a": {"stores": []}}})
    assert "name: missing. Give it on the command line: name=…" in message
    assert "items.a.model: missing" in message


def test_a_nan_is_refused_wherever_it_stands() -> None:
    """No check of a range sees it: every comparison with it is false."""
    message = refusal({"name": "x", "first": {"rank": 0}, "extra": {"a": {"b": float("nan")}, "c": [1, float("nan")]}})
    assert "extra.a.b: wanted a number, found nan" in message
    assert "extra.c: wanted a number, found [1, nan]" in message
    assert "found 0" in message
    assert load_config(OmegaConf.create({"name": "x", "extra": {"a": float("inf")}}), Root).extra == {"a": float("inf")}


def test_range_faults_of_several_parts_come_together() -> None:
    message = refusal({"name": "x", "first": {"rank": 0}, "second": {"rank": -1}})
    assert "found 0" in message
    assert "found -1" in message


def test_faults_of_every_kind_come_together() -> None:
    message = refusal({"nme": 1, "first": {"rank": 0}, "second": {"rank": "many"}})
    for part in ("nme: no such", "second.rank: found 'many'", "rank: wanted 1 or more, found 0", "name: missing"):
        assert part in message


def test_an_open_dict_takes_anything() -> None:
    config = load_config(OmegaConf.create({"name": "x", "extra": {"a": [1, {"b": None}]}}), Root)
    assert config.extra == {"a": [1, {"b": None}]}


def test_a_launcher_whose_package_is_in_no_lock_is_named_in_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(REPO / "train" / "run.py"), "-m", "hydra/launcher=slurm", "data.train=chats.jsonl"]
    environment = {**os.environ, "LOAM_DATA_DIR": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == MissingDependency.exit_code
    assert "wanted the package that holds hydra_plugins.hydra_submitit_launcher" in done.stderr
    assert "Traceback" not in done.stderr
