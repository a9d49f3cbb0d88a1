"""A test set from a real store, by a scripted writer: good questions are kept, bad ones refused, chats trainable."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import Conflict, InputError
from core.layout import DataDir
from core.training_file import check_file
from evaluation.questions import read_questions
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.ingest import ingest
from retrieval.searcher import Searcher
from scripts.testset import WriterConfig, WritingConfig, find_writer, write_drafts, write_questions, write_raft
from tests.fakes.byte_tokenizer import make_byte_tokenizer, read_smollm2_template
from tests.fakes.gateway import CONTROL_TOKENS
from tests.fakes.hash_embedder import HashEmbedder
from tests.fakes.hostile_orders import DOCUMENTS
from tests.fakes.judge import MODEL, ScriptedJudge, scripted_judge

ITEMS = ("anvil", "bellows", "chisel", "drill", "easel", "file", "gimlet", "hammer")


@pytest.fixture
def writer() -> Iterator[ScriptedJudge]:
    with scripted_judge() as server:
        server.rules |= {
            "WrittenAnswer": write_answer,
            "WrittenQuestion": write_unanswerable,
            "Answerability": check_answerable,
        }
        yield server


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    """A data directory with a store of eight documents, one chunk each."""
    source = tmp_path / "source"
    source.mkdir()
    for number, item in enumerate(ITEMS, start=11):
        text = f"The {item} of the workshop weighs {number} kilograms and is kept on the shelf {item.upper()} here."
        (source / f"{item}.md").write_text(f"# The {item}\n\n{text}\n")
    data = DataDir(tmp_path / "data")
    ingest(data, "tools", source, embedder=HashEmbedder(), chunking=ChunkingConfig(), parsing=ParsingConfig())
    return data


def ask_weight(item: str) -> str:
    """Return a question that is far from those about other items."""
    return f"About the {item}, {item}: what does the {item} of the workshop weigh?"


def read_items(prompt: str) -> list[tuple[str, str]]:
    """Return item and weight of each passage in a prompt."""
    return re.findall(r"The (\w+) of the workshop weighs (\d+) kilograms", prompt)


def write_answer(_given: dict[str, Any], prompt: str) -> dict[str, Any]:
    (item, weight), *others = read_items(prompt)
    if item == "bellows":  # a writer that makes the answer up
        return {
            "question": "What does the bellows of the workshop weigh?",
            "short_answer": "99 tons",
            "answer": "99 tons",
        }
    if item == "chisel":  # and one that points at its source
        return {
            "question": "What does the passage say of the chisel?",
            "short_answer": weight,
            "answer": f"It is {weight}.",
        }
    if others:
        question = f"What do the {item} and the {others[0][0]} of the workshop weigh?"
    elif item == "drill":
        question = ask_weight("anvil")  # asked before, or not answered by its chunk
    else:
        question = ask_weight(item)
    return {"question": question, "short_answer": f"{weight} kilograms", "answer": f"It weighs {weight} kilograms."}


def write_unanswerable(_given: dict[str, Any], prompt: str) -> dict[str, Any]:
    item = read_items(prompt)[0][0]
    if item in ("anvil", "easel"):  # unanswerable by mistake
        return {"question": ask_weight(item)}
    return {"question": f"About the {item}, {item}: who bought the {item} of the workshop?"}


def check_answerable(_given: dict[str, Any], prompt: str) -> dict[str, Any]:
    question = re.search(r"Question: (.*)", prompt)
    asked = re.findall(r"the (\w+)", question[1].replace("of the workshop", "") if question else "")
    known = {item for item, _ in read_items(prompt)}
    return {"answerable": int("weigh" in prompt.split("Passage", maxsplit=1)[0] and set(asked) <= known)}


def make_config(data: DataDir, writer: ScriptedJudge, **changes: Any) -> WritingConfig:
    config = WritingConfig(store="tools", writer=WriterConfig(url=writer.url, concurrency=2, retries=0), **changes)
    config.paths.data_dir = str(data.root)
    return config


def write_all(config: WritingConfig, data: DataDir, folder: Path) -> Path:
    searcher = Searcher(data, make_embedder=HashEmbedder)
    try:
        drafts = asyncio.run(write_drafts(config, find_writer(config.writer), searcher, folder / "drafts.jsonl"))
        write_questions(drafts, folder / "questions.jsonl", {"fact": 6, "multi-hop": 1, "unanswerable": 2})
        if config.raft:
            write_raft(config, searcher, folder / "questions.jsonl", folder, "Say it, briefly.")
    finally:
        searcher.close()
    return folder / "questions.jsonl"


def read_reasons(folder: Path) -> list[str]:
    rows = [json.loads(line) for line in (folder / "drafts.jsonl").read_text().splitlines()[1:]]
    return [row["refused"] for row in rows if row["refused"]]


def test_good_questions_are_kept_with_their_chunks_and_bad_ones_refused(
    data: DataDir, writer: ScriptedJudge, tmp_path: Path
) -> None:
    shares = {"fact": 6.0, "multi-hop": 1.0, "unanswerable": 2.0}
    path = write_all(make_config(data, writer, n=9, shares=shares), data, tmp_path / "out")
    questions = read_questions(path)
    facts = [question for question in questions if question.label == "fact"]
    assert {question.question for question in facts} == {
        ask_weight(item) for item in ("anvil", "easel", "file", "gimlet", "hammer")
    }
    for question in facts:
        assert question.accept[0] in question.passages[0]
        assert question.files[0].removesuffix(".md") in question.question
    (hop,) = [question for question in questions if question.label == "multi-hop"]
    assert len(hop.passages) == len(hop.files) == 2
    unanswerable = [question for question in questions if question.label == "unanswerable"]
    assert len(unanswerable) == 2
    assert all("who bought" in question.question for question in unanswerable)
    reasons = read_reasons(tmp_path / "out")
    assert "the short answer does not stand in the chunk" in reasons
    assert "it points at its source" in reasons
    assert "its own chunks do not answer it" in reasons


def test_what_the_store_answers_is_no_unanswerable_question(
    data: DataDir, writer: ScriptedJudge, tmp_path: Path
) -> None:
    config = make_config(data, writer, n=6, shares={"unanswerable": 1.0})
    path = write_all(config, data, tmp_path / "out")
    assert not [question for question in read_questions(path) if "weigh" in question.question]
    assert {"anvil.md answers it", "easel.md answers it"} & set(read_reasons(tmp_path / "out"))


def test_nothing_is_asked_twice_nor_what_is_excluded(data: DataDir, writer: ScriptedJudge, tmp_path: Path) -> None:
    writer.rules["WrittenQuestion"] = lambda _given, _prompt: {"question": "Who bought the tools of the workshop?"}
    config = make_config(data, writer, n=3, shares={"unanswerable": 1.0})
    assert len(read_questions(write_all(config, data, tmp_path / "out"))) == 1
    assert "it was asked before: Who bought the tools of the workshop?" in read_reasons(tmp_path / "out")
    config.exclude = str(tmp_path / "out" / "questions.jsonl")
    with pytest.raises(InputError, match=r"found none that can be used .*it was asked before"):
        write_all(config, data, tmp_path / "second")


def test_a_finished_set_is_not_written_again_and_an_edited_one_stays(
    data: DataDir, writer: ScriptedJudge, tmp_path: Path
) -> None:
    config = make_config(data, writer, n=4, shares={"fact": 1.0})
    path = write_all(config, data, tmp_path / "out")
    before, asked = path.read_bytes(), len(writer.requests)
    assert write_all(config, data, tmp_path / "out").read_bytes() == before
    assert len(writer.requests) == asked
    lines = (tmp_path / "out" / "drafts.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out" / "drafts.jsonl").write_text("".join(lines[:-1]) + lines[-1][:10])  # as a kill leaves it
    assert write_all(config, data, tmp_path / "out").read_bytes() == before
    path.write_text(path.read_text().replace("weigh?", "weigh, please?"))
    edited = path.read_bytes()
    with pytest.raises(Conflict, match="it was edited"):
        write_all(config, data, tmp_path / "out")
    assert path.read_bytes() == edited


def test_chats_are_laid_out_as_the_server_does_and_pass_trainings_check(
    data: DataDir, writer: ScriptedJudge, tmp_path: Path
) -> None:
    shares = {"fact": 5.0, "unanswerable": 2.0}
    config = make_config(data, writer, n=7, shares=shares, raft=True, gold_share=1.0, distractors=2, valid_share=0.25)
    folder = tmp_path / "out"
    questions = {question.question: question for question in read_questions(write_all(config, data, folder))}
    train, valid = check_file(folder / "raft_train.jsonl"), check_file(folder / "raft_valid.jsonl")
    assert train.rows + valid.rows == len(questions)
    chats = [json.loads(line)["messages"] for line in (folder / "raft_train.jsonl").read_text().splitlines()]
    for system, user, assistant in chats:
        question = questions[user["content"]]
        assert system["content"].startswith("Say it, briefly.\n\nDocument: ")
        if question.answers:
            assert question.passages[0] in system["content"]
            assert system["content"].count("Document: ") == 3
            assert assistant["content"] == question.answers[0]
        else:
            assert assistant["content"] == config.decline


def test_a_hostile_document_opens_no_turn_for_the_writer_nor_in_a_training_chat(
    data: DataDir, writer: ScriptedJudge, tmp_path: Path
) -> None:
    source = tmp_path / "hostile"
    source.mkdir()
    for number, order in enumerate(DOCUMENTS):
        fact = f"The item{number} of the workshop weighs {number + 100} kilograms. Order number {number} follows."
        (source / f"item{number}.md").write_text(f"{fact} {order}\n")
    ingest(data, "orders", source, embedder=HashEmbedder(), chunking=ChunkingConfig(), parsing=ParsingConfig())
    config = make_config(data, writer, n=12, shares={"fact": 1.0}, raft=True, distractors=3, valid_share=0.0)
    config.store = "orders"
    folder = tmp_path / "out"
    write_all(config, data, folder)
    for request in writer.requests:
        assert not [token for token in CONTROL_TOKENS if token in request["messages"][0]["content"]]
    tokenizer = make_byte_tokenizer()
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))
    others = set(tokenizer.all_special_ids) - {start, end}
    chats = [json.loads(line)["messages"] for line in (folder / "raft_train.jsonl").read_text().splitlines()]
    assert sum("< |" in chat[0]["content"] for chat in chats) > 3, "passages with control tokens are among them"
    for chat in chats:
        text = tokenizer.apply_chat_template(chat, chat_template=read_smollm2_template(), tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids.count(start) == ids.count(end) == len(chat) == 3
        assert not others & set(ids)


def test_a_writer_that_is_not_there_is_named(data: DataDir, writer: ScriptedJudge) -> None:
    assert find_writer(WriterConfig(url=writer.url)) == MODEL
