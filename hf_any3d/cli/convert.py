"""`hf-any3d convert`: original checkpoints into directories that `from_pretrained` opens."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.common import load_libraries, option, skip_hub_if_offline, status
from hf_any3d.utils.messages import print_line


def convert(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE…",
            help="The authors' file, or several that belong together, or the name of a published checkpoint, such as "
            "Pointcept/Utonia:base.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None, option("Directory to create; published checkpoints go to the cache without it.")
    ] = None,
    variant: Annotated[
        str | None,
        option("Any2Point: clip-scan, dinov2-modelnet and so on; by default found from the tensors."),
    ] = None,
    kind: Annotated[
        str | None, option("ACT: dvae, pretrain, cls, partseg or semseg; by default found from the tensors.")
    ] = None,
    base: Annotated[
        str | None,
        option(
            "PointGST, IDPT, DAPT, PPT: directory or hub name of the pretrained transformer, to compare it and leave "
            "it out; by default it is stored in the directory."
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        option("Any2Point: directory or hub name of the frozen encoder; by default the one the authors started from."),
    ] = None,
    teacher: Annotated[
        str | None,
        option(
            "ACT: directory or hub name of the frozen teacher of stages I and II, to compare it and leave it out; by "
            "default it is stored in the directory."
        ),
    ] = None,
    revision: Annotated[
        str | None, option("Branch, tag or commit on the hub, of the base, encoder, teacher or published checkpoint.")
    ] = None,
    store_encoder: Annotated[
        bool, typer.Option("--store-encoder", help="Any2Point, ACT: store a named encoder or teacher too.")
    ] = False,
    dataset: Annotated[
        str | None,
        option(
            "ACT, PointGST, 3DETR, Point Transformer V3: dataset of the training, for the names of labels: "
            "scanobjectnn, modelnet40, shapenetpart, s3dis, scannet, scannet200, nuscenes, waymo, sunrgbd or none; by "
            "default chosen by the number of labels."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        option(
            "MiniGPT-3D, SpatialLM: directory or hub name of the tokenizer; by default that of the language model."
        ),
    ] = None,
    stage: Annotated[
        int | None,
        option("MiniGPT-3D: which stage, if the last file is of stage II or III; by default 3.", min=2, max=3),
    ] = None,
    store_parts: Annotated[
        bool, typer.Option("--store-parts", help="MiniGPT-3D: store converted parts too, instead of naming them.")
    ] = False,
    dtype: Annotated[
        str | None,
        option(
            "MiniGPT-3D, SpatialLM: type to store numbers in: float32, bfloat16 or float16; by default float32, for "
            "SpatialLM that of the files."
        ),
    ] = None,
    code_template: Annotated[
        Path | None,
        option("SpatialLM: code_template.txt of the authors' program, which prompts of the training held."),
    ] = None,
    preset: Annotated[
        str | None,
        option(
            "Point Transformer V3: how clouds are prepared: sonata, concerto, concerto_outdoor, utonia_indoor, "
            "utonia_outdoor, utonia_objects, utonia_tabletop or utonia_city; by default as for rooms."
        ),
    ] = None,
    trained_with: Annotated[
        str | None,
        option(
            "Supervised Point Transformer V3: the program that trained it, pointcept-1.5.1, pointcept-1.5.2 or "
            "pointcept-1.6, whose rules differ and are in no file; published weights are of the first."
        ),
    ] = None,
    arguments: Annotated[
        Path | None,
        option("Supervised Point Transformer V3 or Find3D of your own sizes: JSON with arguments of its constructor."),
    ] = None,
    num_groups: Annotated[int | None, option("Patches per cloud; by default as published.", min=1)] = None,
    group_size: Annotated[int | None, option("Points per patch; by default as published.", min=1)] = None,
    group_radius: Annotated[float | None, option("OpenShape: radius of a patch.", min=0)] = None,
    num_attention_heads: Annotated[
        int | None, option("ACT and adapters on it, Uni3D, 3DETR: attention heads; by default as published.", min=1)
    ] = None,
    num_points: Annotated[
        int | None, option("ACT and adapters on it, 3DETR: points per cloud; by default as published.", min=1)
    ] = None,
    pooling: Annotated[
        str | None,
        option(
            "PointGST, IDPT, DAPT, PPT: what the head reads, such as cls,prompt_mean,max; by default as published."
        ),
    ] = None,
    prompt_layer: Annotated[
        int | None, option("IDPT: block, from 0, before which the prompt is made; by default the last one.", min=0)
    ] = None,
    prompt_groups: Annotated[
        int | None, option("PPT: number of further patches; by default as many as patches.", min=1)
    ] = None,
    size: Annotated[
        str | None, option("Of a published checkpoint: which of several, such as base; also as NAME:SIZE.")
    ] = None,
) -> None:
    """Convert the checkpoints of original programs into directories that `from_pretrained` opens.

    The program, the kind of the file and the size of the model are found from the tensors: Any2Point, ACT, PointGST,
    IDPT, DAPT, PPT, MiniGPT-3D and its parts, OpenShape, Uni3D, PatchAlign3D, Find3D, Point Transformer V3 with or
    without a linear head, 3DETR, SpatialLM, ImageBind's audio encoder. Files of one model are given together, in any
    order; those of MiniGPT-3D without a file of a training stage become a directory for each part. A SpatialLM is
    given as its directory. Every tensor is accounted for. The directory of a 3DETR, of a supervised Point Transformer
    V3 and of Find3D is converted back into a file of its authors, that of a SpatialLM into a directory.

    A published checkpoint is fetched first, and opens by its name without a network afterwards.
    """
    # First of all, while the arguments are the only local variables.
    given = {name: value for name, value in locals().items() if name not in ("files", "output")}
    # Only options that were given, so that each conversion can refuse those that are not its own. 0 is given, too.
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    # No file of this name: it can only be a published checkpoint.
    is_name = len(files) == 1 and not Path(files[0]).exists()
    if is_name:
        skip_hub_if_offline()
    load_libraries()
    with status("converting"):
        if is_name:
            _convert_published(files[0], output, given)
            return
        facts = _convert_files(files, output, given)
    for line in _report(facts):
        print_line(line)


def _convert_files(files: list[str], output: Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
    from hf_any3d import conversions
    from hf_any3d.conversions.programs import PROGRAMS, plan

    # An option that one program alone has names it, so that its own errors tell what is wrong with the file.
    named = next((convert for setting, convert in _NAMED.items() if setting in given), None)
    name, arguments = plan(files) if named is None or len(files) > 1 else (named, {"checkpoint": files[0]})
    if output is None:
        raise ValueError(f"{files[0]}: --output is missing; give the directory to create")
    function = getattr(conversions, name)
    allowed = _arguments_of(function)
    title = next(program.title for program in PROGRAMS if name.startswith(program.convert))
    if unused := sorted(given.keys() - allowed):
        options = sorted(allowed & _OPTIONS)
        expected = ", ".join(map(_option_of, options)) if options else "none"
        raise ValueError(f"{', '.join(map(_option_of, unused))}: not for a file of {title}; expected {expected}")
    return function(output=output, **{**arguments, **given})


def _convert_published(name: str, output: Path | None, given: Mapping[str, Any]) -> None:
    from hf_any3d.conversions.saving import new_directory
    from hf_any3d.published import published_directory

    if unused := sorted(given.keys() - {"size", "revision"}):
        options = ", ".join(map(_option_of, unused))
        raise ValueError(f"{name}: no such file; {options} would be for a file, not for a published checkpoint")
    directory = published_directory(name, **given)
    if output is not None:
        with new_directory(output) as folder:
            shutil.copytree(directory, folder, dirs_exist_ok=True)
    print_line(f"{directory if output is None else output}: {name}")


def _arguments_of(function: Callable[..., Any]) -> set[str]:
    """Return the names of the settings of a conversion, those of a dataclass of choices included."""
    from hf_any3d.conversions.act.convert import Choices

    parameters = inspect.signature(function).parameters.values()
    names = {one.name for one in parameters if one.kind is not one.VAR_KEYWORD}
    # The conversion passes its keyword arguments on to this dataclass.
    if len(names) < len(parameters):
        names |= {choice.name for choice in dataclasses.fields(Choices)}
    return names


_NAMED = {"variant": "convert_any2point", "kind": "convert_act"}
_OPTIONS = set(inspect.signature(convert).parameters) - {"files", "output"}


def _option_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _report(facts: Mapping[str, Any]) -> Iterator[str]:
    """Turn what a conversion returns into lines."""
    for file, stage in facts.get("stages", {}).items():
        yield f"{file}: {stage}"
    if facts.get("fresh"):
        yield f"no file has {', '.join(facts['fresh'])}; they are initialized as training does"
    for part, directory in facts.get("named", {}).items():
        yield f"{part.replace('_', ' ')}: in {directory}, which must stay there"
    if facts.get("left_out"):
        yield f"left out, no part of the encoder: {', '.join(facts['left_out'])}"
    if isinstance(facts.get("parameters"), Mapping):
        for part, parameters in facts["parameters"].items():
            yield f"{Path(facts['output']) / part}: {parameters:,} parameters"
        return
    about = [facts["model"]] if "model" in facts else []
    counted = {"trained_parameters": "trained parameters", "parameters": "parameters"}
    about += [f"{facts[name]:,} {words}" for name, words in counted.items() if name in facts]
    about += [f"{facts['bytes'] / 1e6:,.1f} MB"] if "bytes" in facts else []
    about += [f"{part} {facts[part]}" for part in ("encoder", "teacher") if facts.get(part) is not None]
    yield f"{facts['output']}: {', '.join(about)}"
    if "license" in facts:
        yield f"license of the weights: {facts['license']}, not for commercial use"
