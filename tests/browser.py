"""A real browser for tests of the console: Debian's Chromium, driven by Playwright, watched while it is used.

Whoever uses it learns at the end whether the page asked another host for anything, broke its own security policy, or
logged an error. Chromium cannot resolve any name here, so that nothing it does by itself leaves the machine either.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.fakes.gateway import RunningGateway

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE_MS = 60_000
"""What is not about time may take so long on a slow machine; it costs nothing where it comes at once."""
Theme = Literal["light", "dark"]
MISSING = "wanted Chromium (apt install chromium), found none; the console was not looked at"
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@dataclass(frozen=True, slots=True)
class Served:
    """A gateway whose console is looked at, and the key that is typed in there."""

    gateway: RunningGateway
    token: str


@dataclass  # without slots: Playwright writes on whose methods it is handed
class Watched:
    """A page, and what it did that it should not do.

    Attributes:
        page: Playwright's page.
        foreign: URLs of other hosts that it asked for.
        errors: What it logged as errors, and exceptions that nobody caught.
    """

    page: Page
    host: str
    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def note_request(self, request: Request) -> None:
        """Remember a request that left."""
        parts = urlsplit(request.url)
        if parts.scheme not in {"blob", "data"} and parts.netloc != self.host:
            self.foreign.append(request.url)

    def note_message(self, message: ConsoleMessage) -> None:
        """Remember an error; the browser's own line about an answer of 4xx is none of the page's."""
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.errors.append(message.text)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run Chromium for the time of the block."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS, timeout=2 * PATIENCE_MS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def watched_page(
    browser: Browser, url: str, *, width: int = 1280, height: int = 900, theme: Theme = "light"
) -> Iterator[Watched]:
    """Open a page in a profile of its own; fail at the end if it did what it should not."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme, locale="en-GB")
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    watched = Watched(page, urlsplit(url).netloc)
    page.on("request", watched.note_request)
    page.on("console", watched.note_message)
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    try:
        page.goto(f"{url}/console")
        yield watched
        assert watched.foreign == []
        assert watched.errors[:3] == []
    finally:
        context.close()


def log_in(page: Page, token: str) -> None:
    """Type a key and wait for the console."""
    page.get_by_label("API key").fill(token)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("navigation", name="Pages")).to_be_visible()


def ask(page: Page, question: str) -> None:
    """Type a question and send it."""
    page.get_by_label("Question", exact=True).fill(question)
    page.keyboard.press("Enter")


def wait_for(page: Page, happened: Callable[[], object]) -> None:
    """Wait for what a handler of the test's own notes, for which no `expect` waits."""
    while not happened():
        page.wait_for_timeout(10)


def find_barriers(page: Page, *, only: str | None = None) -> list[str]:
    """Return what axe-core finds that bars people with some impairment from a page as it stands now.

    Args:
        page: What is looked at.
        only: The one rule that is asked; None: all of them.
    """
    from axe_playwright_python.sync_playwright import Axe

    rules = {"runOnly": {"type": "rule", "values": [only]}} if only else {}
    found = Axe().run(page, options={"resultTypes": ["violations"], **rules})
    return [
        f"{one['id']} ({one['impact']}): {node['html'][:200]}: {node['failureSummary'][:300]}"
        for one in found.response["violations"]
        for node in one["nodes"]
    ]
