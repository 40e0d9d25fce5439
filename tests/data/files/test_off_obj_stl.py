"""OFF, OBJ and STL."""

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud

from .builders import SQUARE, TRIANGLES, stl

OFF = "4 2 0\n0 0 0\n2 0 0\n2 1 0\n0 1 0\n3 0 1 2\n3 0 2 3\n"
OBJ = "v 0 0 0\nv 2 0 0\nv 2 1 0\nv 0 1 0\n"


def read(text, kind):
    return read_point_cloud(text.encode() if isinstance(text, str) else text, file_type=kind)


@pytest.mark.parametrize("header", ["OFF\n", "OFF ", "OFF", "off\r\n", "# c\n", "OFF # c\n# d\n\n", "  OFF\n"])
def test_off_headers_on_one_or_two_lines_and_with_comments_are_read(header):
    text = OFF if header != "# c\n" else "OFF\n# c\n" + OFF
    cloud = read((header if header != "# c\n" else "") + text, "off")
    assert (cloud.points == SQUARE).all() and (cloud.faces == TRIANGLES).all()


def test_off_reads_colors_and_normals():
    cloud = read("CNOFF\n2 0 0\n0 0 0 0 0 1 255 0 0 255\n1 0 0 0 0 1 0 51 0 255\n", "off")
    assert not cloud.is_mesh and cloud.normals.tolist() == [[0, 0, 1]] * 2
    np.testing.assert_allclose(cloud.colors, [[1, 0, 0], [0, 0.2, 0]], atol=1e-6)
    faces = "OFF\n" + OFF.replace("3 0 1 2", "3 0 1 2 255 0 0").replace("3 0 2 3", "3 0 2 3 0 0 255 128")
    assert read(faces, "off").face_colors.tolist() == [[1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    "text, why",
    [
        ("STL\n" + OFF, "starts with 'STL.*expected OFF"),
        ("OFF\n4 2\n0 0 0\n1 1 1\n", "ends after 2 of 6 declared lines"),
        ("OFF\n" + OFF.replace("3 0 2 3", "4 0 2 3"), "face 1 declares 4 corners in a line of 4 numbers"),
        ("OFF\n" + OFF.replace("3 0 2 3", "3 0 2 9"), "refers to point 9; allowed are 0 to 3"),
        ("OFF\n" + OFF.replace("3 0 2 3", "3 0 2 1.5"), "refers to point 1.5; expected a whole number"),
        ("OFF\n" + OFF.replace("2 1 0", "2 1 zero"), "line 3: 'zero' is not a number"),
        ("OFF\nmany 2 0\n", "a count is 'many'"),
        ("OFF\n0 0 0\n", "there are no points"),
    ],
)
def test_a_damaged_off_is_explained(text, why):
    with pytest.raises(PointCloudFileError, match=why):
        read(text, "off")


@pytest.mark.parametrize("face", ["f 1 2 3 4", "f 1/1 2/2 3/3 4/4", "f -4//1 -3//1 -2//1 -1//1", "f 1/2/3 2 3 \\\n4"])
def test_obj_corners_are_read_in_every_spelling(face):
    cloud = read(OBJ + "vn 0 0 1\n" + face + "\n", "obj")
    assert (cloud.points == SQUARE).all() and (cloud.faces == TRIANGLES).all()
    assert cloud.normals is None


def test_obj_keeps_vertex_colors_and_matching_normals():
    lines = [f"v {i} {i * i} 0 0 0.5 1\nvn 0 0 1" for i in range(3)]
    cloud = read("\n".join(lines) + "\nf 1//1 2//2 3//3\n", "obj")
    np.testing.assert_allclose(cloud.colors, [[0, 0.5, 1]] * 3)
    assert cloud.normals.tolist() == [[0, 0, 1]] * 3


def test_obj_materials_are_read_from_the_folder_and_nowhere_else(tmp_path):
    (tmp_path / "models").mkdir()
    mtl = "newmtl red\nKd 1 0 0\n"
    (tmp_path / "outside.mtl").write_text(mtl)
    (tmp_path / "models" / "inside.mtl").write_text(mtl)
    body = OBJ + "usemtl red\nf 1 2 3\nusemtl unknown\nf 1 3 4\n"
    path = tmp_path / "models" / "square.obj"
    for name in ("../outside.mtl", str(tmp_path / "outside.mtl"), "http://localhost/x.mtl", "missing.mtl", ".", ""):
        path.write_text(f"mtllib {name}\n{body}")
        assert read_point_cloud(path).face_colors is None, name
    (tmp_path / "models" / "link.mtl").symlink_to(tmp_path / "outside.mtl")
    path.write_text(f"mtllib link.mtl\n{body}")
    assert read_point_cloud(path).face_colors is None
    path.write_text(f"mtllib inside.mtl\n{body}")
    np.testing.assert_allclose(read_point_cloud(path).face_colors, [[1, 0, 0], [0.8, 0.8, 0.8]])


@pytest.mark.parametrize(
    "text, why",
    [
        (OBJ + "f 1 2 9\n", "refers to point 8; allowed are 0 to 3"),
        (OBJ + "f 1 2 0\n", "the corner '0'; expected numbers from 1"),
        (OBJ + "f 1 2 x\n", "the corner 'x'"),
        (OBJ + "f 1 2 -9\n", "refers to -9, counted from the 4 before it"),
        ("v 1 2\n", "vertices have 2 numbers"),
        ("v 1 2 3\nv 1 2\n", "line 2 has 2 columns; expected 3"),
        ("g nothing\n", "there are no points; expected lines 'v x y z'"),
    ],
)
def test_a_damaged_obj_is_explained(text, why):
    with pytest.raises(PointCloudFileError, match=why):
        read(text, "obj")


def test_a_binary_stl_whose_header_says_solid_is_read():
    data = stl(SQUARE[TRIANGLES])
    assert (read(data, "stl").points == SQUARE[TRIANGLES].reshape(-1, 3)).all()
    assert (read(b"solid" + data[5:], "stl").points == SQUARE[TRIANGLES].reshape(-1, 3)).all()


def test_a_truncated_stl_is_explained(files):
    with pytest.raises(PointCloudFileError, match="2 triangles need 184, so the file may be cut off"):
        read(stl(SQUARE[TRIANGLES])[:-1], "stl")
    with pytest.raises(PointCloudFileError, match="no closing 'endsolid'"):
        read((files / "screwdriver.stl").read_bytes()[:5000], "stl")
    with pytest.raises(PointCloudFileError, match="12 bytes; a binary STL has at least 84"):
        read(b"not an stl!!", "stl")
    with pytest.raises(PointCloudFileError, match="expected 3 per facet"):
        read(
            "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nendloop\nendfacet\nendsolid a", "stl"
        )


def test_a_binary_stl_that_goes_on_after_its_last_triangle_is_explained():
    data, read_square = stl(SQUARE[TRIANGLES]), read(stl(SQUARE[TRIANGLES]), "stl")
    assert (read(data + b"\0\0\n", "stl").points == read_square.points).all(), "padding is no data"
    for longer in (data + data[84:], data[:80] + (1).to_bytes(4, "little") + data[84:]):
        with pytest.raises(PointCloudFileError, match=r"triangles need \d+, so the count may be wrong"):
            read(longer, "stl")
