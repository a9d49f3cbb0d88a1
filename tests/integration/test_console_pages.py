"""Every page of the console at a desk's and a telephone's width, light and dark: nothing sticks out, nothing fails, and
axe-core finds no barrier.

With LOAM_SCREENSHOTS=DIR it writes what it saw there (make screenshots).
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

pytest.importorskip("playwright", reason="wanted Playwright (the dev extra), found none; the console was not looked at")

from playwright.sync_api import Browser, Page, expect

from core.layout import DataDir
from evaluation.report import Link, Section, draw_bars, write_report
from retrieval.config import ChunkingConfig, ParsingConfig
from retrieval.ingest import ingest
from retrieval.searcher import Searcher
from serve.answering import AssistantConfig
from serve.keys import create_key
from tests.browser import CHROMIUM, MISSING, Served, Theme, ask, find_barriers, log_in, watched_page
from tests.fakes.engine import BASE
from tests.fakes.gateway import ALIAS, running_gateway
from tests.fakes.hash_embedder import HashEmbedder

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)

DOCUMENTS = Path(__file__).resolve().parents[2] / "examples" / "acme" / "documents"
SHAPES: dict[str, tuple[int, int, Theme, Theme]] = {
    "desk": (1280, 860, "light", "dark"),
    "phone": (390, 844, "dark", "light"),
}
"""Width, height, the theme that is looked at as a whole, and the other one, which differs by its colours alone."""
HAS_ALL_IN_SIGHT = """[...document.querySelectorAll(".files, .hits")].every(
    ({ parentElement: scrolled }) => scrolled.scrollWidth <= scrolled.clientWidth)"""
"""Files with what can be done to them, and passages with their ranks, are read without scrolling sideways."""
QUESTION = "Within how many days of delivery can a customer return a product?"
REPLY = (
    "Thank you for asking. A customer can return a product within 45 days of delivery. "
    "A new pump needs no registration for that."
)


@dataclass(frozen=True, slots=True)
class Company(Served):
    """A gateway with the example company's documents, an administrator's key, and a guest's who has nothing yet."""

    store: str
    guest: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    """One gateway for all pages."""
    folder, source = tmp_path_factory.mktemp("pages"), tmp_path_factory.mktemp("source")
    for path in sorted(DOCUMENTS.glob("*.md")):
        shutil.copy(path, source)
    data = DataDir(folder)
    sizes, parsing = ChunkingConfig(max_tokens=160, overlap_tokens=0), ParsingConfig()
    ingest(data, "acme-handbook", source, embedder=HashEmbedder(), chunking=sizes, parsing=parsing)
    for name, success, latency_s in (("monday", 0.71, 1.9), ("tuesday", 0.83, 2.2)):
        write_sample_report(folder / "reports" / name, success, latency_s)
    assistants = {"acme-support": AssistantConfig(model=ALIAS, stores=["acme-handbook"], k=3, min_score=-1)}
    searcher = Searcher(data, make_embedder=HashEmbedder)
    try:
        with running_gateway(folder, assistants=assistants, stores=searcher, trains=True) as gateway:
            token = create_key(gateway.database, "local", is_admin=True)[1]
            yield Company(gateway, token, "acme-handbook", create_key(gateway.database, "guest")[1])
    finally:
        searcher.close()


def write_sample_report(folder: Path, success: float, latency_s: float) -> None:
    """Write a report of two figures as an evaluation would, with the answers behind them."""
    figure = draw_bars(
        ["base", "rag"], [0.2, success], [0.1, success - 0.1], [0.3, success + 0.1], "answered as demanded"
    )
    rows = (("base", 0.2, 1.4), ("rag", Link(success, "rag-q1"), latency_s))
    answers = Section("Answers", "", ("question", "answer"), ((QUESTION, REPLY),), ("rag-q1",), is_folded=True)
    sections = [
        Section(
            "Result",
            "Of 67 questions, asked once each.",
            ("arm", "answered as demanded", "seconds"),
            rows,
            figure=figure,
        ),
        answers,
    ]
    values = {"figures": {"success": success, "latency_s_p50": latency_s}}
    write_report(folder, f"Evaluation of {folder.name}", sections, values, (("arm", "right"), (("rag", success),)))


def show_login(page: Page, served: Company) -> None:
    expect(page.get_by_label("API key")).to_be_visible()


def open_page(page: Page, served: Company, route: str, token: str | None = None) -> None:
    log_in(page, token or served.token)
    page.evaluate("route => { location.hash = `#/${route}`; }", route)


def show_answer(page: Page, served: Company) -> None:
    served.gateway.script(reply=REPLY)
    open_page(page, served, "ask?model=acme-support")
    page.get_by_label("Question", exact=True).fill(QUESTION)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".answer button.mark")).to_have_count(1)


def show_comparison(page: Page, served: Company) -> None:
    served.gateway.script(reply=REPLY)
    open_page(page, served, f"ask?model=acme-support&model={BASE}")
    page.get_by_label("Question", exact=True).fill(QUESTION)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".answer .text[aria-busy]")).to_have_count(0)


def show_passage(page: Page, served: Company) -> None:
    show_answer(page, served)
    page.locator(".answer button.mark").click()
    expect(page.get_by_role("dialog").locator("mark")).to_be_visible()


def show_stores(page: Page, served: Company) -> None:
    open_page(page, served, "documents")
    expect(page.get_by_role("link", name="acme-handbook")).to_be_visible()


def show_store(page: Page, served: Company) -> None:
    open_page(page, served, f"documents/{served.store}?q=return+a+product")
    expect(page.locator(".hits tbody tr").first).to_be_visible()


def upload_chats(served: Company, *more: str) -> str:
    """Upload training chats of the example company; return the file's id."""
    chats = (DOCUMENTS.parent / "chats_train.jsonl").read_text().splitlines()[:40]
    content = "\n".join([*chats, *more]).encode()
    return served.gateway.client(served.token).files.create(file=("chats.jsonl", content), purpose="fine-tune").id


def show_training(page: Page, served: Company) -> None:
    file_id = upload_chats(served, json.dumps({"messages": [{"role": "user", "content": "no answer"}]}))
    open_page(page, served, "finetune")
    page.get_by_label("or one uploaded before").select_option(file_id)
    expect(page.locator(".faults tbody tr")).to_have_count(1)


def show_settings(page: Page, served: Company) -> None:
    file_id = upload_chats(served)
    open_page(page, served, "finetune")
    page.get_by_label("or one uploaded before").select_option(file_id)
    expect(page.get_by_role("button", name="Start the job")).to_be_visible()
    expect(page.locator(".estimate .figure")).to_have_count(4)


def show_job(page: Page, served: Company) -> None:
    jobs = served.gateway.client(served.token).fine_tuning.jobs
    hyperparameters = {"n_epochs": 4, "batch_size": 4}
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    chats, held_out = upload_chats(served), upload_chats(served)
    job = jobs.create(
        model=BASE, training_file=chats, validation_file=held_out, suffix="helpdesk", method=cast("Any", method)
    )
    open_page(page, served, f"finetune/{job.id}")
    expect(page.locator(".badge.succeeded")).to_be_visible()


def show_use(page: Page, served: Company) -> None:
    """A job without held-out rows: both models are asked now, and the new one gets a name and documents."""
    jobs = served.gateway.client(served.token).fine_tuning.jobs
    job = jobs.create(model=BASE, training_file=upload_chats(served), suffix="desk")
    served.gateway.script(reply=REPLY)
    open_page(page, served, f"finetune/{job.id}")
    expect(page.locator(".badge.succeeded")).to_be_visible()
    page.get_by_role("button", name="Ask both the first training question").click()
    expect(page.get_by_label("Samples").locator(".text")).to_have_count(2)
    page.get_by_role("button", name="Give the name").click()
    expect(page.locator("form .next")).to_be_visible()


def show_names(page: Page, served: Company) -> None:
    given = {"name": "support", "model": BASE, "vector_store_ids": [served.store]}
    headers = {"authorization": f"Bearer {served.token}"}
    httpx.post(f"{served.gateway.url}/v1/loam/assistants", json=given, headers=headers).raise_for_status()
    open_page(page, served, "finetune")
    names = page.get_by_label("Names", exact=True)
    expect(names.get_by_role("link", name="support")).to_be_visible()
    names.scroll_into_view_if_needed()


def show_assistant_form(page: Page, served: Company) -> None:
    open_page(page, served, f"documents/{served.store}")
    page.get_by_text("Make an assistant of it").click()
    expect(page.get_by_label("Model that answers")).to_be_visible()


def show_first_steps(page: Page, served: Company) -> None:
    open_page(page, served, f"ask?model={BASE}", served.guest)
    expect(page.get_by_text("From nothing to cited answers")).to_be_visible()


def show_no_documents(page: Page, served: Company) -> None:
    open_page(page, served, "documents", served.guest)
    expect(page.get_by_text("No documents yet")).to_be_visible()


def show_no_jobs(page: Page, served: Company) -> None:
    open_page(page, served, "finetune", served.guest)
    expect(page.get_by_text("No jobs yet")).to_be_visible()


def show_no_reports(page: Page, served: Company) -> None:
    open_page(page, served, "reports", served.guest)
    expect(page.get_by_text("No reports yet")).to_be_visible()


def show_reports(page: Page, served: Company) -> None:
    said = {
        "rating": "up",
        "model": "acme-support",
        "question": QUESTION,
        "answer": REPLY,
        "comment": "right, and short",
    }
    headers = {"authorization": f"Bearer {served.token}"}
    httpx.post(f"{served.gateway.url}/v1/loam/feedback", json=said, headers=headers).raise_for_status()
    open_page(page, served, "reports")
    expect(page.get_by_role("link", name="monday")).to_be_visible()


def show_compared_reports(page: Page, served: Company) -> None:
    open_page(page, served, "reports/monday?with=tuesday")
    expect(page.get_by_role("row", name="figures / success")).to_contain_text("+0.12")


def show_report(page: Page, served: Company) -> None:
    open_page(page, served, "reports/tuesday")
    expect(page.locator(".report svg text").filter(has_text="rag")).to_be_visible()


def show_operations(page: Page, served: Company) -> None:
    open_page(page, served, "operations")
    page.get_by_role("button", name="Examine the data directory").click()
    expect(page.get_by_label("Doctor").locator(".badge")).to_be_visible()
    page.evaluate("scrollTo(0, 0)")


def show_refusal(page: Page, served: Company) -> None:
    page.get_by_label("API key").fill("loam-wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_be_visible()


def show_fault(page: Page, served: Company) -> None:
    """An answer that the engine does not bring to its end."""
    served.gateway.script(reply=REPLY, error_after=4)
    open_page(page, served, f"ask?model={BASE}")
    ask(page, QUESTION)
    expect(page.locator(".answer").get_by_role("alert")).to_be_visible()
    served.gateway.script(error_after=None)


def show_missing(page: Page, served: Company) -> None:
    open_page(page, served, "documents/none-such")
    expect(page.get_by_role("alert")).to_contain_text("there is none")


PAGES = {
    "login": show_login, "refusal": show_refusal, "fault": show_fault, "missing": show_missing,
    "answer": show_answer, "comparison": show_comparison, "passage": show_passage,
    "stores": show_stores, "store": show_store, "training": show_training, "settings": show_settings,
    "job": show_job, "use": show_use, "names": show_names, "assistant": show_assistant_form, "reports": show_reports,
    "report": show_report, "compared-reports": show_compared_reports, "operations": show_operations,
    "first-steps": show_first_steps, "no-documents": show_no_documents, "no-jobs": show_no_jobs,
    "no-reports": show_no_reports,
}  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_window_and_bars_nobody(served: Company, browser: Browser, name: str) -> None:
    folder = os.environ.get("LOAM_SCREENSHOTS")
    with watched_page(browser, served.gateway.url) as watched:
        page = watched.page
        PAGES[name](page, served)
        for shape, (width, height, theme, other) in SHAPES.items():
            page.set_viewport_size({"width": width, "height": height})
            use_theme(page, theme)
            if folder:
                page.screenshot(path=Path(folder) / f"{name}-{shape}.png")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, shape
            assert page.evaluate(HAS_ALL_IN_SIGHT), shape
            assert find_barriers(page) == [], shape
            use_theme(page, other)
            assert find_barriers(page, only="color-contrast") == [], f"{shape}, {other}"


def use_theme(page: Page, theme: Theme) -> None:
    """Let the browser ask for a theme, as a person's system does."""
    page.emulate_media(color_scheme=theme)
    page.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)
    page.evaluate("new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))")  # drawn, and measured


def test_the_description_of_the_interface_is_readable_in_the_dark(served: Company, browser: Browser) -> None:
    with watched_page(browser, served.gateway.url, theme="dark") as watched:
        watched.page.goto(f"{served.gateway.url}/docs")
        assert find_barriers(watched.page, only="color-contrast") == []
