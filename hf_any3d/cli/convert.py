"""`hf-any3d convert`: original checkpoints into directories that `from_pretrained` opens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.convert_minigpt3d import minigpt3d, minigpt3d_parts
from hf_any3d.cli.failures import told_in_one_line
from hf_any3d.cli.quiet import quieten_libraries
from hf_any3d.messages import say

convert = typer.Typer(help="Convert original checkpoints.", no_args_is_help=True)
convert.command()(minigpt3d)
convert.command()(minigpt3d_parts)

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
        from hf_any3d.conversions import convert_any2point

        facts = convert_any2point(
            checkpoint, variant, output, encoder=encoder, revision=revision, store_encoder=store_encoder
        )
    say(
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
        from hf_any3d.conversions import convert_imagebind_audio

        facts = convert_imagebind_audio(checkpoint, output)
    say(f"{facts['output']}: {facts['parameters']:,} parameters")


@convert.command()
def act(
    checkpoint: Annotated[Path, _CHECKPOINT],
    kind: Annotated[str, typer.Option(help="dvae, pretrain, cls, partseg or semseg.", show_default=False)],
    output: Annotated[Path, _OUTPUT],
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Directory or hub name of the frozen teacher of stages I and II, to compare it and leave it out; by "
            "default it is kept in the directory.",
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the teacher on the hub.", show_default=False)
    ] = None,
    store_encoder: Annotated[
        bool, typer.Option("--store-encoder", help="Keep a named teacher in the directory too.")
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="What it was fine-tuned on, for the names of labels: scanobjectnn, modelnet40, shapenetpart, s3dis "
            "or none; by default told by the number of labels.",
            show_default=False,
        ),
    ] = None,
    num_groups: Annotated[
        int | None, typer.Option(min=1, help="Patches of a cloud; by default as published.", show_default=False)
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(min=1, help="Points of a patch; by default as published.", show_default=False)
    ] = None,
    num_attention_heads: Annotated[
        int | None,
        typer.Option(min=1, help="The student's; by default one for 64 channels.", show_default=False),
    ] = None,
    num_points: Annotated[
        int | None, typer.Option(min=1, help="Points of a cloud; by default as published.", show_default=False)
    ] = None,
) -> None:
    """Convert a released ACT checkpoint of any stage.

    Every tensor is accounted for. Classifiers open with AutoModelForPointCloudClassification, segmentation models with
    AutoModelForPointCloudSegmentation, the others with ActAutoencoder and ActForPreTraining.
    """
    with told_in_one_line():
        quieten_libraries()
        from hf_any3d.registration import register

        register()
        from hf_any3d.conversions import convert_act

        facts = convert_act(
            checkpoint,
            kind,
            output,
            teacher=teacher,
            revision=revision,
            store_encoder=store_encoder,
            dataset=dataset,
            num_groups=num_groups,
            group_size=group_size,
            num_attention_heads=num_attention_heads,
            num_points=num_points,
        )
    told = "" if facts["teacher"] is None else f", teacher {facts['teacher']}"
    size = f"{facts['parameters']:,} parameters, {facts['bytes'] / 1e6:,.1f} MB"
    say(f"{facts['output']}: {facts['model']}, {size}{told}")
