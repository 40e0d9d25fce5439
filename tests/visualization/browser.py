"""A headless Chromium for tests of pages."""

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
# Counts painted pixels of a canvas.
PAINTED = """
const canvas = document.querySelector("canvas");
if (!canvas || !canvas.width || !canvas.height) return 0;
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
let painted = 0;
for (let i = 3; i < pixels.length; i += 4) painted += pixels[i] > 0;
return painted;
"""


# Errors raised while a page changes.
PASSING = ("StaleElementReference", "NoSuchElement", "NoSuchFrame", "Javascript")
# One script, so that changes of the page in between have no effect.
VISIBLE = "[...document.querySelectorAll(arguments[0])].filter(one => one.getClientRects().length)"


class Browser:
    """Access to a browser for tests.

    Args:
        driver: Selenium's.
    """

    def __init__(self, driver: Any):
        self.driver = driver

    def open(self, address: str | Path) -> None:
        """Open a page by address or file, and clear the console."""
        self.driver.get(address.as_uri() if isinstance(address, Path) else address)
        self.driver.get_log("browser")

    def all(self, selector: str) -> list[Any]:
        """Return the visible elements of a CSS selector."""
        return self.driver.execute_script(f"return {VISIBLE}", selector)

    def texts(self, selector: str) -> list[str]:
        """Return the text of each visible element of a CSS selector."""
        return self.driver.execute_script(f"return {VISIBLE}.map(one => one.innerText)", selector)

    def text(self, selector: str) -> str:
        """Return the joined text of the visible elements of a CSS selector."""
        return "\n".join(self.texts(selector))

    def wait(self, condition: Callable[[], Any], seconds: float = 60) -> Any:
        """Wait until a condition is true and return its value; errors from replaced elements are retried."""
        from selenium.common import exceptions
        from selenium.webdriver.support.wait import WebDriverWait

        passing = [getattr(exceptions, f"{name}Exception") for name in PASSING]
        return WebDriverWait(self.driver, seconds, 0.1, passing).until(lambda _: condition())

    def painted(self, frame: str | None = None) -> int:
        """Count painted pixels of the canvas, in the page or in one of its frames."""
        if frame is None:
            return self.driver.execute_script(PAINTED)
        self.driver.switch_to.frame(self.driver.find_element("css selector", frame))
        try:
            return self.driver.execute_script(PAINTED)
        finally:
            self.driver.switch_to.default_content()

    def errors(self) -> list[str]:
        """Return the console's errors since the page was opened."""
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
