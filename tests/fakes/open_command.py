"""Opens a database, which migrates it: what the tests of migrations start and kill.

python -m tests.fakes.open_command DATABASE
"""

import sys
from pathlib import Path

from retrieval.database import open_database


def main() -> None:
    """Open and close it."""
    open_database(Path(sys.argv[1])).dispose()


if __name__ == "__main__":
    main()
