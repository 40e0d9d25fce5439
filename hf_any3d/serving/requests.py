"""Read a request: its fields, its files, and whether there are too many."""

from __future__ import annotations

import json
from typing import Any

import anyio
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from hf_any3d.serving.inputs import Upload
from hf_any3d.serving.limits import Refused
from hf_any3d.serving.service import Service
from hf_any3d.utils.messages import one_line, printable

MOST_VALUES = 2_000_000
"""Values in JSON, separated by commas; each takes up to a hundred bytes of memory."""


def is_form(request: Request) -> bool:
    """Return whether a request is a form with files."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/json"):
        raise Refused(415, f"content-type is {kind!r}; expected multipart/form-data or application/json")
    return kind == "multipart/form-data"


async def read_form(request: Request, service: Service) -> tuple[dict[str, Any], dict[str, Upload]]:
    """Return the fields of a form, and its files by name."""
    fields: dict[str, Any] = {}
    files: dict[str, Any] = {}
    limits = service.limits
    try:
        # Parts are bounded while they arrive, before they fill memory or disk.
        form = await request.form(max_files=limits.clouds, max_fields=50, max_part_size=limits.body_bytes)
    except HTTPException as error:
        raise Refused(400, one_line(f"the form cannot be read: {error.detail}")) from None
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                # A file without a name gets one, by which its answer is told apart.
                key = printable(value.filename or f"file {len(files)}")[:200]
                content = Upload(key, await value.read())
                place = files
            else:
                key = name
                content = value
                place = fields
            if key in place:
                raise Refused(400, f"{key!r} is given twice; expected different names", param=name)
            place[key] = content
    finally:
        # Large uploads are temporary files until then.
        await form.close()
    return fields, files


async def read_json(request: Request) -> dict[str, Any]:
    """Return the body of a request."""
    body = await request.body()
    # In a thread, as parsing megabytes takes seconds
    return await anyio.to_thread.run_sync(parse_json, body, "the body", limiter=request.app.state.readers)


def parse_json(text: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object in a text."""
    # Commas bound the number of values before anything is parsed, and counting them takes no memory.
    if (values := text.count(b",")) > MOST_VALUES:
        reason = f"{name} has more than {MOST_VALUES} values ({values}); send large clouds as files or data URLs"
        raise Refused(413, reason)
    try:
        content = json.loads(text)
        reason = type(content).__name__
    # Brackets nested thousands deep end in a RecursionError.
    except (ValueError, RecursionError) as error:
        content = None
        reason = error
    if not isinstance(content, dict):
        raise Refused(400, one_line(f"{name} is no JSON object ({reason})"))
    return content


def check_count(count: int, service: Service) -> None:
    """Raise an error for too many clouds."""
    if count > service.limits.clouds:
        raise Refused(413, f"{count} clouds; expected at most {service.limits.clouds}", param="point_clouds")


def check_texts(texts: Any, service: Service) -> None:
    """Raise an error for texts that are too long together."""
    if (length := _characters(texts)) > service.limits.characters:
        raise Refused(413, f"the texts have {length} characters; expected at most {service.limits.characters}")


def _characters(texts: Any) -> int:
    if isinstance(texts, str):
        return len(texts)
    if isinstance(texts, dict):
        return sum(map(_characters, texts.values()))
    if isinstance(texts, (list, tuple)):
        return sum(map(_characters, texts))
    return 0
