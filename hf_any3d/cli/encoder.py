"""`hf-any3d encoder`: whether a checkpoint can read point clouds, and how, or why not."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_any3d.cli.libraries import load_libraries
from hf_any3d.cli.options import AsCsv, AsJson, Revision
from hf_any3d.cli.outputs import write_results
from hf_any3d.cli.progress import status
from hf_any3d.utils.messages import print_line


def encoder(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Hub name or directory of a text, vision or audio checkpoint, or a model type such as bert."
        ),
    ],
    tower: Annotated[
        str | None,
        typer.Option(help="Which encoder of a multimodal checkpoint: text, vision or audio; by default all."),
    ] = None,
    revision: Revision = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Check whether the layers of a checkpoint can process point clouds, and explain how or why not.

    Downloads only its configuration and runs a small, randomly initialized copy of the model. The exit code is 1 if
    none of its encoders is supported.
    """
    with status("tracing its forward pass"):
        load_libraries()
        from hf_any3d.modeling.encoders.answers import encoder_facts

        rows = encoder_facts(checkpoint, tower, revision)
    write_results({"encoders": rows}, rows, None, as_json, as_csv)
    if not as_json and not as_csv:
        for row in rows:
            for fact, value in row.items():
                print_line(f"{fact:<9}  {value}")
    if not any(row["works"] == "yes" for row in rows):
        raise typer.Exit(1)
