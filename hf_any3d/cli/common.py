"""What commands share: options, model loading, input files, and errors in one line with exit code 1."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.messages import model_errors, one_line, print_line


def option(help: str, **settings: Any) -> Any:
    """Make an option whose help has no default, since that is None or named in the text."""
    return typer.Option(help=help, show_default=False, **settings)


ChatModel = Annotated[str, typer.Argument(help="Directory or hub name of a point cloud language model.")]
Device = Annotated[str | None, option("cpu, cuda, cuda:1, mps …; by default the fastest available.")]
Files = Annotated[list[Path], typer.Argument(metavar="FILE…", help="Point files, meshes, or folders of them.")]
Revision = Annotated[str | None, option("Branch, tag or commit of the model on the hub.")]
Template = Annotated[
    str | None,
    option("Chat template of the processor, such as demo; by default its own."),
]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print errors in what the user gave in one line on stderr and exit; other errors keep their traceback.

    With `ANY3D_TRACEBACK=1` the traceback is printed before the line.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("ANY3D_TRACEBACK", "") not in ("", "0"):
            traceback.print_exc()
        print_error(error)
        raise typer.Exit(1) from None


def print_error(error: Exception | str) -> None:
    """Print an error on stderr."""
    print_line(f"error: {one_line(error)}", is_error=True)


def quiet_libraries() -> None:
    """Turn off progress bars and remarks of transformers and the hub client; errors are still raised."""
    import huggingface_hub.utils
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)


def open_pipeline(task: str, model: str, device: str | None) -> Any:
    """Open a directory or hub repository as a pipeline, on the fastest device unless one is named."""
    from transformers import pipeline

    from hf_any3d.registration import register

    register()
    open_task: Any = pipeline  # typed for tasks of transformers alone
    with model_errors(model):
        return open_task(task, model=model, device=device, trust_remote_code=False)


def open_chat(model: str, device: str | None, template: str | None) -> Any:
    """Open a pipeline that answers questions about point clouds.

    Raises:
        ValueError: Its processor has no template of this name.
    """
    pipe = open_pipeline("point-cloud-text-to-text", model, device)
    with model_errors(model):  # a wrong template name fails here, not at the first question
        pipe.processor.apply_chat_template([{"role": "user", "content": ""}], template)
    return pipe


def find_files(given: list[Path]) -> list[Path]:
    """List files, and for each folder the readable files below it, sorted by name.

    Raises:
        FileNotFoundError: A path does not exist, or a folder has no readable file.
    """
    from hf_any3d.data.files import supported_file_types

    types = {f".{name}" for name in supported_file_types()}
    found = []
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in types)
            if not inside:
                raise FileNotFoundError(
                    f"{path}: no point cloud in this folder; readable are {', '.join(sorted(types))}"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    return found
