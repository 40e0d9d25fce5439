"""`hf-any3d convert`: original checkpoints into directories that `from_pretrained` opens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.common import quieten_libraries, told_in_one_line
from hf_any3d.messages import say

_POINT_ENCODER = typer.Option(help="The point encoder's file, point_model.pth.", show_default=False)
_QFORMER = typer.Option(help="BLIP-2's file, blip2_pretrained_flant5xxl.pth.", show_default=False)
_LANGUAGE_MODEL = typer.Option(help="Directory with Phi-2, in any of its three layouts.", show_default=False)
_DTYPE = typer.Option(help="What numbers are stored in: float32, bfloat16 or float16.")
_NUM_GROUPS = typer.Option(min=1, help="Patches of a cloud; by default as published, 512.", show_default=False)
_GROUP_SIZE = typer.Option(min=1, help="Points of a patch; by default as published, 32.", show_default=False)


def minigpt3d(
    point_encoder: Annotated[Path, _POINT_ENCODER],
    qformer: Annotated[Path, _QFORMER],
    language_model: Annotated[Path, _LANGUAGE_MODEL],
    checkpoint: Annotated[
        Path,
        typer.Option(
            help="File of a stage, such as MiniGPT_3D_stage_3.pth, or TinyGPT-V_for_Stage3.pth, which training starts "
            "from.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, _OUTPUT],
    second_checkpoint: Annotated[
        Path | None,
        typer.Option(help="File of a later stage, such as MiniGPT_3D_stage_4.pth.", show_default=False),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Directory or hub name of the tokenizer; by default that of the language model.", show_default=False
        ),
    ] = None,
    stage: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=3,
            help="Which stage, where the last file is of stage II or III; by default 3.",
            show_default=False,
        ),
    ] = None,
    store_parts: Annotated[
        bool, typer.Option("--store-parts", help="Keep converted parts in the directory too, instead of naming them.")
    ] = False,
    dtype: Annotated[str, _DTYPE] = "float32",
    num_groups: Annotated[int | None, _NUM_GROUPS] = None,
    group_size: Annotated[int | None, _GROUP_SIZE] = None,
) -> None:
    """Convert a released MiniGPT-3D, after any of its stages, whole.

    Every tensor is accounted for, and the copies of the point encoder are compared with it. Parts may also be the
    directories that `minigpt3d-parts` made; they are then named and not stored. The directory opens with
    AutoModelForPointCloudTextToText.
    """
    with told_in_one_line():
        conversions = _conversions()
        facts = conversions.convert_minigpt3d(
            output,
            point_encoder=point_encoder,
            qformer=qformer,
            language_model=language_model,
            checkpoint=checkpoint,
            second_checkpoint=second_checkpoint,
            tokenizer=tokenizer,
            stage=stage,
            store_parts=store_parts,
            dtype=dtype,
            num_groups=num_groups,
            group_size=group_size,
        )
    for file, held in facts["stages"].items():
        say(f"{file}: {held}")
    if facts["fresh"]:
        say(f"no file has {', '.join(facts['fresh'])}; they are as training begins them")
    for part, place in facts["named"].items():
        say(f"{part.replace('_', ' ')}: in {place}, which has to stay there")
    say(f"{facts['output']}: {facts['parameters']:,} parameters, {facts['bytes'] / 1e6:,.1f} MB")


def minigpt3d_parts(
    output: Annotated[Path, _OUTPUT],
    point_encoder: Annotated[Path | None, _POINT_ENCODER] = None,
    qformer: Annotated[Path | None, _QFORMER] = None,
    language_model: Annotated[Path | None, _LANGUAGE_MODEL] = None,
    dtype: Annotated[str, _DTYPE] = "float32",
    num_groups: Annotated[int | None, _NUM_GROUPS] = None,
    group_size: Annotated[int | None, _GROUP_SIZE] = None,
) -> None:
    """Convert what MiniGPT-3D is trained from, each part into a directory of its own."""
    with told_in_one_line():
        conversions = _conversions()
        facts = conversions.convert_minigpt3d_parts(
            output,
            point_encoder=point_encoder,
            qformer=qformer,
            language_model=language_model,
            dtype=dtype,
            num_groups=num_groups,
            group_size=group_size,
        )
    for part, parameters in facts["parameters"].items():
        say(f"{output / part}: {parameters:,} parameters")


def _conversions() -> Any:
    quieten_libraries()
    from hf_any3d.registration import register

    register()
    from hf_any3d import conversions

    return conversions


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
