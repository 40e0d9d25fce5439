import warnings

import numpy as np
import pytest

from hf_any3d.data.files import NoPointsError, PointCloudFileError, read_point_cloud, write_labels
from tests.errors import raises

from .builders import SQUARE, TRIANGLES, ply, ply_square, splats

ORDERS = ["ascii", "binary_little_endian", "binary_big_endian"]


def read(data):
    return read_point_cloud(data, file_type="ply")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("missing", [1, 5, 17, 60])
def test_truncated_ply_names_the_file(order, missing, tmp_path):
    path = tmp_path / "square.ply"
    path.write_bytes(ply_square(order)[:-missing])
    if order == "ascii" and missing == 1:
        assert len(read_point_cloud(path)) == 4  # only the last line end is gone
        return
    with pytest.raises(PointCloudFileError):
        read_point_cloud(path)


@pytest.mark.parametrize(("kind", "label"), [("uchar", 300), ("char", -129), ("ushort", 65536), ("uint", -1)])
def test_numbers_of_a_text_file_that_their_type_cannot_hold_stay_what_they_are(kind, label):
    header = f"element vertex 2\nproperty float x\nproperty float y\nproperty float z\nproperty {kind} label"
    assert read(ply(header, f"1 2 3 {label}\n4 5 6 7\n".encode(), "ascii")).labels.tolist() == [label, 7]


def test_colors_of_a_text_file_that_are_no_whole_numbers_are_not_cut_off():
    names = "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
    header = f"element vertex 2\nproperty float x\nproperty float y\nproperty float z\n{names.rstrip()}"
    cloud = read(ply(header, b"1 2 3 0.5 0.25 1\n4 5 6 0.75 1 0\n", "ascii"))
    assert cloud.colors.tolist() == [[0.5, 0.25, 1], [0.75, 1, 0]]


def test_windows_line_ends_are_read():
    assert len(read(ply_square("ascii").replace(b"\n", b"\r\n"))) == 4
    header, _, body = ply_square("binary_little_endian").partition(b"end_header\n")
    assert len(read(header.replace(b"\n", b"\r\n") + b"end_header\r\n" + body)) == 4


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ply\n", "ply \n"),
        ("end_header\n", "end_header \n"),
        ("end_header\n", "end_header\t \r\n"),
        ("\nelement vertex", "\ncomment before end_header\nelement vertex"),
        ("\nelement vertex", "\ncomment \u0425\u0445 \u0410\u0445 \u5145\u5168\nelement vertex"),
        ("\nelement vertex", "\ncomment TextureFile C:\\\xc5ke\\t.png\nelement vertex"),
    ],
)
def test_blanks_and_comments_of_headers_do_not_move_the_data(order, old, new):
    head, end, body = ply_square(order).partition(b"end_header\n")
    cloud = read((head + end).replace(old.encode(), new.encode()) + body)
    assert (cloud.points == SQUARE).all() and (cloud.faces == TRIANGLES).all()


def test_lines_of_old_macs_end_before_data_that_look_like_another_end():
    names = "".join(f"property uchar {name}\n" for name in ("x", "y", "z")).rstrip()
    cloud = read(ply(f"element vertex 1\n{names}", b"").replace(b"\n", b"\r") + b"\n\r\n")
    assert cloud.points.tolist() == [[10, 13, 10]]


STRIPS = [[0, 1, 2, 3, -1, 4, 3, 2, 1], [], [3, 4], [0, 1, 2, 2, 3, 4]]
TRIANGLES_OF_STRIPS = [[0, 1, 2], [2, 1, 3], [4, 3, 2], [2, 3, 1], [0, 1, 2], [3, 2, 4]]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("faces", [[], [[1, 2, 4, 3]]])
def test_strips_become_triangles_that_face_to_one_side(order, faces):
    header = f"element vertex 5\nproperty float x\nproperty float y\nproperty float z\nelement face {len(faces)}\n"
    header += "property list int int vertex_indices\n"
    header += f"element tristrips {len(STRIPS)}\nproperty list int int vertex_indices"
    points, lists = np.arange(15.0), [[len(corners), *corners] for corners in [*faces, *STRIPS]]
    if order == "ascii":
        body = "\n".join(" ".join(map(str, row)) for row in [*points.reshape(5, 3), *lists]).encode() + b"\n"
    else:
        sign = {"binary_little_endian": "<", "binary_big_endian": ">"}[order]
        body = points.astype(f"{sign}f4").tobytes() + np.concatenate(lists).astype(f"{sign}i4").tobytes()
    expected = [triangle for a, b, c, d in faces for triangle in ([a, b, c], [a, c, d])] + TRIANGLES_OF_STRIPS
    assert read(ply(header, body, order)).faces.tolist() == expected


def test_a_line_of_a_text_file_is_named_by_its_number_in_the_file():
    data = ply_square("ascii")  # with a header of 13 lines
    for wrong, line in (
        (data.replace(b"\n2.0 0.0 ", b"\n\n2.0 zero "), "line 16"),
        (data.replace(b"4 0 1 2 3", b"4 0 1 2 3 9"), "line 18"),
        (data.replace(b"4 0 1 2 3", b"4 0 1"), "line 18"),
    ):
        with raises(PointCloudFileError, naming=line):
            read(wrong)


def test_gaussian_splats_have_the_color_seen_from_all_sides_and_no_normals():
    with pytest.warns(UserWarning, match="normals are all zero and are ignored") as caught:
        cloud = read_point_cloud(splats(f_dc_0=[0, 1, -9, 9], f_dc_1=0.5, f_dc_2=-1), file_type="ply")
    assert cloud.normals is None and len(caught) == 1
    expected = np.clip(0.5 + 0.28209479 * np.array([0, 1, -9, 9]), 0, 1)
    np.testing.assert_allclose(cloud.colors[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(cloud.colors[:, 1:], [[0.641047, 0.217905]] * 4, atol=1e-6)
    with pytest.warns(UserWarning, match="colors are NaN or infinite everywhere"):
        assert read_point_cloud(splats(f_dc_0=np.nan, nz=1), file_type="ply").colors is None


def test_faint_splats_are_left_out_with_one_warning_that_counts_them():
    with pytest.warns(UserWarning) as caught:
        cloud = read_point_cloud(splats(opacity=[-2.2, -2.19, 5, np.nan], nz=1), file_type="ply")
    (told,) = (str(one.message) for one in caught)
    assert told.startswith(f"<{len(splats())} bytes>: 2 of 4 Gaussian splats have an opacity below 0.1")
    assert cloud.points.tolist() == [[3, 4, 5], [6, 7, 8]] and len(cloud.colors) == 2
    with pytest.raises(PointCloudFileError):
        read_point_cloud(splats(opacity=-9), file_type="ply")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rest", [b"\0 \r\n\0", b"12 more"])
def test_what_follows_the_declared_rows_is_left_out_with_a_warning(order, rest, recwarn):
    assert len(read(ply_square(order) + rest)) == 4
    count = len(rest.strip()) if order == "ascii" else len(rest)
    text = f"{count} bytes after the data that the header declares are ignored"
    assert [str(one.message).partition(">: ")[2] for one in recwarn] == [text] * (rest == b"12 more")


@pytest.mark.parametrize("names", [("red", "green"), ("red", "green", "blue")])
def test_faces_have_colors_only_if_all_three_are_numbers_in_range(names):
    header = "element vertex 4\nproperty float x\nproperty float y\nproperty float z\nelement face 1\n"
    header += "property list uchar int vertex_indices\n" + "\n".join(f"property float {name}" for name in names)
    text = "\n".join(" ".join(map(str, row)) for row in SQUARE) + f"\n3 0 1 2 {' '.join('300' for _ in names)}\n"
    data = ply(header, text.encode(), "ascii")
    if len(names) == 3:
        with pytest.warns(UserWarning, match="colors range from 300 to 300; .* they are ignored"):
            cloud = read(data)
    else:
        cloud = read(data)
    assert cloud.faces.tolist() == [[0, 1, 2]] and cloud.face_colors is None


@pytest.mark.parametrize(
    "header",
    [
        "element vertex",
        "property float x",
        "property list uchar int x",
        "element vertex 1\nproperty list uchar quad x",
        "element vertex 1\nproperty list double int x",
        "element vertex 1\nproperty list float64 int x",
        "format zip 1.0",
        "element vertex 1\nproperty list uchar int x\nproperty float x",
        "element vertex 1\nproperty float x\nproperty float X",
        "element vertex one",
    ],
)
def test_lines_of_a_header_that_say_nothing_are_named(header):
    with pytest.raises(PointCloudFileError):
        read(ply(header, bytes(12)))


def text_of(points, colors, faces, layout):
    """A mesh as text, with its rows laid out in lines in some way."""
    header = "element vertex %d\nproperty float x\nproperty float y\nproperty float z\nproperty uchar red\n"
    header += "property uchar green\nproperty uchar blue\nelement face %d\nproperty list uchar int vertex_indices"
    rows = [[*map(repr, point), *map(str, color)] for point, color in zip(points, colors, strict=True)]
    rows += [[str(len(face)), *map(str, face)] for face in faces]
    words = [word for row in rows for word in row]
    lines = {
        "rows": [" ".join(row) for row in rows],
        "two lines a row": [" ".join(part) for row in rows for part in (row[:3], row[3:]) if part],
        "two rows a line": [" ".join(sum(rows[n : n + 2], [])) for n in range(0, len(rows), 2)],
        "words": words,
        "one line": [" ".join(words)],
        "wrapped": [" ".join(words[n : n + 7]) for n in range(0, len(words), 7)],
    }[layout]
    return ply(header % (len(points), len(faces)), "\n".join(lines).encode() + b"\n", "ascii")


LAYOUTS = ("rows", "two lines a row", "two rows a line", "words", "one line", "wrapped")


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("faces", [[], [[0, 1, 2], [0, 2, 3, 4], [5, 4, 3]]], ids=["points", "mesh"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_is_read_and_copied_by_its_numbers_whatever_its_lines(layout, faces, line_end, tmp_path):
    generator = np.random.default_rng(0)
    points, colors = generator.random((11, 3)).round(4).tolist(), generator.integers(0, 256, (11, 3)).tolist()
    path = tmp_path / "a.ply"
    path.write_bytes(text_of(points, colors, faces, layout).replace(b"\n", line_end))
    cloud = read_point_cloud(path)
    np.testing.assert_allclose(cloud.points, points, atol=1e-7)
    np.testing.assert_allclose(cloud.colors * 255, colors, atol=1e-4)
    triangles = [[face[0], face[n], face[n + 1]] for face in faces for n in range(1, len(face) - 1)]
    np.testing.assert_array_equal([] if cloud.faces is None else cloud.faces, triangles)
    write_labels(path, tmp_path / "b.ply", np.arange(11))
    copy = read_point_cloud(tmp_path / "b.ply")
    np.testing.assert_array_equal(copy.labels, np.arange(11))
    np.testing.assert_array_equal(copy.points, cloud.points)
    np.testing.assert_array_equal(copy.colors, cloud.colors)
    np.testing.assert_array_equal([] if copy.faces is None else copy.faces, triangles)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("change", [lambda text: text.rsplit(None, 1)[0], lambda text: text.replace(b"255", b"a", 1)])
def test_text_with_a_number_too_few_or_none_is_refused(layout, change):
    text = text_of([[0.5, 1, 2]] * 4, [[255, 0, 9]] * 4, [[0, 1, 2]], layout)
    with pytest.raises(PointCloudFileError, match="line|cut off|number"):
        read_point_cloud(change(text), file_type="ply")


def element(name, points, *further):
    """Header and rows of an element with coordinates."""
    header = f"element {name} {len(points)}\n" + "\n".join(f"property float {axis}" for axis in "xyz")
    return "\n".join([header, *further]), "".join(" ".join(map(str, point)) + "\n" for point in points)


def joined(*elements):
    return ply("\n".join(header for header, _ in elements), "".join(rows for _, rows in elements).encode(), "ascii")


CAMERA = [(9, 9, 9), (8, 8, 8)]
CORNERS = [(0.5, 1, 2), (3, 4, 5), (6, 7, 8)]


@pytest.mark.parametrize("name", ["vertex", "point", "Points", "sample", "vertices"])
@pytest.mark.parametrize("other", [None, "camera", "empty"])
def test_points_are_those_of_the_element_with_coordinates(name, other, tmp_path):
    elements = [element(name, CORNERS)]
    if other == "camera":
        elements.append(element("camera", CAMERA))
    if other == "empty":
        elements.insert(0, element("nothing", []))
    (tmp_path / "a.ply").write_bytes(joined(*elements))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cloud = read_point_cloud(tmp_path / "a.ply")
    np.testing.assert_array_equal(cloud.points, CORNERS)
    words = [f"ignored: element camera (points are those of element {name.lower()})"] * (other == "camera")
    assert [str(warning.message).partition(": ")[2] for warning in told] == words
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_labels(tmp_path / "a.ply", tmp_path / "b.ply", [3, 1, 2])
        np.testing.assert_array_equal(read_point_cloud(tmp_path / "b.ply").labels, [3, 1, 2])


def test_vertices_count_before_elements_of_other_names_and_none_is_an_error():
    cloud = joined(element("camera", CAMERA), element("vertex", CORNERS))
    with pytest.warns(UserWarning, match="points are those of element vertex"):
        np.testing.assert_array_equal(read_point_cloud(cloud, file_type="ply").points, CORNERS)
    with pytest.raises(NoPointsError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_point_cloud(joined(element("camera", CAMERA), element("vertex", [])), file_type="ply")
    with pytest.raises(PointCloudFileError, match="no element has the properties x, y, z; found u of vertex"):
        read_point_cloud(ply("element vertex 1\nproperty float u", b"1\n", "ascii"), file_type="ply")
