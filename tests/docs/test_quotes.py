"""What pages quote of the code stands there."""

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A block of `py`, not `python`, is no program: its first line names the file.
_QUOTE = re.compile(r"^```py\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUOTES = [
    (page.stem, *quote.groups())
    for page in sorted(ROOT.glob("docs/**/*.md"))
    for quote in _QUOTE.finditer(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("page, name, quoted", QUOTES, ids=[f"{page}-{name}" for page, name, _ in QUOTES])
def test_quoted_code_is_in_its_file(page, name, quoted):
    source = (ROOT / name).read_text(encoding="utf-8")
    assert any(textwrap.indent(quoted, " " * spaces) in source for spaces in (0, 4, 8)), quoted


def test_there_are_quotes_of_the_three_systems():
    assert {"guided_adapter", "virtual_projection", "tokenizer", "teachers"} <= {page for page, *_ in QUOTES}
