"""Where labels are: columns that are named, attributes of glTF, words, files beside; texts of other programs."""

import io
import warnings
from pathlib import Path

import laspy
import numpy as np
import pytest

from hf_any3d import load_point_dataset, read_point_cloud
from tests.errors import raises

XYZ = np.array([[0.25, 1, 2], [3, 4.5, 5], [6, 7, 8.75], [1, 2, 0.5]])
CLASSES = [2, 0, 1, 2]
# CloudCompare 2.11.3 (Debian): -O cloud.ply -C_EXPORT_FMT ASC -SAVE_CLOUDS, without and with -ADD_HEADER
# -ADD_PTS_COUNT -SEP SEMICOLON; "no value" is nan.
PLAIN = """81.139999389648 8.560000419617 17.940000534058 165 177 221 0.000000000000
23.670000076294 18.129999160767 80.110000610352 74 239 0 1.000000000000
86.910003662109 58.209999084473 3.930000066757 19 248 240 2.000000000000
"""
TITLED = """//X;Y;Z;R;G;B;Classification;refl
3
81.139999389648;8.560000419617;17.940000534058;165;177;221;0.000000000000;0.298200011253
23.670000076294;18.129999160767;80.110000610352;74;239;0;nan;0.741800010204
86.910003662109;58.209999084473;3.930000066757;19;248;240;2.000000000000;0.722199976444
"""
GRID = "ncols 3\nnrows 2\nxllcorner 0.0\nyllcorner 0.0\ncellsize 1\nNODATA_value -9999\n1 2 3\n4 5 6\n"


def rows(*columns) -> str:
    return "".join(" ".join(map(str, row)) + "\n" for row in zip(*XYZ.T, *columns, strict=True))


def read(source, file_type=None, **options):
    """Return the cloud, and what was told."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cloud = read_point_cloud(
            source.encode() if file_type and isinstance(source, str) else source, file_type=file_type, **options
        )
    return cloud, " ".join(str(one.message) for one in told)


def test_texts_of_cloudcompare_are_read_and_grids_of_the_same_ending_are_named():
    cloud, told = read(PLAIN, "asc")
    assert cloud.labels.tolist() == [0, 1, 2] and "column 7 has no name and is read as labels" in told
    assert (cloud.colors[0] * 255).round().tolist() == [165, 177, 221]
    cloud, told = read(TITLED, "asc")
    assert cloud.labels.tolist() == [0, -1, 2] and cloud.intensity[0] == np.float32(0.298200011253)
    with raises(ValueError, naming="ESRI ASCII grid"):
        read(GRID, "asc")


def test_counts_of_returns_are_no_colors():
    values = [[40, 120, 250, 9], [1, 1, 2, 1], [1, 2, 2, 1], CLASSES]
    cloud, told = read(rows(*values), "pts")
    assert cloud.colors is None and cloud.labels is None and cloud.intensity.tolist() == [40, 120, 250, 9]
    assert "columns 5 to 7" in told
    # Chosen by its number, the last one has the labels.
    assert read(rows(*values), "pts", label_field="7")[0].labels.tolist() == CLASSES


def test_classes_in_a_glb_of_py3dtiles_are_labels():
    # Of 24 points of LAS 1.4, format 6, with classes 0 to 4: py3dtiles 12.1.1, convert --spec-version 1.1
    # --extra-fields classification --extra-fields intensity
    cloud, _ = read(Path(__file__).with_name("py3dtiles_12.1.1.glb"))
    assert set(cloud.labels.tolist()) <= set(range(5)) and len(cloud) == len(cloud.labels) > 3
    assert len(set(cloud.labels.tolist())) > 1 and cloud.intensity.max() == 2100


def table_of(kind: str, path: Path) -> Path:
    """Write a file with labels called `mine` and others called `class`."""
    path = path / f"a.{kind}"
    mine = np.array(CLASSES)
    if kind == "csv":
        path.write_text("x,y,z,class,Mine\n" + rows([9] * 4, mine).replace(" ", ","))
    elif kind == "pcd":
        head = "FIELDS x y z class mine\nSIZE 4 4 4 4 4\nTYPE F F F I I\nCOUNT 1 1 1 1 1\nWIDTH 4\nHEIGHT 1\n"
        path.write_text(f"{head}POINTS 4\nDATA ascii\n{rows([9] * 4, mine)}")
    elif kind == "ply":
        names = "".join(
            f"property {kind} {name}\n"
            for kind, name in zip(["float"] * 3 + ["int"] * 2, [*"xyz", "class", "mine"], strict=True)
        )
        path.write_text(f"ply\nformat ascii 1.0\nelement vertex 4\n{names}end_header\n{rows([9] * 4, mine)}")
    elif kind == "npz":
        np.savez(path, points=XYZ, labels=np.full(4, 9), mine=mine)
    else:
        header = laspy.LasHeader(point_format=6, version="1.4")
        header.scales = [0.01] * 3
        header.add_extra_dims([laspy.ExtraBytesParams("height", "f4"), laspy.ExtraBytesParams("mine", "u2")])
        tile = laspy.LasData(header)
        tile.x, tile.y, tile.z = XYZ.T
        tile.classification = [9] * 4
        tile.mine = mine
        tile.write(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "pcd", "ply", "npz", "las", "laz"])
def test_labels_are_those_of_the_column_that_is_named(kind, tmp_path):
    path = table_of(kind, tmp_path)
    assert read(path)[0].labels.tolist() == [9] * 4
    cloud, _ = read(path, label_field="mine")
    assert cloud.labels.tolist() == CLASSES and cloud.label_codes is None
    # One that is missing names those that are there.
    with raises(ValueError, naming="theirs") as error:
        read(path, label_field="theirs")
    assert "mine" in str(error.value).lower()


def test_a_column_of_labels_is_nothing_else_and_formats_without_columns_say_so(tmp_path):
    cloud, _ = read("x y z intensity\n" + rows(CLASSES), "txt", label_field="intensity")
    assert cloud.labels.tolist() == CLASSES and cloud.intensity is None
    with raises(ValueError, naming="coordinates"):
        read("x y z label\n" + rows(CLASSES), "txt", label_field="x")
    with raises(ValueError, naming="label_field"):
        read("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "off", label_field="mine")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"file_type": 5}, "file_type"),
        ({"label_field": ""}, "label_field"),
        ({"limits": 9}, "limits"),
        ({"label_file": 3}, "label_file"),
    ],
)
def test_wrong_arguments_are_told_as_such(options, word):
    with raises(ValueError, naming=word) as error:
        read_point_cloud(rows().encode(), **{"file_type": "txt", **options})
    assert "damaged" not in str(error.value)
    with raises(ValueError, naming="rb"):
        read_point_cloud(io.StringIO(rows()), file_type="txt")


WORDS = ["Straße", "low vegetation", "", "Baum"]


@pytest.mark.parametrize("encoding", ["utf-8", "latin1"])
@pytest.mark.parametrize("form", ["csv", "spaces", "npz"])
def test_words_are_classes_in_alphabetical_order(form, encoding, tmp_path):
    path = tmp_path / ("a.npz" if form == "npz" else "a.csv")
    if form == "npz":
        np.savez(path, points=XYZ, labels=np.array(WORDS))
    elif form == "csv":
        lines = [",".join([*map(str, row), word]) for row, word in zip(XYZ, WORDS, strict=True)]
        path.write_text("x,y,z,class\n" + "\n".join(lines) + "\n", encoding=encoding)
    else:
        path = tmp_path / "a.txt"
        path.write_text("# x y z class\n" + rows(word or "nan" for word in WORDS), encoding=encoding)
    cloud, _ = read(path)
    assert cloud.label_names == ("Baum", "Straße", "low vegetation")
    assert cloud.labels.tolist() == [1, 2, -1, 0]
    np.testing.assert_allclose(cloud.points, XYZ)


def test_a_word_has_one_number_in_all_files_of_a_folder(tmp_path):
    for name, words in (("b", ["tree", "car", "tree", ""]), ("a", ["ground", "tree", "ground", "ground"])):
        (tmp_path / f"{name}.csv").write_text("x,y,z,label\n" + rows(words).replace(" ", ","))
    data = load_point_dataset("folder", data_dir=tmp_path, columns=["labels"], streaming=True)["train"]
    names = data.features["labels"].feature.names
    found = {row["file"]: row["labels"] for row in data}
    assert names == ["car", "ground", "tree"]
    assert {file: [int(label) for label in labels] for file, labels in found.items()} == {
        "a.csv": [1, 2, 1, 1],
        "b.csv": [2, 0, 2, -1],
    }
    # Numbers in one file and words in another are of two kinds.
    (tmp_path / "c.csv").write_text("x,y,z,label\n" + rows(CLASSES).replace(" ", ","))
    with raises(ValueError, naming="c.csv"):
        list(load_point_dataset("folder", data_dir=tmp_path, columns=["labels"], streaming=True)["train"])


def test_names_of_points_are_no_classes():
    names = [f"P{number}" for number in range(100)]
    points = np.random.default_rng(0).random((100, 3)).round(3)
    text = "".join(f"{name},{x},{y},{z}\n" for name, (x, y, z) in zip(names, points, strict=True))
    cloud, told = read("label,x,y,z\n" + text, "csv")
    assert cloud.labels is None and "label" in told


def test_labels_beside_a_cloud_are_read_by_convention_or_where_asked(tmp_path):
    sweep = tmp_path / "velodyne" / "000000.bin"
    stored = tmp_path / "labels" / "000000.label"
    for path in (sweep, stored):
        path.parent.mkdir()
    np.hstack([XYZ, XYZ[:, :1] / 10]).astype("<f4").tofile(sweep)
    # SemanticKITTI: the class in the lower half of 32 bits, the number of the object in the upper one
    (np.array(CLASSES, "<u4") | np.uint32(7 << 16)).tofile(stored)
    cloud, told = read(sweep, "kitti")
    assert cloud.labels.tolist() == CLASSES and "000000.label" in told
    scan = tmp_path / "a.txt"
    scan.write_text(rows())
    (tmp_path / "a.labels").write_text("2\n0\n1\n2\n")
    np.save(tmp_path / "a_own.npy", [5, 6, 7, 8])
    assert read(scan)[0].labels.tolist() == CLASSES
    assert read(scan, label_file="_own.npy")[0].labels.tolist() == [5, 6, 7, 8]
    assert read(scan, label_file=False)[0].labels is None
    (tmp_path / "a.labels").write_text("2\n0\n1\n")
    with raises(ValueError, naming="a.labels") as error:
        read(scan)
    assert "a.txt" in str(error.value) and "3" in str(error.value) and "4" in str(error.value)
    # A point that is left out takes its own label with it.
    scan.write_text(rows().replace("3.0 4.5", "nan 4.5"))
    (tmp_path / "a.labels").write_text("2\n0\n1\n2\n")
    assert read(scan, on_invalid="drop")[0].labels.tolist() == [2, 1, 2]


@pytest.mark.parametrize("kind", ["las", "laz"])
def test_random_bytes_called_las_are_told_in_plain_words(kind):
    data = np.random.default_rng(5).bytes(3000)
    for start in (data, b"LASF" + data[4:], b"LASF" + data[4:24] + b"\1\4" + data[26:]):
        with pytest.raises(ValueError) as error:
            read_point_cloud(start, file_type=kind)
        # No number of twenty digits
        assert not any(len(word.strip(".,;")) > 14 and word[0].isdigit() for word in str(error.value).split())
