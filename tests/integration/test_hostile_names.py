"""One hundred hostile names on every way in and out, by command and by API: nothing leaves the data directory (H3)."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from sqlalchemy import Engine

from core.errors import InputError, LoamError
from core.layout import NAME_PATTERN, DataDir
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.database import open_database
from retrieval.documents import list_documents
from retrieval.ingest import ingest, rebuild
from retrieval.store import find_store
from retrieval.sync import delete, sync
from retrieval.uploads import check_upload, delete_upload, find_upload, save_upload
from scripts.export import ExportConfig, check_export
from tests.fakes.engine import BASE
from tests.fakes.gateway import searching_gateway
from tests.fakes.hash_embedder import HashEmbedder
from tests.fakes.hostile_names import HOSTILE_NAMES
from tests.fakes.hostile_office import TYPES, W, pack, relate, write_document
from tests.fakes.write_recorder import WriteRecorder, list_tree

REPO = Path(__file__).resolve().parents[2]
OPTIONS: dict[str, Any] = {
    "embedder": HashEmbedder(),
    "chunking": ChunkingConfig(60, 16),
    "parsing": ParsingConfig(workers=1),
}
API_NAMES = HOSTILE_NAMES if os.environ.get("LOAM_TEST_FULL") else HOSTILE_NAMES[::4]
_recorder = WriteRecorder()


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    """A data directory in the middle of a tree of other files, with one store in it."""
    for folder in ("neighbour", "below/neighbour"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "escaped").write_text("not to be touched")
    (tmp_path / "escaped").write_text("not to be touched")
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "a.md").write_text("# First\n\nWords of the first file.")
    data = DataDir(tmp_path / "below" / "data")
    ingest(data, "notes", tmp_path / "first", **OPTIONS)
    return data


@pytest.fixture
def engine(data: DataDir) -> Iterator[Engine]:
    engine = open_database(data.database)
    yield engine
    engine.dispose()


def check_writes(data: DataDir, around: Path, work: Callable[[], None]) -> None:
    """Do something; check that not one path outside the data directory was written, made, renamed or removed."""
    before = list_tree(around, data.root)
    with _recorder.record() as paths:
        work()
    inside = (data.root, Path(os.devnull))
    outside = {str(path) for path in paths if path not in inside and data.root not in path.parents}
    assert outside == set()
    assert list_tree(around, data.root) == before


def write_named_files(folder: Path) -> int:
    """Write a file under each of the names that a file can have in a folder; return how many."""
    written = 0
    folder.mkdir()
    for number, name in enumerate(HOSTILE_NAMES):
        try:
            path = os.fsencode(name)
        except UnicodeEncodeError:  # half a surrogate pair is no name on this system
            continue
        if b"/" in path or b"\0" in path or path in {b".", b".."} or len(path) > 255:
            continue
        (folder / os.fsdecode(path)).write_text(f"# Note\n\nWord{number} of a file.")
        written += not name.startswith(".")
    return written


def test_there_are_a_hundred_names() -> None:
    assert len(set(HOSTILE_NAMES)) >= 100


def test_uploads(data: DataDir, engine: Engine, tmp_path: Path) -> None:
    kept: dict[str, str] = {}
    refused: list[str] = []

    def upload() -> None:
        for name in HOSTILE_NAMES:
            content = iter([name.encode("utf-8", "replace")])
            try:
                saved = save_upload(engine, data, content, owner="a", name=name, purpose="p", max_bytes=9999)
            except InputError:
                refused.append(name)
                continue
            kept[saved.id] = saved.name
            assert check_upload(data, saved).parent == data.files

    check_writes(data, tmp_path, upload)
    assert refused == [name for name in HOSTILE_NAMES if len(name) > 1024]
    assert len(kept) + len(refused) == len(HOSTILE_NAMES)
    for upload_id, name in kept.items():
        assert name.isprintable()
        assert find_upload(engine, upload_id, "a").name == name
    assert {path.name for path in data.files.iterdir()} == set(kept)


def test_ids_of_uploads(data: DataDir, engine: Engine, tmp_path: Path) -> None:
    def remove() -> None:
        for name in HOSTILE_NAMES:
            for act in (lambda: find_upload(engine, name, "a"), lambda: delete_upload(engine, data, name, "a")):  # noqa: B023
                with pytest.raises(LoamError):
                    act()

    check_writes(data, tmp_path, remove)


def test_files_are_ingested_synced_and_deleted(data: DataDir, engine: Engine, tmp_path: Path) -> None:
    source = tmp_path / "source"
    count = write_named_files(source)
    assert count >= 50
    names: set[str] = set()

    def bring_in() -> None:
        assert ingest(data, "odd", source, **OPTIONS).found == count
        assert sync(data, "odd", source, **OPTIONS).removed == 0
        names.update(state.file for state in list_documents(engine, find_store(engine, "odd")))

    def take_out() -> None:
        for name in names:
            assert delete(data, "odd", name) == 1

    check_writes(data, tmp_path, bring_in)
    assert len(names) == count
    assert all(name.isprintable() for name in names)
    check_writes(data, tmp_path, take_out)
    assert list_documents(engine, find_store(engine, "odd")) == []


def test_members_of_archives(data: DataDir, engine: Engine, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    document = {"word/document.xml": write_document("<w:p><w:r><w:t>Words.</w:t></w:r></w:p>")}
    # An archive's names end at the first NUL, and have no halves of signs.
    usable = {name.encode("utf-8", "replace").decode().split("\0")[0] for name in HOSTILE_NAMES}
    members = dict.fromkeys(sorted(usable - {""}), "escaped")
    for kind, main in (("docx", "word/document.xml"), ("xlsx", "xl/workbook.xml"), ("pptx", "ppt/presentation.xml")):
        start = {**TYPES, "_rels/.rels": relate(officeDocument=main), f"{main.split('/')[0]}/x.xml": ""}
        (source / f"members.{kind}").write_bytes(pack({**start, main: f"<w {W}/>", **document, **members}))
    for number, name in enumerate(members):
        target = name.replace("&", "").replace("<", "").replace('"', "")
        if target.isprintable():
            links = {"_rels/.rels": relate(officeDocument=target)}
            (source / f"main{number}.docx").write_bytes(pack({**TYPES, **links, **document}))
    check_writes(data, tmp_path, lambda: _ingest_all(data, source))
    completed = {
        state.file for state in list_documents(engine, find_store(engine, "odd")) if state.status == "completed"
    }
    assert "members.docx" in completed


def _ingest_all(data: DataDir, source: Path) -> None:
    report = ingest(data, "odd", source, **OPTIONS)
    assert {failure.code for failure in report.failures} <= {"invalid_file", "unsupported_file"}


def test_names_of_stores_and_documents(data: DataDir, engine: Engine, tmp_path: Path) -> None:
    source = tmp_path / "first"

    def try_all() -> None:
        for name in HOSTILE_NAMES:
            attempts: list[Callable[[], object]] = [lambda name=name: delete(data, "notes", name)]  # type: ignore[misc]
            if not NAME_PATTERN.fullmatch(name):
                attempts += [
                    lambda name=name: ingest(data, name, source, **OPTIONS),  # type: ignore[misc]
                    lambda name=name: sync(data, name, source, **OPTIONS),  # type: ignore[misc]
                    lambda name=name: rebuild(data, name),  # type: ignore[misc]
                    lambda name=name: delete(data, name),  # type: ignore[misc]
                ]
            for act in attempts:
                with pytest.raises(LoamError):
                    act()

    check_writes(data, tmp_path, try_all)
    assert [state.file for state in list_documents(engine, find_store(engine, "notes"))] == ["a.md"]


def test_names_of_exports(data: DataDir, tmp_path: Path) -> None:
    def try_all() -> None:
        for name in HOSTILE_NAMES:
            config = ExportConfig(run=name)
            config.paths.data_dir = str(data.root)
            with pytest.raises(LoamError):
                check_export(config)
            if NAME_PATTERN.fullmatch(name):
                assert data.model(name).parent == data.models
                continue
            with pytest.raises(LoamError):
                ExportConfig(run="r", output=name)

    check_writes(data, tmp_path, try_all)


@pytest.mark.parametrize("output", ["table", "json"])
def test_no_name_injects_anything_into_what_is_printed(tmp_path: Path, output: str) -> None:
    """The real command line, with a file that fails, so that each name is shown with its reason."""
    source = tmp_path / "source"
    count = write_named_files(source)
    (source / "bad\x1b[2J\r\n\u202e.pdf").write_bytes(b"%PDF-1.7")
    data = DataDir(tmp_path / "data")
    ingest(data, "odd", source, **OPTIONS)
    command = [sys.executable, "retrieval/run.py", "action=status", "store=odd", "files=true", f"output={output}"]
    done = subprocess.run(
        [*command, f"paths.data_dir={data.root}"], cwd=REPO, capture_output=True, timeout=300, check=True
    )
    printed = done.stdout.decode()
    unseen = {sign for name in HOSTILE_NAMES for sign in name if not sign.isprintable()} - {"\n"}
    assert not set(printed) & unseen
    if output == "json":
        assert len(printed.splitlines()) == count + 1
        assert all(json.loads(line)["file"].isprintable() for line in printed.splitlines())


def test_a_write_outside_would_be_seen(data: DataDir, tmp_path: Path) -> None:
    for work in ("(around / 'escaped').write_text('x')", "(around / 'new').mkdir()", "(around / 'new').rmdir()"):
        with pytest.raises(AssertionError):
            check_writes(data, tmp_path, lambda: eval(work, {"around": tmp_path}))  # noqa: B023


def post_named(client: httpx.Client, name: str, content: str) -> httpx.Response:
    """Upload a file under a name as it is, line breaks and all; quotes as browsers write them."""
    raw = name.encode("utf-8", "surrogatepass").replace(b'"', b"%22")
    head = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nassistants\r\n--b\r\n'
    head += b'content-disposition: form-data; name="file"; filename="' + raw + b'"\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    return client.post("/v1/files", content=head + content.encode() + b"\r\n--b--\r\n", headers=headers)


def check_headers(answer: httpx.Response) -> httpx.Response:
    """Nothing of a name has become a header, and no header holds a sign that is not plain text."""
    assert not {"x-injected", "set-cookie", "content-disposition"} & set(answer.headers), answer.headers
    assert all(value.isascii() and value.isprintable() for value in answer.headers.values())
    assert answer.headers.get("location", str(answer.url)).startswith(str(answer.url.copy_with(raw_path=b"/"))[:-1])
    assert answer.status_code < 500, answer.text
    return answer


def use_names(url: str) -> int:
    """Upload, attach, describe, download and delete under every name; return how many were taken."""
    with httpx.Client(base_url=url, timeout=30) as client:
        store = client.post("/v1/vector_stores", json={"name": "names"}).json()["id"]
        contents: dict[str, str] = {}
        for number, name in enumerate(API_NAMES):
            words = f"# Note\n\nWord{number} of a file."
            answer = check_headers(post_named(client, name, words))
            if answer.status_code == 200:
                assert answer.json()["filename"].isprintable()
                contents[answer.json()["id"]] = words
        batch = f"/v1/vector_stores/{store}/file_batches"
        made = client.post(batch, json={"file_ids": list(contents)}).json()["id"]
        deadline = time.monotonic() + 60
        while client.get(f"{batch}/{made}").json()["status"] == "in_progress":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for file_id, words in contents.items():
            assert check_headers(client.get(f"/v1/files/{file_id}/content")).text == words
            state = check_headers(client.get(f"/v1/vector_stores/{store}/files/{file_id}")).json()
            assert state["status"] in {"completed", "failed"}
            assert (state["last_error"] or {}).get("code") in {None, "invalid_file", "unsupported_file"}
            check_headers(client.get(f"/v1/vector_stores/{store}/files/{file_id}/content"))
        for name in API_NAMES:
            place = quote(name.encode("utf-8", "surrogatepass"), safe="").replace(".", "%2E")
            for path in (f"/v1/files/{place}/content", f"/v1/vector_stores/{store}/files/{place}", f"/sources/{place}"):
                assert check_headers(client.get(path)).status_code in {307, 400, 404, 414, 431}, path[:80]
            kind = {"content-type": "application/json"}
            body = {"model": BASE, "training_file": next(iter(contents)), "suffix": name}
            if not NAME_PATTERN.fullmatch(name):
                assert (
                    check_headers(
                        client.post("/v1/fine_tuning/jobs", content=json.dumps(body), headers=kind)
                    ).status_code
                    == 400
                ), name
        for file_id in contents:
            assert check_headers(client.delete(f"/v1/files/{file_id}")).status_code == 200
    return len(contents)


def test_names_through_the_api(data: DataDir, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    taken: list[int] = []
    with searching_gateway(data.root) as gateway:
        check_writes(data, tmp_path, lambda: taken.append(use_names(gateway.url)))
    assert taken[0] >= 0.8 * len(API_NAMES)
    assert list(data.files.iterdir()) == []
    record_property("names", len(API_NAMES))
    record_property("of_them_taken_by_the_api", taken[0])
