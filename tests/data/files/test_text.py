import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud
from tests.errors import raises

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
    with raises(PointCloudFileError, naming="'1.234,5'"):
        read("1.234,5;2,5;3,5\n1,5;2,5;3,5\n", "csv")
    assert read("0.1,0.2,0.3;255,0,9\n").points.shape == (1, 3)  # a list within a list
    assert read("1, 2, 3\n4, 5, 6.5\n").points.tolist() == XYZ


def rows(*columns):
    return "\n".join(" ".join(map(str, row)) for row in np.column_stack(columns))


@pytest.mark.parametrize("normals_first", [False, True])
def test_of_nine_columns_colors_and_normals_are_told_apart_in_both_orders(normals_first):
    colors, normals = [[0, 51, 255], [255, 0, 51]], [[0.0, 0.6, 0.8], [1.0, 0.0, 0.0]]
    cloud = read(rows(XYZ, *((normals, colors) if normals_first else (colors, normals))))
    np.testing.assert_allclose(cloud.normals, normals)
    np.testing.assert_allclose(cloud.colors, np.divide(colors, 255), atol=1e-6)


@pytest.mark.parametrize("extra", [[[0.5], [1]], [[-7, 3, 9], [1, 700, 2]], [[0.5, -3, 9, 1.5], [7, 7, 7, 2]]])
def test_columns_that_match_no_rule_are_left_out_with_a_warning(extra):
    with pytest.warns(UserWarning, match="ignored"):
        cloud = read(rows(XYZ, extra))
    assert cloud.colors is None and cloud.normals is None and cloud.labels is None


def test_a_line_before_the_rows_names_the_columns():
    with pytest.warns(UserWarning, match="ignored: time "):
        cloud = read("label,r,g,b,z,y,x,time\n4,255,0,51,3,2,1,99.5\n")
    assert cloud.points.tolist() == [[1, 2, 3]] and cloud.labels.tolist() == [4]
    np.testing.assert_allclose(cloud.colors, [[1, 0, 0.2]], atol=1e-6)


@pytest.mark.parametrize(
    "names",
    [
        "# scan 17, station 3\n# x y z intensity\n",  # numpy.savetxt
        "# x y z intensity\n# written by hand\n\n",
        "// scan: 3\n// Fields: X, Y, Z, Intensity\n",
        "//X Y Z scalar_Intensity\n2\n",  # CloudCompare
        "2\n//X Y Z Intensity\n",
        '"X","Y","Z","Intensity"\n',  # PDAL
        "X [m],Y [m],Z [m],Intensity [%]\n",
        "X[m] Y[m] Z (m) Intensity (0-255)\n",
        "x_m\ty_m\tz_m\tintensity\n",
        '"Points:0","Points:1","Points:2","intensity"\n',  # ParaView
        "x y z i\n",
        "#X;Y;Z;Reflectivity\n",
        "x,y,z,intensity,\n",
    ],
)
def test_names_may_be_in_any_line_and_have_units_and_quotes(names, recwarn):
    cloud = read(names + "1 2 3 7\n4 5 6.5 250\n", "csv")
    assert cloud.points.tolist() == XYZ and cloud.intensity.tolist() == [7, 250]
    assert cloud.labels is None and not recwarn.list


@pytest.mark.parametrize(
    "text",
    [
        ",x,y,z\n0,1,2,3\n1,4,5,6.5\n",  # pandas
        "\tx\ty\tz\n0\t1\t2\t3\n1\t4\t5\t6.5\n",
        "Unnamed: 0,x,y,z\n0,1,2,3\n1,4,5,6.5\n",
        '"x" "y" "z"\n"1" 1 2 3\n"2" 4 5 6.5\n',  # R
        '"x","y","z"\n"1","2","3"\n"4","5","6.5"\n',
    ],
)
def test_numbers_of_rows_are_no_coordinates(text, recwarn):
    cloud = read(text, "csv")
    assert cloud.points.tolist() == XYZ and not recwarn.list


def test_columns_of_pdal_are_read_and_others_named():
    names = '"X","Y","Z","Intensity","Return Number","Classification","Red","Green","Blue","GpsTime"\n'
    with pytest.warns(UserWarning, match="ignored: GpsTime "):
        cloud = read(names + "1,2,3,900,1,2,65535,0,13107,1.5\n4,5,6.5,12,1,6,0,255,51,2.5\n")
    np.testing.assert_allclose(cloud.colors, [[1, 0, 0.2], [0, 255 / 65535, 51 / 65535]], atol=1e-6)
    assert cloud.intensity.tolist() == [900, 12] and cloud.labels.tolist() == [2, 6]
    assert cloud.return_number.tolist() == [1, 1]


def test_colors_of_cloudcompare_may_be_fractions_with_opacities(recwarn):
    cloud = read("//X,Y,Z,Rf,Gf,Bf,A\n1,2,3,0.5,0.25,1,255\n4,5,6.5,0,0,0.125,255\n")
    assert cloud.colors.tolist() == [[0.5, 0.25, 1], [0, 0, 0.125]] and not recwarn.list


def test_many_values_of_a_column_without_a_name_are_not_taken_for_labels():
    generator = np.random.default_rng(0)
    points, intensity = generator.normal(size=(300, 3)), generator.integers(0, 256, 300)
    colors = generator.integers(0, 256, (300, 3))
    with pytest.warns(
        UserWarning, match="column 4 has no name, may be labels, intensities or other values, and is ignored"
    ):
        assert read(rows(points, intensity)).labels is None
    with pytest.warns(UserWarning, match="columns 4 to 7 may be intensity and colors, or colors and another"):
        cloud = read(rows(points, intensity, colors))
    assert cloud.labels is None and cloud.colors is None
    cloud = read(rows(points, intensity - 2048, colors))
    assert cloud.intensity.tolist() == (intensity - 2048).tolist()
    np.testing.assert_allclose(cloud.colors, colors / 255, atol=1e-6)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\n\n"])
def test_pts_files_have_intensities_and_several_blocks(ends):
    text = "2\n1 2 3 -1800 255 0 51\n4 5 6.5 7 0 0 0\n1\n7 8 9 2047 0 0 255\n"
    cloud = read(text.replace("\n", ends), "pts")
    assert cloud.points.tolist() == [*XYZ, [7, 8, 9]] and cloud.intensity.tolist() == [-1800, 7, 2047]
    np.testing.assert_allclose(cloud.colors, [[1, 0, 0.2], [0, 0, 0], [0, 0, 1]], atol=1e-6)
    assert read("1\n1 2 3 100\n", "pts").intensity.tolist() == [100]
    with pytest.raises(PointCloudFileError, match="3 points, but the file declares 4; the file may be cut off"):
        read(text.replace("\n1\n", "\n2\n"), "pts")


@pytest.mark.parametrize(
    "text, why",
    [
        ("1 2 3\n4 5\n", "line 2 has 2 columns; expected 3"),
        ("# c\n1 2 3\n\n4 5 6 7\n", "line 4 has 4 columns; expected 3"),
        ("x y z\n1 2 3\n4 5 six\n", "line 3: 'six' is not a number"),
        ("1 2 3 4 5\n", "5 columns without names; expected 3, 4, 6, 7 or 9"),
        ("3\n1 2 3\n4 5 6\n", "2 points, but the file declares 3"),
        ("x y z r\n1 2 3\n", "3 columns, but line 1 names 4"),
        ("# x y z label\n1 2 3 4 5 6\n", "6 columns, but line 1 names 4"),
        ("a\tb\nx y z\n1 2 3\n", r"line 1 is 'a\\tb'; expected numbers"),
        ("x y z x\n1 2 3 4\n", "line 1: two columns are called 'x'; rename one"),
        ("# a\n2\n# x y z\n1 2 3\n\n4 five 6\n", "line 6: 'five' is not a number"),
        ("hello world\n", "line 1 is 'hello world'; expected numbers"),
        ("1 2 nan\n1 2 3\n", "NaN, infinite or too large values in 1 of 2 rows, first in row 0"),
        ("1 2 inf\n", "NaN, infinite"),
        ("1 2 1e300\n", "too large"),
        (b"1 2 3\0\0\0", "binary data, not text"),
    ],
)
def test_a_wrong_text_is_explained(text, why):
    with pytest.raises(PointCloudFileError, match=why):
        read(text)


@pytest.mark.parametrize("invalid", ["-1.#IND", "1.#QNAN", "1.#INF00", "-1.#J", "1.#SNAN", "-nan(ind)"])
def test_nan_of_windows_is_no_number_in_any_text(invalid):
    rows = f"1 2 {invalid}\n4 5 6\n7 8 9\n"
    header = "element vertex 3\nproperty float x\nproperty float y\nproperty float z"
    pcd = "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 3\nHEIGHT 1\nDATA ascii\n"
    obj = "".join(f"v {row}\n" for row in rows.splitlines())
    for kind, text in {
        "xyz": rows,
        "csv": "x;y;z\n" + rows.replace(" ", ";"),
        "ply": f"ply\nformat ascii 1.0\n{header}\nend_header\n{rows}",
        "pcd": pcd + rows,
        "obj": obj,
        "off": f"OFF\n3 0 0\n{rows}",
    }.items():
        with pytest.raises(PointCloudFileError):
            read_point_cloud(text.encode(), file_type=kind)
        cloud = read_point_cloud(text.encode(), file_type=kind, on_invalid="drop")
        assert cloud.points.tolist() == [[4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize(
    ("rows", "points"),
    [
        ("1 0.5 2.5 3\n2 1.5 2.5 3\n3 2.5 3.5 4\n", [0.5, 2.5, 3]),
        ("1 0.5 2.5 3 255 0 0\n2 1.5 2.5 3 0 255 0\n3 2.5 3.5 4 0 0 255\n", [0.5, 2.5, 3]),
        ("101 0.5 2.5 3.25\n102 1.5 2.5 3.25\n107 2.5 3.5 4.25\n", [0.5, 2.5, 3.25]),
        ("".join(f"{at} {100 - at} 7 {at % 5}\n" for at in range(30)), [100, 7, 0]),
        ("0 0 0 1\n1 0 0 1\n2 0 1 2\n", [0, 0, 0]),  # three voxels and their labels
    ],
)
def test_a_first_column_that_counts_is_no_coordinate(rows, points):
    with pytest.warns(UserWarning):
        cloud = read(rows)
    assert cloud.points[0].tolist() == points


@pytest.mark.parametrize(
    "rows",
    [
        '"412,345.67","5,432,109.10","100.25"\n"412,346.67","5,432,109.10","1,100.25"\n',
        '"412.345,67","5.432.109,10","100,25"\n"412.346,67","5.432.109,10","1.100,25"\n',
    ],
)
def test_thousands_in_quotes_are_one_number(rows):
    cloud = read(rows)
    np.testing.assert_allclose(
        cloud.points + cloud.offset, [[412345.67, 5432109.1, 100.25], [412346.67, 5432109.1, 1100.25]], atol=0.006
    )


@pytest.mark.parametrize(
    ("rows", "value"),
    [
        ('"1,500","2,250","0"\n"3,125","4,250","1"\n', "1,500"),
        ("412,345.67\t5,432,109.10\t100.25\n1.5\t2\t3\n", "412,345.67"),
        ("412 345,67;5 432 109,10;100,25\n412 345,67;5 432 109,10;100,25\n", "412 345,67"),
        ('"412 345.67","5 432 109.10","100.25"\n', "412 345.67"),
    ],
)
def test_thousands_that_could_be_something_else_are_refused(rows, value):
    with raises(PointCloudFileError, naming=value):
        read(rows)


@pytest.mark.parametrize(
    "names",
    [
        "Points_m_XYZ:0,Points_m_XYZ:1,Points_m_XYZ:2,laser_id",
        "E,N,Z,ring",
        "East (m),North (m),Height (m),ring",
    ],
)
def test_coordinates_of_other_names(names):
    for order in ([0, 1, 2, 3], [1, 0, 2, 3], [3, 2, 1, 0]):
        words = names.split(",")
        cloud = read(",".join(words[at] for at in order) + "\n" + ",".join("5678"[at] for at in order) + "\n")
        assert cloud.points.tolist() == [[5, 6, 7]] and cloud.ring.tolist() == [8]


@pytest.mark.parametrize("separator", [",", ";", "\t", " "])
def test_names_of_points_are_left_out_by_their_name(separator):
    rows = ["name x y z note", "P1 1 2 3 tree", "P2 4 5 6 kerb"]
    with pytest.warns(UserWarning, match="ignored: name, note "):
        cloud = read("\n".join(rows).replace(" ", separator))
    assert cloud.points.tolist() == [[1, 2, 3], [4, 5, 6]]
    with raises(PointCloudFileError, naming="line 3"):
        read("\n".join(rows).replace("5", "five").replace(" ", separator))


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ("x,y,z,i\n1,2,3,4\n5,6,,8\n9,9,9,9\n", "line 3"),
        ("x;y;z;i\n;2;3;4\n5;6;7;8\n9;9;9;9\n", "line 2"),
        ("1,2,,4\n5,,7,8\n9,9,9,9\n", "line 1"),
        ("1,2,3\n4,5\n7,8,9\n", "line 2"),
        ("1,2\n4,5,6\n7,8,9\n", "line 1"),
    ],
)
def test_the_line_with_an_empty_cell_is_named(rows, line):
    with raises(PointCloudFileError, naming=line):
        read(rows)
    if ",," in rows or "\n;" in rows:
        cloud = read_point_cloud(rows.encode(), file_type="csv", on_invalid="drop")
        assert (cloud.points[-1] == 9).all()


GRID = np.array([(row, column) for row in range(8) for column in range(9) if (row + column) % 5])


@pytest.mark.parametrize("names", ["row col", "Row Column", "line pixel", "i j", "column_1 column_2"])
def test_rows_and_columns_of_a_scan_before_coordinates_are_known_by_their_names(names):
    values = np.random.default_rng(0).random((len(GRID), 4)).round(4) * 9 - 3
    for places in (GRID, GRID[:, ::-1]):
        rows = "\n".join(" ".join(f"{value:.10g}" for value in row) for row in np.hstack([places, values]))
        cloud = read(f"{names} x y z strength\n{rows}")
        np.testing.assert_allclose(cloud.points, values[:, :3], rtol=1e-6)
        np.testing.assert_allclose(cloud.intensity, values[:, 3], rtol=1e-6)
        assert cloud.ring is None
        # Without names they may as well be x and y.
        with pytest.raises(PointCloudFileError, match=r"columns 1 and 2 may be x and y, or the row and column"):
            read(rows)


def test_points_of_a_raster_are_no_grid_of_a_scan():
    generator = np.random.default_rng(0)
    heights = generator.random((len(GRID), 1)).round(4)
    colors = generator.integers(32, 256, (len(GRID), 3))
    rows = "\n".join(" ".join(f"{value:.10g}" for value in row) for row in np.hstack([GRID, heights, colors]))
    cloud = read(rows)
    np.testing.assert_allclose(cloud.points[:, 2], heights[:, 0], rtol=1e-6)
    assert cloud.colors is not None
