"""Reranking: a cross-encoder reads the query with each passage and scores the pair. Optional, off by default.

Does not know stores or fusion; it is given texts and returns scores.
"""

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.config import Device
from core.errors import NotFound
from core.manifest import refuse_code_bearing

BATCH_SIZE = 32


class Reranker:
    """A sentence-transformers cross-encoder from a local folder. Thread-safe; loads on first use."""

    def __init__(self, folder: Path, device: Device) -> None:
        """Check the folder.

        Raises:
            NotFound: There is no such model.
            InvalidFile: It holds weights in a format that can carry code.
        """
        if not (folder / "config.json").is_file():
            raise NotFound(
                f"reranker {folder.name!r}: wanted a cross-encoder in {folder}, found none. "
                "Import it: python scripts/models.py import PATH, or search without: search.reranker=null",
                param="search.reranker",
            )
        refuse_code_bearing(folder)
        self._folder = folder
        self._device = device
        self._lock = threading.Lock()

    @functools.cached_property
    def _model(self) -> Any:
        import transformers
        from sentence_transformers import CrossEncoder

        transformers.utils.logging.disable_progress_bar()
        device = None if self._device is Device.auto else self._device.value
        return CrossEncoder(str(self._folder), device=device, local_files_only=True)

    def score(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Return (passages,) float32, higher is better."""
        model = self._model
        with self._lock:
            scores = model.predict(
                [(query, passage) for passage in passages], batch_size=BATCH_SIZE, show_progress_bar=False
            )
        return np.asarray(scores, dtype=np.float32).reshape(len(passages))
