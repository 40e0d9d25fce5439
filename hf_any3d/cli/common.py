"""How commands fail: one line on stderr that says what was wrong, and exit code 1."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from hf_any3d.messages import one_line, opened, say


def quieten_libraries() -> None:
    """Turn off progress bars and remarks of transformers and the hub client; errors are still raised."""
    import huggingface_hub.utils
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)


def open_pipeline(task: str, model: str, device: str | None) -> Any:
    """A pipeline around a directory or hub repository, on the fastest device unless one is named."""
    from transformers import pipeline

    from hf_any3d.registration import register

    register()
    with opened(model):
        return pipeline(task, model=model, device=device, trust_remote_code=False)


def open_chat(model: str, device: str | None, template: str | None) -> Any:
    """A pipeline that talks about point clouds.

    Raises:
        ValueError: If its processor has no template of this name.
    """
    pipe = open_pipeline("point-cloud-text-to-text", model, device)
    with opened(model):  # a wrong name is told now
        pipe.processor.apply_chat_template([{"role": "user", "content": ""}], template)
    return pipe


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Turn errors in what the user gave into a line on stderr; others keep their traceback.

    With `ANY3D_TRACEBACK=1` the line follows the traceback.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("ANY3D_TRACEBACK", "") not in ("", "0"):
            traceback.print_exc()
        tell(error)
        raise typer.Exit(1) from None


def tell(error: Exception | str) -> None:
    """Print an error on stderr."""
    say(f"error: {one_line(error)}", is_error=True)
