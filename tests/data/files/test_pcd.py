import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud
from hf_any3d.data.files.pcd import decompress
from hf_any3d.data.files.source import PointCloudError

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


def test_packed_colors_are_read_as_float_too():
    rows = table()
    packed = np.uint32([RED, TEAL]).view(np.float32)
    text = "".join(f"1 2 3 {value!r}\n" for value in map(float, packed)).encode()
    for kind, body in (("ascii", text), ("binary", b"".join(row.tobytes()[:16] for row in rows))):
        cloud = read(pcd("x y z rgb", "4 4 4 4", "F F F F", body, 2, kind))
        np.testing.assert_allclose(cloud.colors, [[1, 0, 0], [0, 0.2, 0.4]], atol=1e-6)


def test_doubles_padding_histograms_and_normals_are_read():
    fields = ("x _ y z _ normal_x normal_y normal_z fpfh", "8 1 8 8 1 4 4 4 4", "F U F F U F F F F")
    kind = [("x", "<f8"), ("a", "u1", 3), ("yz", "<f8", 2), ("b", "u1", 5), ("n", "<f4", 3), ("h", "<f4", 33)]
    row = np.zeros(1, kind)
    row["x"], row["yz"], row["n"] = 1, [2, 3], [0, 1, 0]
    cloud = read(pcd(*fields, row.tobytes(), 1, COUNT="1 3 1 1 5 1 1 1 33"))
    assert cloud.points.tolist() == [[1, 2, 3]] and cloud.normals.tolist() == [[0, 1, 0]]


def test_pixels_without_measurement_are_left_out_with_a_warning():
    rows = table(6)
    rows["y"][[1, 4]] = np.nan
    with pytest.warns(UserWarning, match="2 of 6 points have no measurement"):
        cloud = read(pcd(*FIELDS, rows.tobytes(), 6, WIDTH="3", HEIGHT="2"))
    assert cloud.points[:, 0].tolist() == [0, 2, 3, 5]
    with pytest.raises(PointCloudFileError, match="NaN"):
        read(pcd(*FIELDS, rows.tobytes(), 6))


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
def test_a_truncated_pcd_is_explained(kind):
    rows = table(50)
    body = b"0 2 3 4 5\n" * 50 if kind == "ascii" else rows.tobytes() if kind == "binary" else compressed(rows)
    data = pcd(*FIELDS, body, 50, kind)
    assert len(read(data)) == 50
    for missing in (3, 11, 100):
        with pytest.raises(PointCloudFileError, match="cut off|columns"):
            read(data[:-missing])


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"TYPE": "F F F F U4"}, "field 'label' has type 'U42'"),
        ({"SIZE": "4 4 4 4 3"}, "field 'label' has type 'U3'; expected F4, F8, or I and U 1 to 8"),
        ({"SIZE": "4 4 4 4"}, "SIZE has 4 values for 5 FIELDS"),
        ({"WIDTH": "99999999999999"}, "may be cut off"),
        ({"POINTS": "7"}, "POINTS is 7, but WIDTH 2 times HEIGHT 1 is 2"),
        ({"HEIGHT": "one"}, "HEIGHT is 'one'"),
        ({"HEIGHT": ""}, "HEIGHT has 0 values"),
        ({"COUNT": "1 1 1 1 99999999999"}, "COUNT of field 'label' is 99999999999"),
        ({"FIELDS": "x y w rgb label"}, "no column z"),
    ],
)
def test_a_wrong_header_is_explained(changes, why):
    with pytest.raises(PointCloudFileError, match=why):
        read(pcd(*FIELDS, table().tobytes(), 2, **changes))


def test_an_unknown_kind_of_data_and_no_header_are_explained():
    with pytest.raises(PointCloudFileError, match="DATA is 'zip'; expected ascii, binary or binary_compressed"):
        read(pcd(*FIELDS, b"", 2, "zip"))
    with pytest.raises(PointCloudFileError, match="has no line 'DATA'"):
        read(b"0 0 0\n")


def test_lzf_decompresses_and_notices_damage():
    generator = np.random.default_rng(0)
    for data in (b"", b"a", b"ab" * 500, generator.integers(0, 256, 3000, np.uint8).tobytes(), bytes(10_000)):
        packed = lzf(data)
        assert decompress(packed, len(data)) == data
        if data:
            for damaged in (packed[:-1], packed + b"\0", b"\xe0\x00\xff" + packed):
                with pytest.raises(PointCloudError):
                    decompress(damaged, len(data))
    assert decompress(b"\x00a\x20\x00", 4) == b"aaaa"  # a short reference that overlaps itself
    with pytest.raises(PointCloudError, match="cannot give 99999999"):
        decompress(b"\x00a", 99_999_999)
