"""`hf-any3d convert`: original checkpoints into directories that `from_pretrained` opens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.failures import told_in_one_line
from hf_any3d.cli.quiet import quieten_libraries

convert = typer.Typer(help="Convert original checkpoints.", no_args_is_help=True)

_CHECKPOINT = typer.Argument(metavar="CHECKPOINT", help="The authors' file.", show_default=False)
_OUTPUT = typer.Option(help="Directory to make.", show_default=False)


@convert.command()
def any2point(
    checkpoint: Annotated[Path, _CHECKPOINT],
    variant: Annotated[
        str,
        typer.Option(
            help="clip-scan, clip-modelnet, dinov2-scan, dinov2-modelnet, imagebind-scan or imagebind-modelnet.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, _OUTPUT],
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Directory or hub name of the frozen encoder; by default the one the authors started from.",
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the encoder on the hub.", show_default=False)
    ] = None,
    store_encoder: Annotated[
        bool, typer.Option("--store-encoder", help="Keep the frozen encoder in the directory too.")
    ] = False,
) -> None:
    """Convert a released Any2Point classifier.

    Every tensor is accounted for, and the frozen layers are compared with the encoder's. The directory opens with
    AutoModelForPointCloudClassification.
    """
    with told_in_one_line():
        quieten_libraries()
        from hf_any3d.registration import register

        register()
        from hf_any3d.converting import convert_any2point

        facts = convert_any2point(
            checkpoint, variant, output, encoder=encoder, revision=revision, store_encoder=store_encoder
        )
    typer.echo(
        f"{facts['output']}: {facts['trained_parameters']:,} trained parameters, {facts['bytes'] / 1e6:,.1f} MB, "
        f"encoder {facts['encoder']}"
    )


@convert.command()
def imagebind_audio(checkpoint: Annotated[Path, _CHECKPOINT], output: Annotated[Path, _OUTPUT]) -> None:
    """Convert the audio encoder of ImageBind, for use as a frozen encoder."""
    with told_in_one_line():
        quieten_libraries()
        from hf_any3d.registration import register

        register()
        from hf_any3d.converting import convert_imagebind_audio

        facts = convert_imagebind_audio(checkpoint, output)
    typer.echo(f"{facts['output']}: {facts['parameters']:,} parameters")
