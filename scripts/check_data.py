"""Check files of training data in a moment, without a model: python scripts/check_data.py FILE … [--format alpaca].

Prints every fault with its file, line, field and fix, and ends with 3 where there is one. Says nothing about tokens:
`python train/run.py check_only=true data.train=FILE` does.
"""

from core.entry import begin_program

begin_program()

import argparse
import sys
from pathlib import Path

from core.config import run_command
from core.errors import LoamError, TrainingDataError
from core.faults import NOTHING_FOUND
from core.formats import Columns, DataFormat, choose_layout, normalize_records
from train.data import open_records


def main() -> None:
    """Read the command line and check each file."""
    arguments = parse_arguments()
    columns = Columns(arguments.prompt, arguments.completion, arguments.system, arguments.chosen, arguments.rejected)
    codes = [check(path, DataFormat(arguments.format), columns) for path in arguments.files]
    sys.exit(max(codes))


def check(path: Path, wanted: DataFormat, columns: Columns) -> int:
    """Print every fault of a file as it is met.

    Args:
        path: JSON lines, CSV or Parquet.
        wanted: Its format, or `auto`.
        columns: Columns that are called otherwise than the format calls them.

    Returns:
        The exit code that its faults ask for, 0 for none.
    """
    rows = faults = 0
    try:
        layout = choose_layout(open_records(path, "training_file"), wanted, columns)
        for _, row, found in normalize_records(open_records(path, "training_file"), layout):
            rows += row is not None
            faults += len(found)
            for fault in found:
                print(f"{path}: {fault}")
    except LoamError as error:
        print(error.message)
        return error.exit_code
    if not rows and not faults:
        faults = 1
        print(f"{path}: {NOTHING_FOUND}")
    print(f"{path}: {rows:,} good rows, {faults:,} faults, format: {layout.describe()}")
    return TrainingDataError.exit_code if faults else 0


def parse_arguments() -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description="Check files of training data.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON lines, CSV or Parquet")
    formats = [form.value for form in DataFormat]
    parser.add_argument("--format", choices=formats, default="auto", help="default: told by the first rows")
    for name in ("prompt", "completion", "system", "chosen", "rejected"):
        parser.add_argument(f"--{name}", metavar="COLUMN", help=f"column that holds the {name}")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
