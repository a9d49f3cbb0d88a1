"""evaluation.raft: right passages among distractors, and never a right one taught as wrong."""

from collections.abc import Sequence
from dataclasses import replace

from evaluation.questions import Kind, Question
from evaluation.raft import Recipe, WithoutGold, make_examples, sort_found, split_examples
from retrieval.searcher import Hit
from tests.fakes.searcher import make_hit, make_passage

GOLD = make_hit(make_passage("chunk-1", "A product can be returned within 45 days.", file="returns.md"))
COPY = make_hit(make_passage("chunk-2", "Remember: within 45 days!", file="faq.md"))
NEAR = make_hit(make_passage("chunk-3", "A product is refunded within 8 days.", file="returns.md"))
FAR = make_hit(make_passage("chunk-4", "Pumps are blue.", file="pumps.md"))
OTHER = make_hit(make_passage("chunk-5", "Valves are red.", file="valves.md"))
QUESTION = Question("q", "Within what time?", answers=("Within 45 days.",), accept=("45 days",), passages=(GOLD.text,))


def find(_text: str, count: int) -> Sequence[Hit]:
    return [FAR, COPY, GOLD, NEAR, OTHER][:count]


def test_what_answers_is_never_a_distractor() -> None:
    assert sort_found(QUESTION, find("", 9)) == ([GOLD], [FAR, NEAR, OTHER])
    by_file = Question("q", "?", answers=("Within 45 days.",), accept=("45 days",), files=("returns.md",))
    assert sort_found(by_file, find("", 9)) == ([GOLD], [FAR, OTHER])
    both = Question("q", "?", answers=("x",), accept=("45 days",), passages=(GOLD.text, "Something that is not found."))
    assert sort_found(both, find("", 9))[0] == []
    unanswerable = Question("q", "Who?", Kind.unanswerable)
    assert sort_found(unanswerable, find("", 9)) == ([], [FAR, COPY, GOLD, NEAR, OTHER])


def test_an_example_holds_gold_and_distractors_in_any_order() -> None:
    (example,), left_out = make_examples([QUESTION], find, Recipe(distractors=2, gold_share=1.0))
    assert (example.answer, example.has_gold, left_out) == ("Within 45 days.", True, [])
    assert {hit.chunk_id for hit in example.passages} == {"chunk-1", "chunk-3", "chunk-4"}
    questions = [replace(QUESTION, id=f"q{n}") for n in range(40)]
    examples, _ = make_examples(questions, find, Recipe(distractors=2, gold_share=1.0))
    assert {[hit.chunk_id for hit in one.passages].index("chunk-1") for one in examples} == {0, 1, 2}
    assert make_examples(questions, find, Recipe(distractors=2, gold_share=1.0))[0] == examples


def test_without_gold_it_declines_or_knows_by_heart() -> None:
    (declining,), _ = make_examples([QUESTION], find, Recipe(gold_share=0.0))
    assert (declining.answer, declining.has_gold) == ("The documents do not say.", False)
    assert GOLD not in declining.passages
    (knowing,), _ = make_examples([QUESTION], find, Recipe(gold_share=0.0, without_gold=WithoutGold.answer))
    assert knowing.answer == "Within 45 days."
    unanswerable = Question("u", "Who?", Kind.unanswerable)
    (declined,), _ = make_examples([unanswerable], find, Recipe(gold_share=1.0, without_gold=WithoutGold.answer))
    assert (declined.answer, declined.has_gold, len(declined.passages)) == ("The documents do not say.", False, 3)


def test_the_share_with_gold_is_about_what_was_asked() -> None:
    questions = [replace(QUESTION, id=f"q{n}") for n in range(400)]
    examples, _ = make_examples(questions, find, Recipe(gold_share=0.8))
    assert 290 < sum(example.has_gold for example in examples) < 350


def test_what_cannot_be_made_is_told() -> None:
    lost = Question("lost", "?", answers=("x",), accept=("x",), passages=("Nowhere to be found.",))
    form = Question("form", "?", regex="x", files=("returns.md",))
    examples, left_out = make_examples([lost, form], find, Recipe())
    assert examples == []
    assert left_out == ["lost: the store does not find what answers it", "form: it has no answer"]


def test_a_part_is_held_out() -> None:
    examples, _ = make_examples([QUESTION] * 20, find, Recipe())
    train, valid = split_examples(examples, 0.1)
    assert (len(train), len(valid)) == (18, 2)
    assert split_examples(examples, 0.0) == (examples, [])
    assert split_examples(examples[:1], 0.5) == (examples[:1], [])
