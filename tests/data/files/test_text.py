import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud

XYZ = [[1, 2, 3], [4, 5, 6.5]]


def read(text, kind="txt"):
    return read_point_cloud(text if isinstance(text, bytes) else text.encode(), file_type=kind)


@pytest.mark.parametrize(
    "text",
    [
        "1 2 3\n4 5 6.5",
        "1,2,3\n4,5,6.5\n",
        "1\t2\t3\r\n4\t5\t6.5\r\n",
        "1;2;3\n\n4; 5; 6.5\n\n",
        "# made by hand\n1 2 3 # first\n4 5 6.5\n",
        "// made by hand\n1 2 3\n4 5 6.5 // second\n",
        "x,y,z\n1,2,3\n4,5,6.5",
        "//X Y Z\n1 2 3\n4 5 6.5",
        "2\n1 2 3\n4 5 6.5",
        "\ufeff1 2 3\n4 5 6.5",
        "  1e0 +2 .3e1\n4. 5 65E-1\n",
    ],
)
def test_delimiters_comments_headers_and_counts_are_read(text):
    assert read(text).points.tolist() == XYZ


@pytest.mark.parametrize(
    "text",
    [
        "1,0;2;3\n4;5;6,5\n",
        "x;y;z\r\n1,0;2,0;3,0\r\n4,0;5,0;6,5\r\n",
        "#X Y Z\n1,0\t2,0\t3,0\n4,0\t5,0\t6,5 // a, b.\n",
        "2\n1,0 2,0 3,0\n4,0 5,0 6,5\n",
        "1; 2; 3\n4; 5; 0,65e1;\n",
    ],
)
def test_decimal_commas_are_read_where_they_do_not_separate(text):
    assert read(text, "csv").points.tolist() == XYZ


def test_decimal_commas_and_points_in_one_file_are_refused():
    with pytest.raises(PointCloudFileError, match="decimal commas, such as '1.234,5', and numbers with points"):
        read("1.234,5;2,5;3,5\n1,5;2,5;3,5\n", "csv")
    assert read("0.1,0.2,0.3;255,0,9\n").points.shape == (1, 3)  # a list within a list
    assert read("1, 2, 3\n4, 5, 6.5\n").points.tolist() == XYZ


def rows(*columns):
    return "\n".join(" ".join(map(str, row)) for row in np.column_stack(columns))


@pytest.mark.parametrize(
    "extra, kind, expected",
    [
        ([[3], [0]], "txt", {"labels"}),
        ([[0, 0, 1], [0.6, 0.8, 0]], "txt", {"normals"}),
        ([[255, 0, 10], [0, 0, 0]], "xyz", {"colors"}),
        ([[0.5, 0.1, 0], [0.2, 0, 1]], "txt", {"colors"}),
        ([[0, 0, 1, 7], [0, 1, 0, 2]], "txt", {"normals", "labels"}),
        ([[9, 9, 9, 7], [8, 8, 8, 2]], "txt", {"colors", "labels"}),
        ([[9, 9, 9, 7], [8, 8, 8, 2]], "pts", {"colors"}),
        ([[-1800, 9, 9, 7], [-5, 8, 8, 2]], "txt", {"colors"}),
        ([[9, 9, 9, 0, 0, 1], [8, 8, 8, 1, 0, 0]], "txt", {"colors", "normals"}),
        ([[0, 0, 1, 9, 9, 9], [1, 0, 0, 8, 8, 8]], "txt", {"colors", "normals"}),
    ],
)
def test_columns_without_names_are_interpreted_by_their_values(extra, kind, expected):
    cloud = read(rows(XYZ, extra), kind)
    present = {name for name in ("colors", "normals", "labels") if getattr(cloud, name) is not None}
    assert present == expected and cloud.points.tolist() == XYZ


@pytest.mark.parametrize("normals_first", [False, True])
def test_of_nine_columns_colors_and_normals_are_told_apart_in_both_orders(normals_first):
    colors, normals = [[0, 51, 255], [255, 0, 51]], [[0.0, 0.6, 0.8], [1.0, 0.0, 0.0]]
    cloud = read(rows(XYZ, *((normals, colors) if normals_first else (colors, normals))))
    np.testing.assert_allclose(cloud.normals, normals)
    np.testing.assert_allclose(cloud.colors, np.divide(colors, 255), atol=1e-6)


def test_intensity_before_colors_is_ignored_in_pts_files():
    colors = read("1\n1 2 3 100 255 0 51\n", "pts").colors
    np.testing.assert_allclose(colors, [[1, 0, 0.2]], atol=1e-6)


@pytest.mark.parametrize("extra", [[[0.5], [1]], [[-7, 3, 9], [1, 700, 2]], [[0.5, -3, 9, 1.5], [7, 7, 7, 2]]])
def test_columns_that_match_no_rule_are_left_out_with_a_warning(extra):
    with pytest.warns(UserWarning, match="left out"):
        cloud = read(rows(XYZ, extra))
    assert cloud.colors is None and cloud.normals is None and cloud.labels is None


def test_a_header_names_the_columns():
    cloud = read("label,r,g,b,z,y,x,time\n4,255,0,51,3,2,1,99.5\n")
    assert cloud.points.tolist() == [[1, 2, 3]] and cloud.labels.tolist() == [4]
    np.testing.assert_allclose(cloud.colors, [[1, 0, 0.2]], atol=1e-6)


@pytest.mark.parametrize(
    "text, why",
    [
        ("1 2 3\n4 5\n", "line 2 has 2 columns; expected 3"),
        ("# c\n1 2 3\n\n4 5 6 7\n", "line 4 has 4 columns; expected 3"),
        ("x y z\n1 2 3\n4 5 six\n", "line 3: 'six' is not a number"),
        ("1 2 3 4 5\n", "5 columns; expected 3, 4, 6, 7 or 9"),
        ("1 2\n3 4\n", "2 columns; expected at least x, y and z"),
        ("3\n1 2 3\n4 5 6\n", "2 points where the first line declares 3"),
        ("x y z r\n1 2 3\n", "3 columns, but line 1 names 4"),
        ("hello world\n", "starts with b'hello world'; expected numbers"),
        ("# only\n# comments\n", "there are no points"),
        ("1 2 nan\n1 2 3\n", "NaN, infinite or too large values in 1 of 2 rows, first in row 0"),
        ("1 2 inf\n", "NaN, infinite"),
        ("1 2 1e300\n", "too large"),
        (b"1 2 3\0\0\0", "binary data; expected text"),
    ],
)
def test_a_wrong_text_is_explained(text, why):
    with pytest.raises(PointCloudFileError, match=why):
        read(text)
