"""Ask the search of the built site: `python -m docs.tools.search "rate limit per user" …` prints the best three pages.

Without a question, the headings of newcomers' pages and of guides are asked: the search should find each page by its
own headings. Node runs the script that answers in a browser.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from docs.tools.site import ROOT

PARTS = ("Start", "Guides")
"""Parts of the navigation whose pages must be found by their headings."""

_CODE = re.compile(r"^```.*?^```$", flags=re.MULTILINE | re.DOTALL)


def found_pages(site: Path, questions: list[str]) -> dict[str, list[str]]:
    """Return for each question the pages that the search of a built site finds, best first, without their ending.

    Args:
        site: The folder of the site.
        questions: What to ask.
    """
    command = ["node", str(Path(__file__).with_name("ask_search.js")), str(site), json.dumps(questions)]
    answered = subprocess.run(command, capture_output=True, text=True, check=True)
    pages = json.loads(answered.stdout)
    return {question: [page.removesuffix(".html") for page in pages[question]] for question in questions}


def headings() -> dict[str, set[str]]:
    """Return the headings of the pages of `PARTS`, each with the pages that have it."""
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    found: dict[str, set[str]] = {}
    for part in navigation:
        for title, below in part.items():
            for page in _pages(below) if title in PARTS else ():
                path = ROOT / "docs" / page
                if path.exists():  # the home and notebooks are elsewhere
                    text = _CODE.sub("", path.read_text(encoding="utf-8"))
                    for heading in re.findall(r"^#{1,2} (.+)$", text, flags=re.MULTILINE):
                        found.setdefault(heading, set()).add(page.removesuffix(".md"))
    return found


def _pages(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for below in (entry.values() if isinstance(entry, dict) else entry) for page in _pages(below)]


def missed(site: Path) -> dict[str, list[str]]:
    """Return the headings whose page is not among the first three, with the pages that are."""
    asked = headings()
    found = found_pages(site, list(asked))
    return {heading: found[heading][:3] for heading, pages in asked.items() if not pages & {*found[heading][:3]}}


def main(questions: list[str]) -> int:
    """Ask questions, or all headings."""
    if shutil.which("node") is None:
        print("no node, so the search of the site was not asked")
        return 0
    site = ROOT / "build" / "site"
    if questions:
        for question, pages in found_pages(site, questions).items():
            print(f"{question}: {', '.join(pages[:3]) or 'no page'}")
        return 0
    failures = missed(site)
    for heading, pages in failures.items():
        print(f"{heading!r} finds {', '.join(pages)}")
    print(f"search: {len(failures)} of {len(headings())} headings do not find their page among the first three")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
