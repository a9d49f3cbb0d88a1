"""Every error that Loam raises on purpose, with how each surface shows it.

    LoamError                exit  http  OpenAI type             code
    ├─ ConfigError              2   400  invalid_request_error   invalid_config
    ├─ InputError               3   400  invalid_request_error   invalid_input
    │  ├─ InvalidFile           3   400  invalid_request_error   invalid_file
    │  ├─ UnsupportedFile       3   400  invalid_request_error   unsupported_file
    │  └─ TrainingDataError     3   400  invalid_request_error   invalid_training_data
    ├─ NotFound                 4   404  invalid_request_error   not_found
    │  └─ ModelNotFound         4   404  invalid_request_error   model_not_found
    ├─ Conflict                 5   409  invalid_request_error   conflict
    ├─ ContractError            6   500  server_error            contract_violated
    │  └─ AdapterMismatch       6   400  invalid_request_error   adapter_mismatch
    ├─ StorageFull              7   507  server_error            storage_full
    ├─ MissingDependency        8   500  server_error            missing_dependency
    └─ EngineError              9   502  server_error            engine_error
       ├─ EngineUnavailable     9   503  server_error            engine_unavailable
       └─ EngineTimeout         9   504  server_error            engine_timeout

A message says what was wanted, what was found and what to do. Exit codes are for the command line, the other three
columns for the gateway; both print the same sentence. Source of the OpenAI columns: the client's error classes.
"""

import errno
import os
import re
import shutil
from typing import Any, ClassVar

from core.spelling import spell


class LoamError(Exception):
    """Base of every error raised on purpose; anything else that escapes is a bug."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    openai_type: ClassVar[str] = "server_error"
    openai_code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        """Keep the sentence for people and the two details for clients.

        Args:
            message: What was wanted, what was found, what to do.
            param: The request field or configuration key at fault.
            retry_after_s: Seconds after which a retry may succeed; None where a retry is pointless.
        """
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def to_openai(self) -> dict[str, Any]:
        """Return the body of an OpenAI error answer, all four fields present."""
        return {
            "error": {"message": self.message, "type": self.openai_type, "param": self.param, "code": self.openai_code}
        }


class ConfigError(LoamError):
    """A configuration key or value is wrong; the message lists all faults found."""

    exit_code = 2
    http_status = 400
    openai_type = "invalid_request_error"
    openai_code = "invalid_config"


class InputError(LoamError):
    """What the user handed in cannot be used."""

    exit_code = 3
    http_status = 400
    openai_type = "invalid_request_error"
    openai_code = "invalid_input"


class InvalidFile(InputError):
    """A file of a supported kind is damaged, encrypted or empty."""

    openai_code = "invalid_file"


class UnsupportedFile(InputError):
    """A file of a kind that no loader reads."""

    openai_code = "unsupported_file"


class TrainingDataError(InputError):
    """Training data breaks its format; the message lists file, line, field and fix."""

    openai_code = "invalid_training_data"


class NotFound(LoamError):
    """A named thing does not exist (or is not the caller's)."""

    exit_code = 4
    http_status = 404
    openai_type = "invalid_request_error"
    openai_code = "not_found"


class ModelNotFound(NotFound):
    """No base model, adapter, alias or assistant has that name."""

    openai_code = "model_not_found"


class Conflict(LoamError):
    """The thing exists already, is in use, or is locked by another process."""

    exit_code = 5
    http_status = 409
    openai_type = "invalid_request_error"
    openai_code = "conflict"


class ContractError(LoamError):
    """Something on disk breaks its contract: a checksum, a manifest, a version."""

    exit_code = 6
    openai_code = "contract_violated"


class AdapterMismatch(ContractError):
    """An adapter's manifest does not fit the base model that is served."""

    http_status = 400
    openai_type = "invalid_request_error"
    openai_code = "adapter_mismatch"


class StorageFull(LoamError):
    """The disk or a quota is full; nothing half-written was left."""

    exit_code = 7
    http_status = 507
    openai_code = "storage_full"


class MissingDependency(LoamError):
    """A package or program that this path needs is not installed."""

    exit_code = 8
    openai_code = "missing_dependency"


class EngineError(LoamError):
    """vLLM answered something that cannot be passed on."""

    exit_code = 9
    http_status = 502
    openai_code = "engine_error"


class EngineUnavailable(EngineError):
    """vLLM is not there: starting, restarting or gone."""

    http_status = 503
    openai_code = "engine_unavailable"


class EngineTimeout(EngineError):
    """vLLM took the request and stayed silent past the deadline."""

    http_status = 504
    openai_code = "engine_timeout"


STORAGE_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def describe_os_error(error: OSError, wanted: str) -> LoamError:
    """Turn an operating-system error into one of ours.

    Args:
        error: What the system raised.
        wanted: What was being done, as a clause: «write data/runs/mine/adapter».

    Returns:
        StorageFull for a full disk or quota, NotFound for a missing path, InputError otherwise.
    """
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        source, _, words = error.args[0][0]  # of a whole folder: (from, to, "[Errno 2] No such …") of each file
        number = re.match(r"\[Errno (\d+)\]", str(words))
        if number is not None:
            return describe_os_error(OSError(int(number[1]), os.strerror(int(number[1])), str(source)), wanted)
    found = error.strerror or str(error)
    where = f" ({spell(str(error.filename))})" if error.filename else ""
    if error.errno in STORAGE_FULL_ERRNOS:
        return StorageFull(f"Could not {wanted}: {found}{where}. Free some disk space and run the same command again.")
    if isinstance(error, FileNotFoundError):
        return NotFound(f"Could not {wanted}: {found}{where}. Check the path.")
    return InputError(f"Could not {wanted}: {found}{where}. Check the path and its permissions.")
