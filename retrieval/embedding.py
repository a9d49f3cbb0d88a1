"""Texts to vectors: sentence-transformers' models from local folders, and windows for texts longer than they read.

`SentenceEmbedder` knows its identity without loading a weight, so that what needs no vector starts quickly; torch is
imported with the first one. Does not know stores, chunks or indexes.
"""

import functools
import hashlib
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from core.config import Device
from core.errors import ContractError, NotFound
from core.layout import DataDir, find_data_dir
from core.manifest import MODEL_MANIFEST, ModelManifest, hash_files, refuse_code_bearing
from core.next_command import write_next_command
from retrieval.batches import CARD_BATCH_TOKENS, pad_rows, set_budget, share_out
from retrieval.config import Dtype, EmbedderConfig, EncoderEngine
from retrieval.encoder import TokenEncoder, open_encoder, pick_engine
from retrieval.spans import quantise
from retrieval.vectors import ChunkVectors, EmbedderIdentity, no_spans
from retrieval.windows import (
    TokenReader,
    copy_tokenizer,
    copy_untruncated,
    cut_windows,
    find_token_starts,
    use_all_cores,
)

logger = logging.getLogger(__name__)

QUERY_CACHE_SIZE = 1024


class Embedder(TokenReader, Protocol):
    """What turns texts into vectors. The tests' hash embedder and `SentenceEmbedder` are held to one contract test."""

    @property
    def identity(self) -> EmbedderIdentity:
        """Which embedder this is."""

    @property
    def makes_spans(self) -> bool:
        """Whether passages have spans as well."""

    def embed_query(self, query: str) -> NDArray[np.float32]:
        """Return (dimension,) float32 of unit length."""

    def embed_windows(self, windows: Sequence[str]) -> NDArray[np.float32]:
        """Return (windows, dimension) float32, unit rows, for passages of at most `max_tokens` each."""

    def embed_with_spans(self, windows: Sequence[str]) -> tuple[NDArray[np.float32], list[NDArray[np.int8]]]:
        """Return what `embed_windows` does, and the spans of each window, (spans, dimension) int8."""


@dataclass(frozen=True, slots=True)
class _Network:
    """A loaded model, in parts.

    Attributes:
        tokenizer: Cuts off what the model does not read; adds the special tokens.
        encoder: Token numbers to token vectors.
        heads: sentence-transformers' modules after the transformer: pooling first.
        padding: Number of the token that fills up a batch.
        max_length: Most tokens that it reads, special ones counted.
        pools_by_mean: Whether a text's vector is the mean of its token vectors, so that spans are comparable to it.
        pooling_threads: Threads of torch for what follows the encoder; None: as many as it has.
        least_budget: Tokens that a batch may have whatever is configured.
    """

    tokenizer: Any
    encoder: TokenEncoder
    heads: tuple[Any, ...]
    padding: int
    max_length: int
    pools_by_mean: bool
    pooling_threads: int | None
    least_budget: int


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
            bring = write_next_command("scripts/models.py", "get", config.name, data_dir=find_data_dir(folder))
            raise NotFound(
                f"embedder {config.name!r}: wanted a sentence-transformers model in {folder}, found none. Run: {bring}",
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
    def _network(self) -> _Network:
        with self._lock:
            return _load_network(self._folder, self._config, self._identity)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return copy_untruncated(self._network.tokenizer)

    @property
    def makes_spans(self) -> bool:
        """Whether passages have spans as well: where they are wanted and the model pools by the mean."""
        return self._config.span_tokens > 0 and self._network.pools_by_mean

    @property
    def max_tokens(self) -> int:
        """Most tokens of a text that one vector can stand for, special tokens and the prefix left out."""
        return self._max_tokens

    @functools.cached_property
    def _max_tokens(self) -> int:
        special = int(self._network.tokenizer.num_special_tokens_to_add(False))
        prefix = len(self.token_starts(self._config.passage_prefix)) if self._config.passage_prefix else 0
        return self._network.max_length - special - prefix

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
        vectors, _ = self._encode(windows)
        vector: NDArray[np.float32] = normalise_rows(vectors.mean(axis=0, keepdims=True))[0]
        vector.flags.writeable = False  # it is cached
        return vector

    def embed_windows(self, windows: Sequence[str]) -> NDArray[np.float32]:
        """Return (windows, dimension) float32, unit rows, for passages of at most `max_tokens` each."""
        return self._encode([self._config.passage_prefix + window for window in windows])[0]

    def embed_with_spans(self, windows: Sequence[str]) -> tuple[NDArray[np.float32], list[NDArray[np.int8]]]:
        """Return what `embed_windows` does, and the spans of each window, (spans, dimension) int8."""
        span_tokens = self._config.span_tokens if self.makes_spans else 0
        return self._encode([self._config.passage_prefix + window for window in windows], span_tokens)

    def _encode(self, texts: list[str], span_tokens: int = 0) -> tuple[NDArray[np.float32], list[NDArray[np.int8]]]:
        import torch

        network = self._network
        vectors = np.zeros((len(texts), self._identity.dimension), dtype=np.float32)
        spans = [no_spans(self._identity.dimension)] * len(texts)
        encodings = network.tokenizer.encode_batch_fast(texts)
        lengths = [len(encoding.ids) for encoding in encodings]
        most = max(self._config.batch_size * network.max_length, network.least_budget)
        places = list(share_out(lengths, set_budget(lengths, most, network.encoder.lanes)))
        batches = [pad_rows([encodings[place].ids for place in batch], network.padding) for batch in places]
        for batch, (_, mask), states in zip(places, batches, network.encoder.encode(batches), strict=True):
            with torch.inference_mode(), _use_threads(network.pooling_threads):
                features = {"token_embeddings": states, "attention_mask": torch.from_numpy(mask).to(states.device)}
                for head in network.heads:
                    features = head(features)
                vectors[batch] = features["sentence_embedding"].float().cpu().numpy()
                if span_tokens:
                    bounds = [_find_own_tokens(encodings[place]) for place in batch]
                    for place, rows in zip(batch, pool_spans(states, bounds, span_tokens), strict=True):
                        spans[place] = rows
        return normalise_rows(vectors), spans  # in float32, whatever the model computes in


@contextmanager
def _use_threads(count: int | None) -> Iterator[None]:
    """Let torch compute with so many threads within the body; None: with as many as it has."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _find_own_tokens(encoding: Any) -> tuple[int, int]:
    """Return the first token of a text that is its own, not special, and one past the last."""
    own = [place for place, is_special in enumerate(encoding.special_tokens_mask) if not is_special]
    return (own[0], own[-1] + 1) if own else (0, 0)


def pool_spans(states: Any, bounds: Sequence[tuple[int, int]], span_tokens: int) -> list[NDArray[np.int8]]:
    """Return the spans of each text, (spans, dimension) int8.

    Args:
        states: (texts, tokens, dimension) torch.Tensor: a vector for each token.
        bounds: First token of each text that counts, and one past the last.
        span_tokens: Length of a span; each overlaps half of the next, and the last ends where the text does.
    """
    import torch

    edges = [cut_spans(first, end, span_tokens) for first, end in bounds]
    counts = [len(pairs) for pairs in edges]
    texts = torch.repeat_interleave(torch.arange(len(edges)), torch.tensor(counts)).to(states.device)
    pairs = torch.tensor([pair for pairs in edges for pair in pairs], dtype=torch.int64).reshape(-1, 2)
    pairs = pairs.to(states.device)
    sums = torch.nn.functional.pad(states.float().cumsum(dim=1), (0, 0, 1, 0))
    rows = (sums[texts, pairs[:, 1]] - sums[texts, pairs[:, 0]]).cpu().numpy()  # only their direction counts
    return np.split(quantise(rows), np.cumsum(counts)[:-1])


def cut_spans(first: int, end: int, length: int) -> list[tuple[int, int]]:
    """Return stretches of a length that overlap by half and cover `first` to `end`; one where all is no longer."""
    if end - first <= length:
        return [(first, end)] if end > first else []
    stride = max(1, length // 2)
    last = end - length
    return [(min(start, last), min(start, last) + length) for start in range(first, last + stride, stride)]


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


def _load_network(folder: Path, config: EmbedderConfig, identity: EmbedderIdentity) -> _Network:
    """Load a model for inference and check that it is what its folder says."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it looks for 4-bit kernels, which are not needed here
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    transformers.utils.logging.disable_progress_bar()
    is_cuda = wants_cuda(config.device)
    engine = pick_engine(config.engine, is_cuda=is_cuda)
    dtype = settle_dtype(config.dtype, engine, is_cuda=is_cuda)
    loaded = torch.float32 if engine is EncoderEngine.openvino else getattr(torch, dtype.value)
    model: Any = SentenceTransformer(
        str(folder), device="cuda" if is_cuda else "cpu", local_files_only=True, model_kwargs={"dtype": loaded}
    )
    model.eval()
    if is_cuda:
        use_all_cores()
    found = model.get_embedding_dimension()
    if found != identity.dimension:
        raise ContractError(f"{folder}: wanted vectors of {identity.dimension}, found {found}. Import it again.")
    heads = tuple(model)[1:]
    if not hasattr(model[0], "model") or not heads:
        raise ContractError(f"{folder}: wanted a transformer and a pooling, found {type(model[0]).__name__}.")
    encoder = open_encoder(model, engine, dtype)
    max_length = int(model.max_seq_length)
    tokenizer = copy_tokenizer(model)
    tokenizer.enable_truncation(max_length)
    pools_by_mean = isinstance(heads[0], Pooling) and heads[0].pooling_mode == "mean"
    pools_by_mean = pools_by_mean and all(isinstance(head, Normalize) for head in heads[1:])
    # The encoder keeps every core busy; threads of torch that wait for work would only stand in its way.
    pooling_threads = 1 if engine is EncoderEngine.openvino else None
    logger.info("embedder %s on %s by %s in %s", identity.name, model.device, engine.value, dtype.value)
    padding, least_budget = model.tokenizer.pad_token_id or 0, CARD_BATCH_TOKENS if is_cuda else 0
    return _Network(tokenizer, encoder, heads, padding, max_length, pools_by_mean, pooling_threads, least_budget)


def wants_cuda(device: Device) -> bool:
    """Whether a model goes to a CUDA card: where that is asked for, and by `auto` where torch sees one."""
    import torch

    return torch.cuda.is_available() if device is Device.auto else device is Device.cuda


def settle_dtype(wanted: Dtype, engine: EncoderEngine, *, is_cuda: bool) -> Dtype:
    """Return what a model computes in; int8, which only OpenVINO knows, gives way to `auto` where torch computes.

    Args:
        wanted: As configured.
        engine: What runs the model here, not `auto`.
        is_cuda: Whether it runs on a card.
    """
    if wanted is Dtype.int8 and engine is not EncoderEngine.openvino:
        found = pick_dtype(is_cuda=is_cuda)
        reason = "torch computes on a CUDA card" if is_cuda else "OpenVINO is not installed"
        logger.warning("embedder.dtype: wanted int8, found that %s; %s instead", reason, found.value)
        return found
    return pick_dtype(is_cuda=is_cuda) if wanted is Dtype.auto else wanted


def pick_dtype(*, is_cuda: bool) -> Dtype:
    """Return the type that is quick: bfloat16 where the hardware multiplies it, else float16 (CUDA) or float32."""
    import torch

    if is_cuda:
        return Dtype.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else Dtype.float16
    capabilities = torch.cpu.get_capabilities()
    has_bf16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return Dtype.bfloat16 if has_bf16 else Dtype.float32


def normalise_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows of unit length; a row of zeros stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)


def embed_passages(passages: Sequence[tuple[str | None, str]], embedder: Embedder) -> list[ChunkVectors]:
    """Embed chunks: heading path and text, in as many windows as each needs.

    Args:
        passages: Heading and text of each.
        embedder: The embedder.

    Returns:
        For each passage its vectors.
    """
    windows = [cut_windows(heading, text, embedder) for heading, text in passages]
    vectors, spans = embedder.embed_with_spans([window for group in windows for window in group])
    ends = np.cumsum([len(group) for group in windows])
    return [
        ChunkVectors(vectors[end - len(group) : end], np.concatenate(spans[end - len(group) : end]))
        for group, end in zip(windows, ends, strict=True)
    ]


def embed_texts(texts: Sequence[str], embedder: Embedder) -> NDArray[np.float32]:
    """Embed texts to one vector each; one longer than the embedder reads has the normalised mean of its windows.

    Returns:
        (texts, dimension) float32, unit rows.
    """
    if not texts:
        return np.zeros((0, embedder.identity.dimension), dtype=np.float32)
    groups = [cut_windows(None, text, embedder) for text in texts]
    vectors = embedder.embed_windows([window for group in groups for window in group])
    firsts = np.cumsum([0, *map(len, groups)])[:-1]
    return normalise_rows(np.add.reduceat(vectors, firsts, axis=0))
