"""`hf-any3d demo`: a page in the browser to try a model of any kind on point clouds."""

from __future__ import annotations

import socket
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.common import Device, Template, find_model, one_line_errors, open_chat, open_pipeline
from hf_any3d.utils.messages import model_errors, print_line


def demo(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Directory or hub name of a model of any kind; by default the classifier of the package.",
            show_default=False,
        ),
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Folder of shapes to choose from; ID_8192.npy is listed as ID.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 admits other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    share: Annotated[bool, typer.Option("--share", help="Make the page public, through gradio's servers.")] = False,
    template: Template = None,
    context: Annotated[
        int, typer.Option(min=64, help="Tokens of a conversation with a chat model, including the next answer.")
    ] = 400,
    device: Device = None,
) -> None:
    """Try a model on a page in the browser, with examples and with files that visitors upload.

    The page shows the shape in 3D and, depending on the model, its classes, the scores of any words, its parts, its
    reconstruction, similar shapes, or a conversation about it. Several visitors share the model. Ctrl-C stops it.
    """
    with one_line_errors():
        if find_spec("gradio") is None:
            raise ImportError("the demo needs gradio: pip install 'hf-any3d[demo]'")
        from hf_any3d.demo.page import ExampleShapes
        from hf_any3d.demo.task_pages import CHAT
        from hf_any3d.integration.registration import task_of

        if model is None:
            from hf_any3d.pipelines import default_model

            model = default_model()
        model = find_model(model)
        shapes = ExampleShapes(examples)
        _check_port(host, port)  # before the model is loaded
        with model_errors(model):
            task = task_of(model)
        if task != CHAT and template is not None:
            raise ValueError(f"--template {template}: {model} is not a chat model")
        print_line(f"loading {model}; the first time, its weights are downloaded …")
        pipe = _open(task, model, device, template)
        print_line(f"{len(shapes.names)} shapes to choose from; opening the page …")
        page = _page(task, model, shapes, pipe, template, context).open(host, port, share)
        for address in filter(None, (page.local_url, page.share_url)):
            print_line(f"open {address} in a browser; Ctrl-C stops")
    page.block_thread()


def _check_port(host: str, port: int) -> None:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise OSError(f"--host {host} --port {port}: {error.strerror or error}; expected a free port") from error


def _page(task: str, model: str, shapes: Any, pipe: Any, template: str | None, context: int) -> Any:
    from hf_any3d.demo.task_pages import CHAT, TaskAnswers, TaskPage

    # Visitors are told the name of a directory, not where it is.
    name = Path(model).resolve().name if Path(model).is_dir() else model
    if task != CHAT:
        return TaskPage(name, shapes, TaskAnswers(task, pipe, shapes))
    from hf_any3d.demo.conversation import Conversation
    from hf_any3d.demo.page import DemoPage

    return DemoPage(name, shapes, partial(Conversation, pipe, template, context))


def _open(task: str, model: str, device: str | None, template: str | None) -> Any:
    start = time.monotonic()
    is_chat = task == "point-cloud-text-to-text"
    pipe = open_chat(model, device, template) if is_chat else open_pipeline(task, model, device)
    seconds = time.monotonic() - start
    size = sum(parameter.numel() for parameter in pipe.model.parameters())
    print_line(f"loaded {size:,} weights on {pipe.device} ({pipe.model.dtype}) in {seconds:.0f} s")
    return pipe
