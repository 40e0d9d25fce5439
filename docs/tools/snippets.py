"""The Python blocks of the pages and notebooks: `python -m docs.tools.snippets FOLDER` writes them as programs.

The blocks of a page are one program, in their order. A block after the comment `<!-- not run: REASON -->` is left out.
`make docs` checks the programs with pyright; `tests/docs/test_programs.py` runs them.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_UNTYPED = "pipeline as _pipeline; from typing import Any; pipeline: Any = _pipeline"
_BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n+)?^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def programs() -> dict[str, str]:
    """Return the program of each page that has one, by its path in the repository."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = {page.relative_to(ROOT).as_posix(): program(page.read_text(encoding="utf-8")) for page in pages}
    return {page: text for page, text in found.items() if text}


def program(page: str) -> str:
    """Return the blocks of a page as one program, at their lines, so that errors name the line of the page."""
    lines: list[str] = []
    for block in _BLOCK.finditer(page):
        if not block[1]:
            lines += [""] * (page.count("\n", 0, block.start(2)) - len(lines))
            lines += block[2].splitlines()
    return "\n".join(lines) + "\n" if lines else ""


def notebooks(quick: bool = False) -> dict[str, str]:
    """Return the program of each notebook, by its path in the repository.

    Args:
        quick: Replace the numbers in cells with the tag "parameters" by 2, for a test.
    """
    found = {}
    for path in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = []
        for cell in cells:
            text = "".join(cell["source"])
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
