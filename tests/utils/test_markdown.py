"""Names in Markdown and code: escaped, on one line, and cut."""

import json

import pytest

from hf_any3d.utils.markdown import MAX_LENGTH, code, inline, literal, one_line, paragraphs


@pytest.mark.parametrize(
    ("value", "most", "text"),
    [
        ("abcde", 5, "abcde"),
        ("abcdef", 5, "abcd…"),
        (" a \n b\tc ", 5, "a b c"),
        ("a\x1b", 9, "a\\u001b"),
        (12345678, 5, "1234…"),
        ("", 5, ""),
    ],
)
def test_a_name_is_one_line_of_a_length(value, most, text):
    assert one_line(value, most) == text
    assert one_line("a" * MAX_LENGTH) == "a" * MAX_LENGTH
    assert one_line("a" * (MAX_LENGTH + 1)) == "a" * (MAX_LENGTH - 1) + "…"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("chair", "chair"),
        ("a_b _c_ d", "a_b \\_c\\_ d"),
        ("*a* `b` [c](d) #e |f| ~g~ $h$", "\\*a\\* \\`b\\` \\[c\\](d) \\#e \\|f\\| \\~g\\~ \\$h\\$"),
        ("<b> & </b>", "&lt;b&gt; &amp; &lt;/b&gt;"),
        ("https://x.org", "https&#58;//x.org"),
        ("a\\b\nc", "a\\\\b c"),
    ],
)
def test_a_name_has_no_marks_of_markdown(value, text):
    assert inline(value) == text
    assert inline("<" * 9, 4) == "&lt;" * 3 + "…"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a_b", "`a_b`"),
        ("a`b", "`` a`b ``"),
        ("a```b`", "```` a```b` ````"),
        ("a|b", "`a\\|b`"),
        ("", "` `"),
        ("a\nb", "`a b`"),
    ],
)
def test_code_has_a_fence_that_is_longer_than_any_inside(value, text):
    assert code(value) == text


def test_text_of_several_lines_starts_no_metadata_and_no_block():
    given = "\n ---\n---\na: 1  \n```python\n<script>\x1b[2J\n\nend \n"
    assert paragraphs(given) == "\\---\n\\---\na: 1\n\\```python\n&lt;script>\\u001b[2J\n\nend"


def test_a_quoted_name_is_one_of_python():
    assert literal('a"b\nä') == '"a\\"b\\n\\u00e4"' and json.loads(literal("x" * 999)) == "x" * MAX_LENGTH
