"""Files through the stock client: kept to the byte, an owner's own, every answer as the client's models want it."""

import io
import secrets
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import openai
import pytest
from openai.types import FileDeleted, FileObject, FilePurpose
from sqlalchemy import text

from retrieval.database import write_transaction
from serve.keys import create_key
from tests.fakes.gateway import RunningGateway, running_gateway
from tests.fakes.strict_answers import check_answer

MAX_FILE_BYTES = 24 * 2**20


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway for all tests here; each makes owners of its own."""
    with running_gateway(tmp_path_factory.mktemp("files"), max_file_bytes=MAX_FILE_BYTES) as running:
        yield running


@pytest.fixture
def client(gateway: RunningGateway) -> openai.OpenAI:
    """The stock client of an owner who has nothing."""
    return gateway.client(create_key(gateway.database, f"owner-{secrets.token_hex(4)}")[1])


def post_form(client: openai.OpenAI, **form: Any) -> httpx.Response:
    """Post a form to /v1/files as it is."""
    headers = {"authorization": f"Bearer {client.api_key}"}
    return httpx.post(f"{client.base_url}files", headers=headers, timeout=20, **form)


def test_a_file_comes_back_to_the_byte_and_goes_for_good(gateway: RunningGateway, client: openai.OpenAI) -> None:
    content = secrets.token_bytes(3 * 2**20 + 7)
    made = client.files.create(file=("notes.bin", io.BytesIO(content)), purpose="user_data")
    check_answer(made, FileObject)
    assert (made.filename, made.bytes, made.purpose, made.expires_at) == ("notes.bin", len(content), "user_data", None)
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == content
    deleted = client.files.delete(made.id)
    check_answer(deleted, FileDeleted)
    assert deleted.deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    assert not (gateway.folder / "files" / made.id).exists()


@pytest.mark.parametrize("purpose", get_args(FilePurpose))
def test_every_purpose_is_taken_and_listed_by(client: openai.OpenAI, purpose: Any) -> None:
    client.files.create(file=("other", b"x"), purpose="vision" if purpose != "vision" else "batch")
    made = client.files.create(file=("a.txt", b"hello"), purpose=purpose)
    assert made.purpose == purpose
    # the client's model of an answer does not know `evals`, which its model of a request has
    check_answer(made if purpose != "evals" else made.model_copy(update={"purpose": "batch"}), FileObject)
    assert client.files.content(made.id).read() == b"hello"
    assert [file.id for file in client.files.list(purpose=purpose)] == [made.id]


@pytest.mark.parametrize("name", ["rows.csv", "ROWS.CSV", "rows.tsv", "rows.parquet", "folder/rows.pq", "rows.xlsx"])
def test_training_data_in_another_format_is_refused_by_name(
    gateway: RunningGateway, client: openai.OpenAI, name: str
) -> None:
    purposes: list[Any] = ["fine-tune", "evals"]
    for purpose in purposes:
        with pytest.raises(openai.BadRequestError, match=rf"JSON lines \(\.jsonl\) for {purpose}") as caught:
            client.files.create(file=(name, b"question,answer\n" * 100_000), purpose=purpose)
        assert (caught.value.code, caught.value.param) == ("unsupported_file", "file")
    assert client.files.create(file=(name, b"question,answer\n"), purpose="assistants").purpose == "assistants"
    late = {"file": (name, b"x"), "purpose": (None, "fine-tune")}  # what it is for is told after the file
    assert post_form(client, data={}, files=late).json()["error"]["code"] == "unsupported_file"
    assert [path.name for path in (gateway.folder / "files").iterdir() if path.name.endswith(".tmp")] == []


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_lists_page_through_every_file_once(client: openai.OpenAI, order: Any) -> None:
    made = {client.files.create(file=(f"{number}", b"x"), purpose="batch").id for number in range(7)}
    pages = list(client.files.list(limit=3, order=order).iter_pages())
    assert [len(page.data) for page in pages] == [3, 3, 1]
    found = [file for page in pages for file in page.data]
    assert {file.id for file in found} == made
    assert len(found) == len(made)
    times = [file.created_at for file in found]
    assert times == sorted(times, reverse=order == "desc")


def test_a_file_ends_when_it_was_to(gateway: RunningGateway, client: openai.OpenAI) -> None:
    made = client.files.create(
        file=("a", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600
    with write_transaction(gateway.database) as connection:
        connection.execute(text("UPDATE files SET expires_at = created_at - 1 WHERE id = :id"), {"id": made.id})
    assert client.files.list().data == []
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_files_are_deleted_while_they_are_listed(gateway: RunningGateway) -> None:
    client = gateway.client(create_key(gateway.database, "sweeper")[1])
    made = [client.files.create(file=("a", b"x"), purpose="batch").id for _ in range(5)]
    seen = []
    for file in client.files.list(limit=2):
        seen.append(file.id)
        if file.id != made[2]:
            client.files.delete(file.id)
    assert sorted(seen) == sorted(made)
    assert [file.id for file in client.files.list()] == [made[2]]
    stranger = gateway.client(create_key(gateway.database, "stranger")[1])
    with pytest.raises(openai.NotFoundError):
        stranger.files.list(after=made[0])


def test_anothers_file_is_to_the_byte_as_one_that_does_not_exist(
    gateway: RunningGateway, client: openai.OpenAI
) -> None:
    made = gateway.client(create_key(gateway.database, "victim")[1]).files.create(file=("a", b"x"), purpose="batch")
    headers = {"authorization": f"Bearer {client.api_key}"}
    unknown = f"file-{'0' * 24}"
    assert len(unknown) == len(made.id)
    requests = (("GET", "/{}"), ("GET", "/{}/content"), ("DELETE", "/{}"), ("GET", "?after={}"))
    for method, path in requests:
        answers = [
            httpx.request(method, f"{client.base_url}files{path.format(number)}", headers=headers)
            for number in (made.id, unknown)
        ]
        assert {answer.status_code for answer in answers} == {404}
        assert answers[0].text.replace(made.id, unknown) == answers[1].text
    assert (gateway.folder / "files" / made.id).read_bytes() == b"x"


@pytest.mark.parametrize(
    ("param", "form"),
    [
        ("purpose", {"data": {}, "files": {"file": ("a", b"x")}}),
        ("purpose", {"data": {"purpose": "eval"}, "files": {"file": ("a", b"x")}}),
        ("file", {"data": {"purpose": "batch"}, "files": {"other": ("", b"")}}),
        ("other", {"data": {"purpose": "batch", "other": "1"}, "files": {"file": ("a", b"x")}}),
        ("file", {"data": {"purpose": "batch"}, "files": [("file", ("a", b"x")), ("file", ("b", b"y"))]}),
        ("file", {"data": {"purpose": "batch"}, "files": {"file": ("a", b"")}}),
        ("purpose", {"data": {"purpose": "x" * 5000}, "files": {"file": ("a", b"x")}}),
        ("expires_after", {"data": {"purpose": "batch", "expires_after[anchor]": "created_at"},
                           "files": {"file": ("a", b"x")}}),
        ("expires_after[seconds]", {"data": {"purpose": "batch", "expires_after[anchor]": "created_at",
                                    "expires_after[seconds]": "3599"}, "files": {"file": ("a", b"x")}}),
    ],
)  # fmt: skip
def test_a_form_that_is_wrong_is_refused_and_leaves_nothing(
    gateway: RunningGateway, client: openai.OpenAI, param: str, form: dict[str, Any]
) -> None:
    answer = post_form(client, **form)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in (param, "other")
    assert client.files.list().data == []
    assert list((gateway.folder / "files").glob(".*")) == []


def test_a_body_that_is_no_form_or_ends_early_is_refused(gateway: RunningGateway, client: openai.OpenAI) -> None:
    begun = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nhalf of it'
    for kind, body in (
        ("application/json", b"{}"),
        ("multipart/form-data", b"--b--"),
        ("multipart/form-data; boundary=b", begun),
        ("multipart/form-data; boundary=b", b"nonsense"),
        ("multipart/form-data; boundary=b", b""),
    ):
        headers = {"authorization": f"Bearer {client.api_key}", "content-type": kind}
        answer = httpx.post(f"{client.base_url}files", headers=headers, content=body)
        assert answer.status_code == 400, (kind, body)
        assert answer.json()["error"]["code"] == "invalid_request"
    assert client.files.list().data == []
    assert list((gateway.folder / "files").glob(".*")) == []


@pytest.mark.parametrize("has_length", [True, False])
def test_a_file_that_is_too_long_is_refused_and_leaves_nothing(
    gateway: RunningGateway, client: openai.OpenAI, has_length: bool
) -> None:
    head = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    body = head + b"x" * (MAX_FILE_BYTES + 2**20)
    headers = {"authorization": f"Bearer {client.api_key}", "content-type": "multipart/form-data; boundary=b"}
    content: Any = body if has_length else (body[at : at + 2**16] for at in range(0, len(body), 2**16))
    answer = httpx.post(f"{client.base_url}files", headers=headers, content=content, timeout=20)
    found = (answer.status_code, answer.json()["error"]["code"])
    assert found == (413, "body_too_large") or (not has_length and found == (400, "invalid_file"))
    assert list((gateway.folder / "files").glob(".*")) == []


def test_the_largest_file_is_taken_without_being_held_in_memory(client: openai.OpenAI) -> None:
    content = secrets.token_bytes(2**20) * (MAX_FILE_BYTES // 2**20)
    form = {"data": {"purpose": "batch"}, "files": {"file": ("a", io.BytesIO(content))}}
    tracemalloc.start()
    try:
        answer = post_form(client, **form)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.status_code == 200
    assert answer.json()["bytes"] == MAX_FILE_BYTES
    assert peak < MAX_FILE_BYTES / 2, f"client and gateway together held {peak / 2**20:.0f} MiB"


NAMES = (
    ("../../etc/passwd", "passwd"), ("/etc/passwd", "passwd"), ("C:\\x\\a.txt", "a.txt"), ("..", "file"), ("", "file"),
    ("a\x00b.txt", "ab.txt"), ("a\r\nset-cookie: x", '"a'), ("\u202etxt.exe", "txt.exe"),
    ("x" * 4096 + ".pdf", "x" * 251 + ".pdf"), ("CON", "CON"), ("días.pdf", "días.pdf"), ('a"b.txt', 'a"b.txt'),
)  # fmt: skip


@pytest.mark.parametrize(("raw", "shown"), NAMES, ids=range(len(NAMES)))
def test_a_name_is_shown_and_never_used_as_a_path(
    gateway: RunningGateway, client: openai.OpenAI, tmp_path: Path, raw: str, shown: str
) -> None:
    quoted = raw.replace('"', '\\"').encode()
    head = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
    head += b'content-disposition: form-data; name="file"; filename="' + quoted + b'"\r\n\r\nx\r\n--b--\r\n'
    headers = {"authorization": f"Bearer {client.api_key}", "content-type": "multipart/form-data; boundary=b"}
    before = {path for path in gateway.folder.rglob("*") if "files" not in path.parts}
    answer = httpx.post(f"{client.base_url}files", headers=headers, content=head)
    if answer.status_code == 400:
        assert "\r\n" in raw or "\x00" in raw or len(raw) > 4000, answer.text
        return
    assert answer.json()["filename"] == shown
    assert {path for path in gateway.folder.rglob("*") if "files" not in path.parts} == before
    got = httpx.get(f"{client.base_url}files/{answer.json()['id']}/content", headers=headers)
    assert got.content == b"x"
    assert "set-cookie" not in got.headers
