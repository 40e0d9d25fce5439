"""`hf-any3d batch`: earlier words for runs, which are options of the commands now; they go with the next version."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from hf_any3d.cli.common import ModelCommand, print_note, with_groups
from hf_any3d.cli.convert_clouds import convert_clouds
from hf_any3d.cli.detect import detect
from hf_any3d.cli.predict import features, predict
from hf_any3d.cli.segment import segment

batch = typer.Typer(
    rich_markup_mode="markdown",
    help=(
        "Earlier words for runs over many files; they are options of the commands now.\n\n"
        "`hf-any3d predict scans --output labels.csv --workers 4`"
    ),
    no_args_is_help=True,
)


class Engine(StrEnum):
    """Executors of the work."""

    LOCAL = "local"
    RAY = "ray"


def _as_run(command: Callable[..., None], words: str) -> Callable[..., None]:
    """Return a command that is always a run, with the option `--engine` of before; `words` are those of now."""
    given = with_groups(command)
    engine = inspect.Parameter(
        "engine",
        inspect.Parameter.KEYWORD_ONLY,
        default=Engine.LOCAL,
        annotation=Annotated[Engine, typer.Option(help="Where the work is done.")],
    )
    parameters = [*inspect.signature(given).parameters.values(), engine]

    @wraps(given)
    def run(**values: Any) -> None:
        uses_ray = values.pop("engine") is Engine.RAY
        ray = " --ray" if uses_ray else ""
        given(**{**values, "resume": True, "ray": values["ray"] or uses_ray})
        # Behind the results, and not beside an error
        print_note(f"note: write `hf-any3d {words} … --resume{ray}`; batch goes with version 0.2")

    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


for _name, _command, _words in (
    ("predict", predict, "predict"),
    ("embed", features, "features"),
    ("detect", detect, "detect"),
    ("segment", segment, "segment"),
    ("convert", convert_clouds, "data convert"),
):
    # Conversion opens no model, so that there is no license to accept.
    batch.command(_name, cls=TyperCommand if _command is convert_clouds else ModelCommand)(_as_run(_command, _words))
