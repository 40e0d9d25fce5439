"""Names that others chose (classes, datasets, files, repositories), made harmless for Markdown, HTML, YAML and code.

A class may be called `<img onerror=…>` or `[x](javascript:…)`, hold a newline, a terminal escape or a `|`. Model cards
and dataset cards show such names as the letters that they are.
"""

from __future__ import annotations

import json
import re

from hf_any3d.messages import printable

LONGEST = 200
"""Characters of a single name that a card shows."""

# Everything that can begin or end an element of Markdown in the middle of a line, HTML apart; `_` not inside a word.
_SPECIAL = re.compile(r"([\\`*\[\]#|~$]|(?<![^\W_])_|_(?![^\W_]))")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def one_line(value: object, longest: int = LONGEST) -> str:
    """Text on one line without control characters, cut where it is very long; fit for YAML and terminals."""
    text = printable(" ".join(str(value)[: 4 * longest].split()))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def inline(value: object, longest: int = LONGEST) -> str:
    """A name inside a line or a table cell of Markdown."""
    text = "".join(_HTML.get(letter, letter) for letter in one_line(value, longest))
    # A bare address would become a link.
    return _SPECIAL.sub(r"\\\1", text).replace("://", "&#58;//")


def code(value: object, longest: int = LONGEST) -> str:
    """A name as inline code, also inside a table cell."""
    text = one_line(value, longest) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    padding = " " if "`" in text else ""
    # In a table a bar ends the cell even inside code; the backslash is not shown there.
    return f"{fence}{padding}{text}{padding}{fence}".replace("|", "\\|")


def paragraphs(value: object) -> str:
    """A text of several lines in Markdown of its own, without HTML, control characters and a head of metadata."""
    lines = (printable(line).replace("<", "&lt;").rstrip() for line in str(value).strip().splitlines())
    return "\n".join(f"\\{line}" if line.startswith(("---", "```")) else line for line in lines)


def literal(value: object) -> str:
    """A name as a string of Python, for programs in cards."""
    return json.dumps(str(value)[:LONGEST], ensure_ascii=True)
