"""What is written as labels is read as labels, whatever kind of file it is written into, and nothing else changes."""

import io
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from hf_any3d import read_point_cloud, write_labels
from hf_any3d.data.files import PointCloudFileError
from tests.errors import raises
from tests.forks import results_of

from .test_labels import pcd, ply, scan

COUNT = 90
POINTS = np.random.default_rng(3).integers(0, 9999, (COUNT, 3)) / 100
OLD = np.arange(COUNT) % 3
COLORS = np.random.default_rng(4).integers(40, 256, (COUNT, 3))
NORMALS = np.tile([[0.0, 0.6, 0.8], [1.0, 0.0, 0.0], [0.6, 0.8, 0.0]], (COUNT // 3, 1))
AMPLITUDES = np.random.default_rng(5).integers(0, 9999, COUNT) / 7
LABELS = {
    "few": OLD + 4,
    "some without": np.where(np.arange(COUNT) % 9 == 0, -1, OLD + 4),
    "more than 64": np.arange(COUNT),
    "large": OLD + 30_000,
    "one": np.full(COUNT, 1),
    "255": np.full(COUNT, 255),
}


def text(*columns, separator=" ", first="", form="%g"):
    table = np.column_stack(columns)
    rows = [separator.join(form % value for value in row) for row in table.tolist()]
    return (first + "\n".join(rows) + "\n").encode()


def with_cells(data: bytes, cells: dict[int, tuple[int, bytes]]) -> bytes:
    """Replace cells of rows, such as the third of row 5, by others."""
    lines = data.split(b"\n")
    for row, (place, cell) in cells.items():
        parts = lines[row].split(b",")
        parts[place] = cell
        lines[row] = b",".join(parts)
    return b"\n".join(lines)


def packed(*arrays, **named):
    file = io.BytesIO()
    np.savez(file, *arrays, **named)
    return file.getvalue()


def single(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def rows_of(*fields):
    """A structured array with x, y, z and further fields (name, type, values)."""
    kinds = [("x", "f8"), ("y", "f8"), ("z", "f8"), *((name, kind) for name, kind, _ in fields)]
    table = np.zeros(COUNT, kinds)
    for place, axis in enumerate("xyz"):
        table[axis] = POINTS[:, place]
    for name, _, values in fields:
        table[name] = values
    return table


NAN = POINTS.copy()
NAN[[4, 40]] = np.nan
NUMBERS = np.arange(COUNT) + 7
PLY = np.column_stack([POINTS, AMPLITUDES])
FILES: dict[str, bytes] = {
    "plain.xyz": text(POINTS),
    "counted.xyz": text(POINTS, first=f"{COUNT}\n"),
    "comment.xyz": text(POINTS, first="# of someone\n"),
    "labels.xyz": text(POINTS, OLD),
    "amplitudes.xyz": text(POINTS, AMPLITUDES),
    "many_numbers.xyz": text(POINTS, np.arange(COUNT)),
    "colors.txt": text(POINTS, COLORS),
    "unit_colors.txt": text(POINTS, COLORS / 255, form="%.6f"),
    "colors_labels.txt": text(POINTS, COLORS, OLD, separator="\t"),
    "colors_alpha.txt": text(POINTS, COLORS, np.full(COUNT, 255)),
    "normals.txt": text(POINTS, NORMALS),
    "normals_labels.txt": text(POINTS, NORMALS, OLD, separator=";"),
    "intensity_colors.txt": text(POINTS, AMPLITUDES, COLORS, separator=","),
    "nine.txt": text(POINTS, COLORS, NORMALS),
    "nine_turned.txt": text(POINTS, NORMALS, COLORS),
    "numbered.txt": text(NUMBERS, POINTS),
    "numbered_colors.txt": text(NUMBERS, POINTS, COLORS),
    "numbered_labels.txt": text(NUMBERS, POINTS, OLD),
    "nan_rows.xyz": text(NAN),
    "nan_rows_labels.xyz": text(NAN, OLD),
    "names.csv": text(POINTS, AMPLITUDES, separator=",", first="x,y,z,intensity\n"),
    "class.csv": text(POINTS, OLD, AMPLITUDES, separator=",", first="x,y,z,class,intensity\n"),
    "pdal.txt": text(POINTS, OLD, separator=",", first='"X","Y","Z","Classification"\n', form="%.3f"),
    "pdal_new.txt": text(POINTS, separator=",", first='"X","Y","Z"\n', form="%.3f"),
    "quotes.csv": text(POINTS, OLD, separator=",", first="x,y,z,label\n", form='"%g"'),
    "tabs.txt": text(POINTS, OLD, separator="\t", first="x\ty\tz\tlabel\n"),
    "semicolons.csv": text(POINTS, OLD, separator=";", first="x;y;z;label\n", form="%.2f").replace(b".", b","),
    "nan_rows.csv": text(NAN, OLD, separator=",", first="x,y,z,class\n"),
    "empty.csv": with_cells(
        text(POINTS, OLD, AMPLITUDES, separator=",", first="x,y,z,class,amount\n"),
        {5: (1, b""), 6: (4, b""), 7: (0, b"")},
    ),
    "words.csv": b"name,x,y,z,class,species\n"
    + b"".join(b'tree %d, %g,%g,%g,%d,"oak, old"\n' % (i, *row, i % 3) for i, row in enumerate(POINTS.tolist())),
    "words_new.txt": b"name x y z\n"
    + b"".join(b"p%d %g %g %g\n" % (i, *row) for i, row in enumerate(POINTS.tolist())),
    "pandas.csv": text(np.arange(COUNT), POINTS, separator=",", first=",x,y,z\n"),
    "ascii.ply": ply("ascii", PLY, faces=False),
    "little.ply": ply("binary_little_endian", PLY, faces=False),
    "big.ply": ply("binary_big_endian", np.column_stack([PLY, OLD]), "x y z intensity scalar_Label", faces=False),
    "ascii_class.ply": ply("ascii", np.column_stack([PLY, OLD]), "x y z intensity class", faces=False),
    "nan_rows.ply": ply("binary_little_endian", np.column_stack([NAN, OLD]), "x y z label", faces=False),
    "mesh.ply": ply("binary_little_endian", PLY),
    **{
        f"{form}_{old}.pcd": pcd(form, bool(old))
        for form in ("ascii", "binary", "binary_compressed")
        for old in (0, 1)
    },
    "points.npz": packed(points=POINTS),
    "odd.npz": packed(my_scan=POINTS),
    "labels.npz": packed(points=POINTS, semantic=OLD.astype(np.int64), other=np.arange(4)),
    "column.npz": packed(points=POINTS, label=OLD.reshape(-1, 1).astype("<i4")),
    "of_cloud.npz": packed(points=POINTS, label=np.array(3), labels=np.array([1])),
    "fields.npz": packed(rows_of(("intensity", "f4", AMPLITUDES))),
    "fields_label.npz": packed(rows_of(("label", "<i4", OLD), ("intensity", "f4", AMPLITUDES))),
    "fields_class.npz": packed(data=rows_of(("Classification", ">u2", OLD))),
    "wide.npz": packed(np.column_stack([POINTS, OLD])),
    "wide_odd.npz": packed(my_scan=np.column_stack([POINTS, COLORS, OLD])),
    "wide_colors.npz": packed(points=np.asfortranarray(np.column_stack([POINTS, COLORS]))),
    "wide_numbered.npz": packed(points=np.column_stack([NUMBERS, POINTS, OLD])),
    "nan_rows.npz": packed(points=np.column_stack([NAN, OLD])),
    "nan_fields.npz": packed(points=POINTS, labels=OLD, extra=NAN),
    "fields.npy": single(rows_of(("intensity", "f4", AMPLITUDES))),
    "fields_label.npy": single(rows_of(("label", "<i4", OLD), ("t", "f8", AMPLITUDES))),
    "wide.npy": single(np.column_stack([POINTS, OLD])),
}
# Where nothing can name the last column of a single array, only numbers that look like labels are written.
NOT_WRITTEN = {("wide.npy", "more than 64")}


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_point_cloud(path, on_invalid="drop")


def write(*arguments, **named):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_labels(*arguments, **named)


@pytest.mark.parametrize("name", FILES)
def test_labels_that_are_written_are_read_and_all_else_stays(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    before = read(tmp_path / name)
    for kind, labels in LABELS.items():
        labels = labels[: len(before)]
        new = tmp_path / f"new_{name}"
        if (name, kind) in NOT_WRITTEN:
            with raises(PointCloudFileError, naming=".npz"):
                write(tmp_path / name, new, labels)
            continue
        write(tmp_path / name, new, labels, scores=None)
        after = read(new)
        assert after.labels is not None, kind
        answered = labels >= 0
        np.testing.assert_array_equal(after.labels[answered], labels[answered], err_msg=kind)
        kept = -1 if before.labels is None else before.labels[~answered]
        np.testing.assert_array_equal(after.labels[~answered], kept, err_msg=kind)
        for field, values in before.arrays().items():
            if field != "labels":
                np.testing.assert_array_equal(getattr(after, field), values, err_msg=f"{kind}: {field}")


def test_classes_that_are_words_are_not_mixed_with_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("x,y,z,class\n" + "1,2,3,tree\n4,5,6,ground\n" * 9)
    with raises(PointCloudFileError, naming="field=NAME"):
        write(tmp_path / "a.csv", tmp_path / "b.csv", np.arange(18))
    write(tmp_path / "a.csv", tmp_path / "b.csv", np.arange(18), field="code")
    assert (tmp_path / "b.csv").read_text().splitlines()[:3] == ["x,y,z,class,code", "1,2,3,tree,0", "4,5,6,ground,1"]


MEASURED = {
    "ascii.ply": ("x", "Z", "intensity"),
    "little.ply": ("y", "scalar_Intensity", "nx", "red", "gps_time"),
    "binary_1.pcd": ("x", "t", "rgb"),
    "names.csv": ("x", "intensity", "Intensity", "green", "ReturnNumber"),
    "class.csv": ("z", "scalar_intensity"),
    "empty.csv": ("y",),
    "plain.xyz": ("x", "ny"),
    "points.npz": ("points", "colors", "faces", "offset", "gps_time"),
    "nan_fields.npz": ("points", "extra"),
    "fields.npz": ("x", "intensity"),
    "fields_label.npy": ("x", "t"),
    "a.las": ("X", "intensity", "gps_time", "GpsTime", "Red", "return_number", "user_data", "height", "nir"),
}


@pytest.mark.parametrize("name", MEASURED)
def test_a_class_is_never_written_over_what_a_point_is(name, tmp_path):
    (tmp_path / name).write_bytes(scan(7, False) if name == "a.las" else FILES[name])
    count = len(read(tmp_path / name))
    for field in MEASURED[name]:
        with raises(ValueError, naming=field) as caught:
            write(tmp_path / name, tmp_path / f"new_{name}", np.arange(count), field=field)
        assert "damaged" not in str(caught.value)
    for field in ("my_class", "treeID"):
        write(tmp_path / name, tmp_path / f"new_{name}", np.arange(count), field=field)
    assert [path.name for path in tmp_path.iterdir() if path.name not in (name, f"new_{name}")] == []


def test_wrong_arguments_are_no_damaged_file(tmp_path):
    (tmp_path / "a.ply").write_bytes(FILES["ascii.ply"])
    labels = np.zeros(COUNT, int)
    cases: list[tuple[dict, str]] = [
        ({"labels": None}, "labels"),
        ({"labels": labels, "field": "my class"}, "'my class'"),
        ({"labels": labels, "field": "score", "scores": np.ones(COUNT)}, "'score'"),
    ]
    for arguments, naming in cases:
        with raises(ValueError, naming=naming) as caught:
            write(tmp_path / "a.ply", tmp_path / "b.ply", **arguments)
        assert "damaged" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of processes")
@pytest.mark.parametrize(
    "name", ["little.ply", "binary_compressed_1.pcd", "labels.npz", "plain.xyz", "a.las", "a.laz"]
)
def test_a_full_disk_is_told_as_what_it_is(name, tmp_path):
    import resource

    (tmp_path / name).write_bytes(scan(7, name == "a.laz") if name.startswith("a.") else FILES[name])
    count = len(read(tmp_path / name))
    copy = tmp_path / "copies" / name

    def write_on_a_full_disk():
        # A limit of the process stands for the disk: writing fails with an OSError at this size.
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
        try:
            write(tmp_path / name, copy, np.arange(count) % 3)
        except OSError as error:
            return str(error)

    (said,) = results_of(write_on_a_full_disk)
    assert f"{copy} could not be written (File too large)" in said
    assert not list(copy.parent.iterdir())


PROGRAMS = Path(__file__).parent / "programs"


def test_other_programs_give_back_the_classes_of_copies():
    # Copies of twelve points with the classes 2, 5 and 6, opened and written by CloudCompare 2.11.3 of Debian 12
    # (-O copy.ply -C_EXPORT_FMT PLY -PLY_EXPORT_FMT ASCII -SAVE_CLOUDS), and by pcl_pcd2ply and
    # pcl_convert_pcd_ascii_binary of PCL 1.13.0 from copy.pcd.
    for name in ("cloudcompare.ply", "pcl.ply", "pcl.pcd"):
        np.testing.assert_array_equal(read(PROGRAMS / name).labels, np.array([2, 5, 6] * 4), err_msg=name)
    assert b"property float scalar_Score\n" in (PROGRAMS / "cloudcompare.ply").read_bytes()


def test_a_copc_has_a_plain_copy_on_request(tmp_path):
    # Twenty points by copclib 2.6.3
    laspy = pytest.importorskip("laspy")
    source = PROGRAMS / "copclib.copc.laz"
    for name in ("a.laz", "a.copc.laz"):
        with raises(PointCloudFileError, naming=".plain.laz"):
            write_labels(source, tmp_path / name, np.arange(20))
    before = read(source)
    for name in ("a.plain.laz", "a.las"):
        with pytest.warns(UserWarning, match=f"{name}: is plain LAS 1.4, not COPC"):
            write_labels(source, tmp_path / name, np.arange(20))
        new = laspy.read(tmp_path / name)
        np.testing.assert_array_equal(new.classification, np.arange(20))
        np.testing.assert_array_equal(read(tmp_path / name).points, before.points)
        np.testing.assert_array_equal(new.intensity, before.intensity)
        assert new.header.version == "1.4" and not new.header.vlrs and not new.evlrs


@pytest.mark.parametrize("version", ["1.2", "1.4"])
def test_scores_that_pdal_does_not_look_for_are_told(version, tmp_path):
    # PDAL 2.10 reads descriptions of extra bytes of LAS 1.4 alone, unless use_eb_vlr is true.
    (tmp_path / "a.las").write_bytes(scan(3, False, version))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        write_labels(tmp_path / "a.las", tmp_path / "b.las", np.zeros(300, int), scores=np.ones(300))
    assert ["score: extra bytes of LAS 1.2" in str(each.message) for each in told] == [True] * (version == "1.2")
