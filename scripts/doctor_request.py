"""What doctor is asked for on its command line. Does not check anything else."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.layout import DataDir
from scripts.words import parse_words

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
    data, values = parse_words(words, WANTED, _is_good)
    return Request(data, **values)


def _is_good(key: str, value: str) -> bool:
    if key == "port":
        return value.isdecimal() and int(value) < 65536
    return value in CHOICES.get(key, ()) or (key in ("model", "host") and value != "")
