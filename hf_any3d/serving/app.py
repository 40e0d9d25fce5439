"""The routes of a service, as a FastAPI application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import wraps
from typing import Any

import anyio
from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from hf_any3d.serving.inputs import CloudInput, Upload, upload_of, validated
from hf_any3d.serving.labeled_files import FileSettings, LabeledFile
from hf_any3d.serving.limits import CLIENT_IS_GONE, Refused
from hf_any3d.serving.logs import logger
from hf_any3d.serving.middleware import AdmissionMiddleware, as_json, json_response, refused
from hf_any3d.serving.openai_chat import (
    DONE,
    ChatRequest,
    Chunks,
    check_request,
    completion,
    conversation_of,
    uploads_of,
)
from hf_any3d.serving.pages import docs_page, front_page
from hf_any3d.serving.requests import check_count, check_texts, is_form, parse_json, read_form, read_json
from hf_any3d.serving.service import Service
from hf_any3d.serving.tasks import FILE_PATH, SEGMENT_PATH, Settings
from hf_any3d.tasks.chat.batches import Conversation
from hf_any3d.utils.http_hosts import Hosts
from hf_any3d.utils.messages import cut, one_line, printable
from hf_any3d.version import __version__
from hf_any3d.visualization.html_pages import ICON

# Threads that read files and prepare answers, besides the one of the model.
_READERS = 4


def create_app(service: Service, origins: Sequence[str] = (), hosts: Hosts | None = None) -> FastAPI:
    """Return the application of a service; its end closes the service.

    Pages of `origins`, "*" for all, may ask it, by the names in `hosts`, None for any.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(service.close)

    # No redirects to paths without a slash: they would lead to the host that the client names.
    title = f"hf_any3d: {service.name}"
    # The pages of FastAPI load their scripts from another server, and stay empty without the internet.
    pages: dict[str, Any] = {"docs_url": None, "redoc_url": None}
    app = FastAPI(title=title, version=__version__, lifespan=lifespan, redirect_slashes=False, **pages)
    # Threads are limited for the whole application, however many requests there are.
    app.state.service, app.state.readers = service, anyio.CapacityLimiter(_READERS)
    # Middleware that is added later runs first: CORS headers come with refusals of the admission, too.
    app.add_middleware(AdmissionMiddleware, service=service, hosts=hosts)
    if origins:
        exposed = ["X-Request-ID", "Retry-After"]
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=exposed,
        )
    app.add_exception_handler(Refused, refused)  # pyright: ignore[reportArgumentType] as FastAPI documents it
    app.add_exception_handler(HTTPException, _http_error)  # pyright: ignore[reportArgumentType]

    _add_pages(app, service)

    @app.get("/health", summary="Whether the process answers")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Whether requests are accepted")
    async def ready() -> JSONResponse:
        # A load balancer sends no more requests to a server that is stopping.
        is_ready = service.batcher.is_alive and not service.is_draining
        return JSONResponse({"status": "ready" if is_ready else "stopping"}, 200 if is_ready else 503)

    described = _answers("text/plain")

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response, responses=described)
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"content-type": service.metrics.content_type})

    @app.get("/v1/models", summary="The model, its task and its routes")
    async def models() -> dict[str, Any]:
        entry = {"id": service.name, "object": "model", "created": service.created, "owned_by": "hf_any3d"}
        return {"object": "list", "data": [{**entry, "task": service.task, "routes": service.paths}]}

    _add_answers(app, service)
    return app


def _add_pages(app: FastAPI, service: Service) -> None:
    """Add the pages for people, which the description of the routes leaves out."""

    async def front() -> HTMLResponse:
        return HTMLResponse(front_page(service))

    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))

    async def icon() -> Response:
        return Response(ICON, media_type="image/svg+xml")

    # The page of the routes is at both paths that FastAPI has for it.
    for path, page in (("/", front), ("/docs", docs), ("/redoc", docs), ("/favicon.ico", icon)):
        app.get(path, include_in_schema=False)(page)


def _add_answers(app: FastAPI, service: Service) -> None:
    """Add the routes that the model answers."""
    for route in service.routes.values():
        summary = f"{route.path.rpartition('/')[2].capitalize()} clouds"
        app.post(route.path, summary=summary, openapi_extra=_described(route.settings))(answer_clouds)
    if SEGMENT_PATH in service.routes:
        add = app.post(
            FILE_PATH,
            summary="Return a file with the class of each point",
            openapi_extra=_described(FileSettings, files_only=True),
            response_class=Response,
            responses=_answers("application/octet-stream"),
        )
        add(answer_file)
    if service.has_chat:
        body = {"content": {"application/json": {"schema": ChatRequest.model_json_schema()}}, "required": True}
        add = app.post(
            "/v1/chat/completions",
            summary="Continue a conversation",
            openapi_extra={"requestBody": body},
            responses=_answers("application/json", "text/event-stream"),
        )
        add(answer_chat)


def _answers(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """Describe answers that are no JSON, or not only."""
    return {200: {"description": "Successful Response", "content": {kind: {} for kind in kinds}}}


def in_time(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Decorate a route: a request is refused at the end of its time."""

    @wraps(answer)
    async def limited(request: Request) -> Response:
        service: Service = request.app.state.service
        request.state.deadline = time.monotonic() + service.limits.seconds
        try:
            async with asyncio.timeout(service.limits.seconds):
                return await answer(request)
        except TimeoutError:
            raise _too_late(service) from None

    return limited


@in_time
async def answer_clouds(request: Request) -> Response:
    """Answer a request about clouds, each of which is a member of a batch of its own.

    It is JSON with `point_clouds`, or a form with files; the other fields are settings.
    """
    service = request.app.state.service
    readers = request.app.state.readers
    path = request.scope["route"].path
    if is_form(request):
        fields, files = await read_form(request, service)
        uploads = list(files.values())
    else:
        fields = await read_json(request)
        clouds = fields.pop("point_clouds", None)
        clouds = clouds if isinstance(clouds, list) else []
        # Before anything is decoded
        check_count(len(clouds), service)
        uploads = []
        for number, cloud in enumerate(clouds):
            # In threads, as decoding base64 takes seconds for large clouds.
            arguments = cloud, f"point_clouds.{number}", {}
            uploads.append(await anyio.to_thread.run_sync(upload_of, *arguments, limiter=readers))
    if not uploads:
        text = "the request has no point cloud; send files in the field 'file', or a list point_clouds"
        raise Refused(400, text, param="point_clouds")
    # Settings are checked before any cloud is read.
    route = service.routes[path]
    settings = validated(route.settings, fields)
    check_texts(fields, service)
    route.check(settings, service.limits)

    clouds = []
    # One after the other, so that a request holds one cloud's reader at a time, and not all threads.
    for upload in uploads:
        arguments = service.limits, service.columns
        clouds.append(await anyio.to_thread.run_sync(upload.read, *arguments, limiter=readers))
        service.metrics.points.inc(len(clouds[-1]))
    deadline = request.state.deadline
    # All clouds wait in the queue together, where they may share a batch.
    answers = await results(request, [service.submit((path, settings), cloud, deadline) for cloud in clouds])
    shown = [{"name": upload.name, **answer} for upload, answer in zip(uploads, answers, strict=True)]
    body = await anyio.to_thread.run_sync(as_json, {"model": service.name, "answers": shown}, limiter=readers)
    return json_response(body)


@in_time
async def answer_file(request: Request) -> Response:
    """Return the file of a form with the class of each point, everything else in it as it was."""
    service = request.app.state.service
    readers = request.app.state.readers
    fields, files = await read_form(request, service) if is_form(request) else ({}, {})
    if len(files) != 1:
        raise Refused(400, f"{len(files)} files; expected one, in the field 'file' of a form", param="file")
    (upload,) = files.values()
    # Answers in base64 are arrays again at once, which the copy is made from.
    settings = validated(FileSettings, fields).model_copy(update={"encoding": "base64"})
    check_texts(fields, service)
    service.routes[SEGMENT_PATH].check(settings, service.limits)
    # Before the model runs, since not every file has a place for labels
    labeled = await anyio.to_thread.run_sync(LabeledFile, service, upload, settings, limiter=readers)
    cloud = await anyio.to_thread.run_sync(upload.read, service.limits, service.columns, limiter=readers)
    service.metrics.points.inc(len(cloud))
    work = service.submit((SEGMENT_PATH, settings), cloud, request.state.deadline)
    (answer,) = await results(request, [work])
    body = await anyio.to_thread.run_sync(labeled.copy, cloud, answer, limiter=readers)
    return Response(body, media_type="application/octet-stream")


@in_time
async def answer_chat(request: Request) -> Response:
    """Continue a conversation, at once or as a stream of events.

    The request is JSON, or a form with the JSON in the field `request`, and files.
    """
    service = request.app.state.service
    readers = request.app.state.readers
    request_id = request.state.request_id
    files: dict[str, Upload] = {}
    if is_form(request):
        fields, files = await read_form(request, service)
        if set(fields) != {"request"}:
            text = f"the form has the fields {sorted(fields)}; expected 'request' and files"
            raise Refused(400, text, param="request")
        content = parse_json(fields["request"].encode(), "request")
    else:
        content = await read_json(request)
    asked = validated(ChatRequest, content)
    check_request(asked, service)
    # In a thread, as decoding base64 takes seconds for large clouds
    uploads = await anyio.to_thread.run_sync(uploads_of, asked, files, limiter=readers)
    check_count(len(uploads), service)
    check_texts([part.text for message in asked.messages for part in message.texts], service)
    conversation = await anyio.to_thread.run_sync(conversation_of, asked, uploads, service, limiter=readers)
    if not asked.stream:
        try:
            work = service.submit(conversation.key, conversation, request.state.deadline)
            (answer,) = await results(request, [work])
        finally:
            # Generation goes on in its own thread until it is told that nobody waits.
            conversation.canceled.set()
        service.metrics.new_tokens.inc(answer.tokens)
        return json_response(as_json(completion(service.name, request_id, conversation, answer)))
    pieces: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def put(piece: str | None) -> None:
        with suppress(RuntimeError):  # the server has ended
            # Pieces come from the thread of the model; asyncio's queue may be used by its own thread alone.
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    # Before it is submitted, since the model may answer at once.
    conversation.listen = put
    # From here on the model may write at any time, in a thread of its own.
    future = service.submit(conversation.key, conversation, request.state.deadline)
    # The end of the answer ends the queue, also after an error.
    future.add_done_callback(lambda _: put(None))
    include_usage = asked.stream_options is not None and asked.stream_options.include_usage
    events = _events(request, service, conversation, future, pieces, include_usage)
    return _Stream(events, conversation, future)


class _Stream(StreamingResponse):
    """A stream of events; its end, or a client that leaves, ends the answer."""

    def __init__(self, events: AsyncIterator[bytes], conversation: Conversation, future: Any):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.conversation = conversation
        self.future = future

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.conversation.canceled.set()
            self.future.cancel()


async def _events(
    request: Request,
    service: Service,
    conversation: Conversation,
    future: Any,
    pieces: asyncio.Queue[str | None],
    include_usage: bool,
) -> AsyncIterator[bytes]:
    """Yield the events of a streamed answer."""
    chunks = Chunks(service.name, request.state.request_id)
    try:
        # The first chunk names the role alone, as in OpenAI's API.
        yield _event(chunks.delta({"role": "assistant", "content": ""}))
        # The route has returned by now, and its limit of time with it.
        async with asyncio.timeout(max(0, request.state.deadline - time.monotonic())):
            while (piece := await pieces.get()) is not None:
                yield _event(chunks.delta({"content": piece}))
        answer = future.result()
        service.metrics.new_tokens.inc(answer.tokens)
        yield _event(chunks.delta({}, answer))
        if include_usage:
            yield _event(chunks.usage(conversation, answer))
        yield DONE
    # The status of the answer is sent already, so that errors are events of the stream.
    except TimeoutError:
        yield _event(_too_late(service).body())
    except Exception:
        logger.exception("request %s: the answer broke off", request.state.request_id)
        yield _event(Refused(500, "internal error; the answer broke off", "server_error").body())


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + as_json(content) + b"\n\n"


def _too_late(service: Service) -> Refused:
    return Refused(
        504, f"no answer within {service.limits.seconds:g} s, the time limit of this server", "timeout_error"
    )


async def results(request: Request, futures: list[Any]) -> list[Any]:
    """Wait for results of the model; if the client leaves or the time is over, work is canceled."""
    done = asyncio.gather(*map(asyncio.wrap_future, futures))
    # Whichever comes first: the results, or the end of the connection
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
        # Nobody is left to read the answer; the log shows the status that nginx uses for this.
        if not done.done():
            raise Refused(CLIENT_IS_GONE, "the client is gone")
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
    # The body has been read, so that only the end of the connection can follow.
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _http_error(request: Request, error: HTTPException) -> Response:
    service = request.app.state.service
    path = request.url.path
    text = str(error.detail)
    if error.status_code == 404:
        text = f"{cut(printable(path), 200)}: no such route; this model answers {', '.join(service.paths)}"
    return refused(request, Refused(error.status_code, text, headers=dict(error.headers or {})))


def _described(settings: type[Settings], files_only: bool = False) -> dict[str, Any]:
    """Return the description of a request, which is read by hand, for the page of the API."""
    schema = settings.model_json_schema()
    fields = schema.pop("properties")
    files = {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}}
    forms = {"point_clouds": {"type": "array", "items": CloudInput.model_json_schema()}}, files
    contents = [{"schema": {"type": "object", "properties": {**form, **fields}}} for form in forms]
    kinds = ("application/json", "multipart/form-data")
    described = dict(zip(kinds, contents, strict=True))
    if files_only:
        del described["application/json"]
    return {"requestBody": {"required": True, "content": described}}
