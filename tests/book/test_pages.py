"""The built pages, opened from disk in a browser: no error, no network, readable on a phone and in the dark."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
# Pages that Sphinx makes itself are opened too (search, index of names); mere redirections are not.
PAGES = sorted(
    page.relative_to(HTML).as_posix()
    for page in HTML.rglob("*.html")
    if "_static" not in page.parts and 'http-equiv="Refresh"' not in page.read_text(encoding="utf-8")[:300]
)
INSTALLED = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


def chromium() -> str | None:
    """Return the path of an installed Chromium: $CHROMIUM, one on the PATH, or one where systems put it."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    on_path = [shutil.which(name) for name in names]
    found = [os.environ.get("CHROMIUM"), *on_path, *(path for path in INSTALLED if Path(path).exists())]
    return next((path for path in found if path), None)


def unavailable(reason: str) -> None:
    """Skip on a contributor's machine, fail where everything must run."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all pages; it has no network to reach."""
    path = chromium()
    if path is None:
        unavailable("no Chromium found: install one, or name it in the variable CHROMIUM")
    if not PAGES:
        unavailable("the book is not built: run nox -s book first")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


class Visit:
    """A page opened in a fresh context, with what the browser complained about."""

    def __init__(self, browser: Any, name: str) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        path, _, query = name.partition("?")
        self.page.goto((HTML / path).as_uri() + (f"?{query}" if query else ""))
        self.page.wait_for_load_state("load")
        self.page.evaluate("() => window.MathJax?.startup?.promise")  # formulas are set when it resolves

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[[str], Visit]]:
    """Open pages and close them after the test."""
    opened: list[Visit] = []

    def open_page(name: str) -> Visit:
        opened.append(Visit(browser, name))
        return opened[-1]

    yield open_page
    for one in opened:
        one.context.close()


@pytest.fixture(scope="module", params=PAGES or ["not built"])
def opened(browser: Any, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """Each page of the book, loaded once for all the tests that look at it."""
    one = Visit(browser, request.param)
    yield one
    one.context.close()


def test_opens_without_complaint_or_network(opened):
    """Nothing is logged as an error, nothing fails to load, nothing is asked of the network."""
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_formulas_are_set(opened):
    """Every formula of the page has become a MathJax element, none is an error, no dollar sign is left over."""
    without_math = opened.page.locator("article .math:not(:has(mjx-container))").count()
    assert without_math == 0
    # MathJax marks wrong syntax as an error and writes a macro it does not know in red.
    assert opened.page.locator("article mjx-merror, article mjx-mtext[style*='color: red']").count() == 0
    prose = opened.page.evaluate(
        "() => [...document.querySelectorAll('article p, article li, article figcaption')]"
        ".filter(e => !e.querySelector('code, pre')).map(e => e.innerText).join('\\n')"
    )
    assert re.findall(r"\$|\\\(|\\\[|\{(?:eq|ref|numref|cite)[:\w]*\}`", prose) == []


def test_follows_the_dark_mode_of_the_system(opened):
    """With a dark system the page has light text on a dark ground, and with a light one the reverse."""
    brightness = (
        "['backgroundColor', 'color'].map(what => getComputedStyle(document.body)[what]"
        ".match(/[\\d.]+/g).slice(0, 3).map(Number).reduce((a, b) => a + b) / 3)"
    )
    for scheme, condition in (("dark", "ground < 60 && text > 150"), ("light", "ground > 200 && text < 120")):
        opened.page.emulate_media(color_scheme=scheme)
        opened.page.wait_for_function(
            f"() => {{ const [ground, text] = {brightness}; return {condition}; }}", timeout=15_000
        )


def test_fits_a_phone(opened):
    """At 390 px wide nothing pushes the page sideways: wide things scroll inside their own box."""
    opened.page.set_viewport_size({"width": 390, "height": 844})
    opened.page.wait_for_timeout(100)  # the theme moves its sidebars
    too_wide = (
        "() => { const scrolls = e => { for (; e && e.tagName !== 'ARTICLE'; e = e.parentElement)"
        " if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX)) return true; };"
        " return [...document.querySelectorAll('article *')].filter(e => e.getBoundingClientRect().right > 391"
        " && !scrolls(e.parentElement)).map(e => e.tagName + '.' + e.className).slice(0, 5); }"
    )
    widths = "() => [document.documentElement.scrollWidth, document.body.scrollWidth]"
    # The theme clips what sticks out of the article, so the widths alone would not tell.
    assert opened.page.evaluate(too_wide) == []
    assert max(opened.page.evaluate(widths)) <= 390


def test_search_finds_a_word(visit):
    """The search page, without a server, lists pages for a word of the book and none for a non-word."""
    one = visit("search.html?q=task")
    one.page.locator("#search-results li").first.wait_for(timeout=20_000)
    assert one.page.locator("#search-results li a").count() >= 1
    none = visit("search.html?q=zzqqxxnone")
    none.page.locator("#search-results p").first.wait_for(timeout=20_000)
    none.page.wait_for_function("() => /did not match/.test(document.querySelector('#search-results').innerText)")
    assert none.page.locator("#search-results li").count() == 0


def test_slider_moves_with_the_keyboard(visit):
    """Where a page has a slider, the arrow key shows the next frame and hides the last."""
    with_slider = [name for name in PAGES if 'class="book-slider"' in (HTML / name).read_text(encoding="utf-8")]
    assert with_slider
    page = visit(with_slider[0]).page
    box = page.locator(".book-slider").first
    shown = "e => [...e.querySelectorAll('.frame')].map(f => f.hidden ? 0 : 1)"
    before = box.evaluate(shown)
    box.locator("input").focus()
    page.keyboard.press("ArrowRight" if before.index(1) < len(before) - 1 else "ArrowLeft")
    after = box.evaluate(shown)
    assert sum(before) == sum(after) == 1
    assert abs(after.index(1) - before.index(1)) == 1
    assert box.locator("output").inner_text() == box.locator("ol > li").nth(after.index(1)).text_content()
