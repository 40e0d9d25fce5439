"""Pages of the service: `/`, to try it on a file, and `/docs`, with all routes; both are self-contained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_any3d.registry import TASKS
from hf_any3d.serving.service import Service
from hf_any3d.tasks.settings import settings_of
from hf_any3d.version import __version__
from hf_any3d.visualization.html_pages import html_page

_TEMPLATES = Path(__file__).with_name("templates")
# Settings that a person may have to give; all others have defaults.
_ASKED = ("labels", "up_axis")


def front_page(service: Service) -> str:
    """Return the home page, which describes the service and lets the user try it on a file."""
    routes = []
    for path, route in service.routes.items():
        own = settings_of(TASKS[route.task].settings, "service")
        routes.append({"path": path, "takes": [name for name in _ASKED if name in own]})
    if service.has_chat:
        routes.append({"path": "/v1/chat/completions", "takes": ["question"]})
    return html_page(
        "front.html",
        folder=_TEMPLATES,
        title=service.name,
        kind=TASKS[service.task].kind,
        version=__version__,
        data={"model": service.name, "routes": routes},
    )


def docs_page(description: dict[str, Any]) -> str:
    """Return a page that lists the routes of an OpenAPI description, what they take and what they answer."""
    routes = []
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            details = []
            for kind, body in route.get("requestBody", {}).get("content", {}).items():
                details.append((f"takes {kind}", _text_of(body)))
            for code, answer in route.get("responses", {}).items():
                for kind, body in answer.get("content", {}).items():
                    details.append((f"answers {code}, {kind}", _text_of(body)))
            routes.append((f"{method.upper()} {path}", route.get("summary", ""), details))
    schemas = description.get("components", {}).get("schemas", {})
    return html_page(
        "docs.html",
        folder=_TEMPLATES,
        title=description["info"]["title"],
        version=description["info"]["version"],
        routes=routes,
        schemas=[(name, _text_of(schema)) for name, schema in schemas.items()],
    )


def _text_of(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False)
