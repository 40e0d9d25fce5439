"""Cells that a report calls doubtful, on labeled places: are they those whose answers are wrong?

    python -m survey.studies.doubtful_cells --ground FOLDER FILE [FILE ...]

Files are LAS or LAZ with classes, or with `Veg` (1 ground, 2 tree) by hand; `--ground` takes samples of the ISPRS.

A cell is wrong if more than a tenth of its judged points have another class than ground (2), vegetation (3 to 5) or
building (6) of the file, or if more than a tenth of what stands 2 m above a triangulation of the file's ground is more
than a meter off in height.

Results: `results/inventory.md`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import laspy
import numpy as np
from scipy.interpolate import LinearNDInterpolator
from scipy.stats import mannwhitneyu

from hf_any3d.data.files import PointCloudData
from hf_any3d.pipelines import default_model
from hf_any3d.tasks.direct import open_direct
from hf_any3d_survey.inventory.files import HEIGHT, Outputs, take_inventory
from survey.studies.surfaces import read_samples

WRONG = 0.1
"""Share of points of a cell that are wrong from which on the cell is."""
LEAST_JUDGED = 20
"""Points that decide about a cell at least."""
NOT_GROUND = 64
_FAMILIES = ((2,), (3, 4, 5), (6,))


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row for each file, and one for all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--ground", type=Path)
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    print("| place | cells | wrong | AUC of the doubt | listed | wrong of these |")
    pipe = open_direct("point-cloud-inventory", str(default_model("point-cloud-inventory")), "cpu")
    found = []
    scans = {path.stem: laspy.read(path) for path in arguments.files}
    if arguments.ground is not None:
        scans |= {name: _as_las(cloud) for name, cloud in read_samples(arguments.ground).items()}
    for name, las in scans.items():
        found.append(judge(pipe, las))
        print(row_of(name, *found[-1]), flush=True)
    print(row_of("all", *map(np.concatenate, zip(*found, strict=True))))


def _as_las(cloud: PointCloudData) -> laspy.LasData:
    """Return a sample of the ISPRS with classes: 2 ground, `NOT_GROUND` all else."""
    las = laspy.LasData(laspy.LasHeader(point_format=6, version="1.4"))
    offset = np.zeros(3) if cloud.offset is None else cloud.offset
    las.header.offsets = offset
    las.header.scales = np.full(3, 0.01)
    las.xyz = cloud.points + offset
    las.classification = np.where(np.asarray(cloud.labels) == 1, 2, NOT_GROUND)
    return las


def judge(pipe: Any, las: laspy.LasData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return doubt, whether it is wrong, and whether it is listed, of each judged cell of a scan, (cells,)."""
    with tempfile.TemporaryDirectory() as folder:
        bare, copy, report = (Path(folder) / name for name in ("bare.las", "copy.las", "report.json"))
        truth = np.array(las.classification)
        if "Veg" in las.point_format.dimension_names:
            truth = np.array([0, 2, 5])[np.array(las["Veg"])]
        las.classification = np.zeros(len(truth), np.uint8)
        las.write(str(bare))
        take_inventory(pipe, [bare], Outputs([copy], report=report, classes="all"))
        content = json.loads(report.read_text(encoding="utf-8"))
        answer = laspy.read(copy)
    xyz = np.array(answer.xyz)
    is_wrong, is_judged = wrong_points(
        xyz * [1, 1, content["elevation_unit_m"]],
        truth,
        np.array(answer.classification),
        np.array(answer[HEIGHT]) * content["elevation_unit_m"],
    )
    width = content["cell_width_m"] / content["map_unit_m"]
    listed = {(cell["x"], cell["y"]) for cell in content["check_by_hand"]}
    rows = []
    for cell in content["cells"]:
        inside = (np.floor(xyz[:, :2] / width) == np.floor(np.array([cell["x"], cell["y"]]) / width)).all(axis=1)
        judged = [int((inside & one).sum()) for one in is_judged]
        if judged[0] < LEAST_JUDGED:
            continue
        shares = [(inside & one).sum() / max(1, count) for one, count in zip(is_wrong, judged, strict=True)]
        rows.append((cell["doubt"], max(shares) > WRONG, (cell["x"], cell["y"]) in listed))
    doubt, wrong, is_listed = map(np.array, zip(*rows, strict=True))
    return doubt, wrong, is_listed


def wrong_points(
    xyz: np.ndarray, truth: np.ndarray, classes: np.ndarray, heights: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return which points are wrong, and which are judged: of classes, and of heights, each (points,) bool."""
    judged = truth == NOT_GROUND
    wrong = judged & (classes == 2)
    for family in _FAMILIES:
        own = np.isin(truth, family)
        judged |= own
        wrong |= own & ~np.isin(classes, family)
    ground = xyz[truth == 2]
    # One ground point a square meter is enough.
    _, kept = np.unique(np.floor(ground[:, :2]), axis=0, return_index=True)
    center = ground[:, :2].mean(axis=0)
    above = xyz[:, 2] - LinearNDInterpolator(ground[kept, :2] - center, ground[kept, 2])(xyz[:, :2] - center)
    stands = (above > 2) & (above < 100) & ~np.isin(classes, (7, 18))
    return [wrong, stands & (np.abs(heights - above) > 1)], [judged, stands]


def row_of(name: str, doubt: np.ndarray, wrong: np.ndarray, listed: np.ndarray) -> str:
    """Return a row of the table."""
    auc = "–"
    if 0 < wrong.sum() < len(wrong):
        auc = f"{mannwhitneyu(doubt[wrong], doubt[~wrong]).statistic / (wrong.sum() * (~wrong).sum()):.2f}"
    return f"| {name} | {len(wrong)} | {int(wrong.sum())} | {auc} | {int(listed.sum())} | {int(wrong[listed].sum())} |"


if __name__ == "__main__":
    main()
