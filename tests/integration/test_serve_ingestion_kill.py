"""kill -9 of the gateway while files come and go: what it has said holds at its next start (D1, D2 and I3 by the API).

One data directory lives through all kills, at named places and at random times. A client keeps a ledger of what was
answered: files whose upload was answered come back to the byte; those called `completed` are found by their word, the
others are completed by the next start; a word whose deletion was answered finds nothing, and no byte of it stays.
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest

from core.layout import DataDir
from retrieval.config import IndexDevice
from retrieval.database import find_damage, open_database
from retrieval.snapshot import open_index
from retrieval.status import list_stores
from retrieval.store import find_store, read_chunks
from retrieval.uploads import check_upload, list_uploads
from tests.fakes.warm_gateway import GatewayProcess, WarmGateway

IS_FULL = bool(os.environ.get("LOAM_TEST_FULL"))
SEED = int(os.environ.get("LOAM_TEST_SEED", "20261126"))
NEWEST, OLDER = 40, 10
"""How many of the newest files, and of the others, are looked at after each kill; all of them after the last one."""
DELETED_SHARE = 0.25
LATEST_KILL_S = 1.0
GONE_WITHIN_S = 60.0
PATIENCE_S = 60.0
ALL_PLACES = (
    *("upload.synced", "upload.renamed", "upload.written", "upload.committed", "attachments.queued"),
    *("documents.begun", "documents.embedded", "documents.written", "documents.committed", "snapshot.written"),
    *("snapshot.published", "attachments.made", "attachments.settled"),
    *("attachment.detached", "upload.detached", "upload.deleted", "erasure.pruned:2", "erasure.rewritten"),
)
PLACES = ALL_PLACES if IS_FULL else ("attachments.made", "upload.deleted")
AT_RANDOM = "at a random time"
RANDOM_KILLS = 30 if IS_FULL else 1


@dataclass
class Ledger:
    """What the gateway has answered.

    Attributes:
        chance: Decides what the client does.
        store: The vector store's id.
        kept: Content of each upload, by its id.
        words: The word of each upload, by its id; none has the word of another.
        attached: Uploads whose attaching was answered.
        completed: Those that were called so.
        unsure: Uploads whose deletion was asked for and not answered.
        gone: Words whose deletion was answered.
        made: How many uploads were asked for.
        slowest_s: The longest that bytes of deleted files were left after a start.
    """

    chance: random.Random
    store: str = ""
    kept: dict[str, bytes] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    attached: set[str] = field(default_factory=set)
    completed: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    gone: list[str] = field(default_factory=list)
    made: int = 0
    slowest_s: float = 0.0

    def forget(self, upload: str) -> str:
        """Take an upload out; return its word."""
        self.kept.pop(upload)
        for names in (self.attached, self.completed, self.unsure):
            names.discard(upload)
        return self.words.pop(upload)


@pytest.fixture(scope="module")
def server() -> Iterator[WarmGateway]:
    with WarmGateway() as server:
        yield server


def upload_one(client: openai.OpenAI, ledger: Ledger) -> None:
    """Upload and attach a file with a word of its own in name, heading and text."""
    ledger.made += 1
    word = f"qzx{ledger.made:05d}kestrel"
    filler = "The pump needs water and a filter. " * ledger.chance.randrange(3, 40)
    content = f"# About {word}\n\n{filler}\n\n## More\n\n{filler} It is {word}.\n".encode()
    upload = client.files.create(file=(f"{word}.md", content), purpose="assistants").id
    ledger.kept[upload], ledger.words[upload] = content, word
    client.vector_stores.files.create(ledger.store, file_id=upload)
    ledger.attached.add(upload)


def delete_one(client: openai.OpenAI, ledger: Ledger) -> None:
    """Delete an upload, half of the time after it was taken out of the store; its word finds nothing at once."""
    upload = ledger.chance.choice([name for name in ledger.kept if name in ledger.completed])
    ledger.unsure.add(upload)
    if ledger.chance.random() < 0.5:
        client.vector_stores.files.delete(upload, vector_store_id=ledger.store)
    client.files.delete(upload)
    word = ledger.forget(upload)
    ledger.gone.append(word)
    assert not finds(client, ledger, word), f"{word} was deleted"


def note_completed(client: openai.OpenAI, ledger: Ledger) -> None:
    """Note which of the newest files the gateway calls completed."""
    page = client.vector_stores.files.list(ledger.store, filter="completed", limit=100)
    ledger.completed |= {file.id for file in page.data} & set(ledger.kept)


def finds(client: openai.OpenAI, ledger: Ledger, word: str) -> bool:
    """Tell whether a word is in one of the first five passages that it finds."""
    hits = client.vector_stores.search(ledger.store, query=word, max_num_results=5)
    return any(word in f"{hit.filename} {hit.content[0].text}" for hit in hits)


def use_until_killed(gateway: GatewayProcess, ledger: Ledger) -> None:
    """Upload, attach, look and delete until no answer comes any more."""
    deadline = time.monotonic() + PATIENCE_S
    with gateway.client() as client:
        try:
            while time.monotonic() < deadline:
                upload_one(client, ledger)
                note_completed(client, ledger)
                if ledger.completed and ledger.chance.random() < DELETED_SHARE:
                    delete_one(client, ledger)
        except openai.APIConnectionError:
            return
    pytest.fail("the gateway was not killed")


def check_answers(gateway: GatewayProcess, ledger: Ledger, *, all_of_them: bool = False) -> None:
    """What was answered holds, and what was not done is done now; of the older files some are looked at, or all."""
    with gateway.client() as client:
        for upload in list(ledger.unsure):  # whether it was done or not, it can be asked for again
            try:
                client.files.delete(upload)
            except openai.NotFoundError:
                with pytest.raises(openai.NotFoundError):
                    client.vector_stores.files.retrieve(upload, vector_store_id=ledger.store)
            ledger.gone.append(ledger.forget(upload))
        names = list(ledger.kept)
        older, newer = names[:-NEWEST], names[-NEWEST:]
        chosen = names if all_of_them else [*newer, *ledger.chance.sample(older, min(len(older), OLDER))]
        for upload in chosen:
            assert client.files.content(upload).read() == ledger.kept[upload], upload
            if upload in ledger.completed:
                assert finds(client, ledger, ledger.words[upload]), f"{upload} was called completed"
        deadline = time.monotonic() + PATIENCE_S
        while not ledger.attached <= ledger.completed:
            assert time.monotonic() < deadline, "what waited was not ingested after the start"
            time.sleep(0.05)
            note_completed(client, ledger)
        for word in ledger.gone[-OLDER:]:
            assert not finds(client, ledger, word), f"{word} was deleted"


def wait_until_gone(folder: Path, words: list[str]) -> float:
    """Wait until no file of the directory holds a deleted word, as text or in its name; return the seconds."""
    start = time.monotonic()
    while True:
        left = [(word, path.name) for path in folder.rglob("*") for word in find_words(path, words)]
        seconds = time.monotonic() - start
        if not left:
            return seconds
        assert seconds < GONE_WITHIN_S, f"bytes of deleted files are left: {left[:5]}"
        time.sleep(0.2)


def find_words(path: Path, words: list[str]) -> list[str]:
    """Return the words, by their stems, that a file's name or bytes hold."""
    try:
        content = path.read_bytes().lower() if path.is_file() else b""
    except FileNotFoundError:  # it has just been removed
        content = b""
    content += path.name.encode()
    return [word for word in words if word[:8].encode() in content or word[:8].encode("utf-16-le") in content]


def check_directory(folder: Path) -> None:
    """At rest the database is whole, files/ holds all uploads and nothing else, and indexes hold the chunks."""
    data = DataDir(folder)
    assert find_damage(data.database) == []
    engine = open_database(data.database)
    uploads = list_uploads(engine)
    for upload in uploads:
        check_upload(data, upload)
    lying = {path.name for path in data.files.iterdir()} if data.files.is_dir() else set()
    assert lying == {upload.id for upload in uploads}
    for status in list_stores(engine):
        store, rows = read_chunks(engine, find_store(engine, status.store))
        assert open_index(engine, data, store, IndexDevice.cpu).numbers.tolist() == [row.id for row in rows]
        assert not status.in_progress
    engine.dispose()


def start_and_check(server: WarmGateway, folder: Path, ledger: Ledger, *, is_last: bool = False) -> GatewayProcess:
    """Start a gateway and look at what the one before has left."""
    gateway = server.start_gateway(folder, ingests=True)
    assert gateway.wait_until_ready()
    if not ledger.store:
        with gateway.client() as client:
            ledger.store = client.vector_stores.create(name="all").id
    check_answers(gateway, ledger, all_of_them=is_last)
    ledger.slowest_s = max(ledger.slowest_s, wait_until_gone(folder, ledger.gone))
    return gateway


def test_what_the_gateway_said_holds_after_each_kill(
    server: WarmGateway, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    sys.stdout.write(f"seed {SEED}\n")
    ledger = Ledger(random.Random(SEED))
    kills = [*PLACES * (3 if IS_FULL else 1), *[AT_RANDOM] * RANDOM_KILLS]
    for place in ledger.chance.sample(kills, len(kills)):
        gateway = start_and_check(server, tmp_path, ledger)
        if place == AT_RANDOM:
            timer = threading.Timer(ledger.chance.uniform(0, LATEST_KILL_S), gateway.program.kill)
            timer.start()
            use_until_killed(gateway, ledger)
            timer.join()
        else:
            gateway.stop()
            check_directory(tmp_path)
            gateway = server.start_gateway(tmp_path, ingests=True, LOAM_TEST_BUILD="1", LOAM_FAILPOINT=place)
            if gateway.wait_until_ready():
                use_until_killed(gateway, ledger)
        assert gateway.wait() == -signal.SIGKILL, place
        record_property(f"kills_of_the_gateway_{'at_random_times' if place == AT_RANDOM else 'at_named_places'}", 1)
    start_and_check(server, tmp_path, ledger, is_last=True).stop()
    check_directory(tmp_path)
    record_property("uploads_answered", len(ledger.kept) + len(ledger.gone))
    record_property("deletions_answered", len(ledger.gone))
    record_property("bytes_gone_s", round(ledger.slowest_s, 1))
