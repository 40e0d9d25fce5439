"""Units that files state in words: comments, names of columns, and a line of units below the names."""

import warnings

import numpy as np
import pytest

from hf_any3d.data.files import read_point_cloud
from hf_any3d.data.frames.units import with_unit

from .builders import pcd, ply

ROWS = ["0 0 0", "10 0 0.5", "0 10 2.5", "0 0 10"]
# Comments as programs write them -> meters
COMMENTS = {
    "File units = inches": 0.0254,  # SketchUp
    "File units = millimeters": 0.001,
    # Mimics and 3-matic
    "vertex coordinates are measured in units, where 1 unit = 1000.000000 mm": 1.0,
    "resulted coordinates are measured in units, where 1 unit = 1.000000 mm": 0.001,
    "Units: mm": 0.001,
    "units: metres (renderer Y-up frame)": 1.0,
    f"units millimet{'res'}; maximum extent exactly 200.0 mm": 0.001,  # as in Britain
    "Unit: millimeter": 0.001,
    "Model units: US survey feet": 1200 / 3937,
    "unit: 0.01 m": 0.01,
    "Coordinates are in meters": 1.0,
    # What is no unit of coordinates
    "units: m/s": None,
    "units per meter": None,
    "Units: meters per pixel": None,
    "units in pixels": None,
    "resolution unit: inch": None,
    "unit cell in m": None,
    "Created in Blender version 4.2": None,
}


def obj(comment):
    return "\n".join([f"# {comment}", *(f"v {row}" for row in ROWS), "f 1 2 3"]).encode()


def header(line):
    names = "\n".join(f"property float {axis}" for axis in "xyz")
    return f"{line}\nelement vertex {len(ROWS)}\n{names}\n"


FILES = {
    "obj": obj,
    "obj without a blank": lambda comment: obj(comment).replace(b"# ", b"#"),
    "ply": lambda comment: ply(header(f"comment {comment}"), "\n".join(ROWS).encode(), "ascii"),
    "ply of obj_info": lambda comment: ply(header(f"obj_info {comment}"), "\n".join(ROWS).encode(), "ascii"),
    "xyz": lambda comment: "\n".join([f"# {comment}", *ROWS]).encode(),
    "txt": lambda comment: "\n".join([f"% {comment}", "% x y z", *ROWS]).encode(),
    "off": lambda comment: "\n".join([f"# {comment}", "OFF", "4 0 0", *ROWS]).encode(),
    "pcd": lambda comment: (
        f"# {comment}\n".encode()
        + pcd("x y z", "4 4 4", "F F F", np.array([row.split() for row in ROWS], "<f4").tobytes(), 4, "binary")
    ),
}


@pytest.mark.parametrize("form", FILES)
def test_a_unit_in_a_comment_is_that_of_the_coordinates(form):
    for comment, length in COMMENTS.items():
        cloud = read_point_cloud(FILES[form](comment), file_type=form[:3])
        assert cloud.meters_per_unit == (None if length is None else pytest.approx(length)), comment


def test_comments_that_contradict_each_other_are_told_and_not_used():
    with pytest.warns(UserWarning, match=r"state units of 0\.001 m and 1 m, so none"):
        assert read_point_cloud(obj("Units: mm\n# Units: m"), file_type="obj").meters_per_unit is None
    # This package's own comment says it exactly.
    own = obj("File units = inches\n# meters_per_unit 0.5")
    assert read_point_cloud(own, file_type="obj").meters_per_unit == 0.5


NAMES = {
    "x_mm {0} y_mm {0} z_mm": 0.001,
    "X_ft{0}Y_ft{0}Z_ft": 0.3048,
    "x(m){0}y(m){0}z(m)": 1.0,
    "X [mm]{0}Y [mm]{0}Z [mm]": 0.001,
    "x_in{0}y_in{0}z_in": 0.0254,
    "x{0}y{0}z\nmm{0}mm{0}mm": 0.001,
    "x{0}y{0}z\n(inches){0}(inches){0}(inches)": 0.0254,
    "# x{0}y{0}z\n[ft]{0}[ft]{0}[ft]": 0.3048,
}


@pytest.mark.parametrize("mark", [" ", ";", ",", "\t"], ids=["blank", "semicolon", "comma", "tab"])
def test_a_unit_in_or_below_the_names_is_that_of_the_coordinates(mark):
    for names, length in NAMES.items():
        head = names.format(mark) if mark != " " else names.replace(" [", "[").format(mark)
        text = "\n".join([head, *(row.replace(" ", mark) for row in ROWS)])
        cloud = read_point_cloud(text.encode(), file_type="txt")
        assert len(cloud) == len(ROWS) and cloud.meters_per_unit == pytest.approx(length), head


def test_the_unit_of_a_comment_counts_as_that_of_any_file():
    cloud = read_point_cloud(obj("File units = inches"), file_type="obj")
    with pytest.warns(UserWarning, match=r"the file states a unit of 0\.0254 m, so feet is ignored"):
        assert with_unit(cloud, "feet").meters_per_unit == 0.0254
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert with_unit(read_point_cloud(obj("made"), file_type="obj"), "feet").meters_per_unit == 0.3048
