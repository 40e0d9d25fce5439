"""Tests of the site's tools on pages, notebooks, drawings and configs."""

import pytest

from docs.tools.site import inline_drawing, rewrite_links
from docs.tools.snippets import ROOT, program

PAGE = """# A page

```python
first = 1
```

```python
# needs a GPU
second = first / 0
```

```bash
make docs
```

```python
third = first
```
"""
CONFIG = '''
class Config:
    """A config.

    Args:
        width: How wide.
    """

    ranges: ClassVar[dict] = {}
    width: int = 3
    scale: float = field(default=0.5, metadata={"help": "How large."})


class LongerConfig(Config):
    """A config with more fields.

    Args:
        width: How wide.
        depth: How deep.
    """

    depth: int = 2
    width: int = 5
'''


def test_blocks_of_a_page_are_a_program_at_the_lines_of_the_page():
    lines = program(PAGE).splitlines()
    assert [line for line in lines if line] == ["first = 1", "third = first"]
    assert lines[PAGE.splitlines().index("third = first")] == "third = first"
    assert program("no code") == ""


@pytest.mark.parametrize(
    ("page", "markdown", "expected"),
    [
        ("chat.md", "[x](../studies/speed/results/chat.md#top)", "[x](studies/speed/results/chat.md#top)"),
        ("api/models.md", "[x](../chat.md)", "[x](../chat.md)"),
        ("studies/speed/results/chat.md", "![x](../../../docs/shapes.png)", "![x](../../../shapes.png)"),
        ("chat.md", "[x](../examples/notebooks/a.ipynb)", "[x](examples/notebooks/a.md)"),
        ("examples/notebooks/a.md", "[x](../../docs/chat.md)", "[x](../../chat.md)"),
        ("chat.md", "[x](../modeling/act)", "x"),
        ("chat.md", "[x](https://example.org)", "[x](https://example.org)"),
        ("chat.md", "```\n[x](../modeling/act)\n```", "```\n[x](../modeling/act)\n```"),
    ],
)
def test_links_between_files_of_the_repository_become_links_between_pages(page, markdown, expected):
    pages = {"chat.md", "api/models.md", "studies/speed/results/chat.md", "examples/notebooks/a.md", "shapes.png"}
    assert rewrite_links(markdown, page, pages) == expected


def test_a_drawing_in_a_page_takes_the_colors_of_the_page():
    drawing = inline_drawing("How it works", "tokenizer.svg")
    assert 'aria-label="How it works"' in drawing and "prefers-color-scheme" not in drawing
    assert "prefers-color-scheme" in (ROOT / "docs" / "drawings" / "tokenizer.svg").read_text()


def test_fields_of_configs_are_documented_with_types_defaults_and_help():
    griffe = pytest.importorskip("griffe")
    from docs.tools.fields import ConfigFields

    with griffe.temporary_visited_module(CONFIG) as module:
        config = module["Config"]
        ConfigFields().on_class(cls=config)
        assert [parameter.name for parameter in config.parameters if parameter.name != "self"] == ["width", "scale"]
        assert str(config.parameters["width"].annotation) == "int" and str(config.parameters["width"].default) == "3"
        assert config["scale"].value == "0.5" and config["scale"].docstring.value == "How large."
        longer = module["LongerConfig"]
        ConfigFields().on_class(cls=longer)
        assert [parameter.name for parameter in longer.parameters][-3:] == ["width", "scale", "depth"]
        assert str(longer.parameters["width"].default) == "5"
