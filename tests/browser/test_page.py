"""The page of a run in a real Chromium, as a reader meets it: phone, desktop, dark, paper, keys.

Screenshots are kept in pytest's temporary folder (`--basetemp` names it).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_samples import write_run
from tiny_runs import LONG, QUOTES, SCRIPT, TASKS

from kswap.report.page import draw_report

pytestmark = pytest.mark.slow  # `make test-browser` runs them
CHROMIUM = Path(os.environ.get("KSWAP_CHROMIUM", "/usr/bin/chromium"))
ARGUMENTS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE_MS = 300_000
"""Test machines may be busy; what is checked does not depend on time."""
CONTRASTS = Path(__file__).with_name("contrasts.js").read_text()
VIEWS = {
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
    "desktop": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        if "KSWAP_NEEDS_BROWSER" in os.environ:
            pytest.fail(f"{CHROMIUM} is missing")
        pytest.skip(f"no browser at {CHROMIUM}; `make test-browser` installs it")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(
            executable_path=str(CHROMIUM), args=ARGUMENTS, timeout=PATIENCE_MS
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module", params=TASKS)
def page_path(request, tmp_path_factory) -> Path:
    return draw_report(write_run(tmp_path_factory.mktemp("page") / request.param, request.param))


def open_page(browser: Any, path: Path, **view: Any) -> tuple[Any, list[str]]:
    """Return the opened page, and a list that what goes wrong is written to."""
    page = browser.new_context(**view).new_page()
    page.set_default_timeout(PATIENCE_MS)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url[:80]}"))

    def requested(request: Any) -> None:
        if not request.url.startswith("data:image/") and request.url != path.as_uri():
            wrong.append(f"request: {request.url[:80]}")

    page.on("request", requested)
    page.goto(path.as_uri())
    return page, wrong


@pytest.mark.parametrize("view", VIEWS)
def test_it_opens_without_a_fault(browser, page_path, view):
    page, wrong = open_page(browser, page_path, **VIEWS[view])
    page.screenshot(path=page_path.parent / f"{view}.png", full_page=True, timeout=PATIENCE_MS)
    pictures = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert pictures
    assert all(pictures)
    assert page.evaluate("document.scripts.length") == 0
    width, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= inner, "it scrolls sideways"
    shown = page.inner_text("main")
    for name in (SCRIPT, QUOTES, LONG):
        assert name in shown
    assert page.evaluate(CONTRASTS) == []
    assert wrong == []
    page.context.close()


def test_its_first_screen_on_a_desktop_holds_scores_verdict_and_warnings(browser, page_path):
    page, _ = open_page(browser, page_path, **VIEWS["desktop"])
    bottom = page.evaluate(
        "Math.max(...[...document.querySelectorAll('.card.learn, .card.forget, .card.retain')]"
        ".map(e => e.getBoundingClientRect().bottom))"
    )
    assert bottom < 900
    top = page.evaluate("document.querySelector('.warning').getBoundingClientRect().top")
    assert top < 900
    page.context.close()


def test_it_can_be_printed(browser, page_path):
    page, wrong = open_page(browser, page_path, **VIEWS["dark"])
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(CONTRASTS) == []
    page.pdf(path=page_path.parent / "print.pdf", format="A4")
    assert (page_path.parent / "print.pdf").read_bytes().startswith(b"%PDF")
    assert wrong == []
    page.context.close()


def test_it_can_be_used_by_keyboard(browser, page_path):
    page, _ = open_page(browser, page_path, **VIEWS["desktop"])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    page.wait_for_url("**#scores", timeout=10_000)  # the browser goes there in its own time
    page.focus("#losses ~ .charts summary")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.parentElement.open")
    page.context.close()
