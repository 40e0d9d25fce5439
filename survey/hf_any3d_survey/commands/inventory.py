"""`hf-any3d inventory`: what stands in scans of a place, numbered, in copies of the files and in a table."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_any3d.cli.common import (
    Device,
    FileOptions,
    Model,
    check_model,
    open_pipeline,
    option,
    output_option,
    print_note,
    status,
)
from hf_any3d.cli.inputs import Files, find_inputs, split_model
from hf_any3d.cli.outputs import VIEWS, check_output, write_gallery, write_rows
from hf_any3d.cli.task_options import options_of
from hf_any3d.registry import TASKS
from hf_any3d.utils.messages import print_line
from hf_any3d.visualization.gallery import Gallery
from hf_any3d_survey.about import SCENE_MODEL

if TYPE_CHECKING:
    from hf_any3d_survey.inventory.trees import TreeChoice

TASK = TASKS["point-cloud-inventory"]
InventoryOptions = Annotated[Any, options_of(TASK.settings)]
# A page or picture, a copy, or a folder for copies.
_OUTPUTS = (*VIEWS, ".laz", ".las", ".ply", ".pcd", "")


@dataclass(frozen=True)
class CopyOptions:
    """Options of what is written."""

    table: Annotated[Path | None, output_option("A row for each thing: .csv, .gpkg, .geojson.")] = None
    dtm: Annotated[Path | None, output_option("Elevation of the ground as .tif.")] = None
    chm: Annotated[Path | None, output_option("Height above the ground as .tif.")] = None
    report: Annotated[
        Path | None,
        output_option("Figures of the place, accuracy of its ground, and which cells to check: .html, .json."),
    ] = None
    checkpoints: Annotated[
        Path | None,
        option(
            "Surveyed points (x, y, z) at which the report judges the ground: .csv, .gpkg, .geojson; a column "
            "vegetated (yes or no) tells which stand under plants."
        ),
    ] = None
    keep_classes: Annotated[
        bool, typer.Option("--keep-classes", help="Of copies: write no classes, only heights and numbers.")
    ] = False
    reclassify: Annotated[
        bool, typer.Option("--reclassify", help="Of copies: write the class of all points, not only of class 0 and 1.")
    ] = False
    number_field: Annotated[str, option("Of copies: column of the numbers; programs for forests look for treeID.")] = (
        "PredInstance"
    )
    learn_from: Annotated[
        Path | None,
        option(
            "A scan in which you numbered some 20 trees, and all other points are 0. If other settings find more of "
            "them, these are used.",
            "--from",
        ),
    ] = None


def inventory(
    files: Files,
    asked: InventoryOptions,
    options: FileOptions,
    copies: CopyOptions,
    model: Model = None,
    output: Annotated[
        Path | None,
        output_option(
            "A copy of the file with heights, classes and numbers (out.laz for a .laz), a folder for copies of "
            "several, or a page or picture of one."
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Give trees and buildings numbers, and points heights above the ground, in copies of files.

    Several files, or a folder of them, are tiles of one place: a thing that a border cuts has one number. Needs no
    label: the model that comes with the package tells ground, vegetation and buildings apart. Copies keep every byte
    but classes 0 and 1, and get HeightAboveGround in the unit of z, PredInstance and PredScore.
    """
    name, words = split_model(files, model)
    inputs = find_inputs(words, options.file_type)
    # Copies need a folder where there are several.
    suffix = check_output(output, _OUTPUTS, as_json=options.as_json, as_csv=options.as_csv, num_files=len(inputs))
    if suffix in VIEWS and len(inputs) > 1:
        raise ValueError(f"--output {output}: shows one file; expected a folder for copies of {len(inputs)}")
    if copies.keep_classes and copies.reclassify:
        raise ValueError("--keep-classes and --reclassify contradict each other; expected one of them")
    if name is None:
        name = SCENE_MODEL
    else:
        name = check_model(name, TASK.command, *TASK.also)
    titles = inputs.titles()
    targets = None
    if output is not None and suffix not in VIEWS:
        targets = [output if suffix else output / titles[file.name] for file in inputs.files]
    pipe = open_pipeline(TASK.name, name, device)
    from hf_any3d.data.files import file_errors
    from hf_any3d_survey.inventory.answer import rows_of
    from hf_any3d_survey.inventory.files import Outputs, learn_numbers, take_inventory

    values = asked.values()
    answers = TASK.answers_class()(pipe, TASK.settings, values, "command")
    if copies.learn_from is not None:
        chosen = learn_numbers(pipe, copies.learn_from, copies.number_field, values["unit"])
        answers.arguments |= {"evenness": chosen.evenness}
        if chosen.smoothing is not None:
            answers.arguments["smoothing"] = chosen.smoothing
        print_note(f"{copies.learn_from}: {_words_of(chosen)}")
    classes = "none" if copies.keep_classes else "all" if copies.reclassify else "unclassified"
    paths = [file.name for file in inputs.files]
    if suffix in VIEWS:
        with status(f"finding the things of {paths[0]}"), file_errors(paths[0]):
            result = pipe(paths[0], **answers.arguments)
        things = result["things"]
        gallery = Gallery(output, 1, "z")
        cloud = pipe.open(paths[0])
        title = f"{titles[paths[0]]}: {answers.caption(answers.row(result))}"
        gallery.add_view(answers.view(cloud, result), cloud, title)
        write_gallery(gallery, f"things by {Path(name).name}")
        count = len(result["numbers"])
    else:
        outputs = Outputs(
            targets,
            copies.table,
            copies.dtm,
            copies.chm,
            copies.report,
            copies.checkpoints,
            classes=classes,
            number=copies.number_field,
        )
        # The tile in work is told where there are several.
        tell = print_note if len(paths) > 1 else lambda _: None
        command = shlex.join(["hf-any3d", *sys.argv[1:]])
        with status(f"finding the things of {paths[0]}") if len(paths) == 1 else nullcontext():
            found = take_inventory(pipe, paths, outputs, progress=tell, command=command, **answers.arguments)
        things = found.things
        count = sum(found.points)
        targets = [target for path, target in zip(paths, targets or (), strict=False) if path in found.files]
        paths = found.files
    row = {"file": ", ".join(paths), "points": count, "things": rows_of(things)}
    if options.as_json or options.as_csv:
        write_rows([row], lambda row: answers.cells(row), None, options)
        return
    print_line(answers.line(row))
    for target in targets or ():
        print_note(f"{target}: heights, numbers and classes of {', '.join(paths) if len(paths) == 1 else 'its tile'}")


def _words_of(chosen: TreeChoice) -> str:
    """Return what numbered trees have chosen."""
    overlap = f"mean intersection over union with your trees {chosen.agreement:.2f}"
    if chosen.is_default:
        return f"no other settings find surely more of its trees; the defaults are used ({overlap})"
    if chosen.smoothing is not None:
        return f"crowns are told apart in a canopy smoothed by {chosen.smoothing:.2g} m ({overlap})"
    return f"neighboring crowns may differ {'more' if chosen.evenness == 0 else 'less'} in size ({overlap})"
