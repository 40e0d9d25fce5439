"""Questions to the search of the built site: `python -m docs.tools.search` asks them in a browser.

The first page that the site's own search names must be one of those that answer the question. Without a browser
nothing is asked, and the command says so.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from docs.tools.site import ROOT

QUESTIONS: dict[str, tuple[str, ...]] = {
    "train on my own data": ("few_scans", "fine_tune", "few_tiles", "data"),
    "load a ply file": ("formats", "data", "classify"),
    "out of memory": ("troubleshooting",),
    "push to hub": ("share",),
    "save model": ("share", "fine_tune"),
    "up axis": ("data", "few_scans", "classify", "troubleshooting"),
    "none of these": ("few_scans", "few_tiles"),
    "how many scans": ("few_scans",),
    "batch many files": ("scale",),
    "colors": ("formats", "data", "visuals"),
    "docker": ("container",),
    "install": ("install",),
    "install without gpu": ("install",),
    "classify a mesh": ("classify", "first_minute"),
    "label my laz": ("label_your_laz",),
    "ground vegetation building": ("label_your_laz", "few_tiles"),
    "segment a room": ("segmentation", "scenes"),
    "detect objects": ("detection",),
    "chat about a cloud": ("chat",),
    "commercial license": ("which_model", "open_encoders", "published"),
    "export onnx": ("export",),
    "http service": ("serve",),
    "lora": ("adapters", "fine_tune"),
    "fine-tune": ("fine_tune",),
    "zero-shot": ("zero_shot", "open_encoders"),
    "which model": ("which_model",),
    "too slow": ("troubleshooting",),
    "file too large": ("troubleshooting",),
}
"""What people type, and the pages that answer it."""
SECONDS = 30
# The box is there but hidden on small windows; this opens it as a click does.
OPENED = "document.querySelector('#__search').checked = true"
BOX = "input.md-search__input"
TOLD = "return document.querySelector('.md-search-result__meta').innerText"  # "12 matching documents"
FIRST = "a.md-search-result__link"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Print nothing for each file."""


def first_pages(site: Path) -> dict[str, str]:
    """Return for each question the page that the search of a built site names first, without its ending."""
    from selenium.webdriver.support.wait import WebDriverWait

    from tests.visualization.browser import headless_browser

    pages: dict[str, str] = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with tempfile.TemporaryDirectory() as profile, headless_browser(Path(profile)) as browser:
            driver = browser.driver
            for question in QUESTIONS:
                # A new page for each: what is left of the last answer would be taken for the next one.
                driver.get(f"http://127.0.0.1:{server.server_port}/index.html")
                driver.execute_script(OPENED)
                driver.find_element("css selector", BOX).send_keys(question)
                WebDriverWait(driver, SECONDS).until(lambda it: "matching" in it.execute_script(TOLD))
                links = driver.find_elements("css selector", FIRST)
                path = urlsplit(links[0].get_attribute("href")).path if links else "/no page"
                pages[question] = path.removeprefix("/").removesuffix(".html")
        server.shutdown()
    return pages


def main() -> int:
    """Ask all questions, and print those that find another page first."""
    from shutil import which

    if not (which("chromium") and which("chromedriver")):
        print("no browser, so the search of the site was not asked (`make browser`)")
        return 0
    pages = first_pages(ROOT / "build" / "site")
    missed = {question: page for question, page in pages.items() if page not in QUESTIONS[question]}
    for question, page in missed.items():
        print(f"{question!r} finds {page} first; expected {' or '.join(QUESTIONS[question])}")
    print(f"search: {len(pages) - len(missed)} of {len(pages)} questions find a page that answers them first")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
