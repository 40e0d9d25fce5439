"""The command line `hf-any3d`: one file a command.

Commands import what is heavy when they run, so that help and errors in arguments come at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from hf_any3d.cli.info import info
from hf_any3d.cli.predict import predict

app = typer.Typer(
    name="hf-any3d",
    help="3D point clouds in the Hugging Face ecosystem.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(predict)
app.command()(info)


def _print_version(wanted: bool) -> None:
    if wanted:
        from hf_any3d import __version__

        typer.echo(f"hf-any3d {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """3D point clouds in the Hugging Face ecosystem."""


def main() -> None:
    """Run the command line; the console script `hf-any3d` calls this."""
    app()
