"""In the place of Python's interpreter: notes what the project's programs are told, and what Hydra reads out of it."""

import shlex
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from core.config import CONF_DIR

HOSTILE_FOLDER = "a, b=c $d {e} (f) 'g' \"h\" #i\\"
PROGRAMS = {
    "retrieval/run.py": "retrieval", "train/run.py": "train", "serve/run.py": "serve", "scripts/evaluate.py": "evaluate"
}  # fmt: skip
"""The primary configuration of each."""


def write_noting_python(folder: Path) -> Path:
    """Write a program that notes its arguments in `folder`/notes and answers as a store's status does."""
    path = folder / "noting_python"
    notes = shlex.quote(str(folder / "notes"))
    counts = """'{"files": 1, "chunks": 2}'"""
    path.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >> {notes}\nprintf "\\n" >> {notes}\necho {counts}\n')
    path.chmod(0o700)
    return path


def read_notes(folder: Path) -> list[tuple[str, Any]]:
    """Return program and composed configuration of each call, in order."""
    calls = [line.split("\0")[:-1] for line in (folder / "notes").read_text(encoding="utf-8").splitlines()]
    return [(program, read_overrides(program, overrides)) for program, *overrides in calls]


def read_overrides(program: str, overrides: list[str]) -> Any:
    """Return what a program's command line comes to."""
    if program == "scripts/evaluate.py":  # it takes model= for this
        overrides = [
            one.replace("model=", "served_model=", 1) if one.startswith("model=") else one for one in overrides
        ]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        composed = compose(PROGRAMS[program], overrides)
    return OmegaConf.to_container(composed, resolve=True)
