"""The README names commands and files that exist; tests/test_packaging.py runs its blocks."""

import re
from pathlib import Path

import yaml

from docs.tools.words import counts, markdown_of

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"make ([a-z-]+)", README))
    assert {"quickstart", "test"} <= named
    missing = {target for target in named if not re.search(rf"^{target}:", makefile, flags=re.MULTILINE)}
    assert not missing


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_newcomers_pages_have_at_most_900_words():
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = [page for entry in navigation[0]["Start"] for page in entry.values()]
    assert len(pages) == 12
    for name in pages:
        prose, _, _, _, tables, _ = counts(markdown_of(ROOT / (name if name == "README.md" else f"docs/{name}")))
        assert prose + tables <= 900, name
