"""OFF, OBJ and STL."""

from contextlib import nullcontext

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, file_type_of, read_point_cloud
from hf_any3d.data.files.registry import files_read
from tests.errors import raises

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


@pytest.mark.parametrize(
    "text",
    [
        "STL\n" + OFF,
        "OFF\n4 2\n0 0 0\n1 1 1\n",
        "OFF\n" + OFF.replace("3 0 2 3", "4 0 2 3"),
        "OFF\n" + OFF.replace("3 0 2 3", "3 0 2 9"),
        "OFF\n" + OFF.replace("3 0 2 3", "3 0 2 1.5"),
        "OFF\nmany 2 0\n",
    ],
)
def test_a_damaged_off_is_explained(text):
    with pytest.raises(PointCloudFileError):
        read(text, "off")


@pytest.mark.parametrize(
    ("kind", "text", "line"),
    [
        ("off", "OFF\n" + OFF.replace("2 1 0", "2 1 zero"), 5),
        ("off", "OFF # c\n#\n" + OFF.replace("3 0 2 3", "3 0 two 3"), 9),
        ("obj", "v 1 2 3\nv 1 2\n", 2),
        ("obj", "# a\nmtllib \\\nb.mtl\nv 0 0 0\nv 1 x 0\n", 5),
        ("obj", "# a\n" + OBJ + "\nf 1 2 3\nf 1 2 x\n", 8),
    ],
)
def test_errors_name_the_line_of_the_file(kind, text, line):
    with raises(PointCloudFileError, naming=f"line {line}"):
        read(text, kind)


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
    "text",
    [
        OBJ + "f 1 2 9\n",
        OBJ + "f 1 2 0\n",
        OBJ + "f 1 2 -9\n",
        "v 1 2\n",
        "g nothing\n",
    ],
)
def test_a_damaged_obj_is_explained(text):
    with pytest.raises(PointCloudFileError):
        read(text, "obj")


def test_a_binary_stl_whose_header_says_solid_is_read():
    data = stl(SQUARE[TRIANGLES])
    assert (read(data, "stl").points == SQUARE[TRIANGLES].reshape(-1, 3)).all()
    assert (read(b"solid" + data[5:], "stl").points == SQUARE[TRIANGLES].reshape(-1, 3)).all()


def test_a_truncated_stl_is_explained(files):
    with pytest.raises(PointCloudFileError):
        read(stl(SQUARE[TRIANGLES])[:-1], "stl")
    with pytest.raises(PointCloudFileError):
        read((files / "screwdriver.stl").read_bytes()[:5000], "stl")
    with pytest.raises(PointCloudFileError):
        read(b"not an stl!!", "stl")
    with pytest.raises(PointCloudFileError):
        read(
            "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nendloop\nendfacet\nendsolid a", "stl"
        )


def test_a_binary_stl_that_goes_on_after_its_last_triangle_is_explained():
    data, read_square = stl(SQUARE[TRIANGLES]), read(stl(SQUARE[TRIANGLES]), "stl")
    assert (read(data + b"\0\0\n", "stl").points == read_square.points).all(), "padding is no data"
    for longer in (data + data[84:], data[:80] + (1).to_bytes(4, "little") + data[84:]):
        with pytest.raises(PointCloudFileError):
            read(longer, "stl")


@pytest.mark.parametrize(
    ("rows", "colors"),
    [
        (["3 0 1 2 255 0 51", "4 0 1 2 3 0 102 0 9"], [[1, 0, 0.2], [0, 0.4, 0], [0, 0.4, 0]]),
        (["3 0 1 2 255 0", "4 0 1 2 3 0 102"], None),
        (["3 0 1 2 7", "4 0 1 2 3 8"], None),
    ],
)
def test_faces_of_an_off_have_colors_if_each_has_three_numbers(rows, colors):
    cloud = read("OFF\n4 2 0\n0 0 0\n2 0 0\n2 1 0\n0 1 0\n" + "\n".join(rows), "off")
    assert cloud.faces.tolist() == [[0, 1, 2], [0, 1, 2], [0, 2, 3]]
    if colors is None:
        assert cloud.face_colors is None
    else:
        np.testing.assert_allclose(cloud.face_colors, colors, atol=1e-6)


def test_colors_of_some_faces_of_an_off_are_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="1 of 2 faces have colors, so colors are ignored"):
        cloud = read("OFF\n" + OFF.replace("3 0 1 2", "3 0 1 2 255 0 0"), "off")
    assert cloud.face_colors is None and len(cloud.faces) == 2


@pytest.mark.parametrize("kind", ["obj", "off", "stl"])
def test_decimal_commas_are_read_or_refused(kind):
    rows = ["0,5 1,25 2", "-1,5 0 2,75e-1", "0 -0,25 1"]
    text = {
        "obj": "# x, y, z\no a,b\n" + "".join(f"v  {row}\n" for row in rows) + "f 1 2 3\n",
        "off": "OFF # x, y\r\n3 1\r\n" + "\r\n".join(rows) + "\r\n3 0 1 2 0,5 1 0\r\n",
        "stl": "solid a, b\nfacet normal 0 0,5 1\nouter loop\n"
        + "".join(f"vertex {row}\n" for row in rows)
        + "endloop\nendfacet\nendsolid\n",
    }[kind]
    cloud = read(text, kind)
    np.testing.assert_allclose(cloud.points, [[0.5, 1.25, 2], [-1.5, 0, 0.275], [0, -0.25, 1]], rtol=1e-6)
    assert cloud.faces.tolist() == [[0, 1, 2]] and cloud.colors is None
    with pytest.raises(PointCloudFileError):
        read(text.replace("-0,25", "-0.25"), kind)


WHOLE_OBJ = """# written by hand
v 0 0 0 1 0 0.25
v 1 0 0 0 0.5 0
f -2 1 -1
vn 0 0 1
vn 0 1 0
v 0 2 0 0 0 1
vn 1 0 0
usemtl shiny
f 1/9/1 2/8/2 3//3
f 1//1 2 # a comment
o thing
v 3 3 3 0.125 0 0
vn 0.6 0 0.8
usemtl matte
f -4//-4 -3/7/-3 \\
-2//-2 4//4
f 2 3 4 1 2
l 1 2
"""


@pytest.mark.parametrize(
    ("change", "last"),
    [(("1/9/1 2/8/2", "1/9/2 2/8/1"), None), (("4//4", "4//3"), [1, 0, 0]), (("l 1 2", "vn 1 1 1"), [0.6, 0, 0.8])],
)
def test_normals_of_an_obj_are_kept_if_each_vertex_has_one(change, last):
    assert change[0] in WHOLE_OBJ
    cloud = read(WHOLE_OBJ.replace(*change), "obj")
    assert len(cloud.faces) == 7 and (cloud.normals is None) == (last is None)
    if last is not None:
        np.testing.assert_allclose(cloud.normals[-1], last, atol=1e-6)


RED_AND_GREEN = "newmtl red\nKd 1 0 0\nnewmtl light green\n\tkd 0,5 1 0 1\n"


@pytest.mark.parametrize(
    ("names", "files"),
    [
        ("a.mtl b.mtl", {"a.mtl": "newmtl red\nKd 1 0 0\n", "b.mtl": "newmtl light green\nKd 0.5 1 0\n"}),
        ("a b.mtl  c d.mtl", {"a b.mtl": "newmtl red\nKd 1 0 0\n", "c d.mtl": "newmtl light green\nKd .5 1 0\n"}),
        ('"my colors.mtl"', {"my colors.mtl": RED_AND_GREEN}),
        ("my colors.mtl ", {"my colors.mtl": RED_AND_GREEN}),
        ('"x.mtl" "y z.mtl"', {"x.mtl": "newmtl red\nKd 1 0 0\n", "y z.mtl": "newmtl light green\nKd 0.5 1 0\n"}),
        ("a,b;c.mtl", {"a,b;c.mtl": RED_AND_GREEN.replace("\n", "\r\n")}),
        ("sub\\a.mtl", {"sub/a.mtl": RED_AND_GREEN}),
        ("C:\\Users\\me\\a.mtl", {"a.mtl": RED_AND_GREEN}),
        ("/models/me/a.mtl", {"a.mtl": RED_AND_GREEN}),
        ("\\\n  a.mtl", {"a.mtl": RED_AND_GREEN}),
        ("colors", {"colors": RED_AND_GREEN}),
        ("a.mtl # b", {"a.mtl": RED_AND_GREEN}),
    ],
)
def test_material_files_are_found_by_every_spelling_of_their_names(tmp_path, names, files):
    (tmp_path / "sub").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    path = tmp_path / "a.obj"
    path.write_text(f"mtllib\t{names}\n{OBJ}usemtl  red\nf 1 2 3\nusemtl light green\nf 1 3 4\n")
    assert read_point_cloud(path).face_colors.tolist() == [[1, 0, 0], [0.5, 1, 0]]
    assert set(files_read(path)) == {path, *(tmp_path / name for name in files)}


@pytest.mark.parametrize(
    ("materials", "why"),
    [
        ("newmtl red\nKd 1 1 1\nmap_Kd a.png\nnewmtl green\nmap_kd -s 1 1 1 b.png\nKd 1 1 1\n", None),
        ("newmtl red\nKd 1 0 0\nmap_Kd\nnewmtl green\nKd 1 1 1\nmap_Kd b.png\n", "1 of 2 materials have a texture"),
        (None, "the material file 'some.mtl' is not in the folder; colors of faces may be missing"),
    ],
)
def test_faces_with_textures_or_unknown_materials_have_no_colors(tmp_path, materials, why):
    if materials is not None:
        (tmp_path / "some.mtl").write_text(materials)
    path = tmp_path / "a.obj"
    path.write_text(f"mtllib some.mtl\n{OBJ}usemtl red\nf 1 2 3\nusemtl green\nf 1 3 4\n")
    with pytest.warns(UserWarning, match=why) if why else nullcontext():
        assert read_point_cloud(path).face_colors is None


def test_missing_material_files_are_one_warning(tmp_path):
    path = tmp_path / "a.obj"
    path.write_text("".join(f"mtllib {name}.mtl\n" for name in "abc") + f"{OBJ}usemtl red\nf 1 2 3\n")
    with pytest.warns(UserWarning) as caught:
        read_point_cloud(path)
    (message,) = (str(warning.message) for warning in caught)
    assert "the material file 'a.mtl' (and 2 more) is not in the folder" in message


@pytest.mark.parametrize("color, count", [("1 0 0.5", 2), ("1 0 0.5 1", 2), ("1", 0)])
def test_colors_of_some_vertices_of_an_obj_are_left_out_with_a_warning(color, count):
    text = f"v 0 0 0\nv 1 0 0 {color}\n# a\nv 0 1 0 # b\nv 0 0 1 {color}\nf 1 2 3\n"
    with (
        pytest.warns(UserWarning, match="2 of 4 vertices have colors, so colors are ignored")
        if count
        else nullcontext()
    ):
        cloud = read(text, "obj")
    assert cloud.points.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]] and cloud.colors is None


def test_a_weight_after_coordinates_or_colors_of_an_obj_is_ignored():
    cloud = read("v 1 2 3 9\nv 4 5 6 9\n", "obj")
    assert cloud.points.tolist() == [[1, 2, 3], [4, 5, 6]] and cloud.colors is None
    cloud = read("v 1 2 3 0.5 0.25 1 9\nv 4 5 6 0 0.5 0.125 9\n", "obj")
    assert cloud.points.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert cloud.colors.tolist() == [[0.5, 0.25, 1], [0, 0.5, 0.125]]


@pytest.mark.parametrize("name", ["vertex cube", "a vertex 1 2 3", "endfacet", "", "facet", "outer loop vertex"])
def test_the_name_of_a_solid_may_have_any_words(name):
    facet = "facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
    for end in ("\n", "\r\n", "\r"):
        text = f"\ufeffsolid {name}\n{facet}endsolid {name}\nsolid {name}\n{facet}endsolid {name}".replace("\n", end)
        assert len(read(text, "stl").faces) == 2
    with pytest.raises(PointCloudFileError):
        read(f"solid {name}\n{facet.replace('1 0 0', '1 x 0')}endsolid {name}", "stl")


def test_comments_before_the_keyword_of_off_are_skipped():
    points = "0 0 0 255 0 0 255\n1 0 0 0 255 0 255\n0 1 0 0 0 255 255\n"
    text = f"# made by hand\n\n  # OFF\nCOFF # colors\n3 1 0\n{points}3 0 1 2\n"
    cloud = read(text, "off")
    assert cloud.faces.tolist() == [[0, 1, 2]] and cloud.colors.tolist() == np.eye(3).tolist()
    assert file_type_of(text.encode()) == "off"
    with raises(PointCloudFileError, naming="line 8"):
        read(text.replace("0 1 0 0 0", "0 1 x 0 0"), "off")


@pytest.mark.parametrize("after", ["vertex count: 3 of 1 facet", "# made by hand\n# endfacet", "\n\n"])
def test_lines_after_a_solid_are_no_part_of_it(after):
    facet = "facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
    solid = f"solid a\n{facet}endsolid a\n{after}\n"
    assert len(read(solid, "stl").faces) == 1 and len(read(solid * 2, "stl").faces) == 2
    with raises(PointCloudFileError, naming="endsolid"):
        read(f"{solid}solid b\n{facet}", "stl")
