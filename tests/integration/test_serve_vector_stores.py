"""Vector stores through the stock client, on the real app, worker, ingestion and search."""

import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import VectorStore, VectorStoreDeleted, VectorStoreSearchResponse
from openai.types.vector_stores import (
    FileContentResponse,
    VectorStoreFile,
    VectorStoreFileBatch,
    VectorStoreFileDeleted,
)
from sqlalchemy import text

from core.layout import DataDir
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.database import open_database, read_transaction, write_transaction
from retrieval.ingest import ingest
from retrieval.searcher import Searcher
from serve.ingestion import IngestionWorker
from serve.keys import create_key
from tests.fakes.gateway import RunningGateway, running_gateway, searching_gateway
from tests.fakes.hash_embedder import HashEmbedder
from tests.fakes.strict_answers import check_answer

WARRANTY = b"# Warranty\n\nThe Brook 40 pump has a warranty of 26 months.\n"
RETURNS = b"# Returns\n\nA customer can return a product within 45 days of delivery.\n"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway for all tests here; each makes an owner of its own."""
    with searching_gateway(tmp_path_factory.mktemp("stores")) as running:
        yield running


@pytest.fixture
def client(gateway: RunningGateway) -> openai.OpenAI:
    """The stock client of an owner who has nothing."""
    return gateway.client(create_key(gateway.database, f"owner-{secrets.token_hex(4)}")[1])


def upload(client: openai.OpenAI, content: bytes, name: str) -> str:
    return client.files.create(file=(name, content), purpose="assistants").id


def wait_until(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_done():
        assert time.monotonic() < deadline, "it did not happen within a minute"
        time.sleep(0.05)


def make_store(client: openai.OpenAI, *contents: tuple[str, bytes]) -> tuple[str, list[str]]:
    """Return a store that holds some files, and their ids."""
    files = [upload(client, content, name) for name, content in contents]
    store = client.vector_stores.create(name="handbook", file_ids=files)
    wait_until(lambda: client.vector_stores.retrieve(store.id).status == "completed")
    return store.id, files


def search(client: openai.OpenAI, store: str, query: str, **more: Any) -> list[VectorStoreSearchResponse]:
    return list(client.vector_stores.search(store, query=query, **more))


def test_the_journey_of_a_document(client: openai.OpenAI) -> None:
    store = client.vector_stores.create(
        name="handbook", metadata={"team": "sales"}, expires_after={"anchor": "last_active_at", "days": 3}
    )
    check_answer(store, VectorStore)
    assert (store.status, store.name, store.metadata) == ("completed", "handbook", {"team": "sales"})
    assert store.expires_at == (store.last_active_at or 0) + 3 * 86_400
    file_id = upload(client, WARRANTY, "warranty.md")
    attached = client.vector_stores.files.create_and_poll(
        file_id, vector_store_id=store.id, attributes={"year": 2024, "team": "sales", "is_new": True}
    )
    check_answer(attached, VectorStoreFile)
    assert (attached.status, attached.last_error) == ("completed", None)
    assert attached.attributes == {"year": 2024, "team": "sales", "is_new": True}
    other = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("returns.md", RETURNS))
    hits = search(client, store.id, "How long is the warranty of the Brook 40?")
    for hit in hits:
        check_answer(hit, VectorStoreSearchResponse)
    assert (hits[0].file_id, hits[0].filename) == (file_id, "warranty.md")
    assert "26 months" in hits[0].content[0].text
    found = search(client, store.id, "warranty", filters={"type": "eq", "key": "year", "value": 2024})
    assert {hit.file_id for hit in found} == {file_id}
    assert search(client, store.id, "warranty", filters={"type": "eq", "key": "year", "value": 1999}) == []
    content = list(client.vector_stores.files.content(file_id, vector_store_id=store.id))
    check_answer(content[0], FileContentResponse)
    assert "26 months" in (content[0].text or "")
    changed = client.vector_stores.files.update(file_id, vector_store_id=store.id, attributes={"year": 1999})
    check_answer(changed, VectorStoreFile)
    assert len(search(client, store.id, "warranty", filters={"type": "eq", "key": "year", "value": 1999})) == 1
    assert [file.id for file in client.vector_stores.files.list(store.id, order="asc")] == [file_id, other.id]
    counted = client.vector_stores.retrieve(store.id)
    assert (counted.file_counts.completed, counted.file_counts.total) == (2, 2)
    assert counted.usage_bytes == len(WARRANTY) + len(RETURNS)
    gone = client.vector_stores.files.delete(file_id, vector_store_id=store.id)
    check_answer(gone, VectorStoreFileDeleted)
    assert {hit.file_id for hit in search(client, store.id, "warranty")} == {other.id}
    check_answer(client.vector_stores.delete(store.id), VectorStoreDeleted)
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.search(store.id, query="returns")
    assert client.files.retrieve(file_id).id == file_id


def test_a_store_is_changed_and_listed(client: openai.OpenAI) -> None:
    made = [client.vector_stores.create(name=f"store {number}").id for number in range(5)]
    pages = list(client.vector_stores.list(limit=2, order="asc").iter_pages())
    assert sorted(store.id for page in pages for store in page.data) == sorted(made)
    assert [len(page.data) for page in pages] == [2, 2, 1]
    changed = client.vector_stores.update(made[0], name="other", metadata={"a": "b"})
    check_answer(changed, VectorStore)
    assert (changed.name, changed.metadata) == ("other", {"a": "b"})
    assert client.vector_stores.update(made[0], metadata=None).metadata is None
    assert client.vector_stores.retrieve(made[0]).name == "other"


def test_files_of_a_batch_have_their_own_attributes_alone(client: openai.OpenAI) -> None:
    store = client.vector_stores.create(name="own").id
    one, other = (upload(client, WARRANTY, name) for name in ("a.md", "b.md"))
    batch = client.vector_stores.file_batches.create(
        store, files=[{"file_id": one, "attributes": {"year": 1}}, {"file_id": other}], attributes={"year": 2}
    )
    client.vector_stores.file_batches.poll(batch.id, vector_store_id=store)
    found = {file: client.vector_stores.files.retrieve(file, vector_store_id=store).attributes for file in (one, other)}
    assert found == {one: {"year": 1}, other: {}}


def test_a_batch_tells_of_each_file_what_became_of_it(client: openai.OpenAI) -> None:
    store = client.vector_stores.create(name="batch")
    contents = {"a.md": WARRANTY, "b.md": RETURNS, "c.pdf": b"%PDF-1.7 broken", "d.exe": b"MZ\x90 a program"}
    ids = {name: upload(client, content, name) for name, content in contents.items()}
    batch = client.vector_stores.file_batches.create_and_poll(store.id, file_ids=list(ids.values()))
    check_answer(batch, VectorStoreFileBatch)
    counts = batch.file_counts
    told = client.vector_stores.file_batches.with_raw_response.retrieve(batch.id, vector_store_id=store.id)
    assert told.headers["openai-poll-after-ms"] == "250"
    assert (batch.status, counts.completed, counts.failed, counts.total) == ("completed", 2, 2, 4)
    listed = {
        file.id: file for file in client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id)
    }
    assert set(listed) == set(ids.values())
    errors = {name: listed[number].last_error for name, number in ids.items()}
    codes = {name: error.code if error else None for name, error in errors.items()}
    assert codes == {"a.md": None, "b.md": None, "c.pdf": "invalid_file", "d.exe": "unsupported_file"}
    failed = client.vector_stores.files.list(store.id, filter="failed")
    assert {file.id for file in failed} == {ids["c.pdf"], ids["d.exe"]}


def test_two_files_of_one_name_stay_apart(client: openai.OpenAI) -> None:
    store, files = make_store(client, ("same.md", WARRANTY), ("same.md", RETURNS))
    found = {hit.file_id: hit.filename for hit in search(client, store, "warranty return")}
    assert found == dict.fromkeys(files, "same.md")
    client.vector_stores.files.delete(files[0], vector_store_id=store)
    assert {hit.file_id for hit in search(client, store, "warranty return")} == {files[1]}


def test_files_are_taken_out_while_they_are_listed(client: openai.OpenAI) -> None:
    store, files = make_store(client, *((f"{n}.md", RETURNS) for n in range(5)))
    seen = []
    for file in client.vector_stores.files.list(store, limit=2, order="asc"):
        seen.append(file.id)
        if file.id != files[2]:
            client.vector_stores.files.delete(file.id, vector_store_id=store)
    assert seen == files
    assert [file.id for file in client.vector_stores.files.list(store)] == [files[2]]
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.files.list(make_store(client)[0], after=files[0])


def test_a_deleted_upload_goes_from_every_store(gateway: RunningGateway, client: openai.OpenAI) -> None:
    word = f"canary{secrets.token_hex(8)}"
    store, (file_id, _) = make_store(client, ("a.md", f"The {word} is blue.".encode()), ("b.md", RETURNS))
    assert any(word in hit.content[0].text for hit in search(client, store, word))
    client.files.delete(file_id)
    assert not any(word in hit.content[0].text for hit in search(client, store, word))
    assert client.vector_stores.retrieve(store).file_counts.total == 1

    def is_gone() -> bool:
        paths = [path for path in gateway.folder.rglob("*") if path.is_file()]
        return not any(word.encode() in path.read_bytes() for path in paths)

    wait_until(is_gone)


def test_chunks_are_cut_as_the_request_says(gateway: RunningGateway, client: openai.OpenAI) -> None:
    long = ("Sentence number one is here. " * 200).encode()
    store = client.vector_stores.create(name="cut")
    counts = []
    for size in (100, 800):
        attached = client.vector_stores.files.create_and_poll(
            upload(client, long, f"{size}.txt"),
            vector_store_id=store.id,
            chunking_strategy={
                "type": "static",
                "static": {"max_chunk_size_tokens": size, "chunk_overlap_tokens": 0},
            },
        )
        check_answer(attached, VectorStoreFile)
        with read_transaction(gateway.database) as connection:
            query = text("SELECT COUNT(*) FROM chunks c JOIN documents d ON d.id = c.document_id JOIN stores s "
                         "ON s.id = d.store_id WHERE s.name = :store AND d.name = :name")  # fmt: skip
            counts.append(connection.execute(query, {"store": store.id, "name": f"{size}.txt"}).scalar_one())
    assert counts[0] > 4 * counts[1] > 0


def test_an_expired_store_is_refused_and_emptied(gateway: RunningGateway, client: openai.OpenAI) -> None:
    store, _ = make_store(client, ("a.md", WARRANTY))
    client.vector_stores.update(store, expires_after={"anchor": "last_active_at", "days": 1})
    with write_transaction(gateway.database) as connection:
        connection.execute(
            text(
                "UPDATE vector_stores SET last_active_at = 1 WHERE store_id = (SELECT id FROM stores WHERE name = :n)"
            ),
            {"n": store},
        )
    assert client.vector_stores.retrieve(store).status == "expired"
    with pytest.raises(openai.BadRequestError, match="expired"):
        client.vector_stores.search(store, query="warranty")
    with pytest.raises(openai.BadRequestError, match="expired"):
        client.vector_stores.update(store, name="again", expires_after=None)
    assert client.vector_stores.retrieve(store).status == "expired"
    spare = client.vector_stores.create(name="spare")
    client.vector_stores.delete(spare.id)  # wakes the worker
    wait_until(lambda: client.vector_stores.retrieve(store).file_counts.total == 0)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("/search", {"query": "x", "max_num_results": 51}),
    ("/search", {"query": "x", "max_num_results": 0}),
    ("/search", {"query": ""}),
    ("/search", {"query": "x", "filters": {"type": "like", "key": "a", "value": "b"}}),
    ("/search", {"query": "x", "ranking_options": {"score_threshold": 2}}),
    ("/search", {"query": "x", "other": 1}),
    ("/files", {"file_id": "x", "attributes": {str(number): 1 for number in range(17)}}),
    ("/files", {"file_id": "x", "chunking_strategy": {"type": "static", "static": {
        "max_chunk_size_tokens": 99, "chunk_overlap_tokens": 0}}}),
    ("/files", {"file_id": "x", "chunking_strategy": {"type": "static", "static": {
        "max_chunk_size_tokens": 100, "chunk_overlap_tokens": 51}}}),
    ("/file_batches", {}),
    ("/file_batches", {"file_ids": []}),
    ("/file_batches", {"file_ids": ["x"] * 2001}),
    ("", {"metadata": {str(number): "x" for number in range(17)}}),
    ("", {"expires_after": {"anchor": "created_at", "days": 1}}),
    ("", {"expires_after": {"anchor": "last_active_at", "days": 0}}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_out_of_range_is_refused(client: openai.OpenAI, path: str, body: dict[str, Any]) -> None:
    store = client.vector_stores.create(name="any")
    headers = {"authorization": f"Bearer {client.api_key}"}
    answer = httpx.post(f"{client.base_url}vector_stores/{store.id}{path}", json=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_store_of_the_command_line_is_locals(gateway: RunningGateway, client: openai.OpenAI, tmp_path: Path) -> None:
    (tmp_path / "warranty.md").write_bytes(WARRANTY)
    tools: dict[str, Any] = {"embedder": HashEmbedder(), "chunking": ChunkingConfig(), "parsing": ParsingConfig()}
    ingest(DataDir(gateway.folder), "cli-store", tmp_path, **tools)
    local = gateway.client(create_key(gateway.database, "local")[1])
    assert "cli-store" in [store.id for store in local.vector_stores.list()]
    (file,) = local.vector_stores.files.list("cli-store")
    check_answer(file, VectorStoreFile)
    hits = search(local, "cli-store", "warranty")
    assert (hits[0].file_id, hits[0].filename) == (file.id, "warranty.md")
    assert local.vector_stores.update("cli-store", metadata={"a": "b"}).metadata == {"a": "b"}
    assert client.vector_stores.list().data == []
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.search("cli-store", query="warranty")


def test_files_that_wait_go_on_after_a_restart_and_called_off_ones_are_never_found(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    searcher = Searcher(data, make_embedder=HashEmbedder)
    with running_gateway(tmp_path, stores=searcher) as running:
        client = running.client()
        store, _ = make_store(client, ("first.md", RETURNS))
    engine = open_database(data.database)
    rows = ("waiting", "in_progress"), ("called-off", "cancelled"), ("taken-out", "deleted")
    for name, status in rows:
        (data.files / f"file-{name}").write_bytes(WARRANTY)
        with write_transaction(engine) as connection:
            connection.execute(
                text("INSERT INTO vector_store_files (store_id, file_id, document, status, attributes, max_tokens, "
                     "overlap_tokens, created_at) SELECT id, :file, :document, :status, '{}', 240, 0, 1 FROM stores "
                     "WHERE name = :store"),
                {"file": f"file-{name}", "document": f"{name}.md", "status": status, "store": store},
            )  # fmt: skip
    worker = IngestionWorker(data, engine, HashEmbedder, ParsingConfig())
    assert worker.work_once()
    assert not worker.work_once()
    engine.dispose()
    with running_gateway(tmp_path, stores=searcher) as running:
        client = running.client()
        assert {hit.filename for hit in search(client, store, "warranty return")} == {"first.md", "waiting.md"}
        states = {file.id: file.status for file in client.vector_stores.files.list(store)}
        assert states.pop("file-waiting") == "completed"
        assert states.pop("file-called-off") == "cancelled"
        assert list(states.values()) == ["completed"]
    searcher.close()
