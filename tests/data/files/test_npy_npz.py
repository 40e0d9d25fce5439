"""npy and npz."""

import zipfile

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud, source, write_labels
from tests.errors import raises

from .builders import npy, npz

XYZ = np.arange(12, dtype=np.float32).reshape(4, 3)


def read(data, kind="npy"):
    return read_point_cloud(data, file_type=kind)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">i4", "u1", "<i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_type_and_memory_order_of_numbers_is_read(dtype, order):
    points = read(npy(np.asarray(XYZ, dtype, order=order))).points
    assert points.dtype == np.float32 and (points == XYZ).all() and points.flags.c_contiguous


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 2)),
        np.zeros(5),
        np.float32(5),
        np.zeros((2, 5, 3)),
        np.zeros((5, 5)),
        np.zeros((5, 3), complex),
        np.full((5, 3), "1"),
        np.full((5, 3), np.nan),
        np.float64([[0, 0, np.inf]]),
        np.float64([[0, 0, 1e39]]),
    ],
)
def test_an_array_that_is_not_a_cloud_is_explained(array):
    with pytest.raises(PointCloudFileError):
        read(npy(array))


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


ROWS = np.zeros(4, [("x", "f4"), ("y", "f4"), ("z", "f4"), ("note", "O")])
OBJECTS = [{"xyz": XYZ, "rgb": XYZ}, [XYZ, XYZ[:3]], np.full((4, 3), Trap(), object), ROWS, None]


@pytest.mark.parametrize("content", OBJECTS, ids=["dictionary", "list", "objects", "field", "none"])
def test_python_objects_are_named_and_never_unpickled(content):
    array = np.empty((), object) if not isinstance(content, np.ndarray) else content
    if array is not content:
        array[()] = content
    advice = "holds Python objects, such as a dictionary, which are never unpickled; save its arrays of numbers with "
    advice += 'numpy.savez("FILE.npz", points=…, colors=…)'
    for data, kind, words in (
        (npy(array, allow_pickle=True), "npy", advice),
        (npz(points=array), "npz", f"array 'points' {advice}"),
        (npz(anything=array), "npz", f"array 'anything' {advice}"),
    ):
        with raises(PointCloudFileError, naming=words) as told:
            read(data, kind)
        assert "damaged" not in str(told.value)
    # Beside points they are left out, by name if they are what a cloud has a place for.
    with pytest.warns(UserWarning, match=r"ignored: labels \(Python objects, which are never unpickled\); notes"):
        cloud = read(npz(points=XYZ, labels=array, notes=array), "npz")
    assert len(cloud) == 4 and cloud.labels is None


@pytest.mark.parametrize("spelled", [str.upper, str.title, lambda name: name])
def test_names_of_arrays_are_known_in_any_capitals(spelled, tmp_path):
    arrays = {
        "points": XYZ,
        "colors": XYZ / 12,
        "labels": np.arange(4),
        "intensity": XYZ[:, 0],
        "up_axis": np.array("z"),
    }
    path = tmp_path / "a.npz"
    np.savez(path, **{spelled(name): values for name, values in arrays.items()})
    cloud = read_point_cloud(path)
    np.testing.assert_array_equal(cloud.points, XYZ)
    np.testing.assert_array_equal(cloud.labels, np.arange(4))
    assert cloud.colors is not None and cloud.intensity is not None and cloud.up_axis == "z"
    write_labels(path, tmp_path / "b.npz", [3, 1, 2, 0])
    with np.load(tmp_path / "b.npz") as copy:
        assert {*copy.files} == {*map(spelled, arrays)} and copy[spelled("labels")].tolist() == [3, 1, 2, 0]


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_fields_may_have_names_in_any_alphabet():
    rows = np.zeros(3, [("x", "f4"), ("y", "f4"), ("z", "f4"), ("класс", "u1"), ("高さ", "f4")])
    rows["класс"] = [1, 2, 3]
    cloud = read_point_cloud(npy(rows), file_type="npy", label_field="класс", columns=["高さ"])
    assert cloud.labels.tolist() == [1, 2, 3] and [*cloud.further] == ["高さ"]


def test_a_header_that_declares_more_than_the_file_holds_is_refused():
    data = npy(XYZ)
    with pytest.raises(PointCloudFileError):
        read(data[:-1])
    for damaged in (data[:3], b"x" + data[1:], data.replace(b"(4, 3)", b"(4, ((")):
        with pytest.raises(PointCloudFileError):
            read(damaged)


def test_a_truncated_or_changed_archive_is_refused(tmp_path, monkeypatch):
    data = npz(points=XYZ)
    with pytest.raises(PointCloudFileError):
        read(data[:-10], "npz")
    at = data.index(b"PK\x01\x02") + 24  # the unpacked size in the archive's directory
    with monkeypatch.context() as low, pytest.raises(PointCloudFileError, match="times the"):
        low.setattr(source, "FREE_BYTES", 1000)
        read(data[:at] + b"\x00\xff\x00\x00" + data[at + 4 :], "npz")
    changed = bytearray(npz(points=np.ones((1000, 3))))
    changed[len(changed) // 2] ^= 1  # in an array that is most of the file, which is not copied
    with pytest.raises(PointCloudFileError, match="CRC"):
        read(bytes(changed), "npz")
    path = tmp_path / "slow.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("points.npy", npy(XYZ))
    with pytest.raises(PointCloudFileError):
        read_point_cloud(path)


def test_an_archive_is_read_whole():
    generator = np.random.default_rng(0)
    arrays = {
        "points": generator.normal(size=(5, 3)),
        "normals": generator.normal(size=(5, 3)),
        "colors": generator.integers(0, 256, (5, 3)).astype(np.uint8),
        "intensity": generator.random((5, 1)),
        "ring": np.arange(5) + 3,
        "labels": np.arange(5) - 2,
        "faces": np.array([[0, 1, 2], [4, 3, 2]]),
        "face_colors": np.array([[255, 0, 51], [0, 102, 9]]),
        "offset": np.array([5e5, -4e6, 7]),
    }
    cloud = read(npz(**arrays), "npz")
    for name in ("points", "normals", "labels", "faces", "offset", "ring"):
        np.testing.assert_allclose(getattr(cloud, name), arrays[name], rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(cloud.intensity, arrays["intensity"][:, 0], rtol=1e-6)
    for name in ("colors", "face_colors"):
        np.testing.assert_allclose(getattr(cloud, name), arrays[name] / 255, rtol=1e-6)
    assert cloud.up_axis is None


@pytest.mark.parametrize(
    "names", [("points", "xyz", "pos", "positions", "coords", "coord", "point_cloud", "pc", "vertices", "arr_0")]
)
def test_of_several_arrays_of_points_the_first_name_counts(names):
    for number in range(len(names)):
        arrays = {name: XYZ + at for at, name in enumerate(names) if at >= number}
        assert (read(npz(**arrays, other=XYZ * 9), "npz").points == XYZ + number).all()


def test_labels_are_those_with_one_value_a_point_and_others_are_named():
    arrays = {"labels": np.arange(3), "part": np.zeros((4, 2)), "seg": np.arange(4)[:, None] + 7}
    with pytest.warns(UserWarning, match="ignored: labels, part "):
        assert read(npz(points=XYZ, **arrays), "npz").labels.tolist() == [7, 8, 9, 10]
    assert read(npz(points=XYZ, label=np.array([2])), "npz").labels is None


@pytest.mark.parametrize("labels", [np.arange(4), np.arange(4)[:, None]])
def test_names_of_pointcept_are_read_and_what_is_left_out_is_named(labels):
    arrays = {"color": np.full((4, 4), [51, 102, 255, 255]), "normal": np.tile([0, 0, 1], (4, 1)), "segment": labels}
    with pytest.warns(UserWarning) as said:
        cloud = read(npz(coord=XYZ, strength=np.arange(4.0)[:, None], instance=labels, name="a", **arrays), "npz")
    assert [str(warning.message).partition(": ")[2] for warning in said] == [
        "ignored: instance, name (a point cloud cannot store them)"
    ]
    assert (cloud.points == XYZ).all() and cloud.labels.tolist() == cloud.intensity.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(cloud.colors, [[0.2, 0.4, 1]] * 4, atol=1e-6)
    with pytest.warns(UserWarning, match="the fourth column of colors, such as alpha, is ignored"):
        assert read(npz(points=XYZ, colors=np.eye(4)), "npz").colors.tolist() == np.eye(4)[:, :3].tolist()


def test_fields_of_three_numbers_are_columns():
    kind = np.dtype(
        [("XYZ", "f8", 3), ("velocity", "f4", 2), ("normal", "f4", (3,)), ("intensity", "u2"), ("rgba", "u1", 4)]
    )
    rows = np.zeros(4, kind)
    rows["XYZ"], rows["normal"], rows["intensity"], rows["rgba"] = XYZ, [0, 0, 1], np.arange(4), [255, 0, 51, 9]
    with pytest.warns(UserWarning, match="fields velocity have several values per point and are ignored"):
        cloud = read(npy(rows))
    assert (cloud.points == XYZ).all() and cloud.intensity.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(cloud.colors, [[1, 0, 0.2]] * 4, atol=1e-6)
    assert cloud.normals.tolist() == [[0, 0, 1]] * 4


def test_columns_of_the_points_of_an_archive_are_kept_where_no_array_replaces_them():
    wide = np.hstack([XYZ, np.full((4, 3), 51.0), np.tile([0, 0.6, 0.8], (4, 1))])
    cloud = read(npz(points=wide, normals=np.tile([1, 0, 0], (4, 1))), "npz")
    np.testing.assert_allclose(cloud.colors, 0.2, atol=1e-6)
    assert cloud.normals.tolist() == [[1, 0, 0]] * 4
    with pytest.warns(UserWarning, match="normals are all zero and are ignored"):
        cloud = read(npz(points=wide, normals=np.zeros((4, 3))), "npz")
    np.testing.assert_allclose(cloud.normals, [[0, 0.6, 0.8]] * 4)


def test_an_offset_of_an_archive_is_added_to_the_one_that_is_split_off():
    far = XYZ.astype(np.float64) + [5e5, 0, 0]
    cloud = read(npz(points=far, offset=np.array([1, 2, 3])), "npz")
    assert cloud.offset.tolist() == [500001, 3, 5] and (cloud.points == XYZ - [0, 1, 2]).all()
