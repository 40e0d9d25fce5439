"""The command line `hf-any3d`, with a file for each command.

Commands import heavy libraries when they run, so that help and errors in arguments appear at once.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Annotated

import typer

from hf_any3d.cli.annotations import convert_annotations
from hf_any3d.cli.ask import command_of
from hf_any3d.cli.chat import chat
from hf_any3d.cli.command_line import CommandLine, ModelCommand
from hf_any3d.cli.compare import compare
from hf_any3d.cli.convert import ConvertCommand, convert
from hf_any3d.cli.convert_clouds import convert_clouds
from hf_any3d.cli.data import data, show
from hf_any3d.cli.demo import demo
from hf_any3d.cli.depth import from_depth
from hf_any3d.cli.detect import detect
from hf_any3d.cli.encoder import encoder
from hf_any3d.cli.evaluate import evaluation
from hf_any3d.cli.example import example
from hf_any3d.cli.inputs import ShownWarnings
from hf_any3d.cli.model import export, info, push, space
from hf_any3d.cli.options import with_groups
from hf_any3d.cli.outputs import check_outputs_of
from hf_any3d.cli.predict import features, predict, reconstruct, zero_shot
from hf_any3d.cli.segment import segment
from hf_any3d.cli.serve import serve
from hf_any3d.cli.train import TrainCommand, train
from hf_any3d.extensions import EXTENSIONS
from hf_any3d.registry import TASKS
from hf_any3d.utils.messages import without_remarks

app = typer.Typer(
    name="hf-any3d",
    cls=CommandLine,
    rich_markup_mode="markdown",
    context_settings={
        "help_option_names": ["-h", "--help"],
        # Programs of transformers spell options with _, others with -; each is right here, for every command.
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
    pretty_exceptions_enable=False,
)
# Help lists the commands in the order in which they are added.
_ASK, _LEARN, _SHARE = "Ask a model", "Data and training", "Models and their files"
_by_hand = (predict, zero_shot, segment, detect, features, chat, reconstruct)
_further = (command_of(task) for task in TASKS.values() if task.help)
for command in (*_by_hand, *_further):
    app.command(cls=ModelCommand, rich_help_panel=_ASK)(with_groups(command))
for _extension in EXTENSIONS.values():
    if _extension.commands is not None:
        importlib.import_module(_extension.commands).add_commands(app, _ASK)
for command in (demo, serve):
    app.command(cls=ModelCommand, rich_help_panel=_ASK)(command)
# Options that `train` does not know are arguments of the training program.
_words = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(cls=TrainCommand, context_settings=_words, rich_help_panel=_LEARN)(train)
app.add_typer(evaluation, name="evaluate", rich_help_panel=_LEARN)
app.command(cls=ModelCommand, rich_help_panel=_LEARN)(compare)
# These belong to the data, but have a file each.
data.command("from-depth")(from_depth)
data.command("annotations")(convert_annotations)
data.command()(example)
data.command("convert")(with_groups(convert_clouds))
app.add_typer(data, name="data", rich_help_panel=_LEARN)
app.command(rich_help_panel=_LEARN)(show)
app.command(cls=ModelCommand, rich_help_panel=_SHARE)(info)
app.command(rich_help_panel=_SHARE)(encoder)
app.command(rich_help_panel=_SHARE)(push)
for command in (export, space):
    app.command(cls=ModelCommand, rich_help_panel=_SHARE)(command)
app.command(cls=ConvertCommand, rich_help_panel=_SHARE)(convert)
check_outputs_of(app)


# Without a command, so that --version alone is enough, and no word at all prints the help.
@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print a traceback for each error; accepted anywhere on the command line.")
    ] = False,
) -> None:
    """3D point clouds in the Hugging Face ecosystem.

    `hf-any3d predict chair.ply` classifies a file with the bundled model; `hf-any3d train FOLDER` trains on your own
    scans, with one subfolder per class; `hf-any3d COMMAND --help` describes a command.
    """
    del debug  # read by CommandLine
    if version:
        from hf_any3d import __version__

        typer.echo(f"hf-any3d {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line; the program `hf-any3d` calls this."""
    # Without the path and the line of code, which say nothing to users.
    with without_remarks(), ShownWarnings() as shown:
        warnings.showwarning = shown.show
        app(prog_name="hf-any3d")
