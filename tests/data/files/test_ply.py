import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud

from .builders import SQUARE, TRIANGLES, ply, ply_square, splats

ORDERS = ["ascii", "binary_little_endian", "binary_big_endian"]


def read(data):
    return read_point_cloud(data, file_type="ply")


@pytest.mark.parametrize("order", ORDERS)
def test_every_byte_order_gives_the_same_mesh(order):
    cloud = read(ply_square(order))
    assert (cloud.points == SQUARE).all() and (cloud.faces == TRIANGLES).all()
    assert cloud.labels.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(cloud.colors[:, 0], [0, 0.2, 0.4, 0.6], atol=1e-6)
    assert (cloud.colors[:, 2] == 1).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("missing", [1, 5, 17, 60])
def test_truncated_ply_names_the_file(order, missing, tmp_path):
    path = tmp_path / "square.ply"
    path.write_bytes(ply_square(order)[:-missing])
    if order == "ascii" and missing == 1:
        assert len(read_point_cloud(path)) == 4  # only the last line end is gone
        return
    with pytest.raises(PointCloudFileError, match="square.ply: .*(cut off|too long|columns)"):
        read_point_cloud(path)


def test_polygons_of_different_sizes_are_cut_into_triangles():
    body = SQUARE.tobytes() + b"\x03" + np.int32([0, 1, 2]).tobytes() + b"\x04" + np.int32([3, 2, 1, 0]).tobytes()
    header = "element vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    binary = read(ply(header + "element face 2\nproperty list uchar int vertex_index", body))
    assert binary.faces.tolist() == [[0, 1, 2], [3, 2, 1], [3, 1, 0]]
    text = "\n".join(" ".join(map(str, row)) for row in SQUARE) + "\n3 0 1 2\n4 3 2 1 0\n"
    ascii_ = read(ply(header + "element face 2\nproperty list uchar int vertex_index", text.encode(), "ascii"))
    assert (ascii_.faces == binary.faces).all()


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian"])
def test_lists_in_vertices_and_unknown_elements_are_ignored(order):
    header = (
        "comment made by hand\nobj_info none\nelement camera 1\nproperty float f\nelement vertex 2\nproperty float x\n"
        "property list uchar short seen\nproperty float y\nproperty float z"
    )
    if order == "ascii":
        body = b"7.5\n1 2 10 11 2 3\n4 1 12 5 6\n"
    else:
        body = np.float32([7.5, 1]).tobytes() + b"\x02" + np.int16([10, 11]).tobytes() + np.float32([2, 3]).tobytes()
        body += np.float32([4]).tobytes() + b"\x01" + np.int16([12]).tobytes() + np.float32([5, 6]).tobytes()
    assert read(ply(header, body, order)).points.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(("kind", "label"), [("uchar", 300), ("char", -129), ("ushort", 65536), ("uint", -1)])
def test_numbers_of_a_text_file_that_their_type_cannot_hold_stay_what_they_are(kind, label):
    header = f"element vertex 2\nproperty float x\nproperty float y\nproperty float z\nproperty {kind} label"
    assert read(ply(header, f"1 2 3 {label}\n4 5 6 7\n".encode(), "ascii")).labels.tolist() == [label, 7]


def test_colors_of_a_text_file_that_are_no_whole_numbers_are_not_cut_off():
    names = "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
    header = f"element vertex 2\nproperty float x\nproperty float y\nproperty float z\n{names.rstrip()}"
    cloud = read(ply(header, b"1 2 3 0.5 0.25 1\n4 5 6 0.75 1 0\n", "ascii"))
    assert cloud.colors.tolist() == [[0.5, 0.25, 1], [0.75, 1, 0]]


@pytest.mark.parametrize("row", [b"1 2 3 4\n", b"1 2\n"])
def test_rows_of_a_text_file_have_the_declared_numbers(row):
    header = "element vertex 2\nproperty float x\nproperty float y\nproperty float z"
    with pytest.raises(PointCloudFileError, match=r": element 'vertex', line 1 has \d columns; expected 3"):
        read(ply(header, 2 * row, "ascii"))


def test_windows_line_ends_are_read():
    assert len(read(ply_square("ascii").replace(b"\n", b"\r\n"))) == 4
    header, _, body = ply_square("binary_little_endian").partition(b"end_header\n")
    assert len(read(header.replace(b"\n", b"\r\n") + b"end_header\r\n" + body)) == 4


def test_a_text_file_named_ply_is_refused(tmp_path):
    path = tmp_path / "notes.ply"
    path.write_text("0 0 0\n1 1 1\n")
    with pytest.raises(PointCloudFileError, match=r"notes.ply: starts with b'0 0 0.*starts with a line 'ply'"):
        read_point_cloud(path)


@pytest.mark.parametrize(
    "header, text",
    [
        ("element vertex 1\nproperty float x\nproperty float y", "no column z; found x, y"),
        ("element face 0\nproperty list uchar int vertex_indices", "no element 'vertex'; found face"),
        ("element vertex -1\nproperty float x", "'-1'; expected a whole number"),
        ("element vertex 1\nproperty quad x", "'property quad x' is not allowed in PLY"),
        ("element vertex 1\nproperty float x\nproperty float x", "declares property 'x' twice"),
        ("element vertex 1\nproperty list float int x", "expected an integer type"),
        ("element vertex 99999999999\nproperty float x\nproperty float y\nproperty float z", "may be cut off"),
    ],
)
def test_a_wrong_header_is_explained(header, text):
    with pytest.raises(PointCloudFileError, match=text):
        read(ply(header, bytes(12)))


def test_a_header_without_format_or_end_is_explained():
    with pytest.raises(PointCloudFileError, match="no 'end_header'"):
        read(b"ply\nformat ascii 1.0\n")
    with pytest.raises(PointCloudFileError, match="names no format; expected one of ascii"):
        read(b"ply\nelement vertex 0\nend_header\n")


def test_a_face_of_a_point_that_does_not_exist_is_refused():
    data = ply_square("ascii").replace(b"4 0 1 2 3", b"4 0 1 2 4")
    with pytest.raises(PointCloudFileError, match="a face refers to point 4; allowed are 0 to 3"):
        read(data)


def test_normals_with_nan_are_left_out_with_a_warning():
    names = "".join(f"property float {name}\n" for name in ("x", "y", "z", "nx", "ny", "nz"))
    with pytest.warns(UserWarning, match="bytes>: normals have NaN"):
        cloud = read(ply("element vertex 1\n" + names.rstrip(), b"1 2 3 nan 0 1\n", "ascii"))
    assert cloud.normals is None and cloud.points.tolist() == [[1, 2, 3]]


def test_gaussian_splats_have_the_color_seen_from_all_sides_and_no_normals():
    with pytest.warns(UserWarning, match="normals are all zero and are left out") as caught:
        cloud = read_point_cloud(splats(f_dc_0=[0, 1, -9, 9], f_dc_1=0.5, f_dc_2=-1), file_type="ply")
    assert cloud.normals is None and len(caught) == 1
    expected = np.clip(0.5 + 0.28209479 * np.array([0, 1, -9, 9]), 0, 1)
    np.testing.assert_allclose(cloud.colors[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(cloud.colors[:, 1:], [[0.641047, 0.217905]] * 4, atol=1e-6)
    with pytest.warns(UserWarning, match="f_dc_0 to f_dc_2 have NaN values"):
        assert read_point_cloud(splats(f_dc_0=np.nan, nz=1), file_type="ply").colors is None


def test_faint_splats_are_left_out_with_one_warning_that_counts_them():
    with pytest.warns(UserWarning) as caught:
        cloud = read_point_cloud(splats(opacity=[-2.2, -2.19, 5, np.nan], nz=1), file_type="ply")
    assert [str(one.message) for one in caught] == [
        "<356 bytes>: 2 of 4 Gaussian splats have an opacity below 0.1 and are left out".replace(
            "356", str(len(splats()))
        )
    ]
    assert cloud.points.tolist() == [[3, 4, 5], [6, 7, 8]] and len(cloud.colors) == 2
    with pytest.raises(PointCloudFileError, match="none of 4 Gaussian splats has an opacity of at least 0.1"):
        read_point_cloud(splats(opacity=-9), file_type="ply")
