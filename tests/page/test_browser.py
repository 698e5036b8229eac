"""The page in a real browser: Debian's Chromium without a window, driven by Selenium; run by `make browser`."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.page.run_cases import make_run

from lorank.page.page import write_page
from lorank.page.run_folder import read_run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        shutil.which("chromium") is None or shutil.which("chromedriver") is None,
        reason="needs chromium and chromedriver: apt install chromium chromium-driver",
    ),
]
WIDTHS, SCHEMES = (390, 1440), ("light", "dark")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "one", layers=12)
    make_run(folder / "two", layers=12, seed=1)
    return write_page([read_run(folder / "one"), read_run(folder / "two")], folder / "report.html", figures=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def opened(browser: Any, page: Path, width: int = 1440, scheme: str = "light", height: int = 1000) -> Any:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    return browser


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_opens_without_an_error_and_can_be_read(browser: Any, page: Path, width: int, scheme: str) -> None:
    opened(browser, page, width, scheme)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    # Letters as they are drawn: a scaled drawing has smaller ones than its style says.
    least = browser.execute_script(
        """return Math.min(...[...document.querySelectorAll("svg text")].map((text) => {
             const matrix = text.getScreenCTM();
             return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(matrix.c, matrix.d);
           }));"""
    )
    assert least >= 9
    contrast = browser.execute_script(_CONTRAST)
    assert contrast >= 4.5
    if folder := os.environ.get("LORANK_SCREENSHOTS"):
        height = browser.execute_script("return document.documentElement.scrollHeight")
        opened(browser, page, width, scheme, height)
        browser.save_screenshot(str(Path(folder) / f"report-{width}-{scheme}.png"))


# The least contrast of a number in a map with its cell, by WCAG's relative luminance.
_CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const luminance = (colour) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  const part = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = canvas.getImageData(0, 0, 1, 1).data;
  return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
};
return Math.min(...[...document.querySelectorAll(".cell")].map((cell) => {
  const style = (part) => getComputedStyle(cell.querySelector(part)).fill;
  const [light, dark] = [luminance(style("text")), luminance(style("rect"))].sort((a, b) => b - a);
  return (light + 0.05) / (dark + 0.05);
}));
"""


@pytest.mark.parametrize("kind", ["cuts", "budgets"])
def test_the_slider_shows_the_ranks_of_its_state(browser: Any, page: Path, kind: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    maps = json.loads(browser.find_element(By.ID, "maps").get_attribute("textContent"))
    data, figure = maps[f"r0{kind}"], browser.find_element(By.ID, f"r0{kind}")
    slider = figure.find_element(By.CSS_SELECTOR, "input")
    slider.send_keys(Keys.HOME)
    for state in (0, 1):
        shown = [int(cell.text.replace("·", "0")) for cell in figure.find_elements(By.CSS_SELECTOR, ".cell text")]
        assert shown == data["states"][state]
        assert figure.find_element(By.CSS_SELECTOR, "output").text == data["labels"][state]
        sums = [int(text.text.replace("·", "0")) for text in figure.find_elements(By.CSS_SELECTOR, ".sum[data-row]")]
        assert sum(sums) == sum(shown)
        assert slider.get_attribute("aria-valuetext") == data["labels"][state]
        slider.send_keys(Keys.ARROW_RIGHT)
    assert browser.get_log("browser") == []


def test_cells_are_told_by_pointer_and_by_keys(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    figure = browser.find_element(By.ID, "r0ranks")
    told, cells = browser.find_element(By.ID, "r0ranks-told"), figure.find_elements(By.CSS_SELECTOR, ".cell")
    ActionChains(browser).move_to_element(cells[9]).perform()
    assert told.text == cells[9].get_attribute("aria-label")
    cells[0].click()
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert told.text == cells[8].get_attribute("aria-label")  # one layer down, one projection on
    assert told.text.startswith("layer 1, k_proj: rank ")
    # One stop of the tab key for each map, whichever cell was last.
    assert [cell.get_attribute("tabindex") for cell in cells].count("0") == 1


def test_everything_that_can_be_used_has_a_name(browser: Any, page: Path) -> None:
    opened(browser, page)
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    seen = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    for role in ("slider", "image", "img", "region", "heading", "columnheader"):
        assert all(name for one, name in seen if one == role)
    assert sum(role == "slider" for role, _ in seen) == 4
    assert sum(role in ("image", "img") for role, _ in seen) >= 8 * 84
