"""The console's way from a job to an answer, and what operators see: names and assistants made in the browser, what a
job will take, answers before and after, figures that are those of /metrics, keys.

The engine is the fake one, and so is the trainer; what is named, found, cited and counted is real.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

pytest.importorskip("playwright", reason="wanted Playwright (the dev extra), found none; the console was not looked at")

from playwright.sync_api import Browser, Locator, Page, Route, expect

from core.layout import DataDir
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.ingest import ingest
from retrieval.searcher import Searcher
from serve.keys import create_key, revoke_key
from tests.browser import CHROMIUM, MISSING, Served, Watched, ask, log_in, wait_for, watched_page
from tests.fakes.engine import BASE
from tests.fakes.gateway import running_gateway
from tests.fakes.hash_embedder import HashEmbedder

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)

FLOW = "The maximum flow of the Brook 40 pump is 38 litres per minute."
QUESTION = "What is the maximum flow of the Brook 40 pump?"
CHAT = {"messages": [{"role": "user", "content": "How long?"}, {"role": "assistant", "content": "45 days"}]}


@dataclass(frozen=True, slots=True)
class User(Served):
    """What a person does with a gateway that has one store and no assistant, asked of it directly."""

    def make_job(self, suffix: str, *, has_held_out: bool = False) -> str:
        """Create a job; return its id."""
        client = self.gateway.client(self.token)
        content = (json.dumps(CHAT) + "\n").encode() * 12
        chats = client.files.create(file=("t.jsonl", content), purpose="fine-tune").id
        held_out = client.files.create(file=("v.jsonl", content), purpose="fine-tune").id
        method = cast("Any", {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 4}}})
        return client.fine_tuning.jobs.create(
            model=BASE,
            training_file=chats,
            validation_file=held_out if has_held_out else None,
            suffix=suffix,
            method=method,
        ).id

    def list_models(self) -> dict[str, str]:
        """Return what each listed name stands for."""
        models = self.gateway.client(self.token).models.list()
        return {model.id: model.target for model in models}  # type: ignore[attr-defined]

    def read_metric(self, name: str, *labels: str) -> float:
        """Return a figure of /metrics, summed over the lines that have some labels."""
        text = httpx.get(f"{self.gateway.url}/metrics", headers={"authorization": f"Bearer {self.token}"}).text
        lines = [line for line in text.splitlines() if re.match(rf"{name}[{{ ]", line)]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(label in line for label in labels))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """One gateway for all tests here."""
    folder, source = tmp_path_factory.mktemp("use"), tmp_path_factory.mktemp("documents")
    (source / "brook-40.md").write_text(f"# Brook 40\n\n## Performance\n\n{FLOW}\n")
    data, sizes = DataDir(folder), ChunkingConfig(max_tokens=100, overlap_tokens=0)
    ingest(data, "manuals", source, embedder=HashEmbedder(), chunking=sizes, parsing=ParsingConfig())
    searcher = Searcher(data, make_embedder=HashEmbedder)
    try:
        with running_gateway(folder, stores=searcher, trains=True) as gateway:
            yield User(gateway, create_key(gateway.database, "local", is_admin=True)[1])
    finally:
        searcher.close()


def go(page: Page, served: User, route: str) -> None:
    """Open a page by its link."""
    page.goto(f"{served.gateway.url}/console/#/{route}")


def read_figure(page: Page, section: str, name: str) -> Locator:
    """Return the number over a name."""
    figures = page.get_by_role("region", name=section, exact=True).locator(".figure")
    return figures.filter(has=page.get_by_text(name, exact=True)).locator("b")


def test_a_finished_model_gets_a_name_and_documents_in_the_browser(served: User, watched: Watched) -> None:
    page = watched.page
    go(page, served, f"finetune/{served.make_job('desk')}")
    expect(page.locator(".badge.succeeded")).to_be_visible()
    naming = page.get_by_role("form", name="Give it a name")
    expect(naming.get_by_label("Name")).to_have_value("desk")
    naming.get_by_label("Name").fill("helpdesk")
    naming.get_by_role("button", name="Give the name").click()
    expect(naming.locator(".next")).to_contain_text("ask helpdesk")
    assert served.list_models()["helpdesk"].startswith(f"ft:{BASE}:local:desk:")
    naming.get_by_label("Which weights").select_option(index=1)
    with page.expect_response("**/v1/loam/aliases"):
        naming.get_by_role("button", name="Give the name").click()
    assert served.list_models()["helpdesk"].endswith(":ckpt-step-9")
    making = page.get_by_role("form", name="Make an assistant")
    making.get_by_label("Name of the assistant").fill("helpdesk")
    making.get_by_label("manuals").uncheck()
    making.get_by_role("button", name="Make the assistant").click()
    expect(making.get_by_role("alert")).to_contain_text("at least one store")
    making.get_by_label("manuals").check()
    making.get_by_role("button", name="Make the assistant").click()
    expect(making.get_by_role("alert")).to_contain_text("is your alias")
    making.get_by_label("Name of the assistant").fill("support")
    making.get_by_role("button", name="Make the assistant").click()
    making.get_by_role("link", name="ask support").click()
    expect(page.get_by_label("Model")).to_have_value("support")
    served.gateway.script(reply=FLOW)
    ask(page, QUESTION)
    answer = page.locator(".answer")
    expect(answer.locator("tr.cited")).to_contain_text("Brook 40 > Performance")
    expect(answer.locator(".next")).to_contain_text("press a mark")
    expect(answer.get_by_text("Searched manuals for")).to_be_visible()
    answer.locator("button.mark").click()
    expect(page.get_by_role("dialog").locator("mark")).to_contain_text(FLOW)


def test_names_are_listed_moved_and_taken_away(served: User, watched: Watched) -> None:
    headers = {"authorization": f"Bearer {served.token}"}
    for path, body in (
        ("aliases", {"name": "nightly", "model": BASE}),
        ("assistants", {"name": "library", "model": BASE, "vector_store_ids": ["manuals"]}),
    ):
        httpx.post(f"{served.gateway.url}/v1/loam/{path}", json=body, headers=headers).raise_for_status()
    page = watched.page
    go(page, served, "finetune")
    names = page.get_by_role("region", name="Names")
    expect(names.get_by_role("row", name="library")).to_contain_text("manuals")
    names.get_by_role("button", name="Take the name nightly away").click()
    page.get_by_role("dialog").get_by_role("button", name="Take it away").click()
    expect(names.get_by_role("row", name="nightly")).to_have_count(0)
    expect(names.locator("a:focus")).to_have_count(1)  # the first link of the row that stands there now
    assert "nightly" not in served.list_models()
    names.get_by_role("link", name="library").click()
    expect(page.get_by_label("Model")).to_have_value("library")


def test_answers_before_and_after_are_shown_as_the_trainer_gave_them(served: User, watched: Watched) -> None:
    page = watched.page
    go(page, served, f"finetune/{served.make_job('sampled', has_held_out=True)}")
    samples = page.get_by_role("region", name="Samples")
    expect(samples.get_by_role("heading", level=3)).to_have_text("How long?")
    expect(page.locator(".badge.succeeded")).to_be_visible()
    expect(samples.locator(".text")).to_have_text(["said at step 0", "said at step 9"])


def test_without_held_out_rows_both_models_are_asked(served: User, watched: Watched) -> None:
    served.gateway.script(reply=None)  # each repeats the question
    page = watched.page
    go(page, served, f"finetune/{served.make_job('unsampled')}")
    page.get_by_role("button", name="Ask both the first training question").click()
    samples = page.get_by_role("region", name="Samples")
    expect(samples.locator(".text")).to_have_text(["How long?", "How long?"])
    expect(samples.locator(".small")).to_have_text([re.compile("^before"), re.compile("^after.*ft:")])


def test_a_running_job_is_cancelled(
    served: User, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hold").touch()
    monkeypatch.setenv("LOAM_FAKE_TRAINER", json.dumps({"held_before": 2, "hold": str(tmp_path / "hold")}))
    page = watched.page
    go(page, served, f"finetune/{served.make_job('stopped')}")
    expect(page.locator(".badge.running")).to_be_visible()
    expect(page.locator(".next")).to_contain_text("bring documents in")
    page.get_by_role("button", name="Cancel the job").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    expect(page.locator(".badge.cancelled")).to_be_visible()
    expect(page.locator(".next")).to_contain_text("start another one")
    expect(page.get_by_role("button", name="Cancel the job")).to_have_count(0)
    expect(page.get_by_role("heading", level=1)).to_be_focused()


def test_what_does_not_fit_is_told_before_the_job(
    served: User, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOAM_FAKE_TRAINER", json.dumps({"memory_bytes": 9 * 2**30}))
    (tmp_path / "chats.jsonl").write_text((json.dumps(CHAT) + "\n") * 12)
    page = watched.page
    go(page, served, "finetune")
    page.get_by_label("Training data").set_input_files(str(tmp_path / "chats.jsonl"))
    told = page.locator(".estimate").get_by_role("alert")
    expect(told).to_contain_text("does not fit into memory")
    expect(told.locator("li")).to_contain_text("trainer.max_length=512")
    monkeypatch.delenv("LOAM_FAKE_TRAINER")
    page.get_by_label("Longest row, tokens").fill("512")
    page.get_by_label("Longest row, tokens").blur()
    expect(told).to_have_count(0)
    expect(page.locator(".estimate .figure")).to_have_count(4)
    page.reload()  # the file that was checked stands in the URL
    expect(page.locator(".estimate .figure")).to_have_count(4)
    page.get_by_label("Longest row, tokens").fill("512")
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url("**#/finetune/ftjob-*")
    expect(page.locator(".badge.succeeded")).to_be_visible()
    job = page.url.rpartition("/")[2]
    assert served.gateway.client(served.token).fine_tuning.jobs.retrieve(job).metadata == {"max_length": "512"}


def test_operations_show_what_the_metrics_say(served: User, watched: Watched) -> None:
    served.gateway.script(reply="four words of answer")
    page = watched.page
    go(page, served, f"ask?model={BASE}")
    ask(page, "a question")
    expect(page.locator(".answer header")).to_contain_text("4 tokens")
    go(page, served, "operations")
    expect(page.get_by_role("region", name="Engine").locator(".badge")).to_have_text("ready")
    written = served.read_metric("loam_tokens_total", 'kind="completion"')
    assert written >= 4
    expect(read_figure(page, "Requests", "tokens written so far")).to_have_text(f"{written:,.0f}")
    expect(read_figure(page, "Requests", "first token, half are quicker")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
    expect(read_figure(page, "Requests", "requests that failed (5xx)")).to_have_text("0")
    expect(read_figure(page, "Requests", "tokens written a second")).to_have_text(re.compile(r"^[\d.]+$"))
    loaded = sum(name == target and name.startswith("ft:") for name, target in served.list_models().items())
    expect(read_figure(page, "Engine", "adapters loaded")).to_have_text(str(loaded))
    jobs = served.read_metric("loam_fine_tuning_jobs", 'status="succeeded"')
    expect(read_figure(page, "Queue", "jobs succeeded" if jobs else "fine-tuning jobs")).to_have_text(f"{jobs:.0f}")
    expect(page.get_by_role("region", name="Machine")).to_contain_text(re.compile(r"Memory: [\d.]+ \w+ of [\d.]+ GiB"))
    page.get_by_role("button", name="Examine the data directory").click()
    expect(page.get_by_role("region", name="Doctor").locator(".badge")).to_be_visible()


def test_an_administrator_makes_and_revokes_a_key(served: User, watched: Watched) -> None:
    page = watched.page
    go(page, served, "operations")
    keys = page.get_by_role("region", name="Keys")
    keys.get_by_label("New key for").fill("guests")
    keys.get_by_role("button", name="Create the key").click()
    token = keys.locator(".token").inner_text()
    account = f"{served.gateway.url}/v1/loam/account"
    headers = {"authorization": f"Bearer {token}"}
    found = httpx.get(account, headers=headers).json()
    assert (found["owner"], found["is_admin"]) == ("guests", False)
    keys.get_by_role("button", name=f"Revoke {found['key_id']}").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(keys.get_by_role("row", name="guests")).to_contain_text("revoked")
    expect(keys.get_by_role("heading", name="Keys")).to_be_focused()
    assert httpx.get(account, headers=headers).status_code == 401
    expect(keys).not_to_contain_text(token)


def test_who_is_there_by_keyboard_is_not_sent_away(served: User, watched: Watched) -> None:
    """Where a row, a form or a button has gone, the keyboard is on what stands in its place, not on the page itself."""
    served.gateway.script(reply=FLOW)
    page, focused = watched.page, watched.page.locator("*:focus")

    def press(name: str | re.Pattern[str], *, at: int = 0) -> None:
        page.get_by_role("button", name=name).nth(at).focus()
        page.keyboard.press("Enter")

    go(page, served, f"ask?model={BASE}")
    page.get_by_label("Model").focus()
    page.keyboard.press("ArrowUp")
    expect(focused).to_have_id("model-0")
    page.get_by_label("Model").select_option(BASE)
    page.get_by_label("manuals").focus()
    page.keyboard.press("Space")
    expect(page.get_by_label("manuals")).to_be_checked()
    expect(page.get_by_label("manuals")).to_be_focused()
    press("Compare with another")
    press("Compare with another")
    press("Leave out", at=1)
    expect(focused).to_have_id("model-1")
    press("Leave out", at=1)
    expect(focused).to_have_id("model-0")
    ask(page, QUESTION)
    press("Bad")
    expect(page.get_by_label("Comment")).to_be_focused()
    press("Keep")
    expect(page.get_by_role("button", name="Take it back")).to_be_focused()

    client = served.gateway.client(served.token)
    store = client.vector_stores.create(name="two").id
    for name in ("first.md", "second.md"):
        file = client.files.create(file=(name, name.encode()), purpose="assistants").id
        client.vector_stores.files.create(store, file_id=file)
    go(page, served, "documents")
    page.get_by_role("link", name="two", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="Documents / two")).to_be_focused()
    expect(page.locator(".badge.completed")).to_have_count(2)
    press("Delete second.md")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Attributes of first.md")).to_be_focused()
    press("Delete first.md")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Delete first.md")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="This store is empty")).to_be_focused()
    press("Delete the store")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name="Documents")).to_be_focused()

    go(page, served, "reports")
    press("Delete what was said of")
    expect(page.get_by_role("heading", name="Nothing said of answers yet")).to_be_focused()


def test_the_first_key_is_shown_and_the_tab_goes_on_with_it(browser: Browser, tmp_path: Path) -> None:
    with running_gateway(tmp_path) as gateway, watched_page(browser, gateway.url) as watched:
        page = watched.page
        page.get_by_role("link", name="Operations").click()
        keys = page.get_by_role("region", name="Keys")
        expect(keys.get_by_label("administrator")).to_be_checked()
        keys.get_by_label("New key for").fill("ops")
        keys.get_by_role("button", name="Create the key").click()
        token = keys.locator(".token").inner_text()
        expect(keys.locator(".token")).to_be_focused()
        assert page.evaluate("String(getSelection())") == token
        expect(page.locator(".account")).to_have_text(re.compile("^ops.*Log out$"))
        page.get_by_role("link", name="Documents").click()
        expect(page.get_by_text("No documents yet")).to_be_visible()
        assert page.evaluate("sessionStorage.getItem('loam.key')") == token
        assert httpx.get(f"{gateway.url}/v1/loam/account").status_code == 401


def test_what_is_pressed_twice_is_done_once(served: User, watched: Watched) -> None:
    page, held = watched.page, list[Route]()

    def hold(route: Route) -> None:
        if route.request.method == "POST":
            held.append(route)
        else:
            route.continue_()

    page.route("**/v1/vector_stores", hold)
    go(page, served, "documents")
    page.get_by_label("New store").fill("twice")
    create = page.get_by_role("button", name="Create the store")
    create.click()
    expect(create).to_have_attribute("aria-busy", "true")
    create.click()
    page.keyboard.press("Enter")
    wait_for(page, lambda: held)
    for route in held:
        route.continue_()
    expect(page.get_by_text("This store is empty")).to_be_visible()
    assert [store.name for store in served.gateway.client(served.token).vector_stores.list()].count("twice") == 1


def test_a_box_goes_with_its_page_and_with_its_key(served: User, browser: Browser) -> None:
    key, token = create_key(served.gateway.database, "local", is_admin=True)
    with watched_page(browser, served.gateway.url) as watched:
        page = watched.page
        log_in(page, token)
        page.get_by_role("link", name="Documents").click()
        page.get_by_role("link", name="manuals").click()
        page.get_by_role("button", name="Delete brook-40.md").click()
        page.go_back()
        expect(page.get_by_label("New store")).to_be_visible()
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.go_forward()
        page.get_by_role("button", name="Delete brook-40.md").click()
        revoke_key(served.gateway.database, key.id)
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(page.get_by_label("API key")).to_be_focused()
        expect(page.get_by_role("dialog")).to_have_count(0)
        log_in(page, served.token)
        key, token = create_key(served.gateway.database, "local")
        page.evaluate("key => sessionStorage.setItem('loam.key', key)", token)
        page.reload()
        expect(page.get_by_role("button", name="Delete brook-40.md")).to_be_visible()
        revoke_key(served.gateway.database, key.id)
        page.get_by_role("link", name="Fine-tune").click()  # asks for three things at once
        expect(page.get_by_label("API key")).to_be_visible()
        page.wait_for_load_state("networkidle")
        expect(page.get_by_role("alert")).to_contain_text("revoked")


def test_a_page_that_failed_is_asked_for_again(served: User, watched: Watched) -> None:
    page = watched.page
    page.context.set_offline(True)
    page.get_by_role("link", name="Documents").click()
    expect(page.get_by_role("alert")).to_contain_text("The gateway does not answer")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("link", name="manuals")).to_be_visible()


def test_a_link_to_what_is_gone_says_so(served: User, watched: Watched) -> None:
    for route in ("ask?model=gone-1", "ask?store=gone-2", "reports/gone-3", "documents/gone-4", "finetune/gone-5"):
        go(watched.page, served, route)
        expect(watched.page.get_by_role("alert")).to_contain_text(route[-6:])


def test_a_file_dropped_beside_its_place_leaves_the_console_open(watched: Watched) -> None:
    drop = """selector => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File(["text"], "a.txt"));
        const event = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer });
        return !document.querySelector(selector).dispatchEvent(event);
    }"""
    expect(watched.page.get_by_label("Question", exact=True)).to_be_visible()
    assert watched.page.evaluate(drop, "header")
    assert not watched.page.evaluate(drop, "textarea")


def test_a_store_whose_name_cannot_be_seen_is_called_by_its_id(served: User, watched: Watched) -> None:
    client = served.gateway.client(served.token)
    store = client.vector_stores.create(name="  ").id
    go(watched.page, served, "documents")
    watched.page.get_by_role("link", name=store).click()
    expect(watched.page.get_by_role("heading", level=1)).to_contain_text(store)
    client.vector_stores.delete(store)


def test_the_longest_names_make_no_page_wider_than_a_telephone(served: User, watched: Watched) -> None:
    page, name = watched.page, "x" * 256
    store = served.gateway.client(served.token).vector_stores.create(name=name).id
    said = {"rating": "up", "model": BASE, "question": name, "answer": FLOW}
    headers = {"authorization": f"Bearer {served.token}"}
    httpx.post(f"{served.gateway.url}/v1/loam/feedback", json=said, headers=headers).raise_for_status()
    page.set_viewport_size({"width": 390, "height": 844})
    for route in ("documents", f"documents/{store}", f"ask?model={BASE}&store={store}", "reports"):
        go(page, served, route)
        expect(page.get_by_text(name).first).to_be_attached()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, route
    served.gateway.client(served.token).vector_stores.delete(store)
