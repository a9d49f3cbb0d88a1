"""RAFT: training examples that teach a model to read passages, the right ones among distractors.

Each question is set beside the chunks that answer it and others that the store finds for it but that do not. In a
share of the examples the right ones are missing, and there, as for unanswerable questions, the model learns to say
so. (The paper trains the answer there, too, to have the model learn it by heart. An assistant that must not answer
without a source would unlearn that; `without_gold=answer` does as the paper does.) Does not know how a prompt is laid
out.

Source: Zhang et al., «RAFT: Adapting Language Model to Domain Specific RAG», arXiv 2403.10131, section 3.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from evaluation.metrics import judge_content, list_gold, match_gold
from evaluation.questions import Kind, Question

if TYPE_CHECKING:
    from retrieval.searcher import Hit

DEPTH = 4
"""So many times the wanted distractors are looked through for enough that do not answer."""


class WithoutGold(Enum):
    """What is learned where the right passages are missing: to decline, or the answer by heart."""

    decline = "decline"
    answer = "answer"


@dataclass(frozen=True, slots=True)
class Example:
    """One training example.

    Attributes:
        question: What is asked.
        passages: What the model reads, in this order.
        answer: What it is to say.
        has_gold: Whether the right passages are among them.
    """

    question: Question
    passages: "tuple[Hit, ...]"
    answer: str
    has_gold: bool


@dataclass(frozen=True, slots=True)
class Recipe:
    """How examples are made.

    Attributes:
        distractors: Passages that do not answer, in each example.
        gold_share: Share of the answerable questions that have their right passages, 0 to 1 (the paper's P).
        without_gold: What is learned in the others.
        decline: The sentence to decline with.
        seed: Of the choices.
    """

    distractors: int = 3
    gold_share: float = 0.8
    without_gold: WithoutGold = WithoutGold.decline
    decline: str = "The documents do not say."
    seed: int = 0


def make_examples(
    questions: Sequence[Question], find: "Callable[[str, int], Sequence[Hit]]", recipe: Recipe
) -> tuple[list[Example], list[str]]:
    """Make one example from each question.

    Args:
        questions: With their gold; formats alone are nothing to read for.
        find: Searches the store: (question, how many) → chunks, best first.
        recipe: How.

    Returns:
        The examples in the questions' order, and why the others have none.
    """
    chance = random.Random(recipe.seed)  # noqa: S311  (which example has no gold is no secret)
    examples, left_out = [], []
    for question in questions:
        gold, distractors = sort_found(question, find(question.question, DEPTH * (recipe.distractors + 1)))
        is_answerable = question.kind is not Kind.unanswerable
        if is_answerable and (not question.answers or not gold):
            reason = "it has no answer" if not question.answers else "the store does not find what answers it"
            left_out.append(f"{question.id}: {reason}")
            continue
        has_gold = is_answerable and chance.random() < recipe.gold_share
        passages = [*(gold if has_gold else ()), *distractors[: recipe.distractors]]
        chance.shuffle(passages)
        learns_answer = has_gold or (is_answerable and recipe.without_gold is WithoutGold.answer)
        answer = question.answers[0] if learns_answer else recipe.decline
        examples.append(Example(question, tuple(passages), answer, has_gold))
    return examples, left_out


def sort_found(question: Question, found: "Sequence[Hit]") -> "tuple[list[Hit], list[Hit]]":
    """Split what was found into the chunks that answer, each gold unit once, and those that do not.

    A chunk that is not gold but holds the right answer is neither: it would teach that a right passage is a wrong one.
    """
    gold: dict[str, Hit] = {}
    distractors: list[Hit] = []
    for passage in found:
        unit = match_gold(question, passage) if list_gold(question) else None
        holds = question.kind is not Kind.unanswerable and bool(judge_content(question, passage.text))
        if unit is not None and (question.chunks or question.passages or holds):
            gold.setdefault(unit, passage)
        elif unit is None and not holds:
            distractors.append(passage)
    complete = bool(gold) and (not (question.chunks or question.passages) or len(gold) == len(list_gold(question)))
    return (list(gold.values()) if complete else []), distractors


def split_examples(examples: Sequence[Example], valid_share: float) -> tuple[list[Example], list[Example]]:
    """Return examples to learn from and to judge by; every so many-th one is held out, and at least one remains."""
    if valid_share <= 0 or len(examples) < 2:
        return list(examples), []
    step = max(round(1 / valid_share), 2)
    valid = [example for number, example in enumerate(examples) if number % step == step - 1]
    return [example for number, example in enumerate(examples) if number % step != step - 1], valid
