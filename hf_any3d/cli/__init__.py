"""The command line `hf-any3d`, with a file for each command.

Commands import heavy libraries when they run, so that help and errors in arguments appear at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from hf_any3d.cli.chat import chat
from hf_any3d.cli.convert import convert
from hf_any3d.cli.demo import demo
from hf_any3d.cli.evaluate import evaluation
from hf_any3d.cli.export import export
from hf_any3d.cli.info import info
from hf_any3d.cli.predict import predict
from hf_any3d.cli.reconstruct import reconstruct
from hf_any3d.cli.research import MORE_ARGUMENTS, reproduce, sweep

app = typer.Typer(
    name="hf-any3d",
    help="3D point clouds in the Hugging Face ecosystem.",
    pretty_exceptions_enable=False,
)
app.command()(predict)
app.command()(reconstruct)
app.add_typer(evaluation, name="evaluate")
app.command()(chat)
app.command()(demo)
app.command()(info)
app.command()(export)
app.add_typer(convert, name="convert")
for research in (reproduce, sweep):
    app.command(context_settings=MORE_ARGUMENTS)(research)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """3D point clouds in the Hugging Face ecosystem."""
    if version:
        from hf_any3d import __version__

        typer.echo(f"hf-any3d {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line; the console script `hf-any3d` calls this."""
    app()
