"""How often the console asks, and for what: counted in a real browser whose clock the test moves.

The gateway is the real one. Its ingestion and its job runner stand still until a test moves them, so that what has
changed between two looks is known.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

pytest.importorskip("playwright", reason="wanted Playwright (the dev extra), found none; the console was not looked at")

from playwright.sync_api import Browser, Page, Route, expect

from core.layout import DataDir
from retrieval.config import ParsingConfig
from retrieval.searcher import Searcher
from serve.ingestion import GROUP_FILES, IngestionWorker
from serve.jobs import Job, insert_job, make_job_id
from serve.keys import create_key
from tests.browser import CHROMIUM, MISSING, Served, log_in, wait_for, watched_page
from tests.fakes.engine import BASE
from tests.fakes.gateway import RunningGateway, running_gateway
from tests.fakes.hash_embedder import HashEmbedder

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)

STEP_MS = 700
GROWING = [700, 1400, 2800, 5600, 5600]
NOTE_REQUESTS = """(() => {
    const ask = window.fetch;
    window.looks = { asked: [], answered: 0 };
    window.fetch = async (url, options) => {
        looks.asked.push({ time: Date.now(), method: options.method, url: String(url) });
        try {
            const answer = await ask(url, options);
            await answer.clone().arrayBuffer(); // the body may come long after the head
            return answer;
        } finally {
            looks.answered += 1;
        }
    };
})()"""
SETTLE = """async () => {
    const turn = () => new Promise((resolve) => {
        const { port1, port2 } = new MessageChannel();
        port1.onmessage = resolve;
        port2.postMessage(null);
    });
    for (let still = 0; still < 20; still += 1) {
        await turn();
        if (looks.asked.length > looks.answered) still = 0;
    }
}"""
HIDE = """isHidden => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => isHidden });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


@dataclass(slots=True)
class Counted:
    """A console whose clock stands, and what it has asked since it was last looked at.

    Attributes:
        page: Playwright's page.
        path: Requests of other paths are not counted.
        seen: How many of all requests have been looked at.
    """

    page: Page
    path: str = ""
    seen: int = field(default=0)

    def settle(self) -> None:
        """Let the page do what it can without its clock: read answers, draw, plan the next look."""
        self.page.evaluate(SETTLE)

    def open(self, url: str, path: str) -> None:
        """Go to a page, and count from now on what it asks under a path."""
        self.path = path
        self.page.evaluate("url => { location.href = url; }", url)
        expect(self.page.locator("#page h1")).to_be_attached()
        self.settle()

    def pass_time(self, milliseconds: int, step_ms: int = STEP_MS) -> None:
        """Move the page's clock on, and let it do after each step what it would do meanwhile."""
        for _ in range(milliseconds // step_ms):
            self.page.clock.run_for(step_ms)
            self.settle()

    def idle(self) -> list[dict[str, Any]]:
        """Let much time pass at once; return what was asked meanwhile, which is one look at the most."""
        self.page.clock.run_for(30 * STEP_MS)
        self.settle()
        return self.take()

    def take(self) -> list[dict[str, Any]]:
        """Return the counted requests since the last call, with their times and queries."""
        asked = self.page.evaluate("looks.asked")
        fresh, self.seen = asked[self.seen :], len(asked)
        found = [{**one, "query": dict(parse_qsl(urlsplit(one["url"]).query))} for one in fresh]
        return [one for one in found if urlsplit(one["url"]).path.startswith(self.path)]

    def read_waits(self, since: int) -> list[int]:
        """Return how long the page has waited before each of the counted requests, in its own milliseconds."""
        times = [since, *(one["time"] for one in self.take())]
        return [later - earlier for earlier, later in pairwise(times)]

    def now(self) -> int:
        """Return the page's time."""
        return int(self.page.evaluate("Date.now()"))

    def hide(self, *, is_hidden: bool) -> None:
        """Say to the page that its tab is hidden or shown; a headless browser hides none."""
        self.page.evaluate(HIDE, is_hidden)
        self.settle()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway that neither ingests nor trains by itself."""
    folder = tmp_path_factory.mktemp("requests")
    searcher = Searcher(DataDir(folder), make_embedder=HashEmbedder)
    try:
        with running_gateway(folder, stores=searcher) as gateway:
            gateway.parts.worker.stop(10)
            yield Served(gateway, create_key(gateway.database, "local", is_admin=True)[1])
    finally:
        searcher.close()


@pytest.fixture
def counted(served: Served, browser: Browser) -> Iterator[Counted]:
    """Its console, logged in, with a clock that only a test moves."""
    with watched_page(browser, served.gateway.url) as watched:
        page = watched.page
        page.add_init_script(NOTE_REQUESTS)
        page.clock.install(time=0)
        page.reload()
        page.clock.pause_at(60_000)
        log_in(page, served.token)
        yield Counted(page)


def ingest_a_group(gateway: RunningGateway) -> bool:
    """Do one turn of the ingestion worker's; return whether there was anything to do."""
    archive = gateway.parts.archive
    worker = IngestionWorker(archive.data, archive.engine, HashEmbedder, ParsingConfig())
    return worker.work_once()


@dataclass(frozen=True, slots=True)
class Filled:
    """A store and the batch of its files, by their ids."""

    id: str
    batch: str


def fill_store(served: Served, count: int) -> Filled:
    """Make a store with files that wait to be ingested."""
    client = served.gateway.client(served.token)
    files = [
        client.files.create(file=(f"n{number}.md", f"note {number}".encode()), purpose="assistants").id
        for number in range(count)
    ]
    store = client.vector_stores.create(name="filled").id
    return Filled(store, client.vector_stores.file_batches.create(store, file_ids=files).id)


def open_store(counted: Counted, served: Served, count: int) -> Filled:
    store = fill_store(served, count)
    counted.open(f"{served.gateway.url}/console/#/documents/{store.id}", "/v1/loam/documents/")
    expect(counted.page.locator(".badge.in_progress")).to_have_count(count)
    return store


def test_a_store_is_asked_only_for_what_can_have_changed(served: Served, counted: Counted) -> None:
    count = 13 * GROUP_FILES  # more than a page holds
    store = open_store(counted, served, count)
    opened = counted.now()
    assert [one["query"]["limit"] for one in counted.take()] == ["100", "100"]

    counted.pass_time(sum(GROWING))
    asked = counted.take()
    times = [opened, *(one["time"] for one in asked)]
    assert [later - earlier for earlier, later in pairwise(times)] == GROWING
    assert all(one["query"] == {"filter": "in_progress", "order": "asc", "limit": "100"} for one in asked)

    button = counted.page.get_by_role("button", name="Attributes of n5.md")
    button.focus()
    ingest_a_group(served.gateway)
    counted.pass_time(GROWING[-1])  # the look that sees it, at the end of its wait
    expect(counted.page.locator(".badge.completed")).to_have_count(GROUP_FILES)
    expect(button).to_be_focused()
    assert [one["query"]["limit"] for one in counted.take()] == ["100", str(GROUP_FILES)]
    ingest_a_group(served.gateway)
    counted.pass_time(STEP_MS)  # short again, since the last look has seen a change
    assert [one["query"]["limit"] for one in counted.take()] == ["100", str(GROUP_FILES)]
    client = served.gateway.client(served.token)
    client.vector_stores.file_batches.cancel(store.batch, vector_store_id=store.id)
    counted.pass_time(STEP_MS)
    assert [one["query"]["limit"] for one in counted.take()] == ["100", str(count - 2 * GROUP_FILES)]
    expect(counted.page.locator(".badge.completed")).to_have_count(2 * GROUP_FILES)
    expect(counted.page.locator(".next")).to_contain_text("ask these documents")
    assert counted.idle() == []


def test_a_hidden_tab_asks_nothing_and_looks_when_it_is_shown(served: Served, counted: Counted) -> None:
    open_store(counted, served, 1)
    counted.pass_time(700 + 1400)
    counted.hide(is_hidden=True)
    counted.take()
    assert counted.idle() == []
    shown = counted.now()
    counted.hide(is_hidden=False)
    counted.pass_time(700 + 1400)
    assert counted.read_waits(shown) == [0, 700, 1400]
    while ingest_a_group(served.gateway):
        pass
    counted.pass_time(2800)
    counted.take()
    for is_hidden in (True, False):  # nothing is on its way any more
        counted.hide(is_hidden=is_hidden)
    assert counted.idle() == []


def test_what_a_person_does_is_followed_soon_and_reads_no_list(served: Served, counted: Counted) -> None:
    open_store(counted, served, 1)
    counted.pass_time(sum(GROWING))
    counted.take()
    page = counted.page
    attached = counted.now()
    for name in ("more.md", "again.md"):  # the second one does not put off the look that the first one has earned
        page.locator("#files").set_input_files({"name": name, "mimeType": "text/markdown", "buffer": b"more"})
        expect(page.get_by_role("row", name=name).locator(".badge")).to_have_text("in progress")
        counted.settle()
        assert counted.take() == []
        counted.pass_time(350, 350)
    assert counted.read_waits(attached) == [700]
    while ingest_a_group(served.gateway):
        pass
    counted.pass_time(1400)
    expect(page.locator(".badge.completed")).to_have_count(3)
    counted.take()
    page.get_by_role("row", name="more.md").get_by_role("button", name="Attributes").click()
    page.get_by_role("dialog").get_by_label("Attributes").fill("year: 2026")
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(page.get_by_role("row", name="more.md")).to_contain_text("year: 2026")
    page.get_by_role("button", name="Delete n0.md").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("row", name="n0.md")).to_have_count(0)
    assert counted.idle() == []


def test_one_look_is_under_way_at_a_time(served: Served, counted: Counted) -> None:
    store = open_store(counted, served, 1)
    page, held = counted.page, list[Route]()

    def hold(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route(f"**/v1/loam/documents/{store.id}?filter=*", hold)
    counted.take()
    page.clock.run_for(STEP_MS)
    for is_hidden in (True, False, True, False):
        page.evaluate(HIDE, is_hidden)
        page.clock.run_for(30 * STEP_MS)
    assert len(counted.take()) == 1
    wait_for(page, lambda: held)
    held[0].continue_()
    counted.settle()
    assert len(counted.take()) == 1  # the look that the return to the tab was owed
    while ingest_a_group(served.gateway):
        pass


def test_what_others_do_to_a_store_is_seen_by_the_end(served: Served, counted: Counted) -> None:
    store = open_store(counted, served, 3).id
    client, page = served.gateway.client(served.token), counted.page
    newest = client.vector_stores.files.list(store).data[0].id
    client.vector_stores.files.delete(newest, vector_store_id=store)
    ingest_a_group(served.gateway)
    late = client.files.create(file=("late.md", b"late"), purpose="assistants").id
    client.vector_stores.files.create(store, file_id=late)
    counted.pass_time(700)
    while ingest_a_group(served.gateway):
        pass
    counted.pass_time(700 + 1400)
    expect(page.locator(".badge.completed")).to_have_count(3)
    expect(page.get_by_role("row", name="late.md")).to_have_count(1)
    counted.take()
    assert counted.idle() == []


def test_a_job_that_waits_is_asked_for_seldom_and_its_end_once(served: Served, counted: Counted) -> None:
    client = served.gateway.client(served.token)
    row = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    file = client.files.create(file=("t.jsonl", row * 12), purpose="fine-tune").id
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file, suffix="waits").id
    counted.open(f"{served.gateway.url}/console/#/finetune/{job}", f"/v1/fine_tuning/jobs/{job}")
    opened = counted.now()
    paths = ["", "/events", "/checkpoints"]
    assert [urlsplit(one["url"]).path.removeprefix(counted.path) for one in counted.take()] == paths
    counted.pass_time(sum(GROWING))
    asked = counted.take()
    assert [urlsplit(one["url"]).path.removeprefix(counted.path) for one in asked] == ["", "/events"] * len(GROWING)
    times = [opened, *(one["time"] for one in asked[::2])]
    assert [later - earlier for earlier, later in pairwise(times)] == GROWING
    counted.page.get_by_role("button", name="Cancel the job").click()
    counted.page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    expect(counted.page.locator(".badge.cancelled")).to_be_visible()
    counted.settle()
    cancelled = [(one["method"], urlsplit(one["url"]).path.removeprefix(counted.path)) for one in counted.take()]
    assert cancelled == [("POST", "/cancel"), *(("GET", path) for path in paths)]
    assert counted.idle() == []


def test_a_job_of_many_steps_takes_few_requests_and_is_drawn_from_its_first_step(
    served: Served, counted: Counted
) -> None:
    count = 10_000
    job = Job(make_job_id(), "local", BASE, None, 1, "file-1", None, "supervised", {}, {}, None, status="failed")
    insert_job(served.gateway.database, job, max_unfinished=10)
    path = DataDir(served.gateway.folder).run(job.id) / "events.jsonl"
    path.parent.mkdir(parents=True)
    figures = {"type": "step", "learning_rate": 1e-4, "tokens_per_s": 9.0, "tokens": 1}
    steps = ({"time": job.created_at + 1.0, "step": step, "loss": 2 - step / count} for step in range(1, count + 1))
    path.write_text("".join(f"{json.dumps(figures | step)}\n" for step in steps))
    counted.open(f"{served.gateway.url}/console/#/finetune/{job.id}", f"/v1/fine_tuning/jobs/{job.id}")
    loss = counted.page.locator(".chart").filter(has=counted.page.get_by_role("img", name="Loss by step"))
    expect(loss.locator("text")).to_have_text(["0", "1", "2", "1", "step 10,000"])
    assert len((loss.locator("polyline").get_attribute("points") or "").split()) == count
    expect(counted.page.get_by_text(f"Created fine-tuning job: {job.id}")).to_be_visible()
    asked = counted.take()
    assert [one["query"]["limit"] for one in asked if "limit" in one["query"]] == ["100", "50", "10", *["1000"] * 10]
    assert counted.idle() == []


def test_operations_are_looked_at_seldom_while_nobody_asks_anything(served: Served, counted: Counted) -> None:
    counted.open(f"{served.gateway.url}/console/#/operations", "/v1/loam/status")
    opened = counted.now()
    counted.take()
    counted.pass_time(24_000, 1500)
    waits = [3000, 3000, 6000, 12_000]  # its first look has not seen its own question for the keys
    assert counted.read_waits(opened) == waits
    client = served.gateway.client(served.token)
    client.chat.completions.create(model=BASE, messages=[{"role": "user", "content": "hello"}])
    counted.pass_time(15_000, 1500)
    assert counted.read_waits(opened + sum(waits)) == [12_000, 3000]
