"""What makes a set of answers look wrong in itself: things to mend before any figure is believed.

An empty store, gold answers that belong to other questions, two arms that are one and the same model, answers that were
cut off: each is named, with the counts that show it. Does not know which arm is better, or anything of judges
(calibration.py does).
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from evaluation.metrics import Scored, measure_percentile, normalize_answer, remove_marks
from evaluation.questions import Kind, Question

MIN_ANSWERS = 10
"""From fewer answers nothing is concluded."""
MIN_MISPLACED = 5
"""Gold answers that stand in other questions' evidence, before a shuffle is suspected."""


def find_doubts(scored: Sequence[Scored]) -> list[str]:
    """Return what is suspicious about some answers, as sentences; empty where nothing is.

    Args:
        scored: The answers of all arms.
    """
    doubts = []
    by_arm: dict[str, list[Scored]] = {}
    for one in scored:
        by_arm.setdefault(one.answer.arm, []).append(one)
    for arm, own in by_arm.items():
        doubts += _find_failures(arm, own) + _find_empty_searches(arm, own) + _find_cut_answers(arm, own)
    doubts += _find_twins(by_arm)
    shuffle = find_shuffled_gold(scored)
    return [shuffle, *doubts] if shuffle else doubts


def _find_failures(arm: str, own: Sequence[Scored]) -> list[str]:
    errors = [one.answer.error for one in own if one.answer.error is not None]
    if not errors:
        return []
    common, count = Counter(errors).most_common(1)[0]
    return [f"{arm}: {len(errors)} of {len(own)} answers failed and count as wrong; {count} times: {common}"]


def _find_empty_searches(arm: str, own: Sequence[Scored]) -> list[str]:
    """Name a store in which nothing, or nearly nothing, is found, and one that never holds the gold."""
    searches = [one for one in own if one.answer.searched and one.answer.error is None]
    if len(searches) < MIN_ANSWERS:
        return []
    empty = sum(not one.answer.hits for one in searches)
    if empty == len(searches):
        return [f"{arm}: none of {empty} searches found a passage: the store is empty, or it is not the one meant."]
    doubts = []
    answerable = [one for one in searches if one.question.kind is not Kind.unanswerable]
    missed = sum(not one.answer.hits for one in answerable)
    if missed > len(answerable) / 2:
        doubts.append(f"{arm}: {missed} of {len(answerable)} searches for questions that have an answer found nothing.")
    recalls = [one.scores.retrieval_recall for one in searches if one.scores.retrieval_recall is not None]
    if len(recalls) >= MIN_ANSWERS and not any(recalls):
        doubts.append(
            f"{arm}: the gold passages were found for none of {len(recalls)} questions: another store, or other names."
        )
    return doubts


def _find_cut_answers(arm: str, own: Sequence[Scored]) -> list[str]:
    cut = sum(one.answer.finish_reason == "length" for one in own)
    if len(own) < MIN_ANSWERS or cut < 0.3 * len(own):
        return []
    longest = measure_percentile([one.answer.completion_tokens or 0 for one in own], 1.0)
    return [f"{arm}: {cut} of {len(own)} answers were cut off at max_tokens ({longest:.0f})."]


def _find_twins(by_arm: dict[str, list[Scored]]) -> list[str]:
    """Name arms that give the same answers: an adapter that is not applied, or one name for two."""
    doubts = []
    texts = {arm: {one.answer.question_id: remove_marks(one.answer.text) for one in own} for arm, own in by_arm.items()}
    for first, second in combinations(texts, 2):
        shared = [key for key in texts[first] if key in texts[second] and texts[first][key]]
        same = sum(texts[first][key] == texts[second][key] for key in shared)
        long = sum(len(texts[first][key].split()) > 3 for key in shared)
        if len(shared) >= MIN_ANSWERS and same >= 0.98 * len(shared) and long >= len(shared) / 2:
            doubts.append(
                f"{first} and {second} gave the same answer to {same} of {len(shared)} questions: is one model behind "
                "both?"
            )
    return doubts


def find_shuffled_gold(scored: Sequence[Scored]) -> str | None:
    """Tell whether gold answers seem to belong to other questions than their own.

    The evidence of a question is what all arms answered and read. Let m[i, j] be 1 where the gold of question j stands
    in the evidence of question i. If gold had been dealt out at random, the sum over its own questions would have a
    mean and a variance that are known (Hoeffding, A combinatorial central limit theorem, 1951, equation 10). A doubt
    needs both: a sum within two standard deviations of that mean, and gold that stands in others' evidence and not in
    its own.

    Returns:
        The sentence, or None where there is no such sign.
    """
    questions: dict[str, Question] = {}
    evidence: dict[str, list[str]] = {}
    for one in scored:
        if one.question.kind is not Kind.unanswerable and _list_gold(one.question) and one.answer.error is None:
            questions[one.question.id] = one.question
            texts = [remove_marks(one.answer.text), *(hit.text for hit in one.answer.hits)]
            evidence.setdefault(one.question.id, []).extend(texts)
    n = len(questions)
    if n < MIN_ANSWERS:
        return None
    padded = {key: f" {normalize_answer(' '.join(dict.fromkeys(texts)))} " for key, texts in evidence.items()}
    golds = [[f" {normalize_answer(gold)} " for gold in _list_gold(question)] for question in questions.values()]
    stands = np.array([[any(gold in padded[key] for gold in own) for own in golds] for key in questions], dtype=float)
    own_count = float(stands.trace())
    chance = float(stands.sum()) / n
    centred = stands - stands.mean(axis=0) - stands.mean(axis=1)[:, None] + stands.mean()
    deviation = float(np.sqrt((centred**2).sum() / (n - 1)))
    misplaced = int(((stands.sum(axis=0) > 0) & (stands.diagonal() == 0)).sum())
    if own_count > chance + 2 * deviation or misplaced < max(MIN_MISPLACED, 0.2 * n):
        return None
    return (
        f"gold answers: {own_count:.0f} of {n} stand in what was read or answered for their own question, and "
        f"{chance:.1f} would by chance; {misplaced} stand only in what belongs to other questions. They look shuffled: "
        "check that each line's answer belongs to its question."
    )


def _list_gold(question: Question) -> tuple[str, ...]:
    return question.accept or question.answers
