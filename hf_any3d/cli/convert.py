"""`hf-any3d convert`: original checkpoints into directories that `from_pretrained` opens."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.common import option, quiet_libraries, status
from hf_any3d.messages import print_line

Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="The authors' file.", show_default=False)]
Output = Annotated[Path, option("Directory to create.")]
_POINT_ENCODER = option("The point encoder's file, point_model.pth.")
_QFORMER = option("BLIP-2's file, blip2_pretrained_flant5xxl.pth.")
_LANGUAGE_MODEL = option("Directory with Phi-2, in any of its three layouts.")
DType = Annotated[str, typer.Option(help="Type to store numbers in: float32, bfloat16 or float16.")]
NumGroups = Annotated[int | None, option("Patches per cloud; by default as published.", min=1)]
GroupSize = Annotated[int | None, option("Points per patch; by default as published.", min=1)]

convert = typer.Typer(rich_markup_mode="markdown", help="Convert original checkpoints.", no_args_is_help=True)


def _command(report: Callable[[dict[str, Any]], Iterator[str]]) -> Callable[[Callable], Callable]:
    """Register a command NAME that calls `hf_any3d.conversions.convert_NAME`.

    The command's parameters are the arguments of that function, its docstring is the help; the body is never run.

    Args:
        report: Turns the facts that the function returns into lines to print.
    """

    def register_command(options_of: Callable) -> Callable:
        @functools.wraps(options_of)
        def run(**options: Any) -> None:
            quiet_libraries()
            from hf_any3d import conversions
            from hf_any3d.registration import register

            register()
            with status("converting"):
                facts = getattr(conversions, f"convert_{options_of.__name__}")(**options)
            for line in report(facts):
                print_line(line)

        return convert.command()(run)

    return register_command


def _report_any2point(facts: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{facts['output']}: {facts['trained_parameters']:,} trained parameters, {facts['bytes'] / 1e6:,.1f} MB, "
        f"encoder {facts['encoder']}"
    )


def _report_act(facts: dict[str, Any]) -> Iterator[str]:
    teacher = "" if facts["teacher"] is None else f", teacher {facts['teacher']}"
    size = f"{facts['parameters']:,} parameters, {facts['bytes'] / 1e6:,.1f} MB"
    yield f"{facts['output']}: {facts['model']}, {size}{teacher}"


def _report_minigpt3d(facts: dict[str, Any]) -> Iterator[str]:
    for file, stage in facts["stages"].items():
        yield f"{file}: {stage}"
    if facts["fresh"]:
        yield f"no file has {', '.join(facts['fresh'])}; they are initialized as training does"
    for part, directory in facts["named"].items():
        yield f"{part.replace('_', ' ')}: in {directory}, which must stay there"
    yield f"{facts['output']}: {facts['parameters']:,} parameters, {facts['bytes'] / 1e6:,.1f} MB"


def _report_minigpt3d_parts(facts: dict[str, Any]) -> Iterator[str]:
    for part, parameters in facts["parameters"].items():
        yield f"{Path(facts['output']) / part}: {parameters:,} parameters"


def _report_aligned(facts: dict[str, Any]) -> Iterator[str]:
    if left_out := facts.get("left_out"):
        yield f"left out, no part of the encoder: {', '.join(left_out)}"
    yield f"{facts['output']}: {facts['model']}, {facts['parameters']:,} parameters, {facts['bytes'] / 1e6:,.1f} MB"


def _report_ptv3(facts: dict[str, Any]) -> Iterator[str]:
    yield from _report_aligned(facts)
    yield f"licence of the weights: {facts['license']}, not for commercial use"


def _report_imagebind_audio(facts: dict[str, Any]) -> Iterator[str]:
    yield f"{facts['output']}: {facts['parameters']:,} parameters"


# The commands: signature and help alone, `_command` makes the function that runs.


@_command(_report_any2point)
def any2point(
    checkpoint: Checkpoint,
    variant: Annotated[
        str, option("clip-scan, clip-modelnet, dinov2-scan, dinov2-modelnet, imagebind-scan or imagebind-modelnet.")
    ],
    output: Output,
    encoder: Annotated[
        str | None, option("Directory or hub name of the frozen encoder; by default the one the authors started from.")
    ] = None,
    revision: Annotated[str | None, option("Branch, tag or commit of the encoder on the hub.")] = None,
    store_encoder: Annotated[
        bool, typer.Option("--store-encoder", help="Store the frozen encoder in the directory too.")
    ] = False,
) -> None:
    """Convert a released Any2Point classifier.

    Every tensor is accounted for, and the frozen layers are compared with the encoder's. The directory opens with
    AutoModelForPointCloudClassification.
    """


@_command(_report_act)
def act(
    checkpoint: Checkpoint,
    kind: Annotated[str, option("dvae, pretrain, cls, partseg or semseg.")],
    output: Output,
    teacher: Annotated[
        str | None,
        option(
            "Directory or hub name of the frozen teacher of stages I and II, to compare it and leave it out; by "
            "default it is stored in the directory."
        ),
    ] = None,
    revision: Annotated[str | None, option("Branch, tag or commit of the teacher on the hub.")] = None,
    store_encoder: Annotated[
        bool, typer.Option("--store-encoder", help="Store a named teacher in the directory too.")
    ] = False,
    dataset: Annotated[
        str | None,
        option(
            "Dataset of the fine-tuning, for the names of labels: scanobjectnn, modelnet40, shapenetpart, s3dis or "
            "none; by default chosen by the number of labels."
        ),
    ] = None,
    num_groups: NumGroups = None,
    group_size: GroupSize = None,
    num_attention_heads: Annotated[int | None, option("The student's; by default one per 64 channels.", min=1)] = None,
    num_points: Annotated[int | None, option("Points per cloud; by default as published.", min=1)] = None,
) -> None:
    """Convert a released ACT checkpoint of any stage.

    Every tensor is accounted for. Classifiers open with AutoModelForPointCloudClassification, segmentation models with
    AutoModelForPointCloudSegmentation, the others with ActAutoencoder and ActForPreTraining.
    """


@_command(_report_minigpt3d)
def minigpt3d(
    point_encoder: Annotated[Path, _POINT_ENCODER],
    qformer: Annotated[Path, _QFORMER],
    language_model: Annotated[Path, _LANGUAGE_MODEL],
    checkpoint: Annotated[
        Path,
        option(
            "File of a stage, such as MiniGPT_3D_stage_3.pth, or TinyGPT-V_for_Stage3.pth, which training starts from."
        ),
    ],
    output: Output,
    second_checkpoint: Annotated[Path | None, option("File of a later stage, such as MiniGPT_3D_stage_4.pth.")] = None,
    tokenizer: Annotated[
        str | None, option("Directory or hub name of the tokenizer; by default that of the language model.")
    ] = None,
    stage: Annotated[
        int | None, option("Which stage, if the last file is of stage II or III; by default 3.", min=2, max=3)
    ] = None,
    store_parts: Annotated[
        bool, typer.Option("--store-parts", help="Store converted parts in the directory too, instead of naming them.")
    ] = False,
    dtype: DType = "float32",
    num_groups: NumGroups = None,
    group_size: GroupSize = None,
) -> None:
    """Convert a released MiniGPT-3D, after any of its stages, completely.

    Every tensor is accounted for, and the copies of the point encoder are compared with it. Parts may also be the
    directories that `minigpt3d-parts` made; they are then named and not stored. The directory opens with
    AutoModelForPointCloudTextToText.
    """


@_command(_report_minigpt3d_parts)
def minigpt3d_parts(
    output: Output,
    point_encoder: Annotated[Path | None, _POINT_ENCODER] = None,
    qformer: Annotated[Path | None, _QFORMER] = None,
    language_model: Annotated[Path | None, _LANGUAGE_MODEL] = None,
    dtype: DType = "float32",
    num_groups: NumGroups = None,
    group_size: GroupSize = None,
) -> None:
    """Convert the parts that MiniGPT-3D is trained from, each into a directory of its own."""


@_command(_report_imagebind_audio)
def imagebind_audio(checkpoint: Checkpoint, output: Output) -> None:
    """Convert the audio encoder of ImageBind, for use as a frozen encoder."""


@_command(_report_aligned)
def openshape(
    checkpoint: Checkpoint,
    output: Output,
    num_groups: NumGroups = None,
    group_size: GroupSize = None,
    group_radius: Annotated[float | None, option("Radius of a patch; by default as published.", min=0)] = None,
) -> None:
    """Convert a released OpenShape encoder, the model.pt of a pointbert repository.

    Every tensor is accounted for, and the size is found from their shapes. The directory opens with AutoModel and
    AutoModelForZeroShotPointCloudClassification.
    """


@_command(_report_aligned)
def patchalign3d(
    checkpoint: Checkpoint, output: Output, num_groups: NumGroups = None, group_size: GroupSize = None
) -> None:
    """Convert a released PatchAlign3D encoder, patchalign3d.pt or the last.pt of a training stage.

    Every tensor is accounted for, and the size is found from their shapes. The directory opens with AutoModel and
    AutoModelForZeroShotPointCloudSegmentation, or with AutoModelForPreTraining after the first stage.
    """


@_command(_report_aligned)
def uni3d(
    checkpoint: Checkpoint,
    output: Output,
    num_groups: NumGroups = None,
    group_size: GroupSize = None,
    num_attention_heads: Annotated[int | None, option("By default as published.", min=1)] = None,
) -> None:
    """Convert a released Uni3D encoder of any size.

    Every tensor is accounted for, and the size is found from their shapes. The directory opens with AutoModel and
    AutoModelForZeroShotPointCloudClassification.
    """


@_command(_report_ptv3)
def ptv3(
    checkpoint: Checkpoint,
    output: Output,
    preset: Annotated[
        str | None,
        option(
            "How clouds are prepared: sonata, concerto, concerto_outdoor, utonia_indoor, utonia_outdoor, "
            "utonia_objects, utonia_tabletop or utonia_city; by default as for rooms."
        ),
    ] = None,
    head: Annotated[Path | None, option("The authors' file of a linear head, for a segmentation model.")] = None,
) -> None:
    """Convert a released Point Transformer V3: Sonata, Concerto or Utonia.

    Every tensor is accounted for, and the size is that of the file's settings. The directory opens with AutoModel, or
    with AutoModelForPointCloudSegmentation if there is a head.
    """


@convert.command()
def published(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Hub name, such as OpenShape/openshape-pointbert-vitb32-rgb, or the authors' file."
        ),
    ],
    size: Annotated[str | None, option("Which of several checkpoints, such as base; also as NAME:SIZE.")] = None,
    revision: Annotated[str | None, option("Branch, tag or commit.")] = None,
    accept_license: Annotated[
        bool,
        typer.Option("--accept-license", help="Accept a licence that forbids commercial use; this is remembered."),
    ] = False,
    output: Annotated[Path | None, option("Directory to copy the converted model to.")] = None,
) -> None:
    """Fetch and convert a published checkpoint, which opens by its name without a network afterwards.

    The names are in the page of published checkpoints; every command takes them in place of a directory.
    """
    quiet_libraries()
    with status(f"fetching and converting {name}"):
        from hf_any3d.conversions.saving import new_directory
        from hf_any3d.opening import published_directory
        from hf_any3d.registration import register

        register()
        directory = published_directory(name, size=size, revision=revision, accept_license=accept_license)
        if output is not None:
            with new_directory(output) as folder:
                shutil.copytree(directory, folder, dirs_exist_ok=True)
    print_line(f"{directory if output is None else output}: {name}")
