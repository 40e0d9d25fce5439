"""A headless Chromium for tests that look at pages."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-dev-shm-usage",
    "disable-quic",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "no-first-run",
    "window-size=1280,900",
)
# How many pixels of a canvas are painted.
PAINTED = """
const canvas = document.querySelector("canvas");
if (!canvas || !canvas.width || !canvas.height) return 0;
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
let painted = 0;
for (let i = 3; i < pixels.length; i += 4) painted += pixels[i] > 0;
return painted;
"""


# What is raised while a page is being changed.
PASSING = ("StaleElementReference", "NoSuchElement", "NoSuchFrame", "Javascript")
# Asked in one piece, so that a page which changes meanwhile takes nothing away.
VISIBLE = "[...document.querySelectorAll(arguments[0])].filter(one => one.getClientRects().length)"


class Browser:
    """What tests do with a browser.

    Args:
        driver: Selenium's.
    """

    def __init__(self, driver: Any):
        self.driver = driver

    def open(self, address: str | Path) -> None:
        """Go to a page, by its address or as a file, and forget what others wrote to the console."""
        self.driver.get(address.as_uri() if isinstance(address, Path) else address)
        self.driver.get_log("browser")

    def all(self, selector: str) -> list[Any]:
        """The visible elements of a CSS selector."""
        return self.driver.execute_script(f"return {VISIBLE}", selector)

    def texts(self, selector: str) -> list[str]:
        """What each visible element of a CSS selector says."""
        return self.driver.execute_script(f"return {VISIBLE}.map(one => one.innerText)", selector)

    def text(self, selector: str) -> str:
        """What the visible elements of a CSS selector say."""
        return "\n".join(self.texts(selector))

    def wait(self, condition: Callable[[], Any], seconds: float = 60) -> Any:
        """Wait until something is so, and give it; elements that the page has just replaced are looked up again."""
        from selenium.common import exceptions
        from selenium.webdriver.support.wait import WebDriverWait

        passing = [getattr(exceptions, f"{name}Exception") for name in PASSING]
        return WebDriverWait(self.driver, seconds, 0.1, passing).until(lambda _: condition())

    def painted(self, frame: str | None = None) -> int:
        """Painted pixels of the canvas, in the page or in a frame of it."""
        if frame is None:
            return self.driver.execute_script(PAINTED)
        self.driver.switch_to.frame(self.driver.find_element("css selector", frame))
        try:
            return self.driver.execute_script(PAINTED)
        finally:
            self.driver.switch_to.default_content()

    def errors(self) -> list[str]:
        """What the console tells as errors since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@contextmanager
def headless_browser(folder: Path) -> Iterator[Browser]:
    """Start a browser with an empty profile.

    Args:
        folder: For the profile.
    """
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no browser: `make browser` installs chromium and chromium-driver (Debian, as root)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"user-data-dir={folder}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Browser(started)
    finally:
        started.quit()
