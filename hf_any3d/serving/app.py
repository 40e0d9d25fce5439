"""The routes of a service, as a FastAPI application."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.datastructures import MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_any3d.messages import one_line, printable
from hf_any3d.serving.inputs import Upload, invalid, upload_of
from hf_any3d.serving.limits import Refused
from hf_any3d.serving.service import Service
from hf_any3d.serving.tasks import ClassifySettings, FeatureSettings, SegmentSettings, Settings
from hf_any3d.version import __version__

logger = logging.getLogger("hf_any3d.serving")
# Threads that read files and prepare answers, besides the one of the model.
_READERS = 4
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_KEY = re.compile(r"[!-~]{1,200}")
_CLIENT_IS_GONE = 499
_PATHS = {"/v1/classify": ClassifySettings, "/v1/features": FeatureSettings, "/v1/segment": SegmentSettings}


def create_app(service: Service) -> FastAPI:
    """Return the application of a service; its end closes the service."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(service.close)

    app = FastAPI(title=f"hf_any3d: {service.name}", version=__version__, lifespan=lifespan)
    app.state.service, app.state.readers = service, anyio.CapacityLimiter(_READERS)
    app.add_middleware(Door, service=service)
    app.add_exception_handler(Refused, _refused)  # pyright: ignore[reportArgumentType] as FastAPI documents it
    app.add_exception_handler(HTTPException, _http_error)  # pyright: ignore[reportArgumentType]

    @app.get("/health", summary="Whether the process answers")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Whether requests are accepted")
    async def ready() -> JSONResponse:
        is_ready = service.batcher.is_alive and not service.is_draining
        return JSONResponse({"status": "ready" if is_ready else "stopping"}, 200 if is_ready else 503)

    @app.get("/metrics", summary="Figures for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"content-type": service.metrics.content_type})

    @app.get("/v1/models", summary="The model, its task and its routes")
    async def models() -> dict[str, Any]:
        own = {"id": service.name, "object": "model", "created": service.created, "owned_by": "hf_any3d"}
        return {"object": "list", "data": [{**own, "task": service.task, "routes": service.paths}]}

    for path, settings in _PATHS.items():
        if path in service.routes:
            _add_route(app, service, path, settings)
    return app


def _add_route(app: FastAPI, service: Service, path: str, settings: type[Settings]) -> None:
    @app.post(path, summary=f"{path.rpartition('/')[2].capitalize()} clouds", openapi_extra=_described(settings))
    async def answer(request: Request) -> Response:
        return await in_time(request, service, lambda: answer_clouds(request, service, path))


async def answer_clouds(request: Request, service: Service, path: str) -> Response:
    """Answer a request about clouds, each of which is a member of a batch of its own."""
    route, readers = service.routes[path], request.app.state.readers
    uploads, given = await read_request(request, service)
    try:
        settings = route.settings.model_validate(given)
    except ValidationError as error:
        raise invalid(error) from None
    check_texts(given, service)
    route.check(settings, service.limits)

    async def compute() -> bytes:
        clouds = []
        for upload in uploads:
            clouds.append(await anyio.to_thread.run_sync(upload.read, service.limits, limiter=readers))
            service.metrics.points.inc(len(clouds[-1]))
        deadline = request.state.deadline
        answers = await results(request, [service.submit((path, settings), cloud, deadline) for cloud in clouds])
        shown = [{"name": upload.name, **answer} for upload, answer in zip(uploads, answers, strict=True)]
        return await anyio.to_thread.run_sync(as_json, {"model": service.name, "answers": shown}, limiter=readers)

    return await acknowledged(request, service, uploads, settings, compute)


async def read_request(request: Request, service: Service) -> tuple[list[Upload], dict[str, Any]]:
    """Return the clouds of a request, and its other fields.

    A request is JSON with `point_clouds`, or a form with files.

    Raises:
        Refused: It is neither, or has no cloud or too many.
    """
    if is_form(request):
        fields, files = await read_form(request, service)
        uploads = list(files.values())
        expected = "files in the fields 'file'"
    else:
        fields = await read_json(request)
        given = fields.pop("point_clouds", None)
        if not isinstance(given, list):
            raise Refused(400, "point_clouds: expected a list of clouds", param="point_clouds")
        check_count(len(given), service)
        decode = [lambda n=n, one=one: upload_of(one, f"point_clouds.{n}", {}) for n, one in enumerate(given)]
        uploads = [await anyio.to_thread.run_sync(one, limiter=request.app.state.readers) for one in decode]
        expected = "clouds in point_clouds"
    if not uploads:
        raise Refused(400, f"the request has no cloud; expected {expected}", param="point_clouds")
    return uploads, fields


def is_form(request: Request) -> bool:
    """Whether a request is a form with files.

    Raises:
        Refused: It is neither a form nor JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/json"):
        raise Refused(415, f"content-type is {kind!r}; expected multipart/form-data or application/json")
    return kind == "multipart/form-data"


async def read_form(request: Request, service: Service) -> tuple[dict[str, Any], dict[str, Upload]]:
    """Return the fields of a form, and its files by name.

    Raises:
        Refused: It is damaged, has too many files, two of one name, or one in an unknown field.
    """
    fields: dict[str, Any] = {}
    files: dict[str, Upload] = {}
    limits = service.limits
    try:
        form = await request.form(max_files=limits.clouds, max_fields=50, max_part_size=limits.body_bytes)
    except HTTPException as error:
        raise Refused(400, one_line(f"the form cannot be read: {error.detail}")) from None
    async with form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                key = printable(value.filename or f"file {len(files)}")[:200]
                if name != "file" or key in files:
                    what = f"two files are called {key!r}" if name == "file" else f"{name}: holds a file"
                    raise Refused(400, f"{what}; expected fields 'file' with different names", param=name)
                files[key] = Upload(key, await value.read())
            elif name in fields:
                raise Refused(400, f"{name}: given twice; expected one value", param=name)
            else:
                fields[name] = value
    return fields, files


async def read_json(request: Request) -> dict[str, Any]:
    """Return the body of a request.

    Raises:
        Refused: It is not a JSON object.
    """
    body = await request.body()
    try:
        given = await anyio.to_thread.run_sync(json.loads, body, limiter=request.app.state.readers)
    except (ValueError, RecursionError) as error:
        raise Refused(400, one_line(f"the body is not JSON ({error})")) from None
    if not isinstance(given, dict):
        raise Refused(400, f"the body is a {type(given).__name__}; expected an object")
    return given


def check_count(count: int, service: Service) -> None:
    """Raise an error for too many clouds."""
    if count > service.limits.clouds:
        raise Refused(413, f"{count} clouds; expected at most {service.limits.clouds}", param="point_clouds")


def check_texts(given: Any, service: Service) -> None:
    """Raise an error for texts that are too long together."""
    if (length := _characters(given)) > service.limits.characters:
        raise Refused(413, f"the texts have {length} characters; expected at most {service.limits.characters}")


def _characters(given: Any) -> int:
    if isinstance(given, str):
        return len(given)
    parts = given.values() if isinstance(given, dict) else given if isinstance(given, (list, tuple)) else ()
    return sum(map(_characters, parts))


async def in_time(request: Request, service: Service, answer: Callable[[], Awaitable[Response]]) -> Response:
    """Return an answer, or refuse the request at the end of its time."""
    limit = service.limits.seconds
    request.state.deadline = time.monotonic() + limit
    try:
        async with asyncio.timeout(limit):
            return await answer()
    except TimeoutError:
        raise Refused(504, f"no answer within {limit:g} s, the limit of this server", "timeout_error") from None


async def results(request: Request, futures: list[Any]) -> list[Any]:
    """Wait for results of the model; if the client leaves or the time is over, work is cancelled.

    Raises:
        Refused: The model cannot use the input, or the client is gone.
    """
    done = asyncio.gather(*map(asyncio.wrap_future, futures))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise Refused(_CLIENT_IS_GONE, "the client is gone")
        return done.result()
    except ValueError as error:
        raise Refused(422, one_line(error)) from error
    finally:
        gone.cancel()
        done.cancel()
        for future in futures:
            future.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await gone


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def acknowledged(
    request: Request,
    service: Service,
    uploads: list[Upload],
    settings: BaseModel,
    compute: Callable[[], Awaitable[bytes]],
) -> Response:
    """Compute an answer; with an `Idempotency-Key`, store it on disk before it is sent, or return the stored one.

    Raises:
        Refused: There is no journal, or the key is invalid or was used for another request.
    """
    key, journal = request.headers.get("idempotency-key"), service.journal
    if key is None:
        return _json_response(await compute())
    if journal is None:
        raise Refused(400, "Idempotency-Key: this server keeps no journal (hf-any3d serve --journal FILE)")
    if not _KEY.fullmatch(key):
        raise Refused(400, "Idempotency-Key: expected 1 to 200 visible ASCII characters")
    content = [request.url.path, settings.model_dump_json(), *(part for one in uploads for part in _identity(one))]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    stored = await anyio.to_thread.run_sync(journal.begin, key, digest)
    if stored is not None:
        return _json_response(stored, {"Idempotent-Replayed": "true"})
    try:
        body = await compute()
        await anyio.to_thread.run_sync(journal.store, key, digest, body)
        return _json_response(body)
    finally:
        journal.end(key)


def _identity(upload: Upload) -> tuple[str, str]:
    return upload.name, upload.digest()


def as_json(value: Any) -> bytes:
    """Return a value as JSON; NaN and infinity, which JSON does not have, are errors."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _json_response(body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    return Response(body, status, headers, "application/json")


def _refused(_: Request, error: Refused) -> Response:
    return _json_response(as_json(error.body()), error.headers, error.status)


def _http_error(request: Request, error: HTTPException) -> Response:
    service, path = request.app.state.service, request.url.path
    text = str(error.detail)
    if error.status_code == 404:
        text = f"{printable(path)[:200]}: no such route; this model answers {', '.join(service.paths)}"
    return _refused(request, Refused(error.status_code, text, headers=dict(error.headers or {})))


def _described(settings: type[Settings]) -> dict[str, Any]:
    """Return the description of a request, which is read by hand, for the page of the API."""
    schema = settings.model_json_schema()
    own = schema.pop("properties")
    cloud = {
        "type": "object",
        "properties": {
            "url": {"type": "string", "description": "data:…;base64,…"},
            "file_type": {"type": "string"},
            **{name: {"type": "array", "items": {"type": "array"}} for name in ("points", "colors", "normals")},
        },
    }
    files = {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}}
    forms = {"point_clouds": {"type": "array", "items": cloud}}, files
    contents = [{"schema": {"type": "object", "properties": {**form, **own}}} for form in forms]
    kinds = ("application/json", "multipart/form-data")
    return {"requestBody": {"required": True, "content": dict(zip(kinds, contents, strict=True))}}


class Door:
    """Admits requests, counts their bytes, gives them ids, and logs them.

    Args:
        app: The application behind.
        service: Its service.
    """

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _Visit(self, scope, receive, send).run()


class _Visit:
    """One request at the door."""

    def __init__(self, door: Door, scope: Scope, receive: Receive, send: Send):
        self.app, self.service, self.scope, self._receive, self._send = door.app, door.service, scope, receive, send
        self.start, self.status, self.bytes, self.is_started = time.monotonic(), 500, 0, False
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin1")
        self.id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        declared = headers.get(b"content-length", b"")
        self.declared = int(declared) if declared.isdigit() else 0
        scope.setdefault("state", {})["request_id"] = self.id

    async def run(self) -> None:
        """Admit the request and answer it."""
        try:
            if self.scope["method"] == "POST":
                await self._work()
            else:
                await self.app(self.scope, self._receive, self.send)
        except Refused as error:
            await self._refuse(error)
        except Exception:
            logger.exception("request %s: internal error", self.id)
            await self._refuse(Refused(500, f"internal error; the log has more about {self.id}", "server_error"))
        finally:
            self._log()

    async def _work(self) -> None:
        if self.declared > (most := self.service.limits.body_bytes):
            raise Refused(413, f"{self.declared} bytes; expected at most {most}")
        try:
            self.service.admit()
        except Refused as error:
            await self._discard()
            raise error
        try:
            await self.app(self.scope, self.receive, self.send)
        finally:
            self.service.leave()

    async def _discard(self) -> None:
        """Read the body and forget it: a client that is still sending would not read the answer."""
        with suppress(TimeoutError, Refused):
            async with asyncio.timeout(5):
                while (await self.receive()).get("more_body"):
                    pass

    async def receive(self) -> Message:
        """Receive a part of the body."""
        message = await self._receive()
        self.bytes += len(message.get("body", b""))
        if self.bytes > (most := self.service.limits.body_bytes):
            raise Refused(413, f"more than {most} bytes; expected at most that many")
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the response, with the request's id."""
        if message["type"] == "http.response.start":
            self.is_started, self.status = True, message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.id
            if self.service.is_draining:
                headers["Connection"] = "close"
        await self._send(message)

    async def _refuse(self, error: Refused) -> None:
        if not self.is_started:
            await _refused(Request(self.scope), error)(self.scope, self._receive, self.send)

    def _log(self) -> None:
        seconds = time.monotonic() - self.start
        route = getattr(self.scope.get("route"), "path", "other")
        self.service.metrics.requests.labels(route, str(self.status)).inc()
        self.service.metrics.seconds.labels(route).observe(seconds)
        logger.info(
            "request %s: %s %s %d, %d bytes, %.1f ms",
            self.id,
            self.scope["method"],
            printable(self.scope["path"])[:200],
            self.status,
            self.bytes,
            1000 * seconds,
        )
