"""Reading the rows of a Parquet file, a batch at a time. Does not know what a row means; core.formats does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import InvalidFile, NotFound
from core.faults import Fault, Record

ENDINGS = (".parquet", ".pq")
BATCH_ROWS = 256


def read_parquet(path: Path, param: str) -> Iterator[Record]:
    """Yield each row of a Parquet file, numbered from 1.

    Args:
        path: The file.
        param: Configuration key for the errors.

    Yields:
        (row number, {column: value}, its faults).

    Raises:
        NotFound: There is no such file.
        InvalidFile: It is not Parquet, or it is damaged.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    if not path.is_file():
        raise NotFound(f"{path}: wanted a training file, found none. Check the path.", param=param)
    try:
        with ParquetFile(path, memory_map=True) as file:
            rows = (row for batch in file.iter_batches(BATCH_ROWS) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield number, row, _check_values(number, row)
    except (pa.ArrowException, OSError) as error:
        problem = str(error).partition("\n")[0]
        raise InvalidFile(f"{path}: wanted a Parquet file, found {problem}. Write it again.", param=param) from error


def _check_values(number: int, row: dict[str, Any]) -> list[Fault]:
    """Return a fault for each column that holds what JSON lines could not hold either."""
    return [Fault(number, name, "found a NUL byte", "Remove it") for name, value in row.items() if _holds_nul(value)]


def _holds_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_holds_nul(part) for part in inner)
