"""Metrics that need no judge: what one saved answer is worth against its question, and the means over many.

Content: exact match and token F1 in SQuAD's normal form; whether an accepted text stands in the answer. Sources:
precision and recall of citations, recall and nDCG@10 of retrieval, where the gold passages are known. Behaviour:
declining, format, latency, time to first token, tokens. What does not apply is None and is counted, never taken for
0. Does not know who answered, or what a judge says (ragas_scores.py does).

Source: Rajpurkar et al., «SQuAD», arXiv 1606.05250, evaluate-v1.1.py (normal form, exact match, F1).
"""

import json
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import jsonschema
import referencing

from evaluation.abstention import ABSTENTIONS, is_abstention
from evaluation.answers import Answer, Passage
from evaluation.matching import READINGS, holds_text, unify
from evaluation.questions import Kind, Question
from retrieval.metrics import measure_ndcg, measure_recall

if TYPE_CHECKING:
    from retrieval.store import Passage as StoredPassage

MARK = re.compile(r"(?:(?<=[.,;:!?)\]»”])| +)\[\d{1,3}\]")
"""A citation, which follows a space or the end of a sentence; «rows[0]» and «[2026]» are none."""
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = frozenset(string.punctuation)
LOOSE_SIGN = re.compile(rf"(?<!\d)[{re.escape(string.punctuation)}]|[{re.escape(string.punctuation)}](?!\d)")
"""Punctuation that does not stand between two digits."""
ALL_KINDS = "all"


@dataclass(frozen=True, slots=True)
class Scores:
    """What one answer is worth, 0 to 1 where no unit is named; None where a metric does not apply.

    Attributes:
        success: 1 when every demand of the question is met: content and format where they are given, and declining
            where it cannot be answered. 0 after an error.
        correct: 1 when an accepted text stands in the answer, or, without accepted texts, the words of a right answer
            in their order.
        exact_match: 1 when the normal form is that of a right answer.
        token_f1: Harmonic mean of precision and recall of words, against the nearest right answer.
        citation_precision: Share of the cited passages that are gold.
        citation_recall: Share of the gold documents or passages that are cited.
        retrieval_recall: Share of the gold documents or passages among what the model read.
        ndcg_at_10: Of what the model read, its first ten.
        abstained: 1 when the answer declines.
        format_ok: 1 when pattern and schema are met; 0 after an error.
        ttft_s: Seconds to the first text.
        latency_s: Seconds to the end.
        prompt_tokens: As the endpoint counted.
        completion_tokens: As the endpoint counted.
        failed: 1 after an error.
    """

    success: float
    correct: float | None
    exact_match: float | None
    token_f1: float | None
    citation_precision: float | None
    citation_recall: float | None
    retrieval_recall: float | None
    ndcg_at_10: float | None
    abstained: float
    format_ok: float | None
    ttft_s: float | None
    latency_s: float | None
    prompt_tokens: float | None
    completion_tokens: float | None
    failed: float


@dataclass(frozen=True, slots=True)
class Scored:
    """A question, an answer to it, and what that is worth."""

    question: Question
    answer: Answer
    scores: Scores


@dataclass(frozen=True, slots=True)
class Summary:
    """The mean of one metric over the answers of one arm.

    Attributes:
        arm: Name of the arm.
        kind: Value of a Kind, or `all`.
        metric: Field of Scores.
        mean: None where no answer has a value.
        n: Answers with a value.
        missing: Answers without one: it does not apply, or was not measured.
    """

    arm: str
    kind: str
    metric: str
    mean: float | None
    n: int
    missing: int


METRICS = tuple(field.name for field in fields(Scores))
MEANINGS = {
    "success": "every demand of the question is met",
    "correct": "the right words stand in the answer",
    "exact_match": "the answer is a right one, word for word",
    "token_f1": "words shared with the nearest right answer",
    "citation_precision": "share of the cited passages that are gold",
    "citation_recall": "share of the gold that is cited",
    "retrieval_recall": "share of the gold that the model read",
    "ndcg_at_10": "the same, worth more the higher it stood",
    "abstained": "the answer declines",
    "format_ok": "pattern and schema are met",
    "failed": "refused, broken off or too late",
}
"""What a reader of a report is told of each metric of quality."""


def score_answer(question: Question, answer: Answer, abstentions: Sequence[str] = ABSTENTIONS) -> Scores:
    """Return what an answer is worth.

    Args:
        question: What was asked.
        answer: As saved.
        abstentions: Patterns of declining.
    """
    text = remove_marks(answer.text)
    has_failed = answer.error is not None
    is_unanswerable = question.kind is Kind.unanswerable
    abstained = not has_failed and is_abstention(text, abstentions)
    content = None if is_unanswerable else judge_content(question, answer.text)
    formed = follows_format(question, answer.text)
    formed = None if formed is None else formed and not has_failed
    demands = [demand for demand in (content, formed, abstained if is_unanswerable else None) if demand is not None]
    answers = () if is_unanswerable else question.answers
    precision, recall = measure_citations(question, answer)
    found, gain = measure_retrieval(question, answer)
    return Scores(
        success=float(not has_failed and all(demands)),
        correct=_to_float(content),
        exact_match=max((float(measure_exact_match(text, gold)) for gold in answers), default=None),
        token_f1=max((measure_token_f1(text, gold) for gold in answers), default=None),
        citation_precision=precision,
        citation_recall=recall,
        retrieval_recall=found,
        ndcg_at_10=gain,
        abstained=float(abstained),
        format_ok=_to_float(formed),
        ttft_s=answer.ttft_s,
        latency_s=None if has_failed else answer.latency_s,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        failed=float(has_failed),
    )


def _to_float(value: bool | None) -> float | None:
    return None if value is None else float(value)


def remove_marks(text: str) -> str:
    """Return an answer without citation marks and without spaces at its ends."""
    return MARK.sub("", text).strip()


def normalize_answer(text: str) -> str:
    """Return SQuAD's normal form: lower case, no punctuation, no articles, single spaces."""
    bare = "".join(sign for sign in text.lower() if sign not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", bare).split())


def measure_exact_match(text: str, gold: str) -> bool:
    """Tell whether two texts have the same normal form."""
    return normalize_answer(text) == normalize_answer(gold)


def measure_token_f1(text: str, gold: str) -> float:
    """Return the F1 of the words of an answer against those of a right one, 0 to 1.

    Where either has no words at all, it is 1 when both have none, else 0, as in SQuAD 2.0.
    """
    found, wanted = normalize_answer(text).split(), normalize_answer(gold).split()
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))


def judge_content(question: Question, text: str) -> bool | None:
    """Tell whether an answer, as it came or without marks, holds what was asked for; None where that is not said.

    A text that holds the right words beside wrong ones, or denies them, counts as right: only a reader can tell.
    """
    if question.accept:
        return holds_any(text, question.accept)
    if question.answers:
        return any(
            f" {list_words(gold, read)} " in f" {list_words(form, read)} "
            for form in list_forms(text)
            for gold in question.answers
            for read in READINGS
        )
    return None


def holds_any(text: str, accepted: Iterable[str]) -> bool:
    """Tell whether an answer, as it came or without marks, holds one of some accepted texts."""
    return any(holds_text(form, one) for one in accepted for form in list_forms(text))


def list_forms(text: str) -> list[str]:
    """Return an answer without marks and as it came: a list of one number in JSON looks like a mark."""
    return list(dict.fromkeys((remove_marks(text), text)))


def list_words(text: str, read: Callable[[str], str] = unify) -> str:
    """Return the words that must stand in their order: SQuAD's normal form, but figures keep the signs inside them.

    By SQuAD's alone «11.4» would be «114».

    Args:
        text: Any.
        read: One of READINGS.
    """
    bare = LOOSE_SIGN.sub("", read(text))
    return " ".join(ARTICLES.sub(" ", bare).split())


def follows_format(question: Question, text: str) -> bool | None:
    """Tell whether an answer has the demanded form, as it came or without marks; None where none is demanded."""
    if question.regex is None and question.schema is None:
        return None
    return any(_follows(question, form) for form in list_forms(text))


def _follows(question: Question, text: str) -> bool:
    matches = question.regex is None or re.search(question.regex, text) is not None
    return matches and (question.schema is None or follows_schema(text, question.schema))


def follows_schema(text: str, schema: dict[str, Any]) -> bool:
    """Tell whether a text is JSON, with or without a fence around it, that follows a schema.

    References are looked up inside the schema only; nothing is ever fetched.
    """
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n```", text.strip(), re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    validator = jsonschema.Draft202012Validator(schema, registry=referencing.Registry())
    return bool(validator.is_valid(value))


def list_gold(question: Question) -> tuple[str, ...]:
    """Return the units that a ranking is judged by: chunks, else passages, else documents; empty without any."""
    return question.chunks or question.passages or question.files


def match_gold(question: Question, hit: "Passage | StoredPassage") -> str | None:
    """Return the gold unit that a passage is, or None.

    A gold passage is found when its words stand in the passage, or the passage's in it: chunks may be cut otherwise.
    """
    if question.chunks:
        return hit.chunk_id if hit.chunk_id in question.chunks else None
    if question.passages:
        text = normalize_answer(hit.text)
        for passage in question.passages:
            gold = normalize_answer(passage)
            if gold in text or (text and text in gold):
                return passage
        return None
    return hit.file if hit.file in question.files else None


def measure_citations(question: Question, answer: Answer) -> tuple[float | None, float | None]:
    """Return precision and recall of an answer's citations against the gold; None where they do not apply.

    Precision needs a citation. Recall needs documents that were searched, and is 0 for an answer that cites nothing.
    """
    gold = list_gold(question)
    if not gold or not answer.searched or answer.error:
        return None, None
    hits = {hit.n: hit for hit in answer.hits}
    matched = [match_gold(question, hits[number]) for number in answer.citations]
    right = [unit for unit in matched if unit is not None]
    precision = len(right) / len(matched) if matched else None
    return precision, len(set(right)) / len(gold)


def measure_retrieval(question: Question, answer: Answer) -> tuple[float | None, float | None]:
    """Return recall and nDCG@10 of what the model read; None without gold or without a search."""
    gold = list_gold(question)
    if not gold or not answer.searched or answer.error:
        return None, None
    ranking = rank_units(question, answer.hits)
    gains = dict.fromkeys(gold, 1.0)
    return measure_recall(ranking, gains, max(len(ranking), 1)), measure_ndcg(ranking, gains, 10)


def rank_units(question: Question, hits: Sequence[Passage]) -> list[str]:
    """Return what was found as a ranking: each gold unit once, at its best hit, and what is not gold beside it.

    Where documents are the gold, one that is not gold counts once, too.
    """
    by_document = not (question.chunks or question.passages)
    return list(
        dict.fromkeys(
            match_gold(question, hit) or (f"other {hit.file}" if by_document else f"other {hit.chunk_id}")
            for hit in hits
        )
    )


def score_all(
    questions: Iterable[Question], answers: Iterable[Answer], abstentions: Sequence[str] = ABSTENTIONS
) -> list[Scored]:
    """Score every answer to one of the questions, in the answers' order."""
    by_id = {question.id: question for question in questions}
    return [
        Scored(by_id[answer.question_id], answer, score_answer(by_id[answer.question_id], answer, abstentions))
        for answer in answers
        if answer.question_id in by_id
    ]


def summarize(scored: Sequence[Scored]) -> list[Summary]:
    """Return the mean of every metric, for each arm, over all of its answers and by kind of question.

    Arms and kinds come in the order of their first answer, `all` first.
    """
    summaries = []
    for arm in dict.fromkeys(one.answer.arm for one in scored):
        own = [one for one in scored if one.answer.arm == arm]
        kinds = list(dict.fromkeys(one.question.kind.value for one in own))
        for kind in [ALL_KINDS, *kinds]:
            part = [one for one in own if kind in (ALL_KINDS, one.question.kind.value)]
            for metric in METRICS:
                values = [value for one in part if (value := getattr(one.scores, metric)) is not None]
                mean = math.fsum(values) / len(values) if values else None
                summaries.append(Summary(arm, kind, metric, mean, len(values), len(part) - len(values)))
    return summaries


def measure_percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that a share (above 0, to 1) of the values do not exceed; None without values."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1] if ordered else None
