"""What the code weighs, in figures that may only fall: `python -m tests.weight [--store]`.

Weighed are shares, which a new reader or model leaves as they are: errors raised and lines that only check, test files
that look inside (privates, replaced attributes); and counts that nothing new should raise: files at the root of the
package, errors pinned by wording. Lines are not weighed: a plain line is better than a dense one. `--store` lowers the
limits.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMITS = Path(__file__).with_suffix(".json")
PRODUCT = ("hf_any3d", "modeling", "conversions")
_INSIDE = re.compile(
    r"""(?<![\w"'.])[A-Za-z_]\w*\._(?!_)[a-z]\w*|import (?:.*\W)?_[a-z]|monkeypatch\.set(?:attr|item)|mock\.patch"""
)
_WORDING = re.compile(r"pytest\.raises\((?:[^\n]*|\s*\n[^)]*)match=")


def sources(*folders: str) -> Iterator[tuple[Path, str]]:
    """Yield the Python files of folders at the root, links left out, with their text."""
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            linked = folder == "hf_any3d" and file.relative_to(ROOT / folder).parts[0] in PRODUCT
            if not linked and "__pycache__" not in file.parts:
                yield file, file.read_text(encoding="utf-8")


def weigh() -> dict[str, float]:
    """Return all figures."""
    code, checks, raises, at_root = 0, 0, 0, 0
    for file, text in sources(*PRODUCT):
        tree = ast.parse(text)
        at_root += file.parent == ROOT / "hf_any3d"
        kept = {number for number, line in enumerate(text.splitlines(), 1) if line.strip() and line.strip()[0] != "#"}
        checking: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and node.exc is not None:
                raises += 1
                checking |= _lines(node)
            elif isinstance(node, (ast.If, ast.ExceptHandler)) and isinstance(node.body[-1], ast.Raise):
                checking |= set(range(node.lineno, node.body[0].lineno)) | {
                    number for statement in node.body for number in _lines(statement)
                }
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False):
                kept -= _lines(node.body[0])
        code += len(kept)
        checks += len(checking & kept)
    files = [text for file, text in sources("tests") if file.name.startswith("test_")]
    inside = sum(bool(_INSIDE.search(text)) for text in files)
    return {
        "raises per 1,000 lines of code": round(1000 * raises / code, 1),
        "checks, % of the code": round(100 * checks / code, 1),
        "files at the root of hf_any3d": at_root,
        "test files that look inside, %": round(100 * inside / len(files), 1),
        "wordings of errors pinned": sum(len(_WORDING.findall(text)) for text in files),
    }


def _lines(node: ast.stmt) -> set[int]:
    return set(range(node.lineno, (node.end_lineno or node.lineno) + 1))


if __name__ == "__main__":
    figures = weigh()
    if "--store" in sys.argv:
        limits = json.loads(LIMITS.read_text(encoding="utf-8")) if LIMITS.exists() else figures
        figures = {name: min(value, limits[name]) for name, value in figures.items()}
        LIMITS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for name, value in figures.items():
        print(f"{name:<34}{value:>10,}")
