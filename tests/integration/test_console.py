"""The console in a real browser: what a person does there, with the real gateway and the real search behind it.

The engine is the fake one, so that an answer takes no time; what is asked, found, cited, kept and shown is real.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

pytest.importorskip("playwright", reason="wanted Playwright (the dev extra), found none; the console was not looked at")

from playwright.sync_api import Browser, Route, expect

from core.layout import DataDir
from evaluation.report import Link, Section, draw_bars, write_report
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.ingest import ingest
from retrieval.searcher import Searcher
from serve.answering import AssistantConfig
from serve.keys import create_key, revoke_key
from tests.browser import CHROMIUM, MISSING, Served, Watched, ask, log_in, watched_page
from tests.fakes.cutting_proxy import cutting_proxy
from tests.fakes.engine import BASE
from tests.fakes.gateway import ALIAS, running_gateway
from tests.fakes.hash_embedder import HashEmbedder

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)

FLOW = "The maximum flow of the Brook 40 pump is 38 litres per minute."
MANUAL = f"""# Brook 40

The Brook 40 is a pump for gardens. Its housing is of steel.

## Performance

{FLOW} It lifts water by 21 metres.

## Care

Empty the pump before the first frost. Keep it in a dry room.
"""
RETURNS = "# Returns\n\nA customer can return a product within 45 days of delivery. Étui <b>included</b>.\n"
QUESTION = "What is the maximum flow of the Brook 40 pump?"
DROPPED = """() => {
    const dropped = new DataTransfer();
    for (const name of ["one", "two"]) dropped.items.add(new File([`The code word is ${name}.`], `${name}.md`));
    return dropped;
}"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway with two documents, an assistant over them, and an administrator's key; one for all tests here."""
    folder, source = tmp_path_factory.mktemp("console"), tmp_path_factory.mktemp("documents")
    (source / "brook-40.md").write_text(MANUAL)
    (source / "returns.md").write_text(RETURNS)
    data = DataDir(folder)
    ingest(
        data, "acme", source, embedder=HashEmbedder(), chunking=ChunkingConfig(max_tokens=100, overlap_tokens=0),
        parsing=ParsingConfig(),
    )  # fmt: skip
    searcher = Searcher(data, make_embedder=HashEmbedder)
    assistants = {"helper": AssistantConfig(model=ALIAS, stores=["acme"], k=2, min_score=-1)}
    try:
        with running_gateway(folder, assistants=assistants, stores=searcher, trains=True) as gateway:
            yield Served(gateway, create_key(gateway.database, "local", is_admin=True)[1])
    finally:
        searcher.close()


def test_without_a_good_key_there_is_a_login_and_nothing_else(served: Served, browser: Browser) -> None:
    key, token = create_key(served.gateway.database, "leaver")
    with watched_page(browser, served.gateway.url) as watched:
        page = watched.page
        page.get_by_label("API key").fill("loam-wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("wrong")
        expect(page.get_by_role("navigation")).to_have_count(0)
        log_in(page, token)
        expect(page.get_by_label("Question", exact=True)).to_be_visible()  # the page has asked all that it needed
        revoke_key(served.gateway.database, key.id)
        ask(page, QUESTION)
        expect(page.get_by_label("API key")).to_be_visible()
        expect(page.get_by_role("alert")).to_contain_text("revoked")
        expect(page.get_by_role("navigation")).to_have_count(0)
        assert page.evaluate("sessionStorage.length") == 0


def test_an_answer_is_cited_and_a_mark_opens_the_passage(served: Served, watched: Watched) -> None:
    served.gateway.script(reply=f"It is strong. {FLOW}")
    page = watched.page
    expect(page.get_by_label("Model")).to_have_value("helper")
    ask(page, QUESTION)
    answer = page.locator(".answer")
    expect(answer.locator(".text")).to_contain_text(FLOW)
    expect(answer.get_by_text("1 of 2 passages cited")).to_be_visible()
    expect(answer.locator("tr.cited")).to_contain_text("Brook 40 > Performance")
    answer.locator("button.mark").click()
    passage = page.get_by_role("dialog")
    expect(passage.get_by_role("heading")).to_have_text("brook-40.md")
    expect(passage.locator("mark")).to_contain_text(FLOW)
    expect(passage).to_contain_text("Brook 40 > Performance")
    expect(passage.locator(".document")).to_contain_text("Empty the pump before the first frost.")
    link = page.evaluate("location.href")
    page.keyboard.press("Escape")
    expect(passage).to_have_count(0)
    page.wait_for_function("!location.href.includes('passage=')")  # the address follows a moment after
    page.goto(link)
    page.reload()
    expect(page.get_by_role("dialog").locator("mark")).to_contain_text(FLOW)
    expect(page.get_by_label("Question", exact=True)).to_have_value(QUESTION)


def test_models_answer_side_by_side_and_go_on_separately(served: Served, watched: Watched) -> None:
    served.gateway.script(reply=None)  # each says what it was asked
    page = watched.page
    page.get_by_role("button", name="Compare with another").click()
    page.get_by_label("Model 2").select_option(BASE)
    page.get_by_role("button", name="Compare with another").click()
    expect(page.locator(".picker")).to_have_count(3)
    ask(page, "first words")
    expect(page.locator(".answer")).to_have_count(3)
    expect(page.locator(".answer .text[aria-busy]")).to_have_count(0)
    expect(page.locator(f".answer[data-model='{BASE}'] .text")).to_have_text("first words")
    ask(page, "second words")
    expect(page.locator(".turn").first.locator(f".answer[data-model='{BASE}'] .text")).to_have_text("second words")
    expect(page.locator(".turn")).to_have_count(2)
    assert f"model={BASE}" in page.evaluate("location.href")


def test_an_engines_fault_is_told_in_words(served: Served, watched: Watched) -> None:
    served.gateway.script(reply="one two three four", error_after=2)
    page = watched.page
    ask(page, QUESTION)
    expect(page.locator(".answer").get_by_role("alert")).to_be_visible()
    expect(page.locator(".answer header")).to_contain_text("failed")
    served.gateway.script(error_after=None)


def test_an_answer_that_breaks_off_says_so(served: Served, browser: Browser) -> None:
    served.gateway.script(reply="word " * 600, token_delay_s=0.1)  # more than a minute: it is cut in the middle
    with (
        cutting_proxy(int(served.gateway.url.rpartition(":")[2])) as proxy,
        watched_page(browser, f"http://127.0.0.1:{proxy.port}") as watched,
    ):
        page = watched.page
        log_in(page, served.token)
        ask(page, QUESTION)
        expect(page.locator(".answer .text")).to_contain_text("word")
        proxy.cuts = 1
        expect(page.locator(".answer").get_by_role("alert")).to_contain_text("The answer broke off")
    served.gateway.script(reply=None)


def test_what_is_said_of_an_answer_becomes_a_labelled_question(served: Served, watched: Watched) -> None:
    served.gateway.script(reply=FLOW)
    page = watched.page
    ask(page, QUESTION)
    page.get_by_role("button", name="Good").click()
    page.get_by_label("Comment").fill("As in the manual")
    expect(page.locator(".passages input:checked")).to_have_count(1)
    page.get_by_role("button", name="Keep").click()
    expect(page.get_by_text("Kept as a labelled question")).to_be_visible()
    headers = {"authorization": f"Bearer {served.token}"}
    exported = httpx.get(f"{served.gateway.url}/v1/loam/feedback/questions", headers=headers).text
    row = json.loads(exported.splitlines()[-1])
    assert (row["question"], row["files"], row["comment"]) == (QUESTION, ["brook-40.md"], "As in the manual")
    assert len(row["chunks"]) == 1


def test_logging_out_leaves_nothing_behind(served: Served, watched: Watched) -> None:
    page = watched.page
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()


def test_ten_files_are_brought_in_and_the_broken_one_says_why(served: Served, watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    page.get_by_role("link", name="Documents").click()
    page.get_by_label("New store").fill("ten files")
    page.get_by_role("button", name="Create the store").click()
    expect(page.get_by_text("This store is empty")).to_be_visible()
    files = []
    for number in range(9):
        files.append(tmp_path / f"note-{number}.md")
        files[-1].write_text(f"# Note {number}\n\nThe code word of note {number} is canary{number}.\n")
    files.append(tmp_path / "broken.pdf")
    files[-1].write_bytes(b"%PDF-1.7\nthis is not a document")
    page.locator("#files").set_input_files([str(path) for path in files])
    expect(page.locator(".badge.completed")).to_have_count(9)
    broken = page.get_by_role("row", name="broken.pdf")
    expect(broken.locator(".badge")).to_have_text("failed")
    expect(broken.locator(".reason")).not_to_be_empty()
    page.get_by_label("Search these documents").fill("canary7")
    page.keyboard.press("Enter")
    first = page.locator(".hits tbody tr").first
    expect(first).to_contain_text("note-7.md")
    expect(page.locator(".hits th")).to_have_text(["n", "Passage", "lexical", "dense", "fused"])
    expect(first.locator("td").nth(2)).to_contain_text("1.")
    first.get_by_role("button", name="note-7.md").click()
    expect(page.get_by_role("dialog").locator("mark")).to_contain_text("canary7")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Delete note-7.md").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator(".badge.completed")).to_have_count(8)
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".hits tbody tr").first).not_to_contain_text("note-7.md")


def test_a_dropped_file_is_found_by_its_attributes(served: Served, watched: Watched) -> None:
    page = watched.page
    page.get_by_role("link", name="Documents").click()
    page.get_by_label("New store").fill("dropped")
    page.get_by_role("button", name="Create the store").click()
    expect(page.get_by_text("This store is empty")).to_be_visible()
    dropped = page.evaluate_handle(DROPPED)
    page.locator(".drop").dispatch_event("drop", {"dataTransfer": dropped})
    expect(page.locator(".badge.completed")).to_have_count(2)
    expect(page.locator(".next")).to_contain_text("ask these documents")
    page.get_by_role("row", name="one.md").get_by_role("button", name="Attributes").click()
    box = page.get_by_role("dialog")
    box.get_by_label("Attributes").fill('team: "sales"\nyear: 2026')
    box.get_by_role("button", name="Save").click()
    expect(page.get_by_role("row", name="one.md")).to_contain_text("year: 2026")
    page.get_by_role("button", name="Filter").click()
    page.get_by_label("Attribute", exact=True).fill("year")
    page.get_by_label("Comparison").select_option("gte")
    page.get_by_label("Value").fill("2026")
    page.get_by_label("Search these documents").fill("code word")
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".hits tbody tr")).to_have_count(1)
    expect(page.locator(".hits tbody tr")).to_contain_text("one.md")
    page.reload()
    expect(page.locator(".hits tbody tr")).to_have_count(1)


def test_what_is_refused_is_told_where_it_was_asked_for(served: Served, watched: Watched) -> None:
    page = watched.page
    fault = {"error": {"message": "Not now: the store is being changed.", "code": "conflict"}}

    def refuse(route: Route) -> None:
        if route.request.method == "DELETE":
            route.fulfill(status=409, json=fault)
        else:
            route.continue_()

    page.route("**/v1/**", refuse)
    page.goto(f"{served.gateway.url}/console/#/documents/acme")
    for name in ("Delete the store", "Delete returns.md"):
        page.get_by_role("button", name=name).click()
        box = page.get_by_role("dialog")
        box.get_by_role("button", name="Delete", exact=True).click()
        expect(box.get_by_role("alert")).to_contain_text("Not now")
        box.get_by_role("button", name="Cancel").click()
    served.gateway.script(reply=FLOW)
    page.goto(f"{served.gateway.url}/console/#/ask")
    ask(page, QUESTION)
    page.get_by_role("button", name="Bad").click()
    page.get_by_role("button", name="Keep").click()
    page.get_by_role("button", name="Take it back").click()
    expect(page.locator(".page > div").first.get_by_role("alert")).to_contain_text("Not now")


def test_a_long_document_is_shown_as_far_as_the_api_gives_it(served: Served, watched: Watched, tmp_path: Path) -> None:
    words = "The pump needs water and a filter before it starts. " * 21_000
    (tmp_path / "long.txt").write_text(f"{words}\nThe code word is heron.\n")
    sizes = ChunkingConfig(max_tokens=1000, overlap_tokens=0)
    ingest(
        DataDir(served.gateway.folder), "long", tmp_path, embedder=HashEmbedder(), chunking=sizes,
        parsing=ParsingConfig(),
    )  # fmt: skip
    page = watched.page
    page.goto(f"{served.gateway.url}/console/#/documents/long?q=heron&where=path|ne|a|b")
    page.reload()
    expect(page.get_by_label("Value")).to_have_value("a|b")
    page.locator(".hits button").first.click()
    passage = page.get_by_role("dialog")
    more = passage.get_by_role("button", name="Show more of the document before this")
    for _ in range(4):
        pressed = more.element_handle()
        with page.expect_response("**/v1/loam/passages/**") as answered:
            more.click()
        assert answered.value.status == 200
        pressed.wait_for_element_state("hidden")  # what came is drawn, with a button of its own
    expect(more).to_have_count(0)
    expect(passage.locator("mark")).to_contain_text("heron")


def test_a_report_is_shown_and_nothing_in_it_runs(served: Served, watched: Watched) -> None:
    folder = served.gateway.folder / "reports" / "monday"
    figure = Section(
        "Result", "Seven of ten.", figure=draw_bars(["base", "rag"], [0.2, 0.7], [0.1, 0.6], [0.3, 0.8], "right")
    )
    table = Section("By arm", "", ("arm", "right"), (("rag", Link(0.7, "rag-q1")),))
    answers = Section(
        "Answers", "", ("question", "answer"), (("q1", "45 days <b>[1]</b>"),), ("rag-q1",), is_folded=True
    )
    write_report(folder, "Monday", (figure, table, answers), {"figures": {"right": 0.7}}, (("arm",), (("rag",),)))
    hostile = (
        '<script>document.title = "run"</script><img src="https://elsewhere.example/a.png" onerror="document.title=1">'
        '<form action="https://elsewhere.example"><input name="key"></form><iframe srcdoc="x"></iframe>'
        '<p onclick="document.title=1" style="position:fixed">still here</p><a href="https://elsewhere.example">out</a>'
        "</body>"
    )
    path = folder / "report.html"
    path.write_text(path.read_text().replace("</body>", hostile))
    page = watched.page
    page.get_by_role("link", name="Verdict").click()
    page.get_by_role("link", name="monday").click()
    report = page.locator(".report")
    expect(report.locator("svg text").filter(has_text="base")).to_have_count(1)
    expect(report.get_by_text("still here")).to_be_visible()
    expect(report.locator("script, img, form, input, iframe, a[href^='http'], [onclick]")).to_have_count(0)
    report.get_by_role("link", name="0.700").click()
    row = report.locator("tr.found")
    expect(row).to_contain_text("45 days <b>[1]</b>")
    assert page.title() == "Verdict and evaluation · Loam"


def test_one_owner_sees_nothing_of_anothers(served: Served, browser: Browser) -> None:
    token = create_key(served.gateway.database, "sales")[1]
    with watched_page(browser, served.gateway.url) as watched:
        page = watched.page
        log_in(page, token)
        expect(page.get_by_role("link", name="Operations")).to_have_count(0)
        expect(page.get_by_label("Model").locator("option")).to_have_text(["helper", BASE])
        page.get_by_role("link", name="Documents").click()
        expect(page.get_by_text("No documents yet")).to_be_visible()
        page.goto(f"{served.gateway.url}/console/#/documents/acme")
        expect(page.get_by_role("alert")).to_contain_text("there is none")
        page.goto(f"{served.gateway.url}/console/#/operations")
        expect(page.get_by_role("alert")).to_contain_text("administrator")


def test_pages_are_reached_by_keyboard(served: Served, watched: Watched) -> None:
    page = watched.page
    page.get_by_role("heading", name="Ask").wait_for(state="attached")
    page.locator("body").evaluate("() => document.activeElement.blur()")
    page.keyboard.type("gd")
    expect(page.get_by_role("heading", name="Documents")).to_be_visible()
    page.keyboard.press("/")
    expect(page.get_by_label("New store")).to_be_focused()
    page.keyboard.type("gd/")
    expect(page.get_by_label("New store")).to_have_value("gd/")
    page.get_by_label("New store").blur()
    page.keyboard.type("gv")
    expect(page.get_by_role("heading", name="Verdict and evaluation")).to_be_visible()


def test_a_job_is_checked_started_and_watched_to_its_end(served: Served, watched: Watched, tmp_path: Path) -> None:
    served.gateway.script(reply=None)  # each model says what it was asked
    page = watched.page
    page.get_by_role("link", name="Fine-tune").click()
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "bad.jsonl").write_text(json.dumps(chat) + '\n{"messages": []}\n')
    (tmp_path / "good.jsonl").write_text((json.dumps(chat) + "\n") * 40)
    page.get_by_label("Training data").set_input_files(str(tmp_path / "bad.jsonl"))
    expect(page.locator(".faults tbody tr")).to_have_count(1)
    expect(page.locator(".faults tbody td").first).to_have_text("2")
    expect(page.get_by_role("button", name="Start the job")).to_have_count(0)
    page.get_by_label("Training data").set_input_files(str(tmp_path / "good.jsonl"))
    expect(page.get_by_text("no faults")).to_be_visible()
    expect(page.locator(".bar-shape")).not_to_have_count(0)
    expect(page.locator(".sample")).to_contain_text("assistant: b")
    expect(page.locator(".next")).to_contain_text("start the job")
    expect(page.locator(".estimate")).to_contain_text("1.0 GiB")
    expect(page.get_by_label("Epochs")).to_have_attribute("placeholder", "3")
    page.get_by_label("Name of the result").fill("tiny")
    page.get_by_label("Epochs").fill("2")
    page.get_by_label("Rows a step").fill("8")
    page.get_by_label("Rows a step").blur()
    steps = page.locator(".estimate .figure").filter(has_text=re.compile("steps$")).locator("b")
    expect(steps).to_have_text("10")
    page.get_by_role("button", name="Start the job").click()
    expect(page.locator(".badge.succeeded")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text("Fine-tune / tiny")
    expect(page.get_by_role("img", name="Loss by step")).to_be_visible()
    for curve in ("Learning rate by step", "Tokens a second by step", "Tokens read by step"):
        expect(page.get_by_role("img", name=curve)).to_be_visible()
    expect(page.get_by_label("Checkpoints").locator("tbody tr")).not_to_have_count(0)
    page.get_by_role("link", name="Ask it beside its base").click()
    expect(page.get_by_label("Model 1")).to_have_value(re.compile(f"ft:{BASE}:local:tiny:.+"))
    ask(page, "said by the new model")
    expect(page.locator(".answer .text").first).to_have_text("said by the new model")


def test_a_page_of_events_that_fails_leaves_no_gap(served: Served, watched: Watched) -> None:
    page = watched.page
    job = {"id": "ftjob-1", "status": "running", "model": BASE, "created_at": 1, "hyperparameters": {}, "metadata": {}}
    event = {"type": "message", "level": "info", "data": {}}
    events = [{**event, "id": f"e{number}", "created_at": 1, "message": f"Event {number}"} for number in range(251)]
    count, failures = 1, 1
    asked = list[tuple[int, bool]]()

    def answer(route: Route) -> None:
        nonlocal count, failures
        url = urlsplit(route.request.url)
        if not url.path.endswith("/events"):
            route.fulfill(json={"data": [], "has_more": False} if url.path.endswith("/checkpoints") else job)
            return
        query = parse_qs(url.query)
        after, limit = query.get("after"), int(query["limit"][0])
        if after and failures:
            failures -= 1
            route.fulfill(status=503, json={"error": {"message": "Not now.", "code": "busy"}})
            return
        end = int(after[0].removeprefix("e")) if after else count
        count = len(events)  # all but the first come between two looks
        asked.append((limit, bool(after)))
        route.fulfill(json={"data": events[max(0, end - limit) : end][::-1], "has_more": end > limit})

    page.route("**/v1/fine_tuning/jobs/ftjob-1**", answer)
    page.clock.install(time=0)
    page.clock.pause_at(60_000)
    page.goto(f"{served.gateway.url}/console/#/finetune/ftjob-1")
    expect(page.locator(".events li")).to_have_count(1)
    page.clock.run_for(700)
    expect(page.get_by_role("alert")).to_contain_text("Not now.")
    page.clock.run_for(5600)
    expect(page.locator(".events li")).to_have_count(len(events))
    assert failures == 0
    newest_first = [re.compile(f"Event {number}$") for number in range(250, -1, -1)]
    expect(page.locator(".events li")).to_have_text(newest_first)
    with page.expect_response("**/events?**"):
        page.clock.run_for(700)  # one look more: nothing is new now
    few, more = (10, False), (1000, True)  # the newest ones, and on only while all of a page are new
    assert asked[:5] == [(100, False), few, few, more, few]


def test_of_a_step_done_twice_the_later_figures_are_drawn(served: Served, watched: Watched) -> None:
    page = watched.page
    job = {"id": "ftjob-2", "status": "failed", "model": BASE, "created_at": 1, "hyperparameters": {}, "metadata": {}}
    losses = ((2, 0.5), (1, 0.7), (2, 0.9), (1, 1.5))  # the newest first: it was resumed before the first step
    events = [
        {"id": f"e{number}", "type": "metrics", "level": "info", "created_at": 1, "message": "Step",
         "data": {"step": step, "train_loss": loss}}
        for number, (step, loss) in enumerate(losses)
    ]  # fmt: skip

    def answer(route: Route) -> None:
        is_list = re.search("/(events|checkpoints)", route.request.url)
        data = events if is_list and is_list[1] == "events" else []
        route.fulfill(json={"data": data, "has_more": False} if is_list else job)

    page.route("**/v1/fine_tuning/jobs/ftjob-2**", answer)
    page.goto(f"{served.gateway.url}/console/#/finetune/ftjob-2")
    expect(page.get_by_role("img", name="Loss by step; at the end training 0.5")).to_be_visible()


def test_any_model_answers_from_chosen_documents(served: Served, watched: Watched) -> None:
    served.gateway.script(reply=FLOW)
    page = watched.page
    page.goto(f"{served.gateway.url}/console/#/ask?store=acme&model={BASE}")
    expect(page.get_by_label("acme")).to_be_checked()
    ask(page, QUESTION)
    answer = page.locator(".answer")
    expect(answer.locator("tr.cited")).to_contain_text("brook-40.md")
    answer.locator("button.mark").click()
    expect(page.get_by_role("dialog").locator("mark")).to_contain_text(FLOW)
