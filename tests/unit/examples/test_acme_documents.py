"""The example company's documents and questions: they are made as stated, and each answer stands in one file only."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pypdfium2
import pytest
from bs4 import BeautifulSoup
from docx import Document
from docx.table import Table
from docx.text.paragraph import Paragraph

ACME_DIR = Path(__file__).resolve().parents[3] / "examples" / "acme"
DOCUMENTS = sorted((ACME_DIR / "documents").iterdir())
SOURCES = sorted((ACME_DIR / "sources").iterdir())
SUFFIXES = (".md", ".txt", ".html", ".pdf", ".docx")
# Names that belong to the training chats; a document that used one would leak between training and test.
CHAT_NAMES = ("Delta 7", "Rill 5", "Marsh", "Canal", "Dune", "Fjord", "trade counter", "depot", "Harnwick")
# Questions whose answer cannot be told from other files by a string; none so far.
SHARED_ANSWERS: frozenset[str] = frozenset()


def read_pdf(path: Path) -> str:
    document = pypdfium2.PdfDocument(path)
    try:
        return "\n".join(page.get_textpage().get_text_range() for page in document)
    finally:
        document.close()


def read_docx(path: Path) -> str:
    lines: list[str] = []
    for block in Document(str(path)).iter_inner_content():
        if isinstance(block, Paragraph):
            lines.append(block.text)
        elif isinstance(block, Table):
            lines.extend(" ".join(cell.text for cell in row.cells) for row in block.rows)
    return "\n".join(lines)


def read_text(path: Path) -> str:
    """Return a document's text on one line, whatever its format."""
    if path.suffix == ".pdf":
        text = read_pdf(path)
    elif path.suffix == ".docx":
        text = read_docx(path)
    elif path.suffix == ".html":
        main = BeautifulSoup(path.read_text(encoding="utf-8"), "lxml").main
        assert main is not None, f"{path.name} has no <main>"
        text = main.get_text(" ")
    else:
        text = path.read_text(encoding="utf-8")
    return " ".join(text.split())


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {path.name: read_text(path) for path in DOCUMENTS}


@pytest.fixture(scope="module")
def questions() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ACME_DIR / "questions.jsonl").read_text(encoding="utf-8").splitlines()]


def split_sections(path: Path) -> list[str]:
    """Return the sections of a hand-written document or of a source, each with its heading first."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        return [BeautifulSoup(part, "lxml").get_text(" ") for part in text.split("<main>")[1].split("<h2>")[1:]]
    if path.suffix == ".txt":
        parts = re.split(r"^(?=[^\n]+\n-{3,}$)", text, flags=re.MULTILINE)
    else:
        parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    return parts[1:]


def test_pdf_and_docx_are_made_from_their_sources_to_the_byte(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ACME_DIR / "make_documents.py"), "--out", str(tmp_path)], check=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_bytes() for path in DOCUMENTS if path.suffix in {".pdf", ".docx"}}
    assert sorted(made) == sorted(committed)
    differing = [name for name in made if made[name] != committed[name]]
    assert not differing, f"run examples/acme/make_documents.py and commit its output: {differing}"


def test_there_are_enough_documents_in_each_format() -> None:
    counts = Counter(path.suffix for path in DOCUMENTS)
    assert set(counts) == set(SUFFIXES)
    assert counts.total() >= 36
    assert min(counts.values()) >= 4


def test_some_pdfs_have_pages_and_both_binary_formats_hold_tables() -> None:
    page_counts = [len(pypdfium2.PdfDocument(path)) for path in DOCUMENTS if path.suffix == ".pdf"]
    assert sum(count > 1 for count in page_counts) >= 2
    with_table = [path.name for path in SOURCES if "\n|" in path.read_text(encoding="utf-8")]
    assert any(name.endswith(".pdf.md") for name in with_table)
    assert any(name.endswith(".docx.md") for name in with_table)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_are_short(path: Path) -> None:
    assert 150 <= len(read_text(path).split()) <= 500


@pytest.mark.parametrize(
    "path", [*SOURCES, *(path for path in DOCUMENTS if path.suffix in {".md", ".txt", ".html"})], ids=lambda p: p.name
)
def test_each_section_fits_into_one_chunk(path: Path) -> None:
    sections = split_sections(path)
    assert len(sections) >= 3
    for section in sections:
        assert 40 <= len(section.split()) <= 120, section


def test_no_document_and_no_question_uses_a_name_of_the_training_chats(texts: dict[str, str]) -> None:
    held_out = {**texts, "questions.jsonl": (ACME_DIR / "questions.jsonl").read_text(encoding="utf-8")}
    leaks = [(file, name) for file, text in held_out.items() for name in CHAT_NAMES if name.lower() in text.lower()]
    assert not leaks


def test_questions_have_the_promised_counts_and_fields(questions: list[dict[str, Any]]) -> None:
    counts = Counter(question["kind"] for question in questions)
    assert set(counts) == {"fact", "style", "unanswerable"}
    assert counts["fact"] >= 40
    assert counts["style"] == counts["unanswerable"] == 10
    assert len({question["id"] for question in questions}) == len(questions)
    assert len({question["question"] for question in questions}) == len(questions)
    for question in questions:
        assert set(question) - {"demo", "regex"} == {"id", "question", "answer", "accept", "file", "kind"}
        assert question["id"].startswith(question["kind"] + "-")
        assert question["question"].endswith("?")
        assert question["answer"].endswith(".")


def test_questions_cover_files_and_formats(questions: list[dict[str, Any]]) -> None:
    for kind, least in (("fact", 25), ("style", 8)):
        files = {question["file"] for question in questions if question["kind"] == kind}
        assert len(files) >= least
        assert {Path(file).suffix for file in files} == set(SUFFIXES)


def test_four_short_questions_are_for_the_demo(questions: list[dict[str, Any]]) -> None:
    demo = [question for question in questions if question.get("demo") is True]
    assert sorted(Path(question["file"]).suffix for question in demo) == [".docx", ".html", ".md", ".pdf"]
    assert all(len(question["question"].split()) <= 14 for question in demo)


def test_an_unanswerable_question_names_no_file(questions: list[dict[str, Any]]) -> None:
    for question in questions:
        is_unanswerable = question["kind"] == "unanswerable"
        assert (question["file"] is None) == is_unanswerable, question["id"]
        assert (question["accept"] == []) == is_unanswerable, question["id"]


def test_each_answer_stands_in_its_file_and_in_no_other(questions: list[dict[str, Any]], texts: dict[str, str]) -> None:
    problems = []
    for question in questions:
        if question["file"] is None or question["id"] in SHARED_ANSWERS:
            continue
        holders = {
            accept: [file for file, text in texts.items() if accept.lower() in text.lower()]
            for accept in question["accept"]
        }
        if [question["file"]] not in holders.values():
            problems.append((question["id"], holders))
    assert not problems


def test_each_model_answer_is_accepted(questions: list[dict[str, Any]]) -> None:
    for question in questions:
        if question["file"] is not None:
            assert any(accept.lower() in question["answer"].lower() for accept in question["accept"]), question["id"]
