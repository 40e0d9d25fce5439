"""Blocks of the pages, and programs of pages and notebooks: `python -m docs.tools.snippets FOLDER` writes these.

The blocks of a page are one program, from top to bottom, in one folder that is empty at the start. A block that cannot
run there with the installed package alone says so in its first line, `# needs …`; NEEDS has what it may say. What a
page shows as printed is a comment behind a `print`, or a block of text right after the block.

`make docs` checks the Python programs with pyright; `tests/doors/test_pages.py` runs all blocks.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDS = {
    "a network": "fetches published files or pushes to the hub; what is fetched once is kept",
    "a checkout": "programs, recipes or `make` of the repository",
    "a GPU": "a GPU, and what runs on it",
    "minutes": "runs longer than half a minute on a CPU",
    "Ctrl-C": "runs until it is stopped",
    "a server": "the program of a block before, running",
    "pip install": "what an extra of the package, or another package, brings",
    "your": "files, data or a model of your own, under the names in the block",
}
"""What the first line of a block may say after `# needs`, and what that means."""

_UNTYPED = "pipeline as _pipeline; from typing import Any; pipeline: Any = _pipeline"
_BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of a page."""

    line: int
    """Line of the page on which its text starts, from 1."""
    language: str
    text: str
    needs: str
    """What its first line says that it needs; empty for a block that runs anywhere."""
    printed: str
    """The block of text right after it; empty if there is none."""


def pages() -> dict[str, str]:
    """Return the texts of README and guides, by their paths in the repository."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


def blocks(page: str) -> list[Block]:
    """Return the blocks of Python and bash of a page, in their order."""
    found = []
    for match in _BLOCK.finditer(page):
        language, text, printed = match.groups()
        first = text.partition("\n")[0]
        needs = first.removeprefix("# needs ").strip() if first.startswith("# needs ") else ""
        found.append(Block(page.count("\n", 0, match.start(2)) + 1, language, text, needs, printed or ""))
    return found


def programs() -> dict[str, str]:
    """Return the Python program of each page that has one, by its path in the repository."""
    found = {page: program(text) for page, text in pages().items()}
    return {page: text for page, text in found.items() if text}


def program(page: str) -> str:
    """Return the Python blocks of a page as one program, at their lines, so that errors name the line of the page.

    Blocks for other places than the installed package are left out: what they import or name may exist only there.
    """
    lines: list[str] = []
    for block in blocks(page):
        elsewhere = re.search(r"a checkout|a GPU|your|pip install (?!'hf-any3d\[)", block.needs)
        if block.language == "python" and not elsewhere:
            lines += [""] * (block.line - 1 - len(lines))
            lines += block.text.splitlines()
    return "\n".join(lines) + "\n" if lines else ""


def notebooks(quick: bool = False) -> dict[str, str]:
    """Return the program of each notebook, by its path in the repository, without lines for the notebook itself.

    Args:
        quick: Replace the numbers in cells with the tag "parameters" by 2, for a test.
    """
    found = {}
    for path in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = []
        for cell in cells:
            text = re.sub(r"^%.*", "", "".join(cell["source"]), flags=re.MULTILINE)
            is_parameter = "parameters" in cell["metadata"].get("tags", [])
            if cell["cell_type"] == "code":
                texts.append(re.sub(r"= \d+", "= 2", text) if quick and is_parameter else text)
        found[path.relative_to(ROOT).as_posix()] = "\n".join(texts) + "\n"
    return found


def write_programs(folder: Path) -> list[Path]:
    """Write the program of each page to a folder, as `docs_chat.py` for `docs/chat.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for page, text in (programs() | notebooks()).items():
        written.append(folder / (re.sub(r"\W", "_", page.rpartition(".")[0]) + ".py"))
        # The types of transformers know only its own tasks, and refuse those that this package registers.
        text = re.sub(r"^(from transformers import .*)\bpipeline$", rf"\1{_UNTYPED}", text, flags=re.MULTILINE)
        written[-1].write_text(text, encoding="utf-8")
    return written


if __name__ == "__main__":
    write_programs(Path(sys.argv[1]))
