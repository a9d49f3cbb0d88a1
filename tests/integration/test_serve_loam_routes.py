"""The routes of our own, through the real gateway and the real search: what they answer, beside whose it is."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from core.layout import write_file
from evaluation.questions import read_questions
from retrieval.labels import read_labels
from retrieval.store import find_store
from serve.keys import create_key
from serve.routes import operations
from tests.fakes.engine import BASE
from tests.fakes.gateway import RunningGateway, searching_gateway

TEXT = (
    "# Returns\n\nA customer can return a product within 45 days. Étui included.\n\n"
    "# Frost\n\nEmpty the pump in winter.\n"
)


class Client:
    """An administrator's requests."""

    def __init__(self, gateway: RunningGateway) -> None:
        """Make a key."""
        self.gateway = gateway
        self.token = create_key(gateway.database, "local", is_admin=True)[1]

    def ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Ask."""
        headers = {"authorization": f"Bearer {self.token}"}
        return self.gateway.request(method, f"/v1/{path}", json=body, headers=headers)

    def fill_store(self) -> str:
        """Return a new store with one document."""
        openai = self.gateway.client(self.token)
        store = openai.vector_stores.create(name="s")
        file = openai.files.create(file=("returns.md", TEXT.encode()), purpose="assistants")
        openai.vector_stores.files.create(store.id, file_id=file.id, attributes={"year": 2026})
        deadline = time.monotonic() + 60
        while openai.vector_stores.files.retrieve(file.id, vector_store_id=store.id).status == "in_progress":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return store.id


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One gateway for all tests here."""
    with searching_gateway(tmp_path_factory.mktemp("routes")) as running:
        yield Client(running)


def test_a_search_tells_place_and_ranks_of_each_passage(client: Client) -> None:
    store = client.fill_store()
    body = {
        "vector_store_ids": [store],
        "query": "return a product",
        "filters": {"type": "eq", "key": "year", "value": 2026},
    }
    found = client.ask("POST", "loam/search", body).json()
    best = found["data"][0]
    assert (best["filename"], best["heading"]) == ("returns.md", "Returns")
    assert [best["stages"][stage]["rank"] for stage in ("lexical", "dense", "fused")] == [1, 1, 1]
    assert best["stages"]["lexical"]["score"] > 0
    assert found["searched"][0]["vector_store_id"] == store
    other = next(hit for hit in found["data"] if hit["heading"] == "Frost")
    assert other["stages"]["dense"]["rank"] == 2
    assert client.ask("POST", "loam/search", {**body, "query": "frost"}).json()["data"]
    documents = client.ask("GET", f"loam/documents/{store}").json()["data"]
    assert [(one["filename"], one["attributes"]) for one in documents] == [("returns.md", {"year": 2026})]


def test_a_passage_stands_in_its_document_at_its_offsets(client: Client) -> None:
    store = client.fill_store()
    found = client.ask("POST", "loam/search", {"vector_store_ids": [store], "query": "empty the pump"}).json()["data"][
        0
    ]
    for around in (0, 5, 4000):
        passage = client.ask("GET", f"loam/passages/{found['chunk_id']}?around={around}").json()
        document = passage["document"]
        start = passage["start"] - document["start"]
        assert document["text"][start : start + len(passage["text"])] == passage["text"] == found["text"]
        assert document["end"] - document["start"] == len(document["text"])
    assert (document["start"], document["end"]) == (0, document["length"])
    assert "Étui" in document["text"]
    assert client.ask("GET", "loam/passages/chunk-999999999").status_code == 404


def test_feedback_is_what_tuning_and_evaluation_read(client: Client, tmp_path: Path) -> None:
    store = client.fill_store()
    chunk = client.ask("POST", "loam/search", {"vector_store_ids": [store], "query": "return"}).json()["data"][0][
        "chunk_id"
    ]
    said = {"rating": "up", "model": BASE, "question": "How long?", "answer": "45 days [1]", "chunk_ids": [chunk]}
    kept = client.ask("POST", "loam/feedback", said).json()
    client.ask("POST", "loam/feedback", {**said, "rating": "down", "expected": "45 days", "comment": "too short"})
    exported = client.ask("GET", f"loam/feedback/questions?vector_store_id={store}").text
    good, bad = (json.loads(line) for line in exported.splitlines())
    assert (good["answer"], good["chunks"], good["files"]) == ("45 days", [chunk], ["returns.md"])
    assert (bad["answer"], bad["accept"], bad["given"]) == ("45 days", ["45 days"], "45 days [1]")
    (tmp_path / "questions.jsonl").write_text(exported)
    assert [question.answers for question in read_questions(tmp_path / "questions.jsonl")] == [("45 days",)] * 2
    engine = client.gateway.database
    labels = read_labels(engine, find_store(engine, store), tmp_path / "questions.jsonl")
    assert [question.relevant for question in labels.questions] == [frozenset({int(chunk.removeprefix("chunk-"))})] * 2
    assert client.ask("GET", "loam/feedback?rating=down").json()["data"][0]["comment"] == "too short"
    assert client.ask("DELETE", f"loam/feedback/{kept['id']}").json()["deleted"] is True
    assert client.ask("GET", f"loam/feedback/{kept['id']}").status_code == 404


def test_feedback_outlives_its_passages_without_naming_them(client: Client) -> None:
    store = client.fill_store()
    chunk = client.ask("POST", "loam/search", {"vector_store_ids": [store], "query": "return"}).json()["data"][0][
        "chunk_id"
    ]
    said = {"rating": "up", "model": BASE, "question": "Gone?", "answer": "yes", "chunk_ids": [chunk]}
    kept = client.ask("POST", "loam/feedback", said).json()
    client.ask("DELETE", f"vector_stores/{store}")
    rows = [json.loads(line) for line in client.ask("GET", "loam/feedback/questions").text.splitlines()]
    assert kept["id"] not in client.ask("GET", "loam/feedback/questions?use=tuning").text
    row = next(row for row in rows if row["id"] == kept["id"])
    assert "chunks" not in row
    assert "files" not in row


def test_training_data_is_checked_before_a_job(client: Client) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bb"}]}
    broken = {"messages": [{"role": "user", "content": "a"}]}
    openai = client.gateway.client(client.token)
    lines = "".join(json.dumps(row) + "\n" for row in (chat, broken, chat))
    file = openai.files.create(file=("chats.jsonl", lines.encode()), purpose="fine-tune")
    found = client.ask("POST", "loam/training_checks", {"file_id": file.id}).json()
    assert (found["rows"], found["format"], found["fault_count"]) == (2, "chat", 1)
    assert (found["faults"][0]["line"], found["faults"][0]["field"]) == (2, "messages[0].role")
    assert found["lengths"]["measured"] == 2
    assert found["sample"]["rendered"] == "user: a\n\nassistant: bb"


def test_a_job_is_estimated_before_it_is_made(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    openai = client.gateway.client(client.token)
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    file = openai.files.create(file=("chats.jsonl", (json.dumps(chat) + "\n").encode() * 10), purpose="fine-tune").id
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 5}}}
    body = {"model": BASE, "training_file": file, "method": method}
    found = client.ask("POST", "loam/training_estimates", body).json()
    assert (found["object"], found["rows"], found["steps"], found["fits"]) == ("loam.training_estimate", 10, 4, True)
    assert found["hyperparameters"] == {"n_epochs": 2, "batch_size": 5, "learning_rate_multiplier": 1.0}
    assert found["stops_engine"] is False
    assert found["memory"]["needed_bytes"] == sum(found["memory"]["parts"].values())
    assert openai.fine_tuning.jobs.list().data == []
    limited = client.ask("POST", "loam/training_estimates", {**body, "metadata": {"max_steps": "3"}}).json()
    assert limited["steps"] == 3
    where = client.gateway.folder / "files" / file
    for code, kind, param in ((3, "invalid_training_data", "training_file"), (2, "invalid_config", None)):
        fault = ["code", f"2 faults in {where}: line 4", code]
        monkeypatch.setenv("LOAM_FAKE_TRAINER", json.dumps({"fault": fault}))
        refused = client.ask("POST", "loam/training_estimates", body)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (400, kind, param)
        assert error["message"] == f"2 faults in {file}: line 4"
    for changed in ({"model": "nothing"}, {"training_file": "file-none"}):
        assert client.ask("POST", "loam/training_estimates", {**body, **changed}).status_code == 404


def test_reports_are_read_and_nothing_else_is(client: Client) -> None:
    folder = client.gateway.folder / "reports" / "verdict-1"
    write_file(folder / "report.json", '{"figures": {"success": 0.5}}')
    write_file(folder / "weights.safetensors", "x")
    (folder / "link.json").symlink_to(client.gateway.folder / "loam.db")
    reports = client.ask("GET", "loam/reports").json()["data"]
    assert [(report["name"], list(report["files"])) for report in reports] == [("verdict-1", ["report.json"])]
    answer = client.ask("GET", "loam/reports/verdict-1/report.json")
    assert answer.json() == {"figures": {"success": 0.5}}
    assert "sandbox" in answer.headers["content-security-policy"]
    for path in (
        "verdict-1/link.json",
        "verdict-1/weights.safetensors",
        "verdict-1/..%2F..%2Floam.db",
        "..%2F/loam.db",
    ):
        assert client.ask("GET", f"loam/reports/{path}").status_code == 404


def test_operators_see_state_and_keys(client: Client) -> None:
    client.fill_store()
    status = client.ask("GET", "loam/status").json()
    assert status["engine"]["state"] == "ready"
    assert status["served"]["base"] == [BASE]
    assert status["disk"]["used_by"]["database"] > 0
    assert status["memory"]["gateway_bytes"] > 0
    made = client.ask("POST", "loam/keys", {"owner": "sales"}).json()
    theirs = client.gateway.request("GET", "/v1/loam/account", headers={"authorization": f"Bearer {made['token']}"})
    assert theirs.json() == {"object": "loam.account", "owner": "sales", "is_admin": False, "key_id": made["id"]}
    listed = client.ask("GET", "loam/keys")
    assert made["token"] not in listed.text
    assert client.ask("DELETE", f"loam/keys/{made['id']}").json()["revoked_at"] is not None
    diagnosis = client.ask("POST", "loam/doctor").json()
    assert diagnosis["object"] == "loam.diagnosis"
    assert {one["check"] for one in diagnosis["findings"]} <= {"models"}  # the fake engine's base has no manifest


def test_a_doctor_that_does_not_end_in_time_is_ended_and_names_no_path(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "DOCTOR_TIMEOUT_S", 0.05)
    answer = client.ask("POST", "loam/doctor")
    assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "doctor_unfinished")
    assert str(client.gateway.folder) not in error["message"]
    assert not [one for one in psutil.Process().children() if any("doctor.py" in word for word in one.cmdline())]
