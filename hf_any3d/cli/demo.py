"""`hf-any3d demo`: a page in the browser to ask a model about point clouds."""

from __future__ import annotations

import socket
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.common import ChatModel, Device, Template, one_line_errors, open_chat
from hf_any3d.messages import print_line


def demo(
    model: ChatModel,
    examples: Annotated[
        Path | None, typer.Option(help="Folder of shapes to choose from; ID_8192.npy is listed as ID.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 admits other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    share: Annotated[bool, typer.Option("--share", help="Make the page public, through gradio's servers.")] = False,
    template: Template = None,
    context: Annotated[int, typer.Option(min=64, help="Tokens of a conversation, including the next answer.")] = 400,
    device: Device = None,
) -> None:
    """Ask a model about point clouds on a page in the browser.

    The page shows the shape in 3D, streams answers, and forgets the oldest questions when a conversation grows too
    long. Ctrl-C stops it.
    """
    with one_line_errors():
        if find_spec("gradio") is None:
            raise ImportError("the demo needs gradio: pip install 'hf-any3d[demo]'")
        from hf_any3d.demo.page import ExampleShapes

        shapes = ExampleShapes(examples)
        _check_port(host, port)  # before the model is loaded
        print_line(f"loading {model}; the first time, its weights are downloaded …")
        pipe = _open(model, device, template)
        print_line(f"{len(shapes.names)} shapes to choose from; opening the page …")
        from hf_any3d.demo.conversation import Conversation
        from hf_any3d.demo.page import DemoPage

        page = DemoPage(model, shapes, partial(Conversation, pipe, template, context)).open(host, port, share)
        for address in filter(None, (page.local_url, page.share_url)):
            print_line(f"open {address} in a browser; Ctrl-C stops")
    page.block_thread()


def _check_port(host: str, port: int) -> None:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise OSError(f"--host {host} --port {port}: {error.strerror or error}; expected a free port") from error


def _open(model: str, device: str | None, template: str | None) -> Any:
    start = time.monotonic()
    pipe = open_chat(model, device, template)
    seconds = time.monotonic() - start
    size = sum(parameter.numel() for parameter in pipe.model.parameters())
    print_line(f"loaded {size:,} weights on {pipe.device} ({pipe.model.dtype}) in {seconds:.0f} s")
    return pipe
