"""Reranking: a second model reads the query and each passage more closely and scores the pair from 0 to 1.

A cross-encoder reads both together and tells how likely the passage is to answer: any sequence classifier of one or
two labels works, by its folder (bge-reranker, ms-marco-MiniLM, one trained here). A model of late interaction (ColBERT)
reads each by itself; the score is the mean, over the query's tokens, of the cosine of the passage's nearest token,
weighed where that was learned (interaction.py). Both are on one scale for all queries, whatever the model itself
prefers, so that they can be summed with fused scores and held against a threshold. Optional, off by default. Does not
know stores or fusion.
"""

import functools
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import ContractError, NotFound
from core.layout import find_data_dir
from core.manifest import refuse_code_bearing
from core.next_command import write_next_command
from retrieval.config import DEFAULT_RERANK_WEIGHT, Dtype, EmbedderConfig, EncoderEngine
from retrieval.embedding import normalise_rows, settle_dtype, wants_cuda
from retrieval.encoder import compile_forward, pick_engine
from retrieval.interaction import Reading, Weighting, mix_scores, read_weighting, score_evenly, score_stretches
from retrieval.pairs import is_plain, score_pairs
from retrieval.windows import contextualise, copy_tokenizer, cut_windows, find_token_starts, use_all_cores

BATCH_SIZES = {"cuda": 64, "cpu": 8}
"""Texts at once, sorted by length, where the library makes the batches."""
LATE_TYPES = frozenset({"MultiVectorEncoder", "ColBERT"})
"""What sentence-transformers and PyLate call models of late interaction."""
MAX_QUERY_SHARE = 0.5
"""Most of what the model reads that a query may take; the end of a longer one is left out."""

KEPT_PASSAGES = 512
"""Passages whose token vectors a model of late interaction keeps; those read lately are often read again."""

TOKENIZER_OUTPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What a tokenizer can give a model, in the order that a compiled model takes it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Room:
    """What the model reads of a passage beside a query: the TokenReader that windows are cut for."""

    max_tokens: int
    token_starts: Callable[[str], list[int]]


class Reranker:
    """A cross-encoder or a model of late interaction from a local folder. Thread-safe; loads on first use."""

    def __init__(self, folder: Path, config: EmbedderConfig, *, kept_passages: int = KEPT_PASSAGES) -> None:
        """Check the folder.

        Args:
            folder: The model, below models/ of a data directory.
            config: Of the embedder, beside which the reranker runs: its device, engine and dtype count here, too.
            kept_passages: Passages whose token vectors a model of late interaction keeps, some 120 kB each.

        Raises:
            NotFound: There is no such model.
            InvalidFile: It holds weights in a format that can carry code.
            ContractError: What it has learned cannot be read.
        """
        if not (folder / "config.json").is_file():
            data_dir = find_data_dir(folder)
            bring = write_next_command("scripts/models.py", "import", "PATH", data_dir=data_dir)
            train = write_next_command("retrieval/run.py", "action=train_reranker", data_dir=data_dir)
            raise NotFound(
                f"reranker {folder.name!r}: wanted a cross-encoder in {folder}, found none. Import it: {bring}, or "
                f"train one: {train}, or search without: search.reranker=null",
                param="search.reranker",
            )
        refuse_code_bearing(folder)
        self._folder = folder
        self._config = config
        self._weighting = read_weighting(folder)
        self._most_kept = kept_passages
        self._kept: OrderedDict[tuple[str | None, str], list[NDArray[np.float16]]] = OrderedDict()
        self._lock = threading.Lock()

    @functools.cached_property
    def _model(self) -> Any:
        with self._lock:
            return load_reranker(self._folder, self._config)

    def settle_weight(self, configured: float | None) -> float:
        """Return the share of its score beside the fused one: as configured, as it was trained for, or the default."""
        if configured is not None:
            return configured
        return DEFAULT_RERANK_WEIGHT if self._weighting is None else self._weighting.rerank_weight

    @property
    def feedback(self) -> float:
        """Share of the likeness to the best hit in what the reranker leaves of a score; 0 where none was learned."""
        return 0.0 if self._weighting is None or not self._is_late else self._weighting.feedback

    def take_weighting(self, weighting: Weighting) -> None:
        """Score by other weights of tokens from here on: for whoever learns them."""
        self._weighting = weighting

    @property
    def vocabulary_size(self) -> int:
        """How many different tokens the model knows."""
        return int(self._tokenizer.get_vocab_size())

    def list_tokens(self, heading: str | None, text: str) -> list[int]:
        """Return the numbers of a passage's tokens."""
        found: list[int] = self._tokenizer.encode(contextualise(heading, text), add_special_tokens=False).ids
        return found

    @functools.cached_property
    def _is_late(self) -> bool:
        from sentence_transformers import MultiVectorEncoder

        return isinstance(self._model, MultiVectorEncoder)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return copy_tokenizer(self._model)

    def count_tokens(self, text: str) -> int:
        """Return how many of the model's tokens a text has."""
        return len(self._token_starts(text))

    def _token_starts(self, text: str) -> list[int]:
        return find_token_starts(self._tokenizer, text)

    def score(self, query: str, passages: Sequence[tuple[str | None, str]]) -> NDArray[np.float32]:
        """Score each passage for the query.

        Args:
            query: Free text.
            passages: Heading and text of each. One longer than the model reads is read in windows and has the score of
                its best one.

        Returns:
            (passages,) float32, 0 to 1.
        """
        if not passages:
            return np.zeros(0, dtype=np.float32)
        if self._is_late:
            read = self._read_passages(passages)
            sizes = [len(group) for group in read]
            rows = [window.astype(np.float32) for group in read for window in group]
            scores = self._compare(query, rows)
        else:
            query, room = self._fit_query(query)
            score = self._score_pairs if is_plain(self._model) else self._predict
            scores, sizes = score(query, passages, room)
        firsts = np.cumsum([0, *sizes[:-1]])
        return np.asarray(np.maximum.reduceat(scores, firsts), dtype=np.float32)

    def rank(
        self, query: str, passages: Sequence[tuple[str | None, str]], fused: NDArray[np.float32], weight: float | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score passages and mix that with what the search gave them.

        Args:
            query: Free text.
            passages: Heading and text of each.
            fused: (passages,) scores of the search.
            weight: Share of the reranker's score; None: as it was trained for. The likeness to the best hit has the
                share that was learned, unless the weight is 0.

        Returns:
            (passages,) float32 final scores, and those of the reranker alone.
        """
        reading = self.read(query, passages)
        likeness = reading.means @ reading.means.T
        share = self.settle_weight(weight)
        return mix_scores(fused, reading.scores, likeness, share, self.feedback), reading.scores

    def read(self, query: str, passages: Sequence[tuple[str | None, str]]) -> Reading:
        """Score passages, and tell which are alike where that was found to count."""
        scores = self.score(query, passages)
        has_likeness = self.feedback > 0 and len(passages) > 0
        return Reading(scores, self.average(passages) if has_likeness else np.zeros((len(passages), 0), np.float32))

    def average(self, passages: Sequence[tuple[str | None, str]]) -> NDArray[np.float32]:
        """Return (passages, dimension) float32, unit rows: the means of their token vectors; late interaction only."""
        means = [np.concatenate(windows).astype(np.float32).sum(axis=0) for windows in self._read_passages(passages)]
        return normalise_rows(np.stack(means))

    def _compare(self, query: str, windows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return (windows,) float32: how near each comes to the query's tokens."""
        query, _ = self._fit_query(query)
        with self._lock:
            (found,) = self._model.encode_query([query], output_value=None, show_progress_bar=False)
        mask = found["attention_mask"].bool()
        tokens = _to_rows(found["token_embeddings"][mask])
        if self._weighting is None:
            return score_evenly(tokens, windows)
        return score_stretches(tokens, self._weighting.rarity[found["input_ids"][mask].cpu().numpy()], windows)

    def _read_passages(self, passages: Sequence[tuple[str | None, str]]) -> list[list[NDArray[np.float16]]]:
        """Return (tokens, dimension) float16, unit rows, for each window of each passage; late interaction only.

        What was read lately is not read again: a passage's tokens are the same whatever is asked.
        """
        _, room = self._fit_query("")
        with self._lock:
            new = {passage: cut_windows(*passage, room) for passage in passages if passage not in self._kept}
            flat = [window for windows in new.values() for window in windows]
            options = {"batch_size": self._batch_size(), "show_progress_bar": False}
            found = self._model.encode_document(flat, **options) if flat else []
            rows = iter([_to_rows(tokens).astype(np.float16) for tokens in found])
            for passage, windows in new.items():
                self._kept[passage] = [next(rows) for _ in windows]
            read = []
            for passage in passages:
                self._kept.move_to_end(passage)
                read.append(self._kept[passage])
            while len(self._kept) > self._most_kept:
                self._kept.popitem(last=False)
        return read

    def _fit_query(self, query: str) -> tuple[str, _Room]:
        """Return the query as far as it is read, and the room for a passage beside it."""
        limit = int(self._model.max_seq_length) - int(self._model.tokenizer.num_special_tokens_to_add(pair=True))
        starts = self._token_starts(query)
        most = int(limit * MAX_QUERY_SHARE)
        if len(starts) > most:
            query, starts = query[: starts[most]], starts[:most]
        return query, _Room(limit if self._is_late else limit - len(starts), self._token_starts)

    def _batch_size(self) -> int:
        return BATCH_SIZES.get(self._model.device.type, BATCH_SIZES["cpu"])

    def _score_pairs(
        self, query: str, passages: Sequence[tuple[str | None, str]], room: _Room
    ) -> tuple[NDArray[np.float32], list[int]]:
        """Return (windows,) float32 probabilities, and how many windows each passage has."""
        model, limit = self._model, int(self._model.max_seq_length)
        encodings: list[Any] = []
        sizes: list[int] = []
        wholes = self._tokenizer.encode_batch_fast([(query, contextualise(*passage)) for passage in passages])
        for passage, whole in zip(passages, wholes, strict=True):
            is_long = len(whole) > limit
            pairs = [(query, window) for window in cut_windows(*passage, room)] if is_long else []
            windows = self._tokenizer.encode_batch_fast(pairs) if is_long else [whole]
            encodings += windows
            sizes.append(len(windows))
        with self._lock:
            logits = score_pairs(model, encodings).astype(np.float64)
        margin = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        return (1 / (1 + np.exp(-margin))).astype(np.float32), sizes

    def _predict(
        self, query: str, passages: Sequence[tuple[str | None, str]], room: _Room
    ) -> tuple[NDArray[np.float32], list[int]]:
        """Return what `_score_pairs` does, by the library's own way: for models that want more than two texts."""
        import torch

        cut = [cut_windows(*passage, room) for passage in passages]
        pairs = [(query, window) for group in cut for window in group]
        model = self._model
        is_single = model.num_labels == 1
        with self._lock:  # sentence-transformers sorts by length itself; a tokenizer that pads is for one thread
            scores = model.predict(
                pairs,
                batch_size=self._batch_size(),
                activation_fn=torch.nn.Sigmoid() if is_single else torch.nn.Identity(),
                apply_softmax=not is_single,
                show_progress_bar=False,
                convert_to_tensor=True,  # fetched from a card at once
            )
        values = _to_rows(scores)
        return values if is_single else values[:, 1], [len(group) for group in cut]


def _to_rows(tokens: Any) -> NDArray[np.float32]:
    """Return a tensor of token vectors as an array."""
    return np.asarray(tokens.float().cpu().numpy(), dtype=np.float32)


def load_reranker(folder: Path, config: EmbedderConfig) -> Any:
    """Load a CrossEncoder or MultiVectorEncoder for inference, in the number format that is quick there.

    Args:
        folder: A model folder, checked for code.
        config: Device, engine and dtype, as for the embedder.

    Raises:
        ContractError: It tells more than two labels apart, so no score of it means «relevant».
    """
    import torch
    import transformers
    from sentence_transformers import CrossEncoder, MultiVectorEncoder

    transformers.utils.logging.disable_progress_bar()
    is_cuda = wants_cuda(config.device)
    is_late = _read_type(folder) in LATE_TYPES
    engine = pick_engine(config.engine, is_cuda=is_cuda)
    dtype = settle_dtype(config.dtype, engine, is_cuda=is_cuda)
    loaded = Dtype.float32 if engine is EncoderEngine.openvino else dtype
    model: Any = (MultiVectorEncoder if is_late else CrossEncoder)(
        str(folder),
        device="cuda" if is_cuda else "cpu",
        local_files_only=True,
        model_kwargs={"dtype": getattr(torch, loaded.value)},
    )
    if is_late:
        model.similarity_fn_name = "meanmaxsim"
    elif model.num_labels > 2:
        raise ContractError(
            f"{folder}: wanted a cross-encoder with 1 or 2 labels, found {model.num_labels}. Choose another reranker."
        )
    model.eval()
    if is_cuda:
        use_all_cores()
    if engine is EncoderEngine.openvino:
        engine = _compile(model, dtype, is_late=is_late)
    logger.info("reranker %s on %s by %s in %s", folder.name, model.device, engine.value, dtype.value)
    return model


def _compile(model: Any, dtype: Dtype, *, is_late: bool) -> EncoderEngine:
    """Let OpenVINO run a model's transformer where it is one of the usual kinds; return what runs it now."""
    transformer = getattr(model[0], "model", None)
    names = [name for name in TOKENIZER_OUTPUTS if name in model.tokenizer.model_input_names]
    is_usual = is_late or type(transformer).__name__.endswith("ForSequenceClassification")
    if transformer is None or not is_usual or names[:2] != list(TOKENIZER_OUTPUTS[:2]):
        return EncoderEngine.torch
    compile_forward(transformer, names, "last_hidden_state" if is_late else "logits", dtype)
    return EncoderEngine.openvino


def _read_type(folder: Path) -> str | None:
    """Return what sentence-transformers calls the model; None where its files do not say."""
    path = folder / "config_sentence_transformers.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get("model_type") if path.is_file() else None
    except (ValueError, AttributeError) as error:
        raise ContractError(f"{path}: cannot be read ({error}). Import the model again.") from error
    return value if isinstance(value, str) else None
