"""The labels to compare a judge with: their passages stand in the documents, and both answers are among them."""

from collections import Counter
from pathlib import Path

from evaluation.calibration import read_labels

ACME_DIR = Path(__file__).resolve().parents[3] / "examples" / "acme"
TEXTS = [" ".join(path.read_text(encoding="utf-8").split()) for path in (ACME_DIR / "documents").glob("*.md")]


def test_the_passages_are_the_documents_own_sentences() -> None:
    for labelled in read_labels(ACME_DIR / "judge_labels.jsonl"):
        (context,) = labelled.sample.contexts
        for sentence in context.rstrip(".").split(". "):
            assert any(sentence in text for text in TEXTS), sentence


def test_both_answers_are_known_for_both_metrics() -> None:
    labels = [one.labels for one in read_labels(ACME_DIR / "judge_labels.jsonl")]
    assert Counter(one["faithfulness"] for one in labels) == {1: 12, 0: 16}
    assert Counter(one["context_recall"] for one in labels) == {1: 21, 0: 7}


def test_a_right_answer_beside_its_passage_is_faithful() -> None:
    for labelled in read_labels(ACME_DIR / "judge_labels.jsonl"):
        if labelled.labels["faithfulness"]:
            assert labelled.labels["context_recall"] == 1
