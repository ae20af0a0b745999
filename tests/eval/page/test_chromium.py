"""report.html in a real browser: it renders on a phone and a desk, by day and by night, without a word of complaint."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gqa.eval.page.palette import CARD, INK, PAGE

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs Debian's chromium and chromium-driver (apt-get install)"
)
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
PHONE, DESK = 390, 1280
REPORTS = ("real", "whole", "hostile", "many")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser with a profile of its own, for all tests here."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = str(BROWSER)
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(executable_path=str(DRIVER)))
    driver.set_page_load_timeout(300)
    driver.set_script_timeout(300)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened(
    browser: Any, request: pytest.FixtureRequest, page_of: Callable[[dict[str, Any]], str], tmp_path_factory: Any
) -> Callable[..., Any]:
    """Opens a report from disk, in a window so wide, by day or by night; returns the browser."""
    folder = tmp_path_factory.mktemp("pages")

    def open_it(name: str, width: int = DESK, *, scheme: str = "light") -> Any:
        page = folder / f"{name}.html"
        if not page.exists():
            page.write_text(page_of(request.getfixturevalue(name)), encoding="utf-8", errors="backslashreplace")
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width == PHONE},
        )
        browser.get(page.as_uri())
        return browser

    return open_it


@pytest.mark.parametrize("name", REPORTS)
def test_it_renders_without_an_error_or_a_request(opened, name: str):
    browser = opened(name)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.querySelectorAll('svg.chart').length") > 0
    shown = "[...document.querySelectorAll('svg.chart, table, .card')].filter(each => !each.closest('details'))"
    boxes = browser.execute_script(f"return {shown}.map(each => each.getBoundingClientRect())")
    assert min(min(box["width"], box["height"]) for box in boxes) > 50
    asked = "return performance.getEntriesByType('resource').map(e => e.name)"
    assert [each for each in browser.execute_script(asked) if not each.startswith("data:")] == []


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("name", REPORTS)
def test_the_page_does_not_scroll_sideways(opened, name: str, width: int):
    browser = opened(name, width)
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.execute_script("return window.innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    beyond = """
        return [...document.body.querySelectorAll('*')]
            .filter(each => !each.closest('.scroll, svg, .hidden, .skip, legend') && !each.matches('input'))
            .filter(each => each.getBoundingClientRect().right > window.innerWidth + 1).map(each => each.outerHTML)
    """
    assert browser.execute_script(beyond) == []


def test_letters_of_pictures_can_be_read_on_a_phone(opened):
    browser = opened("whole", PHONE)
    heights = browser.execute_script(
        "return [...document.querySelectorAll('svg.chart text')].map(each => each.getBoundingClientRect())"
        ".map(box => Math.min(box.width, box.height))"
    )
    assert min(height for height in heights if height) >= 5  # of the narrowest digit; a line is about 11


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_system_by_day_and_by_night(opened, scheme: str):
    browser = opened("whole", scheme=scheme)
    assert colour(browser, "html", "backgroundColor") == rgb(getattr(PAGE, scheme))
    assert colour(browser, "body", "color") == rgb(getattr(INK, scheme))
    assert colour(browser, ".card", "backgroundColor") == rgb(getattr(CARD, scheme))
    filled = colour(browser, "#by-bytes-line-0 use", "fill")
    assert filled == rgb({"light": "#0072b2", "dark": "#5db5ea"}[scheme])


@pytest.mark.parametrize(("system", "chosen"), [("light", "dark"), ("dark", "light")])
def test_a_reader_may_choose_otherwise(opened, system: str, chosen: str):
    from selenium.webdriver.common.by import By

    browser = opened("real", scheme=system)
    browser.find_element(By.CSS_SELECTOR, f"label[for=theme-{chosen}]").click()
    assert colour(browser, "html", "backgroundColor") == rgb(getattr(PAGE, chosen))
    browser.find_element(By.CSS_SELECTOR, "label[for=theme-auto]").click()
    assert colour(browser, "html", "backgroundColor") == rgb(getattr(PAGE, system))


def test_nothing_of_a_hostile_report_runs(opened):
    browser = opened("hostile")
    assert browser.execute_script("return document.scripts.length") == 1
    assert browser.execute_script("return document.images.length") == 0
    labels = browser.execute_script("return [...document.querySelectorAll('.card h3')].map(each => each.textContent)")
    assert all("<script>alert(1)</script><img src=x onerror=alert(2)>" in label for label in labels)


def test_the_numbers_inside_can_be_read_by_a_program(opened, whole):
    browser = opened("whole")
    assert browser.execute_script("return JSON.parse(document.getElementById('report').textContent)") == whole


def test_the_names_that_a_screen_reader_says(opened):
    """By Chromium's own accessibility tree."""
    browser = opened("whole")
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    images = [node for node in nodes if node.get("role", {}).get("value") in ("image", "img")]
    pictures = browser.execute_script("return document.querySelectorAll('svg.chart').length")
    assert len(images) == pictures
    assert all(node["name"]["value"] for node in images)
    regions = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "region"]
    assert {"Results", "In pictures", "How it was measured"} <= set(regions)


def test_it_can_be_printed(opened, tmp_path: Path):
    printed = opened("whole").execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert len(printed) > 10_000


def colour(browser: Any, selector: str, name: str) -> str:
    return browser.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, name
    )


def rgb(value: str) -> str:
    return f"rgb({', '.join(str(int(value[place : place + 2], 16)) for place in (1, 3, 5))})"
