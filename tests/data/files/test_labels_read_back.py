"""What is written as labels is read as labels, whatever kind of file it is written into, and nothing else changes."""

import io
import warnings

import numpy as np
import pytest

from hf_any3d import read_point_cloud, write_labels
from hf_any3d.data.files import PointCloudFileError
from tests.errors import raises

from .test_labels import pcd, ply

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
    **{f"{form}_{old}.pcd": pcd(form, old) for form in ("ascii", "binary", "binary_compressed") for old in (0, 1)},
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
NOT_WRITTEN = {
    ("wide.npy", "more than 64"),
    *((f"binary{more}_1.pcd", name) for more in ("", "_compressed") for name in ()),
}


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
