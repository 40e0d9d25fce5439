"""Names of columns in every container: those of any format, units, counts, degrees, and columns without a value."""

import warnings

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData, PointCloudFileError, read_point_cloud
from tests.errors import raises

from .builders import npy, npz, pcd, ply

COUNT = 40
DRAW = np.random.default_rng(5)
POINTS = DRAW.random((COUNT, 3)).round(4) * [4, 3, 2]
COLORS = DRAW.integers(0, 256, (COUNT, 3))
NORMALS = np.eye(3)[DRAW.integers(0, 3, COUNT)]
AMOUNTS = DRAW.integers(1, 200, COUNT).astype(float)


def as_csv(columns):
    return "csv", table_text(columns, ",")


def as_semicolons(columns):
    return "csv", table_text(columns, ";")


def as_quoted_csv(columns):
    return "csv", table_text({f'"{name}"': values for name, values in columns.items()}, ",")


def as_tabs(columns):
    return "txt", table_text(columns, "\t")


def as_words(columns):
    return "txt", table_text(columns, " ")


def as_comment(columns):
    return "xyz", b"# " + table_text(columns, " ")


def as_ply_text(columns):
    header = "".join(f"property double {name}\n" for name in columns)
    rows = table_text(columns, " ").split(b"\n", 1)[1]
    return "ply", ply(f"element vertex {COUNT}\n{header}", rows, "ascii")


def as_ply(columns):
    header = "".join(f"property double {name}\n" for name in columns)
    body = np.stack([*columns.values()], axis=1).astype("<f8").tobytes()
    return "ply", ply(f"element vertex {COUNT}\n{header}", body)


def as_pcd(columns):
    sizes = " ".join("8" for _ in columns)
    types = " ".join("F" for _ in columns)
    body = np.stack([*columns.values()], axis=1).astype("<f8").tobytes()
    return "pcd", pcd(" ".join(columns), sizes, types, body, COUNT)


def as_pcd_text(columns):
    sizes = " ".join("8" for _ in columns)
    types = " ".join("F" for _ in columns)
    rows = table_text(columns, " ").split(b"\n", 1)[1]
    return "pcd", pcd(" ".join(columns), sizes, types, rows, COUNT, "ascii")


def as_fields(columns):
    array = np.zeros(COUNT, [(name, "f8") for name in columns])
    for name, values in columns.items():
        array[name] = values
    return "npy", npy(array)


def as_archive(columns):
    return "npz", npz(**columns)


def as_archive_of_fields(columns):
    array = np.zeros(COUNT, [(name, "f8") for name in columns])
    for name, values in columns.items():
        array[name] = values
    return "npz", npz(points=array)


def table_text(columns, delimiter):
    rows = [delimiter.join(columns)]
    rows += [delimiter.join(f"{value:.10g}" for value in row) for row in zip(*columns.values(), strict=True)]
    return ("\n".join(rows) + "\n").encode()


# The last take names without blanks alone.
TABLES = (as_csv, as_semicolons, as_quoted_csv, as_tabs, as_fields, as_archive, as_archive_of_fields)
WORDS = (as_words, as_comment, as_ply_text, as_ply, as_pcd, as_pcd_text)
CONTAINERS = (*TABLES, *WORDS)


def cloud_of(container, columns) -> tuple[PointCloudData, str]:
    kind, data = container(columns)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cloud = read_point_cloud(data, file_type=kind)
    return cloud, " ".join(str(warning.message) for warning in told)


def columns_of(names, *values):
    return dict(zip(names.split(), np.concatenate([*values], axis=1).T, strict=True))


AXES = [
    "x y z",
    "X Y Z",
    "cartesianX cartesianY cartesianZ",
    "POINT_X POINT_Y POINT_Z",
    "pos_x pos_y pos_z",
    "x_coord y_coord z_coord",
    "Easting Northing Elevation",
    "E N H",
    "Points:0 Points:1 Points:2",
    "Points_m_XYZ:0 Points_m_XYZ:1 Points_m_XYZ:2",
    "X_UTME Y_UTMN Z",
]
RGB = [
    "red green blue",
    "R G B",
    "Rf Gf Bf",
    "colorRed colorGreen colorBlue",
    "color_r color_g color_b",
    "diffuse_red diffuse_green diffuse_blue",
    "RGB:0 RGB:1 RGB:2",
]
NORMAL = [
    "nx ny nz",
    "Nx Ny Nz",
    "normal_x normal_y normal_z",
    "normalX normalY normalZ",
    "nor:normalX nor:normalY nor:normalZ",
    "Normals:0 Normals:1 Normals:2",
]
MEASURED = {
    "intensity": "intensity Intensity scalar_Intensity reflectance Reflectivity remission i I amplitude strength",
    "ring": "ring ring_index ring_id laser_id laser_number LaserId channel beam_id line scalar_ring",
    "return_number": "return_number ReturnNumber scalar_ReturnNumber",
    "number_of_returns": "number_of_returns NumberOfReturns num_returns",
    "labels": "label labels class Classification scalar_Classification semantic sem_label category",
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_names_of_all_formats_are_known_in_every_container(container):
    for place in range(max(len(AXES), len(RGB), len(NORMAL))):
        axes, rgb, normal = (names[place % len(names)] for names in (AXES, RGB, NORMAL))
        columns = columns_of(f"{axes} {rgb} {normal}", POINTS, COLORS, NORMALS)
        cloud, _ = cloud_of(container, columns)
        np.testing.assert_allclose(cloud.points, POINTS, atol=1e-6, err_msg=axes)
        np.testing.assert_allclose(cloud.colors, COLORS / 255, atol=1e-6, err_msg=rgb)
        np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-6, err_msg=normal)
    for field, names in MEASURED.items():
        for name in names.split():
            cloud, _ = cloud_of(container, columns_of(f"x y z {name}", POINTS, AMOUNTS[:, None]))
            np.testing.assert_array_equal(getattr(cloud, field), AMOUNTS, err_msg=name)


@pytest.mark.parametrize("container", CONTAINERS)
def test_colors_packed_into_a_number_are_unpacked_in_every_container(container):
    packed = COLORS @ [1 << 16, 1 << 8, 1]
    for name in ("rgb", "RGB"):
        if container in (as_pcd, as_pcd_text):
            continue  # floats of PCD are bits
        cloud, _ = cloud_of(container, columns_of(f"x y z {name}", POINTS, packed[:, None]))
        np.testing.assert_allclose(cloud.colors, COLORS / 255, atol=1e-6)


UNITS = {
    "mm": 0.001,
    "millimeters": 0.001,
    "cm": 0.01,
    "m": 1.0,
    "meters": 1.0,
    "met" + "res": 1.0,  # as in Britain
    "km": 1000.0,
    "ft": 0.3048,
    "feet": 0.3048,
    "us-ft": 1200 / 3937,
}
# How names state a unit; the last take no brackets or blanks.
FORMS = ["{0} ({1})", "{0} [{1}]", "{0}({1})", "{0}[{1}]"]
PLAIN_FORMS = ["{0}_{1}", "{0}[{1}]", "{0}({1})"]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("axes", ["x y z", "X Y Z", "Easting Northing Elevation"])
def test_a_unit_in_names_is_read_in_every_container(axes, container):
    forms = FORMS + PLAIN_FORMS if container in TABLES else PLAIN_FORMS
    for unit, length in UNITS.items():
        for form in forms:
            names = [form.format(axis, unit) for axis in axes.split()]
            cloud, said = cloud_of(container, dict(zip(names, POINTS.T, strict=True)))
            assert cloud.meters_per_unit == pytest.approx(length), names
            assert "unit" not in said
            np.testing.assert_allclose(cloud.points, POINTS, atol=1e-6)


@pytest.mark.parametrize("container", CONTAINERS)
def test_several_units_in_names_are_one_of_heights_or_refused(container):
    cloud, _ = cloud_of(container, dict(zip(("x_mm", "y_mm", "z_m"), POINTS.T, strict=True)))
    assert (cloud.meters_per_unit, cloud.meters_per_height) == (0.001, 1.0)
    kind, data = container(dict(zip(("x_mm", "y_m", "z_m"), POINTS.T, strict=True)))
    with raises(PointCloudFileError, naming="x_mm, y_m, z_m have different units"):
        read_point_cloud(data, file_type=kind)
    # A unit after the last name
    cloud, said = cloud_of(container, dict(zip(("x", "y", "z_mm"), POINTS.T, strict=True)))
    assert cloud.meters_per_unit == 0.001 and "assuming mm for all" in said
    cloud, _ = cloud_of(container, dict(zip("xyz", POINTS.T, strict=True)))
    assert cloud.meters_per_unit is None


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("first", [0, 1])
def test_a_column_that_counts_the_points_is_no_measurement(first, container):
    numbers = np.arange(COUNT)[:, None] + float(first)
    for name in ("i", "I", "line", "channel", "ring", "index", "id", "intensity"):
        for columns in (
            columns_of(f"{name} x y z", numbers, POINTS),
            columns_of(f"x y z {name}", POINTS, numbers),
        ):
            cloud, said = cloud_of(container, columns)
            np.testing.assert_allclose(cloud.points, POINTS, atol=1e-6)
            assert cloud.intensity is None and cloud.ring is None and cloud.labels is None
            assert name.lower() in said.lower()


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    "names",
    ["latitude longitude altitude", "lon lat height", "Lat Long Elevation", "GPS_lat GPS_lon alt", "lat lng z"],
)
def test_latitude_and_longitude_are_to_be_projected(names, container):
    rows = POINTS / 1000 + [48, 11, 500]
    kind, data = container(dict(zip(names.split(), rows.T, strict=True)))
    with pytest.raises(PointCloudFileError) as refusal:
        read_point_cloud(data, file_type=kind)
    assert "are in degrees; reproject" in str(refusal.value) and "names of columns" not in str(refusal.value)


@pytest.mark.parametrize("container", CONTAINERS)
def test_columns_that_are_zero_everywhere_are_none_and_told(container):
    for names, field in (("red green blue", "colors"), ("nx ny nz", "normals"), ("intensity", "intensity")):
        zeros = np.zeros((COUNT, len(names.split())))
        cloud, said = cloud_of(container, columns_of(f"x y z {names}", POINTS, zeros))
        assert getattr(cloud, field) is None and "zero" in said


# Rows without names: a time before the coordinates is left out, or told.
TIMES = {
    "seconds since 1970": 1583829382 + np.arange(COUNT) * 0.013,
    "nanoseconds": 1.583829382e18 + np.arange(COUNT) * 1e7,
    "seconds of a week of GPS": 396812 + np.arange(COUNT) * 0.1,
    "seconds": np.arange(COUNT) * 0.1,
    "packets": 1583829382 + np.arange(COUNT) // 4 * 0.1,
}


@pytest.mark.parametrize("further", ["", "i", "rgb", "n"])
@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("kind", ["txt", "xyz", "csv", "asc", "npy"])
def test_times_before_coordinates_without_names_are_left_out_or_told(kind, times, further):
    extra = {"": POINTS[:, :0], "i": AMOUNTS[:, None], "rgb": COLORS, "n": NORMALS}[further]
    table = np.column_stack([TIMES[times], POINTS, extra])
    delimiter = "," if kind == "csv" else " "
    rows = "".join(delimiter.join(f"{value:.12g}" for value in row) + "\n" for row in table)
    data = npy(table) if kind == "npy" else rows.encode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            cloud = read_point_cloud(data, file_type=kind)
        except PointCloudFileError as error:
            assert "column" in str(error)
            return
    said = " ".join(str(warning.message) for warning in told)
    assert "column 1" in said
    if times != "seconds":
        np.testing.assert_allclose(cloud.points, POINTS, atol=1e-4)
        assert (cloud.colors is not None) == (further == "rgb") and (cloud.normals is not None) == (further == "n")


def test_clouds_that_are_sorted_by_x_are_read_without_a_word():
    points = POINTS[np.argsort(POINTS[:, 0])]
    for extra in (POINTS[:, :0], COLORS, NORMALS):
        rows = "".join(" ".join(f"{value:.10g}" for value in row) + "\n" for row in np.column_stack([points, extra]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cloud = read_point_cloud(rows.encode(), file_type="xyz")
        np.testing.assert_allclose(cloud.points, points, atol=1e-6)
