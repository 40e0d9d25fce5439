"""`hf-any3d inventory`: what stands in scans of a place, numbered, in copies of the files and in a table."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_any3d.cli.errors import print_note
from hf_any3d.cli.inputs import find_inputs, split_model
from hf_any3d.cli.opening import FoundModel, model_for
from hf_any3d.cli.options import Device, FileOptions, Model, option, output_option
from hf_any3d.cli.outputs import VIEWS, check_output, write_gallery, write_rows
from hf_any3d.cli.progress import status
from hf_any3d.cli.task_options import options_of
from hf_any3d.registry import TASKS
from hf_any3d.utils.messages import print_line, shown_command
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

    table: Annotated[Path | None, output_option("Table with a row per tree or building: .csv, .gpkg, .geojson.")] = (
        None
    )
    dtm: Annotated[Path | None, output_option("Digital terrain model (ground elevation), .tif.")] = None
    chm: Annotated[Path | None, output_option("Canopy height model (height above the ground), .tif.")] = None
    report: Annotated[
        Path | None,
        output_option(
            "Report (.html, .json) with statistics of the site, a check of the ground, and a map of the areas to "
            "check by hand."
        ),
    ] = None
    checkpoints: Annotated[
        Path | None,
        option(
            "Surveyed checkpoints (x, y, z) for the ground accuracy in the report: .csv, .gpkg, .geojson. An "
            "optional column vegetated (yes or no) marks points under vegetation."
        ),
    ] = None
    keep_classes: Annotated[
        bool,
        typer.Option(
            "--keep-classes", help="For copies: write heights and object numbers only, and keep all classes."
        ),
    ] = False
    reclassify: Annotated[
        bool,
        typer.Option("--reclassify", help="For copies: reclassify all points, not only those of classes 0 and 1."),
    ] = False
    number_field: Annotated[
        str,
        option(
            "Attribute of the object numbers, in copies and in the file of --from; by default PredInstance, while "
            "forestry software expects treeID."
        ),
    ] = "PredInstance"
    learn_from: Annotated[
        Path | None,
        option(
            "A scan in which you numbered about 20 trees in the attribute --number-field, with 0 for all other "
            "points. Settings that clearly find more of these trees replace the defaults.",
            "--from",
        ),
    ] = None


def inventory(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Airborne point clouds, folders or globs; - for standard input."),
    ],
    asked: InventoryOptions,
    options: FileOptions,
    copies: CopyOptions,
    model: Model = None,
    output: Annotated[
        Path | None,
        output_option(
            "For one file: a copy in the same format with heights, classes and object numbers (such as out.laz), an "
            "HTML page or an image. For several files: a folder for the copies."
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Classify ground, vegetation and buildings, number trees and buildings, and add heights above ground.

    Several files, or a folder, are treated as tiles of one site: an object that crosses a tile border gets one number.
    No labels are needed; the bundled model classifies the points. --output writes a copy, in which only points of
    classes 0 and 1 are reclassified, and the attributes HeightAboveGround (in the unit of z), PredInstance and
    PredScore are added.
    """
    name, words = split_model(files, model)
    inputs = find_inputs(words, options.file_type)
    # Copies need a folder where there are several.
    suffix = check_output(output, _OUTPUTS, as_json=options.as_json, as_csv=options.as_csv, num_files=len(inputs))
    if suffix in VIEWS and len(inputs) > 1:
        raise ValueError(f"--output {output}: shows one file; expected a folder for copies of {len(inputs)}")
    if copies.keep_classes and copies.reclassify:
        raise ValueError("--keep-classes and --reclassify exclude each other; leave out one of them")
    if name is None:
        found = FoundModel(SCENE_MODEL)
    else:
        found = model_for(name, TASK.command, *TASK.also)
    titles = inputs.titles()
    targets = None
    if output is not None and suffix not in VIEWS:
        targets = [output if suffix else output / titles[file.name] for file in inputs.files]
    pipe = found.open(TASK.name, device)
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
        with status(f"finding trees and buildings in {paths[0]}"), file_errors(paths[0]):
            result = pipe(paths[0], **answers.arguments)
        things = result["things"]
        gallery = Gallery(output, 1, "z")
        cloud = pipe.open(paths[0])
        title = f"{titles[paths[0]]}: {answers.caption(answers.row(result))}"
        gallery.add_view(answers.view(cloud, result), cloud, title)
        write_gallery(gallery, f"Inventory of {Path(paths[0]).name}")
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
        command = shown_command(["hf-any3d", *sys.argv[1:]])
        with status(f"finding trees and buildings in {paths[0]}") if len(paths) == 1 else nullcontext():
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
    overlap = f"mean IoU with your trees {chosen.agreement:.2f}"
    if chosen.is_default:
        return f"no other settings clearly find more of its trees; using the defaults ({overlap})"
    if chosen.smoothing is not None:
        return f"crowns are separated after smoothing the canopy by {chosen.smoothing:.2g} m ({overlap})"
    return f"neighboring crowns may differ {'more' if chosen.evenness == 0 else 'less'} in size ({overlap})"
