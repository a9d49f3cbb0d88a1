"""Questions from a store's own documents, written by a local model and checked before a person reads them.

A fact is asked from one chunk, a multi-hop question from two that are near each other, an unanswerable one beside a
chunk. Nothing that the writer says is taken on trust: the short answer must stand in the chunk to the letter, the
question must be answered by its chunks and by neither of two alone, an unanswerable one by nothing that the store
finds for it, and no question is asked twice. What is refused is kept with its reason. Drafts are saved as they are
made: a stopped run goes on. Does not know how chunks are stored or found.
"""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from core.errors import Conflict, ContractError
from core.lines import LineWriter, read_whole_lines
from evaluation.matching import holds_text
from evaluation.metrics import normalize_answer
from evaluation.questions import KINDS, Question, to_row
from evaluation.structured import StructuredModel, UnusableAnswer
from retrieval.store import Passage

FORMAT = "loam-testset-1"
LABELS = ("fact", "multi-hop", "unanswerable")
MIN_PASSAGE_CHARS = 80
"""Shorter chunks are headings and scraps."""
ATTEMPTS_A_QUESTION = 4
"""So many drafts at most for each wanted question."""
POINTS_AT_ITS_SOURCE = re.compile(
    r"\b(passages?|documents?|text|context|excerpts?|paragraphs?|article|mentioned above|the author)\b", re.IGNORECASE
)
RULES = (
    "Ask what a customer or a colleague would ask who has not seen the text. Name in full what the question is about. "
    "Do not mention a passage, text or document. End with a question mark."
)

Find = Callable[[str, int], Sequence[Passage]]
"""Finds the best chunks for a text, best first: (text, how many) → chunks."""
Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Returns (texts, dimension) float32, unit rows."""


class WrittenQuestion(BaseModel):
    """What the writer returns for an unanswerable question."""

    question: str = Field(max_length=300)


class WrittenAnswer(BaseModel):
    """What the writer returns for a question with an answer."""

    question: str = Field(max_length=300)
    short_answer: str = Field(max_length=120)
    answer: str = Field(max_length=400)


class Answerability(BaseModel):
    """What the writer returns as a reader of its own questions."""

    answerable: int


@dataclass(frozen=True, slots=True)
class Draft:
    """One attempt at a question.

    Attributes:
        label: One of LABELS.
        attempt: Counted from 0, for each label.
        row: The question as a line of the file; None where it was refused.
        refused: Why; None where it was not.
    """

    label: str
    attempt: int
    row: dict[str, Any] | None
    refused: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is wanted.

    Attributes:
        wanted: Questions by label.
        seed: Of the choice of chunks.
        unanswerable_depth: So many found chunks must not answer an unanswerable question.
        max_similarity: Questions with a higher cosine are the same.
    """

    wanted: dict[str, int]
    seed: int = 0
    unanswerable_depth: int = 5
    max_similarity: float = 0.93


def share_out(n: int, shares: dict[str, float]) -> dict[str, int]:
    """Split a number of questions by label, largest remainder first; the sum is n.

    Args:
        n: At least 1.
        shares: Weights by label, at least one above 0.
    """
    total = sum(shares.values())
    exact = {label: n * share / total for label, share in shares.items()}
    counts = {label: int(value) for label, value in exact.items()}
    rest = sorted(exact, key=lambda label: counts[label] - exact[label])
    for label in rest[: n - sum(counts.values())]:
        counts[label] += 1
    return counts


def check_written(written: WrittenAnswer, passages: Sequence[Passage]) -> str | None:
    """Return why a written question with its answer cannot be used; None where it can."""
    fault = check_question(written.question)
    if fault is not None:
        return fault
    short = written.short_answer.strip()
    if not normalize_answer(short):
        return "the short answer is empty"
    if not any(holds_text(passage.text, short) for passage in passages):
        return "the short answer does not stand in the chunk"
    if holds_text(written.question, short):
        return "the question gives its answer away"
    if not holds_text(written.answer, short):
        return "the answer does not hold the short one"
    return None


def check_question(question: str) -> str | None:
    """Return why a question cannot be asked by itself; None where it can."""
    text = question.strip()
    if not text.endswith("?") or text.count("?") > 1:
        return "it is not one question"
    if len(text.split()) < 4:
        return "it is too short"
    if POINTS_AT_ITS_SOURCE.search(text):
        return "it points at its source"
    return None


class Writing:
    """The writing of one test set: what is there, and what is still wanted."""

    def __init__(
        self, model: StructuredModel, passages: Sequence[Passage], find: Find, embed: Embed, plan: Plan
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            model: The writer.
            passages: The store's chunks.
            find: Searches the store.
            embed: Embeds questions.
            plan: What is wanted.
        """
        self._model, self._find, self._embed, self._plan = model, find, embed, plan
        usable = [passage for passage in passages if len(passage.text.strip()) >= MIN_PASSAGE_CHARS]
        self._order = {label: _shuffle(usable, plan.seed, label) for label in LABELS}
        self._asked: list[str] = []
        self._vectors: NDArray[np.float32] | None = None  # (questions, dimension)
        self.drafts: list[Draft] = []

    def exclude(self, questions: Sequence[str]) -> None:
        """Never write these questions, nor any that are nearly the same."""
        for question in questions:
            self._remember(question)

    async def write(self, path: Path, on_draft: Callable[[Draft], None] = lambda _: None) -> list[Draft]:
        """Write until there is enough of each label, or its chunks are used up.

        Args:
            path: File of drafts; what it holds is not written again.
            on_draft: Told of each draft, also of those that were there.

        Returns:
            All drafts, label by label, in the order of the attempts.

        Raises:
            Conflict: The file holds drafts of another plan.
            EngineUnavailable: The writer went away; what was written is saved.
        """
        settings = {"plan": asdict(self._plan), "writer": self._model.model}
        saved = read_drafts(path, settings)
        with LineWriter(path) as writer:
            if writer.is_empty():
                writer.write(json.dumps({"format": FORMAT, "settings": settings}))
            for label in LABELS:
                await self._write_label(label, saved, writer, on_draft)
        return self.drafts

    async def _write_label(
        self, label: str, saved: dict[tuple[str, int], Draft], writer: LineWriter, on_draft: Callable[[Draft], None]
    ) -> None:
        wanted = self._plan.wanted.get(label, 0)
        limit = min(ATTEMPTS_A_QUESTION * wanted, len(self._order[label]))
        kept = attempt = 0
        while kept < wanted and attempt < limit:
            batch = range(attempt, min(attempt + min(self._model.asking.concurrency, wanted - kept), limit))
            attempt = batch.stop
            fresh = [number for number in batch if (label, number) not in saved]
            drafts = await asyncio.gather(*(self._draft(label, number) for number in fresh))
            made = {draft.attempt: draft for draft in drafts}
            for number in batch:
                draft = saved.get((label, number)) or self._refuse_duplicate(made[number])
                if (label, number) not in saved:
                    writer.write(json.dumps(asdict(draft), ensure_ascii=False))
                if draft.row is not None:
                    kept += 1
                    self._remember(draft.row["question"])
                self.drafts.append(draft)
                on_draft(draft)

    async def _draft(self, label: str, attempt: int) -> Draft:
        passage = self._order[label][attempt]
        try:
            match label:
                case "fact":
                    question = await self._ask_about([passage])
                case "multi-hop":
                    question = await self._ask_about([passage, await self._find_neighbour(passage)])
                case _:
                    question = await self._ask_beside(passage)
        except (_RefusedError, UnusableAnswer) as refusal:
            return Draft(label, attempt, None, str(refusal))
        return Draft(label, attempt, question | {"id": f"{label}-{attempt + 1}"}, None)

    async def _find_neighbour(self, passage: Passage) -> Passage:
        """Return the nearest chunk that is another one and does not overlap."""
        for other in await asyncio.to_thread(self._find, passage.text[:2000], 8):
            apart = other.file != passage.file or other.start >= passage.end or other.end <= passage.start
            if other.chunk_id != passage.chunk_id and apart and len(other.text.strip()) >= MIN_PASSAGE_CHARS:
                return other
        raise _RefusedError("no other chunk is near")

    async def _ask_about(self, passages: Sequence[Passage]) -> dict[str, Any]:
        """Return a question that these passages answer together, and none of several alone."""
        several = len(passages) > 1
        task = (
            "Write one question that can only be answered with facts of both passages together."
            if several
            else "Write one question that the passage answers."
        )
        written = await self._model.ask(
            f"{task} {RULES} Give the short answer, copied word by word from the passage (1 to 8 words), and the "
            f"answer as one full sentence that holds the short answer.\n\n{show_passages(passages)}",
            WrittenAnswer,
        )
        if fault := check_written(written, passages):
            raise _RefusedError(fault)
        if not await self._is_answered(written.question, passages):
            raise _RefusedError("its own chunks do not answer it")
        for passage in passages if several else ():
            if await self._is_answered(written.question, [passage]):
                raise _RefusedError("one chunk alone answers it")
        question = Question(
            id="",
            question=written.question.strip(),
            kind=KINDS["multi-hop" if several else "fact"],
            label="multi-hop" if several else "fact",
            answers=(written.answer.strip(),),
            accept=(written.short_answer.strip(),),
            files=tuple(dict.fromkeys(passage.file for passage in passages)),
            passages=tuple(passage.text for passage in passages),
        )
        return to_row(question) | {"chunk_ids": [passage.chunk_id for passage in passages]}

    async def _ask_beside(self, passage: Passage) -> dict[str, Any]:
        """Return a question near a passage that nothing in the store answers."""
        written = await self._model.ask(
            "Write one question about the same subject that a reader could well ask, but that the passage does not "
            f"answer. {RULES}\n\n{show_passages([passage])}",
            WrittenQuestion,
        )
        if fault := check_question(written.question):
            raise _RefusedError(fault)
        found = await asyncio.to_thread(self._find, written.question, self._plan.unanswerable_depth)
        for hit in {one.chunk_id: one for one in (passage, *found)}.values():
            if await self._is_answered(written.question, [hit]):
                raise _RefusedError(f"{hit.file} answers it")
        question = Question("", written.question.strip(), KINDS["unanswerable"], "unanswerable")
        return to_row(question) | {"beside": passage.file}

    async def _is_answered(self, question: str, passages: Sequence[Passage]) -> bool:
        answer = await self._model.ask(
            "Can the question be answered from the text below alone? Give answerable 1 if the text states the answer, "
            f"0 if it does not.\n\nQuestion: {question}\n\n{show_passages(passages)}",
            Answerability,
        )
        return bool(answer.answerable)

    def _refuse_duplicate(self, draft: Draft) -> Draft:
        if draft.row is None:
            return draft
        text = draft.row["question"]
        if normalize_answer(text) in self._asked:
            return Draft(draft.label, draft.attempt, None, f"it was asked before: {text}")
        if self._vectors is not None:
            vector = self._embed([text])[0]  # (dimension,)
            nearest = float((self._vectors @ vector).max())
            if nearest > self._plan.max_similarity:
                return Draft(draft.label, draft.attempt, None, f"nearly the same was asked before: {text}")
        return draft

    def _remember(self, question: str) -> None:
        vector = self._embed([question])  # (1, dimension)
        self._vectors = vector if self._vectors is None else np.vstack([self._vectors, vector])
        self._asked.append(normalize_answer(question))


class _RefusedError(Exception):
    """A draft cannot be used; says why."""


def _shuffle(passages: Sequence[Passage], seed: int, label: str) -> list[Passage]:
    order = sorted(passages, key=lambda passage: (passage.file, passage.start))
    random.Random(f"{seed} {label}").shuffle(order)  # noqa: S311  (a choice of chunks, no secret)
    return order


def show_passages(passages: Sequence[Passage]) -> str:
    """Return passages as the writer reads them."""
    parts = []
    for passage in passages:
        title = f"{passage.file} | {passage.heading}" if passage.heading else passage.file
        parts.append(f"Passage ({title}):\n{passage.text.strip()}")
    return "\n\n".join(parts)


def read_drafts(path: Path, settings: dict[str, Any]) -> dict[tuple[str, int], Draft]:
    """Return the drafts of a file by label and attempt; a missing file has none.

    Raises:
        Conflict: They were made from other settings.
        ContractError: It is no file of drafts.
    """
    drafts: dict[tuple[str, int], Draft] = {}
    for number, line in enumerate(read_whole_lines(path), start=1):
        try:
            row = json.loads(line)
            if number > 1:
                draft = Draft(**row)
                drafts[draft.label, draft.attempt] = draft
                continue
            found = row["settings"] if row["format"] == FORMAT else None
        except (ValueError, TypeError, KeyError) as error:
            raise ContractError(f"{path}, line {number}: wanted {FORMAT}, found something else. Remove it.") from error
        if found != json.loads(json.dumps(settings)):
            raise Conflict(
                f"{path}: wanted drafts of the same plan and writer, found others. Give another name, or remove it.",
                param="name",
            )
    return drafts


def count_refusals(drafts: Sequence[Draft]) -> list[tuple[str, int]]:
    """Return why drafts were refused and how often, most frequent first; what a reason quotes is left out."""
    reasons = Counter(
        re.sub(r"^\S+ answers it$", "a chunk of the store answers it", draft.refused.split(":")[0])
        for draft in drafts
        if draft.refused is not None
    )
    return reasons.most_common()
