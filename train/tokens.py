"""Token ids on disk: written a batch at a time, read through a memory map, so that data may be larger than memory.

Does not know what the ids mean, nor where a run keeps them. Arrow is imported by what reads and writes, because
the layers on a card want IGNORED and nothing else (scripts/bench_gpu.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypedDict, overload

import numpy as np

COLUMNS = ("input_ids", "labels")
BATCH_TOKENS = 2**20
"""Tokens that a writer holds in memory."""


IGNORED = -100
"""Label of a token that is read but not learned (torch's cross entropy leaves it out)."""


class Example(TypedDict):
    """One row, ready to train on: token ids, and the same with IGNORED where nothing is learned."""

    input_ids: list[int]
    labels: list[int]


class TokenWriter:
    """Writes examples to an Arrow stream; use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Args:
            path: Overwritten; its folder must exist.
        """
        import pyarrow as pa

        self.path = path
        self._schema = pa.schema([(name, pa.list_(pa.int32())) for name in COLUMNS])
        self._writer = pa.ipc.new_stream(str(path), self._schema)
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []
        self._tokens = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, input_ids: np.ndarray, labels: np.ndarray) -> None:
        """Append one example; both are (T,) int32."""
        self._rows.append((input_ids, labels))
        self._tokens += len(input_ids)
        if self._tokens >= BATCH_TOKENS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._rows:
            return
        lengths = [len(ids) for ids, _ in self._rows]
        offsets = pa.array(np.cumsum([0, *lengths], dtype=np.int32))
        columns = [
            pa.ListArray.from_arrays(offsets, pa.array(np.concatenate([row[index] for row in self._rows])))
            for index in range(len(COLUMNS))
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._rows, self._tokens = [], 0


class TokenFile(Sequence[Example]):
    """The examples of a file that a TokenWriter wrote, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Args:
            path: Where it lies; it must stay there while this is used.
        """
        self.path = path
        self.dataset = open_dataset(path)

    def __len__(self) -> int:
        return len(self.dataset)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        row: Example = self.dataset[index]
        return row


def open_dataset(path: Path) -> Any:
    """Return a file of tokens as a datasets.Dataset that reads from disk."""
    from datasets import Dataset

    return Dataset.from_file(str(path))


def to_dataset(examples: Sequence[Example]) -> Any:
    """Return examples as a datasets.Dataset, as TRL wants them; those on disk stay there."""
    from datasets import Dataset

    if isinstance(examples, TokenFile):
        return examples.dataset
    return Dataset.from_dict({name: [example[name] for example in examples] for name in COLUMNS})  # type: ignore[literal-required]


def measure_rows(dataset: Any) -> np.ndarray:
    """Return how many tokens each row of a dataset has, over all its columns of ids, without reading them.

    Args:
        dataset: A datasets.Dataset with columns of token ids, whose names end in `_ids`, in the order of its table.

    Returns:
        (rows,) int64.
    """
    import pyarrow.compute as pc

    names = [name for name in dataset.column_names if name.endswith("_ids")]
    lengths = [pc.list_value_length(dataset.data.column(name)).to_numpy().astype(np.int64) for name in names]
    total: np.ndarray = np.stack(lengths).sum(axis=0)
    return total
