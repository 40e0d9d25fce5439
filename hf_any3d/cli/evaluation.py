"""`hf-any3d evaluate`: classifiers by their name alone, other systems by the name of their protocols."""

from __future__ import annotations

import click
import typer
from typer.core import TyperGroup

from hf_any3d.cli.evaluate import evaluate
from hf_any3d.cli.evaluate_minigpt3d import evaluate_minigpt3d

_DEFAULT = "classifier"


class _ClassifierByDefault(TyperGroup):
    """`evaluate MODEL …` means `evaluate classifier MODEL …`, whatever options come first."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


evaluation = typer.Typer(
    cls=_ClassifierByDefault,
    no_args_is_help=True,
    help="Judge a trained model by the published protocols. `evaluate MODEL …` is short for `evaluate classifier "
    "MODEL …`; a folder that is called like one of the commands is given as ./NAME.",
)
evaluation.command(_DEFAULT)(evaluate)
evaluation.command("minigpt3d")(evaluate_minigpt3d)
