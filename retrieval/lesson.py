"""One lesson from question sets to a judged model: what `action=train_reranker` and `action=train_embedder` do.

Owns the order of the steps and refuses every fault that can be seen before anything costly starts. Does not print.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from core.errors import ConfigError
from core.layout import DataDir
from retrieval.config import EmbedderConfig, LearningConfig, SearchConfig
from retrieval.embedding import Embedder, SentenceEmbedder, open_embedder
from retrieval.judging import Gain, judge_embedder, judge_reranker
from retrieval.learning import KEPT_PASSAGES, Progress, Target, check_base, train_model, weigh_tokens
from retrieval.mining import Candidates, Example, RankedQuestion, find_candidates, mine_examples, rank_questions
from retrieval.question_set import QuestionSet, read_question_set
from retrieval.rerank import Reranker
from retrieval.stop_words import LANGUAGE


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is to be trained, on what, and what it is judged by.

    Attributes:
        target: What is trained.
        train: Folders of question sets to learn from.
        valid: Folders of question sets to judge by.
        base: Name of the encoder that it begins with.
        output_model: The new model's name.
        language: What the words of all sets are stemmed as.
    """

    target: Target
    train: list[Path]
    valid: list[Path]
    base: str
    output_model: str
    language: str = LANGUAGE


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a lesson.

    Attributes:
        folder: The new model's.
        examples: How many it learned from.
        gains: On each validation set.
    """

    folder: Path
    examples: int
    gains: list[Gain]


def teach(
    data: DataDir,
    lesson: Lesson,
    *,
    embedder: EmbedderConfig,
    search: SearchConfig,
    learning: LearningConfig,
    progress: Progress = lambda _stage, _done, _total: None,
) -> Outcome:
    """Mine examples, train, publish and judge.

    Args:
        data: The data directory.
        lesson: What is trained on what.
        embedder: What finds the candidates.
        search: How candidates are found, and how the reranker is mixed in.
        learning: How the model is trained.
        progress: Called with a stage's name, how much is done, and of how much.

    Raises:
        ConfigError: There is nothing to learn from.
        NotFound: A folder, the base or the embedder does not exist.
        Conflict: The new model's name is taken.
    """
    if not lesson.train:
        raise ConfigError("train: wanted at least one folder of questions, found none. Give it: train='[DIR]'")
    check_base(data, lesson.base, lesson.output_model)
    train, valid = ([read_question_set(folder) for folder in part] for part in (lesson.train, lesson.valid))
    finder = open_embedder(data, embedder)
    find = partial(_find, search=search, progress=progress, language=lesson.language)
    if lesson.target is Target.weighted_interaction:
        sets = _rank(train, [find(questions, finder) for questions in train], search, learning)
        learned_from = sum(map(len, sets))
        folder = weigh_tokens(
            data,
            sets,
            base=lesson.base,
            output_model=lesson.output_model,
            embedder=embedder,
            config=learning,
            progress=progress,
        )
    else:
        examples = _mine(train, [find(questions, finder) for questions in train], learning)
        learned_from = min(len(examples), learning.steps * learning.batch_size)
        folder = train_model(
            data,
            lesson.target,
            examples,
            base=lesson.base,
            output_model=lesson.output_model,
            config=learning,
            progress=progress,
        )
    found = [find(questions, finder) for questions in valid]
    if lesson.target is Target.embedder:
        learned = SentenceEmbedder(folder, replace(embedder, name=lesson.output_model))
        after = [find(questions, learned) for questions in valid]
        gains = [judge_embedder(*parts) for parts in zip(valid, found, after, strict=True)]
    else:
        reranker = Reranker(folder, embedder, kept_passages=KEPT_PASSAGES)
        gains = [
            judge_reranker(questions, candidates, reranker, search, _name(progress, f"judging by {questions.name}"))
            for questions, candidates in zip(valid, found, strict=True)
        ]
    return Outcome(folder, learned_from, gains)


def _mine(sets: list[QuestionSet], found: list[list[Candidates]], learning: LearningConfig) -> list[Example]:
    """Return the examples of all sets, mixed."""
    examples: list[Example] = []
    for place, (questions, candidates) in enumerate(zip(sets, found, strict=True)):
        examples += mine_examples(questions, candidates, learning.negatives, learning.seed + place)
    if len(examples) < learning.batch_size:
        raise ConfigError(
            f"train: wanted at least learning.batch_size={learning.batch_size} questions with {learning.negatives} "
            f"passages that do not answer them, found {len(examples)}. Add questions, or lower learning.batch_size.",
            param="train",
        )
    return examples


def _rank(
    sets: list[QuestionSet], found: list[list[Candidates]], search: SearchConfig, learning: LearningConfig
) -> list[list[RankedQuestion]]:
    """Return the ranked questions of each set that has any."""
    most = learning.steps * learning.batch_size
    ranked = [
        rank_questions(questions, candidates, search.rerank_depth, most, learning.seed)
        for questions, candidates in zip(sets, found, strict=True)
    ]
    if sum(map(len, ranked)) < learning.batch_size:
        raise ConfigError(
            f"train: wanted at least learning.batch_size={learning.batch_size} questions with something among the best "
            f"{search.rerank_depth} that answers them and something that does not, found {sum(map(len, ranked))}. Add "
            "questions, or lower learning.batch_size.",
            param="train",
        )
    return [part for part in ranked if part]


def _find(
    questions: QuestionSet, embedder: Embedder, *, search: SearchConfig, progress: Progress, language: str
) -> list[Candidates]:
    return find_candidates(questions, embedder, search, _name(progress, f"searching {questions.name}"), language)


def _name(progress: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(stage, done, total)
