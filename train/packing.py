"""Rows joined into packs of up to `max_length` tokens, so that every batch computes about as many tokens as the last.

TRL packs (best fit decreasing, no row is cut in two) and says where each document begins; attention goes no further
back. A pack then counts as one row of a batch, so that fewer, fuller steps are taken than without. Does not know the
model.

Source: «Fewer Truncations Improve Language Modeling» (arXiv 2404.10830); trl.pack_dataset.
"""

from pathlib import Path

from datasets import disable_progress_bars
from trl.data_utils import pack_dataset

from train.config import TrainConfig
from train.encoding import Encoded
from train.scratch import is_first_here, wait_for
from train.tokens import TokenFile, measure_rows, to_dataset

PACKED_FILE = "packs.arrow"


def pack_rows(learned: Encoded, config: TrainConfig, folder: Path) -> Encoded:
    """Join rows into packs where the configuration says so.

    Args:
        learned: The training rows.
        config: The run's configuration.
        folder: Where the packs go; must exist while they are used.

    Returns:
        Packs as examples, `longest` being the longest pack; or the rows as they came.
    """
    if not config.trainer.packing:
        return learned
    path = folder / PACKED_FILE
    if is_first_here():
        disable_progress_bars()
        pack_dataset(to_dataset(learned.examples), config.trainer.max_length, map_kwargs={"cache_file_name": str(path)})
    else:
        wait_for(path)
    packs = TokenFile(path)
    longest = int(measure_rows(packs.dataset).max())
    return Encoded(packs, learned.tokens, learned.trained_tokens, longest, learned.cut_lines)


def describe(config: TrainConfig, learned: Encoded, packed: Encoded) -> list[str]:
    """Return a line for people where rows were packed: how many went into how many packs, and how full they are."""
    if not config.trainer.packing:
        return []
    rows, packs, most = len(learned.examples), len(packed.examples), config.trainer.max_length
    fill = packed.tokens / (packs * most)
    return [f"packing: {rows:,} rows in {packs:,} packs of at most {most:,} tokens, {fill:.0%} full"]
