"""Write suggested points as a page to label them on, a table to fill in, or a cloud for another program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.classes.las_classes import ASPRS_COLORS
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.files.labels.las_points import write_some_points
from hf_any3d.utils.atomic_files import write_text
from hf_any3d.utils.messages import csv_text
from hf_any3d.visualization.viewer import CloudView, label_colors, parse_color
from hf_any3d_survey.segmentation.steps import LocalFeaturesSteps
from hf_any3d_survey.tiles.answers import ROW, coordinates_of
from hf_any3d_survey.tiles.suggestions import Suggestions
from hf_any3d_survey.visualization.labeling import AROUND, AskedPoint, labeling_page

# Digits behind the point of coordinates in meters or feet, and all that there are of objects of any size.
_DECIMALS = 4
_OF_OBJECTS = 0.2  # share of the diagonal that is shown around a point


def write_suggestions(
    output: Path, file: Path, cloud: PointCloudData, found: Suggestions, pipe: LocalFeaturesSteps
) -> None:
    """Write suggested points of a file.

    Args:
        output: A page to label them on (.html), a table with an empty column for the class (.csv), or a cloud of them
            with the rows in the tile and the guesses of the model as extra bytes (.las or .laz, of a .las or .laz).
        file: The tile.
        cloud: The cloud in it.
        found: The points.
        pipe: The pipeline that suggested them.
    """
    names = pipe.label_names()
    config: Any = pipe.model.config
    if output.suffix.lower() == ".html":
        write_text(output, _page(file, cloud, found, names, config))
    elif output.suffix.lower() == ".csv":
        table: list[list[Any]] = [["tile", "row", "x", "y", "z", "class", "guess", "score"]]
        for row, place, guess, score in zip(
            found.rows, _places(cloud, found.rows), found.guesses, found.scores, strict=True
        ):
            # As numbers, since texts that begin with a minus sign would be quoted.
            coordinates = [float(value) for value in place]
            table.append([file.name, int(row), *coordinates, "", names[guess], round(float(score), 3)])
        write_text(output, csv_text(table))
    else:
        codes = np.array(config.class_codes or range(len(config.id2label)))
        columns = {ROW: found.rows, "Guess": codes[found.guesses], "Score": found.scores.astype(np.float32)}
        write_some_points(file, output, found.rows, columns)


def _places(cloud: PointCloudData, rows: np.ndarray) -> list[tuple[str, str, str]]:
    """Return the coordinates of points as the file has them, in words."""
    words = []
    for place in coordinates_of(cloud)[rows].tolist():
        x, y, z = (f"{value:.{_DECIMALS}f}" if abs(value) >= 1 else f"{value:.9g}" for value in place)
        words.append((x, y, z))
    return words


def _page(file: Path, cloud: PointCloudData, found: Suggestions, names: Any, config: Any) -> str:
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
        values, value_name = scan.heights, "height above ground"
    else:
        values, value_name = scan.heights, "height"
        around = _OF_OBJECTS * float(np.linalg.norm(np.ptp(scan.places, axis=0)))
    view = CloudView(scan.places, colors=cloud.colors, labels=scan.labels, values=values)
    return labeling_page(view, asked, names, tile=file.name, around=around, palette=palette, value_name=value_name)
