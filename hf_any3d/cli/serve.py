"""`hf-any3d serve`: an HTTP service for a model."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.libraries import need_packages
from hf_any3d.cli.opening import found_model, model_for, open_any_model
from hf_any3d.cli.options import AllowedHost, Device, Template, option
from hf_any3d.cli.sockets import listen
from hf_any3d.serving.logs import LogFormat, configure_logs, logger
from hf_any3d.tasks.settings import ESTIMATE_NORMALS
from hf_any3d.utils.http_hosts import Hosts
from hf_any3d.utils.messages import print_line, printable


def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Directory or Hub name of a model; by default the bundled classifier.", show_default=False
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 accepts connections from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8000,
    name: Annotated[str | None, option("Model name in responses; by default the name of its directory.")] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Maximum number of point clouds or conversations per batch.")
    ] = 8,
    max_wait: Annotated[float, typer.Option(min=0, help="Milliseconds to wait for more requests to batch.")] = 5.0,
    max_queue: Annotated[int, typer.Option(min=1, help="Maximum number of pending requests; more get a 429.")] = 64,
    max_megabytes: Annotated[float, typer.Option(min=0.001, help="Maximum size of a request, in MB.")] = 64.0,
    max_points: Annotated[int, typer.Option(min=1, help="Maximum points per cloud.")] = 1_000_000,
    max_clouds: Annotated[int, typer.Option(min=1, help="Maximum clouds per request.")] = 16,
    max_seconds: Annotated[
        float, typer.Option(min=0.01, help="Request timeout in seconds; then the response is a 504.")
    ] = 60.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens in a chat model's answer.")] = 1024,
    max_connections: Annotated[
        int, typer.Option(min=1, help="Maximum number of open connections; more get a 503.")
    ] = 1000,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds to finish pending requests after SIGTERM.")
    ] = 30.0,
    cors_origin: Annotated[
        list[str] | None, option("Allowed CORS origin, such as https://example.org, or *; can be repeated.")
    ] = None,
    allowed_host: AllowedHost = None,
    log_format: Annotated[LogFormat, typer.Option(help="Log format.")] = LogFormat.TEXT,
    template: Template = None,
    estimate_normals: Annotated[bool, typer.Option("--estimate-normals", help=ESTIMATE_NORMALS)] = False,
    device: Device = None,
) -> None:
    """Serve a model over HTTP: classes, features, parts, boxes, or an OpenAI-compatible chat API.

    Concurrent requests are batched. Open `/` to try a file in the browser and `/docs` for the API. Until the model is
    loaded, requests get a 503. SIGTERM or Ctrl-C shuts down after pending requests are finished; a second signal stops
    immediately.
    """
    need_packages("serve", "fastapi", "uvicorn", "prometheus_client", "python_multipart")
    from hf_any3d.serving.limits import ServeLimits
    from hf_any3d.serving.starting import answers_while_starting

    # In bytes and seconds; the options have megabytes and milliseconds.
    limits = ServeLimits(
        body_bytes=int(max_megabytes * 2**20),
        points=max_points,
        clouds=max_clouds,
        seconds=max_seconds,
        queue=max_queue,
        batch=max_batch,
        wait=max_wait / 1000,
        new_tokens=max_new_tokens,
        connections=max_connections,
    )
    found = model_for(None, "predict") if model is None else found_model(model)
    hosts = Hosts(host, allowed_host or ())
    listening = listen(host, port)  # before the model is loaded
    configure_logs(log_format)
    name = name or Path(found.name).resolve().name
    bound = listening.getsockname()[1]
    logger.info("port %d: loading %s; until it is, /ready answers 503", bound, printable(name))
    with answers_while_starting(listening):
        # Here, since these imports take seconds themselves.
        from hf_any3d.serving.server import serve as serve_until_signal
        from hf_any3d.serving.service import Service
        from hf_any3d.serving.tasks import SERVED

        task, pipe = open_any_model(found, device, template, SERVED)
        if estimate_normals:
            if getattr(pipe, "feature_extractor", None) is None:
                raise ValueError(f"--estimate-normals: {found.name} reads no normals; leave it out")
            # Of all requests, also those that do not ask for it.
            pipe.feature_extractor.with_estimated_normals()
        service = Service(name, task, pipe, limits, template)
    # IPv6 addresses are in brackets in URLs.
    address = f"[{host}]" if ":" in host else host
    url = f"http://{address}:{bound}"
    print_line(f"{printable(service.name)}: {url} ({', '.join(service.paths)}); Ctrl-C stops")
    print_line(f"try a file at {url}/")
    unanswered = serve_until_signal(service, listening, drain_seconds, cors_origin or (), hosts)
    # The exit below skips what Python does at its end.
    sys.stdout.flush()
    sys.stderr.flush()
    # Answers are sent. Freeing every object of torch takes seconds on a busy machine, of the time that
    # SIGTERM leaves.
    os._exit(1 if unanswered else 0)
