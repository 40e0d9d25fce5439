"""OFF with the prefixes of Geomview in any order, as text and binary, and what cannot be read."""

import itertools
import warnings

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, file_type_of, read_point_cloud

POINTS = np.array([[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 3]], float)
NORMALS = np.eye(3)[[0, 1, 2, 0]]
COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 0]])
FACES = [[0, 1, 2], [0, 2, 3]]
PREFIXES = [
    "".join(order)
    for count in range(5)
    for some in itertools.combinations(("ST", "C", "N", "4"), count)
    for order in itertools.permutations(some)
]


def columns_of(prefixes, colors_first=False):
    """Numbers of the points in the order that Geomview documents, or with colors first, as MeshLab has them."""
    first = [POINTS * 2, np.full((4, 1), 2.0)] if "4" in prefixes else [POINTS]
    normals = [NORMALS] if "N" in prefixes else []
    colors = [np.c_[COLORS, np.full(4, 255)]] if "C" in prefixes else []
    texture = [np.full((4, 2), 0.25)] if "ST" in prefixes else []
    middle = colors + normals if colors_first else normals + colors
    return np.concatenate([*first, *middle, *texture], axis=1)


def text_of(keyword, table, head="\n4 2 5\n", lines=True):
    end = "\n" if lines else " "
    rows = end.join(" ".join(f"{value:g}" for value in row) for row in table)
    return f"{keyword}{head}{rows}{end}{end.join('3 ' + ' '.join(map(str, face)) for face in FACES)}{end}".encode()


def binary_of(keyword, prefixes, faces_with_colors=False):
    table = columns_of(prefixes)
    if "C" in prefixes:
        start = 3 + ("4" in prefixes) + 3 * ("N" in prefixes)
        table[:, start : start + 4] /= 255
    data = f"{keyword} BINARY\n".encode() + np.array([4, 2, 5], ">i4").tobytes() + table.astype(">f4").tobytes()
    for face in FACES:
        data += np.array([3, *face, 3 if faces_with_colors else 0], ">i4").tobytes()
        if faces_with_colors:
            data += np.array([0.5, 0.25, 1], ">f4").tobytes()
    return data


def check(data, prefixes):
    assert file_type_of(data) == "off"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mesh = read_point_cloud(data, file_type="off")
    np.testing.assert_allclose(mesh.points, POINTS)
    assert mesh.faces.tolist() == FACES
    for letter, seen, wanted in (("C", mesh.colors, COLORS / 255), ("N", mesh.normals, NORMALS)):
        if letter in prefixes:
            np.testing.assert_allclose(seen, wanted, atol=0.003)
        else:
            assert seen is None
    return mesh


@pytest.mark.parametrize("prefixes", PREFIXES)
def test_prefixes_in_any_order_are_read_as_text_and_binary(prefixes):
    keyword = prefixes + "OFF"
    heads = ("\n4 2 5\n", " 4 2 5\n", "\n4 2\n", "\n4\n2\n5\n", "\n# made\n\n4 2 5 # counts\n")
    for colors_first in (False, True):
        table = columns_of(prefixes, colors_first)
        for head in heads:
            check(text_of(keyword, table, head), prefixes)
        check(text_of("# a comment\n\n" + keyword, table), prefixes)
        check(text_of(keyword.lower(), table), prefixes)
        check(text_of(keyword, table, lines=False), prefixes)
    check(binary_of(keyword, prefixes), prefixes)
    colored = check(binary_of(keyword, prefixes, faces_with_colors=True), prefixes)
    np.testing.assert_allclose(colored.face_colors, [[0.5, 0.25, 1]] * 2)


@pytest.mark.parametrize("prefixes", ["", "C", "N", "CN", "ST"])
def test_a_dimension_of_three_is_read_and_others_are_refused(prefixes):
    keyword = f"{prefixes}nOFF"
    check(text_of(keyword, columns_of(prefixes), "\n3\n4 2 5\n"), prefixes)
    check(text_of(keyword, columns_of(prefixes), " 3\n4 2 5\n"), prefixes)
    for dimension in (2, 4, 5):
        with pytest.raises(PointCloudFileError, match=f"{keyword} of dimension {dimension}; expected points in space"):
            read_point_cloud(text_of(keyword, columns_of(prefixes), f"\n{dimension}\n4 2 5\n"), file_type="off")
    with pytest.raises(PointCloudFileError, match="4nOFF of dimension 3; expected"):
        read_point_cloud(text_of("4nOFF", columns_of("4"), "\n3\n4 2 5\n"), file_type="off")


@pytest.mark.parametrize("prefixes", ["", "C", "NC", "4", "ST"])
def test_cut_and_negative_files_are_refused_in_words(prefixes):
    whole = binary_of(prefixes + "OFF", prefixes)
    for size in range(len(prefixes) + 11, len(whole)):
        with pytest.raises(PointCloudFileError):
            read_point_cloud(whole[:size], file_type="off")
    for counts in ("-4 2 5", "4 -2 5", "4.5 2 5", "4"):
        data = text_of(prefixes + "OFF", columns_of(prefixes), f"\n{counts}\n")
        with pytest.raises(PointCloudFileError, match="number"):
            read_point_cloud(data, file_type="off")


def test_normals_that_no_values_tell_from_colors_are_told():
    table = np.concatenate([POINTS, np.full((4, 3), 0.5), np.full((4, 3), 0.25)], axis=1)
    with pytest.warns(UserWarning, match="normals are read as the first of CNOFF"):
        mesh = read_point_cloud(text_of("CNOFF", table), file_type="off")
    assert mesh.normals[0].tolist() == [0.5] * 3
    with pytest.warns(UserWarning, match="colors are read as the first of NCOFF"):
        mesh = read_point_cloud(text_of("NCOFF", table), file_type="off")
    assert mesh.normals[0].tolist() == [0.25] * 3
