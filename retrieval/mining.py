"""What to learn from: each question with a passage that answers it and hard negatives, mined by our own hybrid search.

A hard negative is a passage that the search ranks high and that does not answer. The same candidates tell how well a
reranker orders them. Does not know models beyond the embedder.

Source: Xiong et al., «Approximate Nearest Neighbor Negative Contrastive Learning for Dense Text Retrieval», 2020,
https://arxiv.org/abs/2007.00808, on negatives that the retriever itself finds.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from retrieval.config import IndexDevice, SearchConfig
from retrieval.dense import build_dense, gather_candidates
from retrieval.embedding import Embedder, embed_passages
from retrieval.fusion import ScoredChunks, order_chunks
from retrieval.lexical import build_lexical, pick_best, score_lexical
from retrieval.proximity import LOOKED_AT, look_closer, score_best
from retrieval.question_set import QuestionSet
from retrieval.spans import make_span_run, score_spans
from retrieval.stop_words import LANGUAGE
from retrieval.vectors import ChunkVectors
from retrieval.windows import contextualise

EMBEDDED_AT_ONCE = 128
NEGATIVE_DEPTH = 30
"""Candidates among which negatives are drawn."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the hybrid search found for a question, best first.

    Attributes:
        places: (candidates,) int64 positions of passages.
        fused: (candidates,) float32 fused scores, falling.
    """

    places: NDArray[np.int64]
    fused: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Example:
    """A question, a passage that answers it, and passages that look as if they did."""

    question: str
    positive: str
    negatives: tuple[str, ...]


def find_candidates(
    questions: QuestionSet,
    embedder: Embedder,
    search: SearchConfig,
    progress: Callable[[int, int], None],
    language: str = LANGUAGE,
) -> list[Candidates]:
    """Search a set's passages for each of its questions, as a store would be searched.

    Args:
        questions: The set.
        embedder: Of passages and questions.
        search: Weights and depth.
        progress: Called with how many passages are embedded, and how many there are.
        language: What words are stemmed as.
    """
    groups: list[ChunkVectors] = []
    for start in range(0, len(questions.passages), EMBEDDED_AT_ONCE):
        groups += embed_passages(questions.passages[start : start + EMBEDDED_AT_ONCE], embedder)
        progress(len(groups), len(questions.passages))
    owners = np.repeat(np.arange(len(groups), dtype=np.int64), [len(group.windows) for group in groups])
    dense = build_dense(np.concatenate([group.windows for group in groups]), owners, IndexDevice.cpu)
    spans = make_span_run([group.spans for group in groups], embedder.identity.dimension)
    lexical = build_lexical([contextualise(title, text) for title, text in questions.passages], language)

    def read_texts(numbers: NDArray[np.int64]) -> list[str]:
        return [questions.passages[int(number)][1] for number in numbers[:LOOKED_AT]]

    found = []
    for question in questions.questions:
        vector = embedder.embed_query(question)
        words = score_lexical(lexical, question)
        by_words = pick_best(words, search.candidates)
        places, cosine = gather_candidates(dense, vector, search.candidates, by_words)
        near_spans = score_spans([spans], vector, places, cosine)
        scored = ScoredChunks(places, cosine, near_spans, words[places], ((dense, places),))
        scored = look_closer(scored, search, partial(score_best, lexical, question, read_texts))
        order, fused = order_chunks(scored, search)
        found.append(Candidates(places[order], fused[order]))
    return found


def mine_examples(questions: QuestionSet, candidates: Sequence[Candidates], negatives: int, seed: int) -> list[Example]:
    """Draw one example a question, in mixed order; the same seed draws the same ones.

    Args:
        questions: The set.
        candidates: Of each question.
        negatives: How many each has; a question with fewer candidates that do not answer it is left out.
        seed: Of every draw.
    """
    draw = random.Random(seed)  # noqa: S311  (a draw that can be repeated is wanted)
    texts = [contextualise(title, text) for title, text in questions.passages]
    examples = []
    for question, relevant, found in zip(questions.questions, questions.relevant, candidates, strict=True):
        wrong = [int(place) for place in found.places if int(place) not in relevant][:NEGATIVE_DEPTH]
        if len(wrong) >= negatives:
            positive = draw.choice(sorted(relevant))
            chosen = tuple(texts[place] for place in draw.sample(wrong, negatives))
            examples.append(Example(question, texts[positive], chosen))
    draw.shuffle(examples)
    return examples


@dataclass(frozen=True, slots=True)
class RankedQuestion:
    """A question with the best of what the search found for it.

    Attributes:
        question: Its text.
        passages: Title and text of each, best first.
        fused: (passages,) float32 fused scores, falling.
        relevant: (passages,) bool: which of them answer it; some do, and some do not.
    """

    question: str
    passages: list[tuple[str | None, str]]
    fused: NDArray[np.float32]
    relevant: NDArray[np.bool_]


def rank_questions(
    questions: QuestionSet, candidates: Sequence[Candidates], depth: int, most: int, seed: int
) -> list[RankedQuestion]:
    """Draw questions whose answer lies among the best that the search found, beside what does not answer.

    Args:
        questions: The set.
        candidates: Of each question.
        depth: The best so many are looked at.
        most: Questions that are drawn.
        seed: Of the draw; the same one draws the same questions.
    """
    draw = random.Random(seed)  # noqa: S311  (a draw that can be repeated is wanted)
    ranked = []
    for place in draw.sample(range(len(candidates)), len(candidates)):
        found = candidates[place].places[:depth]
        relevant = np.isin(found, list(questions.relevant[place]))
        if relevant.any() and not relevant.all():
            passages = [questions.passages[int(number)] for number in found]
            ranked.append(
                RankedQuestion(questions.questions[place], passages, candidates[place].fused[:depth], relevant)
            )
        if len(ranked) == most:
            break
    return ranked
