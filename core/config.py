"""From a Hydra configuration to one typed object, with every fault reported at once.

`run_app` is what each run.py calls: it composes, runs, and turns whatever goes wrong into one message and an exit
code. `load_config` checks a composed configuration against a dataclass. Below a run.py no DictConfig exists.
Does not know any key: dataclasses beside their reader hold the schema and the defaults. Hydra and OmegaConf are
imported by what composes and checks only: what takes a ready configuration runs where they are missing (bench_gpu.py).
"""

import dataclasses
import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from core.entry import INTERRUPTED_EXIT_CODE
from core.errors import ConfigError, LoamError, MissingDependency, describe_os_error
from core.layout import make_data_dir
from core.spelling import reveal_lines

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"

T = TypeVar("T")


class Device(Enum):
    """Where tensors live; `auto` takes a CUDA card where torch sees one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@dataclasses.dataclass(slots=True)
class PathsConfig:
    """Where everything is kept.

    Attributes:
        data_dir: The data directory; relative to the working directory.
    """

    data_dir: str = "data"


def check_ranges(prefix: str, values: dict[str, tuple[float | None, float, float]]) -> None:
    """Refuse numbers out of range, all at once; None passes, it means «not set».

    Args:
        prefix: The group's name.
        values: Value, least and largest by key.

    Raises:
        ConfigError: One or more values lie outside; each is named with its range.
    """
    faults = {
        f"{prefix}.{key}": f"wanted {low:g} to {high:g}, found {value:g}"
        for key, (value, low, high) in values.items()
        if value is not None and not low <= value <= high
    }
    if faults:
        param = next(iter(faults)) if len(faults) == 1 else prefix
        raise ConfigError("; ".join(f"{key}: {fault}" for key, fault in faults.items()), param=param)


def run_app(config_name: str, main: Callable[["DictConfig"], None]) -> None:
    """Compose a primary configuration from the command line and run a program on it.

    Args:
        config_name: Name of a primary configuration in conf/, without its ending.
        main: The program.

    Raises:
        SystemExit: 130 after Ctrl-C, the error's exit code after a LoamError, else as Hydra ends.
    """
    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits by itself, with a message of its own

    def job(config: "DictConfig") -> None:
        _exit_on_error(lambda: _run_job(config, main))

    program = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=config_name)(job)
    _exit_on_error(program)


def _run_job(config: "DictConfig", main: Callable[["DictConfig"], None]) -> None:
    """Make the data directory where it is missing, for its owner alone, and run a program on what was composed."""
    from omegaconf import OmegaConf

    data_dir = OmegaConf.select(config, "paths.data_dir")
    if data_dir is not None:
        make_data_dir(Path(str(data_dir)))
    main(config)


def run_command(main: Callable[[], None]) -> None:
    """Run a plain program (one without Hydra) under the same rules for errors and exit codes as `run_app`."""
    _exit_on_error(main)


def _exit_on_error(program: Callable[[], Any]) -> None:
    """Run a program; print one message and exit with the right code where it fails on purpose."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        program()
    except LoamError as error:
        _exit(error.message, error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        _exit(_explain_hydra_error(error), ConfigError.exit_code)
    except KeyboardInterrupt:
        _exit("interrupted", INTERRUPTED_EXIT_CODE)
    except RuntimeError as error:
        plugin = re.fullmatch(r"Unknown plugin class : '(.+)'", str(error))  # Hydra has no class of its own for it
        if plugin is None:
            raise
        _exit(
            f"hydra: wanted the package that holds {plugin[1]}, found none. The head of the file in conf/hydra/ that "
            "names it has the command that installs it.",
            MissingDependency.exit_code,
        )
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; nothing to report
        sys.exit(141)
    except OSError as error:
        described = describe_os_error(error, "go on")
        _exit(described.message, described.exit_code)


def _exit(message: str, code: int) -> None:
    print(f"error: {reveal_lines(message)}", file=sys.stderr)
    sys.exit(code)


def _explain_hydra_error(error: Exception) -> str:
    """Return Hydra's complaint as what was wanted, what was found, what to do."""
    text = str(error).strip()
    key = re.search(r"Could not override '([^']+)'", text)
    if key:
        return f"{key[1]}: no such configuration key. See docs/configuration.md, or add --cfg job to print every key."
    choice = re.search(
        r"(?s)Could not find '([^']+)'.*?Available options in '([^']+)':(.*?)(?:Config search path|$)", text
    )
    if choice:
        options = ", ".join(choice[3].split())
        return f"{choice[2]}: wanted one of {options}; found {choice[1].rpartition('/')[2]!r}."
    return f"the command line could not be read: {text.splitlines()[0] if text else type(error).__name__}"


def load_config(composed: "DictConfig", schema: type[T]) -> T:
    """Check a composed configuration against a dataclass and return the typed object.

    Args:
        composed: What Hydra composed; its `hydra` node is ignored.
        schema: A dataclass (not frozen: OmegaConf would refuse to fill it) whose `__post_init__` checks ranges.

    Raises:
        ConfigError: One or more keys are unknown, missing, of the wrong type or out of range; all are listed.
    """
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(composed, resolve=True)
    if not isinstance(values, dict):
        raise ConfigError(f"configuration: wanted a mapping, found {type(values).__name__}")
    values.pop("hydra", None)
    faults = []
    for path, fault in [*_find_faults(schema, [], values), *_find_no_numbers([], values)]:
        faults.append(fault)
        _remove(values, path)  # so that what else is wrong is still found
    merged = OmegaConf.merge(OmegaConf.structured(schema), values)
    missing = sorted(OmegaConf.missing_keys(merged))
    faults += [f"{key}: missing. Give it on the command line: {key}=…" for key in missing]
    faults += _find_range_faults(merged)
    if not faults:
        return _to_object(merged, schema)
    raise ConfigError("; ".join(faults) if len(faults) == 1 else "".join(f"\n  {fault}" for fault in faults))


def _remove(values: dict[Any, Any], path: list[str]) -> None:
    """Take one key out of nested mappings."""
    for key in path[:-1]:
        values = values[key]
    values.pop(path[-1], None)


def _to_object(merged: Any, schema: type[T]) -> T:
    from omegaconf import OmegaConf

    config = OmegaConf.to_object(merged)
    if not isinstance(config, schema):
        raise ConfigError(f"configuration: wanted {schema.__name__}, found {type(config).__name__}")
    return config


def _find_faults(schema: type, path: list[str], value: Any) -> Iterator[tuple[list[str], str]]:
    """Yield path and sentence of each key that the schema refuses, descending only where a whole node fails."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    nested = value
    for key in reversed(path):
        nested = {key: nested}
    try:
        OmegaConf.merge(OmegaConf.structured(schema), nested)
    except OmegaConfBaseException as error:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                yield from _find_faults(schema, [*path, str(key)], item)
        else:
            yield path, _describe_fault(schema, path, value, error)


def _find_no_numbers(path: list[str], value: Any) -> Iterator[tuple[list[str], str]]:
    """Yield path and sentence of each key with a nan, which every comparison with a limit lets through."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _find_no_numbers([*path, str(key)], item)
    elif any(isinstance(one, float) and math.isnan(one) for one in (value if isinstance(value, list) else [value])):
        yield path, f"{'.'.join(path)}: wanted a number, found {value}"


def _describe_fault(schema: type, path: list[str], value: Any, error: Exception) -> str:
    name = ".".join(path)
    if "not in" in str(error):  # ConfigKeyError / ConfigAttributeError: Key 'x' not in 'Schema'
        holder = _node_type(schema, path[:-1])
        known = [field.name for field in dataclasses.fields(holder)] if holder else []
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(known)}."
        return f"{name}: no such configuration key. {hint}"
    reason = str(error).splitlines()[0]
    return f"{name}: found {value!r}. {reason}"


def _node_type(schema: type, path: list[str]) -> type | None:
    """Return the dataclass that a path leads to through fields and dicts of dataclasses, or None."""
    kind: Any = schema
    for key in path:
        is_node = dataclasses.is_dataclass(kind)
        kind = get_type_hints(kind).get(key) if is_node else next(iter(get_args(kind)[1:]), None)  # dict[str, X] → X
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def _find_range_faults(merged: Any) -> Iterator[str]:
    """Yield what each part's `__post_init__` refuses, one part after the other, so that none hides another."""
    from omegaconf import DictConfig, OmegaConf

    for key in merged:
        node = merged.get(key)
        if isinstance(node, DictConfig) and not OmegaConf.missing_keys(node):
            try:
                OmegaConf.to_object(node)
            except ConfigError as error:
                yield error.message
