"""The engine's process: launched under its keeper with a socket and a fresh key, ended with everything it started.

Does not know when it is healthy or what it serves; serve/engine.py does.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

from core.errors import EngineUnavailable
from serve.engine_command import EngineCommand
from serve.kept_process import KeptProcess, start_kept


@dataclass(slots=True)
class EngineProcess(KeptProcess):
    """A running engine.

    Attributes:
        key: What requests to it must carry.
    """

    key: str


async def launch(command: EngineCommand, socket: Path, log_path: Path) -> EngineProcess:
    """Start an engine.

    Args:
        command: What to run.
        socket: Where it shall listen, in a folder of its own; a file left by an earlier engine is removed.
        log_path: Takes what it prints, appended.

    Raises:
        EngineUnavailable: It could not be started at all.
    """
    key = secrets.token_urlsafe(32)
    socket.unlink(missing_ok=True)  # noqa: ASYNC240  (one call on a folder in memory or on the local disk)
    arguments = [*command.arguments, "--uds", str(socket)]
    kept = await start_kept(arguments, {**command.environment, "VLLM_API_KEY": key}, socket.parent, log_path)
    if kept is None:
        raise EngineUnavailable(f"wanted to start {command.arguments[0]}, found that it cannot run. See {log_path}.")
    return EngineProcess(kept.keeper, kept.group, key)
