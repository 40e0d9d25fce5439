"""Further columns of points, which are read by name: extra dimensions of LAS, properties, fields and columns."""

import io
import warnings

import laspy
import numpy as np
import pytest

from hf_any3d import read_point_cloud
from tests.errors import raises

XYZ = np.array([[0.25, 1, 2], [3, 4.5, 5], [6, 7, 8.75], [1, 2, 0.5]])
REFLECTANCE, DEVIATION, CLASSES = [-15.25, -14.5, 3.75, 20.0], [7, 0, 250, 65535], [2, 6, 6, 2]
BOTH = ["reflectance", "deviation"]


def extra_dimensions(ending):
    """The bytes of a LAS whose reflectances are scaled, the last of which is none."""
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.add_extra_dim(laspy.ExtraBytesParams("normals", "3f4"))
    header.add_extra_dim(
        laspy.ExtraBytesParams(
            "Reflectance", "i2", scales=np.array([0.25]), offsets=np.array([-10.0]), no_data=np.array([-999])
        )
    )
    header.add_extra_dim(laspy.ExtraBytesParams("deviation", "u2"))
    scan = laspy.LasData(header)
    scan.x, scan.y, scan.z = XYZ.T
    scan.classification = np.array(CLASSES, np.uint8)
    scan.Reflectance = [*REFLECTANCE[:3], -999 * 0.25 - 10]
    scan.deviation = DEVIATION
    file = io.BytesIO()
    scan.write(file, do_compress=ending == "laz")
    return file.getvalue()


def table(separator, *columns):
    rows = zip(*XYZ.T, *columns, strict=True)
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


PLY = "ply\nformat ascii 1.0\nelement vertex 4\n{}end_header\n"
PROPERTIES = "".join(f"property double {name}\n" for name in ("x", "y", "z", "Reflectance", "deviation", "label"))
PCD = (
    "VERSION .7\nFIELDS x y z Reflectance deviation label\nSIZE 4 4 4 4 4 4\nTYPE F F F F F U\nCOUNT 1 1 1 1 1 1\n"
    "WIDTH 4\nHEIGHT 1\nPOINTS 4\nDATA ascii\n"
)
FILES = {
    "las": extra_dimensions("las"),
    "laz": extra_dimensions("laz"),
    "ply": (PLY.format(PROPERTIES) + table(" ", [*REFLECTANCE[:3], "nan"], DEVIATION, CLASSES)).encode(),
    "pcd": (PCD + table(" ", [*REFLECTANCE[:3], "nan"], DEVIATION, CLASSES)).encode(),
    "csv": ("x,y,z,Reflectance,deviation,label\n" + table(",", [*REFLECTANCE[:3], ""], DEVIATION, CLASSES)).encode(),
}


@pytest.mark.parametrize("kind", FILES)
def test_columns_are_read_by_name_with_nothing_where_a_point_has_none(kind):
    with pytest.warns(UserWarning) as told:
        cloud = read_point_cloud(FILES[kind], file_type=kind, columns=BOTH)
    said = " ".join(str(one.message) for one in told)
    # laspy 2.7.0 scales reflectances, too, but keeps the number that stands for none.
    np.testing.assert_array_equal(cloud.further["reflectance"], [*REFLECTANCE[:3], np.nan])
    np.testing.assert_array_equal(cloud.further["deviation"], DEVIATION)
    assert "1 of 4 points have no value in attribute 'reflectance'" in said
    assert "deviation" not in said and "Reflectance" not in said
    assert cloud.labels.tolist() == CLASSES
    with raises(ValueError, naming="'reflectances'"), warnings.catch_warnings(action="ignore"):
        read_point_cloud(FILES[kind], file_type=kind, columns=["reflectances"])
    with warnings.catch_warnings(action="ignore"):
        assert read_point_cloud(FILES[kind], file_type=kind).further is None


def test_coordinates_labels_and_flags_are_no_further_columns():
    for columns, options, name in (
        (["Z"], {}, "coordinates"),
        (["deviation"], {"label_field": "deviation"}, "labels"),
        (["withheld"], {}, "withheld"),
        (["Reflectance", "reflectance"], {}, "the same column"),
        ("deviation", {}, "columns"),
    ):
        with raises(ValueError, naming=name), warnings.catch_warnings(action="ignore"):
            read_point_cloud(FILES["ply"], file_type="ply", columns=columns, **options)
    # Named as a column, a usual name of labels is none of them.
    with warnings.catch_warnings(action="ignore"):
        cloud = read_point_cloud(FILES["ply"], file_type="ply", columns=["label"])
    assert cloud.labels is None and cloud.further["label"].tolist() == CLASSES


def test_points_that_are_left_out_take_their_columns_with_them():
    rows = table(",", REFLECTANCE, DEVIATION, CLASSES).replace("3.0,4.5", "nan,4.5")
    text = ("x,y,z,reflectance,deviation,label\n" + rows).encode()
    with pytest.warns(UserWarning, match="1 of 4 points"):
        cloud = read_point_cloud(text, file_type="csv", columns=["reflectance"], on_invalid="drop")
    assert cloud.further["reflectance"].tolist() == [-15.25, 3.75, 20.0]
