"""What doctor is asked for on its command line. Does not check anything else."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.layout import DataDir
from scripts.words import describe_word, refuse_words

CHOICES = {
    "checks": ("all", "machine", "data"),
    "profile": ("auto", "cpu", "gpu_24gb", "h100", "multi_gpu"),
    "repair": ("true", "false"),
    "output": ("table", "json"),
}
WANTED = {
    **{key: "|".join(values) for key, values in CHOICES.items()},
    "model": "NAME",
    "host": "ADDRESS",
    "port": "N, 0 to 65535",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for.

    Attributes:
        data: The data directory.
        repair: `true` mends what is derived.
        output: `json` or `table`.
        checks: `all`, `machine` or `data`.
        profile: Of the hardware; `auto` asks the machine.
        model: Name of the base model; `auto` takes the only one there is, else the profile's own.
        host: Where the gateway will listen.
        port: Its port.
    """

    data: DataDir
    repair: str = "false"
    output: str = "table"
    checks: str = "all"
    profile: str = "auto"
    model: str = "auto"
    host: str = "127.0.0.1"
    port: str = "8000"


def parse_arguments(words: Sequence[str]) -> Request:
    """Return what the command line asks for.

    Raises:
        ConfigError: Words are none of these; all are named.
    """
    request = Request(DataDir(Path(os.environ.get("LOAM_DATA_DIR", "data"))))
    faults, folders = [], []
    for word in words:
        key, has_value, value = word.partition("=")
        if (
            value in CHOICES.get(key, ())
            or (key in ("model", "host") and value)
            or (key == "port" and value.isdecimal() and int(value) < 65536)
        ):
            changed: dict[str, Any] = {key: value}
            request = replace(request, **changed)
        elif not has_value and not word.startswith("-"):
            folders.append(word)
        else:
            faults.append(describe_word(word, WANTED, "[DATA_DIR]"))
    if len(folders) > 1:
        faults.append(f"DATA_DIR: wanted one data directory, found {' and '.join(folders)}")
    refuse_words(faults)
    return replace(request, data=DataDir(Path(folders[0]))) if folders else request
