"""Errors of text formats name the line that an editor shows, whatever comments and empty lines are above it."""

import re

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud

from .builders import pcd, ply

ROWS = ["0 0 0", "1 0 0.5", "1 1 2.25", "0 1 3", "2 2 1.5"]
WRONG = ["1 2 three", "1 2", "1 2 3 4 5"]
ENDS = ["\n", "\r\n", "\r"]


def xyz(rows):
    return "xyz", "\n".join(rows)


def with_names(rows):
    return "txt", "\n".join(["# made by a scanner", "", "x y z", *rows])


def with_count(rows):
    return "pts", "\n".join([str(len(ROWS)), *rows])


def with_blocks(rows):
    return "pts", "\n".join(["1", "5 5 5", str(len(ROWS)), *rows])


def with_percent(rows):
    return "txt", "\n".join(["% made by a.las", "%", "% x y z", *(row.replace("#", "%") for row in rows)])


def with_rare_mark(rows):
    return "txt", "\n".join(["", "; made by a.las", "; x y z", *rows])


def with_units(rows):
    return "csv", "\n".join(["x;y;z", "mm;mm;mm", *(row if row[:1] == "#" else row.replace(" ", ";") for row in rows)])


def stl_text(rows):
    facet = "facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex {}\nendloop\nendfacet"
    facets = [facet.format(row) if row and not row.startswith("#") else "" for row in rows]
    return "stl", "\n".join(["solid made", *facets, "endsolid", ""])


def ptx(rows):
    head = ["1", str(len(rows)), "0 0 0", "1 0 0", "0 1 0", "0 0 1", "1 0 0 0", "0 1 0 0", "0 0 1 0", "0 0 0 1"]
    return "ptx", "\n".join([*head, *(f"{row} 0.5" if row else "" for row in rows)])


def csv(rows):
    return "csv", "\n".join(["X,Y,Z", *(row if row.startswith("#") else row.replace(" ", ",") for row in rows)])


def csv_of_words(rows):
    rows = [f"{row},car".replace(" ", ",") if row and not row.startswith("#") else row for row in rows]
    return "csv", "\n".join(["X,Y,Z,class", *rows])


def pcd_text(rows):
    data = pcd("x y z", "4 4 4", "F F F", "\n".join(rows).encode(), len(ROWS), "ascii")
    return "pcd", "# made by a scanner\n\n" + data.decode()


def off(rows):
    return "off", "\n".join(["# made", "OFF", "", f"{len(ROWS)} 1 0", *rows, "3 0 1 2", ""])


def off_of_faces(rows):
    faces = [row if not row or row.startswith("#") else "3 0 1 2" for row in rows]
    wrong = next(place for place, row in enumerate(rows) if row in WRONG)
    faces[wrong] = "3 0 1 two"
    count = sum(bool(row) and not row.startswith("#") for row in rows)
    return "off", "\n".join(["OFF", f"3 {count} 0", "0 0 0", "", "1 0 0", "1 1 0", *faces, ""])


def obj(rows):
    return "obj", "\n".join(["# made", *(f"v {row}" if row and not row.startswith("#") else row for row in rows)])


def ply_text(rows):
    rows = [row for row in rows if not row.startswith("#")]
    header = f"element vertex {len(ROWS)}\nproperty float x\nproperty float y\nproperty float z\n"
    return "ply", ply(header, "\n".join(rows).encode(), "ascii").decode()


FORMATS = (
    *(xyz, with_names, with_count, with_blocks, with_percent, with_rare_mark, with_units, csv, csv_of_words),
    *(pcd_text, off, off_of_faces, obj, ply_text, stl_text, ptx),
)
# Of these one wrong row is tried, as others are read in another way or are no error.
OF_WORDS = (off_of_faces, obj, ply_text, stl_text)
BETWEEN = ([], [""], ["# a comment, with a comma"], ["", "# one", "", "# two 1 2"], ["# 1 2 three"], ["", ""])


@pytest.mark.parametrize("end", ENDS, ids=["unix", "windows", "old"])
@pytest.mark.parametrize("build", FORMATS)
def test_the_line_of_an_error_is_that_of_an_editor(build, end):
    if build is pcd_text and end == "\r":
        return  # no PCD, which has bytes after its header
    found = 0
    for between in BETWEEN:
        for wrong in WRONG[: 1 if build in OF_WORDS else None]:
            for place in (1, 3):
                rows = [*ROWS[:1], *between, *ROWS[1:place], *between, wrong, *between, *ROWS[place + 1 :]]
                kind, text = build(rows)
                with pytest.raises(PointCloudFileError) as refusal:
                    read_point_cloud(text.replace("\n", end).encode(), file_type=kind)
                line = re.search(r"line (\d+)", str(refusal.value))
                if line is None:
                    continue  # of the whole, such as a number of points
                shown = text.split("\n")[int(line[1]) - 1]
                if build in (csv, csv_of_words, with_units):
                    wrong = wrong.replace(" ", ";" if build is with_units else ",")
                assert ("two" if build is off_of_faces else wrong) in shown, str(refusal.value)
                assert not shown.startswith(("#", "%"))
                found += 1
    assert found >= 12


@pytest.mark.parametrize("kind", ["xyz", "txt", "pts", "asc", "csv"])
@pytest.mark.parametrize("count", ["-5", "-1", " -3 ", "-0005"])
def test_negative_numbers_of_points_are_refused_in_words(count, kind):
    for before in ("", "# made\n", "# x y z\n", "\n\n"):
        text = f"{before}{count}\n" + "0 0 0\n1 1 1\n2 0 1\n"
        line = 1 + before.count("\n")
        with pytest.raises(PointCloudFileError, match=f"line {line} .*{count.strip()}.*expected a whole"):
            read_point_cloud(text.encode(), file_type=kind)


@pytest.mark.parametrize("key", ["WIDTH", "HEIGHT", "POINTS"])
@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
@pytest.mark.parametrize("value", ["-5", "5.5", "five"])
def test_wrong_numbers_in_headers_of_pcd_are_refused_by_their_names(value, kind, key):
    data = pcd("x y z", "4 4 4", "F F F", np.zeros((5, 3), "<f4").tobytes(), 5, kind)
    if key == "POINTS":
        data = re.sub(rb"(?m)^DATA", b"POINTS 5\nDATA", data)
    data = re.sub(rb"(?m)^%b .*$" % key.encode(), f"{key} {value}".encode(), data)
    with pytest.raises(PointCloudFileError, match=f"{key} is '{value}'; expected a whole number"):
        read_point_cloud(data, file_type="pcd")


@pytest.mark.parametrize("footer", ["Total: 5 points", "END", "-- 5 rows --", "; end", "<EOF>"])
def test_words_below_the_rows_are_named_by_their_own_line(footer):
    for kind, text in (xyz(ROWS), with_names(ROWS), with_count(ROWS), with_percent(ROWS), csv(ROWS)):
        text = f"{text}\n\n{footer}\n"
        with pytest.raises(PointCloudFileError, match=rf"line {len(text.splitlines())}\b"):
            read_point_cloud(text.encode(), file_type=kind)
        comment = text.replace(footer, "# end").encode()
        assert len(read_point_cloud(comment, file_type=kind)) == len(ROWS)


@pytest.mark.parametrize(
    ("head", "line", "told"),
    [
        ("Station 1\nx y z\n", 1, "expected numbers, or names of columns"),
        ("\n\nx y z\nfloat float float\n", 4, "expected numbers or units below the names of line 3"),
        ("x;y;z\nm;m;seconds\n", 2, "expected numbers or units below the names of line 1"),
        ("# made\nx y z\n\nfirst second third\n", 4, "expected numbers or units below the names of line 2"),
    ],
)
def test_words_above_the_rows_are_named_by_their_own_line(head, line, told):
    with pytest.raises(PointCloudFileError, match=rf": line {line} is .*; {told}"):
        read_point_cloud((head + "\n".join(ROWS)).encode(), file_type="txt")
