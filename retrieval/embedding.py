"""Texts to vectors: sentence-transformers on a local model folder, and windows for texts longer than it reads.

`SentenceEmbedder` knows its identity without loading a weight, so that what needs no vector starts quickly; torch is
imported with the first one. Does not know stores, chunks or indexes.
"""

import functools
import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from core.config import Device
from core.errors import ContractError, NotFound
from core.layout import DataDir
from core.manifest import MODEL_MANIFEST, ModelManifest, hash_files, refuse_code_bearing
from retrieval.config import Dtype, EmbedderConfig
from retrieval.store import EmbedderIdentity

logger = logging.getLogger(__name__)

WINDOW_OVERLAP_TOKENS = 32
MAX_HEADING_SHARE = 0.3
"""Most of a window that a repeated heading may take; of a longer one the innermost end is repeated."""
QUERY_CACHE_SIZE = 1024


class TokenReader(Protocol):
    """What reads texts up to some length: an embedder, or a reranker beside a query."""

    @property
    def max_tokens(self) -> int:
        """Most tokens of a text that are read at once, special tokens left out."""

    def token_starts(self, text: str) -> Sequence[int]:
        """Return where each token of a text starts, as rising character offsets; nothing is cut off."""


class Embedder(TokenReader, Protocol):
    """What turns texts into vectors. The tests' hash embedder and `SentenceEmbedder` are held to one contract test."""

    @property
    def identity(self) -> EmbedderIdentity:
        """Which embedder this is."""

    def embed_query(self, query: str) -> NDArray[np.float32]:
        """Return (dimension,) float32 of unit length."""

    def embed_windows(self, windows: Sequence[str]) -> NDArray[np.float32]:
        """Return (windows, dimension) float32, unit rows, for passages of at most `max_tokens` each."""


class SentenceEmbedder:
    """A sentence-transformers model from a local folder. Thread-safe; loads on first use."""

    def __init__(self, folder: Path, config: EmbedderConfig) -> None:
        """Check the folder and work out the identity.

        Raises:
            NotFound: There is no such model.
            InvalidFile: It holds weights in a format that can carry code.
            ContractError: It does not look like a sentence-transformers model.
        """
        if not (folder / "modules.json").is_file():
            raise NotFound(
                f"embedder {config.name!r}: wanted a sentence-transformers model in {folder}, found none. "
                f"Run: python scripts/models.py get {config.name}",
                param="embedder",
            )
        refuse_code_bearing(folder)
        self._folder = folder
        self._config = config
        self._lock = threading.Lock()  # a tokenizer that pads may not be used by two threads at once
        self._identity = _identify(folder, config)
        self._embed_query = functools.lru_cache(QUERY_CACHE_SIZE)(self._embed_query_uncached)

    @property
    def identity(self) -> EmbedderIdentity:
        """Which embedder this is."""
        return self._identity

    @functools.cached_property
    def _model(self) -> Any:
        with self._lock:
            return _load_model(self._folder, self._config, self._identity)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return copy_tokenizer(self._model)

    @property
    def max_tokens(self) -> int:
        """Most tokens of a text that one vector can stand for, special tokens and the prefix left out."""
        return self._max_tokens

    @functools.cached_property
    def _max_tokens(self) -> int:
        special = int(self._model.tokenizer.num_special_tokens_to_add())
        prefix = len(self.token_starts(self._config.passage_prefix)) if self._config.passage_prefix else 0
        return int(self._model.max_seq_length) - special - prefix

    def load(self) -> None:
        """Load the model now, so that the first query does not wait for it."""
        self.embed_query("ready")

    def token_starts(self, text: str) -> Sequence[int]:
        """Return where each token of a text starts, as rising character offsets; nothing is cut off."""
        return find_token_starts(self._tokenizer, text)

    def embed_query(self, query: str) -> NDArray[np.float32]:
        """Return (dimension,) float32 of unit length; a query too long for the model is the mean of its windows."""
        vector: NDArray[np.float32] = self._embed_query(query)
        return vector

    def _embed_query_uncached(self, query: str) -> NDArray[np.float32]:
        windows = [self._config.query_prefix + window for window in cut_windows(None, query, self)]
        vector: NDArray[np.float32] = normalise_rows(self._encode(windows).mean(axis=0, keepdims=True))[0]
        vector.flags.writeable = False  # it is cached
        return vector

    def embed_windows(self, windows: Sequence[str]) -> NDArray[np.float32]:
        """Return (windows, dimension) float32, unit rows, for passages of at most `max_tokens` each."""
        return self._encode([self._config.passage_prefix + window for window in windows])

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        if not texts:
            return np.zeros((0, self._identity.dimension), dtype=np.float32)
        model = self._model
        with self._lock:  # sentence-transformers sorts by length itself, so that a batch pads little
            vectors = model.encode(
                texts, batch_size=self._config.batch_size, show_progress_bar=False, convert_to_tensor=True
            )
        return normalise_rows(vectors.float().cpu().numpy())  # in float32, whatever the model computes in


def open_embedder(data: DataDir, config: EmbedderConfig) -> SentenceEmbedder:
    """Return the configured embedder of a data directory; its weights are loaded with the first text.

    Raises:
        NotFound: There is no such model.
        InvalidFile: It holds weights in a format that can carry code.
        ContractError: It does not look like a sentence-transformers model.
    """
    return SentenceEmbedder(data.model(config.name), config)


def _identify(folder: Path, config: EmbedderConfig) -> EmbedderIdentity:
    """Return a model folder's identity: the hash covers weights, tokenizer, pooling and prefixes."""
    files = ModelManifest.read(folder).files if (folder / MODEL_MANIFEST).is_file() else hash_files(folder)
    decisive = {name: digest for name, digest in files.items() if not name.endswith((".md", "LICENSE", "NOTICE"))}
    parts = [decisive, config.query_prefix, config.passage_prefix]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return EmbedderIdentity(config.name, _read_dimension(folder), digest)


def _read_dimension(folder: Path) -> int:
    """Return the length of a model's vectors, from the configurations of its modules, the last one first."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        for module in reversed(modules):
            path = folder / module["path"] / "config.json"
            values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            for key in ("out_features", "word_embedding_dimension", "embedding_dimension", "hidden_size"):
                if isinstance(values.get(key), int):
                    return int(values[key])
    except (ValueError, KeyError, TypeError) as error:
        raise ContractError(f"{folder}: its modules.json cannot be read ({error}). Import the model again.") from error
    raise ContractError(f"{folder}: wanted a module that tells the length of its vectors, found none. Import it again.")


def _load_model(folder: Path, config: EmbedderConfig, identity: EmbedderIdentity) -> Any:
    """Load a model for inference and check that it is what its folder says."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it looks for 4-bit kernels, which are not needed here
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer

    transformers.utils.logging.disable_progress_bar()
    is_cuda = wants_cuda(config.device)
    dtype = pick_dtype(is_cuda=is_cuda) if config.dtype is Dtype.auto else getattr(torch, config.dtype.value)
    model = SentenceTransformer(
        str(folder), device="cuda" if is_cuda else "cpu", local_files_only=True, model_kwargs={"dtype": dtype}
    )
    model.eval()
    found = model.get_embedding_dimension()
    if found != identity.dimension:
        raise ContractError(f"{folder}: wanted vectors of {identity.dimension}, found {found}. Import it again.")
    logger.info("embedder %s on %s in %s", identity.name, model.device, str(dtype).removeprefix("torch."))
    return model


def copy_tokenizer(model: Any) -> Any:
    """Return a model's fast tokenizer alone, without truncation and padding: safe in any thread."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def find_token_starts(tokenizer: Any, text: str) -> list[int]:
    """Return where each token of a text starts, as rising character offsets; special tokens are left out."""
    return [start for start, _ in tokenizer.encode(text, add_special_tokens=False).offsets]


def wants_cuda(device: Device) -> bool:
    """Whether a model goes to a CUDA card: where that is asked for, and by `auto` where torch sees one."""
    import torch

    return torch.cuda.is_available() if device is Device.auto else device is Device.cuda


def pick_dtype(*, is_cuda: bool) -> Any:
    """Return the torch.dtype that is quick: bfloat16 where the hardware multiplies it, else float16 or float32."""
    import torch

    if is_cuda:
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    capabilities = torch.cpu.get_capabilities()
    has_bf16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if has_bf16 else torch.float32


def normalise_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows of unit length; a row of zeros stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)


def contextualise(heading: str | None, text: str) -> str:
    """Return what is embedded for a chunk: its heading path, then its text."""
    return f"{heading}\n{text}" if heading else text


def cut_windows(heading: str | None, text: str, reader: TokenReader) -> list[str]:
    """Cut what is read for a chunk into windows that the reader reads to their end.

    Args:
        heading: Heading path, repeated in every window.
        text: The chunk's text.
        reader: Tells how long a window may be.

    Returns:
        One window where all fits, else several that overlap; nothing is left out.
    """
    whole = contextualise(heading, text)
    limit = reader.max_tokens
    if len(reader.token_starts(whole)) <= limit:
        return [whole]
    heading = _shorten_heading(heading, int(limit * MAX_HEADING_SHARE), reader)
    room = limit - len(reader.token_starts(contextualise(heading, "")))
    starts = reader.token_starts(text)
    overlap = min(WINDOW_OVERLAP_TOKENS, room // 4)
    windows = []
    for first in range(0, max(1, len(starts) - overlap), room - overlap):
        last = first + room
        end = starts[last] if last < len(starts) else len(text)
        begin = starts[first] if first else 0
        windows.append(contextualise(heading, text[begin:end].strip()))
    return windows


def _shorten_heading(heading: str | None, limit: int, reader: TokenReader) -> str | None:
    """Return the innermost end of a heading that is longer than the limit, in tokens."""
    if heading is None:
        return None
    starts = reader.token_starts(heading)
    return heading if len(starts) <= limit else heading[starts[len(starts) - limit] :]


def embed_passages(passages: Sequence[tuple[str | None, str]], embedder: Embedder) -> list[NDArray[np.float32]]:
    """Embed chunks: heading path and text, in as many windows as each needs.

    Args:
        passages: Heading and text of each.
        embedder: The embedder.

    Returns:
        For each passage (windows, dimension) float32, unit rows.
    """
    windows = [cut_windows(heading, text, embedder) for heading, text in passages]
    vectors = embedder.embed_windows([window for group in windows for window in group])
    borders = np.cumsum([len(group) for group in windows])[:-1]
    return list(np.split(vectors, borders)) if windows else []


def embed_texts(texts: Sequence[str], embedder: Embedder) -> NDArray[np.float32]:
    """Embed texts to one vector each; one longer than the embedder reads has the normalised mean of its windows.

    Returns:
        (texts, dimension) float32, unit rows.
    """
    groups = embed_passages([(None, text) for text in texts], embedder)
    if not groups:
        return np.zeros((0, embedder.identity.dimension), dtype=np.float32)
    return normalise_rows(np.stack([group.mean(axis=0) for group in groups]))
