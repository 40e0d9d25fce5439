"""The page `/docs` of the service, made from its OpenAPI description without files from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 14px/1.4 ui-monospace, monospace }
pre { overflow-x: auto; padding: .7rem; border: 1px solid #8886 }
h2 code { font-size: 1rem }
"""


def docs_page(description: dict[str, Any]) -> str:
    """Return a page that lists the routes of an OpenAPI description, what they take and what they answer."""
    title = escape(description["info"]["title"])
    sections = "\n".join(_sections(description))
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>{_STYLE}</style></head>
<body>
<h1>{title}</h1>
<p>Version {escape(description["info"]["version"])}. Clients can be made from the description in OpenAPI:
<a href="openapi.json">openapi.json</a>.</p>
{sections}
</body>
</html>
"""


def _sections(description: dict[str, Any]) -> Iterator[str]:
    """Yield a section for each route."""
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>\n<p>{escape(route.get('summary', ''))}</p>"
            for kind, body in route.get("requestBody", {}).get("content", {}).items():
                yield _details(f"takes {kind}", body)
            for code, answer in route.get("responses", {}).items():
                for kind, body in answer.get("content", {}).items():
                    yield _details(f"answers {code}, {kind}", body)
    if schemas := description.get("components", {}).get("schemas"):
        yield "<h2>Schemas</h2>"
        for name, schema in schemas.items():
            yield _details(name, schema)


def _details(title: str, content: Any) -> str:
    text = escape(json.dumps(content, indent=2, ensure_ascii=False))
    return f"<details><summary>{escape(title)}</summary><pre>{text}</pre></details>"
