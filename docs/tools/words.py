"""Count words, numbers and long sentences of pages: `python -m docs.tools.words README.md setfit-1.2.0.whl …`.

Of a wheel, the README is read that its metadata has. Code, badges, pictures, comments and addresses are left out, and
tables are counted apart. `python -m pip download --no-deps sentence-transformers setfit peft` gets wheels to compare.
"""

from __future__ import annotations

import re
import sys
import zipfile
from email import message_from_string
from pathlib import Path

LEFT_OUT = (
    r"^ *```.*?^ *```|<!--.*?-->",  # code and comments
    r"\[?!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])(\](\([^)]*\)|\[[^\]]*\]))?",  # pictures and badges, with their links
    r"^\[[^\]]*\]: [^\n]*$|^ *-{3,} *$",  # addresses below the text, and rules
)
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^)]*\)")
_NUMBER = re.compile(r"(?<![\w.])[-−+±]?\d[\d,.]*")
_END_OF_SENTENCE = re.compile(r"(?<=[.!?])[*”\"')]*\s+(?=\W*[A-Z0-9])|(?<=:)\s*\n|\n\s*\n|\n\s*(?:[-*•]|\d+\.)\s+")


def markdown_of(path: Path) -> str:
    """Return the text of a Markdown file, or the README of a wheel."""
    if path.suffix != ".whl":
        return path.read_text(encoding="utf-8")
    with zipfile.ZipFile(path) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return str(message_from_string(wheel.read(name).decode("utf-8")).get_payload())


def counts(markdown: str) -> list[int]:
    """Return words, numbers, longest sentence and words a sentence of the prose, then words and numbers of tables."""
    for pattern in LEFT_OUT:
        markdown = re.sub(pattern, "\n", markdown, flags=re.MULTILINE | re.DOTALL)
    text = _LINK.sub(r"\1", re.sub(r"`[^`\n]*`", "Code", markdown))
    text = re.sub(r"<[^>]+>|https?://\S+", " ", text)
    tables = "\n".join(re.findall(r"^ *\|.*$", text, flags=re.MULTILINE))
    prose = re.sub(r"^ *(\||#).*$", "\n", text, flags=re.MULTILINE)
    lengths = [len(words(sentence)) for sentence in _END_OF_SENTENCE.split(prose) if words(sentence)]
    total = len(words(prose))
    mean = round(total / max(len(lengths), 1))
    return [total, len(_NUMBER.findall(prose)), max(lengths), mean, len(words(tables)), len(_NUMBER.findall(tables))]


def words(text: str) -> list[str]:
    """Return the words of a text: whatever has a letter or digit."""
    return [word for word in text.split() if re.search(r"\w", word)]


if __name__ == "__main__":
    print("| page | words | numbers | longest sentence | words a sentence | words in tables | numbers in tables |")
    print("|---|---|---|---|---|---|---|")
    for given in map(Path, sys.argv[1:]):
        print(f"| {given} | " + " | ".join(f"{count:,}" for count in counts(markdown_of(given))) + " |")
