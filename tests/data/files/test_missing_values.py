"""A value that a point of a file lacks is missing at this point alone: labels, intensities, colors and normals."""

import warnings

import numpy as np
import pytest

from hf_any3d import read_point_cloud
from hf_any3d.data.files import PointCloudFileError
from tests.errors import raises

from .builders import npy, npz, ply

NAMES = ["x", "y", "z", "nx", "ny", "nz", "red", "green", "blue", "intensity", "label"]
COUNT = 40
HOLED, MISSING = 4, (7, 21)  # a point without a place, and two without values


def table(missing: float = np.nan, holed: float | None = None) -> np.ndarray:
    """Rows of `NAMES`, of which two lack all but their place; `holed` is all that one more has."""
    random = np.random.default_rng(0)
    normals = random.normal(size=(COUNT, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    colors = random.integers(1, 256, (COUNT, 3))
    measured = random.integers(1, 900, (COUNT, 1))
    rows = np.hstack([random.random((COUNT, 3)), normals, colors, measured, np.arange(COUNT)[:, None] % 3])
    rows[list(MISSING), 3:] = missing
    if holed is not None:
        rows[HOLED] = holed
    return rows


def as_ply(rows: np.ndarray) -> bytes:
    header = f"element vertex {len(rows)}\n" + "\n".join(f"property float {name}" for name in NAMES)
    return ply(header, rows.astype("<f4").tobytes())


def as_ascii_ply(rows: np.ndarray) -> bytes:
    kinds = {name: "uchar" for name in ("red", "green", "blue", "label")}
    header = f"element vertex {len(rows)}\n" + "\n".join(f"property {kinds.get(n, 'float')} {n}" for n in NAMES)
    return ply(header, as_text(rows, " ").split(b"\n", 1)[1], "ascii")


def as_pcd(rows: np.ndarray) -> bytes:
    names = " ".join(NAMES).replace("nx ny nz", "normal_x normal_y normal_z").replace("red green blue", "r g b")
    count = len(NAMES)
    return (
        f"VERSION .7\nFIELDS {names}\nSIZE{' 4' * count}\nTYPE{' F' * count}\nWIDTH {len(rows)}\nHEIGHT 1\n"
        f"POINTS {len(rows)}\nDATA binary\n"
    ).encode() + rows.astype("<f4").tobytes()


def as_text(rows: np.ndarray, mark: str = ",", nothing: str = "nan") -> bytes:
    lines = [mark.join(nothing if np.isnan(value) else f"{value:.9g}" for value in row) for row in rows]
    return "\n".join([mark.join(NAMES), *lines, ""]).encode()


def as_npz(rows: np.ndarray) -> bytes:
    return npz(points=rows[:, :3], normals=rows[:, 3:6], colors=rows[:, 6:9], intensity=rows[:, 9], labels=rows[:, 10])


def as_structured(rows: np.ndarray) -> bytes:
    return npy(np.ascontiguousarray(rows).view([(name, "f8") for name in NAMES])[:, 0])


WRITERS = {
    "binary.ply": as_ply,
    "ascii.ply": as_ascii_ply,
    "some.pcd": as_pcd,
    "some.csv": as_text,
    "some.txt": lambda rows: as_text(rows, " "),
    "empty.csv": lambda rows: as_text(rows, ",", ""),
    "empty; .csv": lambda rows: as_text(rows, ";", " "),
    "some.npz": as_npz,
    "some.npy": as_structured,
}


def read(path, **options):
    """The cloud, and what was said of it."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cloud = read_point_cloud(path, **options)
    return cloud, [str(each.message) for each in told]


@pytest.mark.parametrize("name", WRITERS)
def test_points_without_values_keep_their_place_and_all_others_their_values(tmp_path, name):
    rows = table()
    (tmp_path / name).write_bytes(WRITERS[name](rows))
    cloud, said = read(tmp_path / name)
    expected = np.nan_to_num(rows)
    expected[list(MISSING), 10] = -1
    np.testing.assert_allclose(cloud.points, rows[:, :3], rtol=1e-6)
    np.testing.assert_allclose(cloud.normals, expected[:, 3:6], rtol=1e-6)
    np.testing.assert_allclose(cloud.colors, expected[:, 6:9] / 255, rtol=1e-6)
    np.testing.assert_allclose(cloud.intensity, expected[:, 9], rtol=1e-6)
    assert cloud.labels.tolist() == expected[:, 10].tolist()
    # Each is told once, with how many they are and where the first is.
    assert len(said) == 4 and all("2 of 40" in text and "the first at 7 " in text for text in said)


@pytest.mark.parametrize(("columns", "field"), [([10], "labels"), ([6, 7, 8], "colors"), ([3, 4, 5], "normals")])
@pytest.mark.parametrize("options", [{}, {"on_invalid": "drop"}])
def test_columns_without_names_are_found_beside_missing_values(tmp_path, columns, field, options):
    rows = table(holed=np.nan if options else None)[:, [0, 1, 2, *columns]]
    np.savetxt(tmp_path / "some.xyz", rows)
    np.save(tmp_path / "some.npy", rows)
    for name in ("some.xyz", "some.npy"):
        cloud, _ = read(tmp_path / name, **options)
        expected = np.nan_to_num(rows[:, 3:], nan=-1 if field == "labels" else 0) / (255 if field == "colors" else 1)
        if options:
            expected = np.delete(expected, HOLED, axis=0)
        np.testing.assert_allclose(getattr(cloud, field).reshape(len(expected), -1), expected.clip(-1), rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("x,y,z,label\n1,2,3,\n4,5,6,7\n", [-1, 7]),
        ("x;y;z;label\n1,5;2,5;3,5; \n4;5;6;7\n", [-1, 7]),
        ("x\ty\tz\tlabel\n1\t2\t3\t\n4\t5\t6\t7\n", [-1, 7]),
        ("x\ty\tlabel\tz\n1\t2\t\t3\n4\t5\t7\t6\n", [-1, 7]),
        ('x,y,z,label\n1,2,3,""\n4,5,6,"7"\n', [-1, 7]),
        ("x,y,z,label\n1,2,3,NA\n4,5,6,7\n", [-1, 7]),
        ("x y z label\n1 2 3 null\n4 5 6 7\n", [-1, 7]),
        ("x,y,z,name,label\n1,2,3,,\n4,5,6,tree,7\n", [-1, 7]),
        ("x,y,z,name,label\n1,2,3,N/A,-1.#IND\n4,5,6,tree,7\n", [-1, 7]),
        # Nothing is missing where a delimiter ends each row, nor between tabs that align columns.
        ("x,y,z,label,\n1,2,3,0,\n4,5,6,7,\n", [0, 7]),
        ("x,y,z,label\n1,2,3,0,\n4,5,6,7,\n", [0, 7]),
        ("x\ty\tz\tlabel\n1\t\t2\t\t3\t\t0\n4\t\t5\t\t6\t\t7\n", [0, 7]),
        # A column without any value
        ("x,y,z,label\n1,2,3,\n4,5,6,\n", None),
    ],
)
def test_cells_of_text_without_a_number_are_missing_values(tmp_path, text, labels):
    (tmp_path / "some.csv").write_text(text)
    cloud, said = read(tmp_path / "some.csv")
    assert [row[0] // 1 for row in cloud.points.tolist()] == [1, 4]
    assert (cloud.labels if labels is None else cloud.labels.tolist()) == labels
    assert any("labels" in each for each in said) == (labels != [0, 7])


@pytest.mark.parametrize("text", ["x,y,z,label\n1,2,3,\n4,,6,7\n", "x,y,z,label\n1,2,3,4\n\n# no y\n4,NA,,7\n"])
def test_a_line_without_a_coordinate_is_named(tmp_path, text):
    (tmp_path / "some.csv").write_text(text)
    with raises(PointCloudFileError, naming="some.csv: line " + ("3" if "#" not in text else "5")):
        read(tmp_path / "some.csv")


@pytest.mark.parametrize(("kind", "red"), [("F", "2.3418052e-38"), ("U", "16711680")])
def test_packed_colors_in_text_may_be_missing(tmp_path, kind, red):
    header = (
        f"VERSION .7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F {kind}\nWIDTH 3\nHEIGHT 1\nPOINTS 3\nDATA ascii\n"
    )
    (tmp_path / "some.pcd").write_text(f"{header}1 2 3 {red}\n2 3 4 nan\nnan nan nan nan\n")
    cloud, said = read(tmp_path / "some.pcd", on_invalid="drop")
    np.testing.assert_allclose(cloud.colors, [[1, 0, 0], [0, 0, 0]])
    assert "colors: 1 of 3 are NaN" in said[0] and "1 of 3 points" in said[1] and len(said) == 2
