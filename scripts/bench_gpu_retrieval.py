"""Retrieval in scripts/bench_gpu.py: whether indexes on a GPU find what exact search finds, and how fast they are.

Vectors are made up, clustered as embeddings are. The indexes are those of retrieval/card_index.py, asked through
retrieval/dense.py where filters matter; the encoders have MiniLM-L6's shape and random weights. A scan by torch alone
stands beside them as what the card's memory allows.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.bench_gpu_models import MINILM, SMALL_BERT
from scripts.bench_gpu_steps import Figure, Setting, Step, Unavailable, Wrong, time_calls

DEPTH = 10
RERANKED = 20
PAIR_TOKENS = 256
RERANKED_AT_ONCE = 128
"""Pairs that the server's reranker takes at once on a card: CARD_BATCH_TOKENS of retrieval/batches.py."""
NEEDS = ("faiss",)


def make_vectors(rows: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    """Return clustered unit vectors, (rows, dimension) float32."""
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((max(16, rows // 2000), dimension), dtype=np.float32)
    vectors = np.empty((rows, dimension), dtype=np.float32)
    for start in range(0, rows, 2**18):
        block = chance.standard_normal((min(2**18, rows - start), dimension), dtype=np.float32)
        block += centres[chance.integers(len(centres), size=len(block))]
        vectors[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return vectors


def find_place(setting: Setting) -> Any:
    """Return where indexes are made: FAISS's GPU, or the CPU in the small.

    Raises:
        Unavailable: This FAISS has no GPU.
    """
    from retrieval.card_index import CPU, open_card

    if setting.is_small:
        return CPU
    place = open_card()
    if place is None:
        raise Unavailable("FAISS has no GPU here that works: is faiss-gpu installed?")
    return place


def measure_index(setting: Setting, kind: str, rows: int, dimension: int, goals: tuple[str, str]) -> list[Figure]:
    """Make an index, find its recall, and time it at batches of 1 and 256.

    As many rows are asked for as a search of the server asks for, which scores them exactly and keeps the best: what is
    nearest and among them is found.
    """
    from retrieval.card_index import build_card_index, draw_queries
    from retrieval.dense import SPARE

    vectors = make_vectors(rows, dimension)
    index = build_card_index(vectors, find_place(setting), kinds=[kind])
    queries, nearest = draw_queries(vectors)
    asked = math.ceil(SPARE * DEPTH)
    found = index.find_rows(queries, asked)
    recall = float(sum(np.isin(want, row).sum() for want, row in zip(nearest, found, strict=True)) / nearest.size)
    least = 0.995 if kind == "flat" else 0.98
    if recall < least:
        raise Wrong(f"{kind}: recall@10 of {recall:.4f}, wanted {least}")
    one, many = queries[:1], np.ascontiguousarray(np.tile(queries, (2, 1))[:256])
    single = time_calls(
        lambda: index.find_rows(one, asked), torch.device("cpu"), setting.pick(50, 3)
    )  # it waits itself
    batch = time_calls(lambda: index.find_rows(many, asked), torch.device("cpu"), setting.pick(20, 3))
    name = f"{kind}, {rows:,} × {dimension}"
    figures = [
        Figure(f"{name}: recall@10", recall, "", "1.0" if kind == "flat" else f"at least {least:g}"),
        Figure(f"{name}: one query", single * 1e3, "ms", goals[0]),
        Figure(f"{name}: 256 queries", len(many) / batch, "queries/s", goals[1]),
        Figure(f"{name}: effort", float(index.effort), ""),
    ]
    if kind == "flat":
        width = 2 if rows >= 1_000_000 else 4
        figures.append(Figure(f"{name}: bytes read at one query", rows * dimension * width / single / 1e9, "GB/s"))
    return figures


def measure_flat(setting: Setting) -> list[Figure]:
    """Exact search, float16 from a million on: 384 dimensions."""
    goals = ("70% of the bandwidth", "100,000 queries/s")
    return measure_index(setting, "flat", setting.pick(1_000_000, 4000), setting.pick(384, 32), goals)


def measure_flat_wide(setting: Setting) -> list[Figure]:
    """The same with 1,024 dimensions."""
    goals = ("70% of the bandwidth", "60,000 queries/s")
    return measure_index(setting, "flat", setting.pick(1_000_000, 2000), setting.pick(1024, 64), goals)


def measure_lists(setting: Setting) -> list[Figure]:
    """Lists (IVF) of ten million."""
    return measure_index(setting, "lists", setting.pick(10_000_000, 6000), setting.pick(384, 32), ("", ""))


def measure_graph(setting: Setting) -> list[Figure]:
    """A graph (CAGRA, in the small HNSW) of ten million."""
    place = find_place(setting)
    if not place.has_graph:
        raise Unavailable("this build of FAISS has no GpuIndexCagra: it was built without cuVS")
    return measure_index(setting, "graph", setting.pick(10_000_000, 4000), setting.pick(384, 32), ("", ""))


def prove_filters(setting: Setting) -> list[Figure]:
    """Compare what is found under masks, as filters and deletions make them, with an exact scan by the CPU."""
    from retrieval.card_index import build_card_index, draw_queries
    from retrieval.config import IndexDevice
    from retrieval.dense import make_dense, make_run, search_dense

    rows, dimension = setting.pick(200_000, 3000), setting.pick(384, 32)
    vectors = make_vectors(rows, dimension)
    run = make_run(vectors, np.arange(rows), IndexDevice.cpu)
    exact = make_dense([run])
    card = make_dense([replace(run, on_gpu=build_card_index(vectors, find_place(setting), kinds=["flat"]))])
    chance, figures = np.random.default_rng(1), []
    queries, _ = draw_queries(vectors)
    for share in (0.9, 0.3, 0.01, 0.0):
        allowed = chance.random(rows) < share
        same = 0
        for query in queries[:50]:
            wanted, scores = search_dense(exact, query, DEPTH, allowed)
            found, values = search_dense(card, query, DEPTH, allowed)
            if not allowed[found].all():
                raise Wrong(f"of {share:.0%} allowed: one was found that is not allowed")
            same += wanted.tolist() == found.tolist() and scores.tolist() == values.tolist()
        if same < 50:
            raise Wrong(f"of {share:.0%} allowed: {50 - same} of 50 searches found other chunks than an exact scan")
        figures.append(Figure(f"searches equal to an exact scan, {share:.0%} allowed", float(same), "of 50", "50"))
    return figures


def scan(queries: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Return (queries, DEPTH) rows of the largest products."""
    return (queries @ vectors.T).topk(DEPTH, dim=1).indices


def measure_torch_scan(setting: Setting) -> list[Figure]:
    """Scan by torch alone, in float16 on a card: a product and its largest, what FAISS's flat index is held against."""
    figures = []
    for dimension in setting.pick((384, 1024), (32,)):
        rows = setting.pick(1_000_000, 4000)
        dtype = torch.float16 if setting.device.type == "cuda" else torch.float32
        vectors = torch.nn.functional.normalize(torch.randn(rows, dimension, device=setting.device), dim=1).to(dtype)
        picked = torch.arange(256, device=setting.device) * (rows // 256)
        found = scan(vectors[picked], vectors)[:, 0]
        if not torch.equal(found, picked):
            raise Wrong("the nearest of a vector is not itself")
        for count in (1, 256):
            queries = vectors[picked[:count]]
            seconds = time_calls(partial(scan, queries, vectors), setting.device, setting.pick(20, 3), at_once=5)
            name = f"torch, {rows:,} × {dimension}, {count} at once"
            figures.append(Figure(name, count / seconds, "queries/s"))
            if count == 1:
                figures.append(Figure(f"{name}: bytes read", vectors.nbytes / seconds / 1e9, "GB/s"))
    return figures


def make_encoder(setting: Setting) -> Any:
    """Return a cross-encoder of MiniLM-L6's shape with random weights, in float32."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    shape: Any = {**setting.pick(MINILM, SMALL_BERT), "num_labels": 1}
    model: Any = BertForSequenceClassification(BertConfig(**shape)).eval()
    return model.to(setting.device)


def embed(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return (texts, hidden), the mean of each text's token vectors."""
    vectors: torch.Tensor = model(input_ids=ids).last_hidden_state.mean(1)
    return vectors


def measure_encoders(setting: Setting, batches: Sequence[int] | None = None) -> list[Figure]:
    """Time a cross-encoder's pairs and an embedder's passages of 256 tokens, MiniLM-L6's shape, random weights.

    Args:
        setting: Where and at which size.
        batches: Texts at once; None: those of a search, as many as the server's reranker takes, and a bulk of them.
    """
    model = make_encoder(setting)
    tokens = setting.pick(PAIR_TOKENS, 32)
    figures = []
    with torch.inference_mode():
        few = torch.randint(model.config.vocab_size, (8, tokens), device=setting.device)
        exact = model(input_ids=few).logits
        model.to(setting.dtype)
        gap = float((model(input_ids=few).logits.float() - exact).abs().max())
        if not gap < 0.05:
            raise Wrong(f"scores are {gap:g} off those in float32")
        for batch in batches or setting.pick((RERANKED, RERANKED_AT_ONCE, 1024), (8,)):
            ids = torch.randint(model.config.vocab_size, (batch, tokens), device=setting.device)
            timed = partial(time_calls, device=setting.device, repeats=setting.pick(10, 3), at_once=setting.pick(5, 1))
            pairs = timed(partial(model, input_ids=ids))
            passages = timed(partial(embed, model.bert, ids))
            figures.append(Figure(f"cross-encoder, {batch} at once", batch / pairs, "pairs/s", "25,000"))
            figures.append(Figure(f"embedder, {batch} at once", batch / passages, "passages/s"))
    return [*figures, Figure("scores' largest error", gap, "", "at most 0.05")]


def write_reranker(setting: Setting, folder: Path) -> list[str]:
    """Write a cross-encoder of MiniLM-L6's shape with random weights and a tokenizer of made-up words; return words.

    A word is one or two of the tokenizer's pieces, as English words are.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    model = make_encoder(setting).to("cpu")
    chance = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    drawn = chance.choice(letters, (2 * model.config.vocab_size, 7))
    starts = sorted({"".join(row[: 3 + place % 5]) for place, row in enumerate(drawn)})
    starts = starts[: (model.config.vocab_size - len(pieces)) // 2]
    ends = [f"##{start[:3]}" for start in starts]
    pieces = list(dict.fromkeys([*pieces, *starts, *ends]))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=names["unk_token"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=model.config.max_position_embeddings, **names
    )
    fast.save_pretrained(folder)
    model.save_pretrained(folder)
    return [start + (end[2:] if chance.random() < 0.25 else "") for start, end in zip(starts, ends[::-1], strict=True)]


def open_reranker(setting: Setting, folder: Path) -> tuple[Any, list[str]]:
    """Write a reranker and return it as the server runs it, and passages of which each is PAIR_TOKENS with a query."""
    from core.config import Device
    from retrieval.config import EmbedderConfig, EncoderEngine
    from retrieval.rerank import Reranker

    words = write_reranker(setting, folder)
    device = Device.cuda if setting.device.type == "cuda" else Device.cpu
    reranker = Reranker(folder, EmbedderConfig(device=device, engine=EncoderEngine.torch))
    chance = np.random.default_rng(1)
    wanted = setting.pick(PAIR_TOKENS, 32) - 12
    passages = []
    for _ in range(setting.pick(2048, 16)):
        text = chance.choice(words, wanted).tolist()
        while (tokens := reranker.count_tokens(" ".join(text))) > wanted:
            del text[min(len(text) - 1, len(text) * wanted // tokens) :]
        passages.append(" ".join(text))
    return reranker, passages


def measure_reranker(setting: Setting) -> list[Figure]:
    """Time the server's reranker from texts to scores: tokenizing on the CPU's cores, padding, copies and all."""
    from sentence_transformers import CrossEncoder
    from tokenizers import Tokenizer

    query = "what holds the duck and the pump"
    with TemporaryDirectory() as folder:
        reranker, texts = open_reranker(setting, Path(folder))
        passages = [(None, text) for text in texts]
        few = passages[:RERANKED]
        model = CrossEncoder(folder, device="cpu", local_files_only=True)
        exact = model.predict([(query, text) for _, text in few], show_progress_bar=False)
        gap = float(np.abs(reranker.score(query, few) - exact).max())
        tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    if not gap < 0.02:
        raise Wrong(f"scores are {gap:g} off those of the library in float32")
    waits = torch.device("cpu")  # each call waits itself
    read = time_calls(lambda: tokenizer.encode_batch_fast([(query, text) for text in texts]), waits, setting.pick(5, 3))
    all_at_once = time_calls(lambda: reranker.score(query, passages), waits, setting.pick(5, 3))
    search = time_calls(lambda: reranker.score(query, few), waits, setting.pick(50, 3))
    return [
        Figure("scores' largest error", gap, "", "at most 0.02"),
        Figure(f"from texts, {len(texts):,} at once", len(texts) / all_at_once, "pairs/s"),
        Figure("tokenizing alone", len(texts) / read, "pairs/s"),
        Figure(f"from texts, the {len(few)} of a search", search * 1e3, "ms"),
    ]


def measure_search(setting: Setting) -> list[Figure]:
    """Time a dense search and the reranking of what it finds, one query after the other; words are not searched."""
    from retrieval.card_index import build_card_index, draw_queries
    from retrieval.config import IndexDevice
    from retrieval.dense import make_dense, make_run, search_dense

    rows, dimension = setting.pick(1_000_000, 3000), setting.pick(384, 32)
    vectors = make_vectors(rows, dimension)
    run = make_run(vectors, np.arange(rows), IndexDevice.cpu)
    index = make_dense([replace(run, on_gpu=build_card_index(vectors, find_place(setting), kinds=["flat"]))])
    queries = itertools.cycle(draw_queries(vectors)[0])
    with TemporaryDirectory() as folder:
        reranker, texts = open_reranker(setting, Path(folder))
        reranker.score("ready", [(None, texts[0])])

    def search() -> None:
        found, _ = search_dense(index, next(queries), RERANKED)
        reranker.score("what holds the duck and the pump", [(None, texts[place % len(texts)]) for place in found])

    seconds = time_calls(search, torch.device("cpu"), setting.pick(100, 3), warm_up=5)  # it waits itself
    return [Figure(f"dense search of {rows:,} and {RERANKED} pairs reranked, p50", seconds * 1000, "ms", "12")]


STEPS = (
    Step("filters and deletions", prove_filters, needs=NEEDS),
    Step("torch's own scan", measure_torch_scan),
    Step("encoders", measure_encoders),
    Step("reranker from texts", measure_reranker, needs=("sentence_transformers",)),
    Step("flat, 384", measure_flat, needs=NEEDS),
    Step("flat, 1024", measure_flat_wide, needs=NEEDS),
    Step("search and rerank", measure_search, needs=(*NEEDS, "sentence_transformers")),
    Step("lists", measure_lists, needs=NEEDS),
    Step("graph", measure_graph, needs=NEEDS),
)
