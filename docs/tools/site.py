"""A hook of MkDocs: pages from outside `docs`, links between files of the repository, drawings, notebooks, search.

Pages link to each other as files of the repository do, so that they also read well there. The site additionally has
the results of studies and timings, notebooks, and a few files of the root; links to them are rewritten, and links to
files that the site does not have become plain text.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = (
    "README.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "examples/README.md",
    "examples/data/README.md",
    "examples/notebooks/*.ipynb",
    "examples/vllm_plugin/README.md",
    "hf_any3d/default_model/README.md",
    "studies/README.md",
    "studies/results/*.*",
    "studies/speed/results/*",
)
"""Files outside `docs` that the site has, at their paths in the repository; README is its home."""
BOOST = {
    "Start": 2.4,
    "Guides": 2.0,
    "Notebooks": 1.2,
    "Reference": 1.6,
    "Concepts": 1.2,
    "API": 0.05,
    "Project": 1.0,
    "Studies": 0.05,
    "Timings": 0.05,
}
"""How much the search prefers pages of a part of the site: newcomers' pages win ties, then guides.

Others, such as cards and lists of examples, are not searched.
"""

SEARCH = Path(__file__).with_name("search_pages.js")
"""The script that orders the pages that the search finds."""

_FENCE = re.compile(r"(^```.*?^```$)", flags=re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_DRAWING = re.compile(r'<img alt="([^"]*)" src="([^"]*?drawings/[\w-]+\.svg)" ?/?>')


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside `docs`, and files that they link to."""
    from mkdocs.structure.files import File  # tests of this module need no MkDocs

    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix == ".ipynb":
                page = notebook_page(json.loads(path.read_text(encoding="utf-8")))
                files.append(File.generated(config, name.removesuffix(".ipynb") + ".md", content=page))
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite links between files of the repository to links between pages, and weigh the page in the search."""
    # The nearest part counts: notebooks are within the guides.
    parts = [part.title for part in page.ancestors if part.title in BOOST]
    page.meta["search"] = {"boost": BOOST[parts[0]]} if parts else {"exclude": True}
    return rewrite_links(markdown, page.file.src_uri, set(files.src_uris))


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Put drawings into the page itself, where they follow its colors in the light and in the dark."""
    return _DRAWING.sub(lambda image: inline_drawing(image[1], image[2].rpartition("/")[2]), html)


def on_post_build(config: Any) -> None:
    """Put the script that orders pages before the script of the site's search."""
    own = SEARCH.read_text(encoding="utf-8")
    for path in Path(config.site_dir).glob("assets/javascripts/workers/search.*.js"):
        theirs = path.read_text(encoding="utf-8")
        if not theirs.startswith(own):
            path.write_text(own + theirs, encoding="utf-8")


def rewrite_links(markdown: str, page: str, pages: set[str]) -> str:
    """Return a page with links to other pages of the site in place of links to files of the repository.

    Args:
        markdown: The page.
        page: Its path in the site.
        pages: Paths of all files of the site.
    """
    folder = posixpath.dirname(page if is_outside(page) else f"docs/{page}")

    def rewrite(link: re.Match) -> str:
        mark, text, target = link.groups()
        address, hash_mark, anchor = target.partition("#")
        if not address or re.match(r"[a-z]+:", address):
            return link[0]
        file = posixpath.normpath(posixpath.join(folder, address))
        name = file.removeprefix("docs/").removesuffix(".ipynb") + (".md" if file.endswith(".ipynb") else "")
        if name not in pages:
            return link[0] if file.startswith("docs/") else text
        return f"{mark}[{text}]({posixpath.relpath(name, posixpath.dirname(page) or '.')}{hash_mark}{anchor})"

    pieces = _FENCE.split(markdown)
    pieces[::2] = [_LINK.sub(rewrite, piece) for piece in pieces[::2]]
    return "".join(pieces)


def is_outside(page: str) -> bool:
    """Return whether a page of the site comes from outside `docs`."""
    return any(
        Path(page).match(pattern.replace(".ipynb", ".md")) and (ROOT / page).parent.is_dir() for pattern in OUTSIDE
    )


def inline_drawing(description: str, name: str) -> str:
    """Return a drawing of `docs/drawings` as part of a page, without the colors that it has on its own."""
    drawing = (ROOT / "docs" / "drawings" / name).read_text(encoding="utf-8")
    drawing = re.sub(r"\s*<style>.*?</style>", "", drawing, flags=re.DOTALL)
    return drawing.strip().replace("<svg ", f'<svg class="drawing" role="img" aria-label="{description}" ', 1)


def notebook_page(notebook: dict) -> str:
    """Return a notebook as a page in Markdown: its texts, and its code as blocks."""
    blocks = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"]).strip()
        blocks.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(blocks) + "\n"
