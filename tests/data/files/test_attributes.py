"""Which columns of a table are colors, normals, intensities, rings and labels, and which values they may have."""

import warnings

import numpy as np
import pytest

from hf_any3d.data.files import read_point_cloud
from hf_any3d.data.files.attributes import by_name, by_number, unit_colors, usable_labels
from hf_any3d.data.files.source import Source

from .builders import npz, ply

XYZ = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 10]])


def source(file_type: str = "txt") -> Source:
    return Source("some", b"data", file_type)


def columns(**others) -> dict[str, np.ndarray]:
    return {name: XYZ[:, i] for i, name in enumerate("xyz")} | {name: np.array(v) for name, v in others.items()}


def check(found: dict, **expected) -> None:
    """Compare all fields of a cloud with the expected ones."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


COLORS = {"red": [0, 51, 255], "green": [102, 0, 3], "blue": [9, 153, 0]}


def test_colors_of_their_own_are_taken_before_those_of_splats():
    terms = {"f_dc_0": [0.0, 1, -1], "f_dc_1": [0.5, 9, -9], "f_dc_2": [0.25, 0, 1]}
    splats = np.clip(np.array([*terms.values()]).T * 0.28209479 + 0.5, 0, 1)
    check(by_name(columns(**terms), source()), points=XYZ, colors=splats)
    check(by_name(columns(**terms, **COLORS), source()), points=XYZ, colors=np.array([*COLORS.values()]).T / 255)


@pytest.mark.parametrize(
    ("field", "names", "called"),
    [
        ("intensity", ["intensity"], "intensities"),
        ("ring", ["ring"], "rings"),
        ("normals", ["nx", "ny", "nz"], "normals"),
    ],
)
def test_points_without_a_finite_value_have_0_with_one_warning(field, names, called):
    having = {name: [0.5, np.inf, np.nan] for name in names}
    with pytest.warns(UserWarning) as caught:
        found = by_name(columns(**having), source())
    assert found[field].reshape(3, -1)[:, 0].tolist() == [0.5, 0, 0]
    assert [str(one.message) for one in caught] == [
        f"some: {called}: 2 of 3 are NaN or infinite, the first at 1 (counted from 0); they are 0"
    ]
    with pytest.warns(UserWarning, match=f"some: {called} are NaN or infinite everywhere"):
        assert by_name(columns(**{name: [np.nan] * 3 for name in names}), source())[field] is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.float64([0, 0.25, 1]), [0, 0.25, 1]),
        (np.float32([0, 0.25, 1.0005]), [0, 0.25, 1]),
        (np.float64([0, 0.25, 1.01]), [0, 0.25, 1]),
        (np.float64([0, 127.5, 255.2]), [0, 0.5, 1]),
        (np.uint8([0, 1, 255]), [0, 1 / 255, 1]),
        (np.int64([0, 1, 1]), [0, 1 / 255, 1 / 255]),
        (np.uint16([0, 51, 255]), [0, 0.2, 1]),
        (np.uint16([0, 51, 256]), [0, 51 / 65535, 256 / 65535]),
        (np.uint16([0, 13107, 65535]), [0, 0.2, 1]),
        (np.float64([0, 13107, 65535]), [0, 0.2, 1]),
        (np.zeros((0, 3), np.uint8), np.zeros((0, 3))),
    ],
)
def test_colors_are_scaled_by_their_type_and_largest_value(values, expected):
    found = unit_colors(values)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "first", "whole"),
    [
        (np.int8([-3, 4]), None, True),
        (np.int8([-3, 4]), -3, True),
        (np.int8([-3, 4]), 0, False),
        (np.array([True, False]), None, True),
        (np.uint64([2**62, 1]), 1, True),
        (np.uint64([2**63 - 1, 1]), 1, True),
        (np.uint64([2**63, 1]), None, False),
        (np.float64([2**53 - 1, 0]), 0, True),
        (np.float64([2**53, 0]), 0, False),
        (np.float64([-(2.0**53), 0]), None, False),
        (np.float64([1.5, 0]), None, False),
        (np.float64([np.nan, 0.5]), None, False),
        (np.zeros(0), 5, True),
    ],
)
def test_labels_are_whole_numbers(values, first, whole):
    if whole:
        found = usable_labels(values, source(), first)
        assert found.dtype == np.int64 and found.tolist() == values.astype(np.int64).tolist()
        return
    lowest = "" if first is None else f" from {first}"
    text = f"some: the label column has values that are not integers{lowest}"
    with pytest.warns(UserWarning) as caught:
        assert usable_labels(values, source(), first) is None
    assert str(caught[-1].message).startswith(text + " and")


BYTES = np.array([[255.0, 0, 51], [0, 102, 3], [9, 9, 9]])
UNIT = np.array([[0, 0.6, 0.8], [1.0, 0, 0], [0, -0.8, 0.6]])
NEITHER = np.array([[-0.3, 0.1, 0], [0.2, 0, -0.4], [0, 0.1, 0]])
CLASSES = np.array([[3.0], [0], [7]])


@pytest.mark.parametrize(
    ("parts", "file_type", "expected", "warned"),
    [
        ([], "txt", {}, ()),
        ([CLASSES], "txt", {"labels": [3, 0, 7]}, ("column 4 has no name",)),
        ([-CLASSES], "txt", {"labels": None}, ("column 4 has no name",)),
        ([-CLASSES], "pts", {"intensity": [-3, 0, -7]}, ()),
        ([BYTES], "txt", {"colors": BYTES / 255}, ()),
        ([BYTES / 255], "txt", {"colors": BYTES / 255}, ()),
        ([UNIT], "txt", {"normals": UNIT}, ()),
        ([NEITHER], "txt", {}, ("columns 4 to 6",)),
        ([BYTES / 2], "txt", {}, ("columns 4 to 6",)),
        ([BYTES + 1], "txt", {}, ("columns 4 to 6",)),
        ([BYTES - 1], "txt", {}, ("columns 4 to 6",)),
        ([UNIT, CLASSES], "txt", {"normals": UNIT, "labels": [3, 0, 7]}, ()),
        ([BYTES, CLASSES], "txt", {"colors": BYTES / 255, "labels": [3, 0, 7]}, ("column 7 has no name",)),
        ([CLASSES, BYTES], "pts", {"colors": BYTES / 255, "intensity": [3, 0, 7]}, ()),
        ([CLASSES / 4 - 1, BYTES], "txt", {"colors": BYTES / 255, "intensity": [-0.25, -1, 0.75]}, ()),
        ([CLASSES - 5, BYTES], "txt", {"colors": BYTES / 255, "intensity": [-2, -5, 2]}, ("column 4 has no name",)),
        ([BYTES, CLASSES - 5], "pts", {"colors": BYTES / 255, "labels": None}, ("column 7 has no name",)),
        ([BYTES, CLASSES * 0 + 255], "txt", {"colors": BYTES / 255}, ()),
        ([BYTES / 255, CLASSES * 0 + 1], "txt", {"colors": BYTES / 255}, ("column 7 is 1 everywhere",)),
        ([BYTES / 255, CLASSES / 7], "txt", {}, ("columns 4 to 7",)),
        ([NEITHER, CLASSES], "txt", {"labels": [3, 0, 7]}, ("columns 4 to 6", "column 7 has no name")),
        ([BYTES, UNIT], "txt", {"colors": BYTES / 255, "normals": UNIT}, ()),
        ([UNIT, BYTES], "txt", {"colors": BYTES / 255, "normals": UNIT}, ()),
        ([UNIT, NEITHER], "txt", {"normals": UNIT}, ("columns 7 to 9",)),
        ([UNIT, -UNIT], "txt", {"normals": UNIT}, ("columns 7 to 9",)),
        ([BYTES, BYTES / 255], "txt", {"colors": BYTES / 255}, ("columns 7 to 9",)),
        ([NEITHER, BYTES], "txt", {"colors": BYTES / 255}, ("columns 4 to 6",)),
        ([NEITHER, UNIT], "txt", {"normals": UNIT}, ("columns 4 to 6",)),
        ([NEITHER, NEITHER], "txt", {}, ("columns 4 to 6", "columns 7 to 9")),
    ],
)
def test_columns_without_names_are_interpreted_by_their_values(parts, file_type, expected, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = by_number(np.hstack([XYZ, *parts]), source(file_type))
    assert len(caught) == len(warned)
    assert all(str(one.message).startswith(f"some: {text}") for one, text in zip(caught, warned, strict=True))
    missing = {name for name, values in expected.items() if values is None}
    assert all(found.pop(name) is None for name in missing)
    check(found, points=XYZ, **{name: values for name, values in expected.items() if name not in missing})


@pytest.mark.parametrize("top", [1, 30, 90, 255])
def test_colors_of_a_pts_and_ptx_are_those_of_the_format_however_dark(top):
    generator = np.random.default_rng(top)
    points = generator.random((40, 3)).round(3) * 30 + 1
    colors = generator.integers(0, top, (40, 3), endpoint=True)
    strength = np.arange(40) - 100

    def text(*columns):
        return "".join(" ".join(f"{value:.10g}" for value in row) + "\n" for row in np.column_stack(columns))

    head = "1\n40\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"
    for kind, stored in (
        ("pts", "40\n" + text(points, strength, colors)),
        ("pts", "40\n" + text(points, colors)),
        ("ptx", head + text(points, strength / 100, colors)),
    ):
        cloud = read_point_cloud(stored.encode(), file_type=kind)
        np.testing.assert_allclose(cloud.colors, colors / 255, atol=1e-6)
        np.testing.assert_allclose(cloud.points, points, atol=1e-5)


@pytest.mark.parametrize(("wrong", "kept"), [(1, True), (3, False)])
def test_a_few_normals_of_another_length_are_normals_all_the_same(wrong, kept):
    normals = np.tile([0, -0.6, 0.8], (200, 1))
    normals[:wrong] = [0, -0.5, 0]
    table = np.hstack([np.arange(600.0).reshape(200, 3), normals])
    if kept:
        np.testing.assert_allclose(by_number(table, source())["normals"], normals, rtol=1e-6)
        return
    with pytest.warns(UserWarning, match="columns 4 to 6 look neither like normals nor like colors"):
        assert by_number(table, source()).keys() == {"points"}


@pytest.mark.parametrize("top", [1.002, 1.25, 40.0])
def test_a_highlight_above_1_does_not_darken_the_others(top):
    colors = np.random.default_rng(0).random((100, 3))
    colors[7, 1] = top
    header = "element vertex 100\n" + "\n".join(
        f"property float {name}" for name in ("x", "y", "z", "red", "green", "blue")
    )
    rows = np.concatenate([colors, colors], axis=1).astype("<f4")
    for data, kind in ((ply(header, rows.tobytes()), "ply"), (npz(points=colors, colors=colors), "npz")):
        with pytest.warns(UserWarning, match="1 of 300 color values are above 1"):
            cloud = read_point_cloud(data, file_type=kind)
        np.testing.assert_allclose(cloud.colors, colors.clip(0, 1), atol=1e-6)
