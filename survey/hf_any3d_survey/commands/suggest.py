"""`hf-any3d data suggest`: the points of a tile whose labels would help a model most."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from hf_any3d.cli.errors import print_note
from hf_any3d.cli.opening import FoundModel, model_for
from hf_any3d.cli.options import Device, UnitOfFiles, option, output_option
from hf_any3d.cli.outputs import check_output
from hf_any3d.cli.progress import status
from hf_any3d.utils.messages import counted, print_line
from hf_any3d_survey.about import SCENE_MODEL

_OUTPUTS = (".html", ".csv", ".las", ".laz")


def suggest(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The tile, in any point format.")],
    model: Annotated[
        str | None,
        option(
            "Directory or Hub name of a model that hf-any3d train trained on tiles; by default the model of "
            "hf-any3d inventory."
        ),
    ] = None,
    output: Annotated[
        Path,
        output_option(
            "A labeling page (.html), a table to fill in (.csv), or the suggested points for your own software "
            "(.las or .laz, if the tile is .las or .laz)."
        ),
    ] = Path("suggested.html"),
    points: Annotated[int, typer.Option(help="Number of points to label.", min=1)] = 200,
    unit: UnitOfFiles = None,
    seed: Annotated[int, typer.Option(help="Random seed; another seed suggests other points.", min=0)] = 0,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    device: Device = None,
) -> None:
    """Suggest which points of a tile to label next (active learning): uncertain and diverse points.

    The page shows each point in its surroundings; you press a key to choose its class. It works offline. Train on the
    file that it saves with `hf-any3d train answers.csv tile.laz --from MODEL`. A table has an empty column for the
    class. A LAS or LAZ has class 0 for each point, and extra bytes with its index in the tile and the model's guess.
    """
    suffix = check_output(output, _OUTPUTS)
    found = FoundModel(SCENE_MODEL) if model is None else model_for(model, "segment")
    model_type = found.config.get("model_type")
    if model_type != "local_features":
        raise ValueError(
            f"--model {found.name}: of type {model_type}; expected one that hf-any3d train learned from tiles"
        )
    if suffix in (".las", ".laz") and file.suffix.lower() not in (".las", ".laz"):
        raise ValueError(f"--output {output}: {file.name} is no LAS or LAZ; expected .html or .csv")
    pipe = found.open("point-cloud-segmentation", device)
    from hf_any3d.data.checks.left_out_points import count_left_out, left_out_words
    from hf_any3d.data.files import file_errors, read_point_cloud
    from hf_any3d.data.frames.units import with_unit
    from hf_any3d_survey.tiles.suggested_files import write_suggestions
    from hf_any3d_survey.tiles.suggestions import suggest_points

    with status(f"labeling {file.name} to choose its points"):
        cloud = read_point_cloud(file, columns=pipe.feature_extractor.columns)
        cloud = with_unit(cloud, None if unit is None else unit.value)
        left_out = left_out_words(count_left_out(cloud), len(cloud), file)
        if left_out:
            print_note(f"warning: {left_out}")
        with file_errors(file):
            found = suggest_points(pipe, cloud, points, seed)
        write_suggestions(output, file, cloud, found, pipe)
    print_line(f"{output}: {counted(len(found.rows), 'point')} of {file.name} to label")
    # The page saves its answers under this name, and a table or cloud has them itself.
    answers = f"{file.stem}_answers.csv" if suffix == ".html" else output
    # The packaged model by a name that stays where Python moves.
    print_line(f"next: hf-any3d train {answers} {file} --from {model or 'inventory'}")
    if browser and suffix == ".html":
        webbrowser.open(output.absolute().as_uri())
