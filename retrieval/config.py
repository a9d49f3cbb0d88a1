"""What retrieval can be told: the schema, the defaults and the ranges of conf/retrieval.yaml and its groups.

Plain Python, so that a wrong value is refused before anything heavy is imported. serve/ builds a Searcher from the same
dataclasses. Does not know what the machine has.
"""

from dataclasses import dataclass, field
from enum import Enum

import Stemmer

from core.config import Device, PathsConfig, check_ranges
from core.errors import ConfigError
from core.layout import check_name

MAX_K = 1000
DEFAULT_K = 5
DEFAULT_RERANK_WEIGHT = 0.3
"""Share of the score of a reranker that does not say how much it should count (docs/decisions/0052)."""


class Action(Enum):
    """What retrieval/run.py does."""

    ingest = "ingest"
    sync = "sync"
    watch = "watch"
    delete = "delete"
    reembed = "reembed"
    search = "search"
    status = "status"
    rebuild = "rebuild"
    tune = "tune"
    train_reranker = "train_reranker"
    train_embedder = "train_embedder"


class ChunkingMode(Enum):
    """Where documents are cut: between sections, paragraphs and sentences, or every so many tokens."""

    auto = "auto"
    static = "static"


class RerankerKind(Enum):
    """How a reranker reads: both texts together, or each by itself and then token against token.

    `weighted_interaction` is late interaction, too, of the encoder as it is: only how much tokens count is learned.
    """

    weighted_interaction = "weighted_interaction"
    cross_encoder = "cross_encoder"
    late_interaction = "late_interaction"


class Output(Enum):
    """How results are printed: a table for people, one JSON object a line for programs."""

    table = "table"
    json = "json"


class IndexDevice(Enum):
    """Where FAISS keeps the vectors; `auto` takes the GPU where FAISS has one that works."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class Dtype(Enum):
    """What the embedder computes in; `auto` takes bfloat16 where the hardware multiplies it. int8: OpenVINO only."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    int8 = "int8"


class EncoderEngine(Enum):
    """What runs the embedder; `auto` takes OpenVINO on a CPU where it is installed, else torch."""

    auto = "auto"
    torch = "torch"
    openvino = "openvino"


class FusionMethod(Enum):
    """How lexical and dense scores become one: weighted sum of normalised scores, or reciprocal ranks."""

    weighted = "weighted"
    rrf = "rrf"


class Ann(Enum):
    """How the nearest vectors of a long run are found."""

    auto = "auto"
    exact = "exact"


@dataclass(slots=True)
class EmbedderConfig:
    """Which model turns text into vectors, and how it is run.

    Attributes:
        name: Name of its folder under models/, in sentence-transformers' layout.
        device: Where it runs; `auto`: a CUDA card where torch sees one, else the CPU.
        engine: What runs it on a CPU; a CUDA card always takes torch.
        dtype: What it computes in; vectors of different dtypes agree to a cosine of 0.999 (int8) or more and may be
            mixed.
        batch_size: Texts of the greatest length at once; of shorter ones there are more.
        span_tokens: Tokens of a span: what the best stretch of a chunk is looked for in, besides the whole; each
            overlaps half of the next. 0: no spans. Models that do not pool by the mean have none.
        query_prefix: What the model wants before a query (E5: `query: `).
        passage_prefix: What the model wants before a passage (E5: `passage: `).
    """

    name: str = "all-minilm-l6-v2"
    device: Device = Device.auto
    engine: EncoderEngine = EncoderEngine.auto
    dtype: Dtype = Dtype.auto
    batch_size: int = 16
    span_tokens: int = 16
    query_prefix: str = ""
    passage_prefix: str = ""

    def __post_init__(self) -> None:
        """Check the name, the ranges and what does not go together."""
        check_name(self.name, "embedder.name")
        check_ranges("embedder", {"batch_size": (self.batch_size, 1, 4096), "span_tokens": (self.span_tokens, 0, 512)})
        if self.dtype is Dtype.int8 and (self.engine is EncoderEngine.torch or self.device is Device.cuda):
            raise ConfigError(
                "embedder.dtype: wanted int8 with engine=openvino (or auto) on a CPU, found "
                f"engine={self.engine.value} and device={self.device.value}. Take float32, bfloat16 or float16.",
                param="embedder",
            )


@dataclass(slots=True)
class ChunkingConfig:
    """How documents are cut.

    Attributes:
        max_tokens: Longest chunk, in the embedder's tokens, its heading not counted.
        overlap_tokens: Most that two chunks share; `auto` repeats whole sentences, where a paragraph had to be cut.
        mode: `auto` cuts by structure; `static` cuts windows of one length, as OpenAI's static strategy does.
    """

    max_tokens: int = 240
    overlap_tokens: int = 32
    mode: ChunkingMode = ChunkingMode.auto

    def __post_init__(self) -> None:
        """Check every range."""
        check_ranges(
            "chunking",
            {
                "max_tokens": (self.max_tokens, 16, 4096),
                "overlap_tokens": (self.overlap_tokens, 0, self.max_tokens // 2),
            },
        )


@dataclass(slots=True)
class SearchConfig:
    """How chunks are found and ordered.

    Attributes:
        fusion: How the two scores become one.
        dense_weight: Share of the dense score in the sum, 0 to 1; the lexical one has the rest.
        span_weight: Share of a chunk's best span in its dense score, 0 to 1; the whole chunk has the rest.
        pair_weight: Share of the query's word pairs in the lexical score of the ten best, 0 to 1: neighbouring words
            that stand in a chunk as they do in the query (docs/decisions/0082). BM25 has the rest.
        likeness_weight: Share of the likeness to the best hit in the final score, 0 to 1, times `dense_weight`: for
            stores whose questions have many answers, which are alike. `action=tune` finds it (docs/decisions/0063).
        candidates: Best chunks that each side brings before they are fused.
        index_device: Where FAISS keeps the vectors.
        ann: How the nearest vectors are found: `auto` looks, in runs of 100,000 vectors and more, only at the lists
            nearest to the query, which misses about one in a hundred of the ten nearest; `exact` looks at all, in time
            that grows with the store. Shorter runs are always searched whole. Cosines are the same to the bit.
        reranker: Name of a cross-encoder's folder under models/; null: none.
        rerank_depth: Fused chunks that the reranker reads.
        rerank_weight: Share of the reranker's probability in the final score, 0 to 1; the fused score has the rest.
            Null: what the reranker was trained for, 0.3 where it does not say. Where a reranker has learned that what
            is like the best hit counts, it does with any weight but 0.
        min_score: Least that a hit must have of what can be compared between queries: the reranker's probability where
            there is one, else the cosine of its best span. Where no chunk has it, nothing is found. Null: no threshold.
        mmr_lambda: Relevance against variety among the hits, 1 (relevance alone) to 0; null: off.
        neighbours: Chunks before and after a hit that its context holds too, as long as they share its heading.
        use_tuned: Whether a store that `action=tune` has settled is searched with the settings it found: fusion, the
            weights, number of hits, and depth and weight of the reranker where it is the same one.
    """

    fusion: FusionMethod = FusionMethod.weighted
    dense_weight: float = 0.75
    span_weight: float = 0.6
    pair_weight: float = 0.0
    likeness_weight: float = 0.0
    candidates: int = 100
    index_device: IndexDevice = IndexDevice.auto
    ann: Ann = Ann.auto
    reranker: str | None = None
    rerank_depth: int = 20
    rerank_weight: float | None = None
    min_score: float | None = None
    mmr_lambda: float | None = None
    neighbours: int = 0
    use_tuned: bool = True

    def __post_init__(self) -> None:
        """Check every range."""
        check_ranges(
            "search",
            {
                "dense_weight": (self.dense_weight, 0, 1),
                "span_weight": (self.span_weight, 0, 1),
                "pair_weight": (self.pair_weight, 0, 1),
                "likeness_weight": (self.likeness_weight, 0, 1),
                "candidates": (self.candidates, 1, 10_000),
                "rerank_depth": (self.rerank_depth, 1, 1000),
                "rerank_weight": (self.rerank_weight, 0, 1),
                "min_score": (self.min_score, -1, 1),
                "mmr_lambda": (self.mmr_lambda, 0, 1),
                "neighbours": (self.neighbours, 0, 20),
            },
        )
        if self.reranker is not None:
            check_name(self.reranker, "search.reranker")


@dataclass(slots=True)
class ParsingConfig:
    """What parsing one file may cost, in a child process.

    Attributes:
        workers: Child processes at once.
        timeout_s: Longest time for one file, seconds.
        memory_mib: Most memory that a child may ask for, MiB.
        max_file_mib: Largest file that is read, MiB.
    """

    workers: int = 1
    timeout_s: float = 25.0
    memory_mib: int = 1024
    max_file_mib: int = 200

    def __post_init__(self) -> None:
        """Check every range."""
        check_ranges(
            "parsing",
            {
                "workers": (self.workers, 1, 64),
                "timeout_s": (self.timeout_s, 0.1, 3600),
                "memory_mib": (self.memory_mib, 256, 65_536),
                "max_file_mib": (self.max_file_mib, 1, 4096),
            },
        )


@dataclass(slots=True)
class WatchConfig:
    """How `action=watch` follows a folder.

    Attributes:
        debounce_s: How long a folder must be quiet before a sync begins, seconds.
        interval_s: How often the folder is looked at where no event tells of a change, seconds; also how soon a folder
            that had vanished is found again.
        is_polled: Whether to look at every file instead of waiting for events: for network drives, which send none.
    """

    debounce_s: float = 1.0
    interval_s: float = 60.0
    is_polled: bool = False

    def __post_init__(self) -> None:
        """Check every range."""
        check_ranges(
            "watch", {"debounce_s": (self.debounce_s, 0.05, 600), "interval_s": (self.interval_s, 0.1, 86_400)}
        )


@dataclass(slots=True)
class LearningConfig:
    """How a reranker or an embedder is trained.

    Attributes:
        kind: What a reranker becomes; `weighted_interaction` learns from little data what holds for other questions,
            `late_interaction` adapts to those at hand, a cross-encoder goes further with much data.
        steps: Batches that are learned from.
        batch_size: Questions in a batch; each is also held against the others' passages.
        negatives: Hard negatives of each question.
        learning_rate: Its height after the warm-up; it falls to 0.
        max_tokens: Most of a passage that is read while training; later it is read to its end.
        save_steps: Steps between two checkpoints.
        seed: Of every draw.
    """

    kind: RerankerKind = RerankerKind.weighted_interaction
    steps: int = 200
    batch_size: int = 16
    negatives: int = 2
    learning_rate: float = 6e-5
    max_tokens: int = 144
    save_steps: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every range."""
        check_ranges(
            "learning",
            {
                "steps": (self.steps, 1, 1_000_000),
                "batch_size": (self.batch_size, 2, 1024),
                "negatives": (self.negatives, 1, 32),
                "learning_rate": (self.learning_rate, 0, 1),
                "max_tokens": (self.max_tokens, 16, 8192),
                "save_steps": (self.save_steps, 1, 100_000),
                "seed": (self.seed, 0, 2**32 - 1),
            },
        )


@dataclass(slots=True)
class RetrievalConfig:
    """The whole configuration of retrieval/run.py.

    Attributes:
        paths: Where the data directory is.
        embedder: The embedding model.
        chunking: How documents are cut.
        search: How chunks are found.
        parsing: What parsing may cost.
        watch: How a folder is followed.
        learning: How a reranker or an embedder is trained.
        action: What to do; required.
        store: Name of the store; `status` without one lists all, a training takes its language only.
        source: File or folder to ingest; the folder to sync with or to watch.
        language: What the words of a new store, or of the question sets of a training, are stemmed as, one of
            Snowball's stemmers; null: english, or with a training as in `store`.
        file: Name of the document to delete; without one the whole store is deleted.
        files: Whether `status` lists the documents, each with its state.
        verify: Whether to read every file, even one whose size, time and inode have not changed.
        allow_empty: Whether a sync may remove all that a store holds.
        query_file: File that holds the query's text, or `-` for standard input.
        filters: File that holds a filter over documents' attributes, as JSON in OpenAI's shape.
        k: How many hits; null: what the store was tuned to, else 5.
        questions: File of labelled questions, one JSON object a line.
        train: Folders of question sets to learn from, in BEIR's layout.
        valid: Folders of question sets to judge by, before and after.
        base: Name of the encoder under models/ that training begins with; null: the embedder.
        output_model: Name of the trained model's folder under models/.
        output: How results are printed.
    """

    paths: PathsConfig = field(default_factory=PathsConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    chunking: ChunkingConfig = field(default_factory=ChunkingConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    parsing: ParsingConfig = field(default_factory=ParsingConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    action: Action | None = None
    store: str | None = None
    source: str | None = None
    language: str | None = None
    file: str | None = None
    files: bool = False
    verify: bool = False
    allow_empty: bool = False
    query_file: str | None = None
    filters: str | None = None
    k: int | None = None
    questions: str | None = None
    train: list[str] = field(default_factory=list)
    valid: list[str] = field(default_factory=list)
    base: str | None = None
    output_model: str | None = None
    output: Output = Output.table

    def __post_init__(self) -> None:
        """Check the language."""
        check_language(self.language)


def check_language(language: str | None) -> None:
    """Refuse a language that nothing stems.

    Raises:
        ConfigError: It is none of Snowball's stemmers; the message lists them.
    """
    known = Stemmer.algorithms()
    if language is not None and language not in known:
        raise ConfigError(f"language: wanted one of {', '.join(known)}, or null; found {language!r}", param="language")
