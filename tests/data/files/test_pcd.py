import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud

from .builders import lzf, pcd

FIELDS = ("x y z rgb label", "4 4 4 4 2", "F F F U U")
RED, TEAL = 0xFF0000, 0x003366


def read(data):
    return read_point_cloud(data, file_type="pcd")


def table(count=2):
    rows = np.zeros(count, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4"), ("label", "<u2")])
    rows["x"], rows["y"], rows["z"] = np.arange(count), 2, 3
    rows["rgb"], rows["label"] = np.resize([RED, TEAL], count), np.arange(count) % 9
    return rows


def compressed(rows):
    fields = b"".join(rows[name].tobytes() for name in rows.dtype.names)
    packed = lzf(fields)
    return np.uint32([len(packed), len(fields)]).tobytes() + packed


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
def test_every_kind_of_data_gives_the_same_cloud(kind):
    rows = table(300)
    body = {
        "ascii": lambda: "".join(" ".join(map(str, row)) + "\n" for row in rows.tolist()).encode(),
        "binary": rows.tobytes,
        "binary_compressed": lambda: compressed(rows),
    }[kind]()
    cloud = read(pcd(*FIELDS, body, 300, kind))
    assert (cloud.points[:, 0] == np.arange(300)).all() and (cloud.labels == np.arange(300) % 9).all()
    np.testing.assert_allclose(cloud.colors[:2], [[1, 0, 0], [0, 0.2, 0.4]], atol=1e-6)


def test_pixels_without_measurement_are_left_out_with_a_warning():
    rows = table(6)
    rows["y"][[1, 4]] = np.nan
    with pytest.warns(UserWarning, match="2 of 6 points have no measurement"):
        cloud = read(pcd(*FIELDS, rows.tobytes(), 6, WIDTH="3", HEIGHT="2"))
    assert cloud.points[:, 0].tolist() == [0, 2, 3, 5]
    with pytest.raises(PointCloudFileError):
        read(pcd(*FIELDS, rows.tobytes(), 6))


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
def test_a_truncated_pcd_is_explained(kind):
    rows = table(50)
    body = b"0 2 3 4 5\n" * 50 if kind == "ascii" else rows.tobytes() if kind == "binary" else compressed(rows)
    data = pcd(*FIELDS, body, 50, kind)
    assert len(read(data)) == 50
    for missing in (3, 11, 100):
        with pytest.raises(PointCloudFileError):
            read(data[:-missing])


@pytest.mark.parametrize(
    "changes",
    [
        {"TYPE": "F F F F U4"},
        {"SIZE": "4 4 4 4 3"},
        {"SIZE": "4 4 4 4"},
        {"HEIGHT": ""},
        {"COUNT": "1 1 1 1 99999999999"},
        {"FIELDS": "x y w rgb label"},
    ],
)
def test_a_wrong_header_is_explained(changes):
    with pytest.raises(PointCloudFileError):
        read(pcd(*FIELDS, table().tobytes(), 2, **changes))


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
def test_fields_of_every_type_are_read_whole(kind):
    """Fields of several values and padding between others, two rows of two pixels, a comment and small letters."""
    fields = "_ X label fpfh y Intensity z _ rgba ring normal_x normal_y normal_z"
    sizes, types, counts = "1 8 2 4 4 4 8 2 4 1 4 4 4", "U F I f F F F U U U F F F", "2 1 1 3 1 1 1 1 1 1 1 1 1"
    row = [("a", "u1", 2), ("x", "<f8"), ("label", "<i2"), ("h", "<f4", 3), ("y", "<f4"), ("i", "<f4"), ("z", "<f8")]
    row += [("b", "<u2"), ("rgba", "<u4"), ("ring", "u1"), ("nx", "<f4"), ("ny", "<f4"), ("nz", "<f4")]
    rows = np.zeros(4, row)
    rows["x"], rows["y"], rows["z"] = [1.5, -2, 3, 4], [5, 6, 7.25, 8], [9, -10, 11, 12]
    rows["label"], rows["i"], rows["ring"] = [-3, 4, 0, 300], [0.5, 1, 2, 3], [1, 2, 3, 255]
    rows["rgba"] = [0xFF0033, 0x00FF00FF, 0x12000033, RED]
    rows["nx"], rows["ny"], rows["nz"] = [0, 0, 0.5, 1], [1, 0, 0, 0.25], [0, -1, 0, 0]
    rows["h"], rows["a"], rows["b"] = 77, 9, 8
    names = rows.dtype.names
    if kind == "ascii":
        lines = [" ".join(str(v) for name in names for v in np.atleast_1d(one[name]).tolist()) for one in rows]
        body = "\n".join(lines).encode()
    else:
        body = rows.tobytes() if kind == "binary" else compressed(rows)
    data = pcd(fields, sizes, types, body, 2, kind, COUNT=counts, HEIGHT="2 # of the image", POINTS="4")
    cloud = read(b"# .PCD v0.7 - by hand\n" + data.replace(b"FIELDS", b"columns"))
    assert cloud.points.tolist() == [[1.5, 5, 9], [-2, 6, -10], [3, 7.25, 11], [4, 8, 12]]
    assert cloud.labels.tolist() == [-3, 4, 0, 300] and cloud.intensity.tolist() == [0.5, 1, 2, 3]
    assert (
        cloud.ring.tolist() == [1, 2, 3, 255]
        and cloud.normals.tolist() == np.stack([rows["nx"], rows["ny"], rows["nz"]], axis=1).tolist()
    )
    np.testing.assert_allclose(cloud.colors * 255, [[255, 0, 51], [255, 0, 255], [0, 0, 51], [255, 0, 0]], atol=1e-4)
    assert cloud.offset is None and cloud.faces is None


@pytest.mark.parametrize("values", ["0.5", "1e30", "9007199254740992"])
def test_packed_colors_of_a_text_file_are_whole_numbers(values):
    with pytest.raises(PointCloudFileError):
        read(pcd("x y z rgb", "4 4 4 4", "F F F U", f"1 2 3 {values}\n".encode(), 1, "ascii"))
