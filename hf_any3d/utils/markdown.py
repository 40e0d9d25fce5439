"""Escape untrusted names (of classes, datasets, files, repositories) for Markdown, HTML, YAML and code.

A class name may be `<img onerror=…>` or `[x](javascript:…)`, or contain a newline, a terminal escape or a `|`. Model
cards and dataset cards show such names literally.
"""

import json
import re

from hf_any3d.utils.messages import printable

MAX_LENGTH = 200
"""Maximum length of a name in a card."""

# Characters that can start or end inline elements of Markdown, except for HTML; `_` only at word boundaries.
_SPECIAL = re.compile(r"([\\`*\[\]#|~$]|(?<![^\W_])_|_(?![^\W_]))")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def one_line(value: object, max_length: int = MAX_LENGTH) -> str:
    """Return text on one line without control characters, truncated; safe for YAML and terminals."""
    text = printable(" ".join(str(value)[: 4 * max_length].split()))
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


def inline(value: object, max_length: int = MAX_LENGTH) -> str:
    """Escape a name for a line or table cell of Markdown."""
    text = "".join(_HTML.get(letter, letter) for letter in one_line(value, max_length))
    # Bare URLs would become links.
    return _SPECIAL.sub(r"\\\1", text).replace("://", "&#58;//")


def code(value: object) -> str:
    """Format a name as inline code, also for table cells."""
    text = one_line(value) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    padding = " " if "`" in text else ""
    # In a table a bar ends the cell even inside code; the backslash is not shown.
    return f"{fence}{padding}{text}{padding}{fence}".replace("|", "\\|")


def paragraphs(value: object) -> str:
    """Return Markdown of several lines without HTML, control characters and a metadata block."""
    lines = (printable(line).replace("<", "&lt;").rstrip() for line in str(value).strip().splitlines())
    return "\n".join(f"\\{line}" if line.startswith(("---", "```")) else line for line in lines)


def literal(value: object) -> str:
    """Quote a name as a Python string, for code in cards."""
    return json.dumps(str(value)[:MAX_LENGTH], ensure_ascii=True)
