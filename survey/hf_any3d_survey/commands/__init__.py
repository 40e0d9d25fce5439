"""Commands of `hf-any3d` for scans of places, with a file for each."""

from __future__ import annotations

import typer

from hf_any3d.cli.command_line import ModelCommand
from hf_any3d.cli.data import data
from hf_any3d.cli.evaluate import evaluation
from hf_any3d.cli.options import with_groups
from hf_any3d_survey.commands.evaluate_numbers import evaluate_numbers
from hf_any3d_survey.commands.inventory import inventory
from hf_any3d_survey.commands.suggest import suggest


def add_commands(app: typer.Typer, panel: str) -> None:
    """Add the commands to the command line and to its groups."""
    app.command(cls=ModelCommand, rich_help_panel=panel)(with_groups(inventory))
    data.command("suggest", cls=ModelCommand)(suggest)
    evaluation.command("numbers")(evaluate_numbers)
