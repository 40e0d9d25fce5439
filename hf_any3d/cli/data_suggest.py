"""`hf-any3d data suggest`: the points of a tile whose labels would help a model most."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from hf_any3d.cli.common import Device, UnitOfFiles, check_model, open_pipeline, option, read_model_config
from hf_any3d.cli.outputs import check_output
from hf_any3d.data.las_classes import ASPRS_COLORS
from hf_any3d.utils.atomic_files import write_text
from hf_any3d.utils.messages import counted, csv_text, print_line

if TYPE_CHECKING:
    from hf_any3d.data.files import PointCloudData
    from hf_any3d.training.tiles.suggestions import Suggestions

_OUTPUTS = (".html", ".csv", ".las", ".laz")
# Digits behind the point of coordinates in meters or feet, and all that there are of objects of any size.
_DECIMALS = 4
# Meters at which heights above the ground have the brightest color: what stands higher is a tree or a house anyway.
_HIGHEST = 12.0
_OF_OBJECTS = 0.2  # share of the diagonal that is shown around a point


def suggest(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The tile, of any format of points.")],
    model: Annotated[str, option("Directory or hub name of a model that hf-any3d train has learned from tiles.")],
    output: Annotated[
        Path,
        option(
            "A page to label the points on (.html), a table to fill in (.csv), or a cloud of these points for a "
            "program of your own (.las or .laz, of a .las or .laz)."
        ),
    ] = Path("suggested.html"),
    points: Annotated[int, typer.Option(help="Number of points to label.", min=1)] = 200,
    unit: UnitOfFiles = None,
    seed: Annotated[int, typer.Option(help="Another one gives other points.", min=0)] = 0,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    device: Device = None,
) -> None:
    """Suggest the points of a tile whose labels would help a model most: where it is not sure, and unlike each other.

    On the page a person sees each point in its surroundings and presses a key for its class; it needs no network. The
    file that it saves is learned by `hf-any3d train answers.csv tile.laz --from MODEL`. A table has an empty column
    for the class; a cloud has the class 0 in each point, and extra bytes with the row in the tile and the guess of the
    model.
    """
    suffix = check_output(output, _OUTPUTS)
    name = check_model(model, "segment")
    model_type = read_model_config(name).get("model_type")
    if model_type != "local_features":
        raise ValueError(f"--model {name}: of type {model_type}; expected one that hf-any3d train learned from tiles")
    if suffix in (".las", ".laz") and file.suffix.lower() not in (".las", ".laz"):
        raise ValueError(f"--output {output}: {file.name} is no LAS or LAZ; expected .html or .csv")
    pipe = open_pipeline("point-cloud-segmentation", name, device)
    from hf_any3d.data.files import file_errors, read_point_cloud
    from hf_any3d.data.units import with_unit
    from hf_any3d.training.tiles.suggestions import suggest_points

    cloud = read_point_cloud(file, columns=pipe.feature_extractor.columns)
    cloud = with_unit(cloud, None if unit is None else unit.value)
    with file_errors(file):
        found = suggest_points(pipe, cloud, points, seed)
    names = pipe.label_names()
    if suffix == ".html":
        write_text(output, _page(file, cloud, found, names, pipe.model.config))
    elif suffix == ".csv":
        write_text(output, csv_text(_table(file, cloud, found, names)))
    else:
        _write_cloud(file, output, found, pipe.model.config)
    print_line(f"{output}: {counted(len(found.rows), 'point')} of {file.name} to label")
    print_line(f"then: hf-any3d train ANSWERS {file} --from {model}")
    if browser and suffix == ".html":
        webbrowser.open(output.absolute().as_uri())


def _places(cloud: PointCloudData, rows: np.ndarray) -> list[tuple[str, str, str]]:
    """Return the coordinates of points as the file has them, in words."""
    from hf_any3d.training.tiles.answers import coordinates_of

    words = []
    for place in coordinates_of(cloud)[rows].tolist():
        x, y, z = (f"{value:.{_DECIMALS}f}" if abs(value) >= 1 else f"{value:.9g}" for value in place)
        words.append((x, y, z))
    return words


def _table(file: Path, cloud: PointCloudData, found: Suggestions, names: Any) -> list[list[Any]]:
    """Return a table of answers, whose column of classes is empty."""
    table: list[list[Any]] = [["tile", "row", "x", "y", "z", "class", "guess", "score"]]
    for row, place, guess, score in zip(
        found.rows, _places(cloud, found.rows), found.guesses, found.scores, strict=True
    ):
        # As numbers, since texts that begin with a minus sign would be quoted.
        coordinates = [float(value) for value in place]
        table.append([file.name, int(row), *coordinates, "", names[guess], round(float(score), 3)])
    return table


def _page(file: Path, cloud: PointCloudData, found: Suggestions, names: Any, config: Any) -> str:
    from hf_any3d.visualization.labeling import AROUND, AskedPoint, labeling_page
    from hf_any3d.visualization.viewer import CloudView, label_colors, parse_color

    scan = found.scan
    palette = label_colors(len(names))
    for number, code in enumerate(config.class_codes or ()):
        if code in ASPRS_COLORS and file.suffix.lower() in (".las", ".laz"):
            palette[number] = parse_color(ASPRS_COLORS[code])
    asked = [
        AskedPoint(int(row), place, names[guess], float(score))
        for row, place, guess, score in zip(
            found.rows, _places(cloud, found.rows), found.guesses, found.scores, strict=True
        )
    ]
    # Places of models of tiles are in meters.
    around = AROUND
    if scan.in_meters:
        values, value_name = scan.heights.clip(0, _HIGHEST), "height above ground"
    else:
        values, value_name = scan.heights, "height"
        around = _OF_OBJECTS * float(np.linalg.norm(np.ptp(scan.places, axis=0)))
    view = CloudView(scan.places, colors=cloud.colors, labels=scan.labels, values=values)
    return labeling_page(view, asked, names, tile=file.name, around=around, palette=palette, value_name=value_name)


def _write_cloud(file: Path, output: Path, found: Suggestions, config: Any) -> None:
    """Write the points alone, with their rows in the tile and the guesses of the model as extra bytes."""
    from hf_any3d.data.files.labels.las_points import write_some_points
    from hf_any3d.training.tiles.answers import ROW

    codes = np.array(config.class_codes or range(len(config.id2label)))
    columns = {ROW: found.rows, "Guess": codes[found.guesses], "Score": found.scores.astype(np.float32)}
    write_some_points(file, output, found.rows, columns)
