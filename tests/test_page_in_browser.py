"""The page as people meet it: in headless Chromium, by eye, keyboard and screen reader (axe-core)."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import missing
from tests.imports import ROOT

PAGES = [ROOT / "reports" / "index.html"]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        missing("Debian's package chromium")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=ARGUMENTS, timeout=120_000)
        yield opened
        opened.close()


def open_page(browser: Browser, file: Path, width: int, scheme: str) -> tuple[Page, list[str]]:
    """The page with everything unfolded, and what its console said."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    page.set_default_timeout(120_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    page.goto(file.as_uri())
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    return page, said


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.parent.name)
@pytest.mark.parametrize(("width", "scheme"), [(1200, "dark"), (380, "light")])
def test_the_page_is_whole_and_accessible(browser: Browser, file: Path, width: int, scheme: str) -> None:
    page, said = open_page(browser, file, width, scheme)
    assert not said
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
    broken = """async () => {
      for (const one of document.images) one.loading = "eager";
      await Promise.all([...document.images].map(one => one.decode().catch(() => null)));
      return [document.images.length, [...document.images].filter(one => !one.naturalWidth || !one.alt).length];
    }"""
    count, lost = page.evaluate(broken)
    assert count > 3 and lost == 0
    found = Axe().run(page).response["violations"]
    assert not found, "; ".join(f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in found)
    page.context.close()


def test_tables_sort_by_keyboard_and_themes_switch(browser: Browser) -> None:
    page, _ = open_page(browser, PAGES[0], 1200, "light")
    values = """() => [...document.querySelectorAll('#run table')[0].tBodies[0].rows].map(
      row => Number(row.cells[2].textContent.match(/[-+]?[\\d.]+/)[0]))"""
    head = page.locator("#run table").first.locator("thead th").nth(2)
    for key, name in (("Enter", "descending"), ("Space", "ascending")):
        head.locator("button").focus()
        page.keyboard.press(key)
        assert head.get_attribute("aria-sort") == name
        assert page.evaluate(values) == sorted(page.evaluate(values), reverse=name == "descending")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(ground) != before and page.get_by_role("button", name="Light").is_visible()
    page.context.close()


def test_a_link_to_a_folded_part_opens_it_and_the_gallery_shows_one_class(browser: Browser) -> None:
    page = browser.new_page()
    page.goto(PAGES[0].as_uri() + "#deviations")
    assert page.locator("#deviations > details").get_attribute("open") is not None
    choice = page.locator("#class-choice")
    if choice.count():
        name = page.locator("#class-choice option").nth(1).text_content()
        choice.select_option(name)
        cards = page.locator(".card:visible")
        assert cards.count() >= 1 and {one.get_attribute("data-class") for one in cards.all()} == {name}
    page.close()
