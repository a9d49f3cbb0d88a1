"""Fills the small disk that it is given, works on, makes room and works again: what the full-disk tests run in a mount.

    python -m tests.fakes.full_disk_command DISK SEED COUNT

Prints one JSON object: for each point what happened. Everything is one process, a gateway among it: nothing is
restarted after the disk was full.
"""

import json
import logging
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from core.errors import LoamError, StorageFull
from core.layout import DataDir
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.database import find_damage, open_database
from retrieval.ingest import ingest
from retrieval.searcher import Searcher
from retrieval.uploads import check_upload, list_uploads
from scripts.backup import create_backup
from tests.fakes.gateway import searching_gateway
from tests.fakes.hash_embedder import HashEmbedder

MOST_FREE_BYTES = 160_000


def fill(path: Path, free_bytes: int) -> None:
    """Fill the disk but for some bytes."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(file.tell() - free_bytes, 0))


def name_outcome(work: Callable[[], object]) -> str:
    """Do something; return «done» or the error's name."""
    try:
        work()
    except LoamError as error:
        return type(error).__name__
    return "done"


class Disk:
    """A data directory on the small disk."""

    def __init__(self, root: Path, client: httpx.Client) -> None:
        """Bring a first file in while there is room.

        Args:
            root: The disk.
            client: Of a gateway on the directory.
        """
        self.data, self.source, self.filler = DataDir(root / "data"), root / "source", root / "filler"
        self._client = client
        self.uploads: list[str] = []
        self.source.mkdir()
        self.count = 0
        self.add_file()
        self.bring_in()
        self.engine = open_database(self.data.database)
        self.searcher = Searcher(self.data, make_embedder=HashEmbedder)

    def add_file(self) -> None:
        """Write a source file with a word of its own."""
        self.count += 1
        parts = [f"Part {part} of the words on pump {self.count}." for part in range(60)]
        (self.source / f"{self.count:03d}.md").write_text("\n\n".join([*parts, f"canary{self.count:03d} is the word."]))

    def bring_in(self) -> None:
        """Ingest."""
        chunking, parsing = ChunkingConfig(30, 8), ParsingConfig(workers=1)
        ingest(self.data, "acme", self.source, embedder=HashEmbedder(), chunking=chunking, parsing=parsing)

    def upload(self) -> None:
        """Keep a file by the gateway, which says of a full disk that it makes no sense to try again."""
        content = b"# Words\n\nWater.\n\n<!-- " + b"x" * 60_000 + b" -->\n"  # bytes, and hardly any text
        form = {"purpose": "assistants"}
        answer = self._client.post("/v1/files", files={"file": ("a.md", content)}, data=form)
        if answer.status_code != 200:
            assert answer.headers["x-should-retry"] == "false", answer.text
            assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full"), answer.text
            raise StorageFull("the gateway said so")
        self.uploads.append(answer.json()["id"])

    def reads_back(self) -> bool:
        """Tell whether the gateway answers with the first and the last upload."""
        places = [f"/v1/files/{upload}/content" for upload in (self.uploads[0], self.uploads[-1])]
        return all(self._client.get(place).content.startswith(b"# Words") for place in places)

    def attach_all(self) -> str:
        """Let the gateway make documents of all uploads; return what became of them."""
        store = self._client.post("/v1/vector_stores", json={"file_ids": self.uploads}).json()["id"]
        deadline = time.monotonic() + 60
        while (found := self._client.get(f"/v1/vector_stores/{store}").json())["status"] == "in_progress":
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        return f"{found['file_counts']['completed']} of {found['file_counts']['total']}"

    def back_up(self) -> None:
        """Write a backup beside the directory."""
        create_backup(self.data, self.data.root.parent / f"backup{self.count}", has_runs=False)

    def finds(self, number: int) -> bool:
        """Tell whether a file is found by its word."""
        word = f"canary{number:03d}"
        return any(word in hit.text for hit in self.searcher.search(["acme"], word, k=5).hits)

    def read_faults(self) -> list[str]:
        """Return what is wrong with the database or an upload."""
        for upload in list_uploads(self.engine):
            check_upload(self.data, upload)
        return find_damage(self.data.database)


def go_through(disk: Disk, free_bytes: int) -> dict[str, object]:
    """Fill the disk, work, make room, work again."""
    before = disk.count
    disk.add_file()
    fill(disk.filler, free_bytes)
    full = {work.__name__: name_outcome(work) for work in (disk.upload, disk.bring_in, disk.back_up)}
    found = disk.finds(before) and disk.finds(1) and disk.reads_back()
    faults = disk.read_faults()
    disk.filler.unlink()
    later = {work.__name__: name_outcome(work) for work in (disk.upload, disk.bring_in)}
    return {
        "free_bytes": free_bytes,
        "full": full,
        "found": found,
        "later": later,
        "found_later": disk.finds(disk.count) and disk.finds(1) and disk.reads_back(),
        "faults": faults + disk.read_faults(),
    }


def main() -> None:
    """Go through COUNT points."""
    logging.disable()
    chance = random.Random(int(sys.argv[2]))
    root = Path(sys.argv[1])
    (root / "data").mkdir()
    with searching_gateway(root / "data") as gateway, httpx.Client(base_url=gateway.url, timeout=30) as client:
        disk = Disk(root, client)
        disk.upload()
        points = [go_through(disk, chance.randrange(MOST_FREE_BYTES)) for _ in range(int(sys.argv[3]))]
        attached = disk.attach_all()
    sys.stdout.write(json.dumps({"points": points, "attached": attached, "uploads": len(disk.uploads)}) + "\n")


if __name__ == "__main__":
    main()
