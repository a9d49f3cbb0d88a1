"""Question sets to learn from and to judge by: passages, questions and which passages answer which.

Read from BEIR's layout (beir.py), as positions instead of ids. Does not know search or models.
"""

from dataclasses import dataclass
from pathlib import Path

from core.errors import InputError
from retrieval.beir import read_collection


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """A set of questions over its own passages.

    Attributes:
        name: The folder's name.
        passages: Title and text of each; no title is None.
        questions: Those that at least one passage answers.
        relevant: For each question the positions of the passages that answer it.
    """

    name: str
    passages: list[tuple[str | None, str]]
    questions: list[str]
    relevant: list[frozenset[int]]


def read_question_set(folder: Path) -> QuestionSet:
    """Read a folder.

    Raises:
        NotFound: A file is missing.
        InputError: Lines cannot be understood, or nothing in it is relevant to anything.
    """
    collection = read_collection(folder)
    places = {passage.id: place for place, passage in enumerate(collection.passages)}
    questions = collection.labelled_queries()
    if not questions:
        raise InputError(f"{folder}: wanted questions with relevant passages, found none. Check the ids in qrels.tsv.")
    return QuestionSet(
        name=collection.name,
        passages=[(passage.title.strip() or None, passage.text) for passage in collection.passages],
        questions=list(questions.values()),
        relevant=[
            frozenset(places[passage] for passage, gain in collection.judged[question].items() if gain > 0)
            for question in questions
        ],
    )
