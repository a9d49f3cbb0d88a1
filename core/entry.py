"""How a program begins: offline, and with Ctrl-C that ends in one line even while it still imports.

Programs call `begin_program()` before they import anything else, the standard library included. What happens once
everything is imported is core/config.py's: `run_app` and `run_command`. Does not know any program.
"""

import sys
from types import TracebackType

from core.offline import switch_offline

INTERRUPTED_EXIT_CODE = 130


def begin_program() -> None:
    """Keep every library from calling home, and make Ctrl-C one line and exit code 130 from now on."""
    switch_offline()
    sys.excepthook = end_program


def end_program(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """End a program that an exception has left; one that is not Ctrl-C is a bug and shows where it happened.

    Raises:
        SystemExit: It was Ctrl-C.
    """
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    sys.stderr.write("error: interrupted\n")
    sys.exit(INTERRUPTED_EXIT_CODE)
