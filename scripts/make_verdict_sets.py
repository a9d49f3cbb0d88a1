"""Make two public data sets fit scripts/verdict.py: python scripts/make_verdict_sets.py DATA OUT.

DATA holds squad_dev_a/ (SQuAD's development set, 24 articles) and intents_train.jsonl, intents_valid.jsonl (BANKING77).
OUT/squad/ and OUT/intents/ get questions.jsonl, documents/ for a store, train.jsonl and valid.jsonl for a fine-tune,
and instructions. OUT/squad/ also gets what the RAFT arm takes: raft_questions.jsonl, the training questions that have
passages, for scripts/testset.py raft=true, and mixed_questions.jsonl, a test with questions that no passage answers. No
question of a test is in a training file. Prints the commands that come next.
"""

from core.entry import begin_program

begin_program()

import argparse
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.config import run_command
from core.control_tokens import disarm_for_any_model
from core.errors import NotFound
from core.layout import write_file, write_folder
from evaluation.questions import spread
from retrieval.beir import read_collection

QUESTIONS = 300
OPEN_BOOK_ROWS = 240
"""Training rows over passages: about 600 tokens each, so they take most of the training's time."""
CLOSED_BOOK_ROWS = 1200
VALID_ROWS = 40
MIXED_ANSWERABLE, MIXED_UNANSWERABLE = 70, 30
"""Questions of the test of the RAFT arm: what it has over the hybrid is that it declines."""
SQUAD_INSTRUCTIONS = "Answer the question from the documents, in as few words as possible."
RAFT_INSTRUCTIONS = f"{SQUAD_INSTRUCTIONS} If they do not hold the answer, say: The documents do not say."
INTENT_INSTRUCTIONS = (
    "Each document shows a customer's question and its intent. Answer with the intent of the user's question and "
    "nothing else, spelled as in the documents."
)
Rows = list[dict[str, Any]]


def read_lines(path: Path) -> Rows:
    """Return the objects of a JSONL file.

    Raises:
        NotFound: There is none.
    """
    if not path.is_file():
        raise NotFound(f"DATA: wanted {path.name} in {path.parent}, found none. See ../shared/data/README.md")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write objects as JSONL."""
    write_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def make_squad(data: Path, out: Path) -> None:
    """Write the SQuAD set: 300 questions, a passage a document, a fine-tune on other questions."""
    collection = read_collection(data / "squad_dev_a")
    passages = {passage.id: passage for passage in collection.passages}
    answers = {row["_id"]: row["answers"] for row in read_lines(data / "squad_dev_a" / "queries.jsonl")}
    asked = read_lines(data / "squad_dev_a" / "queries_small.jsonl")[:QUESTIONS]
    gold = {query: next(iter(judged)) for query, judged in collection.judged.items()}
    with write_folder(out / "documents") as folder:
        for passage in collection.passages:
            (folder / name_document(passage.id)).write_text(f"# {passage.title}\n\n{passage.text}\n", encoding="utf-8")
    questions = [make_question(row["_id"], row["text"], row["answers"], gold[row["_id"]]) for row in asked]
    write_mixed(data / "squad_dev_a" / "unanswerable.jsonl", questions, out)
    write_lines(out / "questions.jsonl", questions)
    held = {row["text"].casefold() for row in asked}
    texts = collection.labelled_queries()
    others = sorted(query for query, text in texts.items() if text.casefold() not in held and answers.get(query))
    chance = random.Random(0)  # noqa: S311 - a draw of examples
    chance.shuffle(others)
    rows, shown_questions = [], []
    for place, query in enumerate(others[: OPEN_BOOK_ROWS + CLOSED_BOOK_ROWS + VALID_ROWS]):
        read = [gold[query], *chance.sample(sorted(passages), 2)] if place % 6 == 0 else []
        chance.shuffle(read)
        shown = [(name_document(one), passages[one].title, passages[one].text) for one in read]
        if read and place >= VALID_ROWS:
            shown_questions.append(make_question(query, texts[query], answers[query], gold[query]))
        rows.append(make_chat(texts[query], answers[query][0], shown))
    write_lines(out / "valid.jsonl", rows[:VALID_ROWS])
    write_lines(out / "raft_questions.jsonl", shown_questions)
    write_lines(out / "train.jsonl", rows[VALID_ROWS:])
    write_file(out / "instructions.txt", SQUAD_INSTRUCTIONS)
    write_file(out / "long_instructions.txt", "Answer in as few words as possible. If you do not know, say so.")


def write_mixed(path: Path, questions: Rows, out: Path) -> None:
    """Write some of the questions among others that no passage answers, and instructions that say what to do then."""
    chance = random.Random(0)  # noqa: S311 - a draw of examples
    rows = [{"id": row["_id"], "question": row["text"], "kind": "unanswerable"}
            for row in chance.sample(read_lines(path), MIXED_UNANSWERABLE)]  # fmt: skip
    rows += spread(questions, MIXED_ANSWERABLE)
    chance.shuffle(rows)
    write_lines(out / "mixed_questions.jsonl", rows)
    write_file(out / "raft_instructions.txt", RAFT_INSTRUCTIONS)


def make_question(query: str, text: str, answers: Sequence[str], passage: str) -> dict[str, Any]:
    """Return a question as evaluation reads it; one of the answers must stand in what is said."""
    return {"id": query, "question": text, "answers": answers, "accept": answers, "file": name_document(passage)}


def make_chat(question: str, answer: str, shown: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """Return a training chat; passages (file, title, text) stand in the system message as the server puts them."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if shown:
        parts = [SQUAD_INSTRUCTIONS, *(f"Document: {file} | {title}\n{text}" for file, title, text in shown)]
        messages.insert(0, {"role": "system", "content": "\n\n".join(parts)})
    return {"messages": [{**message, "content": disarm_for_any_model(message["content"])} for message in messages]}


def name_document(passage: str) -> str:
    """Return the file name of a passage."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", passage) + ".md"


def make_intents(data: Path, out: Path) -> None:
    """Write the intents: 300 questions, the training questions as documents (one a label), a fine-tune."""
    train, valid = read_lines(data / "intents_train.jsonl"), read_lines(data / "intents_valid.jsonl")
    labels = sorted({row["label"] for row in train})
    with write_folder(out / "documents") as folder:
        for label in labels:
            own = [row["text"] for row in train if row["label"] == label]
            sections = [f"## {number}\n\nQuestion: {' '.join(text.split())}\nIntent: {label}\n"
                        for number, text in enumerate(own, start=1)]  # fmt: skip
            (folder / name_document(label)).write_text(f"# {label}\n\n" + "\n".join(sections), encoding="utf-8")
    asked = [valid[place * len(valid) // QUESTIONS] for place in range(QUESTIONS)]
    questions = [
        {"id": f"intent-{number}", "question": row["text"], "answer": row["label"],
         "regex": f"^{re.escape(row['label'])}$", "file": name_document(row["label"])}
        for number, row in enumerate(asked, start=1)
    ]  # fmt: skip
    write_lines(out / "questions.jsonl", questions)
    write_lines(out / "train.jsonl", train)
    write_lines(out / "valid.jsonl", valid)
    write_file(out / "instructions.txt", INTENT_INSTRUCTIONS)
    listed = "\n".join(labels)
    heading = "Name the intent of the customer's question. Answer with one of these and nothing else:"
    write_file(out / "long_instructions.txt", f"{heading}\n{listed}")


def main() -> None:
    """Write both sets and print the commands that come next."""
    parser = argparse.ArgumentParser(description="Two public data sets in the layout that scripts/verdict.py wants.")
    parser.add_argument("data", type=Path, help="folder with squad_dev_a/ and intents_*.jsonl")
    parser.add_argument("out", type=Path, help="folder to write squad/ and intents/ into")
    arguments = parser.parse_args()
    out = arguments.out
    make_squad(arguments.data, out / "squad")
    make_intents(arguments.data, out / "intents")
    print(
        f"""wrote {out}/squad and {out}/intents. Next, for each:
  python retrieval/run.py action=ingest store=squad source={out}/squad/documents
  python train/run.py model=smollm2_135m hardware=cpu run_id=squad \\
    data.train={out}/squad/train.jsonl data.valid={out}/squad/valid.jsonl
  python scripts/verdict.py questions={out}/squad/questions.jsonl name=squad store=squad run=squad \\
    instructions={out}/squad/instructions.txt long_instructions={out}/squad/long_instructions.txt max_tokens=48
For the arm raft-hybrid of squad:
  python scripts/testset.py store=squad raft=true distractors=2 questions={out}/squad/raft_questions.jsonl \\
    instructions={out}/squad/raft_instructions.txt
  python train/run.py model=smollm2_135m hardware=cpu run_id=squad-raft trainer.epochs=1 trainer.batch_size=8 \\
    trainer.learning_rate=5e-4 data.train=data/reports/testset-squad/raft_train.jsonl \\
    data.valid=data/reports/testset-squad/raft_valid.jsonl
  python scripts/verdict.py questions={out}/squad/mixed_questions.jsonl name=squad-raft store=squad run=squad \\
    raft_run=squad-raft instructions={out}/squad/raft_instructions.txt max_tokens=48
For the intents train by experiment=intents_cpu, and end with k=5 max_tokens=24 'nearest_pattern="Intent: (.+)"'"""
    )


if __name__ == "__main__":
    run_command(main)
