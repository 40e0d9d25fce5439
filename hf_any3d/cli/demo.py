"""`hf-any3d demo`: a page in the browser to try a model of any kind on point clouds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.libraries import need_packages
from hf_any3d.cli.opening import CHAT, found_model, model_for, open_any_model
from hf_any3d.cli.options import AllowedHost, Device, Template, option
from hf_any3d.cli.sockets import listen
from hf_any3d.utils.http_hosts import Hosts
from hf_any3d.utils.messages import print_line


def demo(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Directory or Hub name of a model for any task; by default the bundled classifier.",
            show_default=False,
        ),
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Folder of example shapes; ID_8192.npy is listed as ID.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 accepts connections from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    share: Annotated[bool, typer.Option("--share", help="Create a public link through Gradio's servers.")] = False,
    task: Annotated[
        str | None,
        option("Task to run, by its command, such as features; by default the model's own task."),
    ] = None,
    allowed_host: AllowedHost = None,
    template: Template = None,
    context: Annotated[
        int, typer.Option(min=64, help="Context length for chat models, in tokens, including the next answer.")
    ] = 400,
    device: Device = None,
) -> None:
    """Try a model in the browser, on examples and uploaded files.

    The page shows the shape in 3D and, depending on the model, its classes, scores for labels you type, its parts, its
    reconstruction, similar shapes, or a chat about it. Several visitors can use it at once. Press Ctrl-C to stop.
    """
    need_packages("demo", "gradio")
    from hf_any3d.data.example_shapes import ExampleShapes

    found = model_for(None, "predict") if model is None else found_model(model)
    # A folder without shapes is an error before the model is loaded.
    shapes = ExampleShapes(examples)
    hosts = Hosts(host, allowed_host or ())
    listen(host, port).close()  # before the model is loaded
    is_here = Path(found.name).is_dir()
    first_time = "" if is_here else "; the first time, its weights are downloaded"
    print_line(f"loading {found.name}{first_time} …")
    task_name, pipe = open_any_model(found, device, template, command=task)
    print_line(f"{len(shapes.names)} shapes to choose from; opening the page …")
    from hf_any3d.demo.conversation import Conversation
    from hf_any3d.demo.page import DemoPage
    from hf_any3d.demo.task_pages import TaskAnswers, TaskPage

    name = "the classifier of household objects of hf-any3d" if model is None else found.title
    # Each visitor gets a conversation of their own; other models remember nothing of what they were asked.
    if task_name == CHAT:
        demo_page = DemoPage(name, shapes, partial(Conversation, pipe, template, context))
    else:
        demo_page = TaskPage(name, shapes, TaskAnswers(task_name, pipe, shapes))
    page = demo_page.open(host, port, share, hosts)
    # The second address is there with --share alone.
    for address in filter(None, (page.local_url, page.share_url)):
        print_line(f"open {address} in a browser; Ctrl-C stops")
    page.block_thread()
