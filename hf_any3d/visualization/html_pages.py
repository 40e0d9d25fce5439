"""The HTML of all pages and of parts of them: templates of one document, filled in with escaped texts and data.

`page.html` is the document: head, what it may load, and the colors of light and dark devices. `viewer.html` and
`results.html` extend it; `fragments.html` holds what other programs put into pages of their own.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16" fill="none" stroke="#1f5fd0">'
    '<path d="M8 1.5 14 5v6l-6 3.5L2 11V5zM2 5l6 3.5L14 5M8 8.5v6"/></svg>'
)
"""Picture of a cube, which tells the pages from others in a browser."""


def html_page(template: str, *, folder: Path | None = None, **values: Any) -> str:
    """Return the text of a page: a file in `templates`, or in `folder`, filled in with escaped texts.

    `title` is that of the document, and a page with `data` may run the template's own script, which reads it.
    """
    return _templates(folder).get_template(template).render(values)


def html_fragment(name: str, *values: Any) -> str:
    """Return part of a page: a macro of `fragments.html`, with escaped texts."""
    return str(getattr(_templates().get_template("fragments.html").module, name)(*values))


@cache
def _templates(folder: Path | None = None) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader([Path(__file__).with_name("templates"), *([] if folder is None else [folder])]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    templates.globals["icon"] = ICON
    # Legends keep their order. What could end a script is escaped in any case.
    templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return templates
